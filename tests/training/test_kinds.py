"""Training of every kind: resume, determinism, masks, accumulation, dead features, every loss, a target L0."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.activation_functions.interface import activation_function, activation_function_names
from pipeline.api import loss
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary, kind_names
from pipeline.params.dictionary_kinds import kind_fields
from pipeline.params.schema import TrainerParams
from pipeline.training.source import TrainingBatch
from pipeline.training.step import Trainer
from tests.dictionaries.make import inputs
from tests.dictionaries.test_contract import KIND_CONFIGS
from tests.training.cases import same

D, F = 6, 20
CASES = [
    (kind, act_fn)
    for kind in kind_names()
    for act_fn in activation_function_names()
    if kind_fields(kind).HAS_LAYERS or not activation_function(act_fn).joint_layers
]
every_case = pytest.mark.parametrize(("kind", "act_fn"), CASES)


def dictionary(kind: str, act_fn: str, **fields: Any) -> Dictionary:
    config = {"kind": kind, "d_in": D, "d_sae": F, "act_fn": act_fn, "top_k": 3, **KIND_CONFIGS[kind], **fields}
    return build_dictionary(config, seed=1)


def trainer(made: Dictionary, **fields: Any) -> Trainer:
    """Norms of the hook points differ."""
    params = TrainerParams(**{"lr": 1e-2, "lr_warm_up_steps": 2, "lr_cool_down_steps": 3, "n_checkpoints": 0, **fields})
    hooks = dict.fromkeys((*made.hooks_in, *made.hooks_out))
    norms = {hook: 2.0 + index for index, hook in enumerate(hooks)}
    return Trainer(made, params, total_steps=20, norms=norms)


def batches(made: Dictionary, n: int) -> list[TrainingBatch]:
    """Contexts [4, 8, ...] with masked tokens."""

    def drawn(hooks: tuple[str, ...], width: int, seed: int) -> torch.Tensor:
        several = (len(hooks),) if len(hooks) > 1 else ()
        rows = inputs(32 * max(len(hooks), 1), width, seed, torch.float32) + 0.5
        return rows.reshape(4, 8, *several, width)

    found = []
    for index in range(n):
        x = drawn(made.hooks_in, made.config.d_in, index)
        y = x if made.hooks_in == made.hooks_out else drawn(made.hooks_out, made.config.d_out, index + 100)
        mask = (torch.arange(32) + index).reshape(4, 8) % 5 != 0
        found.append(TrainingBatch(index, x, y, mask))
    return found


def rich(made: Dictionary) -> dict[str, Any]:
    """Everything on that the gate takes."""
    fields: dict[str, Any] = {"sparsity_loss_type": "tanh-quad", "l1_coefficient": 0.01, "revive_dead_features": True}
    fields |= {"dead_threshold": 40, "clip_grad_norm": 1.0}
    if made.activation.budgeted:
        fields |= {"auxk_coefficient": 0.1, "initial_k": 6}
    if made.activation.has_threshold:
        fields |= {"lp_coefficient": 1e-3, "target_l0": 4.0}
    return fields


@every_case
def test_a_resumed_run_has_the_same_bits(kind: str, act_fn: str) -> None:
    def new() -> Trainer:
        made = dictionary(kind, act_fn)
        return trainer(made, **rich(made))

    unbroken, again, cut = new(), new(), new()
    steps = batches(unbroken.dictionary, 7)
    for batch in steps[:4]:
        for each in (unbroken, again, cut):
            each.step(batch)
    state = {name: tensor.clone() for name, tensor in cut.state().items()}
    resumed = new()
    resumed.load(state, 4)
    for batch in steps[4:]:
        for each in (unbroken, again, resumed):
            each.step(batch)
    assert same(unbroken.state(), resumed.state())
    assert same(unbroken.state(), again.state())
    assert all(bool(tensor.isfinite().all()) for tensor in unbroken.state().values())


@every_case
def test_masked_tokens_take_no_part_in_a_step(kind: str, act_fn: str) -> None:
    """Neither their inputs nor their labels; attention reads masked tokens from others, so that of it only the labels."""
    found = []
    for loud in (0.0, 50.0):
        made = dictionary(kind, act_fn)
        each = trainer(made, **rich(made))
        for batch in batches(made, 4):
            assert batch.mask is not None
            x, y = (
                torch.where(batch.mask.reshape(4, 8, *(1,) * (t.ndim - 2)), t, loud * t) for t in (batch.inputs, batch.labels)
            )
            if made.reads_sequences:
                x = batch.inputs
            each.step(TrainingBatch(batch.index, x, x if batch.labels is batch.inputs else y, batch.mask))
        found.append({name: tensor.detach() for name, tensor in each.state().items()})
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", kind_names())
@pytest.mark.parametrize("act_fn", ["topk", "relu"])
def test_accumulation_is_the_whole_batch(kind: str, act_fn: str) -> None:
    found = []
    for parts in (1, 2):
        made = dictionary(kind, act_fn)
        each = trainer(made, gradient_accumulation_steps=parts, sparsity_loss_type="tanh-quad", l1_coefficient=0.1)
        observation = each.step(batches(made, 1)[0], observe=True)
        assert observation is not None
        found.append((observation.figures(), {name: p.grad for name, p in made.named_parameters()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for name, grad in found[0][1].items():
        torch.testing.assert_close(grad, found[1][1][name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", kind_names())
def test_dead_features_come_back(kind: str) -> None:
    made = dictionary(kind, "topk")
    with torch.no_grad():
        made.encoder_bias().view(-1)[:3] = -100.0
    each = trainer(made, dead_threshold=64, revive_dead_features=True)
    fired = torch.zeros(made.feature_shape, dtype=torch.bool)
    for batch in batches(made, 40):
        each.step(batch)
        if batch.index > 25:
            with torch.no_grad():
                x, _ = each.normalizer(batch.inputs, batch.labels, batch.mask)
                fired |= (made.encode(x, batch.mask) > 0).flatten(0, 1).any(0)
    assert bool(fired.view(-1)[:3].any())


@pytest.mark.parametrize("kind", kind_names())
@pytest.mark.parametrize("name", ["power", "tanh", "tanh-quad", "l0"])
def test_every_sparsity_loss_counts_layers_evenly(kind: str, name: str) -> None:
    """The term of several layers is the mean of the layers' own; checked where layers are alike."""
    made = dictionary(kind, "jumprelu", d_sae=F)
    batch = batches(made, 1)[0]
    report = loss(made, batch.inputs, batch.labels, mask=batch.mask, sparsity_loss_type=name, lp_coefficient=0.1)
    term = report.unweighted["l0_loss" if name == "l0" else name]
    f, n = report.codes.f[batch.mask], report.codes.norms
    if name == "power":
        torch.testing.assert_close(term, (f * n).sum(-1).mean())
    elif name == "tanh":
        torch.testing.assert_close(term, (4 * f * n).tanh().sum(-1).mean())
    elif name == "tanh-quad":
        q = (4 * f * n).tanh().mean(0)
        torch.testing.assert_close(term, (q * (1 + q / 0.01)).sum(-1).mean())
    else:
        torch.testing.assert_close(term, (f > 0).sum(-1).float().mean())
    thresholds = made.thresholds()
    assert thresholds is not None
    lp = (thresholds - report.codes.z[batch.mask]).relu().sum(-1).mean()
    torch.testing.assert_close(report.unweighted["lp"], lp)


def test_figures_of_each_layer_are_reported() -> None:
    made = dictionary("clt", "topk")
    each = trainer(made)
    batch = batches(made, 1)[0]
    x, y = each.normalizer(batch.inputs, batch.labels, batch.mask)
    with torch.no_grad():
        codes, x_hat = made.run(x, batch.mask)
    observation = each.step(batch, observe=True)
    assert observation is not None
    figures, kept = observation.figures(), batch.mask
    assert {"grad_norm.W_E", "grad_norm.W_D.0", "grad_norm.W_D.2"} <= set(figures)
    errors = lengths_of_all = 0.0
    for layer in range(3):
        l0 = (codes.f[kept][:, layer] > 0).sum(-1).double().mean()
        label, r = y[kept][:, layer].double(), x_hat[kept][:, layer].double()
        explained = 1 - (label - r).square().sum() / (label - label.mean(0)).square().sum()
        assert figures[f"l0.{layer}"] == pytest.approx(float(l0))
        assert figures[f"explained_variance.{layer}"] == pytest.approx(float(explained), abs=1e-5)
        error = sum((label - r).square().sum(-1).sqrt().tolist())
        lengths = sum(label.square().sum(-1).sqrt().tolist())
        assert figures[f"l2_norm_error.{layer}"] == pytest.approx(error / len(label), rel=1e-5)
        assert figures[f"l2_norm_error_ratio.{layer}"] == pytest.approx(error / lengths, rel=1e-5)
        errors, lengths_of_all = errors + error, lengths_of_all + lengths
    assert figures["l0"] == pytest.approx(sum(figures[f"l0.{layer}"] for layer in range(3)))
    assert figures["l2_norm_error"] == pytest.approx(errors / (3 * int(kept.sum())), rel=1e-5)
    assert figures["l2_norm_error_ratio"] == pytest.approx(errors / lengths_of_all, rel=1e-5)


@pytest.mark.parametrize("act_fn", ["topk", "batchtopk", "layertopk", "batchlayertopk"])
def test_k_falls_from_all_features_of_every_layer(act_fn: str) -> None:
    made = dictionary("clt", act_fn)
    each = trainer(made, initial_k=F, k_warmup_steps=10, k_cold_booting_steps=2)
    n_layers = made.feature_shape[0]
    found = []
    for batch in batches(made, 14):
        x, _ = each.normalizer(batch.inputs, batch.labels, batch.mask)
        with torch.no_grad():
            positive = (made.codes(x, batch.mask).z[batch.mask] > 0).sum().item() / int(batch.mask.sum())  # type: ignore[index]
        observation = each.step(batch, observe=True)
        assert observation is not None
        found.append((observation.figures()["l0"], positive))
    assert found[0][0] == pytest.approx(found[0][1], rel=1e-6)  # every positive one, of all layers
    assert found[-1][0] <= 3 * n_layers + 1e-6
    assert found[0][0] > 2 * found[-1][0]
