"""Wrong forms of a function, made from its syntax tree by operators that know no formula.

    + and -, * and /, & and |, < and <= and > swapped; a term, a factor or an operand left out
    numbers, true and false changed; a sign, a `not` or a guard left out; conditions turned round
    max and min, sum and mean, floor and ceil, exp and exp2, add_ and sub_, ... swapped; sqrt(x), x.detach(), ... made x
    the gradient of what a function returns cut off; a dtype made bfloat16; hooks_in and hooks_out, ... swapped
    a keyword argument, a bound of a slice or a statement that changes something left out; pairs turned round

Names, strings, annotations, decorators, errors that are raised and docstrings stay. Nothing is bound to the text: a mutant is
told by its change, written as Python writes a syntax tree.
"""

from __future__ import annotations

import ast
import collections
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]

_SWAPS = (
    ("max", "min"), ("amax", "amin"), ("maximum", "minimum"), ("argmax", "argmin"), ("any", "all"), ("floor", "ceil"),
    ("sin", "cos"), ("sqrt", "square"), ("tanh", "sigmoid"), ("tanh_", "sigmoid_"), ("clamp_min", "clamp_max"),
    ("add_", "sub_"), ("mul_", "div_"), ("zeros", "ones"), ("zeros_like", "ones_like"), ("exp", "exp2"), ("log", "log2"),
)  # fmt: skip
_METHOD_SWAPS = (("sum", "mean"), ("nanmedian", "nanmean"))  # where a builtin has the name there is no other one
_ONE_WAY = {"log10": "log2", "rsqrt": "sqrt", "expm1": "exp", "isfinite": "isnan"}
NAMES = {a: b for one, two in _SWAPS for a, b in ((one, two), (two, one))} | _ONE_WAY
METHODS = NAMES | {a: b for one, two in _METHOD_SWAPS for a, b in ((one, two), (two, one))}
TRANSPARENT = frozenset((
    "abs", "abs_", "add_", "ceil", "clamp", "clamp_max", "clamp_max_", "clamp_min", "clamp_min_", "clone", "detach", "div_",
    "double", "exp", "float", "floor", "half", "log", "log10", "log2", "masked_fill", "mul_", "neg", "neg_", "reciprocal",
    "relu", "relu_", "round", "sigmoid", "sigmoid_", "sqrt", "square", "sub_", "tanh", "tanh_",
))  # fmt: skip
ATTRIBUTES = {"float64": "bfloat16", "float32": "bfloat16", "bfloat16": "float32"}
CHOICES = ("max", "min", "maximum", "minimum")

_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}  # fmt: skip
_TURNED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # comparisons whose change turns them round
_UNTOUCHED = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)
_SKIPPED_FIELDS = frozenset({"annotation", "returns", "decorator_list", "type_comment", "bases"})


class Mutant(NamedTuple):
    """A wrong form.

    Attributes:
        change: what was changed, "before -> after".
        source: of the whole module with it.
    """

    change: str
    source: str


class _Edit(NamedTuple):
    parent: ast.AST
    field: str
    place: int | None  # in a list
    new: ast.AST | None  # None: taken out of a list
    change: str


def module_file(where: str, root: Path = ROOT) -> Path:
    """The file of `module:Class.method`."""
    return root / (where.partition(":")[0].replace(".", "/") + ".py")


def find(tree: ast.Module, where: str) -> ast.stmt:
    """The function, method, class, field or constant that `module:name.name` names in its module.

    Raises:
        LookupError: there is none.
    """
    module, _, qualified = where.partition(":")
    body: list[ast.stmt] = tree.body
    found: ast.stmt | None = None
    for name in qualified.split("."):
        found = next((node for node in body if name in _names(node)), None)
        if found is None:
            raise LookupError(f"{module} has no {qualified}")
        body = getattr(found, "body", [])
    assert found is not None
    return found


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def mutants(where: str, root: Path = ROOT) -> list[Callable[[], Mutant]]:
    """All wrong forms of a place, in order; each is written out when it is called.

    Args:
        where: `module:Class.method`, a function, a method, or a constant or field with a value.
        root: the folder that the package is in.

    Raises:
        LookupError: there is no such place.
    """
    file = module_file(where, root)
    if not file.is_file():
        raise LookupError(f"there is no {file.relative_to(root)}")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    seen: collections.Counter[str] = collections.Counter()
    made: list[Callable[[], Mutant]] = []
    place = find(tree, where)
    for edit in (*_edits(place), *_cut_gradients(place)):
        seen[edit.change] += 1
        change = edit.change if seen[edit.change] == 1 else f"{edit.change} ({seen[edit.change]})"
        made.append(functools.partial(_written, tree, edit, change))
    return made


def _written(tree: ast.Module, edit: _Edit, change: str) -> Mutant:
    """The module's source with an edit; the tree is left as it was."""
    value = getattr(edit.parent, edit.field)
    changed: Any = edit.new
    if edit.place is not None:
        changed = [*value[: edit.place], *([] if edit.new is None else [edit.new]), *value[edit.place + 1 :]]
    setattr(edit.parent, edit.field, changed)
    try:
        return Mutant(change, ast.unparse(tree))
    finally:
        setattr(edit.parent, edit.field, value)


def _edits(node: ast.AST) -> Iterator[_Edit]:
    """All edits inside a node."""
    for field, value in ast.iter_fields(node):
        if field in _SKIPPED_FIELDS:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, _UNTOUCHED):
                continue
            for new in _instead(child, node, field):
                after = "" if new is None else ast.unparse(new)
                if (before := ast.unparse(child)) != after:
                    yield _Edit(node, field, index, new, f"{before} -> {after or 'nothing'}")
            yield from _edits(child)


def _cut_gradients(place: ast.AST) -> Iterator[_Edit]:
    """Of a function that returns a tensor: the gradient of a returned value cut off."""
    if not (isinstance(place, ast.FunctionDef) and place.returns is not None and ast.unparse(place.returns) == "Tensor"):
        return
    if any(argument.arg == "ctx" for argument in place.args.args):  # of a torch.autograd.Function, which has no gradient
        return
    for node in ast.walk(place):
        if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Compare):
            new = ast.Call(ast.Attribute(node.value, "detach", ast.Load()), [], [])
            yield _Edit(node, "value", None, new, f"return {ast.unparse(node.value)} -> {ast.unparse(new)}")


def _instead(node: ast.AST, parent: ast.AST, field: str) -> Iterator[ast.AST | None]:
    """What may stand in a node's place."""
    if field == "test" and isinstance(parent, ast.If | ast.IfExp) and isinstance(node, ast.expr):
        guard = isinstance(parent, ast.If) and all(isinstance(statement, ast.Raise) for statement in parent.body)
        if guard:
            yield ast.Constant(False)
        elif not (isinstance(node, ast.Compare) and isinstance(node.ops[0], _TURNED)):
            yield ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.BinOp():
            yield from _of_operation(node)
        case ast.AugAssign(target=target, op=op, value=value):
            if type(op) in _OPERATORS:
                yield ast.AugAssign(target, _OPERATORS[type(op)](), value)
            yield ast.Pass()
        case ast.Compare(left=left, ops=[op], comparators=comparators):
            for turned in _COMPARISONS[type(op)]:
                yield ast.Compare(left, [turned()], comparators)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            yield from values
        case ast.UnaryOp(op=ast.Not() | ast.Invert() | ast.USub(), operand=operand):
            if not isinstance(operand, ast.Constant):  # a dimension -1 is often 1
                yield operand
        case ast.Constant(value=bool() | int() | float() as value):
            yield from (ast.Constant(other) for other in _others(value))
        case ast.Attribute(value=receiver, attr=name, ctx=ast.Load()):
            if (other := ATTRIBUTES.get(name) or _other_end(name)) is not None:
                yield ast.Attribute(receiver, other, ast.Load())
        case ast.Call():
            yield from _of_call(node)
        case ast.keyword(arg=str(name)) if isinstance(parent, ast.Call):
            if name not in ("device", "non_blocking"):  # which a test on the CPU can't tell
                yield None
        case ast.Tuple(elts=[one, other], ctx=ast.Load()) if field != "slice":
            yield ast.Tuple([other, one], ast.Load())
        case ast.Slice(lower=lower, upper=upper, step=step):
            if lower is not None:
                yield ast.Slice(None, upper, step)
            if upper is not None:
                yield ast.Slice(lower, None, step)
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            if any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(value)):
                yield ast.Pass()
    if field == "ifs":
        yield None


def _of_operation(node: ast.BinOp) -> Iterator[ast.AST]:
    left, op, right = node.left, node.op, node.right
    if any(isinstance(side, ast.JoinedStr) or _is_string(side) for side in (left, right)):
        return
    if type(op) in _OPERATORS:
        yield ast.BinOp(left, _OPERATORS[type(op)](), right)
        yield left
        if not isinstance(op, ast.Pow | ast.FloorDiv):
            yield right


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _others(value: float) -> tuple[float, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1,)
    return (2 * value, 0.0) if value else (1.0,)


def _other_end(name: str) -> str | None:
    """hooks_out for hooks_in, and so on."""
    for end, other in (("_in", "_out"), ("_out", "_in")):
        if name.endswith(end):
            return name.removesuffix(end) + other
    return None


def _of_call(node: ast.Call) -> Iterator[ast.AST]:
    match node.func:
        case ast.Attribute(value=receiver, attr=name):
            module = isinstance(receiver, ast.Name) and receiver.id in ("torch", "math", "np")
            if name in METHODS:
                yield ast.Call(ast.Attribute(receiver, METHODS[name], ast.Load()), node.args, node.keywords)
            operand = next(iter(node.args), None) if module else receiver
        case ast.Name(id=name):
            if name in NAMES:
                yield ast.Call(ast.Name(NAMES[name], ast.Load()), node.args, node.keywords)
            operand = next(iter(node.args), None)
        case _:
            return
    if name in TRANSPARENT and operand is not None:
        yield operand
    if name in CHOICES and len(node.args) > 1:
        yield from node.args
    if name == "where" and len(node.args) == 3:
        condition, one, other = node.args
        yield ast.Call(node.func, [condition, other, one], node.keywords)
