"""An open activation store: rows, shuffled batches, and every check of the store that costs no read when it is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.activations.arrays import ArrayReader, describes_group, read_node
from pipeline.activations.batches import ActivationBatch, Delivery, RowsMeta, iterate_batches, require_window
from pipeline.activations.codecs.interface import storage_codec
from pipeline.activations.compression import compressor
from pipeline.activations.interface import Activations
from pipeline.activations.order import BatchPlan
from pipeline.activations.remote import remote_of
from pipeline.activations.schema import (
    FORMAT_VERSION,
    PART,
    REGENERATE,
    ROW_ARRAYS,
    array_name,
    hook_layouts,
    row_layouts,
)
from pipeline.errors import DataError, unknown_name
from pipeline.files import fingerprint
from pipeline.hook_keys import join_key


class ActivationStore(Activations):
    """A complete activation store; :func:`open_store` makes it.

    Attributes:
        path: its directory.
        config: the settings that its values depend on.
        model: as the run that made the store gave it.
        joined: {alias: store} of other models, whose hook points are here as `alias:<hook point>`.
        chunk_rows: rows per chunk, the same for every array.
    """

    source = "store"

    def __init__(self, path: Path, attributes: Mapping[str, Any], hook_points: Sequence[str] | None) -> None:
        self.path = path
        self.fingerprint: str = attributes["fingerprint"]
        self.config: dict[str, Any] = attributes["config"]
        self.model: dict[str, Any] = dict(attributes["model"])
        self.joined: dict[str, ActivationStore] = {}
        self.n_rows: int = attributes["n_rows"]
        self.chunk_rows: int = attributes["chunk_rows"]
        self.target: str = self.config["target"]
        self.context_size: int = self.config["context_size"]
        self.storage_dtype: str = self.config["storage_dtype"]
        self._codec = storage_codec(self.storage_dtype)
        inner = None if self.target == "activations-1d" else self.context_size
        about = remote_of(path), compressor(self.config.get("compressor"))
        layouts = row_layouts(self.n_rows, inner, self.chunk_rows)
        self._arrays = {layout.name: ArrayReader(path / layout.name, layout, *about) for layout in layouts}
        found = _stored_hook_points(path)
        for name in found if hook_points is None else hook_points:
            if name not in found:
                raise DataError(f"{path}: activation store: {unknown_name('hook point', name, found)}; {REGENERATE}")
            for layout in hook_layouts(name, self.n_rows, found[name], inner, self.chunk_rows, self.storage_dtype):
                self._arrays[layout.name] = ArrayReader(path / layout.name, layout, *about)

    def attach(self, alias: str, other: ActivationStore) -> None:
        """Add the hook points of a store with the same rows (:func:`pipeline.activations.joining.join_` checks them)."""
        self.joined[alias] = other
        self.model["models"] = {**self.model.get("models", {}), alias: other.model}
        for name in other.hook_points:
            key = join_key(alias, name)
            self._arrays |= {array_name(key, part): array for part, array in other.parts(name).items()}

    @property
    def hook_points(self) -> list[str]:
        """Names of the hook points that were opened, in the order asked for (sorted where none were named)."""
        return [name for name in self._arrays if name not in ROW_ARRAYS and PART not in name]

    @property
    def digests(self) -> dict[str, str]:
        """Content digest of every opened array."""
        return {name: array.digest for name, array in self._arrays.items()}

    def width(self, hook_point: str) -> int:
        return self.array(hook_point).layout.shape[-1]

    def settings(self) -> dict[str, Mapping[str, Any]]:
        return {str(store.path): store.config for store in (self, *self.joined.values())}

    def made_from(self) -> dict[str, str]:
        models = {"model": self} | {f"model {alias}": other for alias, other in self.joined.items()}
        digests = {name: str(store.config["model_digest"]) for name, store in models.items()}
        return {"activations": self.fingerprint, "tokens": str(self.config["tokens_digest"]), **digests}

    def content(self, hook_points: Sequence[str]) -> dict[str, str]:
        found = {array_name(hook, part): array.digest for hook in hook_points for part, array in self.parts(hook).items()}
        return found if self.target == "activations-1d" else found | {"mask": self.array("mask").digest}

    def array(self, name: str) -> ArrayReader:
        """The reader of one array: a hook point's rows, another part of one, tokens, positions, context_ids or mask.

        Raises:
            DataError: no such array.
        """
        if name not in self._arrays:
            raise DataError(
                f"{self.path}: activation store: {unknown_name('hook point', name, self.hook_points)}; {REGENERATE}"
            )
        return self._arrays[name]

    def parts(self, hook_point: str) -> dict[str, ArrayReader]:
        """The arrays that a hook point is stored in, by the names that its codec gives them.

        Raises:
            DataError: no such hook point.
        """
        return {part: self.array(array_name(hook_point, part)) for part in self._codec.parts}

    def read(self, hook_point: str, start: int, stop: int) -> Tensor:
        if hook_point in ROW_ARRAYS:
            return self._stored(self.array(hook_point), start, stop)
        parts = self.parts(hook_point)
        found = {part: self._stored(parts[part], start, stop) for part in self._codec.token_parts}
        return self._codec.decode(found | self.shared(hook_point), self._codec.dtype)

    def shared(self, hook_point: str) -> dict[str, Tensor]:
        """The parts of a hook point that all rows share, by the names that its codec gives them.

        Raises:
            DataError: no such hook point, or a part is missing or altered.
        """
        parts = self.parts(hook_point)
        return {part: parts[part].whole() for part in self._codec.shared_parts}

    def _stored(self, array: ArrayReader, start: int, stop: int) -> Tensor:
        start, stop = max(start, 0), min(stop, self.n_rows)
        out = array.empty(max(stop - start, 0))
        if stop > start:
            array.read_into(out, start, stop)
        return out

    def read_rows_meta(self, start: int, stop: int) -> RowsMeta:
        return RowsMeta(*(self.read(name, start, stop) for name in ROW_ARRAYS))

    def verify(self, done: Callable[[int], None] = lambda n: None) -> None:
        """Read every chunk of every opened array and check its digest; `done` is called with numbers of rows.

        Raises:
            DataError: names the first chunk that is missing, truncated or altered.
        """
        for array in self._arrays.values():
            for chunk in range(array.layout.n_chunks):
                start, stop = array.layout.rows_of(chunk)
                array.read_into(array.empty(stop - start), start, stop)
                done(stop - start)

    def rows_meta(self, rows: Tensor) -> RowsMeta:
        """Tokens, positions, context ids and mask of any rows: int64 [n], in the order given."""
        order = rows.argsort()
        ordered = rows[order]
        chunks, counts = (ordered // self.chunk_rows).unique_consecutive(return_counts=True)
        found = []
        for array in (self.array(name) for name in ROW_ARRAYS):
            out = array.empty(len(rows))
            for chunk, part in zip(chunks.tolist(), order.split(counts.tolist()), strict=True):
                start, stop = array.layout.rows_of(chunk)
                content = array.empty(stop - start)
                array.read_into(content, start, stop)
                out[part] = content[rows[part] - start]
            found.append(out)
        return RowsMeta(*found)

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
        """Shuffled batches: chunks in random order, rows mixed in windows of `buffer_rows`, another order every epoch.

        A window has at least 16 chunks, and two of them are held in memory. The order is a function of (seed, rows,
        buffer_rows, batch_size) and of the store. Every batch has tensors of its own, which stay valid.

        Args:
            As :meth:`Activations.batches`.

        Raises:
            DataError: fewer rows than a batch, a chunk that is missing or altered.
            ParamsError: a window cannot be held.
        """
        window = (buffer_rows or 2**20) * self.n_rows // self.n_tokens
        plan = BatchPlan(seed, rows or (0, self.n_rows), self.chunk_rows, batch_size, window, drop_last)
        names = list(hook_points) if hook_points is not None else self.hook_points
        parts = {array_name(name, part): array for name in names for part, array in self.parts(name).items()}
        arrays = {name: array for name, array in parts.items() if not array.layout.shared}
        if self.target == "activations-2d":
            arrays["mask"] = self.array("mask")
        require_window(self.path, plan, arrays, buffer_rows or 2**20)
        stop = None if epochs is None else epochs * plan.batches_per_epoch
        shared = {name: self.shared(name) for name in names}
        delivery = Delivery(shared, self.rows_meta, self._codec, dtype, encoded, pin_memory)
        return iterate_batches(arrays, plan, delivery, start=start, stop=stop, prefetch=prefetch)


def _stored_hook_points(path: Path) -> dict[str, int]:
    """{hook point: width} of the arrays in a store's directory, sorted by name."""
    found = {}
    for node in sorted(path.glob("*/zarr.json")):
        if node.parent.name not in ROW_ARRAYS and PART not in node.parent.name:
            try:
                found[node.parent.name] = int(json.loads(node.read_text())["shape"][-1])
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError, ValueError):
                found[node.parent.name] = -1  # ArrayReader names the fault
    return found


def holds_store(path: Path) -> bool:
    """Whether a path is that of a store, by the names of its files."""
    return all((path / name / "zarr.json").is_file() for name in ("positions", "context_ids"))


def open_store(path: Path, hook_points: Sequence[str] | None = None) -> ActivationStore:
    """Open the store in directory `path`, with `hook_points` or all that it has.

    Raises:
        DataError: missing, incomplete, damaged, of another format, or without such a hook point.
    """
    remote = remote_of(path)
    if remote is not None:
        remote.pull()
    if not os.path.isdir(path):
        raise DataError(f"{path if remote is None else remote.url}: the activation store is missing; {REGENERATE}")
    about = read_node(path, "the activation store's description")
    attributes = about["attributes"]
    if attributes.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: activation store format {attributes.get('format_version')!r}, wanted {FORMAT_VERSION}; {REGENERATE}"
        )
    try:
        if not describes_group(about) or attributes["fingerprint"] != fingerprint(attributes["config"]):
            raise DataError(
                f"{path}: the activation store's description zarr.json is altered: what it says of the store is not what its "
                f"fingerprint was made of; {REGENERATE}"
            )
        return ActivationStore(path, attributes, hook_points)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: the activation store's description is damaged ({error!r}); {REGENERATE}") from None
