"""The formats in which other tools keep dictionaries, declared. The code is in pipeline/interop."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.registry import Registry

_CODE = "pipeline.interop"


@dataclass(frozen=True)
class InterchangeDeclaration:
    """One format of another tool.

    Attributes:
        name: `--format`.
        implementation: `module:attribute`, an InterchangeFormat.
    """

    name: str
    implementation: str


INTERCHANGE_FORMATS: Registry[InterchangeDeclaration] = Registry(
    "interchange format",
    "scopeline.interchange_formats",
    (InterchangeDeclaration("saelens", f"{_CODE}.saelens:FORMAT"),),
)
