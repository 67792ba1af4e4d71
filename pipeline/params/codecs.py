"""The storage codecs, declared: how activations may be stored. The code is in pipeline/activations/codecs."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.registry import Registry

_CODE = "pipeline.activations.codecs"


@dataclass(frozen=True)
class StorageCodecDeclaration:
    """One storage codec.

    Attributes:
        name: activations.storage_dtype.
        implementation: `module:attribute`, a StorageCodec.
    """

    name: str
    implementation: str


STORAGE_CODECS: Registry[StorageCodecDeclaration] = Registry(
    "activations.storage_dtype",
    "scopeline.storage_codecs",
    (
        StorageCodecDeclaration("bfloat16", f"{_CODE}.plain:BFLOAT16"),
        StorageCodecDeclaration("float16", f"{_CODE}.plain:FLOAT16"),
        StorageCodecDeclaration("float32", f"{_CODE}.plain:FLOAT32"),
        StorageCodecDeclaration("int8", f"{_CODE}.int8:INT8"),
    ),
)
