"""How many documents something has, and what that number says of a 95 % interval.

A document is a row of a data set, a text between separators, or a text file without separators, in however many pieces the
token store keeps it. An interval draws documents again, so their number is what it rests on (SPEC 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

FEW_DOCUMENTS = 20  # below which an interval holds the truth clearly less often than 95 times of 100


class Extent(NamedTuple):
    """How many documents there are; an estimate is no whole number.

    Attributes:
        documents: all of them.
        files: of these, text files that are stored in pieces.
    """

    documents: float
    files: float = 0

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Extent | None:
        """Of the evaluated tokens, by metrics/evaluation.json; None: an evaluation from before they were counted."""
        documents, files = (metrics.get(name) for name in ("evaluated_documents", "evaluated_files"))
        return cls(documents, files) if isinstance(documents, int | float) and isinstance(files, int | float) else None

    def words(self) -> str:
        """`14 documents`, `5 text files`, `14 documents, 5 of them text files`."""
        if self.files and round(self.files) == round(self.documents):
            return _counted(self.files, "text file")
        return _counted(self.documents, "document") + (f", {self.files:,.0f} of them text files" if self.files else "")

    def warning(self) -> str:
        """What a small number of them does to intervals; "": it is large enough."""
        if round(self.documents) < 2:
            return "there is no 95 % interval, which needs at least two documents (a text file is one)"
        if round(self.documents) < FEW_DOCUMENTS:
            return f"95 % intervals are rough, and rather too narrow: they need {FEW_DOCUMENTS} documents (a text file is one)"
        return ""


def _counted(n: float, what: str) -> str:
    return f"{n:,.0f} {what}{'' if round(n) == 1 else 's'}"


def interval_note(metrics: Mapping[str, Any]) -> str:
    """What is drawn again for the intervals of an evaluation, and whether it is few, in a sentence or two."""
    found = Extent.of(metrics)
    if found is None:
        return "Intervals: whole documents are drawn again."
    warning = found.warning()
    said = f"The evaluated tokens are of {found.words()}"
    if round(found.documents) < 2:
        return f"{said}: {warning}."
    return f"{said}, which intervals draw again." + (f" {warning[0].upper()}{warning[1:]}." if warning else "")
