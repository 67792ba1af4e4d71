"""The token store, data/tokens.zarr: packed contexts of both splits, traceable to their texts.

Zarr v3 group. For each split ("train", "eval") a group with int32 arrays [n_contexts, context_size]: tokens, document_ids,
char_starts, char_ends; and `document_offsets` int64 [n_documents + 1] into documents/<split>.jsonl beside it, whose lines are
{"key", "origin", "text"} (no text where the origin is a row of a data set of the hub; of a chat also "messages"). Only where
only the assistant's tokens count: `counted`, bool as the contexts. Only where several sources are mixed: `source_ids`, int32
[n_contexts]. Only where text files are stored in pieces: `file_ids`, int32 [n_documents], of each document the number of the
file that it is a piece of, or -1. Group attributes: format_version, context_size, prepend_bos, prepend_bos_why (what was
stated, or what `auto` chose and why; absent where nobody says), packing, ignore_token_ids, ignore_positions (0 where absent),
sources (of several), tokenizer_digest, split_seed, digest (of the content), complete. manifest.json has the digest of every
file, which is checked when it is first read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.manifests import CheckedFiles
from pipeline.contracts.sealing import remake
from pipeline.corpus.contexts import CHUNK_CONTEXTS, read_contexts
from pipeline.corpus.packing import COUNTED, NO_CHARACTERS, kept_tokens
from pipeline.errors import DataError
from pipeline.files import json_object, parse_json
from pipeline.foreign import reading

FORMAT_VERSION = 1
SPLITS = ("train", "eval")
OFFSETS_CHUNK = 65536
STAGE = "tokenize"
FILE_IDS = "file_ids"
WHOLE = -1  # in file_ids: no piece of a file
_NEXT = remake("tokenize")


@dataclass(frozen=True)
class TracedToken:
    """Where a token comes from.

    Attributes:
        document, origin: key and origin of the document.
        start, end: the token's characters there; -1 where it has none.
        text: the characters; None if the store does not keep them.
        source: name of the document's source, where several are mixed.
        message, role: of a chat, the message that the token is of, from 0, and who says it; None for a token that the packing
            has put there, or where the chat template does not tell.
    """

    document: str
    origin: dict[str, str | int]
    start: int
    end: int
    text: str | None
    source: str | None = None
    message: int | None = None
    role: str | None = None


class TokenSplit:
    """One split of a token store; arrays are read lazily."""

    def __init__(
        self, group: Any, files: CheckedFiles, name: str, ignore_token_ids: tuple[int, ...] = (), ignore_positions: int = 0
    ) -> None:
        self.name = name
        self._files = files
        self._group = group
        self._ignored = (ignore_token_ids, ignore_positions)
        self._has_counted = COUNTED in group
        self.n_contexts, self.context_size = group["tokens"].shape

    def read(self, start: int = 0, stop: int | None = None, field: str = "tokens") -> np.ndarray:
        """[n, context_size] of contexts start..stop: tokens, document_ids, char_starts or char_ends (int32), or counted (bool).

        Raises:
            DataError: a chunk of them is altered.
        """
        first, last, _ = slice(start, stop).indices(self.n_contexts)
        for chunk in range(first // CHUNK_CONTEXTS, -(-last // CHUNK_CONTEXTS)):
            self._files.check(f"{self.name}/{field}/c/{chunk}/0")
        with reading(f"{self._files.directory / self.name / field}: the array is damaged", _NEXT):
            return np.asarray(self._group[field][start:stop])

    def counted(self, start: int = 0, stop: int | None = None) -> np.ndarray | None:
        """bool [n, context_size] of contexts start..stop: False where the document does not count the token; None: all count.

        Raises:
            DataError: a chunk of them is altered.
        """
        return self.read(start, stop, COUNTED) if self._has_counted else None

    def mask(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Which tokens are kept, whatever their activations are.

        Args:
            contexts: int64 [n], numbers of contexts, ascending.
            tokens: int [n, context_size], their tokens.

        Returns: bool [n, context_size], False where the id or the position is ignored, or the document does not count it.
        """
        kept = kept_tokens(tokens, *self._ignored)
        return kept & read_contexts(self, contexts, COUNTED) if self._has_counted else kept

    @cached_property
    def source_ids(self) -> np.ndarray | None:
        """int32 [n_contexts], each context's place in the store's `sources`; None where they are not several.

        Raises:
            DataError: the array is altered.
        """
        if "source_ids" not in self._group:
            return None
        for chunk in range(-(-self.n_contexts // OFFSETS_CHUNK)):
            self._files.check(f"{self.name}/source_ids/c/{chunk}")
        with reading(f"{self._files.directory / self.name / 'source_ids'}: the array is damaged", _NEXT):
            return np.asarray(self._group["source_ids"][:])

    @cached_property
    def file_ids(self) -> np.ndarray | None:
        """int32 [n_documents], of each document the number of the text file that it is a piece of, -1 where it is whole; None:
        all are whole, or the store is from before this was kept.

        Raises:
            DataError: the array is altered.
        """
        if FILE_IDS not in self._group:
            return None
        for chunk in range(-(-self.n_documents // OFFSETS_CHUNK)):
            self._files.check(f"{self.name}/{FILE_IDS}/c/{chunk}")
        with reading(f"{self._files.directory / self.name / FILE_IDS}: the array is damaged", _NEXT):
            return np.asarray(self._group[FILE_IDS][:])

    @cached_property
    def n_documents(self) -> int:
        """Number of documents in the split, pieces of text files each by itself."""
        return int(self._group["document_offsets"].shape[0]) - 1

    def document(self, document_id: int) -> dict[str, Any]:
        """{"key", "origin", "text"} of one document.

        Raises:
            DataError: the file of documents or its index is damaged, or holds no such document there.
        """
        for chunk in {i // OFFSETS_CHUNK for i in (document_id, document_id + 1)}:
            self._files.check(f"{self.name}/document_offsets/c/{chunk}")
        with reading(f"{self._files.directory / self.name / 'document_offsets'}: the array is damaged", _NEXT):
            begin, end = (int(i) for i in self._group["document_offsets"][document_id : document_id + 2])
        texts = f"documents/{self.name}.jsonl"
        self._files.check(texts)
        what = f"{self._files.directory / texts}: document {document_id}"
        with reading(f"{what} cannot be read", _NEXT), open(self._files.directory / texts, "rb") as stream:
            stream.seek(begin)
            line = stream.read(end - begin)
        record = json_object(parse_json(line, what, _NEXT), what, _NEXT)
        if not (isinstance(record.get("key"), str) and isinstance(record.get("origin"), dict)):
            raise DataError(f"{what} should have a key (text) and an origin (an object); {_NEXT}")
        if not isinstance(record.get("text"), str | None):
            raise DataError(f"{what}: its text should be a string, or be left out; {_NEXT}")
        if not isinstance(record.get("source"), str | None) or not all(map(_is_message, record.get("messages", ()))):
            raise DataError(
                f"{what}: its source should be text, and its messages {{role, start, end}}, or be left out; {_NEXT}"
            )
        return record

    def trace(self, context: int, position: int) -> TracedToken:
        """Trace the token at `position` of `context` to its text."""
        document_id, start, end = (
            int(self.read(context, context + 1, field)[0, position]) for field in ("document_ids", "char_starts", "char_ends")
        )
        record = self.document(document_id)
        text = record.get("text")
        characters = None if text is None else "" if start == NO_CHARACTERS else text[start:end]
        message, role = _message_at(record.get("messages", ()), start)
        return TracedToken(record["key"], record["origin"], start, end, characters, record.get("source"), message, role)


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("start"), int)
        and isinstance(value.get("end"), int)
    )


def _message_at(messages: Sequence[dict[str, Any]], start: int) -> tuple[int | None, str | None]:
    """(number, role) of the message that has the character `start`."""
    for number, message in enumerate(messages):
        if message["start"] <= start < message["end"]:
            return number, message["role"]
    return None, None


class TokenStore:
    """A complete token store, opened for reading by :func:`open_tokens`."""

    def __init__(self, path: Path, group: Any, files: CheckedFiles) -> None:
        attributes = dict(group.attrs)
        self.path = path
        self.origin = files.origin
        self.digest: str = attributes["digest"]
        self.tokenizer_digest: str = attributes["tokenizer_digest"]
        self.context_size: int = attributes["context_size"]
        self.prepend_bos: bool = attributes["prepend_bos"]
        self.prepend_bos_why: str = attributes.get("prepend_bos_why", "")
        self.ignore_token_ids: tuple[int, ...] = tuple(attributes["ignore_token_ids"])
        self.ignore_positions: int = attributes.get("ignore_positions", 0)
        self.sources: tuple[str, ...] = tuple(source["name"] for source in attributes.get("sources", ()))
        self.train, self.eval = (
            TokenSplit(group[name], files, name, self.ignore_token_ids, self.ignore_positions) for name in SPLITS
        )

    def mask(self, tokens: np.ndarray) -> np.ndarray:
        """bool, shape of contexts `tokens` [..., context_size]: False where the id or the position is ignored.

        What the documents do not count is in `TokenSplit.mask` alone, which knows the contexts.
        """
        return kept_tokens(tokens, self.ignore_token_ids, self.ignore_positions)

    def check_tokenizer(self, digest: str, model: str) -> None:
        """Refuse a tokenizer of `model` that is another one than the tokens were made with.

        Raises:
            DataError: its digest differs.
        """
        if digest != self.tokenizer_digest:
            raise DataError(f"{self.path}: made with another tokenizer than {model} has; {_NEXT}")

    def trace(self, split: str, context: int, position: int) -> TracedToken:
        """Trace a token of split "train" or "eval" to its text."""
        return {"train": self.train, "eval": self.eval}[split].trace(context, position)


def open_tokens(path: str | Path) -> TokenStore:
    """Open a token store.

    Raises:
        DataError: missing, incomplete or damaged: a file is lost or has another size, or one that describes arrays is altered.
    """
    import zarr

    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: the token store is missing; {_NEXT}")
    damaged = f"{path}: the token store is damaged"
    with reading(damaged, _NEXT):
        group = zarr.open_group(str(path), mode="r", zarr_format=3)  # format 2 has filters that unpickle
        attributes = dict(group.attrs)
    if attributes.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{path}: token store format {attributes.get('format_version')!r}, wanted {FORMAT_VERSION}; {_NEXT}")
    if attributes.get("complete") is not True:
        raise DataError(f"{path}: the token store is incomplete; {_NEXT}")
    files = CheckedFiles(path, "the token store", STAGE)
    files.check_all("zarr.json")
    with reading(damaged, _NEXT):
        return TokenStore(path, group, files)
