"""Rates: measured, kept and used; the plan, what stages say at their start, and that nothing else is touched."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from dvc.utils.hydra import apply_overrides

from pipeline.errors import ParamsError
from pipeline.params.loader import load_params
from pipeline.planning import timing
from pipeline.planning.beginning import beginning_line
from pipeline.planning.measuring import _Measurement, fastest_run
from pipeline.planning.rates import FILE, Rates, record, recorded
from pipeline.planning.recipe import params_with
from pipeline.planning.report import busy_line
from pipeline.planning.run import Run
from pipeline.planning.stages import BY_NAME, STAGES
from pipeline.words import bytes_in_words, seconds_in_words
from tests.messages import says
from tests.project import REPOSITORY, Project, make_project

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
    (entry,) = json.loads((fresh.path / FILE).read_text())["measured"]
    rates = entry["rates"]
    never = {"evaluate_end", "tracking"}  # where all is imported already
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
    outcome = fresh.set(activations__context_size=16, distributed__model_parallel_size=3).run("plan")
    assert outcome.exit_code == 2
    says(outcome.stderr, "distributed.model_parallel_size:", 3, "64 features")


def test_rates_are_found_again_by_what_they_depend_on(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh.path)

    def run() -> Run:
        return Run.of(load_params())

    first = run()
    assert recorded(first) is None
    record(first, RATES)
    assert recorded(first) == (RATES, True)
    fresh.set(trainer__total_training_tokens=16384, evaluation__tokens=64, seed=3)
    assert recorded(run()) == (RATES, True)  # how much there is of anything changes no rate
    fresh.set(model__dtype="bfloat16")
    assert recorded(run()) is None
    fresh.set(model__dtype="float32")
    for number in range(12):
        fresh.set(dictionary__expansion_factor=9 + number)
        record(run(), RATES)
    kept = recorded(first)
    assert kept is not None
    assert not kept.exact  # the file does not grow without end
    for damaged in ("[1", '{"measured": [["key", {}]]}', '{"measured": [{"key": 1}]}'):
        (fresh.path / FILE).write_text(damaged)
        assert recorded(run()) is None


def test_rates_of_another_dictionary_serve_in_proportion_to_the_weights(
    fresh: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By hand: three times the features, twice the batch. A queued experiment runs elsewhere, with the checkout in DVC_ROOT."""
    monkeypatch.chdir(fresh.path)
    record(Run.of(load_params()), RATES)
    copy = fresh.copy(tmp_path / "queued")
    (copy.path / FILE).unlink()
    copy.set(dictionary__expansion_factor=12, activations__batch_size=256)
    monkeypatch.setenv("DVC_ROOT", str(fresh.path))
    monkeypatch.chdir(copy.path)
    run = Run.of(load_params())
    found = recorded(run)
    assert found is not None
    assert not found.exact
    wider = (2 * 16 * 192 + 192 + 16) / (2 * 16 * 64 + 64 + 16)
    changed = {"initialize": wider, "fold": wider, "neighbours": wider, "step": 2 * wider}
    for field in dataclasses.fields(Rates):
        factor = changed.get(field.name, 1.0)
        assert getattr(found.rates, field.name) == pytest.approx(factor * getattr(RATES, field.name)), field.name
    says(
        beginning_line(run, "train", found),
        "as measured with other parameters on this language model, with nothing else at work",
    )
    assert "another dictionary" not in beginning_line(run, "generate", found)
    says(beginning_line(run, "train", None), "progress lines")


@pytest.mark.parametrize("source", ["store", "live"])
def test_a_training_that_goes_on_takes_the_time_of_the_steps_that_are_left(
    source: str, fresh: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 64 steps of 4,096 tokens in several windows, twice each; of two members 16 and 0 steps are left."""
    fresh.set(activations__source=source, activations__buffer_size=1024, fold__calibration_tokens=0)
    monkeypatch.chdir(fresh.path)
    whole = Run.of(load_params())
    seconds = BY_NAME["train"].seconds
    before = seconds(dataclasses.replace(whole, steps_left=(0, 0)), RATES)
    model = RATES.tokenizers + RATES.models + RATES.part if source == "live" else 0.0
    assert before == RATES.start + RATES.tracking + model
    per_step = RATES.step + (128 * RATES.model if source == "live" else 0.0)
    assert seconds(whole, RATES) - before == pytest.approx(64 * per_step)
    for left, mean in (((32,), 32), ((16, 0), 8), ((64, 64), 64)):
        found = seconds(dataclasses.replace(whole, steps_left=left), RATES)
        assert found - before == pytest.approx(mean * per_step), left
    says(beginning_line(dataclasses.replace(whole, steps_left=(16, 0)), "train", None), "the last 16 of 64 steps", "2,048")


def test_a_plan_with_keys_laid_over_the_file(fresh: Project) -> None:
    before = (fresh.path / "params.yaml").read_text()
    outcome = fresh.run(
        "plan", "--no-measure", "-S", "dictionary.expansion_factor=8", "-S", "trainer.total_training_tokens=4096"
    )
    assert outcome.exit_code == 0, outcome.stderr
    says(outcome.stdout, "32 steps of 128 tokens", "128 features")
    assert (fresh.path / "params.yaml").read_text() == before
    outcome = fresh.run("plan", "--no-measure", "-S", "dictionary.topk=8")
    assert outcome.exit_code == 2
    says(outcome.stderr, "dictionary.topk", "top_k")


LAID_OVER = {
    "sweep={k8:{dictionary.top_k:8}}": ("sweep", {"k8": {"dictionary.top_k": 8}}),  # YAML has no such mapping without blanks
    "sweep={k8: {dictionary.top_k: 8}, k9: {dictionary.top_k: 9}}": (
        "sweep",
        {"k8": {"dictionary.top_k": 8}, "k9": {"dictionary.top_k": 9}},
    ),
    "trainer.betas=[0.1,0.2]": ("trainer.betas", [0.1, 0.2]),
    "trainer.lr=2e-4": ("trainer.lr", 2e-4),
    "params.yaml:trainer.lr=0.01": ("trainer.lr", 0.01),
    "++trainer.lr=0.01": ("trainer.lr", 0.01),
    "dataset.text_field='a text, with signs'": ("dataset.text_field", "a text, with signs"),
    "model.revision=012": ("model.revision", "012"),
    "model.revision=null": ("model.revision", None),
}


@pytest.mark.parametrize("said", LAID_OVER)
def test_keys_are_laid_over_as_dvc_does(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    found = params_with("params.yaml", [said])
    key, wanted = LAID_OVER[said]
    value = functools.reduce(lambda values, part: values[part], key.split("."), found.to_dict())
    assert value == wanted
    apply_overrides("params.yaml", [said.removeprefix("params.yaml:")])  # as `dvc exp run -S` changes the file
    assert load_params() == found


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("trainer.lr=1,2", ("several values", "[1,2]")),
        ("model.model_name=~/x", ("from '~/x' on", "quotes")),
        ("other.yaml:trainer.lr=3", ("of other.yaml", "params.yaml")),
        ("+trainer.lr=2", ("dvc exp run", "already at 'trainer.lr'")),
        ("~trainer.x", ("dvc exp run", "'trainer.x' does not exist")),
        ("trainer.xx=3", ("trainer.xx", "unknown")),
        ("trainer.lr", ("key=value",)),
    ],
)
def test_what_dvc_would_not_take_is_refused_in_a_line(said: str, wanted: tuple[str, ...]) -> None:
    with pytest.raises(ParamsError) as refused:
        params_with(str(REPOSITORY / "params.yaml"), [said])
    (fault,) = refused.value.faults
    says(fault, f"-S {said}", *wanted)
    assert "\n" not in fault


def test_the_plan_names_the_members_of_a_sweep(fresh: Project) -> None:
    lines = fresh.run("plan", "--no-measure", "-S", "sweep={few:{dictionary.top_k:2},many:{dictionary.top_k:6}}").stdout
    for stage in ("train", "fold", "evaluate", "analyze"):
        (line,) = [line for line in lines.splitlines() if line.startswith(f"{stage} ")]
        assert line.endswith(", of 2 members: few, many"), line
    assert "member" not in fresh.run("plan", "--no-measure").stdout


def test_initialize_reads_what_there_is(fresh: Project) -> None:
    """1,024 of 4,096 tokens are kept from training; nothing else is left for a start that wants 65,536."""

    def told(**changes: object) -> str:
        lines = fresh.set(**changes).run("plan", "--no-measure").stdout.splitlines()
        return next(line for line in lines if line.startswith("initialize "))

    says(told(initializer__tokens=65536, fold__calibration_tokens=1024), "on 3,072 tokens")
    says(told(initializer__tokens=512), "on 512 tokens")


TOO_LITTLE: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "to train on": ({"activations__total_tokens": 5_000_000}, ("too little text", "activations.total_tokens is 5,000,000")),
    "held out": ({"evaluation__tokens": 1_000_000}, ("evaluation.tokens asks for 1,000,000",)),
}


@pytest.mark.parametrize(("changes", "wanted"), TOO_LITTLE.values(), ids=[name.replace(" ", "_") for name in TOO_LITTLE])
@pytest.mark.parametrize("stage", ["plan", "tokenize_corpus"])
def test_too_little_text_is_refused_before_anything_is_measured(
    stage: str, changes: dict[str, object], wanted: tuple[str, ...], fresh: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*arguments: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("pipeline.planning.measuring.measure", measured)
    monkeypatch.setattr("pipeline.corpus.for_params.tokenize_for", measured)
    outcome = fresh.set(**changes).run(stage)
    assert outcome.exception is None
    assert outcome.exit_code == 2
    says(outcome.stderr, *wanted)


def test_the_plan_says_what_the_text_has_without_measuring(fresh: Project) -> None:
    outcome = fresh.run("plan", "--no-measure")
    assert outcome.exit_code == 0, outcome.stderr
    says(outcome.stdout, "tokens in 120 documents", "no time was measured", "OMP_NUM_THREADS")


def test_generate_says_that_the_store_is_there(project: Project) -> None:
    said = "generate: the store is there: verifies 4,096 tokens at 1 hook point"
    assert said in project.run("generate_activations").stderr
    project.set(activations__storage_dtype="float32")
    outcome = project.run("generate_activations")
    assert outcome.exit_code == 0
    assert "the store is there" not in outcome.stderr


def test_a_store_that_is_there_takes_no_time_to_generate(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.path)
    run = Run.of(load_params(), "data/tokens.zarr")
    zero = Rates(**{field.name: 0.0 for field in dataclasses.fields(Rates)})
    only = dataclasses.replace(zero, model=1.0, write=1.0, load=1.0, part=1.0)
    generate = BY_NAME["generate"]
    assert generate.seconds(run, only) == 0.0
    assert generate.seconds(dataclasses.replace(run, tokens=None), only) > 4096


def test_time_is_linear_in_what_there_is_much_of(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: only one rate is not 0, so that a stage takes its number of units."""
    monkeypatch.chdir(fresh.path)
    run = Run.of(load_params())
    zero = Rates(**{field.name: 0.0 for field in dataclasses.fields(Rates)})
    contexts, held_out = 256, 64
    units = {
        "tokenize": ("tokenize", 2 * 16 * (contexts + held_out)),  # counted first: the text is small
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
    for clock in ("perf_counter", "process_time", "thread_time"):
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

    assert timing.slope(disturbed, most=100, seconds=4.0) == (0.25, 0.0)  # 2 units in 0.5 s


def test_the_fastest_of_short_repetitions_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, took = SimpleNamespace(seconds=0.0), iter((0.4, 0.1, 0.3, 5.0))
    for clock in ("perf_counter", "process_time", "thread_time"):
        monkeypatch.setattr(timing.time, clock, lambda: now.seconds)

    def work() -> str:
        now.seconds += next(took)
        return "made"

    assert timing.fastest(work) == (pytest.approx(0.1), "made")
    assert timing.fastest(work) == (pytest.approx(5.0), "made")  # long work is done once
    assert fastest_run([]) == 0.0
    assert fastest_run([3.0]) == 3.0
    assert fastest_run([5.0, 1.0, 1.0, 1.0, 1.0, 7.0]) == 1.0  # three runs of two
    assert fastest_run([0.1, 5.9, 4.0, 4.0, 9.0, 9.0, 1.0]) == 3.0  # a run, not a step, since steps differ


@pytest.mark.parametrize(("others", "wanted"), [(0.05, 0.4), (0.6, 0.2), (None, 0.4)])
def test_the_clock_of_a_step_counts_where_others_take_little(
    others: float | None, wanted: float, fresh: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 0.2 s of the processor, and by the clock 0.4 s."""
    now = SimpleNamespace(wall=0.0, own=0.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now.wall)
    monkeypatch.setattr(timing.time, "process_time", lambda: now.own)
    monkeypatch.setattr(timing.time, "thread_time", lambda: now.own)
    monkeypatch.setattr(timing.OtherWork, "share", lambda self: others)
    monkeypatch.setattr("pipeline.training.source.on_device", lambda *given: (each for each in range(100)))

    class Training:
        trainer = SimpleNamespace(dtype=None)

        def step(self, batch: object) -> None:
            now.wall, now.own = now.wall + 0.4, now.own + 0.2

    monkeypatch.setattr("pipeline.training.run.TrainingRun", lambda *given, **named: Training())
    member = SimpleNamespace(
        dictionary=None, source=SimpleNamespace(batches=lambda at: iter(())), trainer=None, norms=None, device=None
    )
    measurement = _Measurement(None, SimpleNamespace(total_steps=50), None, fresh.path, {})  # type: ignore[arg-type]
    assert measurement._step(member) == pytest.approx(wanted)  # type: ignore[arg-type]


def test_what_others_take_is_told_by_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processors for ten seconds: 14 s of work, 4 of them this process's own, so that others took a half."""
    busy, own, now = iter((100.0, 114.0, 114.0)), iter((7.0, 11.0, 11.0)), SimpleNamespace(seconds=50.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now.seconds)
    monkeypatch.setattr(timing, "n_processors", lambda: 2)
    monkeypatch.setattr(timing, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(timing, "_own_seconds", lambda: next(own))
    work = timing.OtherWork()
    now.seconds = 60.0
    assert work.share() == pytest.approx(0.5)
    monkeypatch.setattr(timing, "_busy_seconds", lambda: None)
    assert work.share() is None


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system does not say")
def test_the_processors_work_is_read() -> None:
    before = timing._busy_seconds()
    if before is None:
        pytest.skip("the system does not say")
    began = time.process_time()
    while time.process_time() - began < 0.3:
        pass
    after = timing._busy_seconds()
    assert after is not None
    assert after - before >= 0.2


@pytest.mark.parametrize("stated", [None, "active"])
@pytest.mark.parametrize("stage", ["plan", "tokenize_corpus"])
def test_threads_sleep_while_they_wait(stage: str, stated: str | None) -> None:
    """Where it is measured, before torch is imported, which reads it then; what the user says stays."""
    code = f"""
import sys
import stages.{stage}, pipeline.command
def told(): raise SystemExit(str("torch" in sys.modules))
stages.{stage}.threads_sleep_while_waiting = told
sys.argv = ["stage"]
stages.{stage}.main()
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert told.stderr.strip() == "False"
    code = "import os\nfrom pipeline.command import threads_sleep_while_waiting as f\nf()\nprint(os.environ['OMP_WAIT_POLICY'])"
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {} if stated is None else {"OMP_WAIT_POLICY": stated}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=True
    )
    assert done.stdout.strip() == (stated or "passive")


def test_a_busy_machine_is_said() -> None:
    assert busy_line(0.04) is None
    says(str(busy_line(0.371)), "other processes took 37% of the processor", "times are those of a quiet machine")


def test_time_is_that_of_the_processors_and_not_of_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"perf_counter": 100.0, "process_time": 3.0, "thread_time": 1.0}
    for clock in clocks:
        monkeypatch.setattr(timing.time, clock, lambda clock=clock: clocks[clock])
    monkeypatch.setattr(timing, "n_processors", lambda: 4)
    watch = timing.Stopwatch()
    clocks |= {"perf_counter": 130.0, "process_time": 13.0, "thread_time": 6.0}
    assert watch.seconds() == 5.0  # the thread that works, whatever the clock says
    clocks["process_time"] = 43.0
    assert watch.seconds() == 10.0  # threads that it waited for: 40 s on 4 processors
    clocks["perf_counter"] = 107.0
    assert watch.seconds() == 7.0  # never more than the clock's
    assert watch.wall() == 7.0


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
