"""The activations: what is captured, how much of it, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipeline.params.choices import COMPRESSORS, LIVE, MODEL_DTYPES, SOURCES, STORE, TARGETS
from pipeline.params.codecs import STORAGE_CODECS
from pipeline.params.fields import param
from pipeline.params.section import Section, rule
from pipeline.params.sections.model import ALIAS, DEVICE

HOOK_POINT = (
    r"(?:blocks\.\d+\.[A-Za-z_]\w*(\.[A-Za-z_]\w*)*|hook_embed|ln_final\.hook_(normalized|out)"
    r"|module:\w+(\.\w+)*:(input|output))",
    "a hook point (blocks.L.name, as blocks.2.hook_resid_post; or hook_embed, ln_final.hook_out, module:path:output)",
)
# The same, perhaps of one of the section `models`.
HOOK_KEY = (f"({ALIAS}:)?{HOOK_POINT[0]}", f"{HOOK_POINT[1][:-1]}; or alias:blocks.L.name with an alias of models)")


@dataclass(frozen=True)
class BufferShuffleParams(Section):
    """The order of the rows in the store."""

    NAME: ClassVar[str] = "activations.buffer_shuffle"
    RETIRED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"generator_device": (None, "cpu")}

    perm_seed: int = param(42, at_least=0, about="with the tokens it fixes the row order")


@dataclass(frozen=True)
class ActivationsParams(Section):
    """The activation store."""

    NAME: ClassVar[str] = "activations"

    source: str = param(
        STORE,
        choices=SOURCES,
        about="store: written once, for any number of trainings | live: computed while they are read, nothing is written",
    )
    path: str | None = param(
        None,
        form=(r"[\s\S]*\S[\s\S]*", "the path of a store"),
        about="an existing store to read instead of generating one; null: generate (live reads none)",
    )
    hook_points: tuple[str, ...] | None = param(
        None, form=HOOK_KEY, about="list of hook points to store; null: those of the dictionary"
    )
    context_size: int = param(
        128, at_least=2, also_called=("ctx_len", "n_ctx", "seq_len"), about="tokens in a context, as the language model sees it"
    )
    model_batch_size: int = param(64, at_least=1, about="contexts in one forward pass of the language model")
    total_tokens: int = param(1_000_000, at_least=1, about="tokens in the store (ignored ones not counted)")
    target: str = param(
        "activations-1d",
        choices=TARGETS,
        about="activations-1d: rows are tokens, shuffled | activations-2d: rows are contexts",
    )
    batch_size: int = param(2048, at_least=1, about="rows in a training batch: tokens (1-D) or contexts (2-D)")
    buffer_size: int = param(
        1_048_576,
        at_least=1,
        about="rows that are mixed at once; at least 16 chunks of a store, 524,288 live tokens",
    )
    buffer_shuffle: BufferShuffleParams = field(default_factory=BufferShuffleParams)
    ignore_token_ids: tuple[int, ...] | None = param(
        None, at_least=0, about="list of token ids left out of training; null: bos, eos and pad of the tokenizer"
    )
    ignore_positions: int = param(
        0, at_least=0, about="first positions of each context that are left out, as ignored tokens are"
    )
    max_norm_factor: float | None = param(
        10.0,
        more_than=1,
        about="tokens longer than this times the median norm of a hook point are excluded everywhere; null: none",
    )
    storage_dtype: str = param(
        "bfloat16",
        choices=STORAGE_CODECS,
        about="bfloat16 (2 bytes) | float16 (2 bytes, overflows above 65504) | float32 (4 bytes) | int8 (1 byte, scaled)",
    )
    compressor: str | None = param(
        None, choices=COMPRESSORS, about="blosc-lz4 (faster) | blosc-zstd (smaller), for the store's chunks; null: none"
    )
    device: str | None = param(None, form=DEVICE, about="device that batches are delivered on; null: that of training")
    dtype: str | None = param(None, choices=MODEL_DTYPES, about="dtype that batches are delivered in (null: float32)")

    @property
    def tokens_per_row(self) -> int:
        """Tokens in one row of the store: 1, or a whole context for activations-2d."""
        return self.context_size if self.target == "activations-2d" else 1

    @property
    def tokens_per_batch(self) -> int:
        """Tokens in one batch: batch_size counts tokens for 1-D targets, contexts for 2-D ones."""
        return self.batch_size * self.tokens_per_row

    @rule("path")
    def _a_store_is_not_live(self) -> str | None:
        if self.source != LIVE or self.path is None:
            return None
        return f"{self.path} is a store, and activations.source live reads none; write null, or source store"

    @rule("compressor")
    def _live_activations_are_not_compressed(self) -> str | None:
        if self.source != LIVE or self.compressor is None:
            return None
        return f"{self.compressor} compresses a store, and activations.source live writes none; write null, or source store"

    @rule("hook_points")
    def _some_hook_points(self) -> str | None:
        points = self.hook_points
        if points is None:
            return None
        if not points:
            return "the list is empty; write null to take the dictionary's hook points"
        twice = sorted({point for point in points if points.count(point) > 1})
        return f"listed twice: {', '.join(twice)}" if twice else None

    @rule("batch_size")
    def _a_batch_fits_the_store(self) -> str | None:
        if self.tokens_per_batch <= self.total_tokens:
            return None
        size = f"{self.batch_size}"
        if self.tokens_per_row > 1:
            size = f"{self.batch_size} contexts of {self.context_size} = {self.tokens_per_batch} tokens"
        return f"a batch ({size}) is larger than activations.total_tokens ({self.total_tokens})"

    @rule("ignore_positions")
    def _positions_are_left(self) -> str | None:
        if self.ignore_positions < self.context_size:
            return None
        return f"{self.ignore_positions} leaves no token of contexts of {self.context_size} (activations.context_size)"

    @rule("total_tokens")
    def _whole_contexts(self) -> str | None:
        if self.target == "activations-2d" and self.total_tokens < self.context_size:
            return f"less than one context ({self.total_tokens} < context_size {self.context_size})"
        return None
