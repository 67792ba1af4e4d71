"""Where the step loop gets its batches: a store on disk or tensors in memory, moved to the device ahead of use."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from pipeline.errors import ParamsError
from pipeline.hooks import stacked
from pipeline.norms.exclusion import NormLimits
from pipeline.seeding import generator

if TYPE_CHECKING:
    from pipeline.activations.interface import Activations
    from pipeline.training.model_loss import SplicedContexts
    from pipeline.training.tensors import TensorData

Item = TypeVar("Item")


class Whole(NamedTuple):
    """Of a batch that is dealt to processes: its rows, and its kept tokens (scalar; None: all)."""

    rows: int
    n_kept: Tensor | None


@dataclasses.dataclass(frozen=True)
class TrainingBatch:
    """One step's raw activations.

    Attributes:
        index: number of the batch, which is the number of the step.
        inputs: [B, d_in] or [B, T, d_in] ([..., L, d_in] for kinds that read several hook points).
        labels: the same with d_out; the very tensor `inputs` where input and label are one activation.
        mask: bool [B] or [B, T], True for a kept token; None: all kept.
        contexts: what the loss through the language model is computed on, of whole contexts; None: there is none. Such a batch
            holds the rows of one process.
        whole: what is known of the step's whole batch, where this is one process's part of it; None: nothing, or it is here.
    """

    index: int
    inputs: Tensor
    labels: Tensor
    mask: Tensor | None = None
    contexts: SplicedContexts | None = None
    whole: Whole | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> TrainingBatch:
        """On `device` in `dtype`; asynchronous from page-locked memory."""
        inputs = self.inputs.to(device, non_blocking=True).to(dtype)
        labels = inputs if self.labels is self.inputs else self.labels.to(device, non_blocking=True).to(dtype)
        mask = None if self.mask is None else self.mask.to(device, non_blocking=True)
        return dataclasses.replace(self, inputs=inputs, labels=labels, mask=mask)

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        held = () if self.contexts is None else self.contexts.tensors
        return [tensor for tensor in (self.inputs, self.labels, self.mask, *held) if tensor is not None]


@dataclasses.dataclass(frozen=True)
class StoredBatch:
    """A batch as the store's reader gives it, on the device where it is decoded.

    Attributes:
        index: number of the batch.
        activations: {hook point: raw [B, d] or [B, T, d]}.
        mask: bool [B] or [B, T], True where the token is kept.
    """

    index: int
    activations: Mapping[str, Tensor]
    mask: Tensor


class Source(Protocol):
    """What the step loop reads from."""

    @property
    def batch_size(self) -> int:
        """Rows in a batch: tokens, or contexts."""

    @property
    def batch_tokens(self) -> int:
        """Tokens (masked ones too) in a batch."""

    def batches(self, start: int) -> Iterator[TrainingBatch]:
        """Batches from index `start` on, for ever; the same ones for every `start`."""

    def position(self, index: int) -> str:
        """Where batch `index` is, in words."""


@dataclasses.dataclass(frozen=True)
class StoreSource:
    """Shuffled batches of an activation store's training rows.

    Args:
        store: open activations.
        hooks_in, hooks_out: hook points read and written, in the dictionary's order.
        batch_size: rows per batch: tokens (1-D) or contexts (2-D).
        rows: (first, last + 1) of the rows to train on.
        limits: of the norms of tokens; those above are left out.
        buffer_rows: rows mixed at a time.
        seed: of the order.
        dtype: in which the store's reader delivers; None: storage dtype.
        device: a GPU, to which the stored bytes go to be decoded there; None: the reader's thread decodes them.
    """

    store: Activations
    hooks_in: tuple[str, ...]
    hooks_out: tuple[str, ...]
    batch_size: int
    rows: tuple[int, int]
    limits: NormLimits
    buffer_rows: int
    seed: int
    dtype: torch.dtype | None = torch.float32
    device: torch.device | None = None

    @property
    def batch_tokens(self) -> int:
        """Tokens in a batch."""
        return self.batch_size * (1 if self.store.target == "activations-1d" else self.store.context_size)

    @property
    def hook_points(self) -> tuple[str, ...]:
        """What is read and written, each once."""
        return tuple(dict.fromkeys((*self.hooks_in, *self.hooks_out)))

    def batches(self, start: int) -> Iterator[TrainingBatch]:
        """Batches from `start` on. Excluded tokens are masked in contexts (2-D); single rows (1-D) are left out.

        A 1-D batch of nothing but excluded tokens stays whole, masked.
        """
        return (self.selected(batch) for batch in self.read(start, self.hook_points))

    def read(self, start: int, hook_points: Iterable[str]) -> Iterator[StoredBatch]:
        """The batches as they are stored, from `start` on, of any hook points: their order is that of the rows alone."""
        made = self.store.batches(
            self.batch_size,
            seed=self.seed,
            start=start,
            hook_points=list(hook_points),
            rows=self.rows,
            buffer_rows=self.buffer_rows,
            dtype=self.dtype,
            encoded=self.device is not None,
            pin_memory=self.device is not None,
        )
        for batch in made:
            found = batch.activations if self.device is None else batch.on(self.device)
            yield StoredBatch(batch.index, found, batch.mask)

    def selected(self, batch: StoredBatch) -> TrainingBatch:
        """What is trained on of a batch that holds these hook points, and maybe others."""
        found = {hook: batch.activations[hook] for hook in self.hook_points}
        whole = self.store.target == "activations-1d"
        mask = self.limits.kept(found, None if whole else batch.mask)
        if whole and mask is not None and bool(mask.any()):
            rows = mask.nonzero().squeeze(1)
            found, mask = {hook: x.index_select(0, rows) for hook, x in found.items()}, None
        inputs = stacked(found, self.hooks_in)
        labels = inputs if self.hooks_in == self.hooks_out else stacked(found, self.hooks_out)
        return TrainingBatch(batch.index, inputs, labels, mask)

    def position(self, index: int) -> str:
        """Epoch and batch of it, and the tokens of the run so far."""
        per_epoch = self.store.batches_per_epoch(self.batch_size, self.rows)
        return _position(index, per_epoch, self.batch_tokens)


class TensorSource:
    """Shuffled batches of tensors in memory.

    Args:
        inputs: [N, ...] rows (tokens, or contexts [n, T, ...]).
        labels: [N, ...] in the same order; None: the inputs.
        batch_size: rows per batch; an epoch's last, smaller batch is left out.
        seed: of the order, another one every epoch.
        token_dims: 1 where a row is a token, 2 where it is a context.
        mask: bool [N] or [n, T], True for a kept token; None: all.

    Raises:
        ParamsError: fewer rows than a batch.
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor | None = None,
        *,
        batch_size: int,
        seed: int,
        token_dims: int = 1,
        mask: Tensor | None = None,
    ) -> None:
        if len(inputs) < batch_size:
            raise ParamsError(f"batch_size: {batch_size} is more than the {len(inputs)} rows of activations")
        self.inputs, self.labels = inputs, inputs if labels is None else labels
        self.batch_size, self.seed, self.token_dims, self.mask = batch_size, seed, token_dims, mask
        self.per_epoch = len(inputs) // batch_size

    @classmethod
    def of(cls, data: TensorData, *, batch_size: int, seed: int) -> TensorSource:
        """Batches of inputs and labels that belong together."""
        return cls(data.inputs, data.labels, batch_size=batch_size, seed=seed, token_dims=data.token_dims, mask=data.mask)

    @property
    def batch_tokens(self) -> int:
        """Tokens in a batch."""
        return self.batch_size * (1 if self.token_dims == 1 else self.inputs.shape[1])

    def batches(self, start: int) -> Iterator[TrainingBatch]:
        """Batches from `start` on, for ever."""
        epoch, within = divmod(start, self.per_epoch)
        while True:
            order = torch.randperm(len(self.inputs), generator=generator(self.seed, "batches", epoch))
            order = order.to(self.inputs.device)
            for batch in range(within, self.per_epoch):
                rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                inputs = self.inputs.index_select(0, rows)
                labels = inputs if self.labels is self.inputs else self.labels.index_select(0, rows)
                mask = None if self.mask is None else self.mask.index_select(0, rows)
                yield TrainingBatch(epoch * self.per_epoch + batch, inputs, labels, mask)
            epoch, within = epoch + 1, 0

    def position(self, index: int) -> str:
        """Epoch and batch of it, and the tokens of the run so far."""
        return _position(index, self.per_epoch, self.batch_tokens)


def _position(index: int, per_epoch: int, batch_tokens: int) -> str:
    epoch, within = divmod(index, per_epoch)
    first = index * batch_tokens
    return f"epoch {epoch}, batch {within} of {per_epoch}, tokens {first:,} to {first + batch_tokens - 1:,} of the run's order"


def on_device(batches: Iterator[TrainingBatch], device: torch.device, dtype: torch.dtype) -> Generator[TrainingBatch]:
    """`batches` on `device` in `dtype`, as :func:`moved_ahead` moves them."""
    return moved_ahead(batches, device, lambda batch: batch.to(device, dtype), lambda batch: batch.tensors)


def moved_ahead(
    items: Iterator[Item], device: torch.device, moved: Callable[[Item], Item], tensors: Callable[[Item], Iterable[Tensor]]
) -> Generator[Item]:
    """Items on `device`; on a GPU the next one is moved and decoded on its own stream while this one is used.

    Args:
        items: on any device.
        device: where they are used.
        moved: gives an item on the device.
        tensors: all that an item holds.
    """
    if device.type != "cuda":
        yield from map(moved, items)
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # tensors in memory may still be under way
    ahead: list[Item] = []
    while True:
        with torch.cuda.stream(stream):
            copied = [moved(item) for item in itertools.islice(items, 1)]
        yield from ahead
        if not copied:
            return
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in tensors(copied[0]):
            if tensor.device.type == "cuda":
                tensor.record_stream(torch.cuda.current_stream(device))
        ahead = copied
