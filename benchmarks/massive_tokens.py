"""Which tokens of captured text are massive, and how far they lie from all others: the tables behind the default rule."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.captured import Part, read_part
from pipeline.norms.exclusion import MASSIVE_FACTOR, lengths, median_norm

FACTORS = (3.0, 5.0, 10.0, 20.0, 50.0, 100.0)
LONG = 5.0  # from here on a token that is not massive is looked at
LISTED = 6  # tokens named in a cell


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of a hook point by their length.

    Attributes:
        layer, bos: where, and whether contexts start with the BOS token.
        median: median norm of the kept tokens.
        ratio: float32 [n, T], each token's norm in medians.
        tokens: int64 [n, T].
        kept: bool [n, T], False for special tokens.
        spread: float64 [n, T], each token's squared distance from the mean of the kept tokens that are not massive.
    """

    layer: int
    bos: bool
    median: float
    ratio: Tensor
    tokens: Tensor
    kept: Tensor
    spread: Tensor

    def share(self, factor: float) -> float:
        """Share of the kept tokens that are longer than `factor` medians."""
        return float((self.ratio[self.kept] > factor).double().mean())

    def between(self, low: float, high: float = math.inf) -> Tensor:
        """The kept tokens longer than `low` medians, but not than `high`: bool [n, T]."""
        return self.kept & (self.ratio > low) & (self.ratio <= high)

    def spread_of(self, some: Tensor, of: Tensor) -> float:
        """Share that the tokens `some` have in the squared distances of the tokens `of`, bool [n, T] both."""
        return float(self.spread[some].sum() / self.spread[of].sum())

    def gap(self, factor: float) -> tuple[float, float | None]:
        """Longest kept token that is not longer than `factor` medians, and shortest that is, in medians (None: none is)."""
        ratio = self.ratio[self.kept]
        above = ratio[ratio > factor]
        return float(ratio[ratio <= factor].max()), float(above.min()) if len(above) else None


def read_lengths(work: Path, layers: Sequence[int], hook_point: Callable[[int], str]) -> Iterator[Lengths]:
    """Of the captured training split, without and with BOS, layer by layer."""
    for bos in (False, True):
        for layer in layers:
            part = read_part(work, bos, "train", hook_point(layer))
            median = median_norm(part.activations, part.kept)
            assert median is not None
            yield measured(layer, bos, median, part)


def measured(layer: int, bos: bool, median: float, part: Part) -> Lengths:
    """The lengths of a part's tokens, for the median norm of its kept ones."""
    ratio = lengths(part.activations) / median
    ordinary = part.activations[part.kept & (ratio <= MASSIVE_FACTOR)]
    distance = lengths(part.activations - ordinary.mean(0, dtype=torch.float64).float())
    return Lengths(layer, bos, median, ratio, part.tokens, part.kept, distance.double().square())


def _name(bos: bool) -> str:
    return "yes" if bos else "no"


def shares_table(found: Sequence[Lengths]) -> list[str]:
    """Markdown: share of the kept tokens above each factor."""
    lines = [
        f"| layer | BOS | median norm | longest | {' | '.join(f'> {factor:g}x' for factor in FACTORS)} |",
        "|" + "---:|" * (len(FACTORS) + 4),
    ]
    for one in found:
        shares = " | ".join(f"{one.share(factor):.3%}" for factor in FACTORS)
        longest = float(one.ratio[one.kept].max())
        lines.append(f"| {one.layer} | {_name(one.bos)} | {one.median:.1f} | {longest:.1f}x | {shares} |")
    return lines


def gap_table(found: Sequence[Lengths]) -> list[str]:
    """Markdown: what lies on either side of the default factor, kept tokens alone."""
    lines = [
        f"| layer | BOS | longest below {MASSIVE_FACTOR:g}x | shortest above | tokens {LONG:g}x to {MASSIVE_FACTOR:g}x "
        "| at position 0 | of the variance below | variance above, of all |",
        "|" + "---:|" * 8,
    ]
    for one in found:
        below, above = one.gap(MASSIVE_FACTOR)
        long, massive = one.between(LONG, MASSIVE_FACTOR), one.between(MASSIVE_FACTOR)
        shares = one.spread_of(long, one.between(0.0, MASSIVE_FACTOR)), one.spread_of(massive, one.kept)
        lines.append(
            f"| {one.layer} | {_name(one.bos)} | {below:.1f}x | {'' if above is None else f'{above:.1f}x'} "
            f"| {int(long.sum()):,} | {int(long[:, 0].sum()):,} | {shares[0]:.1%} | {shares[1]:.1%} |"
        )
    return lines


def massive_table(found: Sequence[Lengths], text_of: Callable[[int], str]) -> list[str]:
    """Markdown: where the tokens above the default factor stand, and what they are; special tokens too.

    Args:
        text_of: token id -> its text.
    """
    lines = [
        "| layer | BOS | massive, all tokens | special tokens | at position 0 | share of position 0 | further on: which |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    for one in found:
        massive = one.ratio > MASSIVE_FACTOR
        later = massive.clone()
        later[:, 0] = False
        first = float(massive[:, 0].double().mean())
        lines.append(
            f"| {one.layer} | {_name(one.bos)} | {int(massive.sum()):,} | {int((massive & ~one.kept).sum()):,} "
            f"| {int(massive[:, 0].sum()):,} | {first:.1%} | {_which(later, one.tokens, text_of)} |"
        )
    return lines


def _which(chosen: Tensor, tokens: Tensor, text_of: Callable[[int], str]) -> str:
    """Positions and commonest tokens of some tokens, in words."""
    if not bool(chosen.any()):
        return "none"
    positions = chosen.nonzero()[:, 1]
    counts = Counter(tokens[chosen].tolist())
    names = [f"`{_shown(text_of(token))}` {number:,}" for token, number in counts.most_common(LISTED)]
    rest = f", {len(counts) - LISTED} others" if len(counts) > LISTED else ""
    where = f"positions {int(positions.min())} to {int(positions.max())} (median {int(positions.median())})"
    return f"{where}: {', '.join(names)}{rest}"


def _shown(text: str) -> str:
    """Text of a token as it can stand in a table: ASCII, line breaks and bars written out."""
    return text.encode("unicode_escape").decode().replace("|", "\\|").replace("`", "'")
