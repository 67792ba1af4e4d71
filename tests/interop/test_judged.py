"""What others trained, through the whole pipeline: evaluate as a naive pass says, analyze, inspect, interpret, steer, fine-tune."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.analysis.steering import steer
from pipeline.corpus.tokens import open_tokens
from pipeline.dictionaries.store import load_dictionary
from pipeline.interop.importing import import_from, next_steps, start_parameters
from pipeline.lm.loading import load_language_model
from tests.interop import cases
from tests.interpretation.conftest import running
from tests.messages import says
from tests.project import D_MODEL, N_LAYERS, Project

RESID, READ, WRITTEN = (
    [f"blocks.{i}.{name}" for i in range(N_LAYERS)] for name in ("hook_resid_post", "ln2.hook_out", "hook_mlp_out")
)
CLT_HOOKS = {"in": READ, "out": WRITTEN}
# name: (maker, hook points read and written)
MADE: dict[str, tuple[Callable[[Path], cases.Forward], list[str], list[str]]] = {
    "glu": (lambda to: cases.openmoss(to, glu=True, gate="topk", hook_point_in=RESID[0], hook_point_out=RESID[0],
                                      norm="inference"), RESID[:1], RESID[:1]),
    "gated": (lambda to: cases.saelens(to, "gated"), RESID[:1], RESID[:1]),
    "skip": (lambda to: cases.saelens(to, "jumprelu_skip_transcoder"), READ[:1], WRITTEN[:1]),
    "clt": (cases.gemma_scope_2_clt, READ, WRITTEN),
}  # fmt: skip


@pytest.fixture(scope="module")
def with_hooks(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished project with norms of all hook points that are read or written."""
    made = finished_project.copy(tmp_path_factory.mktemp("judged") / "project")
    made.set(activations__hook_points=[RESID[0], *READ, *WRITTEN])
    for stage in ("generate_activations", "compute_norm"):
        outcome = made.run(stage)
        assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    return made


@pytest.fixture
def hooked(with_hooks: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of it, in which files are made for its model."""
    monkeypatch.setattr(cases, "D", D_MODEL)
    monkeypatch.setattr(cases, "N", N_LAYERS)
    return with_hooks.copy(tmp_path / "project")


def run(project: Project, stage: str, *arguments: str) -> None:
    outcome = project.run(stage, *arguments)
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception


def naive(project: Project, forward: cases.Forward, reads: list[str], writes: list[str]) -> tuple[float, float]:
    """FVU and L0 on the held-out tokens, by the tool's own pass, in float64."""
    with chdir(project.path):
        model, split = load_language_model("model"), open_tokens("data/tokens.zarr").eval
        ids = split.read()
        found = model.activations(torch.from_numpy(ids).long(), [*reads, *writes])
        kept = torch.from_numpy(split.mask(np.arange(len(ids)), ids))
    x, y = (torch.stack([found[hook][kept].double() for hook in hooks], dim=1) for hooks in (reads, writes))
    f, y_hat = forward(x if len(reads) > 1 else x[:, 0])
    y_hat = y_hat.reshape(y.shape)
    error = sum(float((y[:, j] - y_hat[:, j]).square().sum()) for j in range(len(writes)))
    variance = sum(float((y[:, j] - y[:, j].mean(0)).square().sum()) for j in range(len(writes)))
    return error / variance, float((f != 0).sum()) / len(x)


@pytest.mark.parametrize("name", MADE)
def test_evaluate_gives_what_a_naive_pass_does_and_analyze_takes_it(name: str, hooked: Project) -> None:
    make, reads, writes = MADE[name]
    forward = make(hooked.path / "theirs")
    run(hooked, "import_dictionary", "theirs", "--name", "theirs")
    hooked.set(dictionary__name="theirs")
    run(hooked, "evaluate")
    metrics = json.loads((hooked.path / "metrics" / "evaluation.json").read_text())
    fvu, l0 = naive(hooked, forward, reads, writes)
    assert metrics["fvu"] == pytest.approx(fvu, rel=1e-5)
    assert metrics["l0_mean"] == pytest.approx(l0, rel=1e-6)
    assert 0 < l0 < cases.F * len(reads)
    run(hooked, "analyze")
    about = load_dictionary(hooked.path / "data" / "inference" / "theirs").config.provenance["imported"]
    assert about["format"] in ("openmoss", "saelens", "gemma_scope")


def test_inspect_steer_interpret(hooked: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    cases.openmoss(
        hooked.path / "theirs", glu=True, gate="relu", hook_point_in=RESID[0], hook_point_out=RESID[0], norm="inference"
    )
    run(hooked, "import_dictionary", "theirs", "--name", "theirs")
    hooked.set(dictionary__name="theirs", analysis__tokens=1024)
    run(hooked, "analyze")
    run(hooked, "inspect", "--text", "the cat sat on the mat")
    run(hooked, "inspect", "--text", "the cat sat on the mat", "--steer", "3", "--strength", "5", "--continue", "2")
    with chdir(hooked.path):
        dictionary, model = load_dictionary("data/inference/theirs"), load_language_model("model")
        nothing, something = (steer("the cat sat", dictionary, model, 3, strength, n_tokens=2) for strength in (0.0, 50.0))
    assert "W_G" in dict(dictionary.named_parameters())
    assert nothing.steered_loss == pytest.approx(nothing.loss)
    assert something.steered_loss != pytest.approx(something.loss)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running() as stub:
        run(hooked, "interpret", "--endpoint", stub.url, "--model", "stub", "--n", "1")
        assert stub.requests
    assert (hooked.path / "data" / "interpretations" / "summary.json").exists()


@pytest.mark.parametrize("name", ["glu", "skip", "clt"])
def test_a_run_starts_from_it_by_the_parameters_that_import_prints(name: str, hooked: Project) -> None:
    make, _, _ = MADE[name]
    make(hooked.path / "theirs")
    run(hooked, "import_dictionary", "theirs", "--name", "theirs")
    with chdir(hooked.path):
        found = import_from("theirs")
    place = Path("data/inference/theirs")
    stated = start_parameters(found.dictionary, place)
    line = next_steps(found, place)[1]
    for key, value in stated.items():
        assert f"-S '{key}={value}'" in line
        hooked.set(**{key.replace(".", "__"): yaml.safe_load(value)})
    several: dict[str, Any] = {"dictionary__hook_point_in": None, "dictionary__hook_point_out": None} if name == "clt" else {}
    hooked.set(dictionary__name="tuned", dictionary__apply_b_dec_to_input=False, trainer__total_training_tokens=2048, **several)
    outcome = hooked.run("initialize")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    says(outcome.stderr, "data/inference/theirs", "computes the same")
    for stage in ("train", "fold_norm"):
        run(hooked, stage)
    tuned = load_dictionary(hooked.path / "data" / "inference" / "tuned")
    theirs = load_dictionary(hooked.path / place)
    assert tuned.feature_shape == theirs.feature_shape
    before, after = (dict(each.named_parameters())["W_E"] for each in (theirs, tuned))
    assert not torch.equal(before, after)
