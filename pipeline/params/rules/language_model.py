"""What a start that imitates the language model's own layers needs of the hook points."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.hook_keys import ATTENTION_OUTPUT, MLP_INPUT
from pipeline.params.choices import NORMS_OF_THE_DATA
from pipeline.params.section import across

if TYPE_CHECKING:
    from pipeline.params.kinds.fields import DictionaryFields
    from pipeline.params.sections.initializer import InitializerParams


@across("initializer.initialize_tc_with_mlp")
def mlp_initialisation_needs_a_transcoder(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """The MLP's responses are the decoder rows of a transcoder only."""
    if initializer.initialize_tc_with_mlp and not dictionary.is_transcoder:
        kind = dictionary.kind
        return (
            f"needs a transcoder: this {kind} writes the hook point that it reads, so that there is no MLP between; write false"
        )
    return None


@across("initializer.model_layer")
def mlp_layer_is_known(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """The MLP's layer is stated, or both hook points are of one layer."""
    if not initializer.initialize_tc_with_mlp or initializer.model_layer is not None:
        return None
    for pair in zip(dictionary.hooks_in, dictionary.hooks_out, strict=False):
        layers = {layer_of(hook) for hook in pair}
        if len(layers) > 1 and None not in layers:  # what has none is no MLP's input: mlp_reads_what_the_dictionary_reads
            return f"is null and cannot be derived: {' and '.join(pair)} are of different layers; state the layer of the MLP"
    return None


@across("initializer.model_layer")
def mlp_reads_what_the_dictionary_reads(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """The MLP is a function of what its own layer reads; which of these that is, the model's family says."""
    if not initializer.initialize_tc_with_mlp or not dictionary.is_transcoder:
        return None
    layer = initializer.model_layer
    for read in dictionary.hooks_in:
        if not MLP_INPUT.fullmatch(read):
            at = layer_of(read) if layer is None else layer
            of = "L" if at is None else at
            return f"no MLP is a function of '{read}'; read blocks.{of}.ln2.hook_out, or switch initialize_tc_with_mlp off"
        if layer is not None and layer != layer_of(read):
            return f"the MLP of layer {layer} is no function of '{read}'; write null or {layer_of(read)}"
    return None


@across("initializer.initialize_tc_with_mlp")
def mlp_writes_what_the_dictionary_writes(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """Responses of an MLP are rows of a dictionary that writes its output."""
    if not initializer.initialize_tc_with_mlp or not dictionary.is_transcoder:
        return None
    for hook in dictionary.hooks_out:
        if not hook.endswith(".hook_mlp_out"):
            return f"the MLP's responses are no rows for '{hook}'; write blocks.L.hook_mlp_out, or switch it off"
    return None


@across("initializer.initialize_lorsa_with_mhsa")
def attention_is_imitated_by_attention(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """The model's attention is the start of a low-rank sparse attention on the same input and output."""
    if not initializer.initialize_lorsa_with_mhsa:
        return None
    if not dictionary.READS_SEQUENCES:
        return f"needs kind lorsa; kind {dictionary.kind} has no attention; write false"
    for read, written in zip(dictionary.hooks_in, dictionary.hooks_out, strict=False):
        layer = layer_of(read)
        writes = ATTENTION_OUTPUT.fullmatch(written)
        if not re.match(r"blocks\.\d+\.ln1\.", read) or not writes or int(writes[1]) != layer:
            return (
                f"needs blocks.L.ln1.hook_out to blocks.L.hook_attn_out of one layer L, not {read} to {written}; write these, "
                "or false here"
            )
    return None


@across("initializer.initialize_lorsa_with_mhsa")
def attention_reads_one_scale(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """Queries and keys are divided by one factor; a norm that changes with the token or the batch has none."""
    norm = dictionary.norm_activation
    if not initializer.initialize_lorsa_with_mhsa or norm not in NORMS_OF_THE_DATA:
        return None
    return (
        f"norm_activation {norm} has no one factor to divide queries and keys by, so that scores would not be the model's; "
        "write dataset-wise, or switch it off"
    )


@across("initializer.model_layer")
def attention_is_that_of_the_hook_points(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """The imitated attention is the one between the hook points."""
    layer = initializer.model_layer
    if layer is None or not initializer.initialize_lorsa_with_mhsa:
        return None
    for read in dictionary.hooks_in:
        if layer != layer_of(read):
            return f"the attention of layer {layer} is no function of '{read}'; write null or {layer_of(read)}"
    return None


def layer_of(hook_point: str) -> int | None:
    """The layer in a hook point's name: 2 of blocks.2.hook_resid_post."""
    match = re.match(r"blocks\.(\d+)\.", hook_point)
    return int(match.group(1)) if match else None
