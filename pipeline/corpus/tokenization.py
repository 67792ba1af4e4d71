"""Tokenize a corpus into the token store.

1. Each document goes to a split by a hash of its text (training and held-out contexts never share a document, nor equal
   ones); of the embedded corpus by a hash of its key; a piece of a text file as its file (pipeline.corpus.file_split). What
   equals a document of the other split is left out. Near duplicates stay together where that is asked for.
2. A batch of documents is tokenized with character offsets, without special tokens.
3. Each split's packer cuts contexts, of several sources one for each source, so that a context is of one source; the training
   split stops at the first whole context with which the kept tokens reach the number asked for; the held-out split takes the
   documents read until then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.corpus.bos import adds_bos
from pipeline.corpus.document import Document
from pipeline.corpus.mixture import Mixture
from pipeline.corpus.packing import PackedSplit, Packer, kept_tokens
from pipeline.corpus.sides import Sides
from pipeline.corpus.tokens import SPLITS, WHOLE
from pipeline.corpus.tokens_writer import TokenWriter
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
            f"tokenizer of '{name}': has no fast version (tokenizer.json), so that tokens cannot be traced to characters; name "
            "one that has in model.tokenizer_name, or give another model"
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


def bos_choice(info: TokenizerInfo, name: str = "") -> str:
    """What `model.prepend_bos: auto` comes to, and why, in words; `name` of the model, "": it is not said."""
    whose = f"the tokenizer of '{name}'" if name else "the tokenizer"
    if info.bos is None:
        return f"false; {whose} has no beginning-of-text token"
    token = info.tokenizer.id_to_token(info.bos)
    does = "puts it before a text by itself" if info.adds_bos else "does not put it before a text by itself"
    return f"{'true' if info.adds_bos else 'false'}; {whose} has {token} and {does}"


def bos_reason(wanted: bool | str, info: TokenizerInfo, name: str = "") -> str:
    """What model.prepend_bos comes to, stated or chosen, and why, in words: `auto: false; the tokenizer has ...`."""
    return f"auto: {bos_choice(info, name)}" if wanted == "auto" else f"{str(wanted).lower()}; as stated"


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
        counted: whether documents may say which of their characters count (`Document.counted`), so that the store has it.
    """

    context_size: int
    total_tokens: int
    prepend_bos: bool | str
    ignore_token_ids: tuple[int, ...] | None
    ignore_positions: int
    eval_fraction: float
    split_seed: int
    near_duplicate_similarity: float | None = None
    counted: bool = False


@dataclass(frozen=True)
class _Tokenized:
    """A document with its tokens: ids [n], characters [n, 2], and which tokens count, bool [n] (None: all)."""

    document: Document
    ids: np.ndarray
    offsets: np.ndarray
    counted: np.ndarray | None


def counted_tokens(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """bool [n]: the tokens that have a character in one of the spans.

    Args:
        offsets: int [n, 2], characters of each token.
        spans: (start, end), ascending, none over another.
    """
    starts, ends = np.asarray([span for span in spans if span[0] < span[1]], dtype=np.int64).reshape(-1, 2).T
    # Of the spans that end behind the token's start the first one is the one that the token may reach into.
    at = np.searchsorted(ends, offsets[:, 0], side="right")
    begins = np.append(starts, np.iinfo(np.int64).max)[at]
    return (begins < offsets[:, 1]) & (offsets[:, 0] < offsets[:, 1])


@dataclass
class _Counts:
    """What a split has of a source."""

    kept: int = 0
    contexts: int = 0
    whole: int = 0  # documents that a context holds and that are no pieces
    files: set[int] = field(default_factory=set)  # numbers of the text files of whose pieces a context holds some
    last: int = -1  # number of the last document

    @property
    def documents(self) -> int:
        """Documents that a context holds, a text file being one."""
        return self.whole + len(self.files)


class _Run:
    def __init__(self, writer: TokenWriter, info: TokenizerInfo, settings: TokenizeSettings, mixture: Mixture | None) -> None:
        self.writer, self.info, self.settings, self.mixture = writer, info, settings, mixture
        self.bos = info.bos if prepends_bos(settings.prepend_bos, info) else None
        ends = [token for token in (self.bos, info.eos) if token is not None]
        info.check(np.asarray(ends), "the end or the beginning of a text")
        self.ignored = settings.ignore_token_ids if settings.ignore_token_ids is not None else info.special_ids
        self.packers: dict[tuple[str, str], Packer] = {}
        sources = [""] if mixture is None else list(mixture.sources)
        self.counts = {(split, source): _Counts() for split in SPLITS for source in sources}
        self.source_ids = {"": None} if mixture is None else {name: at for at, name in enumerate(sources)}
        self.documents = {"train": 0, "eval": 0}
        self.characters = 0
        self.text_digest = hashlib.sha256()
        self.sides = Sides(settings.eval_fraction, settings.split_seed, settings.near_duplicate_similarity)
        self.progress = Progress("tokenize", settings.total_tokens)

    def kept(self, split: str) -> int:
        """Kept tokens of a split so far."""
        return sum(counts.kept for counts in self.of(split))

    def of(self, split: str) -> list[_Counts]:
        """What a split has of each source."""
        return [counts for (own, _), counts in self.counts.items() if own == split]

    @property
    def enough(self) -> bool:
        return self.kept("train") >= self.settings.total_tokens

    def tokenized(self, documents: list[Document]) -> list[_Tokenized]:
        """Documents with their tokens."""
        encodings = self.info.tokenizer.encode_batch([d.text for d in documents], add_special_tokens=False)
        found = []
        for document, encoding in zip(documents, encodings, strict=True):
            ids = np.asarray(encoding.ids, dtype=np.int32)
            self.info.check(ids, f"document {document.name}")
            offsets = np.asarray(encoding.offsets, dtype=np.int32).reshape(-1, 2)
            counted = None if document.counted is None else counted_tokens(offsets, document.counted)
            found.append(_Tokenized(document, ids, offsets, counted))
        return found

    def add(self, each: _Tokenized) -> None:
        """Lay one document behind the stream of its split and source."""
        document, ids = each.document, each.ids
        self.characters += len(document.text)
        self.text_digest.update(f"{document.name}\0{document.text}\0".encode())
        if not len(ids):
            return
        split = self.sides.of(document)
        if split is None:
            return
        number = self.writer.splits[split].add_document(document)
        self.documents[split] += 1
        counted = each.counted
        if self.settings.counted and counted is None:
            counted = np.ones(len(ids), dtype=bool)
        if self.mixture is not None and split == "train":
            kept = kept_tokens(ids, self.ignored)
            self.mixture.tokens[document.source] += int((kept if counted is None else kept & counted).sum())
        self._packer(split, document).add(number, ids, each.offsets[:, 0], each.offsets[:, 1], counted)

    def _packer(self, split: str, document: Document) -> Packer:
        key = split, document.source
        if key not in self.packers:
            chat = bool(document.messages)
            self.packers[key] = Packer(self.settings.context_size, self.bos, None if chat else self.info.eos, own_bos=chat)
        return self.packers[key]

    def write(self) -> None:
        """Write the whole contexts that there are."""
        for (split, source), packer in self.packers.items():
            for packed in packer.contexts():
                self._write(split, source, packed)

    def _write(self, split: str, source: str, packed: PackedSplit) -> None:
        mask = kept_tokens(packed.tokens, self.ignored, self.settings.ignore_positions)
        kept = np.cumsum((mask if packed.counted is None else mask & (packed.counted == 1)).sum(1))
        if split == "train":
            if self.enough:
                return
            wanted = self.settings.total_tokens - self.kept("train")
            n = int(np.searchsorted(kept, wanted)) + 1
            packed = PackedSplit(*packed.rows()[:, :n])
            kept = kept[:n]
            self.progress.update(min(int(kept[-1]), wanted))
        counts = self.counts[split, source]
        counts.kept += int(kept[-1])
        counts.contexts += len(kept)
        documents = np.unique(packed.document_ids)
        file_ids = np.asarray([self.writer.splits[split].file_ids[number] for number in documents if number != counts.last])
        counts.whole += int((file_ids == WHOLE).sum())
        counts.files |= set(file_ids[file_ids != WHOLE].tolist())
        counts.last = int(documents[-1])
        self.writer.splits[split].add_contexts(packed, self.source_ids[source])


def tokenize_corpus(
    documents: Iterable[Document] | Mixture, info: TokenizerInfo, settings: TokenizeSettings, out: Path
) -> dict[str, int | float | str]:
    """Tokenize and pack `documents` into the token store `out`; returns its figures, of several sources also those of each.

    Raises:
        DataError: too little text for the tokens asked, or no held-out context.
    """
    prepend_bos = prepends_bos(settings.prepend_bos, info)
    mixture = documents if isinstance(documents, Mixture) else None
    names = () if mixture is None else tuple(mixture.sources)
    with atomic_directory(out) as place, TokenWriter(place, settings.context_size, names, settings.counted) as writer:
        run = _Run(writer, info, settings, mixture)
        for batch in _tokenized(documents, run):
            for each in batch:
                run.add(each)
            run.write()
            if run.enough:
                break
        run.progress.close()
        _check(run, run.characters)
        digest = run.writer.close(
            tokenizer_digest=info.digest,
            prepend_bos=prepend_bos,
            ignore_token_ids=run.ignored,
            ignore_positions=settings.ignore_positions,
            split_seed=settings.split_seed,
            prepend_bos_why=bos_reason(settings.prepend_bos, info),
        )
    return {
        "digest": digest,
        "text_digest": run.text_digest.hexdigest(),
        **{f"{split}_tokens": run.kept(split) for split in SPLITS},
        **{f"{split}_contexts": run.writer.splits[split].n_contexts for split in SPLITS},
        **{f"{split}_documents": sum(counts.documents for counts in run.of(split)) for split in SPLITS},
        **{f"{split}_files": sum(len(counts.files) for counts in run.of(split)) for split in SPLITS},
        "duplicate_documents": run.sides.equal,
        "near_duplicate_documents": run.sides.alike,
        "left_out_documents": run.sides.left_out,
        "characters": run.characters,
        **{
            f"{split}_{what}.{source}": figure
            for (split, source), counts in run.counts.items()
            if source
            for what, figure in (("tokens", counts.kept), ("contexts", counts.contexts), ("documents", counts.documents))
        },
    }


def _tokenized(documents: Iterable[Document] | Mixture, run: _Run) -> Iterator[list[_Tokenized]]:
    """The documents in batches; of several sources one by one, as which is next depends on what has been added."""
    if isinstance(documents, Mixture):
        return ([each] for each in documents.documents(run.tokenized))
    return (run.tokenized(batch) for batch in _batches(documents))


def _check(run: _Run, characters: int) -> None:
    settings = run.settings
    if not run.enough:
        raise DataError(
            f"too little text: activations.total_tokens is {settings.total_tokens:,}, the data set's training split gave "
            f"{run.kept('train'):,} ({characters:,} characters of {sum(run.documents.values()):,} documents read, "
            f"{run.documents['eval']:,} of them held out); lower activations.total_tokens or give more text"
        )
    if run.kept("eval") == 0:
        raise DataError(
            f"no held-out context of {settings.context_size} tokens: {run.documents['eval']} of "
            f"{sum(run.documents.values())} documents were held out; raise dataset.eval_fraction "
            f"({settings.eval_fraction}) or give text in more documents; a .txt file is cut at lines that hold only "
            "<|endoftext|>, else at blank lines, and for one document a line there is .jsonl"
        )
