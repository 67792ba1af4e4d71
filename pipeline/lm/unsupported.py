"""What a configuration says of a model that cannot be read: what it is, and what to give instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.errors import DataError

MXFP4 = "mxfp4"  # gpt-oss's; transformers unpacks it while it reads
_NEXT_TOKEN = ("ForCausalLM", "LMHeadModel")
_HALF = "float32, bfloat16 or float16"


def what_it_is(config: Mapping[str, Any], known: Collection[str]) -> str | None:
    """Why a model of an unknown family may be none of what is read here, with what to do; None: nothing is known against it.

    Args:
        config: of the model.
        known: the declared families.
    """
    if config.get("is_encoder_decoder"):
        return "it is an encoder-decoder, and what is read here is one stack of blocks that predicts the next token"
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        text = str(inner.get("model_type", "none"))
        its = f"it reads more than text, and its text model is of family {text}"
        saved = "save that text model by itself with save_pretrained and give its directory"
        return f"{its}: {saved}" if text in known else f"{its}, which is none of them either"
    if config.get("auto_map"):
        return "its code lies beside the model (auto_map), and no code from a model's directory is ever run"
    return _no_next_token(config)


def check_predicts(config: Mapping[str, Any], model: str) -> None:
    """Refuse a model of an undeclared family, to be run behind TransformerLens, that is no language model of one stack.

    Raises:
        DataError: says what it is.
    """
    why = what_it_is(config, ()) if config.get("is_encoder_decoder") else _no_next_token(config)
    if why is not None:
        raise DataError(f"model '{model}' (family {config.get('model_type')}): {why}; give another model")


def check_computable(config: Any, model: str) -> None:
    """Refuse a configuration (of transformers) with an activation function or rotary frequencies that it cannot compute.

    Raises:
        DataError: names the key, what it says, and what there is.
    """
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = getattr(config, "rope_parameters", None) or {}
    each = [part for part in rope.values() if isinstance(part, Mapping)] or [rope]
    stated = [("rope_type", str(part["rope_type"]), {"default", *ROPE_INIT_FUNCTIONS}) for part in each if "rope_type" in part]
    for key in ("hidden_act", "hidden_activation", "activation_function"):
        if isinstance(value := getattr(config, key, None), str):
            stated.append((key, value, set(ACT2FN)))
    for key, value, known in stated:
        if value not in known:
            raise DataError(
                f"model '{model}': config.json: {key} '{value}' is none that this version of transformers computes "
                f"({', '.join(sorted(known))}); restore the file, install a version that does, or give another model"
            )


def _no_next_token(config: Mapping[str, Any]) -> str | None:
    stated = config.get("architectures")
    names = [str(name) for name in stated] if isinstance(stated, list) else []
    if names and not any(name.endswith(_NEXT_TOKEN) for name in names):
        return f"its architecture {', '.join(names)} predicts no next token"
    return None


def check_quantised(config: Mapping[str, Any], model: str) -> None:
    """Refuse weights that are quantised in another way than transformers unpacks to numbers on every machine.

    Raises:
        DataError: says how they are quantised.
    """
    stated = config.get("quantization_config")
    if not stated:
        return
    method = stated.get("quant_method") if isinstance(stated, Mapping) else None
    if method != MXFP4:
        how = f"quant_method {method}" if method else f"{stated!r}"
        raise DataError(
            f"model '{model}': its weights are quantised (quantization_config: {how}), and what is read from safetensors is "
            f"{_HALF}, or {MXFP4}; give the model that it was made from, or a GGUF file of it"
        )
