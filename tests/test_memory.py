"""Memory: how much is there, and what is refused for want of it, by every stage that needs much."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import memory
from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import ParamsError
from pipeline.memory import Need, available_memory, in_bytes, require_memory
from pipeline.params.schema import DemoParams
from pipeline.pretraining.pretrain import check_memory
from tests.messages import saying, says
from tests.project import Project

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], int | None]:
    """What is available by these files of /proc (p/...) and /sys/fs/cgroup (c/...), without limits of the process."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "p")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "c")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)

    def available(files: dict[str, str]) -> int | None:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return available_memory(CPU)

    return available


MEMINFO = {"p/meminfo": "MemTotal:  100 kB\nMemFree:  1 kB\nMemAvailable:   50 kB\nSwapFree:  4 kB\nHugePages_Free:  0\n"}


def test_what_the_machine_has_with_its_swap(machine) -> None:  # type: ignore[no-untyped-def]
    assert machine({}) is None
    assert machine(MEMINFO) == 54 * 1024


def test_a_control_group_around_it_and_cached_files_are_free(machine) -> None:  # type: ignore[no-untyped-def]
    files = {
        "p/self/cgroup": "0::/outer/inner\n",
        "c/outer/inner/memory.max": "max\n",
        "c/outer/memory.max": "20000\n",
        "c/outer/memory.current": "19000\n",
        "c/outer/memory.stat": "anon 7000\nfile 12000\n",
    }
    assert machine({**MEMINFO, **files}) == 13000


def test_a_control_group_of_version_1(machine) -> None:  # type: ignore[no-untyped-def]
    files = {
        "p/self/cgroup": "4:cpu,memory:/box\n1:cpu:/box\n",
        "c/memory/box/memory.limit_in_bytes": "9000\n",
        "c/memory/box/memory.stat": "cache 5\ntotal_rss 1000\n",
        "c/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert machine({**MEMINFO, **files}) == 8000


@pytest.mark.parametrize(("limit", "column"), [(resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)])
def test_a_limit_of_the_process(limit: int, column: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [int(word) for word in Path("/proc/self/statm").read_text().split()]
    most = pages[column] * resource.getpagesize() + 10**9
    monkeypatch.setattr(resource, "getrlimit", lambda which: (most if which == limit else resource.RLIM_INFINITY, most))
    found = available_memory(CPU)
    assert found is not None
    assert abs(found - 10**9) < 2 * 10**8  # the data of statm has the stack in it


def test_of_a_gpu_what_torch_keeps_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert available_memory(torch.device("cuda:0")) == 1300
    with pytest.raises(ParamsError, match=saying("1,301", "device cuda:0", "1,300")):
        require_memory(Need("things", 1301, {"a.b": 1}), device="cuda:0")


def test_the_largest_need_is_named_with_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 1_000_000)
    small, large = Need("small things", 600_000, {"a.b": 3}), Need("large things", 700_000, {"c.d": 2, "c.e": 5.5})
    require_memory(small)
    with pytest.raises(ParamsError, match=saying("c.e: 5.5", "c.d 2", "1,300,000", "700,000", "large things", "1,000,000")):
        require_memory(small, large)
    with pytest.raises(ParamsError, match=saying("a.b: 3", "lower it")):
        require_memory(small._replace(n_bytes=1_000_001))


def test_bytes_in_words() -> None:
    assert in_bytes(999) == "999 bytes"
    assert in_bytes(1_234_567) == "1,234,567 bytes (1.2 MB)"
    assert in_bytes(10**24) == "1,000,000,000,000,000,000,000,000 bytes (1,000,000.0 EB)"


@pytest.mark.parametrize("kind", ["sae", "clt"])
def test_weights_are_known_before_they_are_made(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = {f"hook_points_{end}": [f"blocks.{layer}.{end}" for layer in range(3)] for end in ("in", "out") if kind == "clt"}
    config = {"kind": kind, "d_model": 4, "expansion_factor": 8, **hooks}
    n_bytes = sum(parameter.nbytes for parameter in build_dictionary(config).parameters())
    monkeypatch.setattr(memory, "available_memory", lambda device: n_bytes)
    build_dictionary(config)
    monkeypatch.setattr(memory, "available_memory", lambda device: n_bytes - 1)
    with pytest.raises(ParamsError, match=saying("dictionary.expansion_factor: 8.0", f"{n_bytes:,}")):
        build_dictionary(config)


STAGES = [
    ("generate_activations", 1000, "activations.model_batch_size: 8", None),
    ("initialize", 20_000, "initializer.tokens: 512", 2 * 512 * 16 * 4),
    ("train", 90_000, "activations.batch_size: 128", 2 * 128 * 64 * 4),
    ("train", 100_000, "activations.buffer_size: 1,048,576", None),
    ("fold_norm", 90_000, "activations.batch_size: 128", 3 * 128 * 64 * 4),
    ("evaluate", 100_000, "evaluation.batch_contexts: 8", 2 * 8 * 16 * 300 * 4),
    ("analyze", 100_000, "analysis.window_before: 20", 64 * (10 + 4 * 4 * 3) * (16 + 4 * (2 + 15 + 10))),
]


@pytest.mark.parametrize(("stage", "free", "key", "wanted"), STAGES)
def test_a_stage_refuses_before_it_works(
    stage: str, free: int, key: str, wanted: int | None, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for made in ("store", "checkpoints") if stage == "generate_activations" else ("checkpoints",):
        shutil.rmtree(project.path / "data" / made)
    before = {path: path.stat().st_mtime_ns for path in project.path.rglob("*.safetensors")}
    monkeypatch.setattr(memory, "available_memory", lambda device: free)
    outcome = project.run(stage)
    assert outcome.exit_code == 2, outcome.stderr
    (error,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    says(error, key, f"{free:,}", *([] if wanted is None else [f"{wanted:,}"]))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_initialization_on_a_batch_refuses_what_training_would(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.set(initializer__tokens=128)
    monkeypatch.setattr(memory, "available_memory", lambda device: 20_000)
    outcome = project.run("initialize")
    assert outcome.exit_code == 2
    says(outcome.stderr, "activations.batch_size: 128", "dictionary.expansion_factor 4.0", f"{3 * 128 * 64 * 4:,}")


@pytest.mark.parametrize("key", ["d_model", "d_mlp", "vocab_size", "batch_size"])
def test_pretraining_refuses_a_model_that_cannot_be_held(key: str) -> None:
    check_memory(DemoParams())
    with pytest.raises(ParamsError, match=saying(f"demo.{key}: {2**40:,}")):
        check_memory(DemoParams(**{key: 2**40, "total_tokens": 2**62}))
