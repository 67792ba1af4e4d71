"""Activations that are kept: for the next pass over the same contexts, or the next dictionary that is looked at on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import Tensor

from pipeline.evaluation.models import LanguageModels

KEPT_BYTES = 2**30


class KeptActivations:
    """What models have found, by the tokens and the hook point, as long as there is room.

    Args:
        room: bytes that may be kept.
    """

    def __init__(self, room: int = KEPT_BYTES) -> None:
        self._room = room
        self._found: dict[tuple[bytes, str], Tensor] = {}

    def get(self, tokens: bytes, key: str) -> Tensor | None:
        """The activations [b, T, D]; None: they were not kept."""
        return self._found.get((tokens, key))

    def put(self, tokens: bytes, key: str, found: Tensor) -> None:
        """Keep them, if there is room."""
        if (tokens, key) not in self._found and found.nbytes <= self._room:
            self._room -= found.nbytes
            self._found[tokens, key] = found


class RememberingModels(LanguageModels):
    """Language models that run over a batch only for what is not kept of it; nobody may change what they give.

    Args:
        models: that run.
        kept: of these models.
    """

    def __init__(self, models: LanguageModels, kept: KeptActivations) -> None:
        super().__init__(models.by_alias)
        self._kept = kept

    def activations(self, tokens: Tensor, keys: Iterable[str]) -> dict[str, Tensor]:
        """{key: [b, T, D]}, as of :class:`LanguageModels`."""
        wanted, place = list(dict.fromkeys(keys)), hashlib.sha256(tokens.cpu().numpy().tobytes()).digest()
        found = {key: self._kept.get(place, key) for key in wanted}
        if missing := [key for key, x in found.items() if x is None]:
            new = super().activations(tokens, missing)
            for key in missing:
                self._kept.put(place, key, new[key])
            found |= new
        return {key: x for key in wanted if (x := found[key]) is not None}
