"""Which tokens of captured text are massive, and how far they lie from all others: the tables behind the default rule."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.captured import read_part
from pipeline.exclusion import MASSIVE_FACTOR, lengths, median_norm

FACTORS = (3.0, 5.0, 10.0, 20.0, 50.0, 100.0)
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
    """

    layer: int
    bos: bool
    median: float
    ratio: Tensor
    tokens: Tensor
    kept: Tensor

    def share(self, factor: float) -> float:
        """Share of the kept tokens that are longer than `factor` medians."""
        return float((self.ratio[self.kept] > factor).double().mean())

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
            yield Lengths(layer, bos, median, lengths(part.activations) / median, part.tokens, part.kept)


def _name(bos: bool) -> str:
    return "yes" if bos else "no"


def shares_table(found: Sequence[Lengths]) -> list[str]:
    """Markdown: share of the kept tokens above each factor, and the gap at the default one."""
    lines = [
        f"| layer | BOS | median norm | longest | {' | '.join(f'> {factor:g}x' for factor in FACTORS)} "
        f"| longest below {MASSIVE_FACTOR:g}x | shortest above |",
        "|" + "---:|" * (len(FACTORS) + 6),
    ]
    for one in found:
        below, above = one.gap(MASSIVE_FACTOR)
        shares = " | ".join(f"{one.share(factor):.3%}" for factor in FACTORS)
        shortest = "" if above is None else f"{above:.1f}x"
        longest = float(one.ratio[one.kept].max())
        lines.append(
            f"| {one.layer} | {_name(one.bos)} | {one.median:.1f} | {longest:.1f}x | {shares} | {below:.1f}x | {shortest} |"
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
