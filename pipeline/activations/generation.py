"""Generate an activation store: a pure function of (token store, model, settings), resumable at every block.

1. Plan the rows from the tokens (pipeline.activations.plan).
2. Open the store of this fingerprint; every chunk that is not whole is pending (pipeline.activations.writer).
3. For each block with a pending chunk, in order: compute its rows (pipeline.activations.computing), all pending hook points
   in one pass; permute; write the pending chunks. Writing one block overlaps with the model's work on the next. What a codec
   measures, it measures in the first model batch: while it is pending, so is the first block.
4. Mark the arrays complete and return the manifest.

Of several processes each takes a run of the pending blocks, so that a model batch on a boundary is computed twice for each
process and not for each block. Since a block comes from the same model batches wherever it is computed, the store is the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from pipeline.activations.codecs.interface import storage_codec
from pipeline.activations.computing import BlockRows, Model, require_batch
from pipeline.activations.fingerprint import GenerationSettings, fingerprint_config
from pipeline.activations.plan import ContextTokens, RowPlan, Tokens, plan_rows
from pipeline.activations.reader import ActivationStore, open_store
from pipeline.activations.remote import stated_url
from pipeline.activations.schema import FORMAT_VERSION, STORE_ROOT, array_name, chunk_rows, hook_layouts, row_layouts
from pipeline.activations.writer import StoreChunks, StoreWriter
from pipeline.dealing import by_the_first, in_turns
from pipeline.ending import writes
from pipeline.errors import DataError
from pipeline.files import ensure_free_space, fingerprint, locked, unwritable
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.progress import Progress

MARGIN_BYTES = 16 * 2**20


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
    processes: Reductions = ONE_PROCESS,
) -> Path:
    """Write, go on with, repair or extend the store of these inputs; afterwards it holds every hook point of `model.widths`.

    Args:
        tokens: the token store; its train split is used.
        model: facts that the fingerprint and the layout depend on.
        load_model: hook points to compute -> the model, called if there are any.
        settings: the generation parameters.
        root: the store root.
        processes: that do this together; when the first one comes back, the store is whole.

    Returns:
        the store's directory, `root/<fingerprint>`.

    Raises:
        DataError: too little text, contexts of another size, no space, another process writing to the store; or the store
            is not whole and cannot be written to.
        NumericsError: a non-finite activation, with hook point, context, position, token and store row.
    """
    check_tokens(tokens, settings)
    ignored = tokens.ignore_token_ids if settings.ignore_token_ids is None else settings.ignore_token_ids
    config = fingerprint_config(
        settings, tokens_digest=tokens.digest, ignore_token_ids=tuple(ignored), model_digest=model.digest
    )
    path = root / fingerprint(config)
    (reasons,) = in_turns(processes.size, lambda _: unwritable(path), processes)
    if any(reasons):
        reason = next(filter(None, reasons))
        by_the_first(lambda: _check_whole(path, list(model.widths), reason), processes)
        return path
    with contextlib.ExitStack() as held:
        by_the_first(lambda: held.enter_context(locked(_lock(path), f"the activation store {path.name}")), processes)
        root.mkdir(parents=True, exist_ok=True)  # of one process on another machine it may not be there
        inner = None if settings.target == "activations-1d" else settings.context_size
        if processes.rank == 0 and stated_url() is None:
            writes(path)
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
        writers: list[StoreWriter] = []

        def opened() -> dict[str, dict[int, str]]:
            writers.append(StoreWriter(path, attributes, layouts))
            if writers[0].remote is None and (n_bytes := writers[0].pending_bytes()):
                ensure_free_space(path, n_bytes + MARGIN_BYTES, "activations")
            return writers[0].digests

        whole = by_the_first(opened, processes)
        chunks = writers[0] if writers else StoreChunks(path, layouts, whole, settings.compressor)
        _Generation(chunks, plan, contexts, list(model.widths), settings, processes).run(load_model)
        for writer in writers:
            writer.finish()
            writer.remove_leftovers()
    return path


def _lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def check_tokens(tokens: Tokens, settings: GenerationSettings) -> None:
    """Refuse tokens of other parameters.

    Raises:
        DataError: contexts of another size, or with other positions ignored.
    """
    for name, what in (("context_size", "contexts of {} tokens"), ("ignore_positions", "{} positions ignored")):
        if (found := getattr(tokens, name)) != (wanted := getattr(settings, name)):
            raise DataError(
                f"data/tokens.zarr: made for other parameters: {what.format(found)}, activations.{name} = {wanted}; "
                "run `dvc repro tokenize`"
            )


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


class _Block(NamedTuple):
    """What a process tells of a block.

    Attributes:
        rank: of the process.
        rows: of the block.
        written: {array: {chunk: digest}} of blocks before, that the first process is to record.
    """

    rank: int
    rows: int
    written: Mapping[str, Mapping[int, str]]


class _Generation:
    """The pending blocks of a store, dealt to processes.

    Args:
        chunks: the store, open for writing; of the first process a StoreWriter.
        plan, contexts, hook_points, settings: of all rows.
        processes: that share the work.
    """

    def __init__(
        self,
        chunks: StoreChunks,
        plan: RowPlan,
        contexts: ContextTokens,
        hook_points: Sequence[str],
        settings: GenerationSettings,
        processes: Reductions,
    ) -> None:
        self.chunks, self.plan, self.settings, self.processes = chunks, plan, settings, processes
        self.codec = storage_codec(settings.storage_dtype)
        self.hook_points = [name for name in hook_points if self._pending(name)]
        shared = by_the_first(lambda: {name: self._shared(name) for name in self.hook_points}, processes)
        self.rows = BlockRows(plan, contexts, self.hook_points, settings.storage_dtype, shared, self._write_shared)
        self._writing: list[Future[None]] = []

    def _pending(self, hook_point: str) -> bool:
        return any(self.chunks.arrays[array_name(hook_point, part)].pending.any() for part in self.codec.parts)

    def _shared(self, hook_point: str) -> dict[str, Tensor]:
        """What is stored of a hook point's shared parts; the others are measured in the first model batch."""
        assert isinstance(self.chunks, StoreWriter)
        arrays = {part: self.chunks.arrays[array_name(hook_point, part)] for part in self.codec.shared_parts}
        return {part: array.read_chunk(0) for part, array in arrays.items() if not array.pending[0]}

    def pending_blocks(self) -> list[int]:
        """Blocks with a chunk that is not whole."""
        found: set[int] = set()
        for array in self.chunks.arrays.values():
            rows = np.flatnonzero(array.pending) * array.layout.chunk_rows
            found.update((rows // self.plan.block_rows).tolist())
        return sorted(found)

    def run(self, load_model: Callable[[Sequence[str]], Model]) -> None:
        """Compute and write every pending block; in the first process they are recorded when this comes back."""
        blocks = self.pending_blocks()
        if not blocks:
            return
        names = [array_name(hook, part) for hook in self.hook_points for part in self.codec.token_parts]
        require_batch(self.plan, [self.chunks.arrays[name].layout for name in names])
        model = None
        if self.hook_points and self.processes.rank < len(blocks):
            model = load_model(self.hook_points)
        per_row = 1 if self.plan.flat else self.settings.context_size
        rows = sum(stop - start for start, stop in map(self.plan.block, blocks))
        first = f"{min(self.plan.model_batch_size, len(self.plan.contexts)):,} contexts of {self.settings.context_size} tokens"
        n_tokens = self.plan.n_rows * per_row
        progress = Progress("generate", n_tokens, done=n_tokens - rows * per_row, first=first)
        self._measure(model)
        order = in_runs(blocks, self.processes.size)
        with ThreadPoolExecutor(1, "activation writer") as pool:

            def done(place: int) -> _Block:
                arrays = self.rows.block(model, order[place], lambda n: progress.update(n * per_row))
                self._settle()
                written = self.chunks.take_untold()
                self._writing.append(pool.submit(self._write, order[place], arrays))
                return _Block(self.processes.rank, len(next(iter(arrays.values()))), written)

            def last(rank: int) -> _Block:
                self._settle()
                return _Block(rank, 0, self.chunks.take_untold())

            def told(turn: Sequence[_Block]) -> None:
                for block in turn:
                    if block.rank != self.processes.rank:
                        progress.update(block.rows * per_row)
                        if isinstance(self.chunks, StoreWriter) and block.written:
                            self._writing.append(pool.submit(self.chunks.record, block.written))

            for turn in in_turns(len(order), done, self.processes):
                told(turn)
            for turn in in_turns(self.processes.size, last, self.processes):
                told(turn)
            self._settle()
        progress.close()

    def _settle(self) -> None:
        """Wait until all is written that was begun."""
        for future in self._writing:
            future.result()
        self._writing.clear()

    def _measure(self, model: Model | None) -> None:
        """What the codec measures is known afterwards, the same in all processes."""
        known = self.rows.shared
        if all(part in known[name] for name in self.hook_points for part in self.codec.shared_parts):
            return

        def measured() -> dict[str, dict[str, Tensor]]:
            assert model is not None  # the first process has a block
            self.rows.measure(model)
            return self.rows.shared

        self.rows.shared = by_the_first(measured, self.processes)

    def _write_shared(self, hook_point: str, part: str, values: Tensor) -> None:
        if isinstance(self.chunks, StoreWriter):
            self.chunks.write_rows(array_name(hook_point, part), 0, values, None)

    def _write(self, block: int, arrays: Mapping[str, Tensor]) -> None:
        order = self.plan.permutation(block)
        for name, rows in arrays.items():
            self.chunks.write_rows(name, self.plan.block(block)[0], rows, order)


def in_runs(blocks: Sequence[int], size: int) -> list[int]:
    """The blocks in an order in which process r, that takes every `size`-th from the r-th on, has a run of neighbours."""
    runs = np.array_split(np.array(blocks, dtype=np.int64), size)
    return [int(run[turn]) for turn in range(len(runs[0])) for run in runs if turn < len(run)]


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
