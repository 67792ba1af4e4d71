"""Rows of blocks from the language model: of a store that is written, or of live activations, the same bits.

A block's rows come from its model batches (pipeline.activations.plan), all hook points in one pass; the rows that the mask
keeps are encoded and checked to be finite. What a codec measures (the parts that all rows share) it measures in the first
model batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.codecs.interface import storage_codec
from pipeline.activations.plan import ContextTokens, RowPlan
from pipeline.activations.schema import ArrayLayout, array_name
from pipeline.errors import NumericsError
from pipeline.memory import Need, require_memory


class Model(Protocol):
    """What is asked of a language model."""

    @property
    def device(self) -> torch.device: ...
    def activations(self, token_ids: Tensor, hook_points: Sequence[str]) -> dict[str, Tensor]: ...
    def first_not_finite(self, token_ids: Tensor) -> object: ...


def require_batch(plan: RowPlan, layouts: Iterable[ArrayLayout]) -> None:
    """Refuse model batches whose rows cannot be held.

    Args:
        plan: of the rows.
        layouts: of the hook points' arrays.

    Raises:
        ParamsError: they are larger than the memory that is free.
    """
    n_contexts = min(plan.model_batch_size, len(plan.contexts))
    rows = min(int(plan.offsets[n_contexts]), plan.n_rows)
    n_bytes = rows * sum(layout.row_bytes for layout in layouts if not layout.shared)
    key = {"activations.model_batch_size": plan.model_batch_size}
    require_memory(Need(f"the activations of {n_contexts:,} contexts", n_bytes, key))


class BlockRows:
    """Computes blocks; the last model batch is kept, since one on a boundary serves two blocks.

    Args:
        plan: which token goes to which row.
        contexts: the tokens.
        hook_points: to compute; none: what a row is of, alone.
        storage_dtype: names the codec.
        shared: {hook point: its shared parts that are known already}.
        measured: called with hook point, part and values of a shared part that was not.
    """

    def __init__(
        self,
        plan: RowPlan,
        contexts: ContextTokens,
        hook_points: Sequence[str],
        storage_dtype: str,
        shared: Mapping[str, dict[str, Tensor]] | None = None,
        measured: Callable[[str, str, Tensor], None] = lambda hook_point, part, values: None,
    ) -> None:
        self.plan, self.contexts, self.hook_points = plan, contexts, list(hook_points)
        self.storage_dtype, self.codec, self.measured = storage_dtype, storage_codec(storage_dtype), measured
        self.shared = {name: dict((shared or {}).get(name, {})) for name in self.hook_points}
        self._held: tuple[int, dict[str, Tensor]] = (-1, {})

    def block(self, model: Model | None, block: int, done: Callable[[int], None] = lambda n: None) -> dict[str, Tensor]:
        """The rows of a block in sequence order, by the name of the store's array.

        Args:
            model: computes the hook points; None where there are none.
            block: its number.
            done: called with every number of rows that are there.

        Raises:
            NumericsError: a non-finite activation, with hook point, context, position, token and row.
        """
        start, stop = self.plan.block(block)
        arrays: dict[str, Tensor] = {}
        for batch in self.plan.batches(block):
            if self._held[0] != batch:
                self._held = (batch, self._batch(model, batch))
            base = int(self.plan.offsets[self.plan.batch(batch).start])
            for name, rows in self._held[1].items():
                if name not in arrays:
                    arrays[name] = torch.empty((stop - start, *rows.shape[1:]), dtype=rows.dtype)
                first, last = max(start, base), min(stop, base + len(rows))
                arrays[name][first - start : last - start] = rows[first - base : last - base]
            done(last - first)
        return arrays

    def measure(self, model: Model) -> None:
        """Run the first model batch: shared parts are known afterwards, and that it is finite.

        Raises:
            NumericsError: it is not.
        """
        self._held = (0, self._batch(model, 0))

    def _batch(self, model: Model | None, batch: int) -> dict[str, Tensor]:
        """Every array's rows of one model batch: all kept tokens (1-D) or all contexts (2-D)."""
        context_ids = self.plan.contexts[self.plan.batch(batch)]
        tokens = self.contexts.take(context_ids)
        mask = self.contexts.mask(context_ids)
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        ids = context_ids.astype(np.int32)
        if self.plan.flat:
            owners = np.broadcast_to(ids[:, None], tokens.shape)
            about = {"tokens": tokens[mask], "positions": positions[mask], "context_ids": owners[mask], "mask": mask[mask]}
        else:
            about = {"tokens": tokens, "positions": positions.copy(), "context_ids": ids, "mask": mask}
        arrays = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in about.items()}
        if model is None:
            return arrays
        found = model.activations(torch.from_numpy(tokens.astype(np.int64)), self.hook_points)
        kept = torch.from_numpy(np.flatnonzero(mask)) if self.plan.flat else None
        for name, acts in found.items():
            if kept is not None:
                acts = acts.flatten(0, 1).index_select(0, kept.to(acts.device))
            if batch == 0:
                self._measure(name, acts)
            for part, stored in self.codec.encode(acts, self.shared[name]).items():
                if not bool(torch.isfinite(stored).all()):
                    self._check_finite(model, name, batch, acts, stored, arrays)
                arrays[array_name(name, part)] = stored.cpu()
        return arrays

    def _measure(self, hook_point: str, acts: Tensor) -> None:
        """The shared parts that are not known; those that are stay as they are."""
        for part, values in self.codec.measure(acts).items():
            if part not in self.shared[hook_point]:
                self.shared[hook_point][part] = values
                self.measured(hook_point, part, values)

    def _check_finite(
        self, model: Model, hook_point: str, batch: int, acts: Tensor, stored: Tensor, about: Mapping[str, Tensor]
    ) -> None:
        """Raise for the first non-finite value of a row."""
        base = int(self.plan.offsets[self.plan.batch(batch).start])
        bad = ~torch.isfinite(stored[: self.plan.n_rows - base]).all(dim=-1).cpu()
        if not bool(bad.any()):
            return
        index = tuple(int(i) for i in bad.nonzero()[0])
        value = acts[index].float().cpu()
        overflow = bool(torch.isfinite(value).all())
        context = int(about["context_ids"][index[0]])
        if overflow:
            what = (
                f"activation {float(value.abs().max()):g} overflows activations.storage_dtype {self.storage_dtype}; "
                "store bfloat16 or float32"
            )
        else:
            # Alone the context may come out finite: kernels differ with the size of a batch.
            tokens = self.contexts.take(np.array([context])).astype(np.int64)
            first = model.first_not_finite(torch.from_numpy(tokens))
            why = "try model.dtype float32, or another model" if first is None else str(first)
            what = f"non-finite activation ({float(value[~torch.isfinite(value)][0])}); {why}"
        raise NumericsError(
            f"hook point {hook_point}: context {context}, "
            f"position {int(about['positions'][index])}, token id {int(about['tokens'][index])} "
            f"(store row {self.plan.store_row(base + index[0])}): {what}"
        )
