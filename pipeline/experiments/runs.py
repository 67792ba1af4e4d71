"""A language model run with dictionaries in it: activations, features, error terms, logits and loss, edited or not.

    x_hat = D(f) + b           what the dictionary makes of the features (and of what passes by them)
    e     = x - x_hat          the error term
    x'    = D(f') + b + e      what the model goes on with, f' being the edited features

Without an edit x' is x bit for bit. The error term can be kept (gradients to what is before the dictionary are those of the
model itself), frozen (they flow through features alone) or dropped (the reconstruction alone takes the activation's place).
Source: Marks et al. 2024 (arXiv 2403.19647) for error terms as nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pipeline.arguments import ByName, checked, names, shown
from pipeline.dictionaries.given import dictionaries as given_dictionaries
from pipeline.errors import DataError, unknown_name
from pipeline.experiments.edits import Ablate, Values, edits_of
from pipeline.experiments.placed import PlacedDictionary, by_name
from pipeline.experiments.splice import ERRORS, Errors, Splice, check_written_once, clean_activations
from pipeline.lm.given import A_MODEL
from pipeline.lm.language_model import Output
from pipeline.lm.splicing import Replacement

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.lm.text_input import Tokens
    from pipeline.norms.hook_norm import HookNorm


@dataclass(frozen=True, repr=False)
class DictionaryRun:
    """What one dictionary has seen and done in a run.

    Attributes:
        dictionary: itself.
        kept: bool [b, T], the tokens that have features: no special ones, and none that it was trained without (massive ones).
            Others keep their own activation, which counts as error there.
        encoded: features [b, T, *feature_shape], in the dictionary's units, before edits.
        features: the same after edits: what is decoded.
        reconstructions: {written hook point: [b, T, d_out]} of `features`, raw; 0 where not kept.
        errors: {written hook point: [b, T, d_out]}, the activation before edits less the reconstruction of `encoded`, raw.
    """

    dictionary: Dictionary
    kept: Tensor
    encoded: Tensor
    features: Tensor
    reconstructions: dict[str, Tensor]
    errors: dict[str, Tensor]
    _nodes: tuple[Tensor, ...] = field(default=())

    def __repr__(self) -> str:
        active = (self.features.detach() != 0).sum() / self.kept.sum().clamp_min(1)
        return (
            f"DictionaryRun({self.dictionary.config.name}, features {list(self.features.shape)}, {int(self.kept.sum())} of "
            f"{self.kept.numel()} tokens kept, {float(active):.1f} active on each, writes {', '.join(self.reconstructions)})"
        )

    def gradient(self, of: Tensor, *, retain_graph: bool = True) -> Tensor:
        """The gradient of a number of the run in the features that are decoded, [b, T, *feature_shape].

        The error term is held. The gradient in the error term at a hook point is that in the run's `activations` there.

        Args:
            of: one number, such as `run.loss.mean()`, of a run with `grad=True`.
            retain_graph: so that further gradients of the run can be taken.

        Raises:
            DataError: the run has no gradients, or it is not one number.
        """
        if not isinstance(of, Tensor) or of.numel() != 1 or not of.requires_grad:
            got = "one without gradient" if isinstance(of, Tensor) and of.numel() == 1 else shown(of)
            raise DataError(f"gradient: wanted one number of a run with grad=True, got {got}")
        found = torch.autograd.grad(of, self._nodes, retain_graph=retain_graph, allow_unused=True)
        parts = [torch.zeros_like(node) if g is None else g for node, g in zip(self._nodes, found, strict=True)]
        return torch.stack(parts, -2) if len(self.dictionary.feature_shape) > 1 else parts[0]


@dataclass(frozen=True, eq=False, repr=False)
class ModelRun(Output):
    """One run of a language model with dictionaries in it.

    Attributes:
        tokens: int64 [b, T].
        logits: [b, T, V].
        activations: {hook point: [b, T, d]}, after edits.
        dictionaries: {name: what it has done}.
    """

    dictionaries: dict[str, DictionaryRun] = field(default_factory=dict)

    @property
    def features(self) -> Tensor:
        """Features after edits [b, T, *feature_shape], of a run with one dictionary.

        Raises:
            DataError: there are several.
        """
        return self.only.features

    @property
    def only(self) -> DictionaryRun:
        """What the one dictionary of the run has done.

        Raises:
            DataError: there are several, or none.
        """
        if len(self.dictionaries) != 1:
            known = ", ".join(self.dictionaries) or "none"
            raise DataError(f"the run has {len(self.dictionaries)} dictionaries ({known}); name one: run.dictionaries[name]")
        return next(iter(self.dictionaries.values()))

    @property
    def cache(self) -> dict[str, Tensor]:
        """All tensors by name, as of a run with a cache.

        The names are those of the hook points that were kept (after edits), and of each dictionary `<name>.features`,
        `<name>.encoded`, `<name>.reconstruction.<hook point>` and `<name>.error.<hook point>`.
        """
        found = dict(self.activations)
        for name, part in self.dictionaries.items():
            found |= {f"{name}.features": part.features, f"{name}.encoded": part.encoded}
            found |= {f"{name}.reconstruction.{hook}": x for hook, x in part.reconstructions.items()}
            found |= {f"{name}.error.{hook}": x for hook, x in part.errors.items()}
        return ByName("tensor of the run", found)

    def __repr__(self) -> str:
        names = ", ".join(f"{name}: {list(part.features.shape)}" for name, part in self.dictionaries.items())
        return (
            f"ModelRun(tokens {list(self.tokens.shape)}, {self._loss_in_words()}, "
            f"{len(self.activations)} hook points, features {{{names}}})"
        )


def _hook_points(value: object) -> str:
    """What is wanted in the place of hook points."""
    return "" if value == "all" else names(value) and "a list of hook points, or 'all'"


@checked(model=A_MODEL, dictionaries=given_dictionaries, hook_points=_hook_points)
def run_with_dictionaries(
    model: LanguageModel,
    text: Tokens,
    dictionaries: Dictionary | Sequence[Dictionary] | Mapping[str, Dictionary] = (),
    *,
    ablate: Ablate | None = None,
    add: Values | None = None,
    set_to: Values | None = None,
    errors: Errors = "keep",
    hook_points: Sequence[str] | Literal["all"] = (),
    grad: bool = False,
    norms: Mapping[str, HookNorm] | None = None,
    prepend_bos: bool | str = "auto",
) -> ModelRun:
    """Run a language model on a text with dictionaries in it; edit their features.

    Args:
        model: whole, as `load_language_model` gives it.
        text: a text, texts of equally many tokens, or token ids [b, T].
        dictionaries: one, several, or {name: dictionary}; the name is that of the configuration where none is given. SAE,
            transcoder, cross-layer transcoder, Lorsa, or a crosscoder over layers of this model.
        ablate: features that are set to 0: `513`, "513", "2/513" (feature 513 of layer 2), several of them, or {feature:
            positions}. With several dictionaries a feature is (name, feature).
        add: {feature: value} or {feature: (value, positions)}: added to the activation, which is steering; without positions at
            every token, in the dictionary's units.
        set_to: the same, for the value that the activation gets.
        errors: "keep": the error term is added back, gradients to earlier activations are those of the model itself;
            "freeze": it is added back as a constant, so that gradients flow through features alone; "drop": it is left out,
            as by `spliced`.
        hook_points: whose activations are kept; "all": every one, as run_with_cache. Those that dictionaries read and write are
            always kept.
        grad: everything is differentiable: in the features (`DictionaryRun.gradient`), in any activation that was kept
            (torch.autograd.grad), and in the weights of dictionaries. The model's own weights stay frozen.
        norms: {hook point: norm}, for dictionaries that are not folded.
        prepend_bos: whether a text starts with the beginning-of-text token; "auto": if the tokenizer puts it there by itself.

    Returns: logits, loss, activations, and of each dictionary features, reconstructions and error terms.

    A dictionary with several written hook points in the residual stream is edited at the last one alone. A crosscoder reads
    hook points that come after the first that it writes: its features are those of the model's own run.

    Example:
        >>> run = run_with_dictionaries(model, "Once upon a time", sae, ablate=[513], grad=True)
        >>> run.loss.mean(), run.features.shape, run.only.gradient(run.loss.mean()).shape

    Raises:
        DataError: hook points that the model does not have; two dictionaries that write one hook point; no such feature or
            position; a dictionary with hook points of several models.
    """
    if errors not in ERRORS:
        raise DataError(unknown_name("errors", errors, ERRORS))
    named = by_name(dictionaries)  # type: ignore[arg-type]
    placed = {name: PlacedDictionary(dictionary, model, norms) for name, dictionary in named.items()}
    check_written_once(placed)
    ids = model.to_tokens(text, prepend_bos)
    edits = edits_of({name: one.feature_shape for name, one in named.items()}, ids.shape[1], ablate, add, set_to)
    clean = clean_activations(model, ids, placed)
    splices = {
        name: Splice(one, one.kept(ids, clean), clean, [edit for edit in edits if edit.dictionary == name], errors, grad)
        for name, one in placed.items()
    }
    replace = {hook: function for splice in splices.values() for hook, function in splice.replacements().items()}
    if grad:
        first = model.hook_points()[0]
        replace[first] = _leaf(replace.get(first))
    used = [hook for one in placed.values() for hook in one.hooks]
    kept = model.hook_points() if hook_points == "all" else [*hook_points, *used]
    out = model.run(ids, replace=replace, hook_points=dict.fromkeys(kept), gradient=grad)
    done = {name: _told(splice) for name, splice in splices.items()}
    activations = ByName("hook point of the run", out.activations)
    return ModelRun(out.tokens, out.logits, activations, ByName("dictionary of the run", done))


def _told(splice: Splice) -> DictionaryRun:
    """What is told of one dictionary after the run."""
    return DictionaryRun(
        splice.placed.dictionary,
        splice.kept,
        splice.all_layers(splice.before),
        splice.all_layers(splice.after),
        splice.reconstructions,
        splice.error_terms,
        tuple(splice.after[i] for i in sorted(splice.after)),
    )


def _leaf(function: Replacement | None) -> Replacement:
    """What the gradients of a run end at: the first activation, as a constant that is differentiated."""

    def replace(captured: Mapping[str, Tensor], original: Tensor) -> Tensor:
        leaf = original.detach().requires_grad_()
        return leaf if function is None else function(captured, leaf)

    return replace
