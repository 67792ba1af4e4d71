"""Attribution against exhaustive ablation by plain hooks, exact for a linear metric; integrated gradients are complete."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch

from pipeline.errors import DataError
from pipeline.experiments import attribution
from pipeline.experiments.attribution import FeatureAttribution, attribute, logit_difference
from pipeline.progress import Progress
from pipeline.seeding import generator
from tests.experiments.conftest import KINDS, RESID, make
from tests.experiments.test_runs import LAYER, TEXT, by_hand, loss_of
from tests.messages import saying
from tests.project import D_MODEL

METHODS = ("integrated_gradients", "attribution_patching", "ablation")
OTHER = "the dog sat on the mat"


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    ranks = [x.argsort().argsort().double() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.mark.parametrize("method", METHODS)
def test_exact_for_a_linear_metric(double, method):
    """A direction read at the hook point itself: feature i contributes f_i (row i of W_dec) . direction."""
    made = make("sae")
    direction = torch.randn(D_MODEL, dtype=torch.float64, generator=generator(0, "tests", "direction"))
    found = attribute(
        double, made, TEXT, lambda run: (run.activations[LAYER] @ direction).sum(), method=method, hook_points=[LAYER], steps=3
    )
    f = made.encode(double.activations(TEXT, [LAYER])[LAYER]).detach()
    torch.testing.assert_close(found.effects, f * (made.W_dec.detach() @ direction), rtol=1e-9, atol=1e-9)
    assert found.gap == pytest.approx(0, abs=1e-8)
    assert found.metric != pytest.approx(found.baseline_metric, abs=0.1)


def test_ablation_is_that_of_a_hook_on_the_module(double):
    made = make("sae")
    ids = double.to_tokens(TEXT)
    f, W = made.encode(double.activations(ids, [LAYER])[LAYER]).detach(), made.W_dec.detach()
    found = attribute(double, made, TEXT, method="ablation")
    with torch.no_grad():
        whole = float(loss_of(by_hand(double, ids, lambda x: x), ids))
        for position, feature in (f[0] > 0).nonzero().tolist():

            def without(x, position=position, feature=feature):
                x = x.clone()
                x[0, position] -= f[0, position, feature] * W[feature]
                return x

            wanted = whole - float(loss_of(by_hand(double, ids, without), ids))
            assert float(found.effects[0, position, feature]) == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert int((found.effects != 0).sum()) == int((f[0, :-1] > 0).sum())  # no prediction follows the last token
    one = found.top(1)[0]
    same = attribute(double, made, TEXT, method="ablation", features=[one.feature])
    assert same.top(1)[0] == one
    assert {effect.feature for effect in same.top(99)} == {one.feature}
    assert one.token == double.to_str_tokens(TEXT)[one.position]
    assert one.activation == pytest.approx(float(f[0, one.position, int(one.feature)]))


@pytest.mark.filterwarnings("ignore:attribute, attribution_patching")
@pytest.mark.parametrize("name", KINDS)
def test_integrated_gradients_sum_to_the_difference_of_the_metric(double, name):
    """Within a thousandth of it at 32 points, for every kind; patching is the derivative at the run, by finite differences."""
    made = make(name)
    metric = logit_difference(double, " mat", " dog", -2)
    found = attribute(double, made, TEXT, metric, steps=32)
    difference = found.metric - found.baseline_metric
    assert abs(difference) > 1e-3
    assert abs(found.gap) < 1e-3 * abs(difference) + 1e-9
    patched = attribute(double, made, TEXT, metric, method="attribution_patching")
    assert (patched.metric, patched.baseline_metric) == (found.metric, found.baseline_metric)


@pytest.mark.filterwarnings("ignore:attribute, attribution_patching")
@pytest.mark.parametrize("name", ["sae", "clt"])
def test_patching_is_the_activation_times_the_derivative(double, name):
    from pipeline.experiments.runs import run_with_dictionaries

    made = make(name)
    found = attribute(double, made, TEXT, method="attribution_patching")
    for effect in found.top(3):
        values = [
            float(run_with_dictionaries(double, TEXT, made, add={effect.feature: (step, effect.position)}).loss.mean())
            for step in (1e-4, -1e-4)
        ]
        assert effect.effect == pytest.approx(effect.activation * (values[0] - values[1]) / 2e-4, rel=1e-4)


@pytest.mark.filterwarnings("ignore:attribute, attribution_patching")
def test_the_order_is_that_of_exhaustive_ablation(double):
    """Rank correlations over all active features and positions; single features are small beside the activation, as in use."""
    made = make("sae", top_k=12)
    with torch.no_grad():
        made.get_parameter("W_D").mul_(0.1)
    exact = attribute(double, made, TEXT, method="ablation").effects
    active = exact != 0
    assert int(active.sum()) > 40
    assert not torch.allclose(exact, attribute(double, made, TEXT).effects, rtol=0.05)  # the metric is far from linear
    for method in ("integrated_gradients", "attribution_patching"):
        found = attribute(double, made, TEXT, method=method).effects
        assert spearman(found[active], exact[active]) > 0.9, method


def test_another_text_as_the_baseline(double):
    """Then the error term takes part, and both sum to the difference to the run with that text's activation patched in."""
    made = make("sae")
    ids, other = double.to_tokens(TEXT), double.to_tokens(OTHER)
    there = double.activations(other, [LAYER])[LAYER]
    with torch.no_grad():
        wanted = float(loss_of(by_hand(double, ids, lambda x: there), ids))
    found = attribute(double, made, TEXT, baseline=OTHER, steps=32)
    assert found.baseline_metric == pytest.approx(wanted, rel=1e-9)
    assert abs(found.gap) < 1e-3 * abs(found.metric - found.baseline_metric)
    assert float(found.error_effects.abs().sum()) > 0
    same = (double.activations(ids, [LAYER])[LAYER] == there).all(-1)  # tokens before the first that differs
    assert float(found.effects[same].abs().sum()) == 0
    assert bool(same.any())
    assert not bool(same.all())


def test_what_is_refused(double):
    sae = make("sae")
    for change, parts in (
        ({"method": "gradients"}, ("method", "gradients", "integrated_gradients")),
        ({"steps": 0}, ("steps:", 0)),
        ({"metric": lambda run: run.logits}, ("metric:", "one number", "shape")),
        ({"metric": lambda run: 3.0}, ("metric:", "float")),
        ({"metric": lambda run: run.tokens.sum()}, ("metric:", "does not depend")),
        ({"metric": lambda run: run.activations["blocks.0.hook_attn_out"].sum(), "hook_points": ["blocks.0.hook_attn_out"]}, ("metric:", "does not depend")),
        ({"top": 0, "method": "ablation"}, ("top:", "whole number of at least 1", 0)),
        ({"top": 5}, ("top:", "method='ablation'", "integrated_gradients")),
        ({"features": [3]}, ("features:", "method='ablation'", "integrated_gradients")),
        ({"features": 3, "method": "ablation"}, ("features:", "a list of features", "got 3")),
        ({"features": [3.5], "method": "ablation"}, ("feature:", "513", 3.5)),
        ({"metric": "los"}, ("metric:", "'loss'", "'los'")),
        ({"metric": None}, ("metric:", "'loss'", "None")),
        ({"hook_points": LAYER}, ("hook_points:", "a list of names", f"'{LAYER}'")),
        ({"baseline": "the cat"}, ("baseline:", "[1, 6]", "[1, 2]")),
    ):  # fmt: skip
        with pytest.raises(DataError, match=saying(*parts)):
            attribute(double, sae, TEXT, **change)
    with pytest.raises(DataError, match=saying("baseline:", "'clt'", 2)):
        attribute(double, make("clt"), TEXT, baseline=OTHER)


def test_arguments_of_another_kind_are_refused(double):
    sae = make("sae")
    for given, parts in (
        ((sae, double, TEXT), ("attribute: model:", "load_language_model(name)")),
        ((double, "data/inference/main", TEXT), ("attribute: dictionary:", "load_dictionary(path)", "'data/inference/main'")),
        ((double, sae, None), ("a text", "None")),
        ((double, sae, [5]), ("metric 'loss'", "at least two tokens")),
    ):
        with pytest.raises(DataError, match=saying(*parts)):
            attribute(*given)


def test_a_logit_difference_says_what_it_lacks(double):
    n, sae = double.to_tokens(TEXT).shape[1], make("sae")
    for given, parts in (
        ((double, 3), ("logit_difference:", "'wrong'")),
        ((double, 3, None), ("wrong:", "a text of one token", "None")),
        ((double, 3, 3), ("the same token", "(3)", "two different ones")),
        ((double, " mat", double.to_single_token(" mat")), ("the same token, ' mat'",)),
        ((double, 3, 10**6), ("token id 1000000", f"(0 to {double.vocab_size - 1})")),
        ((double, 3, -1), ("token id -1",)),
        ((double, 3, 4, "2"), ("position:", "'2'")),
        ((TEXT, 3, 4), ("model:", "load_language_model(name)")),
    ):
        with pytest.raises(DataError, match=saying(*parts)):
            logit_difference(*given)
    for position in (n, -n - 1):
        with pytest.raises(DataError, match=saying(f"position {position}", f"{n} tokens", f"0 to {n - 1}")):
            attribute(double, sae, TEXT, logit_difference(double, 3, 4, position))


def test_what_is_shown_says_whether_it_is_summed(double):
    """At single positions by `top`, over all of them by `top_features` and the repr."""
    found = attribute(double, make("sae"), TEXT)
    at, summed = repr(found.top(3)), repr(found.top_features(3))
    assert at.splitlines()[0].startswith("effect of one feature at one position")
    assert "position" in at.splitlines()[1]
    assert len(at.splitlines()) == 2 + 3
    assert summed.splitlines()[0].startswith("effect of one feature summed over all positions")
    sums = found.effects.sum((0, 1))
    for name, effect in found.top_features(3):
        assert effect == pytest.approx(float(sums[int(name)]))
        assert f"{name} {effect:+.3g}" in repr(found).partition("summed over positions: ")[2]
    with pytest.raises(DataError, match=saying("top: n:", "at least 1", 0)):
        found.top(0)


def test_a_residual_crosscoder_counts_once(double):
    """Of the hook points in the stream the last one alone is edited: what is added early would stay in it."""
    made = make("crosscoder")
    late = RESID.format(1)
    direction = torch.ones(D_MODEL, dtype=torch.float64)
    found = attribute(double, made, TEXT, lambda run: (run.activations[late] @ direction).sum(), hook_points=[late], steps=2)
    f = made.encode(torch.stack(list(double.activations(TEXT, made.hooks_in).values()), -2)).detach()
    wanted = f * (made.feature_directions(late).detach() @ direction)
    torch.testing.assert_close(found.effects, wanted, rtol=1e-9, atol=1e-9)


def test_integrated_gradients_over_too_few_steps_say_so(double):
    """A metric of f that is a cosine of several turns: the derivative at a few points says nothing of the way from 0.

    Effects of single features, and their approximation, have a gap there too, which is no fault of theirs.
    """
    made = make("sae")
    direction = torch.randn(D_MODEL, dtype=torch.float64, generator=generator(0, "tests", "direction"))

    def linear(run):
        return (run.activations[LAYER] @ direction).sum()

    def bent(run):
        return torch.cos(4 * linear(run))

    given = {"hook_points": [LAYER], "method": "attribution_patching"}
    with pytest.warns(UserWarning, match="attribute, integrated_gradients: gap .* should sum to: take more steps") as seen:
        found = attribute(double, made, TEXT, bent, hook_points=[LAYER], steps=1)
    assert len(seen) == 1
    assert abs(found.gap) > 0.1 * abs(found.metric - found.baseline_metric)
    assert found.doubt in repr(found)
    assert f"gap {found.gap:.3g} of a difference of {found.metric - found.baseline_metric:.3g}" in found.doubt
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in METHODS:
            trusted = attribute(double, made, TEXT, linear, **given | {"method": method})
            assert trusted.doubt == ""
            assert "steps" not in repr(trusted)
        patched = attribute(double, made, TEXT, bent, **given)
        assert abs(patched.gap) > 0.5 * abs(patched.metric - patched.baseline_metric)
        assert patched.doubt == ""
        exact = attribute(double, made, TEXT, bent, **given | {"method": "ablation"})
        assert exact.doubt == ""
        n = int((exact.features != 0).sum())
        assert exact.looked_at == (n, n)
        assert f"each place alone taken away; all {n} places, summed" in repr(exact)
        assert "gap" not in repr(exact)
        few = attribute(double, made, TEXT, bent, **given | {"method": "ablation", "top": 2})
        assert few.looked_at == (2, n)
        assert f"the 2 looked at of {n} places" in repr(few)
        assert attribute(double, made, TEXT, bent, hook_points=[LAYER], steps=128).doubt == ""


@pytest.mark.parametrize(
    ("method", "effect", "trusted"),
    [
        ("attribution_patching", -9.0, True),
        ("integrated_gradients", 1.85, True),
        ("integrated_gradients", 1.75, False),
        ("integrated_gradients", 2.25, False),
        ("integrated_gradients", -2.0, False),
        ("integrated_gradients", float("nan"), False),
        ("ablation", 9.0, True),
    ],
)
def test_how_large_a_gap_may_be(method, effect, trusted):
    """A tenth of the difference of 2, or any."""
    f = torch.ones(1, 1, 1)
    found = FeatureAttribution(method, [["a"]], f, effect * f, torch.zeros(1, 1), 3.0, 1.0)
    assert (found.doubt == "") is trusted


@pytest.mark.parametrize("name", ["sae", "clt"])
def test_ablation_of_the_largest_alone(double, name):
    """The five that integrated gradients find largest, with the effects that they have among all; the rest stays 0."""
    made = make(name)
    every = attribute(double, made, TEXT, method="ablation").effects
    estimate = attribute(double, made, TEXT, method="attribution_patching").effects.abs().flatten()
    wanted = torch.zeros_like(every).flatten()
    largest = estimate.topk(5).indices
    wanted[largest] = every.flatten()[largest]
    found = attribute(double, made, TEXT, method="ablation", top=5)
    torch.testing.assert_close(found.effects.flatten(), wanted, rtol=1e-12, atol=0)
    assert int((every != 0).sum()) > 5
    all_of_them = attribute(double, made, TEXT, method="ablation", top=10_000)
    assert torch.equal(all_of_them.effects, every)
    feature = found.top(1)[0].feature
    one = attribute(double, made, TEXT, method="ablation", features=[feature], top=1)
    assert [effect.feature for effect in one.top(9)] == [feature]


def test_ablation_says_how_far_it_has_come(double, monkeypatch, capsys):
    made = make("sae")
    attribute(double, made, TEXT, method="ablation", top=3)
    assert capsys.readouterr().err == ""  # over at once
    monkeypatch.setattr(attribution, "Progress", functools.partial(Progress, every_seconds=0.0))
    attribute(double, made, TEXT, method="ablation", top=3)
    lines = capsys.readouterr().err.splitlines()
    assert "ablation" in lines[0]
    assert "1/3 runs" in lines[0]
    assert "100%" in lines[-1]
