"""The reconstructions of dictionaries in the place of activations, special and massive tokens left as they are.

spliced(dictionary)    for the argument `replace` of a language model's loss, logits, run and generate
Splice                 one dictionary in one run, its features edited or not, its error term kept or not
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pipeline.arguments import checked
from pipeline.dictionaries.given import dictionaries as given_dictionaries
from pipeline.errors import DataError
from pipeline.evaluation.language_model import keep_masked
from pipeline.experiments.edits import Edit, edited
from pipeline.experiments.placed import PlacedDictionary, by_name
from pipeline.lm.splicing import Replacement

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.norms.hook_norm import HookNorm

Errors = Literal["keep", "freeze", "drop"]
ERRORS = ("keep", "freeze", "drop")


@checked(dictionaries=given_dictionaries)
def spliced(
    dictionaries: Dictionary | Sequence[Dictionary] | Mapping[str, Dictionary],
    *,
    norms: Mapping[str, HookNorm] | None = None,
) -> Callable[[LanguageModel, Tensor], dict[str, Replacement]]:
    """The reconstruction in the place of the activation, at every token that the dictionary was trained on.

    Special tokens, and massive ones that the dictionary was trained without, keep their own activation, as in the evaluation:
    what a dictionary makes of these is far from them, and one of them can cost more than all other tokens together. The
    result is that of `run_with_dictionaries(..., errors="drop")`.

    Args:
        dictionaries: one, several, or {name: dictionary}; SAE, transcoder, cross-layer transcoder, Lorsa, or a crosscoder over
            layers.
        norms: {hook point: norm}, for dictionaries that are not folded.

    Returns: what `LanguageModel.loss`, `logits`, `run` and `generate` take as `replace`, of any text, any number of times.
        Where the dictionary excludes massive tokens or reads several hook points, each run is preceded by one up to its
        hook points, which says which tokens these are.

    Example:
        >>> model.loss("Once upon a time", replace=spliced(sae)).mean()

    Raises:
        DataError: two dictionaries have one name; when used, two that write one hook point, or hook points that the model
            does not have.
    """
    named = by_name(dictionaries)  # type: ignore[arg-type]

    def replacements(model: LanguageModel, token_ids: Tensor) -> dict[str, Replacement]:
        placed = {name: PlacedDictionary(dictionary, model, norms) for name, dictionary in named.items()}
        check_written_once(placed)
        clean = clean_activations(model, token_ids, placed)
        splices = [Splice(one, one.kept(token_ids, clean), clean, [], "drop", False) for one in placed.values()]
        found = {hook: function for splice in splices for hook, function in splice.replacements().items()}
        for splice in splices:
            for hook in splice.placed.hooks_in:
                if hook not in splice.placed.hooks_out:
                    found[hook] = splice.reading(hook, found.get(hook))
        return found

    return replacements


def clean_activations(model: LanguageModel, token_ids: Tensor, placed: Mapping[str, PlacedDictionary]) -> dict[str, Tensor]:
    """{hook point: [b, T, d]} of the model as it is, of what must be known before a run with these dictionaries."""
    ahead = list(dict.fromkeys(hook for one in placed.values() if one.looks_ahead() for hook in one.hooks))
    return model.activations(token_ids, ahead) if ahead else {}


def check_written_once(placed: Mapping[str, PlacedDictionary]) -> None:
    """Refuse two dictionaries that write one hook point.

    Raises:
        DataError: they do.
    """
    writers: dict[str, str] = {}
    for name, one in placed.items():
        for hook in one.hooks_out:
            if hook in writers:
                raise DataError(f"dictionaries '{writers[hook]}' and '{name}' both write {hook}; run them one at a time")
            writers[hook] = name


class Splice:
    """One dictionary in one run.

    Args:
        placed: the dictionary.
        kept: bool [b, T].
        clean: activations of the model as it is, for what the run has not come to yet.
        edits: of its features.
        errors: what becomes of the error term.
        grad: whether the run is differentiated.
    """

    def __init__(
        self,
        placed: PlacedDictionary,
        kept: Tensor,
        clean: Mapping[str, Tensor],
        edits: Sequence[Edit],
        errors: Errors,
        grad: bool,
    ) -> None:
        self.placed, self.kept, self.clean, self.edits, self.errors = placed, kept, clean, edits, errors
        self.copies = bool(edits) or grad  # f' is another tensor than f
        self.inputs: dict[str, Tensor] = {}
        self.x: Tensor | None = None  # what was encoded last
        self.last: Tensor | None = None
        self.before: dict[int, Tensor] = {}  # features by layer (0: of all), as they are read
        self.after: dict[int, Tensor] = {}
        self.reconstructions: dict[str, Tensor] = {}
        self.error_terms: dict[str, Tensor] = {}

    def replacements(self) -> dict[str, Replacement]:
        """{written hook point: what is put there}."""
        return {hook: self._replacement(hook) for hook in self.placed.hooks_out}

    def reading(self, hook: str, written: Replacement | None) -> Replacement:
        """Keeps what the dictionary reads at a hook point that it does not write, and changes nothing there.

        Args:
            hook: that it reads.
            written: what another dictionary puts there, which is then what is read; None: nothing.
        """

        def replace(captured: Mapping[str, Tensor], original: Tensor) -> Tensor:
            value = original if written is None else written(captured, original)
            self.inputs[hook] = value
            return value

        return replace

    def _replacement(self, hook: str) -> Replacement:
        def replace(captured: Mapping[str, Tensor], original: Tensor) -> Tensor:
            self._read(captured, hook, original)
            assert self.x is not None
            before = self._written(self.all_layers(self.before), hook, original)
            after = self._written(self.all_layers(self.after), hook, original) if self.copies else before
            self.reconstructions[hook], self.error_terms[hook] = after, original - before
            return self._value(hook, original, before, after)

        return replace

    def _read(self, captured: Mapping[str, Tensor], hook: str, original: Tensor) -> None:
        """Encode what has come since the last time: of a dictionary with layers, those layers."""
        placed, layered = self.placed, self.placed.layered
        for name in placed.hooks_in:
            if name not in self.inputs and (name == hook or name in captured):
                self.inputs[name] = original if name == hook else captured[name]
        come = [i for i, name in enumerate(placed.hooks_in) if name in self.inputs] if layered else [0]
        new = [i for i in come if i not in self.before]
        if not new:
            return
        absent = [name for name in placed.hooks_in if name not in self.inputs and name not in self.clean]
        if absent:
            raise DataError(f"dictionary '{placed.dictionary.config.name}': {absent[0]} does not run before {hook}")
        self.last, self.x = placed.encode({**self.clean, **self.inputs}, self.kept)
        for i in new:
            self.before[i] = self.last[..., i, :] if layered else self.last
            self.after[i] = edited(self.before[i], self.edits, i if layered else None) if self.copies else self.before[i]

    def all_layers(self, parts: Mapping[int, Tensor]) -> Tensor:
        """Features [b, T, *feature_shape]; of layers that the run has not come to yet, as they were last."""
        if not self.placed.layered:
            return parts[0]
        assert self.last is not None
        return torch.stack([parts.get(i, self.last[..., i, :]) for i in range(len(self.placed.hooks_in))], -2)

    def _written(self, f: Tensor, hook: str, original: Tensor) -> Tensor:
        """The raw reconstruction at a hook point, [b, T, d_out]; where a token is not kept, only what an edit puts there."""
        assert self.x is not None
        dictionary = self.placed.dictionary
        x_hat = self.placed.written(dictionary.reconstruct(f, self.x), hook, original, self.kept)
        bare = self.placed.written(dictionary.decode_linear(f), hook, original, self.kept)
        return keep_masked(self.kept, x_hat, bare.to(original.dtype)) if not bool(self.kept.all()) else x_hat

    def _value(self, hook: str, original: Tensor, before: Tensor, after: Tensor) -> Tensor:
        change = after - before
        if self.errors == "drop":
            return keep_masked(self.kept, after, original + change.to(original.dtype))
        if hook not in self.placed.standing:
            return original
        if self.errors == "freeze":
            return original.detach() + (after - before.detach()).to(original.dtype)
        return original + change.to(original.dtype)
