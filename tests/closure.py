"""Which source files a stage's result depends on, found with ast.

Every import of pipeline or stages counts, also inside functions, but not under `if TYPE_CHECKING:`. What is imported by name
at run time (dictionary kinds, activation functions, sparsity losses, storage codecs, file
formats) comes in through DYNAMIC, whole packages at a time.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.stage_code import covers

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "stages")

# Source file that imports by name -> the package whose files it imports.
DYNAMIC = {
    "pipeline/dictionaries/build.py": "pipeline/dictionaries",
    "pipeline/dictionaries/formats/interface.py": "pipeline/dictionaries/formats",
    "pipeline/interop/interface.py": "pipeline/interop",
    "pipeline/activation_functions/interface.py": "pipeline/activation_functions",
    "pipeline/activations/codecs/interface.py": "pipeline/activations/codecs",
    "pipeline/losses/sparsity_losses.py": "pipeline/losses/sparsity",
    "pipeline/params/dictionary_kinds.py": "pipeline/params/kinds",
}
# The machinery of the above, and what it is given: declarations, which their callers import from.
BY_NAME = {
    "pipeline/registry.py",
    "pipeline/params/gates.py",
    "pipeline/params/losses.py",
    "pipeline/params/codecs.py",
    "pipeline/params/dictionary_formats.py",
    "pipeline/params/interchange.py",
}
# No stage runs again because one of these has changed, and why. What they import themselves counts all the same.
NO_RESULT = {
    "pipeline/params": "reads and checks parameters; the values are in dvc.yaml's `params`, what a share means is in shares.py",
    "pipeline/errors.py": "what a stage says when there is no result",
    "pipeline/arguments.py": "refuses wrong arguments of functions",
    "pipeline/foreign.py": "what a stage says where another library cannot read a file",
    "pipeline/command.py": "the command line: options, one-line errors, exit codes",
    "pipeline/progress.py": "a line on the terminal",
    "pipeline/ending.py": "a line on the terminal",
    "pipeline/words.py": "how a number stands in a line on the terminal",
    "pipeline/allocation.py": "where tensors lie in memory",
    "pipeline/garbage.py": "when unused memory is looked for",
    "pipeline/memory.py": "refuses what cannot be held",
    "pipeline/interrupts.py": "when a run stops; it goes on to the same bytes",
    "pipeline/tracking": "writes down figures that are there already",
    "pipeline/provenance.py": "tags of tracked runs",
    "pipeline/registry.py": "finds code by name; what it finds counts",
    "pipeline/uncached.py": "a warning",
    "pipeline/stage_code.py": "tells one code from another; a digest formed otherwise is another digest",
    "pipeline/planning": "says beforehand what a run needs, and refuses what cannot end well",
}
# Of these not even what they import counts: they use the code of other stages, and give a stage nothing to write.
GIVES_NOTHING = ("pipeline/planning",)


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


def modules(package: str) -> list[str]:
    """The source files of a package but its docstrings (__init__.py)."""
    return [path for path in sources(package) if not path.endswith("__init__.py")]


def closure(script: str) -> dict[str, str]:
    """{every file that is imported with some parameters: where}, the script (`stages/train.py`) itself included."""
    reached: dict[str, str] = {}
    waiting = [(script, script)]
    while waiting:
        path, where = waiting.pop()
        if path not in reached:
            reached[path] = where
            if any(covers(place, path) for place in GIVES_NOTHING):
                continue
            waiting.extend((found.path, f"{path}:{found.line}") for found in imports(path) if not found.typing_only)
            waiting.extend((other, path) for other in (modules(DYNAMIC[path]) if path in DYNAMIC else ()))
    return reached


def counts(path: str) -> bool:
    """Whether a change of the file may change a result."""
    return not any(covers(place, path) for place in NO_RESULT)


def undeclared(script: str, places: tuple[str, ...]) -> list[str]:
    """What the script imports, may change its result and lies in none of the places: `file (imported by file:line)`."""
    needed = {path: where for path, where in closure(script).items() if counts(path)}
    return sorted(f"{p} (imported by {where})" for p, where in needed.items() if not any(covers(place, p) for place in places))


def load_yaml(name: str) -> dict[str, Any]:
    """dvc.yaml."""
    import yaml

    return yaml.safe_load((ROOT / name).read_text())


def stage_scripts(pipeline: Mapping[str, Any]) -> dict[str, str]:
    """{stage of dvc.yaml: its script}, from `cmd: python -m stages.<script>`."""
    found = {name: re.search(r"-m stages\.(\w+)", str(stage["cmd"])) for name, stage in pipeline["stages"].items()}
    return {name: f"stages/{match[1]}.py" for name, match in found.items() if match}
