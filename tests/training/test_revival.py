"""Revival: a dead feature is moved to where it opens on one token of the batch it was judged on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.activation_functions.interface import activation_function
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.codes import Codes
from pipeline.training.revival import EXPECTED, LONGEST, MARGIN, SHORTEST, least_silence, out_of_reach, revive_, silence
from pipeline.training.source import TrainingBatch
from tests.training.cases import F, dictionary, params, rows, trainer, weights

BATCH = 64
DEAD = torch.zeros(F, dtype=torch.bool)
DEAD[[3, 7]] = True


def lost(act_fn: str, **fields: Any) -> Dictionary:
    """Features 3 and 7 never open: 3 has tiny weights and a short decoder row, 7 a very negative bias."""
    made = dictionary(act_fn=act_fn, top_k=4, dtype="float64", **fields)
    with torch.no_grad():
        made.get_parameter("W_E")[:, 3] *= 0.05
        made.get_parameter("b_E")[3] = -1.0
        made.get_parameter("W_D")[3] *= 0.2
        made.get_parameter("b_E")[7] = -60.0
    return made


def by_hand(z: Tensor, threshold: Tensor, dead: Tensor) -> dict[int, tuple[float, float]]:
    """{feature: (scale, wanted z at its token)}, with loops."""
    found = {}
    for i in dead.nonzero().flatten().tolist():
        mean = sum(z[b, i].item() for b in range(len(z))) / len(z)
        ratios = [(z[b, i].item() - mean) / threshold[b, i].item() for b in range(len(z))]
        found[i] = (max(1.0, 1.0 / max(ratios)), threshold[ratios.index(max(ratios)), i].item())
    return found


def smallest(z: Tensor, support: Tensor) -> Tensor:
    """The smallest active z of each token, [..., 1]."""
    return torch.where(support, z, torch.inf).amin(-1, keepdim=True)


@pytest.mark.parametrize("include_norm", [True, False])
@pytest.mark.parametrize("act_fn", ["topk", "batchtopk", "jumprelu"])
def test_a_dead_feature_opens_at_its_best_token_and_only_there(act_fn: str, include_norm: bool) -> None:
    made = lost(act_fn, sparsity_include_decoder_norm=include_norm)
    x = rows(BATCH).double()
    codes = made.codes(x)
    assert not bool((codes.f[:, DEAD] > 0).any())
    threshold = activation_function(act_fn).threshold(codes.smallest_active(), made.gate_settings()).detach()
    z, full = codes.z.detach(), threshold.expand(codes.z.shape)
    hand = by_hand(z, full, DEAD)
    before = weights(made)
    revive_(made, codes, threshold, DEAD, None)
    after, now = weights(made), made.codes(x).z.detach()
    lengths = before["W_D"].norm(dim=-1)
    mean = sum(float(lengths[i]) for i in range(F) if not DEAD[i]) / int((~DEAD).sum())
    longer = {i: max(1.0, SHORTEST * mean / float(lengths[i])) if include_norm else 1.0 for i in hand}
    assert (longer[3] > 2) == include_norm
    assert longer[7] == 1
    for i, (scale, _) in hand.items():
        wanted = before["W_E"][:, i] * scale / longer[i]
        assert after["W_D"][i].numpy() == pytest.approx((before["W_D"][i] * longer[i]).numpy(), rel=1e-6)
        assert after["W_E"][:, i].numpy() == pytest.approx(wanted.numpy(), rel=1e-5)
        assert float((now[:, i] > full[:, i]).sum()) == pytest.approx(1, abs=0 if act_fn != "topk" else 3)
        spread = float(now[:, i].max() - now[:, i].mean())
        at = int(((now[:, i] - now[:, i].mean()) / full[:, i]).argmax())
        assert float(now[at, i] - full[at, i]) == pytest.approx(MARGIN * float(now[at, i] - now[:, i].mean()), rel=1e-3)
        assert spread > 0
    assert hand[3][0] > 1.5  # small weights: scaled
    alive = ~DEAD
    assert torch.equal(after["W_E"][:, alive], before["W_E"][:, alive])
    assert torch.equal(after["b_E"][alive], before["b_E"][alive])
    assert torch.equal(after["W_D"][alive], before["W_D"][alive])


def test_masked_tokens_are_not_looked_at() -> None:
    made, other = lost("topk"), lost("topk")
    x = rows(BATCH).double()
    mask = torch.arange(BATCH) % 3 > 0
    codes = made.codes(x, mask)
    threshold = activation_function("topk").threshold(codes.smallest_active(), made.gate_settings(mask))
    revive_(made, codes, threshold, DEAD, mask)
    kept = other.codes(x[mask])
    threshold = activation_function("topk").threshold(kept.smallest_active(), other.gate_settings())
    revive_(other, kept, threshold, DEAD, None)
    assert weights(made)["b_E"].numpy() == pytest.approx(weights(other)["b_E"].numpy(), abs=1e-6)


def test_a_relu_feature_opens_too() -> None:
    made = dictionary(act_fn="relu")
    with torch.no_grad():
        made.get_parameter("b_E")[3] = -60.0
    x = rows(BATCH)
    codes = made.codes(x)
    threshold = activation_function("relu").threshold(codes.smallest_active(), made.gate_settings())
    revive_(made, codes, threshold, torch.arange(F) == 3, None)
    assert int((made.encode(x)[:, 3] > 0).sum()) == 1


def test_a_feature_that_does_not_vary_is_left_alone() -> None:
    made = dictionary()
    with torch.no_grad():
        made.get_parameter("W_E")[:, 3] = 0.0
    codes = made.codes(rows(BATCH))
    threshold = activation_function("topk").threshold(codes.smallest_active(), made.gate_settings())
    before = weights(made)
    revive_(made, codes, threshold, torch.arange(F) == 3, None)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(made).items())


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("act_fn", ["topk", "batchtopk"])
def test_in_training_a_dead_feature_fires_again(act_fn: str, parts: int) -> None:
    fields: dict[str, Any] = {"total_steps": 60, "lr": 1e-3, "dead_threshold": 3 * BATCH, "gradient_accumulation_steps": parts}
    fired = {}
    for revive in (True, False):
        made = trainer(dictionary(act_fn=act_fn), revive_dead_features=revive, **fields)
        with torch.no_grad():
            made.dictionary.get_parameter("b_E")[3] = -8.0
        fired[revive] = 0
        for i, x in enumerate(rows(60 * BATCH).split(BATCH)):
            fired[revive] += bool((made.dictionary.encode(made.normalizer.inputs(x))[:, 3] > 0).any())
            made.step(TrainingBatch(i, x, x))
    assert fired[False] == 0
    assert fired[True] > 10


def test_a_share_of_the_run_makes_a_feature_dead() -> None:
    made = trainer(dictionary(), dead_threshold=0.03, total_training_tokens=10_000)
    assert made.dead.dead_threshold == 300
    assert trainer(dictionary(), dead_threshold=300, total_training_tokens=10_000).dead.dead_threshold == 300


def test_the_threshold_is_what_z_has_to_exceed() -> None:
    z = torch.tensor([[3.0, 1.0, 2.0, -1.0], [0.5, 0.2, 0.1, 0.4]])
    for name, wanted in (("topk", [[2.0], [0.4]]), ("batchtopk", 0.5)):
        activation = activation_function(name)
        settings = dictionary(act_fn=name, top_k=2).gate_settings()
        threshold = activation.threshold(smallest(z, activation.support(z, settings)), settings)
        assert threshold.numpy() == pytest.approx(torch.tensor(wanted).numpy())
    mask = torch.tensor([True, False])
    settings = dictionary(act_fn="topk", top_k=2).gate_settings(mask)
    threshold = activation_function("topk").threshold(smallest(z, activation_function("topk").support(z, settings)), settings)
    assert threshold[1].isinf().all()


def test_a_glu_feature_opens_at_its_best_token_too() -> None:
    """Its linear branch counts: what is added to the bias reaches z times the gate."""
    made = lost("topk", use_glu_encoder=True)
    x = rows(BATCH).double()
    codes = made.codes(x)
    threshold = activation_function("topk").threshold(codes.smallest_active(), made.gate_settings()).detach()
    sigma = torch.sigmoid(x @ made.get_parameter("W_G") + made.get_parameter("b_G")).detach()
    torch.testing.assert_close(made.encoder_gate(x), sigma)
    linear, full = codes.z.detach() / sigma, threshold.expand(codes.z.shape) / sigma
    revive_(made, codes, threshold, DEAD, None, encoder_gate=made.encoder_gate(x))
    now = made.codes(x).z.detach()
    for i, _ in by_hand(linear, full, DEAD).items():
        ratios = (linear[:, i] - linear[:, i].mean()) / full[:, i]
        at = int(ratios.argmax())
        assert float(now[at, i] / threshold[at]) == pytest.approx(1.0, abs=2 * MARGIN * max(1.0, float(ratios[at])))
        assert float(now[at, i]) > float(threshold[at])


def test_a_feature_is_not_scaled_beyond_the_usual_length() -> None:
    made = lost("topk")
    with torch.no_grad():
        made.get_parameter("W_E")[:, 3] *= 20.0
    x = rows(BATCH).double()
    codes = made.codes(x)
    flat = codes.z.detach().clone()
    flat[:, 3] = 1.0 + 1e-4 * torch.arange(BATCH) / BATCH  # hardly varies: it would have to be scaled by thousands
    codes = Codes(codes.h, flat, codes.f, codes.norms)
    threshold = activation_function("topk").threshold(smallest(flat, codes.f.detach() > 0), made.gate_settings())
    before = weights(made)
    revive_(made, codes, threshold, torch.arange(F) == 3, None)
    lengths = (before["W_E"].norm(dim=0) * before["W_D"].norm(dim=-1)).double()
    use = (codes.f > 0).sum(0)
    usual = float((lengths * use).sum() / use.sum())
    assert 100.0 * float(lengths[3]) > LONGEST * usual
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(made).items())


def test_a_batch_without_kept_tokens_revives_nothing() -> None:
    made = lost("topk")
    x, mask = rows(BATCH).double(), torch.zeros(BATCH, dtype=torch.bool)
    codes = made.codes(x, mask)
    threshold = activation_function("topk").threshold(codes.smallest_active(), made.gate_settings(mask))
    before = weights(made)
    revive_(made, codes, threshold, DEAD, mask)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(made).items())


@pytest.mark.parametrize(("act_fn", "k"), [("topk", 4), ("batchtopk", 4), ("jumprelu", 2)])
def test_a_rare_feature_is_not_dead_yet(act_fn: str, k: int) -> None:
    """A silence in which a feature of average use would have been active less than EXPECTED times is no reason."""
    fields = {"target_l0": k} if act_fn == "jumprelu" else {}
    made = trainer(dictionary(act_fn=act_fn, top_k=4), revive_dead_features=True, dead_threshold=1, **fields)
    least = math.ceil(EXPECTED * F / k)
    assert least_silence(made.dictionary, made.params) == silence(made.dictionary, made.params) == least
    assert out_of_reach(made.dictionary, made.params, least) is None
    assert f"in this run of {least - 1} tokens" in str(out_of_reach(made.dictionary, made.params, least - 1))
    assert out_of_reach(made.dictionary, params(dead_threshold=1), 1) is None  # it is off
    for since, moved in ((least - 2 * BATCH, False), (least, True)):
        with torch.no_grad():
            made.dictionary.get_parameter("b_E")[3] = -60.0
        made.dead.tokens_since.zero_()
        made.dead.tokens_since[3] = since
        x = rows(BATCH)
        made.step(TrainingBatch(made.step_number, x, x))
        assert (float(made.dictionary.get_parameter("b_E").detach()[3]) > -50.0) == moved
