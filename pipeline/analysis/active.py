"""The active features of a batch of contexts as a list of entries: what the pass counts and keeps is made of these alone."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.dictionaries.codes import Codes


class ActiveFeatures:
    """The entries f > 0 of activations f [b, T, F], token by token, features ascending.

    Args:
        shape: b, T, F.
        token: int64 [N], ascending: T times the context in the batch, plus the position.
        feature: int64 [N].
        values: [N], above 0.
    """

    def __init__(self, shape: tuple[int, int, int], token: Tensor, feature: Tensor, values: Tensor) -> None:
        self.shape, self.token, self.feature, self.values = shape, token, feature, values

    @classmethod
    def of(cls, f_bTF: Tensor) -> Self:
        """Those of dense activations."""
        n_contexts, n_tokens, n_features = f_bTF.shape
        token, feature = (f_bTF.flatten(0, 1) > 0).nonzero(as_tuple=True)
        return cls((n_contexts, n_tokens, n_features), token, feature, f_bTF.flatten(0, 1)[token, feature])

    @classmethod
    def of_codes(cls, codes: Codes, mask_bT: Tensor) -> Self:
        """Those of an encoding of contexts, at kept tokens (mask True)."""
        n_features = codes.shape.numel() // mask_bT.numel()
        shape = (len(mask_bT), mask_bT.shape[1], n_features)
        if codes.entries is None:
            return cls.of(codes.f.reshape(shape).masked_fill(~mask_bT[..., None], 0.0))
        values, flat, _ = codes.entries
        kept = ((values > 0) & mask_bT.reshape(-1)[flat // n_features]).nonzero()[:, 0]
        flat = flat[kept]
        return cls(shape, flat // n_features, flat % n_features, values[kept])

    @functools.cached_property
    def position(self) -> Tensor:
        """int64 [N], of the token in its context."""
        return self.token % self.shape[1]

    @functools.cached_property
    def pair(self) -> Tensor:
        """int64 [N], place of (context, feature) in a flat [b, F]."""
        return self.token // self.shape[1] * self.shape[2] + self.feature

    def strongest(self) -> tuple[Tensor, Tensor]:
        """The largest activation of each feature in each context, and the first token that has it, both [b, F]; 0 and 0 where
        it is not active.
        """
        n_contexts, n_tokens, n_features = self.shape
        largest = self.values.new_zeros(n_contexts * n_features).scatter_reduce_(0, self.pair, self.values, "amax")
        best = (self.values == largest[self.pair]).nonzero()[:, 0]
        first = torch.full_like(largest, n_tokens, dtype=torch.int64)
        first.scatter_reduce_(0, self.pair[best], self.position[best], "amin")
        first[first == n_tokens] = 0
        return largest.view(n_contexts, n_features), first.view(n_contexts, n_features)
