"""How much each feature, at each position, does to a number of a run: attribution patching, integrated gradients, ablation.

With m(f) the number as a function of the features that are decoded, the error term held, and f0 the baseline (zero, or the
features of another text):

    attribution_patching    a_i = (f_i - f0_i) dm/df_i at f
    integrated_gradients    a_i = (f_i - f0_i) int_0^1 dm/df_i at f0 + t (f - f0) dt       sums to m(f) - m(f0)
    ablation                a_i = m(f) - m(f with f_i := f0_i)                             exact, a run for each

The integral is a Gauss-Legendre sum. What the effects leave open of m(f) - m(f0) is the gap: of integrated gradients the
error of that sum, of attribution patching what is not linear. Where it is large beside m(f) - m(f0), the effects do not say
what features do.

Sources: Sundararajan et al. 2017 (integrated gradients); Nanda 2023, Syed et al. 2023 (attribution patching); Marks et al. 2024
(arXiv 2403.19647) for both on features with error terms.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.analysis.texts import feature_index, feature_name
from pipeline.arguments import checked, is_whole, names, whole
from pipeline.dictionaries.given import A_DICTIONARY
from pipeline.errors import DataError, unknown_name
from pipeline.experiments.placed import PlacedDictionary
from pipeline.experiments.runs import run_with_dictionaries
from pipeline.lm.given import A_MODEL
from pipeline.lm.language_model import Output
from pipeline.lm.splicing import Replacement
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.lm.text_input import Tokens
    from pipeline.norms.hook_norm import HookNorm

Metric = Callable[[Output], Tensor]
Method = Literal["integrated_gradients", "attribution_patching", "ablation"]
METHODS = ("integrated_gradients", "attribution_patching", "ablation")
# Largest gap as a share of the difference that the effects should sum to. A sum for an integral is meant to be near; a linear
# approximation that misses more than half of the difference can have the wrong sign.
LARGE_GAP = 0.1  # of integrated gradients, as a share of the difference that they sum to


class Effect(NamedTuple):
    """What one feature does at one position.

    Attributes:
        feature: `513`, or `2/513` for feature 513 of layer 2.
        context, position: of the token.
        token: its text.
        activation: there, in the dictionary's units.
        effect: its share of the metric, in the metric's units.
    """

    feature: str
    context: int
    position: int
    token: str
    activation: float
    effect: float


class Effects(list[Effect]):
    """Effects of features, each at one position; its repr is a table that says so."""

    def __repr__(self) -> str:
        lines = ["effect of one feature at one position, in the metric's units (over all positions: top_features)"]
        lines.append(f"{'feature':>8} {'context':>7} {'position':>8} {'activation':>10} {'effect':>10}  token")
        for one in self:
            place = f"{one.feature:>8} {one.context:>7} {one.position:>8}"
            lines.append(f"{place} {one.activation:>10.3g} {one.effect:>+10.3g}  {one.token!a}")
        return "\n".join(lines)


class FeatureSums(list[tuple[str, float]]):
    """(feature, effect summed over positions); its repr is a table that says so."""

    def __repr__(self) -> str:
        lines = ["effect of one feature summed over all positions, in the metric's units (at each position: top)"]
        lines.append(f"{'feature':>8} {'effect':>10}")
        lines += [f"{name:>8} {effect:>+10.3g}" for name, effect in self]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class FeatureAttribution:
    """What each feature does to a number of a run.

    `top(n)` gives the largest effects at single positions, `top_features(n)` the largest sums over positions, which is also
    what the repr shows.

    Attributes:
        method: see `attribute`.
        tokens: text of each token, [b][T].
        features: activations [b, T, *feature_shape].
        effects: [b, T, *feature_shape], in the metric's units; 0 where a feature is what it is in the baseline, and, of the
            method ablation, where it was not looked at.
        error_effects: [b, T], of the error term; 0 without a baseline text, when it is held, and of the method ablation.
        metric, baseline_metric: the number in the run as it is, and with features (and error term) of the baseline.
        looked_at: of the method ablation, how many places (a feature at a position) were looked at, and how many there are;
            None of other methods, which look at all.
    """

    method: str
    tokens: list[list[str]]
    features: Tensor
    effects: Tensor
    error_effects: Tensor
    metric: float
    baseline_metric: float
    looked_at: tuple[int, int] | None = None

    @property
    def gap(self) -> float:
        """What the effects leave open of metric - baseline_metric: of integrated gradients the error of the sum for the
        integral; of attribution patching and ablation, which are of single features, what features do only together."""
        total = float(self.effects.sum(dtype=torch.float64)) + float(self.error_effects.sum(dtype=torch.float64))
        return self.metric - self.baseline_metric - total

    @property
    def doubt(self) -> str:
        """Why the effects are not what the method says, and what to do, in one line; "" where nothing speaks against them.

        Integrated gradients whose gap is more than a tenth of the difference of metric and baseline_metric were summed over too
        few steps. The gap of the others is no fault of theirs.
        """
        difference = self.metric - self.baseline_metric
        if self.method != "integrated_gradients" or abs(self.gap) <= LARGE_GAP * abs(difference):
            return ""
        return (
            f"gap {self.gap:.3g} of a difference of {difference:.3g} to the baseline, which the effects should sum to: "
            "take more steps"
        )

    def by_feature(self) -> Tensor:
        """Effects summed over contexts and positions, [*feature_shape]."""
        return self.effects.sum((0, 1))

    @checked(n=whole(1))
    def top(self, n: int = 10) -> Effects:
        """The n largest effects of a feature at a position, by size; fewer where there are fewer that are not 0.

        A feature that acts at several positions is there several times: `top_features` has its sum.
        """
        shape = self.effects.shape
        flat = self.effects.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:n]
        found = Effects()
        for index in order[flat[order] != 0].tolist():
            context, position, *place = (int(i) for i in torch.unravel_index(torch.tensor(index), shape))
            name = "/".join(map(str, place))
            token = self.tokens[context][position]
            found.append(Effect(name, context, position, token, float(self.features.flatten()[index]), float(flat[index])))
        return found

    @checked(n=whole(1))
    def top_features(self, n: int = 10) -> FeatureSums:
        """(feature, effect summed over contexts and positions) of the n largest sums, by size."""
        sums = self.by_feature().flatten()
        order = sums.abs().argsort(descending=True, stable=True)[:n]
        shape = self.effects.shape[2:]
        return FeatureSums((feature_name(int(i), shape), float(sums[i])) for i in order if float(sums[i]) != 0)

    def __repr__(self) -> str:
        first = ", ".join(f"{name} {effect:+.3g}" for name, effect in self.top_features(5)) or "none"
        ends = f"{self.method}, metric {self.metric:.4g}, baseline {self.baseline_metric:.4g}"
        if self.looked_at is not None:
            few, every = self.looked_at
            which = f"the {few} looked at of {every} places" if few < every else f"all {every} places"
            return f"FeatureAttribution({ends}; each place alone taken away; {which}, summed over positions: {first})"
        return (
            f"FeatureAttribution({ends}, gap {self.gap:.2g}; summed over positions: {first}"
            f"{f'; {self.doubt}' if self.doubt else ''})"
        )


def _token(value: object) -> str:
    """What is wanted in the place of a token."""
    return "" if isinstance(value, str) or is_whole(value) else "a text of one token, such as ' cat', or a token id"


@checked(model=A_MODEL, right=_token, wrong=_token, position=whole())
def logit_difference(model: LanguageModel, right: str | int, wrong: str | int, position: int = -1) -> Metric:
    """The metric logit(right) - logit(wrong) at a position, meaned over contexts.

    Args:
        model: whose tokens they are.
        right, wrong: texts of one token, such as " cat", or token ids.
        position: of the token after which is predicted, from 0; -1: the last one, -2 the one before it.

    Raises:
        DataError: a text of several tokens, an id that the model does not have, or the same token twice; when used, a position
            beyond the text.
    """
    first, second = (model.to_single_token(each) if isinstance(each, str) else int(each) for each in (right, wrong))
    for token in (first, second):
        if not 0 <= token < model.vocab_size:
            raise DataError(
                f"logit_difference: token id {token} is outside the vocabulary of {model.name} (0 to {model.vocab_size - 1})"
            )
    if first == second:
        shown = model.token_text(first)
        raise DataError(
            f"logit_difference: 'right' and 'wrong' are the same token, {shown!r} ({first}), whose difference is always 0; "
            "give two different ones, as logit_difference(model, ' cat', ' dog')"
        )

    def difference(run: Output) -> Tensor:
        n_tokens = run.logits.shape[1]
        if not -n_tokens <= position < n_tokens:
            raise DataError(
                f"logit_difference: position {position} is out of range; the text has {n_tokens} tokens, positions 0 to "
                f"{n_tokens - 1}, or -1 for the last one"
            )
        return (run.logits[:, position, first] - run.logits[:, position, second]).mean()

    return difference


def mean_loss(run: Output) -> Tensor:
    """The metric "loss": mean cross entropy of all predictions, nats a token.

    Raises:
        DataError: there is no prediction to compare: the text has one token.
    """
    if run.loss.numel() == 0:
        raise DataError("metric 'loss': wanted a text of at least two tokens, got one; give a longer text or another metric")
    return run.loss.mean()


def _metric(value: object) -> str:
    """What is wanted in the place of a metric."""
    right = callable(value) or (isinstance(value, str) and value == "loss")
    return (
        "" if right else "'loss', or a function of the run that gives one number, such as logit_difference(model, ' a', ' b')"
    )


def _features(value: object) -> str:
    """What is wanted in the place of features to look at."""
    return "" if isinstance(value, Sequence) and not isinstance(value, str) else "a list of features, such as [513, 7]"


@checked(
    model=A_MODEL,
    dictionary=A_DICTIONARY,
    metric=_metric,
    steps=whole(1),
    top=whole(1),
    features=_features,
    hook_points=names,
)
def attribute(
    model: LanguageModel,
    dictionary: Dictionary,
    text: Tokens,
    metric: Metric | Literal["loss"] = "loss",
    *,
    method: Method = "integrated_gradients",
    baseline: Tokens | None = None,
    steps: int = 16,
    features: Sequence[int | str] | None = None,
    top: int | None = None,
    hook_points: Sequence[str] = (),
    norms: Mapping[str, HookNorm] | None = None,
    prepend_bos: bool | str = "auto",
) -> FeatureAttribution:
    """What each feature at each position does to a number of a run.

    Args:
        model: whole.
        dictionary: SAE, transcoder, cross-layer transcoder, Lorsa, or a crosscoder over layers of this model. Features are
            those of the model's own run; their decoded parts are changed, error terms and other features are held.
        text: a text, or token ids [b, T].
        metric: a function of the run (`logits`, `loss`, `activations` of `hook_points`) that gives one number, such as
            `logit_difference(model, " cat", " dog")`; or "loss".
        method: "integrated_gradients" (`steps` runs forward and back; each feature's share of the metric's difference to the
            baseline, to which they sum), "ablation" (what each active feature at each position does by itself, exact, a run for
            each; progress goes to standard error), "attribution_patching" (one run; the linear approximation of that).
        baseline: another text of as many tokens, whose features and error term take the place; None: features are 0, the error
            term is held.
        steps: points of the integral.
        features: of the method ablation, those that are looked at; None: all that are active.
        top: of the method ablation, how many of these, a feature at a position being one, are looked at: those with the largest
            effects by attribution patching, which needs a metric with a gradient; None: all.
        hook_points: whose activations the metric finds in the run.
        norms: {hook point: norm}, for a dictionary that is not folded.
        prepend_bos: see `LanguageModel.to_tokens`.

    Example:
        >>> found = attribute(model, sae, "The cat sat on the", logit_difference(model, " mat", " dog"))
        >>> found.top(5), found.gap

    Warns: integrated gradients were summed over too few steps, see `FeatureAttribution.doubt`.

    Raises:
        DataError: a metric that is not one number or has no gradient; texts of unequal length; a baseline text for a dictionary
            that writes several hook points; `top` below 1 or of another method; or as `run_with_dictionaries`.
    """
    if method not in METHODS:
        raise DataError(unknown_name("method", method, METHODS))
    if method != "ablation" and (top is not None or features is not None):
        given = "top" if top is not None else "features"
        raise DataError(
            f"attribute: {given}: wanted method='ablation', whose runs it limits, got method='{method}'; `.top(n)` and "
            "`.top_features(n)` list any result"
        )
    measured: Metric = mean_loss if metric == "loss" else metric
    function = _OfFeatures(model, dictionary, text, measured, baseline, hook_points, norms, prepend_bos)
    looked_at = None
    if method == "ablation":
        chosen = function.chosen(features)
        if top is not None and top < len(chosen):
            estimate = function.integrated([1.0], [1.0])[0].abs()
            chosen = chosen[estimate[tuple(chosen.T)].argsort(descending=True, stable=True)[:top].sort().values]
        looked_at = (len(chosen), len(function.chosen(None)))
        effects, error_effects = function.ablated(chosen), torch.zeros(function.f.shape[:2])
    else:
        points, weights = _points(steps) if method == "integrated_gradients" else ([1.0], [1.0])
        effects, error_effects = function.integrated(points, weights)
    texts = [model.to_str_tokens(row) for row in function.ids] if function.has_text else _numbers(function.ids)
    ends = function.at(1.0), function.at(0.0)
    found = FeatureAttribution(method, texts, function.f, effects, error_effects, *ends, looked_at)
    if found.doubt:
        warnings.warn(f"attribute, {method}: {found.doubt}", stacklevel=3)
    return found


def _points(steps: int) -> tuple[list[float], list[float]]:
    """Points and weights of the Gauss-Legendre sum on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(steps)
    return ((x + 1) / 2).tolist(), (w / 2).tolist()


def _numbers(ids: Tensor) -> list[list[str]]:
    return [[str(i) for i in row] for row in ids.tolist()]


class _OfFeatures:
    """The metric as a function of the decoded features and the rest, of which a point between baseline and run is taken."""

    def __init__(
        self,
        model: LanguageModel,
        dictionary: Dictionary,
        text: Tokens,
        metric: Metric,
        baseline: Tokens | None,
        hook_points: Sequence[str],
        norms: Mapping[str, HookNorm] | None,
        prepend_bos: bool | str,
    ) -> None:
        self.model, self.metric, self.hook_points = model, metric, list(hook_points)
        self.placed = PlacedDictionary(dictionary, model, norms)
        self.ids = model.to_tokens(text, prepend_bos)
        try:
            self.has_text = model.tokenizer is not None
        except DataError:
            self.has_text = False
        run = run_with_dictionaries(model, self.ids, dictionary, norms=norms)
        self.f, self.kept = run.only.encoded.detach(), run.only.kept
        self.f0 = torch.zeros_like(self.f)
        self.rest: dict[str, Tensor] = {}  # {hook point: how far what features do not carry is from that of the baseline}
        if baseline is not None:
            self._compare(run.activations, baseline, norms, prepend_bos)

    def _compare(
        self, activations: Mapping[str, Tensor], baseline: Tokens, norms: Mapping[str, HookNorm] | None, prepend_bos: bool | str
    ) -> None:
        placed = self.placed
        if len(placed.hooks_out) > 1:
            raise DataError(
                f"baseline: dictionary '{placed.dictionary.config.name}' writes {len(placed.hooks_out)} hook points, whose "
                "error terms depend on one another; leave the baseline out, then features are set to 0"
            )
        ids = self.model.to_tokens(baseline, prepend_bos)
        if ids.shape != self.ids.shape:
            raise DataError(
                f"baseline: wanted {list(self.ids.shape)} tokens as the text has, got {list(ids.shape)}; give texts of equal "
                "length"
            )
        other = run_with_dictionaries(self.model, ids, placed.dictionary, norms=norms)
        (hook,) = placed.hooks_out
        self.f0 = other.only.encoded.detach()
        parts = [
            y - self._decoded(f, hook, y, kept)
            for y, f, kept in (
                (activations[hook], self.f, self.kept),
                (other.activations[hook], self.f0, other.only.kept),
            )
        ]
        self.rest[hook] = parts[0] - parts[1]

    def _decoded(self, f: Tensor, hook: str, y: Tensor, kept: Tensor) -> Tensor:
        with torch.no_grad():
            return self.placed.written(self.placed.dictionary.decode_linear(f), hook, y, kept)

    def run(self, change: Tensor, errors: Mapping[str, Tensor], gradient: bool = False) -> Tensor:
        """The metric with the features changed by `change`, and what they do not carry by `errors`."""
        with torch.set_grad_enabled(gradient):
            decoded = self.placed.dictionary.decode_linear(change)

        def replacement(hook: str) -> Replacement:
            def replace(captured: Mapping[str, Tensor], original: Tensor) -> Tensor:
                new = original + self.placed.written(decoded, hook, original, self.kept).to(original.dtype)
                return new + errors[hook] if hook in errors else new

            return replace

        replace = {hook: replacement(hook) for hook in self.placed.standing}
        out = self.model.run(self.ids, replace=replace, hook_points=self.hook_points, gradient=gradient)
        with torch.set_grad_enabled(gradient):
            value = self.metric(out)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise DataError(f"metric: wanted one number (a tensor with one element), got {got}")
        if gradient and not value.requires_grad:
            raise DataError(
                "metric: it does not depend on the features; take it from what comes after the dictionary's hook point"
            )
        return value

    def _errors(self, t: float) -> dict[str, Tensor]:
        return {hook: (t - 1.0) * rest for hook, rest in self.rest.items()}

    def at(self, t: float) -> float:
        """The metric at baseline + t (run - baseline)."""
        return float(self.run((t - 1.0) * (self.f - self.f0), self._errors(t)))

    def integrated(self, points: Sequence[float], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Effects of features, and of the error term: differences times the weighted sum of the gradients at the points."""
        far = self.f - self.f0
        total = torch.zeros_like(far)
        totals = {hook: torch.zeros_like(rest) for hook, rest in self.rest.items()}
        for t, weight in zip(points, weights, strict=True):
            change = ((t - 1.0) * far).requires_grad_()
            errors = {hook: error.requires_grad_() for hook, error in self._errors(t).items()}
            value = self.run(change, errors, gradient=True)
            gradients = torch.autograd.grad(value, [change, *errors.values()], allow_unused=True)
            if gradients[0] is None:
                raise DataError(
                    "metric: it does not depend on the features; take it from what comes after the dictionary's hook point"
                )
            total += weight * gradients[0]
            for (_, sum_of), g in zip(totals.items(), gradients[1:], strict=True):
                if g is not None:
                    sum_of += weight * g
        effects = torch.zeros(far.shape[:2], dtype=far.dtype)
        for hook, gradient in totals.items():
            effects += (gradient * self.rest[hook]).sum(-1).to(effects)
        return (far * total).detach(), effects

    def chosen(self, features: Sequence[int | str] | None) -> Tensor:
        """Places [n, 2 + dimensions of feature_shape] in f of what is not as in the baseline, of these features (None: all)."""
        looked_at = self.f != self.f0
        if features is not None:
            own = torch.zeros(self.placed.dictionary.feature_shape, dtype=torch.bool, device=self.f.device)
            for feature in features:
                own.view(-1)[feature_index(feature, self.placed.dictionary.feature_shape)] = True
            looked_at = looked_at & own
        return looked_at.nonzero()

    def ablated(self, places: Tensor) -> Tensor:
        """Effects of single features at single positions, each by a run of its own; 0 elsewhere."""
        far = self.f - self.f0
        whole, effects = self.at(1.0), torch.zeros_like(far)
        progress = Progress("ablation", len(places), "runs")
        for place in places:
            index = tuple(place.tolist())
            change = torch.zeros_like(far)
            change[index] = -far[index]
            effects[index] = whole - float(self.run(change, {}))
            progress.update(1)
        progress.close_if_shown()
        return effects
