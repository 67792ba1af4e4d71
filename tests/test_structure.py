"""The house: which module may import which, sizes, and what imports without the heavy packages."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.params.dictionary_kinds import KINDS
from tests.closure import (
    BY_NAME,
    DYNAMIC,
    PACKAGES,
    ROOT,
    covers,
    imported_names,
    imports,
    module_file,
    parsed,
    sources,
)

# CONTRIBUTING.md, "Where things live": a module imports from lines below its own, never above. Modules of one line may import each other.
LAYOUT = (
    ("stages",),
    ("pipeline/api.py",),
    ("pipeline/planning",),
    ("pipeline/suites",),
    ("pipeline/interop",),
    ("pipeline/interpretation",),
    ("pipeline/dashboard",),
    ("pipeline/experiments",),
    ("pipeline/analysis", "pipeline/pretraining"),
    ("pipeline/evaluation",),
    ("pipeline/training",),
    ("pipeline/folding.py",),
    ("pipeline/initialization",),
    ("pipeline/dictionaries",),
    ("pipeline/losses", "pipeline/activation_functions"),
    ("pipeline/kernels",),
    ("pipeline/norms/report.py",),
    ("pipeline/norms/charts.py", "pipeline/norms/massive.py"),
    ("pipeline/norms", "pipeline/models_fit.py"),
    ("pipeline/opening.py", "pipeline/streaming.py"),
    ("pipeline/lm",),
    ("pipeline/activations",),
    ("pipeline/corpus",),
    ("pipeline/distributed",),
    ("pipeline/params",),
)
USE_THE_INTERFACE = ("pipeline/training", "pipeline/evaluation", "pipeline/folding.py", "pipeline/plots")
REGISTRIES = {
    "GATES", "KINDS", "SPARSITY_LOSSES", "STORAGE_CODECS", "DICTIONARY_FORMATS", "INTERCHANGE_FORMATS", "FEATURE_FORMATS",
}  # fmt: skip
HEAVY = (
    "click", "datasets", "dvc", "httpx", "matplotlib", "mlflow", "transformer_lens", "transformers", "xxhash", "zarr",
)  # fmt: skip
CORE = (
    "pipeline/activation_functions", "pipeline/dictionaries", "pipeline/evaluation", "pipeline/folding.py",
    "pipeline/initialization", "pipeline/kernels", "pipeline/losses", "pipeline/norms", "pipeline/training",
    "pipeline/api.py",
)  # fmt: skip


def _rank(path: str) -> int:
    """Line of the layout; what is not in it (errors, files, seeding, tracking, ...) is the last."""
    ranks = [rank for rank, line in enumerate(LAYOUT) if any(covers(place, path) for place in line)]
    return ranks[0] if ranks else len(LAYOUT)


def _all_python() -> list[str]:
    return sources(*PACKAGES, "tests", "benchmarks")


def _dotted(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def test_imports_point_down():
    upward = [
        f"{path}:{found.line} imports {found.path}"
        for path in sources()
        for found in imports(path)
        if not found.typing_only and _rank(found.path) < _rank(path)
    ]
    assert upward == []


def test_api_is_imported_by_nothing_and_stages_by_no_module():
    wrong = [
        f"{path}:{found.line} imports {found.path}"
        for path in sources()
        for found in imports(path)
        if found.path == "pipeline/api.py" or found.path.startswith("stages/")
    ]
    assert wrong == []


@pytest.mark.parametrize("place", ["pipeline/lm", "pipeline/activations", "pipeline/norms", "pipeline/corpus"])
def test_what_reads_text_and_models_knows_no_dictionary(place):
    """Not even in a type."""
    above = ("pipeline/dictionaries", "pipeline/losses", "pipeline/training", "pipeline/evaluation", "pipeline/folding.py")
    wrong = [
        f"{path}:{found.line} imports {found.path}"
        for path in sources()
        if covers(place, path)
        for found in imports(path)
        if any(covers(part, found.path) for part in above)
    ]
    assert wrong == []


def test_interpretation_is_imported_by_no_module():
    wrong = [
        f"{path}:{found.line} imports {found.path}"
        for path in sources("pipeline")
        if not covers("pipeline/interpretation", path)
        for found in imports(path)
        if covers("pipeline/interpretation", found.path)
    ]
    assert wrong == []


def test_no_kind_is_imported_by_what_uses_the_interface():
    """Training, evaluation and folding find kinds by name: they import no file that is a kind, nor ask isinstance of one."""
    kinds = {module_file(KINDS.get(kind).implementation.partition(":")[0]) for kind in KINDS}
    assert "pipeline/dictionaries/sae.py" in kinds
    wrong = [
        f"{path}:{found.line} imports {found.path}"
        for path in sources()
        if not covers("pipeline/dictionaries", path)
        for found in imports(path)
        if found.path in kinds
    ]
    assert wrong == []


def test_no_kind_is_told_by_its_name_by_what_uses_the_interface():
    """Nor do they compare with a kind's name: what differs between kinds is asked of the interface."""
    kinds = set(KINDS)
    assert {"sae", "clt", "lorsa"} <= kinds
    found = {
        (path, name)
        for path in sources()
        if any(covers(place, path) for place in USE_THE_INTERFACE)
        for name in _compared(path) & kinds
    }
    assert found == set()


def _compared(path: str) -> set[object]:
    """The constants that a module compares something with: `x == "a"`, `x in ("a", "b")`, `case "a"`."""
    places = [node for node in ast.walk(parsed(path)) if isinstance(node, (ast.Compare, ast.MatchValue))]
    return {part.value for place in places for part in ast.walk(place) if isinstance(part, ast.Constant)}


def test_only_known_places_import_by_name():
    """An import that ast cannot see is in DYNAMIC, so that the closures of tests/test_stage_code.py are whole."""
    found = set()
    for path in sources():
        calls = [node.func for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
        names = {func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in calls}
        subscripted = {
            node.func.value.id
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript) and isinstance(node.func.value, ast.Name)
        }
        loads = {
            func.value.id
            for func in calls
            if isinstance(func, ast.Attribute) and func.attr == "load" and isinstance(func.value, ast.Name)
        }
        if (names | subscripted) & {"import_module", "__import__", "Registry"} or loads & REGISTRIES:
            found.add(path)
    assert found == set(DYNAMIC) | BY_NAME


def test_names():
    faults = []
    for path in _all_python():
        text = (ROOT / path).read_text(encoding="utf-8")
        if not text.isascii():
            faults.append(f"{path}: not ASCII")
        if Path(path).name == "utils.py":
            faults.append(f"{path}: say what it is for")
    assert faults == []


def test_packages_are_docstrings():
    faults = []
    for path in (path for path in sources() if path.endswith("__init__.py")):
        body = parsed(path).body
        if ast.get_docstring(parsed(path)) is None or len(body) != 1:
            faults.append(path)
    assert faults == []


def test_every_package_has_its_init():
    folders = {Path(path).parent.as_posix() for path in sources()}
    assert [folder for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()] == []


def _run(code: str) -> str:
    """Run code in a fresh interpreter at the root; its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_numerical_core_needs_only_torch_numpy_and_safetensors():
    modules = [_dotted(path) for path in sources() if any(covers(place, path) for place in CORE) and "__init__" not in path]
    assert "pipeline.dictionaries.base" in modules
    _run(
        f"""
        import importlib, sys

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {HEAVY!r}:
                    raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

        sys.meta_path.insert(0, Absent())
        for name in {modules!r}:
            importlib.import_module(name)

        import torch
        from pipeline.dictionaries.build import build_dictionary
        from pipeline.evaluation.in_memory import evaluate_reconstruction

        dictionary = build_dictionary({{"kind": "sae", "d_in": 4, "d_sae": 8, "act_fn": "topk", "top_k": 2}})
        folded = dictionary.fold({{"input": {{"mean_norm": 2.0, "mean_square": 4.0, "d": 4}}}})
        evaluate_reconstruction(folded, torch.eye(4))
        """
    )


def test_every_stage_answers_help_without_torch():
    modules = [_dotted(path) for path in sources("stages") if "__init__" not in path]
    assert "stages.evaluate" in modules
    output = _run(
        f"""
        import importlib, sys

        for name in {modules!r}:
            module = importlib.import_module(name)
            module.main(["--help"], standalone_mode=False)
            loaded = [heavy for heavy in {("torch", *HEAVY)!r} if heavy != "click" and heavy in sys.modules]
            assert not loaded, f"{{name}} --help imported {{loaded}}"
        """
    )
    assert output.count("Usage:") == len(modules)


def test_a_stage_script_is_short():
    too_long = {path: length for path in sources("stages") if (length := len((ROOT / path).read_text().splitlines())) > 60}
    assert too_long == {}


def test_closure_sees_functions_and_not_types():
    path = "pipeline/tracking/loggers.py"
    inside = next(found for found in imports(path) if found.path == "pipeline/tracking/mlflow_runs.py")
    assert not inside.typing_only
    registry = {found.path: found for found in imports("pipeline/dictionaries/build.py")}
    assert registry["pipeline/dictionaries/base.py"].typing_only
    assert any("typing.TYPE_CHECKING" in names for names, _, _ in imported_names("pipeline/dictionaries/build.py"))
