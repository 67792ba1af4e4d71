"""Writing of a token store (tokens.py has its form): documents and packed contexts as they come, complete=true last."""

from __future__ import annotations

import contextlib
import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from pipeline.contracts.manifests import write_manifest
from pipeline.contracts.sealing import Origin
from pipeline.corpus.contexts import CHUNK_CONTEXTS
from pipeline.corpus.document import Document
from pipeline.corpus.packing import COUNTED, FIELDS, NO_CHARACTERS, PackedSplit
from pipeline.corpus.tokens import FILE_IDS, FORMAT_VERSION, OFFSETS_CHUNK, SPLITS, STAGE, WHOLE
from pipeline.files import atomic_directory


class _SplitWriter:
    def __init__(self, group: Any, place: Path, name: str, context_size: int, counted: bool) -> None:
        self.group = group.create_group(name)
        kinds: dict[str, tuple[str, int]] = dict.fromkeys(FIELDS, ("int32", NO_CHARACTERS))
        if counted:
            kinds[COUNTED] = ("bool", 1)
        self.arrays = {
            field: self.group.create_array(
                field,
                shape=(0, context_size),
                chunks=(CHUNK_CONTEXTS, context_size),
                dtype=dtype,
                fill_value=fill,
            )
            for field, (dtype, fill) in kinds.items()
        }
        self.source_ids = array("i")
        self.file_ids = array("i")
        self._files: dict[tuple[str, str], int] = {}
        self.n_contexts = 0
        self.offsets = [0]
        self.digest = hashlib.sha256(name.encode())
        self.texts: IO[bytes] = open(place / "documents" / f"{name}.jsonl", "wb")  # noqa: SIM115
        self._held: list[np.ndarray] = []
        self._n_held = 0

    def add_document(self, document: Document) -> int:
        record: dict[str, Any] = {"key": document.name, "origin": document.origin}
        if document.source:
            record["source"] = document.source
        if document.messages:
            record["messages"] = [message._asdict() for message in document.messages]
        if document.keep_text:
            record["text"] = document.text
        line = json.dumps(record, ensure_ascii=False, sort_keys=True).encode() + b"\n"
        self.texts.write(line)
        self.digest.update(line)
        self.offsets.append(self.offsets[-1] + len(line))
        file = (document.source, document.piece_of)
        self.file_ids.append(self._files.setdefault(file, len(self._files)) if document.piece_of else WHOLE)
        return len(self.offsets) - 2

    def add_contexts(self, packed: PackedSplit, source_id: int | None = None) -> None:
        if source_id is not None:
            self.source_ids.extend([source_id] * len(packed.tokens))
        self._held.append(packed.rows())
        self._n_held += len(packed.tokens)
        self.n_contexts += len(packed.tokens)
        if self._n_held >= CHUNK_CONTEXTS:
            self._flush(self._n_held - self._n_held % CHUNK_CONTEXTS)

    def _flush(self, n: int) -> None:
        if n == 0:
            return
        rows = np.concatenate(self._held, axis=1)
        for written, values in zip(self.arrays.values(), rows, strict=True):
            written.append(values[:n].astype(written.dtype, copy=False))
        self.digest.update(np.ascontiguousarray(rows[:, :n].transpose(1, 0, 2)).tobytes())
        self._held, self._n_held = [rows[:, n:]], rows.shape[1] - n

    def close(self) -> str:
        self._flush(self._n_held)
        self.texts.close()
        self.group.create_array("document_offsets", data=np.asarray(self.offsets, dtype=np.int64), chunks=(OFFSETS_CHUNK,))
        if self.source_ids:
            ids = np.asarray(self.source_ids, dtype=np.int32)
            self.group.create_array("source_ids", data=ids, chunks=(OFFSETS_CHUNK,))
            self.digest.update(ids.tobytes())
        if self._files:  # no part of the digest: activations of a store from before are those of the same tokens
            self.group.create_array(FILE_IDS, data=np.asarray(self.file_ids, dtype=np.int32), chunks=(OFFSETS_CHUNK,))
        return self.digest.hexdigest()


class TokenWriter:
    """Writes a token store in a temporary directory; :func:`write_tokens` and the tokenize stage use it.

    Args:
        place: the directory.
        context_size: tokens in a context.
        sources: names of the sources, where several are mixed.
        counted: whether the packed contexts say which of their tokens count.
    """

    def __init__(self, place: Path, context_size: int, sources: Sequence[str] = (), counted: bool = False) -> None:
        import zarr

        (place / "documents").mkdir()
        self.place = place
        self.group = zarr.create_group(str(place), zarr_format=3)
        self.splits = {name: _SplitWriter(self.group, place, name, context_size, counted) for name in SPLITS}
        self.sources = tuple(sources)
        self.context_size = context_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for split in self.splits.values():
            split.texts.close()

    def close(
        self,
        *,
        tokenizer_digest: str,
        prepend_bos: bool,
        ignore_token_ids: Iterable[int],
        ignore_positions: int,
        split_seed: int,
        prepend_bos_why: str = "",
    ) -> str:
        """Write what is left and the attributes, complete=true last; returns the content digest.

        `prepend_bos_why` is no part of the content: stores with the same tokens have one digest.
        """
        about: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "context_size": self.context_size,
            "prepend_bos": prepend_bos,
            "packing": "documents end to end, each closed by the end-of-text token, cut into contexts",
            "ignore_token_ids": sorted(int(i) for i in ignore_token_ids),
            "tokenizer_digest": tokenizer_digest,
            "split_seed": split_seed,
        }
        if self.sources:
            about["packing"] += ", each of one source"
            about["sources"] = [
                {"name": name, **{f"{split}_contexts": each.source_ids.count(at) for split, each in self.splits.items()}}
                for at, name in enumerate(self.sources)
            ]
        if ignore_positions:  # left out where there are none, as earlier versions' stores do: one content, one digest
            about["ignore_positions"] = ignore_positions
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for split in self.splits.values():
            digest.update(split.close().encode())
        why = {"prepend_bos_why": prepend_bos_why} if prepend_bos_why else {}
        self.group.attrs.update({**about, **why, "digest": digest.hexdigest()})
        self.group.attrs["complete"] = True
        write_manifest(self.place, Origin(STAGE, {"tokenizer": tokenizer_digest}))
        return digest.hexdigest()


def write_tokens(
    path: str | Path,
    *,
    train: PackedSplit,
    eval: PackedSplit,
    ignore_token_ids: Iterable[int] = (),
    ignore_positions: int = 0,
    documents: Iterable[Document] = (Document("document", ""),),
    tokenizer_digest: str = "",
    prepend_bos: bool = False,
    split_seed: int = 0,
) -> str:
    """Write a token store from arrays in memory (both splits get `documents`); returns its content digest."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(atomic_directory(path))
        writer = stack.enter_context(TokenWriter(place, train.tokens.shape[1], counted=train.counted is not None))
        kept = list(documents)
        for name, packed in (("train", train), ("eval", eval)):
            for document in kept:
                writer.splits[name].add_document(document)
            writer.splits[name].add_contexts(packed)
        return writer.close(
            tokenizer_digest=tokenizer_digest,
            prepend_bos=prepend_bos,
            ignore_token_ids=ignore_token_ids,
            ignore_positions=ignore_positions,
            split_seed=split_seed,
        )
