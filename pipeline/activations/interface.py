"""What reads activations asks for: rows of hook points in a fixed order, wherever they come from.

A row is a token (target activations-1d) or a context (activations-2d). The store of reader.py is one source, live.py computes
rows when they are asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.activations.batches import ActivationBatch, RowsMeta


class Activations(ABC):
    """Activations of one language model, or of several on the same tokens.

    Attributes:
        path: where they are; for messages.
        fingerprint: digest of all that the values of the main model's hook points depend on.
        model: {"name", "revision"} of the language model, of further ones also "models", the same by alias.
        n_rows: tokens (activations-1d) or contexts (activations-2d).
        chunk_rows: rows that lie together: who reads many rows reads so many at a time.
        target, context_size, storage_dtype: as in `activations`.
        source: store, or live.
    """

    source: str
    path: Path
    fingerprint: str
    model: dict[str, Any]
    n_rows: int
    chunk_rows: int
    target: str
    context_size: int
    storage_dtype: str

    def __repr__(self) -> str:
        rows = "tokens" if self.target == "activations-1d" else f"contexts of {self.context_size} tokens"
        hooks = ", ".join(f"{name}: {self.width(name)}" for name in self.hook_points)
        return (
            f"{type(self).__name__}('{self.path}', {self.n_rows:,} {rows}, hook points {{{hooks}}}, {self.storage_dtype}, "
            f"model {self.model['name']})"
        )

    @property
    @abstractmethod
    def hook_points(self) -> list[str]:
        """Names of the hook points, those of further models as `alias:<hook point>`."""

    @abstractmethod
    def width(self, hook_point: str) -> int:
        """d of a hook point.

        Raises:
            DataError: no such hook point.
        """

    @abstractmethod
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """{place: generation settings} of every model's activations, by which they are compared with parameters."""

    @abstractmethod
    def made_from(self) -> dict[str, str]:
        """{input: digest}: `tokens`, the language models as `model` or `model <alias>`, and these `activations` themselves."""

    @abstractmethod
    def content(self, hook_points: Sequence[str]) -> dict[str, str]:
        """{name: digest} that is another one where a batch of these hook points would hold another value."""

    @abstractmethod
    def read(self, hook_point: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a hook point, [n, d] or [n, T, d]; also of tokens, positions, context_ids and mask."""

    def read_together(self, hook_points: Iterable[str], start: int, stop: int) -> dict[str, Tensor]:
        """Rows start..stop of several hook points, as :meth:`read` gives them; live ones in one pass of the model."""
        return {name: self.read(name, start, stop) for name in dict.fromkeys(hook_points)}

    @abstractmethod
    def read_rows_meta(self, start: int, stop: int) -> RowsMeta:
        """Tokens, positions, context ids and mask of rows start..stop."""

    @abstractmethod
    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = None,
        start: int = 0,
        hook_points: Sequence[str] | None = None,
        rows: tuple[int, int] | None = None,
        buffer_rows: int | None = None,
        drop_last: bool = True,
        prefetch: bool = True,
        dtype: torch.dtype | None = None,
        encoded: bool = False,
        pin_memory: bool = False,
    ) -> Iterator[ActivationBatch]:
        """Shuffled batches in an order that the arguments fix: batch `start` is the same whichever one was the first.

        Args:
            batch_size: rows per batch (tokens in 1-D, contexts in 2-D).
            seed: the order's seed.
            epochs: passes over the rows; None: for ever.
            start: index of the first batch, counted over all epochs.
            hook_points: which ones; None: all.
            rows: (first, last + 1) of the rows to read, as from `training_rows`; None: all.
            buffer_rows: tokens mixed at a time (also in 2-D); None: 1,048,576.
            drop_last: leave out an epoch's last, smaller batch.
            prefetch: work ahead in background threads.
            dtype: of the delivered activations; None: that of storage.
            encoded: deliver them as they are stored, for :meth:`ActivationBatch.on` to decode where they are used.
            pin_memory: deliver page-locked tensors (for asynchronous copies to a GPU).

        Raises:
            DataError: fewer rows than a batch.
        """

    @property
    def n_tokens(self) -> int:
        """Token positions: n_rows, times the context size in 2-D."""
        return self.n_rows * (1 if self.target == "activations-1d" else self.context_size)

    def shape(self, hook_point: str) -> tuple[int, ...]:
        """[n_rows, d] or [n_rows, T, d]."""
        inner = () if self.target == "activations-1d" else (self.context_size,)
        return (self.n_rows, *inner, self.width(hook_point))

    def batches_per_epoch(self, batch_size: int, rows: tuple[int, int] | None = None, drop_last: bool = True) -> int:
        """Number of batches that one pass over `rows` (default: all) gives."""
        start, stop = rows or (0, self.n_rows)
        return (stop - start) // batch_size if drop_last else -(-(stop - start) // batch_size)
