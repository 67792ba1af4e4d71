"""A dictionary at its hook points in one language model: raw activations in, what it writes there out, all differentiable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.analysis.attribution import standing
from pipeline.errors import DataError
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.hook_keys import by_model, split_key

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.norms.hook_norm import HookNorm


def special_ids(model: LanguageModel) -> list[int]:
    """Ids of beginning, end and padding of a text; none of a model without a tokenizer."""
    try:
        found = {model.bos_token_id, model.eos_token_id, model.pad_token_id} - {None}
    except DataError:
        return []
    return sorted(int(i) for i in found if i is not None)


class PlacedDictionary:
    """A dictionary where it reads and writes in one model.

    Args:
        dictionary: any kind; one that is not folded needs `norms`.
        model: whose hook points it has.
        norms: {hook point: norm}, for a dictionary that is not folded.

    Attributes:
        hooks_in, hooks_out: its hook points inside the model, in its own order.
        standing: those written hook points at which an edit of features is made. What is added at several hook points of the
            residual stream would stay in it and count several times, so that of these only the last one is among them.
        layered: each layer has features of its own, read at that layer.

    Raises:
        DataError: its hook points are of several models, the model does not have them, or has other widths there.
    """

    def __init__(self, dictionary: Dictionary, model: LanguageModel, norms: Mapping[str, HookNorm] | None = None) -> None:
        keys = tuple(dict.fromkeys((*dictionary.hooks_in, *dictionary.hooks_out)))
        aliases = list(by_model(keys))
        name = dictionary.config.name
        if len(aliases) > 1:
            known = ", ".join(repr(alias or "model") for alias in aliases)
            raise DataError(
                f"dictionary '{name}' ({dictionary.config.kind}) has hook points of the models {known}; an experiment runs one "
                "model: use `inspect_text`, which takes several"
            )
        widths = {
            **dict.fromkeys(dictionary.hooks_in, dictionary.d_in),
            **dict.fromkeys(dictionary.hooks_out, dictionary.d_out),
        }
        for key, width in widths.items():
            there = model.hook_width(split_key(key)[1])
            if there != width:
                raise DataError(
                    f"dictionary '{name}': {key} of model '{model.name}' is {there} wide, wanted {width}; it was made for "
                    "another model"
                )
        self.dictionary, self.raw = dictionary, RawDictionary(dictionary, norms)
        self.hooks_in = tuple(split_key(key)[1] for key in dictionary.hooks_in)
        self.hooks_out = tuple(split_key(key)[1] for key in dictionary.hooks_out)
        places = standing(dictionary.hooks_out, aliases[0])
        self.standing = tuple(self.hooks_out[place] for place in places)
        self.layered = len(dictionary.feature_shape) > 1
        self._special = special_ids(model)

    @property
    def hooks(self) -> tuple[str, ...]:
        """All hook points, read and written, each once."""
        return tuple(dict.fromkeys((*self.hooks_in, *self.hooks_out)))

    def looks_ahead(self) -> bool:
        """Whether what it does at a token needs a run before: of hook points that come later, or of lengths of activations."""
        return bool(self.raw.excluded.limits) or len(self.hooks_in) > 1

    def kept(self, tokens: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Which tokens have features, bool [b, T]: no special ones, and none that the dictionary was trained without.

        Args:
            tokens: int64 [b, T].
            activations: {hook point: [b, T, d]} of the model as it is.
        """
        kept = ~torch.isin(tokens, torch.tensor(self._special, device=tokens.device, dtype=tokens.dtype))
        of_keys = {
            key: activations[split_key(key)[1]] for key in self.raw.hooks if split_key(key)[1] in activations
        }  # limits are by key
        above = self.raw.excluded.above(of_keys)
        return kept if above is None else kept & ~above.to(kept.device)

    def encode(self, inputs: Mapping[str, Tensor], kept: Tensor) -> tuple[Tensor, Tensor]:
        """Features [b, T, *feature_shape] of raw {hook point: [b, T, d_in]}, 0 where not kept, and what was encoded."""
        raw, mask = self.raw, kept.to(self.raw.device)
        parts = [
            raw.normalizer.scaled(key, inputs[hook].to(raw.device, raw.dtype), mask)
            for key, hook in zip(self.dictionary.hooks_in, self.hooks_in, strict=True)
        ]
        x = parts[0] if len(parts) == 1 else torch.stack(parts, -2)
        return self.dictionary.encode(x, mask), x

    def written(self, x_hat: Tensor, hook: str, original: Tensor, kept: Tensor) -> Tensor:
        """The part of an output [b, T, ..., d_out] of the dictionary that is written at one hook point, raw [b, T, d_out].

        Args:
            x_hat: of `decode_linear` or `reconstruct`.
            hook: inside the model.
            original: the activation there, whose length a norm of the data depends on.
            kept: bool [b, T].
        """
        place = self.hooks_out.index(hook)
        part = x_hat if len(self.hooks_out) == 1 else x_hat[..., place, :]
        if not self.dictionary.config.folded:
            like = original.to(self.raw.device, self.raw.dtype)
            part = part / self.raw.normalizer.factor(self.dictionary.hooks_out[place], like, kept.to(self.raw.device))
        return part.to(original.device)


def by_name(
    dictionaries: Dictionary | list[Dictionary] | tuple[Dictionary, ...] | Mapping[str, Dictionary],
) -> dict[str, Dictionary]:
    """{name: dictionary}; a name is the one in its configuration where none is given.

    Raises:
        DataError: none is given, or two have one name.
    """
    if isinstance(dictionaries, Mapping):
        found = dict(dictionaries)
    else:
        given = list(dictionaries) if isinstance(dictionaries, (list, tuple)) else [dictionaries]
        found = {each.config.name: each for each in given}
        if len(found) < len(given):
            raise DataError(
                f"dictionaries: {len(given)} are given, with the names {', '.join(each.config.name for each in given)}; give "
                "{name: dictionary}"
            )
    return found
