"""Low-rank sparse attention: reads an attention's input and writes its output, on whole contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.kinds.one_hook_point import OneHookPointFields
from pipeline.params.section import rule, without_effect

PARTS = ("NTK_by_parts_factor", "NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor", "old_context_len")
ROTARY = ("rotary_dim", "rotary_base", "rotary_adjacent_pairs", "rotary_scale", "use_NTK_by_parts_rope", *PARTS)


@dataclass(frozen=True)
class LowRankSparseAttentionFields(OneHookPointFields):
    """An attention's input is read and its output is written."""

    READS_SEQUENCES: ClassVar[bool] = True
    WRITES_ELSEWHERE: ClassVar[bool] = True
    DRAWN_BY_BOUNDS: ClassVar[bool] = False
    EXAMPLE: ClassVar[str] = "blocks.L.hook_attn_out"

    n_qk_heads: int | None = param(None, at_least=1, about="number of query-key heads; divides d_sae")
    d_qk_head: int | None = param(None, at_least=1, about="width of a query and of a key")
    n_ctx: int | None = param(None, at_least=1, about="longest context")
    rotary_dim: int | None = param(
        None, at_least=2, about="dimensions of a head that are rotated, even; null: none (positional_embedding_type none)"
    )
    positional_embedding_type: str = param("rotary", choices=("rotary", "none"), about="positions in queries and keys")
    rotary_base: float = param(10000.0, more_than=0, about="base of the rotary frequencies")
    rotary_adjacent_pairs: bool = param(True, about="true: pairs 2i, 2i + 1 (GPT-J) | false: halves (GPT-NeoX, Llama)")
    rotary_scale: float = param(1.0, more_than=0, about="positions are divided by it")
    use_NTK_by_parts_rope: bool = param(False, about="true: frequencies scaled by parts (Llama 3.1)")
    NTK_by_parts_factor: float = param(8.0, more_than=0, about="low frequencies are divided by it")
    NTK_by_parts_low_freq_factor: float = param(
        1.0, more_than=0, about="turns over the old context below which a frequency is low"
    )
    NTK_by_parts_high_freq_factor: float = param(4.0, more_than=0, about="turns above which it is high and stays")
    old_context_len: int = param(8192, at_least=1, about="that context")
    attn_scale: float | None = param(None, more_than=0, about="scores are divided by it; null: the root of d_qk_head")
    use_post_qk_ln: bool = param(False, about="true: queries and keys are normed, with gains")
    normalization_type: str | None = param(None, choices=("RMS", "LN"), about="the norm of use_post_qk_ln (null: none)")
    eps: float = param(1e-6, more_than=0, about="epsilon of that norm")

    @property
    def head_width(self) -> int | None:
        """d_qk_head."""
        return self.d_qk_head

    @property
    def max_context(self) -> int | None:
        """n_ctx."""
        return self.n_ctx

    @property
    def dealt(self) -> tuple[str, int | None]:
        """Heads stay whole."""
        return "query-key heads", self.n_qk_heads

    @rule("n_qk_heads")
    def _sizes_are_stated(self) -> str | None:
        wanted = ["n_qk_heads", "d_qk_head", "n_ctx"]
        missing = [name for name in wanted if getattr(self, name) is None]
        if missing:
            return f"kind lorsa needs {', '.join(missing)}; write {'a number' if len(missing) == 1 else 'numbers'} there"
        if self.d_sae and self.n_qk_heads and self.d_sae % self.n_qk_heads:
            near = _divisor(self.d_sae, self.n_qk_heads)
            return f"{self.n_qk_heads} does not divide the dictionary's {self.d_sae} features; write {near}"
        return None

    @rule("rotary_dim")
    def _rotated_part_of_a_head(self) -> str | None:
        if self.positional_embedding_type != "rotary" or self.d_qk_head is None:
            return None
        if self.rotary_dim is None or self.rotary_dim % 2 or self.rotary_dim > self.d_qk_head:
            even = f"write an even number up to d_qk_head {self.d_qk_head}"
            return f"{even} (or positional_embedding_type none), got {self.rotary_dim}"
        return None

    @rule("positional_embedding_type", of_files=True)
    def _rotary_fields_are_used(self) -> str | None:
        if self.positional_embedding_type == "rotary":
            return None
        changed = without_effect(LowRankSparseAttentionFields, self, ROTARY)
        return f"is {self.positional_embedding_type}, so that {changed}" if changed else None

    @rule("use_NTK_by_parts_rope", of_files=True)
    def _factors_of_the_parts_are_used(self) -> str | None:
        if self.use_NTK_by_parts_rope or self.positional_embedding_type == "none":
            return None
        changed = without_effect(LowRankSparseAttentionFields, self, PARTS)
        return f"is false, so that {changed}" if changed else None

    @rule("NTK_by_parts_low_freq_factor")
    def _parts_ascend(self) -> str | None:
        low, high = self.NTK_by_parts_low_freq_factor, self.NTK_by_parts_high_freq_factor
        if self.use_NTK_by_parts_rope and low >= high:
            return f"must be below NTK_by_parts_high_freq_factor {high}, got {low}; write less, or raise that"
        return None

    @rule("normalization_type")
    def _norm_is_named_where_there_is_one(self) -> str | None:
        if self.use_post_qk_ln and self.normalization_type is None:
            return "use_post_qk_ln needs one; write RMS or LN"
        return None

    @rule("normalization_type", of_files=True)
    def _norm_that_is_named_is_used(self) -> str | None:
        if not self.use_post_qk_ln and self.normalization_type is not None:
            return f"{self.normalization_type} is the norm of use_post_qk_ln, which is false; write null or switch that on"
        return None


def _divisor(whole: int, near: int) -> int:
    """The divisor of a number that is nearest to another one."""
    return min((n for n in range(1, whole + 1) if whole % n == 0), key=lambda n: abs(n - near))
