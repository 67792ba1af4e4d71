"""Llama Scope 1 (OpenMOSS before 2.0), read only: hyperparams.json and checkpoints/final.safetensors.

    s_in = sqrt(d) / norm_in, s_out = sqrt(d) / norm_out: of the data set's average norms, in no weights
    z = s_in x encoder.weight^T + encoder.bias;   f = z where z > jump_relu_threshold, a scalar of that normalised space
    y = (f decoder.weight^T + decoder.bias) / s_out

The norms are folded once, here: features stay those of the normalised space. What hyperparams.json leaves out (the model, in
lm_config.json where that is there; in some copies the hook point) follows from the names of the directories: L15R-8x.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import DataError
from pipeline.files import json_object, read_object
from pipeline.interop.hook_names import ours
from pipeline.interop.interface import InterchangeFormat, Layout
from pipeline.interop.plain import PlainDictionary
from pipeline.interop.tensors import AGAIN, Shape, checked, flag, integer, number, read_safetensors, text

CONFIG, WEIGHTS, MODEL = "hyperparams.json", "checkpoints/final.safetensors", "lm_config.json"
_NAME = re.compile(r"Llama3_1-8B-(?P<form>Base|Instruct)-L(?:X|(?P<layer>\d+))(?P<site>R|M|A|TC)-\d+x")
_MODELS = {"Base": "meta-llama/Llama-3.1-8B", "Instruct": "meta-llama/Llama-3.1-8B-Instruct"}
_SITES = {"R": "hook_resid_post", "M": "hook_mlp_out", "A": "hook_attn_out"}


class _LlamaScope(InterchangeFormat):
    name = "llama_scope"
    layouts = (Layout((CONFIG, WEIGHTS), (MODEL,)),)

    def recognises(self, path: Path) -> bool:
        return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()

    def read(self, path: Path) -> PlainDictionary:
        file, weights = path / CONFIG, path / WEIGHTS
        values = read_object(file, "the hyperparameters of a Llama Scope dictionary", AGAIN)
        d, d_sae = integer(values, "d_model", file), integer(values, "d_sae", file)
        theta = number(values, "jump_relu_threshold", file)
        if flag(values, "use_glu_encoder", file, False):
            raise DataError(
                f"{file}: use_glu_encoder: an encoder that is multiplied by a second one is not read from this format"
            )
        if flag(values, "sparsity_include_decoder_norm", file, False):
            raise DataError(
                f"{file}: sparsity_include_decoder_norm: the threshold is of another unit than this format documents"
            )
        norms = json_object(values.get("dataset_average_activation_norm"), f"{file}: dataset_average_activation_norm", AGAIN)
        s_in, s_out = (math.sqrt(d) / number(norms, side, file) for side in ("in", "out"))
        f, wide = (("d_sae", d_sae),), (("d_model", d),)
        wanted: dict[str, Shape] = {
            "encoder.weight": (*f, *wide), "encoder.bias": f, "decoder.weight": (*wide, *f), "decoder.bias": wide,
        }  # fmt: skip
        found = checked(read_safetensors(weights), wanted, weights)
        names = _of_names(path)
        read = ours(text(values, "hook_point_in", file) or names.get("hook", "input"))
        written = ours(text(values, "hook_point_out", file) or read)
        tensors = {
            "W_enc": found["encoder.weight"].T.double() * s_in,
            "b_enc": found["encoder.bias"],
            "W_dec": found["decoder.weight"].T.double() / s_out,
            "b_dec": found["decoder.bias"].double() / s_out,
            "threshold": torch.full((d_sae,), theta, dtype=torch.float64),
        }
        kind = "sae" if read == written else "transcoder"
        said = ("the data set's norms are folded in; features are those of the normalised space",)
        model = text(values, "model_name", file) or _stated_model(path) or names.get("model")
        about = {"model_name": model} if model else {}
        return PlainDictionary(kind, "jumprelu", tensors, (read,), (written,), about=about, said=said)


FORMAT = _LlamaScope()


def _of_names(path: Path) -> Mapping[str, str]:
    """{model, hook} as the names of the directories say them, as far as they do."""
    found: dict[str, str] = {}
    for part in reversed(path.parts):
        match = _NAME.search(part)
        if match is None:
            continue
        found.setdefault("model", _MODELS[match["form"]])
        if match["layer"] and match["site"] in _SITES:
            found.setdefault("hook", f"blocks.{match['layer']}.{_SITES[match['site']]}")
    return found


def _stated_model(path: Path) -> str | None:
    """The model that lm_config.json beside it names."""
    if not (path / MODEL).is_file():
        return None
    values: dict[str, Any] = read_object(path / MODEL, "the configuration of its language model", AGAIN)
    return text(values, "model_name", path / MODEL)
