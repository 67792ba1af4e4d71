"""Tokenize a corpus into the token store.

1. Each document goes to a split by a hash of its text (training and held-out contexts never share a document, nor equal
   ones); of the embedded corpus by a hash of its key. Near duplicates stay together where that is asked for.
2. A batch of documents is tokenized with character offsets, without special tokens.
3. Each split's packer cuts contexts; the training split stops at the first whole context with which the kept tokens reach the
   number asked for; the held-out split takes the documents read until then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.corpus.bos import adds_bos
from pipeline.corpus.document import Document, held_out
from pipeline.corpus.near_duplicates import NearDuplicates
from pipeline.corpus.packing import PackedSplit, Packer, kept_tokens
from pipeline.corpus.tokens import TokenWriter
from pipeline.errors import DataError
from pipeline.files import atomic_directory
from pipeline.progress import Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class TokenizerInfo:
    """A fast tokenizer with its special ids.

    Attributes:
        tokenizer: the backend tokenizer.
        bos, eos: ids or None.
        adds_bos: whether the tokenizer puts bos before a text by itself.
        special_ids: ids that are ignored by default (bos, eos, pad).
        digest: sha256 of the tokenizer's definition.
        name: of the model.
        n_embedded: how many tokens the model has embeddings of, or None: not checked.
    """

    tokenizer: Tokenizer
    bos: int | None
    eos: int | None
    adds_bos: bool
    special_ids: tuple[int, ...]
    digest: str
    name: str = ""
    n_embedded: int | None = None

    def check(self, ids: np.ndarray, where: str) -> None:
        """Refuse tokens that the model cannot read.

        Raises:
            DataError: a token lies outside the model's embedding.
        """
        if self.n_embedded is None or not len(ids) or ids.max() < self.n_embedded:
            return
        token = int(ids.max())
        raise DataError(
            f"tokenizer of '{self.name}': {where} gives token {token} ({self.tokenizer.id_to_token(token)!r}), but the model "
            f"has embeddings of the tokens 0 to {self.n_embedded - 1}; put the model's own tokenizer beside it, or enlarge the "
            "model with resize_token_embeddings and save it"
        )


def tokenizer_info(loaded: Any, name: str, n_embedded: int | None = None) -> TokenizerInfo:
    """What packing needs of a transformers tokenizer.

    Args:
        loaded: the tokenizer.
        name: of the model.
        n_embedded: how many tokens the model has embeddings of; None: not checked.

    Raises:
        DataError: the tokenizer is not a fast one (it has no character offsets).
    """
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise DataError(
            f"tokenizer of '{name}': has no fast version, so tokens cannot be traced to characters; use another model"
        )
    special = sorted({i for i in (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) if i is not None})
    backend.no_truncation()
    backend.no_padding()
    digest = hashlib.sha256(backend.to_str().encode()).hexdigest()
    bos, eos = loaded.bos_token_id, loaded.eos_token_id
    return TokenizerInfo(backend, bos, eos, adds_bos(loaded), tuple(special), digest, name, n_embedded)


def prepends_bos(wanted: bool | str, info: TokenizerInfo) -> bool:
    """Whether contexts start with the beginning-of-text token: model.prepend_bos, `auto` being what the tokenizer does.

    Raises:
        DataError: it is asked for, and the tokenizer has none.
    """
    if wanted == "auto":
        return info.adds_bos
    if wanted and info.bos is None:
        raise DataError(
            "model.prepend_bos is true but the tokenizer has no beginning-of-text token; set model.prepend_bos=false"
        )
    return bool(wanted)


def bos_choice(info: TokenizerInfo, name: str) -> str:
    """What `model.prepend_bos: auto` comes to, and why, in words."""
    if info.bos is None:
        return f"false; the tokenizer of '{name}' has no beginning-of-text token"
    token = info.tokenizer.id_to_token(info.bos)
    does = "puts it before a text by itself" if info.adds_bos else "does not put it before a text by itself"
    return f"{'true' if info.adds_bos else 'false'}; the tokenizer of '{name}' has {token} and {does}"


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class TokenizeSettings:
    """What decides the content of the token store besides the documents and the tokenizer.

    Attributes:
        context_size: tokens in a context.
        total_tokens: kept training tokens wanted.
        prepend_bos: whether every context starts with the beginning-of-text token; auto: as the tokenizer does by itself.
        ignore_token_ids: ids that do not count as kept; None means the tokenizer's bos, eos and pad.
        ignore_positions: first positions of each context that do not count as kept.
        eval_fraction, split_seed: of the split by document.
        near_duplicate_similarity: from which on documents stay on one side, or None: only equal ones.
    """

    context_size: int
    total_tokens: int
    prepend_bos: bool | str
    ignore_token_ids: tuple[int, ...] | None
    ignore_positions: int
    eval_fraction: float
    split_seed: int
    near_duplicate_similarity: float | None = None


class _Sides:
    """Which split a document goes to, and how many were like an earlier one."""

    def __init__(self, settings: TokenizeSettings) -> None:
        self.settings = settings
        similarity = settings.near_duplicate_similarity
        self.near = None if similarity is None else NearDuplicates(similarity)
        self.seen: set[bytes] = set()
        self.equal = self.alike = self.left_out = 0

    def of(self, document: Document) -> str | None:
        """The split, or None: the document is left out."""
        held = held_out(document.split_name, self.settings.eval_fraction, self.settings.split_seed)
        split: str | None = "eval" if held else "train"
        digest = document.content_digest()
        equal = digest in self.seen
        self.seen.add(digest)
        self.equal += equal
        if self.near is not None:
            split, alike = self.near.side(document, "eval" if held else "train")
            self.alike += alike and not equal
            self.left_out += split is None
        return split


class _Run:
    def __init__(self, writer: TokenWriter, info: TokenizerInfo, settings: TokenizeSettings) -> None:
        self.writer, self.info, self.settings = writer, info, settings
        bos = info.bos if prepends_bos(settings.prepend_bos, info) else None
        self.packers = {name: Packer(settings.context_size, bos, info.eos) for name in ("train", "eval")}
        info.check(np.asarray([token for token in (bos, info.eos) if token is not None]), "the end or the beginning of a text")
        self.ignored = settings.ignore_token_ids if settings.ignore_token_ids is not None else info.special_ids
        self.kept = {"train": 0, "eval": 0}
        self.documents = {"train": 0, "eval": 0}
        self.used = {"train": 0, "eval": 0}  # documents that a context holds
        self.sides = _Sides(settings)
        self.progress = Progress("tokenize", settings.total_tokens)

    @property
    def enough(self) -> bool:
        return self.kept["train"] >= self.settings.total_tokens

    def add(self, batch: list[Document]) -> None:
        encodings = self.info.tokenizer.encode_batch([d.text for d in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            if not encoding.ids:
                continue
            ids = np.asarray(encoding.ids, dtype=np.int32)
            self.info.check(ids, f"document {document.key}")
            split = self.sides.of(document)
            if split is None:
                continue
            number = self.writer.splits[split].add_document(document)
            self.documents[split] += 1
            offsets = np.asarray(encoding.offsets, dtype=np.int32).reshape(-1, 2)
            self.packers[split].add(number, ids, offsets[:, 0], offsets[:, 1])
        for split, packer in self.packers.items():
            for packed in packer.contexts():
                self._write(split, packed)

    def _write(self, split: str, packed: PackedSplit) -> None:
        kept = np.cumsum(kept_tokens(packed.tokens, self.ignored, self.settings.ignore_positions).sum(1))
        if split == "train":
            if self.enough:
                return
            wanted = self.settings.total_tokens - self.kept["train"]
            n = int(np.searchsorted(kept, wanted)) + 1
            packed = PackedSplit(*packed.rows()[:, :n])
            kept = kept[:n]
            self.progress.update(min(int(kept[-1]), wanted))
        self.kept[split] += int(kept[-1])
        self.used[split] = int(packed.document_ids[-1, -1]) + 1
        self.writer.splits[split].add_contexts(packed)


def tokenize_corpus(
    documents: Iterable[Document], info: TokenizerInfo, settings: TokenizeSettings, out: Path
) -> dict[str, int | float | str]:
    """Tokenize and pack `documents` into the token store `out`; returns its figures.

    Raises:
        DataError: too little text for the tokens asked, or no held-out context.
    """
    prepend_bos = prepends_bos(settings.prepend_bos, info)
    characters = 0
    text_digest = hashlib.sha256()
    with atomic_directory(out) as place, TokenWriter(place, settings.context_size) as writer:
        run = _Run(writer, info, settings)
        for batch in _batches(documents):
            run.add(batch)
            for document in batch:
                characters += len(document.text)
                text_digest.update(f"{document.key}\0{document.text}\0".encode())
            if run.enough:
                break
        run.progress.close()
        _check(run, characters)
        digest = run.writer.close(
            tokenizer_digest=info.digest,
            prepend_bos=prepend_bos,
            ignore_token_ids=run.ignored,
            ignore_positions=settings.ignore_positions,
            split_seed=settings.split_seed,
        )
    return {
        "digest": digest,
        "text_digest": text_digest.hexdigest(),
        "train_tokens": run.kept["train"],
        "eval_tokens": run.kept["eval"],
        "train_contexts": run.writer.splits["train"].n_contexts,
        "eval_contexts": run.writer.splits["eval"].n_contexts,
        "train_documents": run.used["train"],
        "eval_documents": run.used["eval"],
        "duplicate_documents": run.sides.equal,
        "near_duplicate_documents": run.sides.alike,
        "left_out_documents": run.sides.left_out,
        "characters": characters,
    }


def _check(run: _Run, characters: int) -> None:
    settings = run.settings
    if not run.enough:
        raise DataError(
            f"too little text: activations.total_tokens is {settings.total_tokens:,}, the data set's training split gave "
            f"{run.kept['train']:,} ({characters:,} characters of {sum(run.documents.values()):,} documents read, "
            f"{run.documents['eval']:,} of them held out); lower activations.total_tokens or give more text"
        )
    if run.kept["eval"] == 0:
        raise DataError(
            f"no held-out context of {settings.context_size} tokens: {run.documents['eval']} of "
            f"{sum(run.documents.values())} documents were held out; raise dataset.eval_fraction "
            f"({settings.eval_fraction}) or give text in more documents; a .txt file is cut at lines that hold only "
            "<|endoftext|>, else at blank lines, and for one document a line there is .jsonl"
        )
