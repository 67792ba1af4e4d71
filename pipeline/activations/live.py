"""Live activations: rows are computed by the language model when they are asked for, and nothing is written.

Row i is row i of the store of the same parameters, storage_dtype included: the same bits at the same model batch size, on the
CPU with the same number of threads. Batches mix windows of buffer_size rows, as those of a store, but a window is a run of
neighbouring blocks (contexts are in random order already), so that each model batch of an epoch is run once. Where one window
holds all rows, the model runs once for all epochs. The next window is computed in a thread while batches are taken from the
present one. A window has at least 16 blocks, since the contexts of one are few. A row may be asked for from several threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.batches import ActivationBatch, ChunkSource, Delivery, RowsMeta, iterate_batches, require_window
from pipeline.activations.codecs.interface import storage_codec
from pipeline.activations.computing import BlockRows, Model
from pipeline.activations.fingerprint import GenerationSettings
from pipeline.activations.interface import Activations
from pipeline.activations.order import BatchPlan
from pipeline.activations.plan import ContextTokens, RowPlan, plan_rows
from pipeline.activations.schema import BLOCK_ROWS, REGENERATE, ROW_ARRAYS, ArrayLayout, array_name, hook_layouts, row_layouts
from pipeline.errors import DataError, unknown_name
from pipeline.hook_keys import MAIN, join_key, split_key

DEFAULT_BUFFER = 2**20


@dataclasses.dataclass(frozen=True)
class LiveModel:
    """One language model.

    Attributes:
        widths: {hook point: width} of those that are computed, in one pass.
        config: the settings that its rows depend on (:func:`pipeline.activations.fingerprint.fingerprint_config`).
        fingerprint: their digest.
        load: hook points -> the model, when the first row of it is asked for; None -> the whole model, with its logits.
    """

    widths: Mapping[str, int]
    config: Mapping[str, Any]
    fingerprint: str
    load: Callable[[Sequence[str] | None], Model]


def plan_live(contexts: ContextTokens, settings: GenerationSettings, chunk_rows: int) -> RowPlan:
    """The plan of a store's rows; 2-D rows, which are not permuted, in blocks of whole model batches.

    Raises:
        DataError: fewer kept tokens than total_tokens.
    """
    plan = plan_rows(contexts, settings, chunk_rows)
    if plan.flat:
        return plan
    batches = max(1, BLOCK_ROWS // (settings.context_size * settings.model_batch_size))
    return dataclasses.replace(plan, block_rows=batches * settings.model_batch_size)


class _Blocks:
    """Blocks of one model in the order of their rows; the last one is kept."""

    def __init__(self, rows: BlockRows, load: Callable[[Sequence[str] | None], Model] | None) -> None:
        self.rows, self.load = rows, load
        self.model: Model | None = None
        self.last: tuple[int, dict[str, Tensor]] = (-1, {})
        self.lock = threading.Lock()
        self.threads = torch.get_num_threads()

    def block(self, number: int) -> dict[str, Tensor]:
        """{array: its rows} of a block."""
        with self.lock:
            if self.last[0] != number:
                self.last = number, self._computed(number)
            return self.last[1]

    def shared(self, hook_point: str) -> dict[str, Tensor]:
        """The parts that all rows of a hook point share."""
        if self.rows.codec.shared_parts:
            with self.lock:
                self._loaded()
        return self.rows.shared[hook_point]

    def _computed(self, number: int) -> dict[str, Tensor]:
        if self.load is None:
            arrays = self.rows.block(None, number)
        else:
            model = self._loaded()
            with _own_stream(model.device):
                arrays = self.rows.block(model, number)
        order = self.rows.plan.permutation(number)
        return arrays if order is None else {name: rows.index_select(0, order) for name, rows in arrays.items()}

    def _loaded(self) -> Model:
        torch.set_num_threads(self.threads)  # each thread has its own, and with another number bits may differ
        if self.model is None:
            assert self.load is not None
            self.model = self.load(self.rows.hook_points)
            if self.rows.codec.shared_parts:
                self.rows.measure(self.model)
        return self.model


def _own_stream(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Beside what the dictionary computes on the same device."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class _LiveArray:
    """An array of blocks, as the windows read it: a chunk is a block."""

    layout: ArrayLayout
    blocks: _Blocks
    name: str

    def ahead(self, chunks: Sequence[int]) -> None:
        """Nothing: a block is computed when it is asked for."""

    def scatter_chunk(self, out: Tensor, places: np.ndarray, chunk: int, start: int, stop: int) -> None:
        first, _ = self.blocks.rows.plan.block(chunk)
        out.index_copy_(0, torch.from_numpy(places), self.blocks.block(chunk)[self.name][start - first : stop - first])


class LiveActivations(Activations):
    """Activations that are computed when they are asked for.

    Args:
        path: of the manifest; for messages.
        about: what the manifest says: model, n_rows, chunk_rows.
        models: {alias: model}; the main model's alias is the empty string.
        tokens_path: the token store of which they are planned.
    """

    source = "live"

    def __init__(self, path: Path, about: Mapping[str, Any], models: Mapping[str, LiveModel], tokens_path: Path) -> None:
        self.path, self.models, self.tokens_path = path, dict(models), tokens_path
        main = self.models[MAIN]
        self.config = main.config
        self.fingerprint = main.fingerprint
        self.model: dict[str, Any] = dict(about["model"])
        self.n_rows: int = about["n_rows"]
        self.chunk_rows: int = about["chunk_rows"]
        self.target, self.context_size = self.config["target"], self.config["context_size"]
        self.storage_dtype: str = self.config["storage_dtype"]
        self._codec = storage_codec(self.storage_dtype)
        inner = None if self.target == "activations-1d" else self.context_size
        self._layouts = {layout.name: layout for layout in row_layouts(self.n_rows, inner, self.chunk_rows)}
        self._widths: dict[str, int] = {}
        for alias, model in self.models.items():
            for name, width in model.widths.items():
                key = join_key(alias, name)
                self._widths[key] = width
                found = hook_layouts(key, self.n_rows, width, inner, self.chunk_rows, self.storage_dtype)
                self._layouts |= {layout.name: layout for layout in found}

    @property
    def hook_points(self) -> list[str]:
        return list(self._widths)

    def width(self, hook_point: str) -> int:
        if hook_point not in self._widths:
            raise DataError(
                f"{self.path}: live activations: {unknown_name('hook point', hook_point, self._widths)}; {REGENERATE}"
            )
        return self._widths[hook_point]

    def settings(self) -> dict[str, Mapping[str, Any]]:
        return {f"{self.path}" + f", model {alias}" * bool(alias): model.config for alias, model in self.models.items()}

    def made_from(self) -> dict[str, str]:
        digests = {f"model {alias}".strip(): str(model.config["model_digest"]) for alias, model in self.models.items()}
        return {"activations": self.fingerprint, "tokens": str(self.config["tokens_digest"]), **digests}

    def content(self, hook_points: Sequence[str]) -> dict[str, str]:
        return {f"live {hook}": self.models[split_key(hook)[0]].fingerprint for hook in hook_points}

    @cached_property
    def _contexts(self) -> ContextTokens:
        from pipeline.corpus.tokens import open_tokens

        tokens = open_tokens(self.tokens_path)
        if tokens.digest != self.config["tokens_digest"]:
            raise DataError(
                f"{self.path}: live activations were planned from other tokens (digest {self.config['tokens_digest'][:12]}, "
                f"found {tokens.digest[:12]}); {REGENERATE}"
            )
        return ContextTokens(tokens.train, self.config["ignore_token_ids"], self.config.get("ignore_positions", 0))

    @cached_property
    def plan(self) -> RowPlan:
        """Which token goes to which row.

        Raises:
            DataError: the tokens are not those that the manifest was made from.
        """
        plan = plan_live(self._contexts, GenerationSettings.of_config(self.config), self.chunk_rows)
        if plan.n_rows != self.n_rows:
            raise DataError(
                f"{self.path}: live activations of {plan.n_rows:,} rows, the manifest has {self.n_rows:,}; {REGENERATE}"
            )
        return plan

    @cached_property
    def _blocks(self) -> dict[str | None, _Blocks]:
        """Of each model by its alias; of None, what the rows are of."""

        def of(model: LiveModel | None) -> _Blocks:
            hooks = [] if model is None else list(model.widths)
            rows = BlockRows(self.plan, self._contexts, hooks, self.storage_dtype)
            return _Blocks(rows, None if model is None else model.load)

        return {None: of(None), **{alias: of(model) for alias, model in self.models.items()}}

    def whole_model(self) -> Model:
        """The main model with all its blocks and logits, beside the one that computes the rows."""
        return self.models[MAIN].load(None)

    def contexts_within(self, rows: tuple[int, int]) -> np.ndarray:
        """int64: ids of the contexts all of whose rows are among rows (first, last + 1), in the order of the rows."""
        return self.plan.contexts_within(rows)

    def context_tokens(self, context_ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens of some contexts, int64 [n, T], and which of them are kept, bool [n, T]."""
        tokens, mask = self._contexts.take(context_ids), self._contexts.mask(context_ids)
        return torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(mask)

    def read(self, hook_point: str, start: int, stop: int) -> Tensor:
        return self.read_together([hook_point], start, stop)[hook_point]

    def read_together(self, hook_points: Iterable[str], start: int, stop: int) -> dict[str, Tensor]:
        start, stop = max(start, 0), min(stop, self.n_rows)
        out = {}
        for name in dict.fromkeys(hook_points):
            dtype = self._layouts[name].element.torch_dtype if name in ROW_ARRAYS else self._codec.dtype
            shape = self._layouts[name].shape[1:] if name in ROW_ARRAYS else self.shape(name)[1:]
            out[name] = torch.empty((max(stop - start, 0), *shape), dtype=dtype)
        size = self.plan.block_rows
        for block in range(start // size, -(-stop // size)) if stop > start else ():
            first, last = self.plan.block(block)
            inside = slice(max(start, first) - first, min(stop, last) - first)
            for name, rows in out.items():
                rows[inside.start + first - start : inside.stop + first - start] = self._rows(name, block, inside)
        return out

    def _rows(self, name: str, block: int, inside: slice) -> Tensor:
        """Decoded rows of a block."""
        if name in ROW_ARRAYS:
            return self._blocks[None].block(block)[name][inside]
        alias, hook = split_key(name)
        found = self._blocks[alias].block(block)
        parts = {part: found[array_name(hook, part)][inside] for part in self._codec.token_parts}
        return self._codec.decode(parts | self._blocks[alias].shared(hook), self._codec.dtype)

    def read_rows_meta(self, start: int, stop: int) -> RowsMeta:
        found = self.read_together(ROW_ARRAYS, start, stop)
        return RowsMeta(*(found[name] for name in ROW_ARRAYS))

    def rows_meta(self, rows: Tensor) -> RowsMeta:
        """Tokens, positions, context ids and mask of any rows: int64 [n], in the order given."""
        blocks = rows // self.plan.block_rows
        found = {name: torch.empty((len(rows), *self._layouts[name].shape[1:]), dtype=self._layouts[name].element.torch_dtype)
                 for name in ROW_ARRAYS}  # fmt: skip
        for block in blocks.unique().tolist():
            here = (blocks == block).nonzero().squeeze(1)
            content, first = self._blocks[None].block(block), self.plan.block(block)[0]
            for name in ROW_ARRAYS:
                found[name][here] = content[name][rows[here] - first]
        return RowsMeta(*(found[name] for name in ROW_ARRAYS))

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
        """Shuffled batches: rows mixed in windows of `buffer_rows`, windows in random order, another order every epoch.

        Two windows are held in memory. The first batch comes when the first window has been computed; going on at `start`
        computes no window before its own.

        Args:
            As :meth:`Activations.batches`.

        Raises:
            DataError: fewer rows than a batch.
            ParamsError: a window cannot be held.
            NumericsError: a non-finite activation.
        """
        size = self.plan.block_rows
        window = (buffer_rows or DEFAULT_BUFFER) * self.n_rows // self.n_tokens
        plan = BatchPlan(seed, rows or (0, self.n_rows), size, batch_size, window, drop_last, runs=True)
        names = list(hook_points) if hook_points is not None else self.hook_points
        arrays: dict[str, ChunkSource] = {}
        for key in names:
            self.width(key)
            alias, hook = split_key(key)
            for part in self._codec.token_parts:
                name = array_name(key, part)
                arrays[name] = _LiveArray(self._layouts[name], self._blocks[alias], array_name(hook, part))
        if self.target == "activations-2d":
            arrays["mask"] = _LiveArray(self._layouts["mask"], self._blocks[None], "mask")
        require_window(self.path, plan, arrays, buffer_rows or DEFAULT_BUFFER)
        stop = None if epochs is None else epochs * plan.batches_per_epoch
        shared = {key: self._blocks[split_key(key)[0]].shared(split_key(key)[1]) for key in names}
        delivery = Delivery(shared, self.rows_meta, self._codec, dtype, encoded, pin_memory)
        return iterate_batches(arrays, plan, delivery, start=start, stop=stop, prefetch=prefetch, dear=True)
