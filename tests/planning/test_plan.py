"""Rates: measured, kept and used; the plan, what stages say at their start, and that nothing else is touched."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.params.loader import load_params
from pipeline.planning import timing
from pipeline.planning.rates import FILE, Rates, record, recorded
from pipeline.planning.run import Run
from pipeline.planning.stages import STAGES
from pipeline.planning.words import bytes_in_words, seconds_in_words
from tests.messages import says
from tests.project import Project, make_project

RATES = Rates(*range(1, len(dataclasses.fields(Rates)) + 1))


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


def files(project: Project) -> dict[str, str]:
    """{file: digest} of all but the rates."""
    found = sorted(path for path in project.path.rglob("*") if path.is_file() and path != project.path / FILE)
    return {str(path.relative_to(project.path)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


KINDS: dict[str, dict[str, object]] = {
    "store": {},
    "live": {"activations__source": "live"},
    "kept norms": {"dictionary__norm_activation": "token-wise", "fold__mode": "keep", "fold__feature_units": "normalized"},
    "sweep": {"sweep": {"few": {"dictionary.top_k": 2}, "many": {"dictionary.act_fn": "batchtopk", "dictionary.top_k": 6}}},
    "crosscoder": {
        "dictionary__kind": "crosscoder",
        "dictionary__hook_point_in": None,
        "dictionary__hook_points_in": ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"],
        "dictionary__apply_b_dec_to_input": False,
    },
    "lorsa": {
        "activations__target": "activations-2d",
        "activations__batch_size": 8,
        "dictionary__kind": "lorsa",
        "dictionary__hook_point_in": "blocks.0.ln1.hook_out",
        "dictionary__hook_point_out": "blocks.0.hook_attn_out",
        "dictionary__n_qk_heads": 4,
        "dictionary__d_qk_head": 8,
        "dictionary__n_ctx": 16,
        "dictionary__positional_embedding_type": "none",
        "dictionary__apply_b_dec_to_input": False,
        "initializer__initialize_W_D_with_activations": False,
    },
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=[name.replace(" ", "_") for name in KINDS])
def test_the_plan_measures_and_touches_nothing(changes: dict[str, object], fresh: Project) -> None:
    fresh.set(**changes)
    before = files(fresh)
    outcome = fresh.run("plan")
    assert outcome.exception is None
    assert outcome.exit_code == 0, outcome.stderr
    assert files(fresh) == before
    ((_, rates),) = json.loads((fresh.path / FILE).read_text())["measured"]
    never = {"evaluate_end", "tracking", "tracking_memory", "models_memory"}  # where all is imported already
    assert [name for name, value in rates.items() if not value > 0 and name not in never] == []
    generated = fresh.run("tokenize_corpus")
    assert generated.exit_code == 0
    (line,) = [line for line in generated.stderr.splitlines() if line.startswith("tokenize: train ")]
    says(line, "64 steps of 128 tokens", "8,192")
    assert re.search(r"\d+ (s|min)  ", line)  # from what was measured


def test_a_plan_of_what_a_stage_would_refuse(fresh: Project) -> None:
    fresh.set(activations__context_size=32)
    outcome = fresh.run("plan")
    assert outcome.exit_code == 2
    says(outcome.stderr, "activations.context_size:", 32, 16)


def test_rates_are_found_again_by_what_they_depend_on(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh.path)
    params = load_params()
    assert recorded(params) is None
    record(params, RATES)
    assert recorded(params) == RATES
    fresh.set(trainer__total_training_tokens=16384, evaluation__tokens=64, seed=3)
    assert recorded(load_params()) == RATES  # how much there is of anything changes no rate
    fresh.set(dictionary__expansion_factor=8)
    assert recorded(load_params()) is None
    for number in range(12):
        fresh.set(dictionary__expansion_factor=9 + number)
        record(load_params(), RATES)
    assert recorded(params) is None  # the file does not grow without end
    (fresh.path / FILE).write_text("[1")
    assert recorded(load_params()) is None


def test_time_is_linear_in_what_there_is_much_of(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: only one rate is not 0, so that a stage takes its number of units."""
    monkeypatch.chdir(fresh.path)
    run = Run.of(load_params())
    zero = Rates(**{field.name: 0.0 for field in dataclasses.fields(Rates)})
    contexts, held_out = 256, 64
    units = {
        "tokenize": ("tokenize", 16 * (contexts + held_out)),
        "model": ("generate", 16 * contexts),
        "write": ("generate", 4096),
        "norm": ("norm", 4096),
        "step": ("train", 64),
        "evaluate": ("evaluate", 16 * held_out),
        "analyze": ("analyze", 2048),
        "feature": ("analyze", 64),
    }
    for rate, (stage, n) in units.items():
        only = dataclasses.replace(zero, **{rate: 1.0})
        assert {each.name: each.seconds(run, only) for each in STAGES if each.seconds(run, only)} == {stage: n}, rate


def test_slope_of_work_of_which_a_part_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(seconds=0.0)
    for clock in ("perf_counter", "process_time"):
        monkeypatch.setattr(timing.time, clock, lambda: now.seconds)

    def work(n: int) -> None:
        now.seconds += 0.1 + 0.02 * n

    each, beside = timing.slope(work, most=100)
    assert (each, beside) == (pytest.approx(0.02), pytest.approx(0.1))

    def slow(n: int) -> None:
        now.seconds += 5.0 * n

    assert timing.slope(slow, most=100) == (5.0, 0.0)

    def disturbed(n: int) -> None:
        now.seconds += 1.0 if n == 1 else 0.5

    assert timing.slope(disturbed, most=100, seconds=4.0) == (0.125, 0.0)  # 4 units in 0.5 s


def test_a_process_that_was_stopped_did_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"perf_counter": 100.0, "process_time": 3.0}
    for clock in clocks:
        monkeypatch.setattr(timing.time, clock, lambda clock=clock: clocks[clock])
    watch = timing.Stopwatch()
    clocks |= {"perf_counter": 104.0, "process_time": 4.0}
    assert watch.seconds() == 4.0
    clocks["perf_counter"] = 700.0
    assert watch.seconds() == 10.0


def test_a_stage_says_what_it_will_do(project: Project) -> None:
    outcome = project.run("evaluate")
    assert outcome.exit_code == 0
    says(outcome.stderr.splitlines()[0], "evaluate:", "held-out tokens in 6 runs", "memory")


def test_a_stage_that_needs_no_model_runs_without_it(project: Project) -> None:
    (project.path / "model").rename(project.path / "moved")
    project.set(dataset__dataset_name_or_path="text.jsonl")
    outcome = project.run("fold_norm")
    assert outcome.exit_code == 0, outcome.stderr


def test_words() -> None:
    assert [bytes_in_words(n) for n in (12, 1234, 52_000_000, 1.26e9, 123e9)] == [
        "12 bytes",
        "1.2 kB",
        "52 MB",
        "1.3 GB",
        "123 GB",
    ]
    times = (0.2, 7, 44, 130, 5999, 12_345, 100_000)
    assert [seconds_in_words(s) for s in times] == ["1 s", "7 s", "45 s", "2 min", "1 h 40 min", "3 h 20 min", "28 h"]
