"""Which tokens of the evaluated contexts are massive and which of them are excluded: found once, in the first pass.

A token is massive if it is at any hook point that the dictionary reads or writes, in the model's run as it is
(pipeline/norms/exclusion.py). Every pass leaves out the same tokens. Kept are the places of massive tokens alone, which are
few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.errors import NumericsError
from pipeline.norms.exclusion import MASSIVE_FACTOR

if TYPE_CHECKING:
    from pipeline.evaluation.raw_space import RawDictionary
    from pipeline.evaluation.split_tokens import SplitBatch


Limits = tuple[tuple[tuple[str, float], ...], ...]


def limits_of(raw: RawDictionary) -> Limits:
    """Limits of massive and of excluded tokens, of two dictionaries equal where these have the same tokens for such."""
    return tuple(tuple(sorted(limits.limits.items())) for limits in (raw.massive, raw.excluded))


@dataclass(frozen=True)
class TokenMasks:
    """The tokens of a batch, bool [b, T] on the models' device.

    Attributes:
        kept: no special token; what is counted.
        massive: kept and massive; None: none is.
        replaced: kept and not excluded; an intervention replaces these activations and leaves all others as they are.
    """

    kept: Tensor
    massive: Tensor | None
    replaced: Tensor


@dataclass(frozen=True)
class Places:
    """The massive tokens of a batch.

    Attributes:
        batch: its first context.
        massive, excluded: int64 [n, 2], context in the batch and position.
    """

    batch: int
    massive: Tensor
    excluded: Tensor


class MassiveTokens:
    """The massive tokens of all evaluated contexts.

    Args:
        raw: the dictionary, which has the limits.
        device: where masks are wanted.

    Attributes:
        n_massive, n_excluded: kept tokens, so far.
    """

    def __init__(self, raw: RawDictionary, device: torch.device) -> None:
        self._massive, self._excluded, self._device = raw.massive, raw.excluded, device
        self._places: dict[int, Places] = {}
        self.n_massive = self.n_excluded = 0

    def places(self, batch: SplitBatch, activations: Mapping[str, Tensor]) -> Places | None:
        """Look at a batch; {hook point: raw [b, T, D]} of the run as it is. None: no token of it is massive."""
        kept = batch.mask.to(self._device)
        above = self._massive.above(activations)
        if above is None or not bool((massive := above & kept).any()):
            return None
        same = self._massive.limits == self._excluded.limits
        beyond = above if same else self._excluded.above(activations)
        excluded = torch.zeros_like(kept) if beyond is None else beyond & kept
        return Places(_key(batch), massive.nonzero().cpu(), excluded.nonzero().cpu())

    def add(self, places: Places | None) -> None:
        """Keep what :meth:`places` has found in a batch."""
        if places is not None:
            self._places[places.batch] = places
            self.n_massive += len(places.massive)
            self.n_excluded += len(places.excluded)

    def find(self, batch: SplitBatch, activations: Mapping[str, Tensor]) -> TokenMasks:
        """Look at a batch for the first time, keep what is found; its masks."""
        self.add(self.places(batch, activations))
        return self.masks(batch)

    def masks(self, batch: SplitBatch) -> TokenMasks:
        """The masks of a batch that was looked at."""
        return self.masks_at(batch, self._places.get(_key(batch)))

    def masks_at(self, batch: SplitBatch, places: Places | None) -> TokenMasks:
        """The masks of a batch with these massive tokens."""
        kept = batch.mask.to(self._device)
        if places is None:
            return TokenMasks(kept, None, kept)
        massive, excluded = (_at(each, kept) for each in (places.massive, places.excluded))
        return TokenMasks(kept, massive, kept & ~excluded)

    def check(self, n_tokens: int) -> None:
        """Refuse to evaluate where each of `n_tokens` kept tokens is excluded.

        Raises:
            NumericsError: no activation would be replaced.
        """
        if self.n_excluded == n_tokens > 0:
            limits = ", ".join(f"{hook} {limit:.4g}" for hook, limit in self._excluded.limits.items())
            raise NumericsError(
                f"every one of the {n_tokens:,} evaluated tokens is massive and excluded (longest norm that is not: {limits}); "
                "evaluate with the model that the dictionary was trained on"
            )

    def results(self, n_tokens: int) -> dict[str, float]:
        """massive_tokens, excluded_tokens, and massive_fraction, excluded_fraction: their shares of `n_tokens` kept ones."""
        found = {"massive": self.n_massive, "excluded": self.n_excluded}
        tokens = {f"{name}_tokens": float(n) for name, n in found.items()}
        return tokens | {f"{name}_fraction": n / n_tokens for name, n in found.items()}


def _key(batch: SplitBatch) -> int:
    return int(batch.contexts[0])


def _at(places: Tensor, like: Tensor) -> Tensor:
    """bool of the shape of `like` [b, T], True at places [n, 2]."""
    found = torch.zeros_like(like)
    found[tuple(places.to(like.device).T)] = True
    return found


def massive_line(metrics: Mapping[str, Any], norms: Mapping[str, Mapping[str, Any]] | None) -> str | None:
    """How many of the evaluated tokens are massive, and whether they are excluded, in a line; None: none is, or not known.

    Args:
        metrics: of the evaluation.
        norms: of the dictionary's configuration.
    """
    n, total = int(metrics.get("massive_tokens") or 0), int(metrics["evaluated_tokens"])
    if not n or not total:
        return None
    factors = [float(factor) for norm in (norms or {}).values() if (factor := norm.get("max_norm_factor"))]
    share = 100 * n / total
    shown = f"{share:.2f} %" if share >= 0.01 else "under 0.01 %"
    verb = "is" if n == 1 else "are"
    length = f"longer than {max(factors, default=MASSIVE_FACTOR):g} x the median norm"
    if len(norms or {}) > 1:
        length += " of a hook point"
    if not metrics.get("excluded_tokens"):
        return f"{n:,} of {total:,} tokens ({shown}) {verb} massive: {length}; no rule excludes them"
    return f"{n:,} of {total:,} tokens ({shown}) {verb} massive and excluded: {length}"
