"""Which features are active on the same tokens: the Jaccard index over a uniform sample of tokens of bounded size.

A token is in the sample while its hash is below a limit; when more (token, active feature) pairs are held than allowed, the
limit is halved and the tokens above it go. So the sample depends on the tokens alone, not on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.analysis.hashing import BITS, hashed

if TYPE_CHECKING:
    from pipeline.analysis.active import ActiveFeatures
    from pipeline.progress import Progress

MAX_PAIRS = 8_000_000  # (token, feature) pairs held: 128 MB
MAX_COUNTS = 2**23  # counts of pairs at a time: 64 MiB, a few copies of them
_SEED = 0x0AC7


class CoactivationSample:
    """The active features of sampled tokens.

    Args:
        n_features: F.
        share: wanted share of all tokens, in (0, 1].
        max_pairs: most pairs held.
        numbers: int64 [n], of the features that are looked at, among all; None: all are.

    Attributes:
        limit: hashes below it are in the sample.
    """

    def __init__(self, n_features: int, share: float, max_pairs: int = MAX_PAIRS, numbers: Tensor | None = None) -> None:
        self.n_features, self.max_pairs, self._numbers = n_features, max_pairs, numbers
        self.limit = round(min(share, 1.0) * 2**BITS)
        self._token_hash, self._feature = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int32)

    def update(self, active: ActiveFeatures, contexts: Tensor) -> None:
        """Add the active features of contexts, whose numbers are int64 [b]."""
        positions = torch.arange(active.shape[1], device=contexts.device)
        keys = hashed(contexts[:, None], positions, _SEED).flatten()[active.token]
        chosen = keys < self.limit
        feature = active.feature[chosen].cpu()
        self._hold(keys[chosen].cpu(), (feature if self._numbers is None else self._numbers[feature]).int())

    def __len__(self) -> int:
        """Pairs held."""
        return len(self._feature)

    def pairs(self, some: slice) -> tuple[int, Tensor, Tensor]:
        """The limit, and of some of the pairs held the hashes of their tokens, int64 [n], and their features, int32 [n]."""
        return self.limit, self._token_hash[some].clone(), self._feature[some].clone()

    def take_over(self, limit: int, token_hash: Tensor, feature: Tensor) -> None:
        """Add pairs of the sample of other contexts or of other features, whose limit is this."""
        self.limit = min(self.limit, limit)
        keep = self._token_hash < self.limit
        self._token_hash, self._feature = self._token_hash[keep], self._feature[keep]
        keep = token_hash < self.limit
        self._hold(token_hash[keep], feature[keep])

    def _hold(self, token_hash: Tensor, feature: Tensor) -> None:
        """Hold further pairs, all below the limit; halve it while there are too many."""
        self._token_hash = torch.cat([self._token_hash, token_hash])
        self._feature = torch.cat([self._feature, feature])
        while len(self._feature) > self.max_pairs:
            self.limit //= 2
            keep = self._token_hash < self.limit
            self._token_hash, self._feature = self._token_hash[keep], self._feature[keep]

    @property
    def tokens(self) -> int:
        """Sampled tokens with an active feature."""
        return len(self._token_hash.unique())

    def neighbours(self, n: int, block: int = 512, progress: Progress | None = None) -> tuple[Tensor, Tensor]:
        """The n features of the largest Jaccard index with each one, itself left out.

        Args:
            block: most features compared with all others at a time; with many features fewer are.
            progress: counts features.

        Returns: features int64 [F, n] (-1: fewer were ever active with it), Jaccard indices float32 [F, n].
        """
        found = torch.full((self.n_features, n), -1, dtype=torch.int64)
        jaccard = torch.zeros(self.n_features, n)
        if n == 0 or not len(self._feature):
            return found, jaccard
        order = self._token_hash.argsort()
        feature = self._feature.long()[order]
        _, sizes = self._token_hash[order].unique_consecutive(return_counts=True)
        tokens = _by_size(feature, sizes)
        active = torch.bincount(feature, minlength=self.n_features).float()
        block = max(1, min(block, MAX_COUNTS // self.n_features))
        for start in range(0, self.n_features, block):
            some = torch.arange(start, min(start + block, self.n_features))
            both = self._both(tokens, start, len(some)).float()
            both[some - start, some] = 0.0
            index = both / (active[some, None] + active - both).clamp_min(1.0)
            values, which = index.topk(min(n, self.n_features), dim=1)
            width = values.shape[1]
            jaccard[some, :width] = values
            found[some, :width] = torch.where(values > 0, which, -1)
            if progress is not None:
                progress.update(len(some))
        return found, jaccard

    def _both(self, tokens: Sequence[Tensor], start: int, n: int) -> Tensor:
        """int64 [n, F]: tokens on which feature start + i and feature j are both active.

        Args:
            tokens: features int64 [n_tokens, size] of the tokens with so many active ones, for each size.
        """
        both = torch.zeros(n * self.n_features, dtype=torch.int64)
        waiting: list[Tensor] = []
        for features in tokens:
            token, own = ((features >= start) & (features < start + n)).nonzero(as_tuple=True)
            for some in torch.arange(len(token)).split(max(1, MAX_PAIRS // features.shape[1])):
                row = (features[token[some], own[some]] - start) * self.n_features
                waiting.append((features[token[some]] + row[:, None]).flatten())
                if sum(map(len, waiting)) >= MAX_PAIRS:
                    both += torch.bincount(torch.cat(waiting), minlength=len(both))
                    waiting.clear()
        if waiting:
            both += torch.bincount(torch.cat(waiting), minlength=len(both))
        return both.view(n, -1)

    def state(self) -> dict[str, Tensor]:
        """Tensors that `load` takes."""
        return {"token_hash": self._token_hash, "feature": self._feature, "limit": torch.tensor(self.limit)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        token_hash, feature = state["token_hash"], state["feature"]
        if self._numbers is not None:
            own = torch.isin(feature, self._numbers.int())
            token_hash, feature = token_hash[own], feature[own]
        self._token_hash, self._feature, self.limit = token_hash, feature, int(state["limit"])


def _by_size(feature: Tensor, sizes: Tensor) -> list[Tensor]:
    """The features of the tokens with equally many of them as int64 [n_tokens, size], for each size.

    Args:
        feature: of each pair held, token after token; sizes: pairs of each token.
    """
    own = sizes.repeat_interleave(sizes)
    return [feature[own == size].view(-1, size) for size in sizes.unique().tolist()]
