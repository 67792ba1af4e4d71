"""The house: which module may import which, sizes, what imports without the heavy packages, and dvc.yaml's deps."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.closure import (
    BY_NAME,
    DYNAMIC,
    PACKAGES,
    ROOT,
    candidates,
    closure,
    covers,
    declared,
    imported_names,
    imports,
    load_yaml,
    parsed,
    permitted,
    sources,
    stage_modules,
    suggested,
    value_of,
    write,
)

# CONTRIBUTING.md, "Where things live": a module imports from lines below its own, never above. Modules of one line may import each other.
LAYOUT = (
    ("stages",),
    ("pipeline/api.py",),
    ("pipeline/interpretation",),
    ("pipeline/dashboard",),
    ("pipeline/analysis", "pipeline/pretraining"),
    ("pipeline/evaluation",),
    ("pipeline/training",),
    ("pipeline/folding.py",),
    ("pipeline/initialization",),
    ("pipeline/dictionaries",),
    ("pipeline/losses", "pipeline/activation_functions"),
    ("pipeline/kernels",),
    ("pipeline/norms_report.py",),
    ("pipeline/norms_charts.py",),
    ("pipeline/norms_massive.py",),
    ("pipeline/norms.py", "pipeline/norms_statistics.py", "pipeline/models_fit.py"),
    ("pipeline/lm",),
    ("pipeline/activations",),
    ("pipeline/corpus",),
    ("pipeline/interop",),
    ("pipeline/params",),
)
USE_THE_INTERFACE = ("pipeline/training", "pipeline/evaluation", "pipeline/folding.py", "pipeline/plots")
MAX_LINES, MAX_FUNCTION_LINES = 400, 60
HEAVY = (
    "click", "datasets", "dvc", "httpx", "matplotlib", "mlflow", "transformer_lens", "transformers", "xxhash", "zarr",
)  # fmt: skip
CORE = (
    "pipeline/activation_functions", "pipeline/dictionaries", "pipeline/evaluation", "pipeline/folding.py",
    "pipeline/initialization", "pipeline/kernels", "pipeline/losses", "pipeline/norms.py", "pipeline/training",
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


@pytest.mark.parametrize("place", ["pipeline/lm", "pipeline/activations", "pipeline/norms.py", "pipeline/corpus"])
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
    kinds = {path for path in candidates(DYNAMIC["pipeline/dictionaries/registry.py"]) if _registers(path)}
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
    kinds = {Path(path).stem for path in candidates(DYNAMIC["pipeline/dictionaries/registry.py"]) if _registers(path)}
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


def _registers(path: str) -> bool:
    names = {node.id for node in ast.walk(parsed(path)) if isinstance(node, ast.Name)}
    return "register" in names and not path.endswith("registry.py")


def test_only_known_places_import_by_name():
    """An import that ast cannot see is in DYNAMIC, so that the closures below are whole."""
    found = set()
    for path in sources():
        calls = [node.func for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
        names = {func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in calls}
        subscripted = {
            node.func.value.id
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript) and isinstance(node.func.value, ast.Name)
        }
        if (names | subscripted) & {"import_module", "__import__", "Registry"}:
            found.add(path)
    assert found == set(DYNAMIC) | BY_NAME


def test_sizes_and_names():
    faults = []
    for path in _all_python():
        text = (ROOT / path).read_text(encoding="utf-8")
        if not text.isascii():
            faults.append(f"{path}: not ASCII")
        if len(text.splitlines()) > MAX_LINES:
            faults.append(f"{path}: {len(text.splitlines())} lines")
        if Path(path).name == "utils.py":
            faults.append(f"{path}: say what it is for")
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    faults.append(f"{path}:{node.lineno}: {node.name} has {length} lines")
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
        from pipeline.dictionaries.registry import build_dictionary
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


PIPELINE, PARAMS = load_yaml("dvc.yaml"), load_yaml("params.yaml")
MODULES = stage_modules(PIPELINE)


def _value_sets() -> list[dict]:
    """params.yaml, and params.yaml with every combination of the values that bring in other files."""
    keys = sorted({dynamic.key for dynamic in DYNAMIC.values()})
    named = {
        key: sorted({Path(path).stem for d in DYNAMIC.values() if d.key == key for path in candidates(d) if _registers(path)})
        for key in keys
    }
    combinations = [PARAMS]
    for values in itertools.product(*named.values()):
        changed = {section: dict(content) if isinstance(content, dict) else content for section, content in PARAMS.items()}
        for key, value in zip(named, values, strict=True):
            section, field = key.split(".")
            changed[section][field] = value
        combinations.append(changed)
    return combinations


@pytest.mark.parametrize("stage", sorted(MODULES))
def test_deps_hold_the_import_closure(stage):
    """Else DVC skips the stage in silence after an edit."""
    for params in _value_sets():
        deps = declared(PIPELINE["stages"][stage]["deps"], params)
        needed = closure(MODULES[stage], params)
        lacking = sorted(path for path in needed if not any(covers(dep, path) for dep in deps))
        shown = {dynamic.key: value_of(params, dynamic.key) for dynamic in DYNAMIC.values()}
        assert lacking == [], f"{stage} with {shown}: not in deps; run: python -m tests.closure --write"


@pytest.mark.parametrize("stage", sorted(MODULES))
def test_deps_hold_nothing_else(stage):
    """Else an unrelated edit runs the stage again."""
    allowed = permitted(MODULES[stage])
    deps = declared(PIPELINE["stages"][stage]["deps"], PARAMS)
    extra = []
    for dep in deps:
        files = [dep] if dep.endswith(".py") else [path for path in sources(dep) if not path.endswith("__init__.py")]
        extra += [path for path in files if path not in allowed] or ([] if files else [f"{dep} (no such file)"])
    assert extra == []
    assert not {"pipeline", "stages"} & set(deps)


def test_every_stage_script_is_in_the_pipeline_or_runs_beside_it():
    beside = {"preset", "report", "inspect", "interpret", "export", "import_dictionary"}
    scripts = {Path(path).stem for path in sources("stages")} - {"__init__"} - beside
    assert scripts == set(MODULES.values())


def test_written_deps_satisfy_both():
    text = "stages:\n  train:\n    cmd: python -m stages.evaluate\n    deps:\n      - data/x\n      - pipeline/gone.py\n    outs:\n      - y\n"
    written = write(text, PARAMS, {"train": "evaluate"})
    assert "pipeline/gone.py" not in written
    assert written.startswith(
        "stages:\n  train:\n    cmd: python -m stages.evaluate\n    deps:\n      - data/x\n      - pipeline/"
    )
    assert written.endswith("    outs:\n      - y\n")
    assert "pipeline/dictionaries/${dictionary.kind}.py" in suggested("evaluate", PARAMS)


def test_closure_sees_functions_and_not_types():
    path = "pipeline/dictionaries/base.py"
    inside = next(found for found in imports(path) if found.path == "pipeline/dictionaries/store.py")
    assert not inside.typing_only
    registry = {found.path: found for found in imports("pipeline/dictionaries/registry.py")}
    assert registry["pipeline/dictionaries/base.py"].typing_only
    assert any("typing.TYPE_CHECKING" in names for names, _, _ in imported_names("pipeline/dictionaries/registry.py"))
