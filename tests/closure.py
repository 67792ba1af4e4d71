"""Which source files a stage's result depends on.

    python -m tests.closure train        # print them as deps for dvc.yaml
    python -m tests.closure --write      # put them into dvc.yaml, for every stage

The import closure is found with ast: every import of pipeline or stages, also inside functions, but not under
`if TYPE_CHECKING:`. Modules that are imported by name at run time (dictionary kinds, activation functions, sparsity losses)
come in through DYNAMIC: as a template on a parameter's value, or as the whole directory.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "stages")


@dataclass(frozen=True)
class Dynamic:
    """Files of `package` that are imported by name, the name being the value of the parameter `key`.

    `whole`: deps hold the whole directory, as no template of dvc turns a name (tanh-quad) into its file (tanh_quad.py).
    """

    package: str
    key: str
    whole: bool = False

    @property
    def template(self) -> str:
        return f"{self.package}/${{{self.key}}}.py"


# Source file that imports by name -> what it imports.
DYNAMIC = {
    "pipeline/dictionaries/build.py": Dynamic("pipeline/dictionaries", "dictionary.kind"),
    "pipeline/activation_functions/interface.py": Dynamic("pipeline/activation_functions", "dictionary.act_fn"),
    "pipeline/losses/sparsity_losses.py": Dynamic("pipeline/losses/sparsity", "trainer.sparsity_loss_type", whole=True),
    "pipeline/params/sections/dictionary.py": Dynamic("pipeline/params/kinds", "dictionary.kind"),
}
# The machinery of the above: it imports what its callers name.
BY_NAME = {"pipeline/registry.py"}
# Imported by name whatever the parameters say: fold may turn the topk family into jumprelu, evaluate reads the outcome.
ALWAYS = {
    "stages/fold_norm.py": ("pipeline/activation_functions/jumprelu.py",),
    "stages/evaluate.py": ("pipeline/activation_functions/jumprelu.py",),
    "stages/analyze.py": ("pipeline/activation_functions/jumprelu.py",),
}


@dataclass(frozen=True)
class Import:
    """One import: the module's file relative to the root, the line, and whether it is for types only."""

    path: str
    line: int
    typing_only: bool


def sources(*packages: str) -> list[str]:
    """All source files of the packages, relative to the root, sorted."""
    found = (path for package in packages or PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


@functools.cache
def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def module_file(name: str) -> str | None:
    """`pipeline.lm.loading` -> its file (a package: its __init__.py); None if it is not ours or not a module."""
    if name.split(".")[0] not in PACKAGES:
        return None
    stem = name.replace(".", "/")
    for path in (f"{stem}.py", f"{stem}/__init__.py"):
        if (ROOT / path).is_file():
            return path
    return None


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _statements(node: ast.AST, typing_only: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, typing_only
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for part in child.body:
                yield from _statements(ast.Module([part], []), True)
            for part in child.orelse:
                yield from _statements(ast.Module([part], []), typing_only)
        else:
            yield from _statements(child, typing_only)


def imported_names(path: str) -> Iterator[tuple[list[str], int, bool]]:
    """For every import of a file: the dotted names it may mean (module first), its line, and whether for types only."""
    package = Path(path).parent.as_posix().replace("/", ".").split(".")
    for statement, typing_only in _statements(parsed(path)):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield [alias.name], statement.lineno, typing_only
            continue
        base = statement.module or ""
        if statement.level:
            base = ".".join([*package[: len(package) - statement.level + 1], *([base] if base else [])])
        for alias in statement.names:
            yield [f"{base}.{alias.name}", base], statement.lineno, typing_only


@functools.cache
def imports(path: str) -> tuple[Import, ...]:
    """The imports of our own modules in a file; packages themselves (their __init__.py is a docstring) left out."""
    found = []
    for names, line, typing_only in imported_names(path):
        target = next((file for file in map(module_file, names) if file is not None), None)
        if target is not None and not target.endswith("__init__.py"):
            found.append(Import(target, line, typing_only))
    return tuple(found)


def _reach(start: Iterable[str], follow: Mapping[str, Iterable[str]]) -> set[str]:
    """Files reached from `start` by imports; `follow` maps a file that imports by name to the files that it imports."""
    reached: set[str] = set()
    waiting = list(start)
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        waiting.extend(found.path for found in imports(path) if not found.typing_only)
        waiting.extend(follow.get(path, ()))
    return reached


def value_of(params: Mapping[str, Any], key: str) -> Any:
    """params["a"]["b"] of "a.b"; None where it is not there."""
    value: Any = params
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def candidates(dynamic: Dynamic) -> list[str]:
    """Every file that some value of the parameter may name (files of the package that name no thing included)."""
    return [path for path in sources(dynamic.package) if not path.endswith("__init__.py")]


def named_files(dynamic: Dynamic, params: Mapping[str, Any]) -> list[str]:
    """The file that the parameters name; empty if they name none."""
    path = f"{dynamic.package}/{str(value_of(params, dynamic.key)).replace('-', '_')}.py"
    return [path] if (ROOT / path).is_file() else []


def _start(stage: str) -> tuple[str, ...]:
    path = stage if stage.endswith(".py") else f"stages/{stage}.py"
    return (path, *ALWAYS.get(path, ()))


def closure(stage: str, params: Mapping[str, Any]) -> set[str]:
    """Files that the stage (`train` or `stages/train.py`) imports with these parameters."""
    return _reach(_start(stage), {source: named_files(dynamic, params) for source, dynamic in DYNAMIC.items()})


def permitted(stage: str) -> set[str]:
    """Files that the stage imports with some parameters: what its deps may hold."""
    return _reach(_start(stage), {source: candidates(dynamic) for source, dynamic in DYNAMIC.items()})


def declared(entries: list[Any], params: Mapping[str, Any]) -> list[str]:
    """Source deps of a dvc.yaml stage, templates filled in from the parameters."""
    names = [next(iter(entry)) if isinstance(entry, Mapping) else str(entry) for entry in entries]
    filled = [re.sub(r"\$\{([^}]+)\}", lambda found: str(value_of(params, found[1])), name).rstrip("/") for name in names]
    return [name for name in filled if name.split("/")[0] in PACKAGES]


def covers(dep: str, path: str) -> bool:
    """Whether a dep, a file or a directory, holds the file."""
    return dep == path or path.startswith(f"{dep}/")


def load_yaml(name: str) -> dict[str, Any]:
    """params.yaml or dvc.yaml."""
    import yaml

    return yaml.safe_load((ROOT / name).read_text())


def stage_modules(pipeline: Mapping[str, Any]) -> dict[str, str]:
    """{stage of dvc.yaml: its script}, from `cmd: python -m stages.<script>`."""
    found = {name: re.search(r"-m stages\.(\w+)", str(stage["cmd"])) for name, stage in pipeline["stages"].items()}
    return {name: match[1] for name, match in found.items() if match}


def suggested(stage: str, params: Mapping[str, Any]) -> list[str]:
    """Deps for dvc.yaml that hold the closure for every value of the parameters, and nothing beyond `permitted`.

    What a parameter names is a template (the whole directory if it names nothing, null, or if Dynamic says so); what any
    of the files that it may name imports in turn is listed; a directory stands for its files where all of them are in.
    """
    dynamics = {dynamic for source, dynamic in DYNAMIC.items() if source in permitted(stage)}
    explicit = _reach(_start(stage), {})
    for path in (path for dynamic in dynamics for path in candidates(dynamic)):
        explicit |= _reach([path], {}) - {path}
    templates = {d.template if named_files(d, params) and not d.whole else d.package for d in dynamics}
    folders = {parent.as_posix() for path in explicit for parent in Path(path).parents if len(parent.parts) > 1}
    held = explicit | {path for path in permitted(stage) if any(covers(entry, path) for entry in templates)}
    whole = {f for f in folders if (files := _modules(f)) <= held and len(files) > 1}
    entries = templates | whole | explicit
    return sorted(e for e in entries if not any(other != e and covers(other, e) for other in entries))


def _modules(folder: str) -> set[str]:
    return {path for path in sources(folder) if not path.endswith("__init__.py")}


def write(text: str, params: Mapping[str, Any], modules: Mapping[str, str]) -> str:
    """dvc.yaml's text with every stage's source deps replaced by the suggested ones; the rest as it is."""
    lines, stage, in_deps = [], "", False
    for line in text.splitlines():
        if re.fullmatch(r"  \w+:", line):
            stage = line.strip(" :")
        is_entry = line.startswith("      - ")
        if in_deps and not is_entry:
            lines.extend(f"      - {entry}" for entry in suggested(modules[stage], params))
        in_deps = (line == "    deps:" and stage in modules) or (in_deps and is_entry)
        if not (in_deps and is_entry and line.strip(" -").split("/")[0] in PACKAGES):
            lines.append(line)
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    params = load_yaml("params.yaml")
    if arguments == ["--write"]:
        path = ROOT / "dvc.yaml"
        modules = stage_modules(load_yaml("dvc.yaml"))
        there = {stage: script for stage, script in modules.items() if (ROOT / f"stages/{script}.py").is_file()}
        path.write_text(write(path.read_text(), params, there))
        return
    for name in arguments or [Path(path).stem for path in sorted(_modules("stages"))]:
        print(f"# {name}")  # noqa: T201
        for entry in suggested(name, params):
            print(f"      - {entry}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
