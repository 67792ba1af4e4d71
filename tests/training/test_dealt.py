"""Rows and features dealt to a mesh of processes: every kind with every gate trains as in one process.

Threads that wait for one another stand for processes. SCOPELINE_MESHES=all takes every case on every mesh for 50
steps, in a few minutes.
"""

from __future__ import annotations

import itertools
import math
import os
import zlib
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.sharding import deal_, feature_dim
from pipeline.params.schema import TrainerParams
from pipeline.training import revival
from pipeline.training.dealt import dealt
from pipeline.training.source import TrainingBatch
from pipeline.training.step import Trainer
from tests.dictionaries.make import read_by
from tests.dictionaries.test_contract import CASES as KINDS
from tests.training.cases import dictionary, params, rows
from tests.training.test_every_kind import Source, make
from tests.training.threads import ALONE, Place, Threads, in_mesh

ALL = os.environ.get("SCOPELINE_MESHES") == "all"
STEPS = 50 if ALL else 20
MESHES = ((2, 1), (1, 2), (2, 2), (4, 1), (1, 4))
AUXK = {"auxk_coefficient": 0.1, "k_aux": 3, "clip_grad_norm": 0.5}
REVIVAL = {"revive_dead_features": True}
SPARSE = {"top_k": 1}  # so sparse that a step works on the chosen entries; others are dense
PREFIXES = {"matryoshka_widths": [3, 8, 20]}  # of 20 features, so that a prefix ends inside a part and another holds no part
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "topk": {"auxk": AUXK, "revival": REVIVAL | {"initial_k": 6} | SPARSE},
    "relu": {
        "tanh-quad": {"sparsity_loss_type": "tanh-quad", "l1_coefficient": 1e-3},
        "power, revival": REVIVAL | {"sparsity_loss_type": "power", "p": 2.0, "l1_coefficient": 1e-3},
        "tanh, target_l0": {
            "sparsity_loss_type": "tanh",
            "l1_coefficient": 1e-3,
            "target_l0": 3.0,
            "target_l0_mode": "coefficient",
        },
    },
    "jumprelu": {
        "target_l0, revival": REVIVAL | {"target_l0": 3.0, "lp_coefficient": 1e-3},
        "target_l0 after topk": {"target_l0": 1.0, "topk_start_steps": 4},
        "l0, quadratic": {
            "sparsity_loss_type": "l0",
            "l1_coefficient": 1e-2,
            "l0_bandwidth": 0.5,
            "target_l0": 3.0,
            "target_l0_mode": "quadratic",
        },
    },
}
MATRYOSHKA = {"relu": OPTIONS["relu"]["tanh-quad"], "jumprelu": OPTIONS["jumprelu"]["target_l0, revival"]}


class Case(NamedTuple):
    kind: str
    act_fn: str
    options: dict[str, Any]

    def made(self) -> Dictionary:
        """In float64; `top_k` of the options is the dictionary's."""
        made = make(self.kind, self.act_fn).double()
        return made.rebuilt(made.state_dict(), top_k=self.options["top_k"]) if "top_k" in self.options else made

    def params(self, **more: Any) -> TrainerParams:
        """Of the trainer."""
        own = {name: value for name, value in self.options.items() if name != "top_k"}
        return params(**{"revive_dead_features": False, "dead_threshold": 40, **own, **more})


CASES = {
    f"{kind} {act_fn}: {name}": Case(kind, act_fn, options)
    for kind, act_fn in KINDS
    for name, options in (
        *OPTIONS.get(act_fn, OPTIONS["topk"]).items(),
        *([("matryoshka", PREFIXES | MATRYOSHKA.get(act_fn, AUXK | SPARSE))] if kind in ("sae", "transcoder") else []),
    )
}


class Trained(NamedTuple):
    """What a process has at the end, of all features; its figures; and what it has seen on the way."""

    state: dict[str, Tensor]
    figures: list[dict[str, float]]
    revivals: int


def trained(case: Case, place: Place, steps: int = STEPS) -> Trained:
    made = case.made()
    with torch.no_grad():
        made.encoder_bias().view(-1)[[0, 1, 9, 17]] -= 9.0  # dead from the start, in several parts
    norms, source = dict.fromkeys((*made.hooks_in, *made.hooks_out), 2.0), Source(made)
    deal_(made, place.features)
    trainer = Trainer(made, case.params(), total_steps=steps, norms=norms, reductions=place.rows)
    figures, revivals = [], 0
    for batch in itertools.islice(source.batches(0), steps):
        whole = batch.to(torch.device("cpu"), torch.float64)
        before = made.encoder_bias().detach().clone()
        observation = trainer.step(dealt(whole, place.rows.rank, place.rows.size), observe=True)
        assert observation is not None
        figures.append(observation.figures())
        silent = trainer.dead.tokens_since >= trainer._silence
        revivals += int((silent & ((made.encoder_bias() - before).abs() > 0.5)).sum())
    return Trained(trainer.state(), figures, revivals)


def meshes_of(name: str) -> tuple[tuple[int, int], ...]:
    """One of the meshes for each case, or all."""
    return MESHES if ALL else (MESHES[zlib.crc32(name.encode()) % len(MESHES)],)


@pytest.mark.parametrize("name", CASES)
def test_every_kind_and_gate_as_in_one_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revival, "EXPECTED", 1)  # so that features are silent for long enough in so short a run
    case = CASES[name]
    wanted = trained(case, ALONE)
    for data, model in meshes_of(name):
        for found in in_mesh(data, model, lambda place: trained(case, place)):
            assert found.state.keys() == wanted.state.keys()
            for key, tensor in wanted.state.items():
                said = f"{data} x {model}: {key}"
                torch.testing.assert_close(
                    found.state[key], tensor, rtol=1e-10, atol=1e-12, msg=lambda m, said=said: f"{said}: {m}"
                )
            for ours, theirs in zip(found.figures, wanted.figures, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_cases_train_dead_features_and_revive_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the comparison above would compare nothing."""
    monkeypatch.setattr(revival, "EXPECTED", 1)
    for kind, act_fn in KINDS:
        if act_fn == "topk":
            made = Case(kind, act_fn, SPARSE).made()
            assert made.step_codes(read_by(made, 16)).entries is not None
        if act_fn in ("topk", "batchlayertopk"):
            assert max(each["auxk"] for each in trained(Case(kind, act_fn, AUXK), ALONE).figures) > 0
        if act_fn == "topk" or (kind, act_fn) == ("sae", "jumprelu"):
            assert trained(Case(kind, act_fn, REVIVAL | OPTIONS[act_fn].get("target_l0, revival", {})), ALONE).revivals > 0


MASKED = {"topk": OPTIONS["topk"]["auxk"], "batchtopk": REVIVAL, "jumprelu": OPTIONS["jumprelu"]["target_l0, revival"]}


@pytest.mark.parametrize("act_fn", MASKED)
def test_masked_tokens_and_micro_batches(act_fn: str) -> None:
    """Steps in two parts, tokens left out, an input that the decoder's bias is subtracted from, a gated encoder."""
    options = {"revive_dead_features": False, "dead_threshold": 20, **MASKED[act_fn]}
    x = rows(12 * 24).double().split(24)
    masks = [torch.arange(24) % 5 != i % 5 for i in range(12)]

    def work(place: Place, parts: int) -> dict[str, Tensor]:
        made = dictionary(act_fn=act_fn, apply_b_dec_to_input=True, use_glu_encoder=True).double()
        deal_(made, place.features)
        settings = params(**options, gradient_accumulation_steps=parts)
        trainer = Trainer(made, settings, total_steps=12, norms={"input": 2.0}, reductions=place.rows)
        for i, (batch, mask) in enumerate(zip(x, masks, strict=True)):
            trainer.step(dealt(TrainingBatch(i, batch, batch, mask), place.rows.rank, place.rows.size))
        return trainer.state()

    for parts in (1, 2) if act_fn != "batchtopk" else (1,):  # whose budget is that of a part
        wanted = work(ALONE, parts)
        for state in in_mesh(1, 4, lambda place, parts=parts: work(place, parts)):
            for name, tensor in wanted.items():
                torch.testing.assert_close(state[name], tensor, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "case", [Case("sae", "batchtopk", AUXK), Case("clt", "jumprelu", OPTIONS["jumprelu"]["target_l0, revival"])]
)
def test_a_state_is_of_no_mesh(case: Case) -> None:
    """Kept after half of the steps on 2 x 2, it goes on anywhere, with the weights of the unbroken run."""
    half, steps = 10, 20

    def begun(place: Place) -> tuple[Trainer, Any]:
        made = case.made()
        norms, source = dict.fromkeys((*made.hooks_in, *made.hooks_out), 2.0), Source(made)
        deal_(made, place.features)
        return Trainer(made, case.params(), total_steps=steps, norms=norms, reductions=place.rows), source

    def steps_of(place: Place, state: dict[str, Tensor] | None, first: int, last: int) -> dict[str, Tensor]:
        trainer, source = begun(place)
        if state is not None:
            trainer.load(state, first)
        for batch in itertools.islice(source.batches(first), last - first):
            trainer.step(dealt(batch.to(torch.device("cpu"), torch.float64), place.rows.rank, place.rows.size))
        return {name: tensor.clone() for name, tensor in trainer.state().items()}

    wanted = steps_of(ALONE, None, 0, steps)
    kept = in_mesh(2, 2, lambda place: steps_of(place, None, 0, half))[0]
    for data, model in ((1, 1), (1, 2), (4, 1), (2, 2)):
        for found in in_mesh(data, model, lambda place: steps_of(place, kept, half, steps)):
            for name, tensor in wanted.items():
                torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-12)


class Volume(NamedTuple):
    """Bytes that a process gives to be summed or gathered in a step, over those with its features and over those with its rows."""

    rows_sum: int
    rows_gathered: int
    features_sum: int
    features_gathered: int


def volume(made: Dictionary, b: int, data: int, model: int, options: dict[str, Any]) -> Volume:
    """The formulas of docs/scale.md, for b rows a process, in numbers of 8 bytes."""
    config, s = made.config, 8
    n_layers, features = math.prod(made.feature_shape) // config.d_sae, config.d_sae
    if config.gate.joint_layers:
        rows_of_gate, k, part = b, config.top_k * n_layers, features * n_layers // model
    else:
        rows_of_gate, k, part = b * n_layers, config.top_k, features // model
    chosen = rows_of_gate * min(k * data, part) if config.gate.batch_dependent else rows_of_gate * min(k, part)
    written = b * len(made.hooks_out) * config.d_out
    dead = "auxk_coefficient" in options
    gradients = sum(p.numel() // (1 if feature_dim(made, name) is None else model) for name, p in made.named_parameters())
    sums = written * (len(options.get("matryoshka_widths", "1")) + dead)
    sums += b * n_layers * ("sparsity_loss_type" in options)
    gathered = chosen * config.gate.budgeted + b * n_layers * min(options.get("k_aux", 0), features // model) * dead
    of_rows = chosen * model if config.gate.batch_dependent else 0
    return Volume(*(each * s for each in (gradients, of_rows, sums, gathered)))


VOLUMES = [
    Case("sae", "topk", AUXK),
    Case("sae", "topk", PREFIXES),
    Case("sae", "relu", {"sparsity_loss_type": "power", "l1_coefficient": 1e-3}),
    Case("transcoder", "batchtopk", {}),
    Case("clt", "layertopk", {}),
    Case("clt", "batchtopk", {}),
    Case("crosscoder", "batchtopk", {}),
    Case("lorsa", "jumprelu", {"target_l0": 3.0}),
]


@pytest.mark.parametrize("case", VOLUMES, ids=lambda case: f"{case.kind} {case.act_fn}")
def test_a_step_sends_what_the_documentation_says(case: Case) -> None:
    data, model = 2, 2

    def sent(place: Place, n: int) -> Volume:
        made = case.made()
        with torch.no_grad():
            made.encoder_bias().view(-1)[:6] -= 99.0  # dead, more than k_aux
        x = read_by(made, n * data) if not made.reads_sequences else read_by(made, n * data).reshape(-1, 4, made.d_in)
        y = x if made.hooks_in == made.hooks_out else x[..., : made.d_out]
        norms = dict.fromkeys((*made.hooks_in, *made.hooks_out), 2.0)
        deal_(made, place.features)
        trainer = Trainer(made, case.params(dead_threshold=1), total_steps=4, norms=norms, reductions=place.rows)
        trainer.step(dealt(TrainingBatch(0, x, y, None), place.rows.rank, place.rows.size))
        groups = (place.rows, place.features)
        assert all(isinstance(group, Threads) for group in groups)
        return Volume(*(group.sent[name] for group in groups for name in ("sum", "gathered")))  # type: ignore[attr-defined]

    whole = make(case.kind, case.act_fn)
    small, large = (in_mesh(data, model, lambda place, n=n: sent(place, n)) for n in (32, 64))
    for one, other in zip(small, large, strict=True):
        less, more = (volume(whole, n, data, model, case.options) for n in (32, 64))
        # Counts, flags and norms, which no formula has, are the same whatever the number of rows.
        for name in Volume._fields:
            assert getattr(other, name) - getattr(one, name) == getattr(more, name) - getattr(less, name), name
            assert 0 <= getattr(one, name) - getattr(less, name) <= 400, name
