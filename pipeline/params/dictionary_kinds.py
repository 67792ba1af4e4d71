"""The kinds of dictionary, declared: where the fields and rules of each are, and where its tensors."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.registry import Registry

if TYPE_CHECKING:
    from pipeline.params.kinds.fields import DictionaryFields

_FIELDS, _CODE = "pipeline.params.kinds", "pipeline.dictionaries"


@dataclass(frozen=True)
class KindDeclaration:
    """One kind of dictionary.

    Attributes:
        name: dictionary.kind.
        fields: `module:class`, its fields and rules, a subclass of DictionaryFields; imported without torch.
        implementation: `module:class`, a subclass of Dictionary.
    """

    name: str
    fields: str
    implementation: str


KINDS: Registry[KindDeclaration] = Registry(
    "dictionary kind",
    "scopeline.dictionary_kinds",
    (
        KindDeclaration("clt", f"{_FIELDS}.clt:CrossLayerTranscoderFields", f"{_CODE}.clt:CrossLayerTranscoder"),
        KindDeclaration("crosscoder", f"{_FIELDS}.crosscoder:CrosscoderFields", f"{_CODE}.crosscoder:Crosscoder"),
        KindDeclaration("lorsa", f"{_FIELDS}.lorsa:LowRankSparseAttentionFields", f"{_CODE}.lorsa:LowRankSparseAttention"),
        KindDeclaration("sae", f"{_FIELDS}.sae:SAEFields", f"{_CODE}.sae:SparseAutoencoder"),
        KindDeclaration("transcoder", f"{_FIELDS}.transcoder:TranscoderFields", f"{_CODE}.sae:SparseAutoencoder"),
    ),
)


@functools.cache
def kind_fields(kind: str) -> type[DictionaryFields]:
    """The fields and rules of a kind, imported on demand."""
    module, _, name = KINDS.get(kind).fields.partition(":")
    found: type[DictionaryFields] = getattr(importlib.import_module(module), name)
    return found
