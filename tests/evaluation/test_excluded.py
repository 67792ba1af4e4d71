"""An evaluation in a language model with massive tokens, against runs of the plain transformers model.

The limit of the norms is put where some tokens of the tiny model are above it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import NumericsError
from pipeline.evaluation.language_model import constant_replacements, splice_replacements
from pipeline.evaluation.massive import MassiveTokens
from pipeline.evaluation.raw_space import RawDictionary
from tests.evaluation import naive
from tests.evaluation.test_hook_points_alone import CROSSCODER
from tests.evaluation.test_report import SAE, TRANSCODER, Case, _assert_equal
from tests.evaluation.tiny import MLP_IN, MLP_OUT, held_out, hooked_run
from tests.messages import saying

EARLY, LATE = CROSSCODER["hook_points_in"]
FACTOR = 4.0


def limited(exact, config: dict, hooks: dict[str, float], *, rule: bool = True) -> tuple[Case, Tensor]:
    """A case in float64 whose tokens above a quantile of the norms at each of `hooks` are massive; which are, bool [b, T]."""
    case = Case(exact[0], config)
    massive = torch.zeros_like(case.mask)
    norms = {hook: {**plain(norm), "median_norm": 1e6} for hook, norm in case.norms.items()}
    for hook, share in hooks.items():
        length = case.activations[hook].norm(dim=-1)
        ordered = length[case.mask].sort().values
        below = int(share * (len(ordered) - 1))
        limit = float(ordered[below : below + 2].mean())  # between two tokens, so that no rounding decides about one
        massive |= length > limit
        norms[hook] = {**norms[hook], "median_norm": limit / (FACTOR if rule else 10.0)}
        if rule:
            norms[hook]["max_norm_factor"] = FACTOR
    case.dictionary.double()
    case.dictionary.config = dataclasses.replace(case.dictionary.config, norms=norms)
    massive &= case.mask
    assert 3 < int(massive.sum()) < int(case.mask.sum()) // 2
    return case, massive


def plain(norm) -> dict:
    return {"mean_norm": norm.mean_norm, "mean_square": norm.mean_square, "d": norm.d}


def features_and_reconstruction(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    x = torch.stack([case.activations[hook] for hook in case.dictionary.hooks_in], dim=-2)
    with torch.no_grad():
        codes, x_hat = case.dictionary.run(x if x.shape[-2] > 1 else x[..., 0, :])
    several = len(case.dictionary.hooks_out) > 1
    x_hats = {hook: x_hat[..., p, :] if several else x_hat for p, hook in enumerate(case.dictionary.hooks_out)}
    return codes.f, x_hats


def naive_runs(case: Case, module: nn.Module, where: nn.Module, x_hat: Tensor, replaced: Tensor, rank: int) -> dict[str, float]:
    """Cross entropies of all kept predictions, with the activations of `replaced` tokens replaced."""
    (hook,) = case.dictionary.hooks_out
    principal, keep = case.principal[hook], replaced[..., None]
    v = principal.directions[:rank]
    news = {
        "original": lambda x: x,
        "spliced": lambda x: x_hat,
        "zero": torch.zeros_like,
        "mean": lambda x: principal.mean.expand_as(x),
        "pca": lambda x: principal.mean + (x - principal.mean) @ v.T @ v,
    }
    logits = {
        name: hooked_run(module, case.ids, where, lambda x, new=new: torch.where(keep, new(x), x)).numpy()
        for name, new in news.items()
    }
    mask = case.mask.numpy()
    ce = {name: naive.cross_entropy(run, case.tokens, mask) for name, run in logits.items()}
    return {
        **{f"ce_{name}": ce[name] for name in ("original", "spliced", "zero", "mean")},
        "delta_ce": ce["spliced"] - ce["original"],
        "loss_recovered_zero": (ce["zero"] - ce["spliced"]) / (ce["zero"] - ce["original"]),
        "loss_recovered_mean": (ce["mean"] - ce["spliced"]) / (ce["mean"] - ce["original"]),
        "pca_delta_ce": ce["pca"] - ce["original"],
        "kl": naive.kl(logits["original"], logits["spliced"], mask),
        "kl_zero": naive.kl(logits["original"], logits["zero"], mask),
    }


@pytest.mark.parametrize("rule", [True, False], ids=["rule", "no rule"])
@pytest.mark.parametrize("limits", [{MLP_IN: 0.9}, {MLP_OUT: 0.85}, None], ids=["read", "written", "sae"])
def test_every_metric_equals_the_naive_one(exact, limits, rule):
    """Massive by what is read or by what is written; with the rule massive tokens keep their activation in every run."""
    config = SAE if limits is None else TRANSCODER
    case, massive = limited(exact, config, limits or {SAE["hook_point_in"]: 0.9}, rule=rule)
    got, kept = case.evaluate().metrics, case.mask
    f, x_hats = features_and_reconstruction(case)
    ((hook, x_hat),) = x_hats.items()
    apart = massive[kept].numpy()
    _assert_equal(got, naive.reconstruction(case.activations[hook][kept].numpy(), x_hat[kept].numpy(), apart))
    _assert_equal(got, naive.sparsity(f[kept].numpy(), apart))
    n, total = int(massive.sum()), int(kept.sum())
    tokens = {
        "evaluated_tokens": total,
        "predicted_tokens": int(kept[:, 1:].sum()),
        "massive_tokens": n,
        "massive_fraction": n / total,
    }
    _assert_equal(got, tokens | {"excluded_tokens": n * rule, "excluded_fraction": n / total * rule})
    module = exact[1]
    layer = module.gpt_neox.layers[1]
    rank = int(got["pca_rank"])
    assert rank == round(got["l0_mean_ordinary"])
    replaced = kept & ~massive if rule else kept
    _assert_equal(got, naive_runs(case, module, layer if config is SAE else layer.mlp, x_hat, replaced, rank))
    y, principal = case.activations[hook][kept & ~massive], case.principal[hook]
    v = principal.directions[:rank]
    error = (y - principal.mean - (y - principal.mean) @ v.T @ v).square().sum()
    assert got["pca_fvu_ordinary"] == pytest.approx(float(error / (y - y.mean(0)).square().sum()), rel=1e-6)


def test_a_token_is_excluded_at_every_hook_point_if_it_is_massive_at_one(exact):
    case, massive = limited(exact, CROSSCODER, {LATE: 0.9})
    got = case.evaluate().metrics
    kept, module = case.mask, exact[1]
    _, x_hats = features_and_reconstruction(case)
    assert got["massive_tokens"] == int(massive.sum())
    for p, hook in enumerate((EARLY, LATE)):
        x, x_hat = case.activations[hook], x_hats[hook]
        want = naive.reconstruction(x[kept].numpy(), x_hat[kept].numpy(), massive[kept].numpy())
        for name in ("fvu", "fvu_ordinary", "explained_variance_ordinary", "zero_fvu_ordinary"):
            assert got[f"{name}.{hook}"] == pytest.approx(want[name], rel=1e-6), (name, hook)
        replaced = (kept & ~massive)[..., None]
        for name, new in (("spliced", lambda x, x_hat=x_hat: x_hat), ("zero", torch.zeros_like)):
            splice = lambda x, new=new, replaced=replaced: torch.where(replaced, new(x), x)  # noqa: E731
            logits = hooked_run(module, case.ids, module.gpt_neox.layers[p], splice)
            want_ce = naive.cross_entropy(logits.numpy(), case.tokens, kept.numpy())
            assert got[f"ce_{name}.{hook}"] == pytest.approx(want_ce, rel=1e-6), (name, hook)


def test_where_no_token_is_massive_the_figures_are_the_plain_ones(exact):
    case, _ = limited(exact, CROSSCODER, {LATE: 0.9})
    config = case.dictionary.config
    far = {hook: {**norm, "median_norm": 1e6, "max_norm_factor": 10.0} for hook, norm in config.norms.items()}
    case.dictionary.config = dataclasses.replace(config, norms=far)
    got = case.evaluate().metrics
    unknown = {hook: plain(norm) for hook, norm in case.norms.items()}
    case.dictionary.config = dataclasses.replace(config, norms=unknown)
    assert case.evaluate().metrics == got
    assert got["massive_tokens"] == got["excluded_tokens"] == 0.0
    ordinary = [name for name in got if "_ordinary" in name]
    assert len(ordinary) == 3 * 6 + 2  # those of reconstructions and PCA with intervals, and of both hook points; L0 and dead
    for name in ordinary:
        assert got[name] == got[name.replace("_ordinary", "")], name


@pytest.mark.parametrize("rule", [True, False], ids=["rule", "no rule"])
def test_an_excluded_token_keeps_its_own_activation_bit_for_bit(model, exact, rule):
    """What each function puts in an activation's place, that of the spliced run, which differs from the run as it is."""
    case, massive = limited(exact, SAE, {SAE["hook_point_in"]: 0.9}, rule=rule)
    (hook,) = case.hooks
    raw = RawDictionary(case.dictionary)
    seen = MassiveTokens(raw, torch.device("cpu"))
    (batch,) = held_out(case.tokens, batch_contexts=len(case.tokens))
    tokens = seen.find(batch, case.activations)
    known = raw(case.activations, case.activations, tokens.kept, tokens.massive)
    changed = case.activations[hook] + 0.125
    functions = {
        "spliced": splice_replacements(raw, case.activations, known.x_hats, tokens)[hook],
        "zero": constant_replacements({hook: torch.zeros(16)}, tokens.replaced)[hook],
    }
    for name, function in functions.items():
        new = function({}, changed)
        stays = (new == changed).all(-1)
        assert torch.equal(stays, ~case.mask | massive if rule else ~case.mask), name
        assert torch.equal(new[stays], changed[stays]), name
    assert torch.equal(seen.masks(batch).replaced, tokens.replaced)
    assert (seen.n_massive, seen.n_excluded) == (int(massive.sum()), int(massive.sum()) * rule)


def test_results_with_massive_tokens_do_not_depend_on_the_batches(exact):
    case, _ = limited(exact, CROSSCODER, {LATE: 0.9, EARLY: 0.95})
    few, many = case.evaluate(batch_contexts=2).metrics, case.evaluate(batch_contexts=9).metrics
    assert few.keys() == many.keys()
    _assert_equal(few, many)


def test_a_model_of_other_activations_is_refused(exact):
    case, _ = limited(exact, SAE, {SAE["hook_point_in"]: 0.9})
    (hook,) = case.hooks
    norms = {hook: {**case.dictionary.config.norms[hook], "median_norm": 1e-3}}
    case.dictionary.config = dataclasses.replace(case.dictionary.config, norms=norms)
    with pytest.raises(NumericsError, match=saying(int(case.mask.sum()), "massive", f"{hook} 0.004")):
        case.evaluate()


def test_massive_tokens_may_differ_between_hook_points(exact):
    """At two hook points at once: the union."""
    case, massive = limited(exact, CROSSCODER, {LATE: 0.9, EARLY: 0.9})
    lengths = [case.activations[hook].norm(dim=-1) for hook in (EARLY, LATE)]
    limits = [np.quantile(length[case.mask].numpy(), 0.9) for length in lengths]
    each = [int(((length > limit) & case.mask).sum()) for length, limit in zip(lengths, limits, strict=True)]
    assert max(each) < int(massive.sum())
    assert case.evaluate().metrics["excluded_tokens"] == int(massive.sum())


def test_massive_tokens_do_not_raise_the_rank_of_pca(exact):
    """Thresholds that short activations do not reach: massive tokens open more features than the others do."""
    case, massive = limited(exact, {**SAE, "act_fn": "relu"}, {SAE["hook_point_in"]: 0.7})
    with torch.no_grad():
        f, _ = features_and_reconstruction(case)
        case.dictionary.get_parameter("b_E").sub_(float(f[case.mask & ~massive].quantile(0.8)))
    f, _ = features_and_reconstruction(case)
    l0 = (f > 0).sum(-1).double()
    rank = round(float(l0[case.mask & ~massive].mean()))
    assert rank < round(float(l0[case.mask].mean())) <= 16
    got = case.evaluate().metrics
    assert got["pca_rank"] == rank
    assert got["l0_mean"] == pytest.approx(float(l0[case.mask].mean()))
