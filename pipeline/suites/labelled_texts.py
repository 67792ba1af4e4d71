"""Texts with a label each, for probes: of a file, of a data set, or of the embedded corpus.

The embedded corpus has a label by itself: the package whose source file a documentation text is from (stdlib, numpy, ...). It
says what a text is about, and a probe that tells packages apart tells subject and vocabulary, little more.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.corpus.demo import demo_documents
from pipeline.corpus.document import held_out
from pipeline.corpus.hub import hub_rows
from pipeline.errors import DataError, unknown_name
from pipeline.files import json_object, parse_json, read_bytes

NEXT = 'give JSON lines with a text and a label each, as {"text": "...", "label": "..."}'


@dataclass(frozen=True)
class LabelledText:
    """One text.

    Attributes:
        text: it.
        label: its label.
    """

    text: str
    label: str

    @property
    def digest(self) -> str:
        """Equal for equal texts, whatever blanks stand around them."""
        return hashlib.sha256(self.text.strip().encode()).hexdigest()


@dataclass(frozen=True)
class LabelledSet:
    """Texts that were chosen.

    Attributes:
        name: what they are, for the report.
        texts: in the order of a hash of the text.
        lines: what was left out.
    """

    name: str
    texts: tuple[LabelledText, ...]
    lines: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """Each once, sorted."""
        return sorted({each.label for each in self.texts})


def of_file(path: Path, text_field: str = "text", label_field: str = "label") -> Iterator[LabelledText]:
    """The texts of a file of JSON lines.

    Raises:
        DataError: it is missing, or a line is no object with a text and a label; the message names the line.
    """
    for number, line in enumerate(read_bytes(path, "the labelled texts", NEXT).split(b"\n"), 1):
        if line.strip():
            where = f"{path}: line {number}"
            yield _labelled(json_object(parse_json(line, where, NEXT), where, NEXT), where, text_field, label_field)


def of_data_set(
    name: str,
    config_name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_field: str = "text",
    label_field: str = "label",
) -> Iterator[LabelledText]:
    """The texts of a data set of the hub, or of a directory in the hub's form; a class label has its name.

    Raises:
        DataError: no such data set or column, or a row without a text and a label.
    """
    rows = hub_rows(name, config_name, revision, split, streaming=False)
    for field in (text_field, label_field):
        if field not in rows.column_names:
            raise DataError(f"data set '{name}': {unknown_name('column', field, rows.column_names)}")
    names = getattr(rows.features[label_field], "names", None)
    for number, row in enumerate(rows):
        if names is not None and isinstance(row[label_field], int) and 0 <= row[label_field] < len(names):
            row = {**row, label_field: names[row[label_field]]}
        yield _labelled(row, f"data set '{name}': row {number}", text_field, label_field)


def of_demo(packages: Sequence[str], eval_fraction: float, split_seed: int) -> Iterator[LabelledText]:
    """The documents of the embedded corpus, labelled by the package that their source file belongs to.

    Args:
        packages, eval_fraction, split_seed: of the parameters: they decide which texts the corpus has.
    """
    for document in demo_documents(packages, partial(held_out, fraction=eval_fraction, seed=split_seed)):
        yield LabelledText(document.text, document.key.partition("/")[0])


def chosen_texts(texts: Iterable[LabelledText], name: str, per_label: int, least: int) -> LabelledSet:
    """At most `per_label` different texts of each label, in the order of a hash of the text; a label with fewer than `least`
    is left out, and so is a text that has two labels.

    Raises:
        DataError: fewer than two labels are left.
    """
    by_digest: dict[str, LabelledText] = {}
    twice: set[str] = set()
    for each in texts:
        if by_digest.setdefault(each.digest, each).label != each.label:
            twice.add(each.digest)
    kept = [by_digest[digest] for digest in sorted(by_digest) if digest not in twice]
    counts = Counter(each.label for each in kept)
    lines = [f"{len(twice):,} texts have two labels and are left out"] if twice else []
    few = sorted(label for label, n in counts.items() if n < least)
    lines += [f"label '{label}' is left out: {counts[label]:,} texts, wanted at least {least}" for label in few]
    taken: Counter[str] = Counter()
    chosen = []
    for each in kept:
        if each.label not in few and taken[each.label] < per_label:
            taken[each.label] += 1
            chosen.append(each)
    if len(taken) < 2:
        found = _counted(counts)
        raise DataError(f"{name}: a probe needs two labels with at least {least} texts each, got {found}; give more texts")
    return LabelledSet(name, tuple(chosen), tuple(lines))


def _counted(counts: Mapping[str, int], shown: int = 8) -> str:
    """The labels with their numbers, the commonest first."""
    first = sorted(counts, key=lambda label: (-counts[label], label))
    more = f", and {len(first) - shown:,} more labels" if len(first) > shown else ""
    return (", ".join(f"'{label}' ({counts[label]:,})" for label in first[:shown]) or "none") + more


def _labelled(row: Mapping[str, Any], where: str, text_field: str, label_field: str) -> LabelledText:
    """A row as a text with its label; a label is a string, a whole number or a truth value."""
    for field in (text_field, label_field):
        if field not in row:
            raise DataError(f"{where}: {unknown_name('field', field, row)}")
    text, label = row[text_field], row[label_field]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: {text_field} should be a text, got {_shown(text)}; {NEXT}")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"{where}: {text_field} has half a surrogate pair, which is no text; write it as UTF-8")
    if not isinstance(label, str | int) or not str(label).strip() or not str(label).isprintable():
        raise DataError(f"{where}: {label_field} should be a string or a whole number, got {_shown(label)}; {NEXT}")
    return LabelledText(text, str(label))


def _shown(value: object) -> str:
    """For a message, not longer than fits."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
