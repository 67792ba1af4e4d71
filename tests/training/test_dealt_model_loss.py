"""The loss through the language model in several processes: weights, gradients and figures of one, what is sent, resume.

Threads that wait for one another stand for processes, each with a language model of its own, in float64.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.build import build_dictionary
from pipeline.dictionaries.sharding import deal_
from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_language_model
from pipeline.norms.exclusion import NormLimits
from pipeline.params.schema import TrainerParams
from pipeline.streaming import ActivationStream
from pipeline.training.dealt import dealt, own_rows
from pipeline.training.model_loss import ContextSource, with_model_loss
from pipeline.training.source import StoreSource, TrainingBatch
from pipeline.training.step import Trainer
from tests.evaluation.tiny import write_tiny_model
from tests.project import CONTEXT, make_model
from tests.training.test_model_loss import CASES, D_MODEL, HOOK, B, N, batch_of, dictionary, norms_of, streamed
from tests.training.threads import ALONE, Place, Threads, in_mesh

MESHES = ((2, 1), (1, 2), (2, 2), (4, 1), (1, 4))
STEPS = 6
AUXK: dict[str, Any] = {"auxk_coefficient": 0.1, "k_aux": 3, "dead_threshold": 20}
EPS = 1e-6  # Adam's: the gradient of a part of Lorsa's b_K is nothing but rounding, which it would make into steps of 1e-11


def in_float64(path: Path) -> LanguageModel:
    loaded: Any = load_language_model(path, device="cpu")
    loaded._model.double()
    loaded.dtype = torch.float64
    return loaded


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return in_float64(write_tiny_model(tmp_path_factory.mktemp("tiny") / "model"))


def part_of(batch: TrainingBatch, place: Place, model: LanguageModel) -> TrainingBatch:
    """The rows of a process, as a source that deals them gives them."""
    own, contexts, mask = own_rows(N, place.rows.rank, place.rows.size), batch.contexts, batch.mask
    assert contexts is not None
    assert mask is not None
    tensors = {name: getattr(contexts, name)[own].clone() for name in ("tokens", "kept", "residual", "original")}
    inputs = batch.inputs[own].clone()
    labels = inputs if batch.labels is batch.inputs else batch.labels[own].clone()
    mine = dataclasses.replace(contexts, model=model, **tensors)
    return TrainingBatch(batch.index, inputs, labels, mask[own].clone(), mine)


def figures_and_state(
    model: LanguageModel, case: tuple[str, str, str, str], place: Place
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    kind, act_fn, norm, loss = case
    made = dictionary(kind, act_fn, norm)
    own_model = model if place is ALONE else copy.deepcopy(model)
    batch = batch_of(own_model, made, loss, at_once=2)
    assert batch.mask is not None
    batch.mask[0] = False  # of four processes one keeps no token, and its predictions count
    params = TrainerParams(
        lr=1e-2, lr_warm_up_steps=0, lr_cool_down_steps=0, n_checkpoints=0, clip_grad_norm=0.5, eps=EPS, model_loss=loss, **AUXK
    )
    norms = norms_of(made)
    deal_(made, place.features)
    trainer = Trainer(made, params, total_steps=STEPS, norms=norms, reductions=place.rows)
    figures = []
    for index in range(STEPS):
        mine = dataclasses.replace(part_of(batch, place, own_model), index=index)
        assert dealt(mine, place.rows.rank, place.rows.size) is mine
        observation = trainer.step(mine, observe=True)
        assert observation is not None
        figures.append(observation.figures())
    return figures, trainer.state()


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_every_kind_as_in_one_process(model: LanguageModel, case: tuple[str, str, str, str]) -> None:
    """Contexts that do not divide evenly, tokens left out, a part without a kept token."""
    figures, wanted = figures_and_state(model, case, ALONE)
    assert all(each["model_loss"] > 0 for each in figures)
    for data, features in MESHES:
        for found, state in in_mesh(data, features, lambda place: figures_and_state(model, case, place)):
            for name, tensor in wanted.items():
                said = f"{data} x {features}: {name}"
                torch.testing.assert_close(state[name], tensor, rtol=1e-10, atol=1e-12, msg=lambda m, said=said: f"{said}: {m}")
            for ours, theirs in zip(found, figures, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(("data", "features"), [(2, 1), (2, 2), (1, 2)])
def test_what_the_loss_sends(model: LanguageModel, data: int, features: int) -> None:
    """Over the features the gradients that a process has made, over the rows three numbers: docs/scale.md."""

    def sent(place: Place, loss: str | None) -> list[int]:
        made = dictionary("sae", "topk", "dataset-wise")
        own_model = copy.deepcopy(model)
        batch = part_of(batch_of(own_model, made, "kl"), place, own_model)
        batch = batch if loss else dataclasses.replace(batch, contexts=None)
        params = TrainerParams(lr=1e-2, lr_warm_up_steps=0, lr_cool_down_steps=0, n_checkpoints=0, model_loss=loss)
        norms = norms_of(made)
        deal_(made, place.features)
        trainer = Trainer(made, params, total_steps=1, norms=norms, reductions=place.rows)
        trainer.step(batch)
        return [
            group.sent[name] if isinstance(group, Threads) else 0
            for group in (place.rows, place.features)
            for name in ("sum", "gathered")
        ]

    with_loss, without = (in_mesh(data, features, lambda place, loss=loss: sent(place, loss)) for loss in ("kl", None))
    row = batch_of(model, dictionary("sae", "topk", "dataset-wise"), "kl").labels[0].nbytes
    for rank, (more, less) in enumerate(zip(with_loss, without, strict=True)):
        rows = own_rows(N, rank // features, data)
        own = own_rows(rows.stop - rows.start, rank % features, features)
        over_rows, gathered, over_features, gradients = (m - n for m, n in zip(more, less, strict=True))
        # The loss, the counted predictions and l_rec; the loss and its part of the step's loss among the terms.
        assert over_rows == (data > 1) * (3 * 8 + 2 * 8)
        assert gathered == 0
        assert over_features == (features > 1) * 8
        assert gradients == (features > 1) * (own.stop - own.start) * row


@pytest.fixture(scope="module")
def project_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    path = tmp_path_factory.mktemp("streaming") / "model"
    make_model(path)
    return in_float64(path)


def own_stream(model: LanguageModel) -> ActivationStream:
    """With a model that no other thread runs."""
    return streamed(copy.deepcopy(model))


def source_of(stream: ActivationStream, params: TrainerParams, total: int, place: Place) -> ContextSource:
    live = stream.activations
    source = StoreSource(live, (HOOK,), (HOOK,), B, (0, live.n_rows), NormLimits(), 4000, seed=3)
    made = with_model_loss(source, params, total, place.rows)
    assert isinstance(made, ContextSource)
    return made


TOTAL = 12
LAST = TrainerParams(
    lr=1e-2,
    lr_warm_up_steps=2,
    lr_cool_down_steps=3,
    n_checkpoints=0,
    model_loss="kl",
    model_loss_steps=8,
    model_loss_batches=1,
    revive_dead_features=True,
)


@pytest.mark.parametrize("size", [2, 3])
def test_each_process_reads_its_contexts(project_model: LanguageModel, size: int) -> None:

    def first(place: Place) -> TrainingBatch:
        stream = own_stream(project_model)
        return next(source_of(stream, LAST, TOTAL, place).batches(5))

    whole, parts = first(ALONE), in_mesh(size, 1, first)
    assert len(whole.inputs) == B // CONTEXT
    assert torch.cat([part.inputs for part in parts]).equal(whole.inputs)
    masks = [part.mask for part in parts if part.mask is not None]
    assert whole.mask is not None
    assert torch.cat(masks).equal(whole.mask)
    for name in ("tokens", "kept", "residual", "original"):
        found = [getattr(part.contexts, name) for part in parts]
        assert torch.cat(found).equal(getattr(whole.contexts, name))
    ids = [part.contexts.context_ids for part in parts if part.contexts is not None]
    assert whole.contexts is not None
    assert np.array_equal(np.concatenate(ids), whole.contexts.context_ids)


def test_a_state_is_of_no_mesh(project_model: LanguageModel) -> None:
    """Steps of shuffled rows, then of contexts: kept within these on 2 x 2, it goes on anywhere."""

    def steps_of(place: Place, state: dict[str, Tensor] | None, first: int, last: int) -> dict[str, Tensor]:
        config = {"kind": "sae", "d_in": D_MODEL, "hook_point_in": HOOK, "act_fn": "topk", "d_sae": 64, "top_k": 4}
        made = build_dictionary({**config, "dtype": "float64"}, seed=1)
        deal_(made, place.features)
        trainer = Trainer(made, LAST, total_steps=TOTAL, norms={HOOK: 2.0}, reductions=place.rows)
        if state is not None:
            trainer.load(state, first)
        stream = own_stream(project_model)
        for batch in source_of(stream, LAST, TOTAL, place).batches(first):
            if batch.index == last:
                break
            own = dealt(batch.to(torch.device("cpu"), torch.float64), place.rows.rank, place.rows.size)
            trainer.step(own)
        return {name: tensor.clone() for name, tensor in trainer.state().items()}

    half = 7
    wanted = steps_of(ALONE, None, 0, TOTAL)
    kept = in_mesh(2, 2, lambda place: steps_of(place, None, 0, half))[0]
    for data, features in ((1, 1), (1, 2), (3, 1), (2, 2)):
        for found in in_mesh(data, features, lambda place: steps_of(place, kept, half, TOTAL)):
            for name, tensor in wanted.items():
                torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-12)
