"""The loss of a batch: terms, weights, masks, AuxK, autocast; and `api.loss` on top of it."""

from __future__ import annotations

import pytest
import torch

from pipeline.api import loss
from pipeline.errors import ParamsError
from tests.training.cases import F, dictionary, rows


def test_total_is_the_plain_sum_of_weighted_terms() -> None:
    made = dictionary(act_fn="relu")
    x = rows(32)
    report = loss(made, x, sparsity_loss_type="power", l1_coefficient=0.25)
    f, n = made.encode(x), made.decoder_norms()
    l_rec = (made(x) - x).square().sum(-1).mean()
    power = (f * n).sum(-1).mean()
    torch.testing.assert_close(report.unweighted["l_rec"], l_rec)
    torch.testing.assert_close(report.unweighted["power"], power)
    torch.testing.assert_close(report.terms["power"], 0.25 * power)
    torch.testing.assert_close(report.total, l_rec + 0.25 * power)
    torch.testing.assert_close(report.total, sum(report.terms.values()))
    assert torch.equal(report.codes.f, f)


def test_every_term_is_there_weighted_and_unweighted() -> None:
    made, x = dictionary(act_fn="jumprelu"), rows(32)
    report = loss(made, x, sparsity_loss_type="tanh", l1_coefficient=0.5, lp_coefficient=0.125)
    z, theta = made.codes(x).z, made.thresholds()
    lp = (theta - z).relu().sum(-1).mean()
    torch.testing.assert_close(report.unweighted["lp"], lp)
    torch.testing.assert_close(report.terms["lp"], 0.125 * lp)
    torch.testing.assert_close(report.terms["tanh"], 0.5 * report.unweighted["tanh"])
    torch.testing.assert_close(report.total, sum(report.terms.values()))


def test_in_l0_mode_the_gate_has_the_loss_s_window() -> None:
    """d l_rec / d t with the l0 loss at next to no weight is that of a gate with window l0_bandwidth."""
    x = rows(64)
    found = []
    for fields in ({"sparsity_loss_type": "l0", "l0_bandwidth": 0.3, "l1_coefficient": 1e-12}, {}):
        made = dictionary(act_fn="jumprelu", jumprelu_threshold_window=2.0 if fields else 0.3)
        loss(made, x, **fields).total.backward()
        grad = made.log_jumprelu_threshold.grad
        assert grad is not None
        found.append(grad)
    assert float(found[1].abs().max()) > 0
    torch.testing.assert_close(found[0], found[1])


def test_matryoshka_is_the_mean_over_nested_prefixes() -> None:
    made, x = dictionary(act_fn="topk"), rows(32)
    widths = (6, 12, F)
    report = loss(made, x, matryoshka_widths=widths)
    f = made.encode(x)
    total = 0.0
    for width in widths:
        x_hat = sum(f[:, i : i + 1] * made.W_D[i] for i in range(width)) + made.b_D
        total = total + (x_hat - x).square().sum(-1).mean()
    torch.testing.assert_close(report.unweighted["l_rec"], total / 3)
    shares = loss(made, x, matryoshka_widths=(0.25, 0.5, 1.0))
    torch.testing.assert_close(shares.total, report.total)


def test_masked_tokens_count_nowhere() -> None:
    made = dictionary(act_fn="batchtopk")
    x = rows(40).reshape(4, 10, -1)
    mask = torch.rand(4, 10, generator=torch.Generator().manual_seed(0)) < 0.6
    report = loss(made, x, mask=mask, sparsity_loss_type="power")
    wild = torch.where(mask[..., None], x, 1e3)
    other = loss(made, wild, mask=mask, sparsity_loss_type="power")
    alone = loss(made, x[mask], sparsity_loss_type="power")
    for name, term in report.terms.items():
        torch.testing.assert_close(term, other.terms[name])
        torch.testing.assert_close(term, alone.terms[name])
    assert float(report.codes.f.detach()[~mask].abs().sum()) == 0.0


def test_auxk_term_is_written_out() -> None:
    made, x = dictionary(), rows(16)
    dead = torch.zeros(F, dtype=torch.bool)
    dead[[1, 4, 7]] = True
    report = loss(made, x, auxk_coefficient=0.5, k_aux=2, dead=dead)
    codes, r = made.run(x)
    e_hat = torch.zeros_like(x)
    for row in range(len(x)):
        best = sorted([1, 4, 7], key=lambda i: float(codes.z.detach()[row, i]), reverse=True)[:2]
        e_hat[row] = sum(codes.h[row, i] * made.get_parameter("W_D")[i] for i in best)
    wanted = ((x - r).detach() - e_hat).square().sum(-1).mean()
    torch.testing.assert_close(report.unweighted["auxk"], wanted)
    torch.testing.assert_close(report.terms["auxk"], 0.5 * wanted)
    report.total.backward()
    grads = made.get_parameter("W_D").grad
    assert grads is not None
    assert float(grads[1].abs().sum()) > 0


def test_auxk_is_zero_without_dead_features() -> None:
    made, x = dictionary(), rows(16)
    for dead in (None, torch.zeros(F, dtype=torch.bool)):
        report = loss(made, x, auxk_coefficient=0.5, dead=dead)
        assert float(report.terms["auxk"]) == 0.0
        torch.testing.assert_close(report.total, report.terms["l_rec"])


def test_auxk_takes_k_aux_dead_features_of_each_token() -> None:
    made, x = dictionary(), rows(16)
    dead = torch.arange(F) < 5
    codes, r = made.run(x)
    terms = {k_aux: loss(made, x, auxk_coefficient=0.5, dead=dead, k_aux=k_aux).unweighted["auxk"] for k_aux in (1, 3, 5)}
    found = {k_aux: float(term.detach()) for k_aux, term in terms.items()}
    for k_aux, value in found.items():
        e_hat = torch.zeros_like(x)
        for b in range(len(x)):
            for i in codes.z[b, :5].argsort(descending=True)[:k_aux].tolist():
                e_hat[b] += codes.h[b, i] * made.get_parameter("W_D")[i]
        assert value == pytest.approx(float((x - r - e_hat).square().sum(-1).mean().detach()), rel=1e-5)
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("amp_dtype", ["bfloat16", "float16"])
def test_reductions_stay_in_float32(amp_dtype: str) -> None:
    made, x = dictionary(act_fn="relu"), rows(64)
    exact = loss(made, x, sparsity_loss_type="power")
    report = loss(made, x, sparsity_loss_type="power", amp_dtype=amp_dtype)
    for name, term in report.terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, exact.terms[name], rtol=2e-2, atol=1e-3)
    assert report.codes.h.dtype != torch.float32
    report.total.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in made.parameters())


def test_nonsense_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"trainer\.sparsity_los_type: unknown key; did you mean 'sparsity_loss_type'"):
        loss(dictionary(), rows(4), sparsity_los_type="power")
    with pytest.raises(ParamsError, match=r"auxk_coefficient.*relu"):
        loss(dictionary(act_fn="relu"), rows(4), auxk_coefficient=0.1)
    with pytest.raises(ParamsError, match=r"trainer\.p"):
        loss(dictionary(), rows(4), p=0.5)
