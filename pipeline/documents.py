"""What an evaluation keeps of each of its documents, so that runs can be compared document by document."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DataError
from pipeline.files import is_number, json_object, parse_json

FILE = "documents.json"  # in the directory of the evaluation's plots
WHAT = "sums of each document"


@dataclass(frozen=True, eq=False)
class Documents:
    """Sums over the tokens of each document, of the losses that are compared.

    Attributes:
        digest: of the tokens that were evaluated and of the documents that they are of: equal where two evaluations have seen
            the same ones.
        sums: {metric: (numerators, denominators)}, of each document, by growing number; their totals' ratio is the metric.
    """

    digest: str
    sums: Mapping[str, tuple[Sequence[float], Sequence[float]]]

    def of(self, loss: str) -> tuple[Sequence[float], Sequence[float]] | None:
        """The sums of a loss, of tokens that are not massive where these are told apart; None: they are not there."""
        return self.sums.get(f"{loss}_ordinary", self.sums.get(loss))

    def content(self) -> bytes:
        """The file: the digest and {metric: {"numerators": [...], "denominators": [...]}}, as JSON."""
        sums = {name: {"numerators": [*over], "denominators": [*under]} for name, (over, under) in self.sums.items()}
        text = json.dumps({"digest": self.digest, "sums": sums}, sort_keys=True, allow_nan=False)
        return f"{text}\n".encode()

    @classmethod
    def read(cls, content: bytes | None) -> Documents | None:
        """Of the file; None: there is none, or it is another one."""
        try:
            found = json_object(parse_json(content or b"", WHAT), WHAT)
            sums = {name: json_object(each, WHAT) for name, each in json_object(found.get("sums"), WHAT).items()}
        except DataError:
            return None
        pairs: dict[str, tuple[Any, Any]] = {
            name: (each.get("numerators"), each.get("denominators")) for name, each in sums.items()
        }
        right = all(_numbers(over) and _numbers(under) and len(over) == len(under) for over, under in pairs.values())
        return cls(str(found.get("digest")), pairs) if right and found.get("digest") else None


def _numbers(values: object) -> bool:
    return isinstance(values, list) and all(is_number(value) for value in values)


class Kept:
    """The documents of an evaluation, which are read when they are asked for, once.

    Args:
        read: gives them; None: they are not there.
    """

    def __init__(self, read: Callable[[], Documents | None]) -> None:
        self._read = read

    @classmethod
    def of(cls, documents: Documents) -> Kept:
        """Those that are there already."""
        return cls(lambda: documents)

    @functools.cached_property
    def documents(self) -> Documents | None:
        """What was read."""
        return self._read()
