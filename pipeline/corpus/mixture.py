"""Several sources mixed by weights (`dataset.sources`): whose document is read next.

The next document is of the source whose training tokens so far are fewest for its weight; the order within a source is its
own. So every prefix has the shares asked for, to within a document, and the order follows from the seeds alone. A source that
has ended is left out from there on, never read again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

from pipeline.corpus.document import Document
from pipeline.errors import DataError

T = TypeVar("T")
READ_AHEAD = 64  # documents of a source that are tokenized at once


@contextlib.contextmanager
def of_source(name: str) -> Iterator[None]:
    """Within the block an error of the data begins with the key of the source; of the one data set (no name) it stays."""
    try:
        yield
    except DataError as error:
        if not name:
            raise
        raise DataError(f"dataset.sources.{name}: {error}") from None


class Source(NamedTuple):
    """One of several.

    Attributes:
        documents: of it, in order.
        weight: share of the training tokens, relative to the other sources'.
    """

    documents: Iterable[Document]
    weight: float


@dataclass
class Mixture:
    """Documents of several sources.

    Attributes:
        sources: by name.
        tokens: {source: its training tokens so far}, which the reader counts on.
        ended: sources that have no further document, in the order in which they ended.
    """

    sources: Mapping[str, Source]
    tokens: dict[str, int] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)

    def documents(self, tokenized: Callable[[list[Document]], list[T]]) -> Iterator[T]:
        """Every document once, tokenized; `tokens` must be up to date whenever the next one is asked for.

        Args:
            tokenized: makes of documents what is asked for, one of each.

        Raises:
            DataError: a source cannot be read; the message begins with its name.
        """
        self.tokens = dict.fromkeys(self.sources, 0)
        reading = {name: self._of(name, tokenized) for name in self.sources}
        while reading:
            name = min(reading, key=lambda name: self.tokens[name] / self.sources[name].weight)
            found = next(reading[name], None)
            if found is None:
                del reading[name]
                self.ended.append(name)
            else:
                yield found

    def _of(self, name: str, tokenized: Callable[[list[Document]], list[T]]) -> Iterator[T]:
        documents = iter(self.sources[name].documents)
        while True:
            with of_source(name):
                ahead = [dataclasses.replace(each, source=name) for each in islice(documents, READ_AHEAD)]
                found = tokenized(ahead)
            if not found:
                return
            yield from found

    def share(self, name: str) -> float:
        """What of the training tokens is asked of a source."""
        return self.sources[name].weight / sum(source.weight for source in self.sources.values())

    def lines(self) -> list[str]:
        """What is said of the sources that have ended: what they gave, and what was asked of them."""
        total = sum(self.tokens.values())
        return [
            f"dataset.sources.{name} ended: it gave {self.tokens[name]:,} of {total:,} training tokens "
            f"({self.tokens[name] / max(1, total):.1%}, its weight asks for {self.share(name):.1%}) and is not repeated"
            for name in self.ended
        ]
