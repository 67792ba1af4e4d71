"""Queries, keys and values, or a gate and what it multiplies, out of what one projection gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.lm.architectures import GROUPED, Architecture


@dataclass(frozen=True)
class Cut:
    """A part of the last dimension of a projection's output.

    Attributes:
        shape: the last dimension split in groups and what is in a group.
        start, stop: the part of each group.
    """

    shape: tuple[int, int]
    start: int
    stop: int

    def take(self, output: Tensor) -> Tensor:
        """The part, [..., groups * (stop - start)]."""
        return output.unflatten(-1, self.shape)[..., self.start : self.stop].flatten(-2)

    def put(self, output: Tensor, part: Tensor) -> Tensor:
        """The output with another part; `output` stays as it is."""
        changed = output.clone()
        groups = changed.unflatten(-1, self.shape)
        groups[..., self.start : self.stop] = part.unflatten(-1, (self.shape[0], -1))
        return changed


def of_attention(index: int) -> Callable[[Architecture, Any], tuple[str, Cut | None]]:
    """Queries (0), keys (1) or values (2): (names of a block, configuration) -> the module, and its part if it gives more."""

    def find(names: Architecture, config: Any) -> tuple[str, Cut | None]:
        heads = int(config.num_attention_heads)
        width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        if len(names.qkv) > 1:
            gated = names.gated and index == 0
            return names.qkv[index], Cut((heads, 2 * width), 0, width) if gated else None
        shared = int(names.key_heads or getattr(config, "num_key_value_heads", None) or heads)
        groups = shared if names.qkv_layout == GROUPED else 1
        parts = [heads // groups * width, shared // groups * width, shared // groups * width]
        return names.qkv[0], _cut(groups, parts, index)

    return find


def of_mlp(index: int) -> Callable[[Architecture, Any], tuple[str, Cut | None]]:
    """The input projection (of a gated MLP the gate's: 0, the other: 1), as :func:`of_attention`; the halves are equal."""

    def find(names: Architecture, config: Any) -> tuple[str, Cut | None]:
        if not names.mlp_fused:
            return names.mlp_in[index], None
        width = int(config.intermediate_size)
        return names.mlp_in[0], _cut(1, [width, width], index)

    return find


def _cut(groups: int, parts: list[int], index: int) -> Cut:
    start = sum(parts[:index])
    return Cut((groups, sum(parts)), start, start + parts[index])
