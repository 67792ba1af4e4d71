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
        implementation: `module:attribute`, an InterchangeFormat; of a format of features, a FeatureFormat.
    """

    name: str
    implementation: str


INTERCHANGE_FORMATS: Registry[InterchangeDeclaration] = Registry(
    "interchange format",
    "scopeline.interchange_formats",
    tuple(
        InterchangeDeclaration(name, f"{_CODE}.{name}:FORMAT")
        for name in (
            "saelens",
            "sparsify",
            "dictionary_learning",
            "gemma_scope",
            "llama_scope",
            "openmoss",
            "circuit_tracer",
        )
    ),
)

# What holds features, as the analysis found them, and no weights.
FEATURE_FORMATS: Registry[InterchangeDeclaration] = Registry(
    "feature format",
    "scopeline.feature_formats",
    (InterchangeDeclaration("neuronpedia", f"{_CODE}.neuronpedia.export:FORMAT"),),
)
