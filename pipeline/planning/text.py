"""What the text holds: read and tokenized for a few seconds; of a longer text the rest is estimated from its files.

What will be held out is told as the tokenize stage would read it: to the end of the batch of documents with which there are
tokens enough. Where that was not reached, it is estimated from the documents that were read, with how far it may lie off.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.corpus.chat import ChatTemplate
from pipeline.corpus.document import Document
from pipeline.corpus.mixture import of_source
from pipeline.corpus.sides import Sides
from pipeline.corpus.sources import DEMO, Corpus, corpora
from pipeline.corpus.tokenization import BATCH_CHARACTERS, TokenizerInfo, tokenizer_info
from pipeline.extent import Extent
from pipeline.files import local_path
from pipeline.planning.timing import Stopwatch

if TYPE_CHECKING:
    from pipeline.lm.source import ModelSource
    from pipeline.params.schema import DatasetParams, Params
    from pipeline.planning.run import Run

SECONDS = 2.0  # of tokenizing, of each source
FURTHER = 4.0  # times that, in which a text is read to its end that can be
GENEROUS_BYTES, GENEROUS_ROWS = 2.0, 4.0  # times the estimate by sizes of files, or by rows: more tokens the text has hardly
FEW_TOKENS = 500_000  # to train on, which take a few seconds
PLENTY_BYTES = 12  # of text for each token: a token has fewer
TEXT_FILES = (".txt", ".md", ".jsonl", ".json")
DEVIATIONS = 2.0  # standard deviations of what is held out
AT_ONCE = 64  # documents
KEPT_TOKENS = 200_000  # of the sample, to measure with


class HeldOut(NamedTuple):
    """What will be held out.

    Attributes:
        tokens: of it.
        extent: documents that they are of.
        deviation: that the tokens may lie off by; 0: they were counted.
        share: of the tokens of the text that is read.
        parts: where they were counted, the tokens of each document or piece in order, and the whole document that it is of.
    """

    tokens: float
    extent: Extent
    deviation: float
    share: float
    parts: tuple[tuple[int, Hashable], ...] = ()

    def evaluated(self, asked: int | None, context_size: int) -> Extent:
        """The documents of so many of these tokens, whole contexts spread evenly as evaluation takes them; None: of all."""
        n_all = int(self.tokens // context_size)
        wanted = n_all if asked is None else min(math.ceil(asked / context_size), n_all)
        if wanted == n_all:
            return self.extent
        if not self.parts:  # a document is reached where a context begins in it, or before it by less than its size
            reached = 1.0 + self.tokens / (context_size * max(self.extent.documents, 1.0))
            return Extent(*(min(1.0, reached * wanted / n_all) * n for n in self.extent))
        ends = np.cumsum([tokens for tokens, _ in self.parts])
        starts = np.arange(wanted) * n_all // wanted * context_size
        first, last = (np.searchsorted(ends, at, side="right") for at in (starts, starts + context_size - 1))
        found = {self.parts[at][1] for a, b in zip(first, last, strict=True) for at in range(a, b + 1)}
        return _extent(found)


@dataclass
class SourceSample:
    """What was read of one source.

    Attributes:
        documents, characters, n_bytes, tokens: so far, pieces of text files each as a document; n_bytes in UTF-8.
        trained: tokens that may be trained on; held_out: that are held out. Left out are equal texts of both sides.
        held_out_parts: of each document or piece, and the whole document that it is of.
        files: tokens of each text file that comes in pieces, by name; pieces: how many.
        squares: sum of the squared lengths of the documents that are no pieces, in tokens.
        first: seconds until the first document was there; seconds: of reading after it.
        whole: whether it was read to its end.
        there: tokens in all of it, exact where whole; None: not known. most: that it has hardly more than.
        stop: what was held out when there were training tokens enough; None: there were not.
        batch: characters since the last batch ended.
        kept: documents to measure with.
    """

    documents: int = 0
    characters: int = 0
    n_bytes: int = 0
    tokens: int = 0
    trained: int = 0
    held_out: int = 0
    held_out_parts: list[tuple[int, Hashable]] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)
    pieces: int = 0
    squares: float = 0.0
    first: float = 0.0
    seconds: float = 0.0
    whole: bool = False
    there: float | None = None
    most: float | None = None
    stop: HeldOut | None = None
    batch: int = 0
    kept: list[Document] = field(default_factory=list)

    @property
    def extent(self) -> Extent:
        """Documents so far, a text file being one."""
        return Extent(self.documents - self.pieces + len(self.files), len(self.files))

    def held(self) -> HeldOut:
        """What is held out of what was read."""
        extent = _extent({whole for _, whole in self.held_out_parts})
        return HeldOut(self.held_out, extent, 0.0, self.held_out / max(self.tokens, 1), tuple(self.held_out_parts))


@dataclass(frozen=True)
class TextSample:
    """What was read of the text.

    Attributes:
        sources: by name; "" is the one data set.
        info: the tokenizer.
        tokenizer_seconds: of loading it.
    """

    sources: dict[str, SourceSample]
    info: TokenizerInfo
    tokenizer_seconds: float

    @property
    def there(self) -> float | None:
        """Tokens that the text holds; None: not known of one of its sources."""
        return _sum(source.there for source in self.sources.values())

    @property
    def most(self) -> float | None:
        """Tokens that it has hardly more than; None: not known."""
        return _sum(source.most for source in self.sources.values())

    @property
    def whole(self) -> bool:
        """Whether all of it was counted."""
        return all(source.whole for source in self.sources.values())

    @property
    def tokens(self) -> int:
        """Tokens of the sample."""
        return sum(source.tokens for source in self.sources.values())

    @property
    def trained(self) -> int:
        """Tokens of the sample that may be trained on."""
        return sum(source.trained for source in self.sources.values())

    @property
    def batch_tokens(self) -> float:
        """Tokens of a batch of documents, behind which tokenize looks whether it has enough."""
        return max(1.0, BATCH_CHARACTERS * self.tokens / max(sum(source.characters for source in self.sources.values()), 1))

    @property
    def extent(self) -> Extent:
        """Documents of the sample."""
        return _added(source.extent for source in self.sources.values())

    @property
    def pieces(self) -> int:
        """Pieces of text files in the sample."""
        return sum(source.pieces for source in self.sources.values())

    def held_out_of(self, wanted: int, eval_fraction: float) -> HeldOut:
        """What will be held out while so many training tokens are read.

        Args:
            wanted: training tokens.
            eval_fraction: of the documents that is held out.
        """
        found = list(self.sources.values())
        if len(found) == 1 and found[0].stop is not None:
            return found[0].stop
        if self.whole and (len(found) == 1 or self.trained <= wanted):
            if len(found) == 1:
                return found[0].held()
            held_out = sum(source.held_out for source in found)
            extent = _added(source.held().extent for source in found)
            return HeldOut(held_out, extent, 0.0, held_out / max(self.tokens, 1))
        # Each document is held out by itself, with this probability.
        scale = wanted / (1.0 - eval_fraction) / max(self.tokens, 1)
        extent = Extent(*(eval_fraction * scale * n for n in self.extent))
        squares = sum(s.squares + sum(float(n) ** 2 for n in s.files.values()) for s in found)
        variance = eval_fraction * (1.0 - eval_fraction) * scale * squares
        return HeldOut(eval_fraction * scale * self.tokens, extent, DEVIATIONS * math.sqrt(variance), eval_fraction)

    @property
    def first(self) -> float:
        """Seconds until documents are there."""
        return sum(source.first for source in self.sources.values())

    @property
    def per_token(self) -> float:
        """Seconds of reading for each token."""
        return sum(source.seconds for source in self.sources.values()) / max(self.tokens, 1)

    @property
    def documents(self) -> list[Document]:
        """Some documents of every source."""
        return [document for source in self.sources.values() for document in source.kept]


def sample_text(params: Params, model: ModelSource, seconds: float = SECONDS, *, no_further: bool = False) -> TextSample:
    """Read and tokenize the text for about so many seconds of each source.

    Args:
        params: all parameters.
        model: whose tokenizer is used.
        seconds: of each source.
        no_further: whether to stop where the tokenize stage will.

    Raises:
        DataError: text or tokenizer cannot be read.
    """
    watch = Stopwatch()
    loaded = model.load_tokenizer()
    info = tokenizer_info(loaded, model.name, model.vocab_size)
    took = watch.seconds()
    parts = params.dataset.each()
    chat = ChatTemplate(loaded, model.name) if any(part.messages_field is not None for part in parts.values()) else None
    wanted = params.activations.total_tokens
    watch = Stopwatch()
    dataset, found = params.dataset, {}
    sides = Sides(dataset.eval_fraction, dataset.split_seed, dataset.near_duplicate_similarity)
    for name, corpus in corpora(dataset, params.demo.text_packages, chat).items():
        with of_source(name):
            reading = _Reading(sides, parts[name], info, wanted, no_further)
            found[name] = reading.sample(corpus, seconds, watch.seconds())
        watch = Stopwatch()
    return TextSample(found, info, took)


class _Reading:
    """One source being read.

    Args:
        sides: of all sources. part: the section of the data set of this one.
        info: the tokenizer.
        wanted: training tokens of the run.
        no_further: whether to stop where there are enough.
    """

    def __init__(self, sides: Sides, part: DatasetParams, info: TokenizerInfo, wanted: int, no_further: bool) -> None:
        self.sides, self.part, self.info, self.wanted, self.no_further = sides, part, info, wanted, no_further
        self.found = SourceSample()

    def sample(self, corpus: Corpus, seconds: float, before: float) -> SourceSample:
        """Read for about so many seconds, or to the end where that is near.

        Args:
            corpus: its documents.
            seconds: of reading and tokenizing.
            before: seconds that it took to find the source.
        """
        found, documents, watch = self.found, iter(corpus), Stopwatch()
        batch = list(islice(documents, 1))
        found.first = before + watch.seconds()
        began, watch = time.monotonic(), Stopwatch()
        batch += islice(documents, AT_ONCE - 1) if batch else ()
        while batch:
            found.seconds += watch.seconds()
            self._count(batch)
            if self._is_enough(time.monotonic() - began, seconds):
                break
            watch = Stopwatch()
            batch = list(islice(documents, AT_ONCE))
        found.whole = not batch
        found.there = found.most = float(found.tokens) if found.whole else None
        if not found.whole:
            found.there, found.most = self._estimated()
        return found

    def _is_enough(self, spent: float, seconds: float) -> bool:
        """Whether to stop: there was time, and the rest would take too long."""
        if self.no_further and self.found.stop is not None:
            return True
        if spent < seconds:
            return False
        there, _ = self._estimated()
        if there is None or spent >= (1.0 + FURTHER) * seconds:
            return True
        return spent * there / max(self.found.tokens, 1) > FURTHER * seconds

    def _count(self, batch: list[Document]) -> None:
        found, info = self.found, self.info
        encoded = info.tokenizer.encode_batch([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encoded, strict=True):
            n = len(encoding.ids) + (info.eos is not None and not document.messages)
            found.documents += 1
            found.characters += len(document.text)
            found.batch += len(document.text)
            found.n_bytes += len(document.text.encode())
            found.tokens += n
            if document.piece_of:
                found.pieces += 1
                found.files[document.piece_of] += n
            else:
                found.squares += float(n) ** 2
            split = self.sides.of(document)
            if split == "train":
                found.trained += n
            elif split == "eval":
                found.held_out += n
                found.held_out_parts.append((n, document.piece_of or found.documents))
            if found.tokens <= KEPT_TOKENS or not found.kept:
                found.kept.append(document)
            if found.batch >= BATCH_CHARACTERS:  # here tokenize_corpus looks whether it has enough
                found.batch = 0
                if found.stop is None and found.trained >= self.wanted:
                    found.stop = found.held()

    def _estimated(self) -> tuple[float | None, float | None]:
        """Tokens of a source of which a part was read, by its files, and what it has hardly more than; None: not known."""
        found, name = self.found, self.part.dataset_name_or_path
        path = None if name == DEMO else local_path(name)
        if path is None or not found.n_bytes:
            return None, None
        rows, n_bytes = 0, 0
        for file in _files(path, self.part):
            if file.suffix == ".parquet":
                rows += _rows(file)
            elif file.suffix in TEXT_FILES:
                n_bytes += file.stat().st_size
            else:
                return None, None
        by_bytes = found.tokens * n_bytes / found.n_bytes
        by_rows = found.tokens * rows / max(found.documents, 1)
        return by_bytes + by_rows, GENEROUS_BYTES * by_bytes + GENEROUS_ROWS * by_rows


def _extent(wholes: Collection[Hashable]) -> Extent:
    """Of whole documents, text files by name and others by number."""
    return Extent(len(wholes), sum(isinstance(whole, str) for whole in wholes))


def _added(extents: Iterable[Extent]) -> Extent:
    """Of several sources together."""
    return Extent(*(sum(each) for each in zip(*extents, strict=True)))


def _sum(values: Iterable[float | None]) -> float | None:
    """Their sum; None where one is."""
    found = list(values)
    return None if None in found else sum(each for each in found if each is not None)


def is_counted_first(run: Run) -> bool:
    """Whether tokenize counts the text before it begins: one in files of which little is read, or whose size leaves a doubt
    that it is enough."""
    n_bytes = file_bytes(run.params.dataset)
    if n_bytes is None or run.params.dataset.sources is not None:  # of several sources the order is tokenize's own
        return False
    if run.stored_tokens <= FEW_TOKENS:
        return True
    asked, held_out = run.params.evaluation.tokens or 0, run.held_out_contexts * run.context_size
    return n_bytes < PLENTY_BYTES * run.stored_tokens or asked > held_out / 2


def file_bytes(dataset: DatasetParams) -> int | None:
    """Bytes of a text that lies in files of text; None: some of it does not, or in other ones."""
    files: list[Path] = []
    for source, part in dataset.each().items():
        name = part.dataset_name_or_path
        path = None if name == DEMO else local_path(name)
        if path is None:
            return None
        with of_source(source):
            files += _files(path, part)
    if any(file.suffix not in TEXT_FILES for file in files):
        return None
    return sum(file.stat().st_size for file in files)


def _files(path: Path, part: DatasetParams) -> Iterator[Path]:
    from pipeline.corpus.folder import text_files
    from pipeline.corpus.hub import saved_on_disk

    if saved_on_disk(path):
        yield path / "unknown"
        return
    found = text_files(path, part.split, part.config_name)
    yield from (found.base / name for name in found.names)


def _rows(file: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(file).metadata.num_rows)
