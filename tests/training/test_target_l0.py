"""target_l0: thresholds and coefficient are steered, TopK starts hand over, silent thresholds come back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.training.source import TrainingBatch
from pipeline.training.step import Trainer
from tests.training.cases import F, dictionary, params, rows, same, trainer, weights

BATCH = 64


DATA = rows(440 * BATCH).split(BATCH)  # of one distribution: the last 40 are never trained on
UNSEEN = torch.cat(DATA[400:])


def steps(made: Trainer, n: int) -> None:
    for i in range(made.step_number, made.step_number + n):
        made.step(TrainingBatch(i, DATA[i], DATA[i]))


def l0(made: Trainer, x: Tensor) -> float:
    return float((made.dictionary.encode(made.normalizer.inputs(x)) > 0).sum(-1).double().mean())


def steered(target: float = 3.0, **fields: Any) -> Trainer:
    return trainer(dictionary(act_fn="jumprelu"), target_l0=target, total_steps=400, **fields)


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_shifts_every_log_threshold_by_gain_times_the_log_ratio(masked: bool) -> None:
    made = steered(target=6.0, target_l0_gain=0.2, jumprelu_lr_factor=0.0)
    x = DATA[0]
    mask = torch.arange(BATCH) % 3 > 0 if masked else None
    kept = x if mask is None else x[mask]
    before, found = made.dictionary.log_jumprelu_threshold.detach().clone(), l0(made, kept)
    made.step(TrainingBatch(0, x, x, mask))
    shift = made.dictionary.log_jumprelu_threshold.detach() - before
    wanted = 0.2 * max(-1.0, min(1.0, math.log(found / 6.0)))
    assert shift.numpy() == pytest.approx([wanted] * F, rel=1e-4)
    assert wanted != pytest.approx(0.2)  # not at the bound, which would hide the ratio


def test_the_shift_of_a_step_is_bounded() -> None:
    made = steered(target=1.0, target_l0_gain=0.2, jumprelu_lr_factor=0.0)
    before = made.dictionary.log_jumprelu_threshold.detach().clone()
    steps(made, 1)
    assert (made.dictionary.log_jumprelu_threshold.detach() - before).numpy() == pytest.approx([0.2] * F, rel=1e-4)


def test_l0_lands_on_the_target() -> None:
    made = steered(target=4.0)
    steps(made, 300)
    assert l0(made, UNSEEN) == pytest.approx(4.0, rel=0.1)


def test_thresholds_of_dead_features_become_the_median_of_the_others() -> None:
    made = steered(target=3.0, dead_threshold=10 * BATCH, jumprelu_lr_factor=0.0, target_l0_gain=0.1)
    with torch.no_grad():
        made.dictionary.log_jumprelu_threshold.copy_(torch.linspace(-3, -2, F))
        made.dictionary.log_jumprelu_threshold[5] = 9.0
    before = made.dictionary.log_jumprelu_threshold.detach().clone()
    made.dead.tokens_since[5] = 10 * BATCH
    found = l0(made, DATA[0])
    steps(made, 1)
    after = made.dictionary.log_jumprelu_threshold.detach()
    shift = 0.1 * max(-1.0, min(1.0, math.log(found / 3.0)))
    others = sorted(float(t) + shift for i, t in enumerate(before) if i != 5)
    assert float(after[5]) == pytest.approx(others[(len(others) - 1) // 2], abs=1e-5)
    assert after[:5].numpy() == pytest.approx((before[:5] + shift).numpy(), abs=1e-5)


def test_the_coefficient_grows_while_l0_is_above_the_target() -> None:
    fields = {"target_l0": 3.0, "target_l0_mode": "coefficient", "sparsity_loss_type": "power", "l1_coefficient": 0.01}
    made = trainer(dictionary(act_fn="relu"), total_steps=400, l1_coefficient_warmup_steps=0, target_l0_gain=0.1, **fields)
    x = DATA[0]
    found = l0(made, x)
    first = made.step(TrainingBatch(0, x, x), observe=True)
    assert first is not None
    assert first.figures()["l1_coefficient"] == pytest.approx(0.01)
    second = made.step(TrainingBatch(1, x, x), observe=True)
    assert second is not None
    wanted = 0.01 * math.exp(0.1 / 3 * max(-1.0, min(1.0, math.log(found / 3.0))))
    assert second.figures()["l1_coefficient"] == pytest.approx(wanted, rel=1e-5)
    steps(made, 390)
    assert l0(made, UNSEEN) == pytest.approx(3.0, rel=0.25)


@pytest.mark.parametrize("mode", ["threshold", "coefficient"])
def test_a_resumed_run_is_steered_the_same(mode: str) -> None:
    fields: dict[str, Any] = {"target_l0": 3.0, "target_l0_mode": mode, "total_steps": 12}
    fields |= {"topk_start_steps": 4} if mode == "threshold" else {"sparsity_loss_type": "power", "l1_coefficient": 0.01}
    whole = trainer(dictionary(act_fn="jumprelu"), **fields)
    steps(whole, 12)
    for cut in (3, 4, 9):
        first = trainer(dictionary(act_fn="jumprelu"), **fields)
        steps(first, cut)
        state = {name: tensor.clone() for name, tensor in first.state().items()}
        second = trainer(dictionary(seed=5, act_fn="jumprelu"), **fields)
        second.load(state, cut)
        steps(second, 12 - cut)
        assert same(weights(second.dictionary), weights(whole.dictionary))


def test_a_topk_start_has_k_features_then_thresholds_at_the_quantile() -> None:
    made = steered(target=3.0, topk_start_steps=5, jumprelu_lr_factor=0.0, target_l0_gain=0.3)
    start = made.dictionary.log_jumprelu_threshold.detach().clone()
    for i in range(5):
        x = DATA[i]
        observation = made.step(TrainingBatch(i, x, x), observe=True)
        assert observation is not None
        assert observation.figures()["l0"] <= 3.0
        assert observation.figures()["top_k"] == 3
        assert torch.equal(made.dictionary.log_jumprelu_threshold.detach(), start)
    x = DATA[5]
    z = made.dictionary.codes(made.normalizer.inputs(x)).z.detach().double().flatten().sort(descending=True).values
    observation = made.step(TrainingBatch(5, x, x), observe=True)
    assert observation is not None
    assert observation.figures()["l0"] == 3.0  # by the quantile of this very batch
    assert "top_k" not in observation.figures()
    theta = made.dictionary.log_jumprelu_threshold.detach().exp()
    assert float(theta.min()) == float(theta.max())
    assert float(z[3 * BATCH]) < float(theta[0]) < float(z[3 * BATCH - 1])


def test_a_topk_start_before_batchtopk() -> None:
    made = trainer(dictionary(act_fn="batchtopk", top_k=4), total_steps=10, topk_start_steps=0.5)
    most = []
    for i in range(10):
        x = DATA[i]
        codes = made.dictionary.codes(made.normalizer.inputs(x), gate=made.gate(i))
        most.append(int((codes.f > 0).sum(-1).max()))
        made.step(TrainingBatch(i, x, x))
    assert max(most[:5]) == 4
    assert min(most[5:]) > 4


def test_only_steered_thresholds_have_a_target_for_the_fold() -> None:
    assert steered(target=3.0).params.steered_l0 == 3.0
    assert params(target_l0=3.0, target_l0_mode="coefficient", sparsity_loss_type="power").steered_l0 is None
    assert params().steered_l0 is None


def test_steering_of_a_micro_batched_step_counts_the_whole_step() -> None:
    found = []
    for parts in (1, 4):
        made = steered(target=2.0, gradient_accumulation_steps=parts)
        steps(made, 5)
        found.append(weights(made.dictionary)["log_jumprelu_threshold"])
    assert found[1].numpy() == pytest.approx(found[0].numpy(), abs=1e-5)


def cross_layer() -> tuple[Any, Trainer]:
    """A jumprelu clt of two layers, whose first layer's gating values are three times as large."""
    hooks = {"hook_points_in": ("a", "b"), "hook_points_out": ("c", "d")}
    made = dictionary(kind="clt", act_fn="jumprelu", **{**hooks, "decoder_uniform_bound": 1.0})
    with torch.no_grad():
        made.get_parameter("W_E")[0] *= 3.0
    return made, trainer(made, target_l0=3.0, total_steps=400, target_l0_gain=0.2, jumprelu_lr_factor=0.0, topk_start_steps=1)


def layer_l0(made: Any, x: torch.Tensor) -> list[float]:
    """Mean active features of a token, of each layer."""
    with torch.no_grad():
        found: list[float] = (made.encode(x) > 0).sum(-1).float().mean(0).tolist()
    return found


def test_each_layer_is_steered_by_itself() -> None:
    made, each = cross_layer()
    each.step_number = 1
    x = torch.stack([DATA[0], DATA[1]], dim=1)
    each.l0.start_(each.normalizer.inputs(x), None)
    with torch.no_grad():
        made.log_jumprelu_threshold[0] += 0.2
        made.log_jumprelu_threshold[1] -= 0.2
    each.l0.start_ = lambda x, mask: None  # type: ignore[method-assign]
    before = made.log_jumprelu_threshold.detach().clone()
    found = layer_l0(made, each.normalizer.inputs(x))
    each.step(TrainingBatch(1, x, x))
    shift = made.log_jumprelu_threshold.detach() - before
    for layer in range(2):
        wanted = 0.2 * max(-1.0, min(1.0, math.log(found[layer] / 3.0)))
        assert shift[layer].numpy() == pytest.approx([wanted] * F, rel=1e-3, abs=1e-6)
    assert abs(float(shift[0, 0] - shift[1, 0])) > 0.02


def test_each_layer_starts_and_is_served_at_the_target() -> None:
    made, each = cross_layer()
    x = torch.stack([DATA[2], DATA[3]], dim=1)
    each.l0.start_(each.normalizer.inputs(x), None)
    assert layer_l0(made, each.normalizer.inputs(x)) == pytest.approx([3.0, 3.0], abs=0.02)
    with torch.no_grad():
        made.log_jumprelu_threshold[0] += 0.3
        made.log_jumprelu_threshold[1] -= 0.2
    served, _ = made.with_l0([each.normalizer.inputs(x)], 3.0)
    assert layer_l0(served, each.normalizer.inputs(x)) == pytest.approx([3.0, 3.0], abs=0.02)


@pytest.mark.parametrize("mode", ["threshold", "coefficient"])
def test_a_step_without_kept_tokens_steers_nothing(mode: str) -> None:
    fields: dict[str, Any] = {"target_l0": 3.0, "target_l0_mode": mode}
    fields |= {} if mode == "threshold" else {"sparsity_loss_type": "power", "l1_coefficient": 0.01}
    made = trainer(dictionary(act_fn="jumprelu"), jumprelu_lr_factor=0.0, **fields)
    before = made.dictionary.log_jumprelu_threshold.detach().clone()
    made.step(TrainingBatch(0, DATA[0], DATA[0], torch.zeros(BATCH, dtype=torch.bool)))
    assert torch.equal(made.dictionary.log_jumprelu_threshold.detach(), before)
    assert float(made.l0.log_factor) == 0.0
