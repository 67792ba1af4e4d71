"""The kinds of dictionary, declared: where the fields and rules of each are, and where its tensors."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.registry import Registry

_FIELDS, _CODE = "pipeline.params.kinds", "pipeline.dictionaries"


@dataclass(frozen=True)
class KindDeclaration:
    """One kind of dictionary.

    Attributes:
        name: dictionary.kind.
        fields: `module:class`, its section of the parameters, a subclass of DictionaryParams; imported without torch.
        implementation: `module:class`, a subclass of Dictionary.
    """

    name: str
    fields: str
    implementation: str


KINDS: Registry[KindDeclaration] = Registry(
    "dictionary kind",
    "scopeline.dictionary_kinds",
    (
        KindDeclaration("clt", f"{_FIELDS}.clt:CrossLayerTranscoderParams", f"{_CODE}.clt:CrossLayerTranscoder"),
        KindDeclaration("crosscoder", f"{_FIELDS}.crosscoder:CrosscoderParams", f"{_CODE}.crosscoder:Crosscoder"),
        KindDeclaration("lorsa", f"{_FIELDS}.lorsa:LowRankSparseAttentionParams", f"{_CODE}.lorsa:LowRankSparseAttention"),
        KindDeclaration("sae", f"{_FIELDS}.sae:SAEParams", f"{_CODE}.sae:SparseAutoencoder"),
        KindDeclaration("transcoder", f"{_FIELDS}.transcoder:TranscoderParams", f"{_CODE}.sae:SparseAutoencoder"),
    ),
)
