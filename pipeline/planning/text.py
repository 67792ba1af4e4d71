"""What the text holds: read and tokenized for a few seconds; of a longer text the rest is estimated from its files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.corpus.chat import ChatTemplate
from pipeline.corpus.document import Document
from pipeline.corpus.sources import DEMO, Corpus, corpora
from pipeline.corpus.tokenization import TokenizerInfo, tokenizer_info
from pipeline.files import local_path

if TYPE_CHECKING:
    from pipeline.lm.source import ModelSource
    from pipeline.params.schema import DatasetParams, Params

SECONDS = 2.0  # of tokenizing, of each source
AT_ONCE = 64  # documents
KEPT_TOKENS = 200_000  # of the sample, to measure with


@dataclass
class SourceSample:
    """What was read of one source.

    Attributes:
        documents, characters, n_bytes, tokens: so far; n_bytes in UTF-8.
        held_out: tokens of documents that are held out.
        first: seconds until the first document was there; seconds: of reading and tokenizing after it.
        whole: whether it was read to its end.
        there: tokens in all of it, exact where whole; None: not known.
        kept: documents to measure with.
    """

    documents: int = 0
    characters: int = 0
    n_bytes: int = 0
    tokens: int = 0
    held_out: int = 0
    first: float = 0.0
    seconds: float = 0.0
    whole: bool = False
    there: float | None = None
    kept: list[Document] = field(default_factory=list)


@dataclass(frozen=True)
class TextSample:
    """What was read of the text.

    Attributes:
        sources: by name; "" is the one data set.
        info: the tokenizer.
    """

    sources: dict[str, SourceSample]
    info: TokenizerInfo

    @property
    def there(self) -> float | None:
        """Tokens that the text holds; None: not known of one of its sources."""
        found = [source.there for source in self.sources.values()]
        return None if None in found else sum(each for each in found if each is not None)

    @property
    def whole(self) -> bool:
        """Whether all of it was counted."""
        return all(source.whole for source in self.sources.values())

    @property
    def tokens(self) -> int:
        """Tokens of the sample."""
        return sum(source.tokens for source in self.sources.values())

    @property
    def held_out_share(self) -> float:
        """Share of the sample's tokens that is held out."""
        return sum(source.held_out for source in self.sources.values()) / max(self.tokens, 1)

    @property
    def first(self) -> float:
        """Seconds until documents are there."""
        return sum(source.first for source in self.sources.values())

    @property
    def per_token(self) -> float:
        """Seconds for each token."""
        return sum(source.seconds for source in self.sources.values()) / max(self.tokens, 1)

    @property
    def documents(self) -> list[Document]:
        """Some documents of every source."""
        return [document for source in self.sources.values() for document in source.kept]


def sample_text(params: Params, model: ModelSource, seconds: float = SECONDS) -> TextSample:
    """Read and tokenize the text for about so many seconds of each source.

    Raises:
        DataError: text or tokenizer cannot be read.
    """
    loaded = model.load_tokenizer()
    info = tokenizer_info(loaded, model.name, model.vocab_size)
    parts = params.dataset.each()
    chat = ChatTemplate(loaded, model.name) if any(part.messages_field is not None for part in parts.values()) else None
    began = time.monotonic()
    found = {}
    for name, corpus in corpora(params.dataset, params.demo.text_packages, chat).items():
        found[name] = _sample(corpus, parts[name], params.dataset, info, seconds, time.monotonic() - began)
        began = time.monotonic()
    return TextSample(found, info)


def _sample(
    corpus: Corpus, part: DatasetParams, dataset: DatasetParams, info: TokenizerInfo, seconds: float, before: float
) -> SourceSample:
    sample = SourceSample()
    began = time.monotonic()
    documents = iter(corpus)
    first = next(documents, None)
    sample.first = before + time.monotonic() - began
    began = time.monotonic()
    batch = [] if first is None else [first, *islice(documents, AT_ONCE - 1)]
    while batch:
        _count(sample, batch, dataset, info)
        sample.seconds = time.monotonic() - began
        if sample.seconds >= seconds:
            break
        batch = list(islice(documents, AT_ONCE))
    sample.whole = not batch
    sample.there = float(sample.tokens) if sample.whole else _estimated(sample, part)
    return sample


def _count(sample: SourceSample, batch: list[Document], dataset: DatasetParams, info: TokenizerInfo) -> None:
    encoded = info.tokenizer.encode_batch([document.text for document in batch], add_special_tokens=False)
    for document, encoding in zip(batch, encoded, strict=True):
        n = len(encoding.ids) + (info.eos is not None and not document.messages)
        sample.documents += 1
        sample.characters += len(document.text)
        sample.n_bytes += len(document.text.encode())
        sample.tokens += n
        if document.is_held_out(dataset.eval_fraction, dataset.split_seed):
            sample.held_out += n
        if sample.tokens <= KEPT_TOKENS or not sample.kept:
            sample.kept.append(document)


def _estimated(sample: SourceSample, part: DatasetParams) -> float | None:
    """Tokens of a source of which a part was read, by its files; None: they do not tell."""
    name = part.dataset_name_or_path
    path = None if name == DEMO else local_path(name)
    if path is None or not sample.n_bytes:
        return None
    rows, n_bytes = 0, 0
    for file in _files(path, part):
        if file.suffix == ".parquet":
            rows += _rows(file)
        elif file.suffix in (".txt", ".md", ".jsonl", ".json"):
            n_bytes += file.stat().st_size
        else:
            return None
    return sample.tokens * (n_bytes / sample.n_bytes + rows / max(sample.documents, 1))


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
