"""The file formats of dictionaries, declared. The code is in pipeline/dictionaries/formats."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.registry import Registry

OWN = "scopeline"


@dataclass(frozen=True)
class FormatDeclaration:
    """One file format.

    Attributes:
        name: what it is called.
        implementation: `module:attribute`, a DictionaryFormat.
    """

    name: str
    implementation: str


DICTIONARY_FORMATS: Registry[FormatDeclaration] = Registry(
    "dictionary format",
    "scopeline.dictionary_formats",
    (FormatDeclaration(OWN, "pipeline.dictionaries.formats.scopeline:FORMAT"),),
)
