"""Whether a dictionary fits its language models, known from their configurations before anything is generated or trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import ParamsError, of_member
from pipeline.hook_keys import MLP_INPUT, by_model, join_key, module_of, place_of, split_key
from pipeline.lm.loading import load_attention_form, stated_widths
from pipeline.params.fields import as_written

if TYPE_CHECKING:
    from pipeline.lm.attention import AttentionWeights
    from pipeline.lm.source import ModelSource
    from pipeline.params.kinds.fields import DictionaryFields
    from pipeline.params.schema import Params

OPTION = "initialize_lorsa_with_mhsa"
ROPE_TYPES = ("default", "linear", "llama3")  # what low-rank sparse attention can be


def check_models_fit(params: Params) -> None:
    """Refuse a dictionary, or a member of a sweep, that does not fit its language models; reads configurations, no weights.

    Args:
        params: all parameters.

    Raises (of a member with its name):
        ParamsError: widths of the hook points (see `Params.with_widths`), or an attention that is not the model's.
        DataError: no such model, or no such hook point.
    """
    faults: list[str] = []
    for name, own in params.members.items():
        try:
            with of_member(name):
                _check_fits(own)
        except ParamsError as error:
            faults += error.faults
    if faults:
        raise ParamsError(faults)


def _check_fits(params: Params) -> None:
    """Of one dictionary."""
    widths: dict[str, int] = {}
    for alias, hooks in by_model(params.dictionary_hook_points).items():
        model = params.language_model(alias)
        source = stated_widths(model)
        widths |= {join_key(alias, hook): source.hook_width(hook) for hook in hooks}
        _check_order(params.dictionary, alias, source)
    params.with_widths(widths)
    place = place_of(params.dictionary.hooks_in[0])
    if params.initializer.initialize_tc_with_mlp:
        _check_mlp(params)
    if params.initializer.initialize_lorsa_with_mhsa and place is not None:
        form = load_attention_form(
            params.model.model_name, params.model.revision, int(place[0]), params.dictionary.hooks_out[0]
        )
        check_attention_fits(params.dictionary.to_dict(), form)


def _check_mlp(params: Params) -> None:
    """Refuse to start from an MLP that, in this model's family, reads another hook point."""
    source = stated_widths(params.model)
    for read in params.dictionary.hooks_in:
        match = MLP_INPUT.fullmatch(read)
        accepted = source.mlp_reads(int(match[1])) if match else {}
        if match and read not in accepted:
            raise ParamsError(
                f"initializer.initialize_tc_with_mlp: of family {source.model_type} the MLP of layer {match[1]} is no function "
                f"of '{read}'; read {' or '.join(accepted)}, or switch it off"
            )


def _check_order(dictionary: DictionaryFields, alias: str, source: ModelSource) -> None:
    """Refuse what is written before what is read has occurred, where names do not say so: of modules."""
    for read, written in zip(dictionary.hooks_in, dictionary.hooks_out, strict=False):
        pair = [hook for key in (read, written) for whose, hook in [split_key(key)] if whose == alias]
        if len(pair) < 2 or read == written or not any(map(module_of, pair)):
            continue
        if source.in_order(pair)[0] == pair[1]:
            raise ParamsError(
                f"dictionary: {written} occurs before {read} in a run, so that it cannot be computed from it; write a later one"
            )


def attention_fields(attention: AttentionWeights) -> dict[str, object]:
    """The fields with which a dictionary's attention is the model's, but for the number of heads and n_ctx."""
    normed, parts = attention.q_gain is not None, attention.by_parts
    root = math.isclose(attention.attn_scale, math.sqrt(attention.d_head), rel_tol=1e-6)
    fields: dict[str, object] = {"d_qk_head": attention.d_head, "use_post_qk_ln": normed}
    fields["attn_scale"] = None if root else attention.attn_scale
    if normed:
        fields |= {"normalization_type": attention.normalization, "eps": attention.eps}
    if not attention.rotary_dim:
        return {**fields, "positional_embedding_type": "none"}
    fields |= {"positional_embedding_type": "rotary", "rotary_dim": attention.rotary_dim}
    fields["rotary_adjacent_pairs"] = attention.adjacent_pairs
    fields |= {"rotary_base": attention.rotary_base, "rotary_scale": attention.rotary_scale}
    fields["use_NTK_by_parts_rope"] = parts is not None
    if parts is not None:
        fields |= {"NTK_by_parts_factor": parts.factor, "old_context_len": parts.old_context_len}
        fields["NTK_by_parts_low_freq_factor"] = parts.low_freq_factor
        fields["NTK_by_parts_high_freq_factor"] = parts.high_freq_factor
    return fields


def check_attention_fits(fields: Mapping[str, Any], attention: AttentionWeights) -> None:
    """Refuse an attention that is not the model's.

    Args:
        fields: the dictionary section's, or a dictionary's configuration.
        attention: of the model's layer; its tensors' shapes are looked at, not their values.

    Raises:
        ParamsError: names every field that differs, and what of the model's this kind cannot be.
    """
    off = f"; switch initializer.{OPTION} off"
    faults = [
        f"dictionary.{key}: the model's is {as_written(wanted)}, got {as_written(fields[key])}"
        for key, wanted in attention_fields(attention).items()
        if not _same(key, wanted, fields[key], attention.d_head)
    ]
    n_heads, n_ctx, window = attention.n_heads, fields["n_ctx"], attention.sliding_window
    if fields["n_qk_heads"] % n_heads:
        faults.append(f"dictionary.n_qk_heads: a multiple of the model's {n_heads} heads, got {fields['n_qk_heads']}")
    if attention.rope_type not in ROPE_TYPES:
        faults.append(
            f"dictionary.positional_embedding_type: the model's rope_type is {attention.rope_type}; kind lorsa can be one of "
            f"{', '.join(ROPE_TYPES)}{off}"
        )
    if window is not None and window < n_ctx:
        faults.append(
            f"dictionary.n_ctx: the model's sliding_window is {window}, got {n_ctx}; kind lorsa reads all tokens before a "
            f"token, which is this attention on contexts of at most {window} tokens only; write at most that, in "
            f"activations.context_size too{off.replace(';', ', or')}"
        )
    if attention.softcap is not None:
        cap = attention.softcap
        faults.append(f"initializer.{OPTION}: the model's attn_logit_softcapping is {cap}; kind lorsa squashes no scores{off}")
    if faults:
        raise ParamsError([f"{fault} ({OPTION})" for fault in faults])


def _same(key: str, wanted: object, found: object, d_head: int) -> bool:
    if key == "attn_scale":  # null is the root of the head's width, which may be stated too
        wanted, found = (math.sqrt(d_head) if value is None else value for value in (wanted, found))
    if isinstance(wanted, float) and isinstance(found, float):
        return math.isclose(wanted, found, rel_tol=1e-6)
    return wanted == found
