"""Writing a dictionary in our own format or in another one; store.py reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dictionaries.formats.interface import dictionary_format
from pipeline.params.dictionary_formats import OWN

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary


def save_dictionary(
    dictionary: Dictionary, path: str | Path, extra: Mapping[str, Any] | None = None, *, format: str = OWN
) -> None:
    """Write a dictionary to `path`, all of it or nothing; what exists there is replaced.

    Args:
        dictionary: any kind.
        path: a directory, or what the format writes.
        extra: provenance entries (without times) that are added to config.provenance; `norms` sets config.norms.
        format: name of the file format.

    Raises:
        ParamsError: no such format, or it cannot hold this dictionary.
    """
    extra = dict(extra or {})
    config = dataclasses.replace(
        dictionary.config,
        dtype=str(next(dictionary.parameters()).dtype).removeprefix("torch."),
        norms=extra.pop("norms", dictionary.config.norms),
        provenance={**dictionary.config.provenance, **extra},
    )
    dictionary_format(format).write(dictionary, Path(path), config)
