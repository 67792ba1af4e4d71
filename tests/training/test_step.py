"""One step: accumulation, masks, observation, schedules, scaling, and what stops it."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.dictionaries.base import Gate
from pipeline.errors import CheckpointError, NumericsError
from pipeline.training.finiteness import LossGuard
from pipeline.training.optimizers import build_optimizer
from pipeline.training.source import TrainingBatch
from pipeline.training.step import Trainer
from tests.training.cases import D, F, dictionary, rows, same, trainer, weights


def batches(n: int, size: int = 16) -> list[TrainingBatch]:
    return [TrainingBatch(i, x, x) for i, x in enumerate(rows(n * size).split(size))]


def gradients(made: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in made.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("act_fn", ["topk", "jumprelu"])
def test_accumulation_takes_means_over_the_whole_step(act_fn: str, masked: bool) -> None:
    x = rows(60).reshape(6, 10, D)
    mask = torch.rand(6, 10, generator=torch.Generator().manual_seed(1)) < 0.5 if masked else None
    found = []
    for parts in (1, 3, 4):
        made = trainer(
            dictionary(act_fn=act_fn),
            gradient_accumulation_steps=parts,
            sparsity_loss_type="power",
            l1_coefficient=0.1,
            auxk_coefficient=0.1 if act_fn == "topk" else None,
            dead_threshold=1,
        )
        made.dead.tokens_since[:5] = 10
        observation = made.step(TrainingBatch(0, x, x, mask), observe=True)
        assert observation is not None
        found.append((gradients(made), observation.figures(), made.dead.tokens_since.clone()))
    for grads, figures, since in found[1:]:
        assert torch.equal(since, found[0][2])
        assert figures == pytest.approx(found[0][1], rel=1e-5)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, found[0][0][name], rtol=1e-4, atol=1e-6)


def test_batchtopk_competes_within_a_micro_batch() -> None:
    x = rows(32)
    made = trainer(dictionary(act_fn="batchtopk"), gradient_accumulation_steps=2)
    observation = made.step(TrainingBatch(0, x, x), observe=True)
    assert observation is not None
    y = x * math.sqrt(D) / 2.0
    fresh = dictionary(act_fn="batchtopk")
    wanted = torch.stack([(fresh(part) - part).square().sum(-1).mean() for part in y.split(16)]).mean()
    assert observation.figures()["loss"] == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_a_step_is_adam_on_the_gradient_of_the_loss() -> None:
    made = trainer(dictionary(act_fn="jumprelu"), sparsity_loss_type="power", l1_coefficient=0.5, clip_grad_norm=0.7)
    reference = dictionary(act_fn="jumprelu")
    adam = torch.optim.Adam(reference.parameters(), lr=1.0)
    for s, batch in enumerate(batches(5)):
        made.step(batch)
        x = batch.inputs * math.sqrt(D) / 2.0
        codes, r = reference.run(x)
        power = (codes.f * codes.norms).sum(-1).mean()
        adam.zero_grad()
        ((r - x).square().sum(-1).mean() + 0.5 * min(1, (s + 1) / 2) * power).backward()
        plain = [p for name, p in reference.named_parameters() if name != "log_jumprelu_threshold"]
        torch.nn.utils.clip_grad_norm_(plain, 0.7)
        lr = 1e-2 * min(1, (s + 1) / 2)
        adam.param_groups[0]["lr"] = lr
        before = reference.get_parameter("log_jumprelu_threshold").detach().clone()
        adam.step()
        with torch.no_grad():  # jumprelu_lr_factor 0.1
            t = reference.get_parameter("log_jumprelu_threshold")
            t.copy_(before + 0.1 * (t - before))
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(made.parameters[name], parameter, rtol=1e-4, atol=1e-6)


def test_observing_changes_no_bit() -> None:
    plain, observed = trainer(dictionary()), trainer(dictionary())
    for batch in batches(4):
        plain.step(batch)
        observed.step(batch, observe=True)
    assert same(weights(plain.dictionary), weights(observed.dictionary))


def test_observation_is_written_out() -> None:
    made = trainer(dictionary(), auxk_coefficient=0.5, dead_threshold=16, initial_k=6, k_warmup_steps=3)
    (batch,) = batches(1)
    made.dead.tokens_since[:] = 1
    made.dead.tokens_since[0] = 10**6
    start = dictionary()
    x = batch.inputs * math.sqrt(D) / 2.0
    codes, r = start.run(x, gate=Gate(top_k=6))
    observation = made.step(batch, observe=True)
    assert observation is not None
    figures = observation.figures()
    fvu = float((x - r.detach()).square().sum() / (x - x.mean(0)).square().sum())
    assert figures["explained_variance"] == pytest.approx(1 - fvu, rel=1e-5)
    errors = [math.dist(a, b) for a, b in zip(x.tolist(), r.tolist(), strict=True)]
    assert figures["l2_norm_error"] == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert figures["l2_norm_error_ratio"] == pytest.approx(sum(errors) / sum(math.hypot(*row) for row in x.tolist()), rel=1e-5)
    assert figures["l0"] == pytest.approx(float((codes.f > 0).sum(-1).float().mean()))
    assert figures["top_k"] == 6
    assert figures["lr"] == pytest.approx(0.5e-2)
    assert figures["tokens"] == 16
    assert figures["auxk_weighted"] == pytest.approx(0.5 * figures["auxk"])
    assert figures["loss"] == pytest.approx(figures["l_rec_weighted"] + figures["auxk_weighted"])
    fired = (codes.f > 0).any(0)
    assert figures["dead_features"] == int((~fired).sum())  # 1 + 16 tokens, or many, without an activation
    assert made.scheduled(3)["top_k"] == 3


def test_labels_of_their_own_and_norms_of_their_own() -> None:
    made = dictionary(kind="transcoder", d_out=5)
    run = Trainer(made, trainer(dictionary()).params, total_steps=5, norms={"input": 2.0, "output": 4.0})
    x, y = rows(16), rows(16, d=5, seed=1)
    reference = dictionary(kind="transcoder", d_out=5)
    wanted = (reference(x * math.sqrt(D) / 2.0) - y * math.sqrt(5) / 4.0).square().sum(-1).mean()
    observation = run.step(TrainingBatch(0, x, y), observe=True)
    assert observation is not None
    assert observation.figures()["l_rec"] == pytest.approx(float(wanted.detach()), rel=1e-5)


@pytest.mark.parametrize("norm_activation", ["token-wise", "batch-wise"])
def test_run_time_norms(norm_activation: str) -> None:
    made = trainer(dictionary(norm_activation=norm_activation), gradient_accumulation_steps=2)
    x = rows(16) * torch.arange(1, 17)[:, None]
    lengths = x.norm(dim=-1, keepdim=True)
    factor = math.sqrt(D) / (lengths if norm_activation == "token-wise" else lengths.mean())
    reference = dictionary()
    observation = made.step(TrainingBatch(0, x, x), observe=True)
    assert observation is not None
    wanted = (reference(x * factor) - x * factor).square().sum(-1).mean()
    assert observation.figures()["l_rec"] == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_a_non_finite_loss_stops_before_the_update() -> None:
    made = trainer(dictionary(), sparsity_loss_type="power")
    first, second = batches(2)
    made.step(first)
    before = weights(made.dictionary)
    broken = second.inputs.clone()
    broken[3, 2] = float("inf")
    with pytest.raises(
        NumericsError, match=r"not finite at step 1 \(batch 1\): loss (nan|inf), l_rec (nan|inf), power .*grad_norm"
    ):
        made.step(TrainingBatch(1, broken, broken))
    assert same(before, weights(made.dictionary))


def test_the_deferred_guard_keeps_the_first_bad_step() -> None:
    guard = LossGuard(torch.device("cpu"), "position {}".format)
    guard.immediate = False
    bad = float("nan")
    skips = [
        guard.check(s, {"loss": torch.tensor(v), "l_rec": torch.tensor(float(s))}) for s, v in enumerate([1.0, bad, 2.0, bad])
    ]
    assert [float(skip) for skip in skips if skip is not None] == [0.0, 1.0, 1.0, 1.0]
    with pytest.raises(NumericsError, match=r"step 1 \(position 1\): loss nan, l_rec 1;"):
        guard.read()
    LossGuard(torch.device("cpu"), str).read()


def test_float16_scales_the_loss_and_skips_an_overflow() -> None:
    made = trainer(dictionary(act_fn="relu"), amp_dtype="float16")
    made.scaler.scale.fill_(2.0**40)
    before = weights(made.dictionary)
    first, second = batches(2)
    made.step(first)
    assert same(before, weights(made.dictionary))  # gradients of 2^40 times the loss are not float16 numbers
    made.scaler.scale.fill_(2.0**8)
    made.step(second)
    assert not same(before, weights(made.dictionary))
    assert all(bool(torch.isfinite(p).all()) for p in made.parameters.values())


@pytest.mark.parametrize(("act_fn", "amp_dtype"), [("topk", "float32"), ("jumprelu", "bfloat16"), ("relu", "float16")])
def test_state_resumes_bit_for_bit(act_fn: str, amp_dtype: str) -> None:
    def new() -> Trainer:
        return trainer(dictionary(act_fn=act_fn), amp_dtype=amp_dtype, sparsity_loss_type="power", dead_threshold=20)

    unbroken, cut = new(), new()
    assert "dead/tokens_since" in unbroken.state()
    for batch in batches(3):
        unbroken.step(batch)
        cut.step(batch)
    state = {name: tensor.clone() for name, tensor in cut.state().items()}
    resumed = new()
    resumed.load(state, 3)
    for batch in batches(6)[3:]:
        unbroken.step(batch)
        resumed.step(batch)
    assert same(unbroken.state(), resumed.state())
    state.pop("tokens")
    with pytest.raises(CheckpointError, match="tokens"):
        new().load(state, 3)


def test_a_trainers_optimiser_and_schedule_are_those_of_its_parameters() -> None:
    fields = {"lr": 0.5, "lr_warm_up_steps": 4, "lr_start_ratio": 0.2, "lr_end_ratio": 0.1, "lr_cool_down_steps": 10}
    made = trainer(dictionary(), optimizer="sparseadam", betas=(0.3, 0.7), eps=0.01, **fields)
    assert made.optimizer.eps == 0.01
    assert type(made.optimizer) is type(build_optimizer("sparseadam", made.parameters, lr_factors={}, betas=(0, 0.9), eps=1e-8))
    assert type(made.optimizer) is not type(trainer(dictionary()).optimizer)
    rates = [made.scheduled(s)["lr"] for s in range(20)]
    wanted = [0.5 * min(0.2 + 0.8 * (s + 1) / 4, 1.0, 0.1 + 0.9 * (20 - s) / 10) for s in range(20)]
    assert rates == pytest.approx(wanted)
    x = rows(30)
    made.step(TrainingBatch(0, x, x))
    grad = made.parameters["b_D"].grad
    assert grad is not None
    torch.testing.assert_close(made.optimizer.state()["b_D/exp_avg"], 0.7 * grad)


def test_the_rate_of_auto_is_logged() -> None:
    made = trainer(dictionary(), lr="auto", lr_warm_up_steps=0, lr_cool_down_steps=0)
    x = rows(16)
    observation = made.step(TrainingBatch(0, x, x), observe=True)
    assert observation is not None
    assert observation.figures()["lr"] == pytest.approx(0.055 * 20**0.25 / math.sqrt(8))


def test_a_trainers_k_schedule_is_that_of_its_parameters() -> None:
    fields = {"initial_k": 20, "k_warmup_steps": 10, "k_cold_booting_steps": 2, "k_exponential_factor": 5.0}
    for kind in ("linear", "exponential"):
        made = trainer(dictionary(), k_schedule_type=kind, **fields)
        for s in range(15):
            p = min(max(s - 2, 0) / 10, 1.0)
            if kind == "exponential":
                p = (1 - math.exp(-5 * p)) / (1 - math.exp(-5))
            assert made.scheduled(s)["top_k"] == math.ceil(round(20 - 17 * p, 9)), (kind, s)


def test_the_clipped_norm_leaves_thresholds_out() -> None:
    made = trainer(dictionary(act_fn="jumprelu"), clip_grad_norm=1e-3, lp_coefficient=20.0)
    x = rows(200)
    observation = made.step(TrainingBatch(0, x, x), observe=True)
    assert observation is not None
    free = trainer(dictionary(act_fn="jumprelu"), lp_coefficient=20.0)
    free.step(TrainingBatch(0, x, x))
    grads = gradients(free)
    assert float(grads["log_jumprelu_threshold"].norm()) > 0.02 * observation.figures()["grad_norm"]
    others = [grad.square().sum() for name, grad in grads.items() if name != "log_jumprelu_threshold"]
    assert observation.figures()["grad_norm"] == pytest.approx(float(torch.stack(others).sum().sqrt()), rel=1e-5)
    each = {f"grad_norm.{name}": float(grad.square().sum().sqrt()) for name, grad in grads.items()}  # before clipping
    figures = observation.figures()
    assert {name: value for name, value in figures.items() if name.startswith("grad_norm.")} == pytest.approx(each, rel=1e-5)
    torch.testing.assert_close(gradients(made)["log_jumprelu_threshold"], grads["log_jumprelu_threshold"])


@pytest.mark.parametrize("parts", [1, 4])
def test_auxk_leaves_out_features_that_the_step_itself_opens(parts: int) -> None:
    """A feature that was silent for dead_threshold tokens and opens in this very step is not dead (Gao et al. count first)."""
    made = dictionary(act_fn="topk", top_k=2)
    x = rows(16)
    step = trainer(made, auxk_coefficient=1.0, k_aux=4, dead_threshold=100, gradient_accumulation_steps=parts, lr=1e-9)
    opens = (made.encode(x * math.sqrt(D) / 2.0) > 0).any(0)
    assert opens.any()
    assert not opens.all()
    step.dead.tokens_since.fill_(84)  # 16 tokens more are 100: dead, but for those that open now
    before = {name: parameter.detach().clone() for name, parameter in made.named_parameters()}
    step.step(TrainingBatch(0, x, x))
    grad = made.get_parameter("W_D").grad
    assert grad is not None
    made.load_state_dict(before)
    y = x * math.sqrt(D) / 2.0
    codes, r = made.run(y)
    e_hat = torch.zeros_like(y)
    for b in range(len(y)):
        asleep = [i for i in codes.z[b].argsort(descending=True).tolist() if not opens[i]]
        for i in asleep[:4]:
            e_hat[b] = e_hat[b] + codes.h[b, i] * made.get_parameter("W_D")[i]
    loss = (y - r).square().sum(-1).mean() + ((y - r).detach() - e_hat).square().sum(-1).mean()
    (wanted,) = torch.autograd.grad(loss, [made.get_parameter("W_D")])
    torch.testing.assert_close(grad, wanted)


def test_auxk_is_off_while_every_silent_feature_opens_in_the_step() -> None:
    made = dictionary(act_fn="topk", top_k=F)  # every feature with a positive z opens
    x = torch.cat([rows(40), -rows(40)])
    assert (made.encode(x * math.sqrt(D) / 2.0) > 0).any(0).all()
    step = trainer(made, auxk_coefficient=1.0, dead_threshold=10)
    step.dead.tokens_since.fill_(10_000)
    observation = step.step(TrainingBatch(0, x, x), observe=True)
    assert observation is not None
    assert observation.figures()["auxk"] == 0.0
