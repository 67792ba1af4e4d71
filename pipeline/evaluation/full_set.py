"""Dictionaries that together take the place of every MLP of a language model: a cross-layer transcoder, or a transcoder of
each layer. The replacement model and its attribution graphs (SPEC 7) are of such a set alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.hook_keys import MAIN, occurs_before, place_of, split_key

if TYPE_CHECKING:
    from pipeline.dictionaries.base import LinearBranch
    from pipeline.evaluation.raw_space import RawDictionary
    from pipeline.lm.language_model import LanguageModel

SITE = "hook_mlp_out"


class FullSet:
    """A set, and what its features read and write. Features of a layer are numbered from 0 in it.

    Args:
        raws: one cross-layer transcoder, or a transcoder of each layer, in any order.
        model: the language model.

    Attributes:
        raws: as given, transcoders in the order of layers.
        hooks_in, hooks_out: of each layer, what is read and written.

    Raises:
        DataError: they are no such set; the message says what is missing.
    """

    def __init__(self, raws: Sequence[RawDictionary], model: LanguageModel) -> None:
        for raw in raws:
            _check_form(raw)
        pairs = [(raw, place, written) for raw in raws for place, written in enumerate(raw.hooks_out)]
        wanted = [f"blocks.{layer}.{SITE}" for layer in range(model.n_layers)]
        found = [written for _, _, written in pairs]
        missing = [hook for hook in wanted if hook not in found]
        if missing or sorted(found) != sorted(wanted):
            what = f"nothing writes {', '.join(missing)}" if missing else f"they write {', '.join(found)}"
            raise DataError(f"a set has one transcoder for each layer's {SITE}, or a clt of all: {what}")
        self._places = {written: (raw, place) for raw, place, written in pairs}
        self.raws = tuple(dict.fromkeys(self._places[hook][0] for hook in wanted))
        self.model, self.hooks_out = model, tuple(wanted)
        self.hooks_in = tuple(self._read(hook) for hook in wanted)

    @property
    def n_layers(self) -> int:
        """Of the model."""
        return len(self.hooks_out)

    @property
    def hooks(self) -> tuple[str, ...]:
        """What a run has to keep: all that is read or written, or that tells massive tokens."""
        looked = (hook for raw in self.raws for hook in raw.hooks_to_look_at)
        return tuple(dict.fromkeys((*self.hooks_in, *self.hooks_out, *looked)))

    def features(self, raw: RawDictionary, features: Tensor) -> Mapping[int, Tensor]:
        """{layer: [T, F]} of what a dictionary of the set gives for one context of T tokens."""
        owners = [self._places[hook] for hook in self.hooks_out]
        places = {layer: place for layer, (own, place) in enumerate(owners) if own is raw}
        several = len(raw.hooks_in) > 1
        return {layer: features[:, place] if several else features[0] for layer, place in places.items()}

    def encoder_columns(self, layer: int, features: Tensor) -> Tensor:
        """What features [n] of a layer read, [n, D]."""
        branch, first = self._branch(layer)
        return branch.W[:, first + features].T.detach()

    def pre_activations(self, layer: int, features: Tensor, x: Tensor) -> Tensor:
        """x W_E + b_E of features [n] of a layer, for inputs x [n, D]."""
        branch, first = self._branch(layer)
        return (x.to(branch.W) * branch.W[:, first + features].T).sum(-1).detach() + branch.b[first + features].detach()

    def decoder_rows(self, layer: int, features: Tensor, target: int) -> Tensor | None:
        """What features [n] of a layer write, with activation 1, at a target layer, [n, D]; None: nothing."""
        (raw, place), (writer, at) = self._places[self.hooks_out[layer]], self._places[self.hooks_out[target]]
        if raw is not writer or target < layer:
            return None
        rows = raw.dictionary.written_rows(at).detach()
        return rows[place][features] if rows.ndim == 3 else rows[features]

    def skip(self, layer: int, x: Tensor) -> Tensor | None:
        """What is added to a layer's reconstruction straight from its input [..., D]; None: nothing."""
        raw, _ = self._places[self.hooks_out[layer]]
        skip: Tensor | None = getattr(raw.dictionary, "W_skip", None)
        return None if skip is None else x.to(skip) @ skip.detach()

    def _branch(self, layer: int) -> tuple[LinearBranch, int]:
        raw, place = self._places[self.hooks_out[layer]]
        shape = (1, len(raw.hooks_in), raw.dictionary.config.d_in)
        x = torch.zeros(shape if len(raw.hooks_in) > 1 else shape[::2], device=raw.device, dtype=raw.dtype)
        branches = raw.dictionary.linear_branches(x)
        assert branches is not None  # or _check_form would have refused it
        return branches[0], place * raw.dictionary.feature_shape[-1]

    def _read(self, written: str) -> str:
        """What the features of the layer read that `written` is of.

        Raises:
            DataError: it is not of that layer, or not before.
        """
        raw, place = self._places[written]
        read = raw.hooks_in[place]
        own, other = place_of(read), place_of(written)
        if own is None or other is None or own[0] != other[0] or not occurs_before(read, written):
            raise DataError(f"{read} is read where {written} is written: features of a layer read what comes before, in it")
        return read


def _check_form(raw: RawDictionary) -> None:
    """Refuse what no frozen model is linear in.

    Raises:
        DataError: the dictionary is not folded, or its features are no linear function of what it reads.
    """
    config = raw.dictionary.config
    if any(split_key(hook)[0] != MAIN for hook in (*raw.hooks_in, *raw.hooks_out)):
        raise DataError("it has hook points of further models")
    if not config.folded:
        raise DataError("it is not folded (fold.mode keep): its norm depends on the token")
    x = torch.zeros(1, *((len(raw.hooks_in),) if len(raw.hooks_in) > 1 else ()), config.d_in, device=raw.device)
    branches = raw.dictionary.linear_branches(x.to(raw.dtype))
    if branches is None or len(branches) != 1:
        raise DataError("its encoder is gated (use_glu_encoder): features are no linear function of what is read")
