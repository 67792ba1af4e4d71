"""Generate an activation store: a pure function of (token store, model, settings), resumable at every block.

1. Plan the rows from the tokens (pipeline.activations.plan).
2. Open the store of this fingerprint; every chunk that is not whole is pending (pipeline.activations.writer).
3. For each block with a pending chunk, in order: run the model batches that its rows come from, all pending hook points in
   one pass; keep the rows that the mask keeps; encode them; check that they are finite; permute; write the pending chunks.
   Writing one block overlaps with the model's work on the next. What a codec measures (the parts that all rows share) it
   measures in the first model batch: while it is pending, so is the first block.
4. Mark the arrays complete and return the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.codecs.interface import storage_codec
from pipeline.activations.fingerprint import GenerationSettings, fingerprint_config
from pipeline.activations.plan import ContextTokens, RowPlan, Split, plan_rows
from pipeline.activations.reader import ActivationStore, open_store
from pipeline.activations.schema import FORMAT_VERSION, STORE_ROOT, array_name, chunk_rows, hook_layouts, row_layouts
from pipeline.activations.writer import StoreWriter
from pipeline.errors import DataError, NumericsError
from pipeline.files import ensure_free_space, fingerprint, locked, unwritable
from pipeline.memory import Need, require_memory
from pipeline.progress import Progress

MARGIN_BYTES = 16 * 2**20


class Tokens(Protocol):
    """What is asked of a token store."""

    digest: str
    context_size: int
    ignore_token_ids: tuple[int, ...]
    ignore_positions: int

    @property
    def train(self) -> Split: ...


class Model(Protocol):
    """What is asked of a language model."""

    @property
    def device(self) -> torch.device: ...
    def activations(self, token_ids: Tensor, hook_points: Sequence[str]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class ModelFacts:
    """What generation must know of a model before its weights are loaded (which a complete store never needs).

    Attributes:
        name, revision: as recorded in the store.
        digest: of configuration and weights.
        d_model: width of the residual stream.
        widths: {hook point: width} of the hook points to generate.
    """

    name: str
    revision: str | None
    digest: str
    d_model: int
    widths: Mapping[str, int]


def generate_store(
    tokens: Tokens,
    model: ModelFacts,
    load_model: Callable[[Sequence[str]], Model],
    settings: GenerationSettings,
    root: Path,
) -> Path:
    """Write, go on with, repair or extend the store of these inputs; afterwards it holds every hook point of `model.widths`.

    Args:
        tokens: the token store; its train split is used.
        model: facts that the fingerprint and the layout depend on.
        load_model: hook points to compute -> the model, called if there are any.
        settings: the generation parameters.
        root: the store root.

    Returns:
        the store's directory, `root/<fingerprint>`.

    Raises:
        DataError: too little text, contexts of another size, no space, another process writing to the store; or the store
            is not whole and cannot be written to.
        NumericsError: a non-finite activation, with hook point, context, position, token and store row.
    """
    for name, what in (("context_size", "contexts of {} tokens"), ("ignore_positions", "{} positions ignored")):
        if (found := getattr(tokens, name)) != (wanted := getattr(settings, name)):
            raise DataError(
                f"data/tokens.zarr: made for other parameters: {what.format(found)}, activations.{name} = {wanted}; "
                "run `dvc repro tokenize`"
            )
    ignored = tokens.ignore_token_ids if settings.ignore_token_ids is None else settings.ignore_token_ids
    config = fingerprint_config(
        settings, tokens_digest=tokens.digest, ignore_token_ids=tuple(ignored), model_digest=model.digest
    )
    path = root / fingerprint(config)
    reason = unwritable(path)
    if reason is not None:
        _check_whole(path, list(model.widths), reason)
        return path
    with locked(root / f"{path.name}.lock", f"the activation store {path.name}"):
        inner = None if settings.target == "activations-1d" else settings.context_size
        rows = chunk_rows(model.d_model, settings.storage_dtype, inner)
        contexts = ContextTokens(tokens.train, ignored, settings.ignore_positions, scratch=str(root))
        plan = plan_rows(contexts, settings, rows)
        layouts = row_layouts(plan.n_rows, inner, rows)
        for name, width in model.widths.items():
            layouts += hook_layouts(name, plan.n_rows, width, inner, rows, settings.storage_dtype)
        attributes = {
            "format_version": FORMAT_VERSION,
            "fingerprint": path.name,
            "config": config,
            "model": {"name": model.name, "revision": model.revision},
            "n_rows": plan.n_rows,
            "chunk_rows": rows,
        }
        writer = StoreWriter(path, attributes, layouts)
        _Generation(writer, plan, contexts, list(model.widths), settings).run(load_model)
        writer.finish()
        writer.remove_leftovers()
    return path


def _check_whole(path: Path, hook_points: Sequence[str], reason: str) -> None:
    """Verify a store that cannot be written to its last byte.

    Raises:
        DataError: something of it is missing or damaged.
    """
    try:
        open_store(path, hook_points).verify()
    except DataError as error:
        what = "incomplete or damaged" if path.exists() else "not there"
        raise DataError(
            f"{path}: the activation store is {what}, and activation stores cannot be written here ({reason}); {STORE_ROOT}"
            + (f" ({error})" if path.exists() else "")
        ) from None


class _Generation:
    def __init__(
        self,
        writer: StoreWriter,
        plan: RowPlan,
        contexts: ContextTokens,
        hook_points: Sequence[str],
        settings: GenerationSettings,
    ) -> None:
        self.writer, self.plan, self.contexts, self.settings = writer, plan, contexts, settings
        self.codec = storage_codec(settings.storage_dtype)
        self.hook_points = [name for name in hook_points if self._pending(name)]
        self.shared = {name: self._shared(name) for name in self.hook_points}
        self._held: tuple[int, dict[str, Tensor]] = (-1, {})

    def _pending(self, hook_point: str) -> bool:
        return any(self.writer.arrays[array_name(hook_point, part)].pending.any() for part in self.codec.parts)

    def _shared(self, hook_point: str) -> dict[str, Tensor]:
        """What is stored of a hook point's shared parts; the others are measured in the first model batch."""
        arrays = {part: self.writer.arrays[array_name(hook_point, part)] for part in self.codec.shared_parts}
        return {part: array.read_chunk(0) for part, array in arrays.items() if not array.pending[0]}

    def pending_blocks(self) -> list[int]:
        """Blocks with a chunk that is not whole."""
        found: set[int] = set()
        for array in self.writer.arrays.values():
            rows = np.flatnonzero(array.pending) * array.layout.chunk_rows
            found.update((rows // self.plan.block_rows).tolist())
        return sorted(found)

    def run(self, load_model: Callable[[Sequence[str]], Model]) -> None:
        blocks = self.pending_blocks()
        if not blocks:
            return
        ensure_free_space(self.writer.path, self.writer.pending_bytes() + MARGIN_BYTES, "activations")
        self._check_memory()
        model = load_model(self.hook_points) if self.hook_points else None
        per_row = 1 if self.plan.flat else self.settings.context_size
        rows = sum(stop - start for start, stop in map(self.plan.block, blocks))
        progress = Progress("generate", self.plan.n_rows * per_row, done=(self.plan.n_rows - rows) * per_row)
        with ThreadPoolExecutor(1, "activation writer") as pool:
            writing: Future[None] | None = None
            for block in blocks:
                arrays = self._collect(model, block, lambda n: progress.update(n * per_row))
                if writing is not None:
                    writing.result()
                writing = pool.submit(self._write, block, arrays)
            if writing is not None:
                writing.result()
        progress.close()

    def _check_memory(self) -> None:
        """Refuse batches whose rows cannot be held."""
        n_contexts = min(self.settings.model_batch_size, len(self.plan.contexts))
        rows = min(int(self.plan.offsets[n_contexts]), self.plan.n_rows)
        names = [array_name(hook, part) for hook in self.hook_points for part in self.codec.token_parts]
        n_bytes = rows * sum(self.writer.arrays[name].layout.row_bytes for name in names)
        key = {"activations.model_batch_size": self.settings.model_batch_size}
        require_memory(Need(f"the activations of {n_contexts:,} contexts", n_bytes, key))

    def _write(self, block: int, arrays: Mapping[str, Tensor]) -> None:
        order = self.plan.permutation(block)
        for name, rows in arrays.items():
            self.writer.write_rows(name, self.plan.block(block)[0], rows, order)

    def _collect(self, model: Model | None, block: int, done: Callable[[int], None]) -> dict[str, Tensor]:
        """The rows of a block in sequence order."""
        start, stop = self.plan.block(block)
        arrays: dict[str, Tensor] = {}
        for batch in self.plan.batches(block):
            if self._held[0] != batch:  # a batch on a boundary serves both blocks
                self._held = (batch, self._batch(model, batch))
            base = int(self.plan.offsets[self.plan.batch(batch).start])
            for name, rows in self._held[1].items():
                if name not in arrays:
                    arrays[name] = torch.empty((stop - start, *rows.shape[1:]), dtype=rows.dtype)
                first, last = max(start, base), min(stop, base + len(rows))
                arrays[name][first - start : last - start] = rows[first - base : last - base]
            done(last - first)
        return arrays

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
                    self._check_finite(name, batch, acts, stored, arrays)
                arrays[array_name(name, part)] = stored.cpu()
        return arrays

    def _measure(self, hook_point: str, acts: Tensor) -> None:
        """Write the shared parts that are not stored; those that are stay as they are."""
        for part, values in self.codec.measure(acts).items():
            if part not in self.shared[hook_point]:
                self.shared[hook_point][part] = values
                self.writer.write_rows(array_name(hook_point, part), 0, values, None)

    def _check_finite(self, hook_point: str, batch: int, acts: Tensor, stored: Tensor, about: Mapping[str, Tensor]) -> None:
        """Raise for the first non-finite value of a row that is stored."""
        base = int(self.plan.offsets[self.plan.batch(batch).start])
        bad = ~torch.isfinite(stored[: self.plan.n_rows - base]).all(dim=-1).cpu()
        if not bool(bad.any()):
            return
        index = tuple(int(i) for i in bad.nonzero()[0])
        value = acts[index].float().cpu()
        overflow = bool(torch.isfinite(value).all())
        what = (
            f"activation {float(value.abs().max()):g} overflows activations.storage_dtype {self.settings.storage_dtype}; "
            "store bfloat16 or float32"
            if overflow
            else f"non-finite activation ({float(value[~torch.isfinite(value)][0])}); try model.dtype float32, or another model"
        )
        raise NumericsError(
            f"hook point {hook_point}: context {int(about['context_ids'][index[0]])}, "
            f"position {int(about['positions'][index])}, token id {int(about['tokens'][index])} "
            f"(store row {self.plan.store_row(base + index[0])}): {what}"
        )


def store_manifest(store: ActivationStore, path: str | None = None) -> dict[str, Any]:
    """data/activations.json: what the store holds and its name under the store root; no times, no place of this machine.

    Args:
        store: opened with the hook points to list.
        path: `activations.path` where that names the store (relative to the checkout); else None.
    """
    digests = store.digests
    hook_points = {
        name: {"shape": list(store.shape(name)), "dtype": store.storage_dtype, "digest": digests.pop(name)}
        for name in store.hook_points
    }
    return {
        "format_version": FORMAT_VERSION,
        "store": store.path.name,
        "path": path,
        "fingerprint": store.fingerprint,
        "target": store.target,
        "n_rows": store.n_rows,
        "n_tokens": store.n_tokens,
        "context_size": store.context_size,
        "storage_dtype": store.storage_dtype,
        "chunk_rows": store.chunk_rows,
        "hook_points": hook_points,
        "digests": digests,
        "config": store.config,
        "model": {key: value for key, value in store.model.items() if key != "models"},  # those have manifests of their own
    }
