"""A step on a batch with massive tokens: what they take part in, with the rule (they are masked) and without (shortened)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.activation_functions.interface import activation_function
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.norms.normalizer import SHORTENED, Normalizer
from pipeline.training.source import TrainingBatch
from pipeline.training.step import Trainer
from tests.dictionaries.test_contract import KIND_CONFIGS
from tests.training.cases import D, F, dictionary, params, rows, same, weights
from tests.training.test_revival import DEAD, lost

BATCH, MEDIAN, FACTOR = 64, 4.0, 10.0
MASSIVE = [5, 23, 40]
STILL: dict[str, Any] = {"lr": 1e-12, "lr_warm_up_steps": 0, "lr_cool_down_steps": 0}  # so that a step does nothing but count


def norms(made: Dictionary, factor: float | None = None) -> dict[str, dict[str, Any]]:
    """Of every hook point; `factor` None: no rule."""
    hooks = dict.fromkeys((*made.hooks_in, *made.hooks_out))
    widths = dict.fromkeys(hooks, made.config.d_out) | dict.fromkeys(made.hooks_in, made.config.d_in)
    about = {"mean_norm": MEDIAN, "mean_square": MEDIAN**2, "median_norm": MEDIAN, "max_norm_factor": factor}
    return {hook: {**about, "d": widths[hook]} for hook in hooks}


def trainer(made: Dictionary, factor: float | None = None, total_steps: int = 20, **fields: Any) -> Trainer:
    return Trainer(made, params(**fields), total_steps=total_steps, norms=norms(made, factor))


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows with massive ones, which are MEDIAN * 300 long, and True for the others."""
    x = rows(BATCH, seed=seed)
    ordinary = torch.ones(BATCH, dtype=torch.bool)
    for number, row in enumerate(MASSIVE):
        x[row] = 0.01 * x[row]
        x[row, number] += 300 * MEDIAN
        ordinary[row] = False
    return x, ordinary


def scaled(x: Tensor) -> Tensor:
    return x * math.sqrt(D) / MEDIAN


def test_only_massive_tokens_are_shortened_and_keep_their_direction() -> None:
    x, ordinary = batch()
    normalizer = Normalizer(dictionary().config, norms(dictionary()))
    found, labels, mask = normalizer.shortened(x, x, None)
    assert labels is found
    assert mask is not None
    for row in range(BATCH):
        length = math.sqrt(sum(v * v for v in x[row].tolist()))
        assert bool(mask[row]) == bool(ordinary[row]) == (length <= 10 * MEDIAN)
        if ordinary[row]:
            assert torch.equal(found[row], x[row])
        else:
            wanted = [v * SHORTENED * MEDIAN / length for v in x[row].tolist()]
            assert found[row].tolist() == pytest.approx(wanted, rel=1e-5)
    assert torch.equal(x, batch()[0])  # the batch itself stays
    of_rows = torch.arange(BATCH) % 4 > 0
    masked = normalizer.shortened(x, x, of_rows)[2]
    assert masked is not None
    assert torch.equal(masked, of_rows & ordinary)


def test_what_needs_no_change_is_passed_on() -> None:
    x, ordinary = batch()
    made = dictionary()
    plain = x[ordinary]
    assert Normalizer(made.config, norms(made)).shortened(plain, plain, None) == (plain, plain, None)
    # With a rule the source has masked them; without a median nothing is known.
    assert Normalizer(made.config, norms(made, FACTOR)).shortened(x, x, ordinary) == (x, x, ordinary)
    assert Normalizer(made.config, {"input": MEDIAN}).shortened(x, x, None) == (x, x, None)


@pytest.mark.parametrize("kind", ["transcoder", "clt", "crosscoder", "lorsa"])
def test_each_hook_point_has_its_own_length_and_its_own_limit(kind: str) -> None:
    """A token that is massive at one hook point is ordinary at none, but keeps its activation at the others."""
    made = build_dictionary({"kind": kind, "d_in": 6, "d_sae": 20, "act_fn": "topk", "top_k": 3, **KIND_CONFIGS[kind]})
    stated = norms(made)
    for number, norm in enumerate(stated.values()):
        norm["median_norm"] = norm["mean_norm"] = 2.0 + number
    draw = torch.Generator().manual_seed(0)
    several = (len(made.hooks_in),) if len(made.hooks_in) > 1 else ()
    x = torch.randn(4, 5, *several, 6, generator=draw)
    y = x if made.hooks_in == made.hooks_out else torch.randn(4, 5, *several, made.config.d_out, generator=draw)
    (x if several == () else x[:, :, 1])[2, 3] *= 1000
    inputs, labels, mask = Normalizer(made.config, stated).shortened(x, y, None)
    assert mask is not None
    assert [tuple(place) for place in (~mask).nonzero().tolist()] == [(2, 3)]
    long = (inputs if several == () else inputs[:, :, 1])[2, 3]
    name = made.hooks_in[1 if several else 0]
    assert float(long.norm()) == pytest.approx(SHORTENED * stated[name]["median_norm"], rel=1e-5)
    rest = x.clone()
    (rest if several == () else rest[:, :, 1])[2, 3] = long
    assert torch.equal(inputs, rest)
    assert torch.equal(labels, rest if y is x else y)


@pytest.mark.parametrize("factor", [None, FACTOR], ids=["off", "rule"])
@pytest.mark.parametrize("act_fn", ["topk", "batchtopk", "jumprelu"])
def test_a_dead_feature_is_revived_on_an_ordinary_token(act_fn: str, factor: float | None) -> None:
    """Also where a massive one suits it best by far: here both dead features lie along the massive directions."""
    made = lost(act_fn)
    with torch.no_grad():
        for number, i in enumerate((3, 7)):
            made.get_parameter("W_E")[:, i] = 0.02 * torch.randn(D, generator=torch.Generator().manual_seed(i))
            made.get_parameter("W_E")[number, i] += 0.1
        made.get_parameter("b_E")[3] = -60.0
    x, ordinary = (t.double() if t.is_floating_point() else t for t in batch())
    run = trainer(made, factor, revive_dead_features=True, dead_threshold=1, **STILL)
    run.dead.tokens_since[DEAD] = 10**6
    before = weights(made)
    shape = (1, BATCH) if factor else (BATCH,)  # masked tokens are of contexts
    given = x.reshape(*shape, D)
    run.step(TrainingBatch(0, given, given, ordinary.reshape(shape) if factor else None))
    assert not torch.equal(made.get_parameter("b_E")[DEAD], before["b_E"][DEAD])
    codes = made.codes(scaled(x[ordinary]))
    z = codes.z.detach()
    threshold = activation_function(act_fn).threshold(codes.smallest_active(), made.gate_settings()).detach().expand(z.shape)
    for i in (3, 7):
        opened = [row for row in range(len(z)) if float(z[row, i]) >= 0.999 * float(threshold[row, i])]
        assert 1 <= len(opened) <= 4


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("mode", ["threshold", "coefficient"])
@pytest.mark.parametrize("masked", [False, True])
def test_steering_counts_the_ordinary_tokens(mode: str, masked: bool, parts: int) -> None:
    x, _ = batch()
    mask = torch.arange(BATCH) % 5 > 0 if masked else None
    losses: dict[str, Any] = {"sparsity_loss_type": "power", "l1_coefficient": 0.01} if mode == "coefficient" else {}
    made = trainer(
        dictionary(act_fn="jumprelu"),
        target_l0=6.0,
        target_l0_gain=0.2,
        target_l0_mode=mode,
        jumprelu_lr_factor=0.0,
        gradient_accumulation_steps=parts,
        **losses,
    )
    before = made.dictionary.log_jumprelu_threshold.detach().clone()
    f = made.dictionary.encode(scaled(x)).tolist()
    counted = [row for row in range(BATCH) if row not in MASSIVE and (mask is None or row % 5 > 0)]
    l0 = sum(1 for row in counted for value in f[row] if value > 0) / len(counted)
    made.step(TrainingBatch(0, x, x, mask))
    wanted = 0.2 * math.log(l0 / 6.0)
    assert abs(wanted) < 0.19  # not at the bound, which would hide the ratio
    if mode == "coefficient":
        assert float(made.l0.log_factor) == pytest.approx(wanted / 3, rel=1e-4)
    else:
        shift = made.dictionary.log_jumprelu_threshold.detach() - before
        assert shift.numpy() == pytest.approx([wanted] * F, rel=1e-4)


def test_masked_massive_tokens_take_nothing_of_a_batchs_budget() -> None:
    """With the rule the step on contexts is the step on their ordinary tokens, but for rounding."""
    x, ordinary = batch()
    whole, alone = (trainer(dictionary(act_fn="batchtopk"), FACTOR) for _ in range(2))
    for step in range(6):
        x, _ = batch(step)
        given = x.reshape(4, 16, D)
        whole.step(TrainingBatch(step, given, given, ordinary.reshape(4, 16)))
        kept = torch.stack([row for i, row in enumerate(x) if i not in MASSIVE])
        alone.step(TrainingBatch(step, kept, kept))
    for name, tensor in alone.parameters.items():
        torch.testing.assert_close(whole.parameters[name], tensor, rtol=1e-4, atol=1e-5)
    assert int(whole.tokens) == int(alone.tokens) == 6 * (BATCH - len(MASSIVE))


def test_shortened_massive_tokens_leave_most_of_a_batchs_budget() -> None:
    """Of random directions z is normal: the share of one row is what a normal variable SHORTENED times as wide has.

    As long as they are, four rows of 256 would open half of all features each, and take half of the budget.
    """
    width, features, k, n, every = 64, 1024, 16, 256, 64
    made = build_dictionary({"kind": "sae", "d_in": width, "d_sae": features, "act_fn": "batchtopk", "top_k": k})
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, width, generator=draw)
    x[::every] += 2000 * torch.randn(n // every, width, generator=draw)
    massive = torch.arange(n) % every == 0
    normalizer = Normalizer(made.config, {"input": {**norms(made)["input"], "median_norm": 8.0, "mean_norm": 8.0}})
    taken = []
    for inputs in (x, normalizer.shortened(x, x, None)[0]):
        active = (made.encode(normalizer.inputs(inputs)) > 0).sum(-1)
        assert int(active.sum()) == k * n
        taken.append(float(active[massive].sum()) / (k * n))
    normal = torch.distributions.Normal(0.0, 1.0)

    def open_at(threshold: float, spread: float) -> float:
        return features * (1 - float(normal.cdf(torch.tensor(threshold / spread))))

    low, high = 0.0, 5.0
    for _ in range(50):
        middle = (low + high) / 2
        mean = (1 - 1 / every) * open_at(middle, 1.0) + open_at(middle, SHORTENED) / every
        low, high = (middle, high) if mean > k else (low, middle)
    assert taken[0] == pytest.approx(0.5, abs=0.05)
    assert taken[1] == pytest.approx(open_at(low, SHORTENED) / every / k, abs=0.05)
    assert taken[1] < 0.3


@pytest.mark.parametrize("factor", [None, FACTOR], ids=["off", "rule"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("act_fn", ["topk", "jumprelu", "relu"])
def test_micro_batches_are_the_whole_batch(act_fn: str, masked: bool, factor: float | None) -> None:
    x, ordinary = (tensor.reshape(8, 8, -1) for tensor in batch())
    ordinary = ordinary.squeeze(-1)
    mask = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    if factor is not None:
        mask = ordinary if mask is None else ordinary & mask
    family: dict[str, Any] = {"sparsity_loss_type": "power", "l1_coefficient": 0.1}
    if act_fn == "topk":
        family = {"auxk_coefficient": 0.1, "dead_threshold": 1}
    elif act_fn == "jumprelu":
        family = {"target_l0": 5.0}
    found = []
    for parts in (1, 3, 8):
        made = trainer(dictionary(act_fn=act_fn), factor, gradient_accumulation_steps=parts, clip_grad_norm=1.0, **family)
        made.dead.tokens_since[:5] = 10
        observation = made.step(TrainingBatch(0, x, x, mask), observe=True)
        assert observation is not None
        gradients = {name: p.grad.clone() for name, p in made.parameters.items() if p.grad is not None}
        found.append((gradients | weights(made.dictionary), observation.figures(), made.dead.tokens_since.clone()))
    for tensors, figures, since in found[1:]:
        assert torch.equal(since, found[0][2])
        assert figures == pytest.approx(found[0][1], rel=1e-4, abs=1e-6)
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, found[0][0][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("act_fn", "fields"),
    [
        ("topk", {"auxk_coefficient": 0.1, "revive_dead_features": True}),
        ("batchtopk", {"revive_dead_features": True}),
        ("relu", {"sparsity_loss_type": "power", "l1_coefficient": 0.1}),
        ("jumprelu", {"target_l0": 3.0, "revive_dead_features": True}),
        ("jumprelu", {"target_l0": 3.0, "topk_start_steps": 1}),
    ],
)
def test_a_batch_of_nothing_but_excluded_tokens_changes_nothing(act_fn: str, fields: dict[str, Any]) -> None:
    """As the first step: later ones move by the optimiser's momentum. Thresholds that a TopK start hands over stay too."""
    made = trainer(dictionary(act_fn=act_fn), FACTOR, dead_threshold=1, **fields)
    made.dead.tokens_since[:3] = 10**6
    made.step_number = made.topk_start_steps
    before, since = weights(made.dictionary), made.dead.tokens_since.clone()
    x = 1000 * rows(16)
    observation = made.step(TrainingBatch(made.step_number, x, x, torch.zeros(16, dtype=torch.bool)))
    assert observation is None
    assert same(before, weights(made.dictionary))
    assert torch.equal(since, made.dead.tokens_since)
    assert int(made.tokens) == 0


def test_a_batch_of_nothing_but_massive_tokens_trains_on_them_shortened() -> None:
    """No ordinary token: L0 is not steered and no feature revived, but the rows are learnt."""
    made = trainer(dictionary(act_fn="jumprelu"), target_l0=3.0, jumprelu_lr_factor=0.0, revive_dead_features=True)
    made.dead.tokens_since[:] = 10**6
    before = weights(made.dictionary)
    x = 1000 * rows(16)
    made.step(TrainingBatch(0, x, x))
    after = weights(made.dictionary)
    assert torch.equal(before["log_jumprelu_threshold"], after["log_jumprelu_threshold"])
    assert not torch.equal(before["W_D"], after["W_D"])
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    assert int(made.tokens) == 16


@pytest.mark.parametrize("parts", [1, 3])
def test_the_end_of_a_topk_start_sets_thresholds_by_the_first_ordinary_tokens(parts: int) -> None:
    """Of the first micro-batch that has any: here the first of three has none."""
    x = torch.cat([1000 * rows(12), rows(24)])
    made = trainer(
        dictionary(act_fn="jumprelu"),
        topk_start_steps=1,
        target_l0=3.0,
        target_l0_gain=1e-9,
        gradient_accumulation_steps=parts,
        **STILL,
    )
    made.step_number = 1
    made.step(TrainingBatch(1, x, x))
    z = made.dictionary.codes(scaled(x[12:] if parts == 1 else x[12:24])).z.detach().flatten().tolist()
    ranked = sorted(z, reverse=True)
    count = 3 * (24 if parts == 1 else 12)
    theta = made.dictionary.log_jumprelu_threshold.detach().exp()
    assert theta.numpy() == pytest.approx([(ranked[count - 1] + ranked[count]) / 2] * F, rel=1e-4)
