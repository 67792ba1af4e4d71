"""Gemma Scope 1 and 2, read only.

    1: layer_L/width_W/average_l0_N/params.npz: W_enc, W_dec, b_enc, b_dec, threshold (some files w_enc, w_dec)
    2: config.json (architecture jump_relu) and params.safetensors: w_enc, w_dec, b_enc, b_dec, threshold,
       affine_skip_connection [d_in, d_out]
       of several layers params_layer_i.safetensors, i from 0, with w_dec [F, layers, d_out]: gemma_scope_layers.py

    z = x W_enc + b_enc;   f = relu(z) where z > threshold;   y = f W_dec + b_dec (+ x affine_skip_connection)

Nothing is subtracted from x. What is read and written stands in config.json (2; some folders lack it) or follows from the
names of the directories: layer_L, and res, mlp, att or transcoder in that of the repository (1), resid_post, mlp_out, attn_out
or transcoder in that of a folder (2).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import read_object
from pipeline.interop.gemma_scope_layers import is_of_layers, read_layers
from pipeline.interop.hook_names import hook_of_module
from pipeline.interop.interface import InterchangeFormat, Layout
from pipeline.interop.plain import PlainDictionary
from pipeline.interop.tensors import AGAIN, Shape, checked, read_npz, read_safetensors, text

NPZ, CONFIG, WEIGHTS = "params.npz", "config.json", "params.safetensors"
_SITES = {
    "res": ("hook_resid_post", "hook_resid_post"),
    "mlp": ("hook_mlp_out", "hook_mlp_out"),
    "att": ("attn.hook_z", "attn.hook_z"),
    "transcoder": ("ln2.hook_normalized", "hook_mlp_out"),
}
_REPOSITORY = re.compile(r"gemma-scope-(?P<size>\d+b(?:-it)?)(?:-pt)?-(?P<site>res|mlp|att|transcoder)s?\b")
_SECOND = re.compile(r"gemma-scope-2-(?P<size>\d+[mb])-(?P<form>pt|it)\b")
_FOLDER = re.compile(r"(resid_post|attn_out|mlp_out|transcoder)(?:_all)?")
_MODULES = {  # as its config.json names them
    "resid_post": ("model.layers.{}.output", None),
    "attn_out": ("model.layers.{}.self_attn.o_proj.input", None),
    "mlp_out": ("model.layers.{}.post_feedforward_layernorm.output", None),
    "transcoder": ("model.layers.{}.pre_feedforward_layernorm.output", "model.layers.{}.post_feedforward_layernorm.output"),
}
_CAPITAL = {"w_enc": "W_enc", "w_dec": "W_dec"}


class _GemmaScope(InterchangeFormat):
    name = "gemma_scope"
    layouts = (Layout((NPZ,)), Layout((WEIGHTS,), (CONFIG,)))

    def recognises(self, path: Path) -> bool:
        if path.name == NPZ or (path / NPZ).is_file():
            return True
        if is_of_layers(path):
            return True
        if not (path / WEIGHTS).is_file():
            return False
        stated = (path / CONFIG).exists()
        return _architecture(path / CONFIG) == "jump_relu" if stated else _of_names(path) is not None

    def read(self, path: Path) -> PlainDictionary:
        if path.name == NPZ or (path / NPZ).is_file():
            return _first(path if path.name == NPZ else path / NPZ)
        return read_layers(path) if is_of_layers(path) else _second(path)


FORMAT = _GemmaScope()


def _architecture(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes()).get("architecture")
    except (OSError, ValueError, AttributeError):
        return None


def _first(file: Path) -> PlainDictionary:
    found = {_CAPITAL.get(name, name): tensor for name, tensor in read_npz(file).items()}
    tensors = checked(found, _shapes(found, file), file)
    layer = next((match[1] for part in file.parts if (match := re.fullmatch(r"layer_(\d+)", part))), None)
    repository = next((match for part in reversed(file.parts) if (match := _REPOSITORY.search(part))), None)
    kind = repository["site"] if repository else None
    said: tuple[str, ...] = ()
    read, written = "input", "output" if kind == "transcoder" else "input"
    if "embedding" in file.parts:
        read = written = "hook_embed"
        said = ("an embedding dictionary: its input is the embedding times the root of its width",)
    elif layer is not None and kind is not None:
        read, written = (f"blocks.{layer}.{site}" for site in _SITES[kind])
    else:
        said = ("its directories say no layer_L in a repository gemma-scope-...-res: name what is read by --hook-point-in",)
    about = {"model_name": f"google/gemma-2-{repository['size']}"} if repository else {}
    made = "transcoder" if read != written else "sae"
    return PlainDictionary(made, "jumprelu", tensors, (read,), (written,), about=about, said=said)


def _shapes(found: dict[str, Tensor], file: Path) -> dict[str, Shape]:
    """Of the biases, which nothing else can be taken for."""
    for name in ("b_enc", "b_dec"):
        if name not in found or found[name].ndim != 1:
            got = "is missing" if name not in found else f"is {list(found[name].shape)}, wanted one row"
            raise DataError(f"{file}: the tensors do not fit: {name} {got}; {AGAIN}")
    f, out = ("d_sae", len(found["b_enc"])), ("d_out", len(found["b_dec"]))
    return {"W_enc": (("d_in", out[1]), f), "W_dec": (f, out), "b_enc": (f,), "b_dec": (out,), "threshold": (f,)}


def _of_names(path: Path) -> dict[str, Any] | None:
    """What config.json would say, by the names of the directories; None where they do not say it."""
    repository = next((match for part in reversed(path.parts) if (match := _SECOND.search(part))), None)
    site = next((match[1] for part in reversed(path.parts[:-1]) if (match := _FOLDER.fullmatch(part))), None)
    layer = re.match(r"layer_(\d+)_", path.name)
    if repository is None or site is None or layer is None:
        return None
    read, written = (module and module.format(layer[1]) for module in _MODULES[site])
    model = f"google/gemma-3-{repository['size']}-{repository['form']}"
    return {"model_name": model, "hf_hook_point_in": read, "hf_hook_point_out": written}


def _second(path: Path) -> PlainDictionary:
    file, weights = path / CONFIG, path / WEIGHTS
    named = None if file.exists() else _of_names(path)
    values = named or read_object(file, "the configuration of a Gemma Scope dictionary", AGAIN)
    found = {_CAPITAL.get(name, name): tensor for name, tensor in read_safetensors(weights).items()}
    if "W_dec" in found and found["W_dec"].ndim == 3:
        raise DataError(
            f"{weights}: w_dec is {list(found['W_dec'].shape)}: one layer of a cross-layer transcoder, no dictionary by "
            "itself; name the directory with params_layer_0.safetensors and those of all other layers"
        )
    shapes = _shapes(found, weights)
    affine = values.get("affine_connection") or "affine_skip_connection" in found
    if affine:
        shapes["affine_skip_connection"] = (shapes["W_enc"][0], shapes["W_dec"][1])
    tensors = checked(found, shapes, weights)
    names = (text(values, "hf_hook_point_in", file), text(values, "hf_hook_point_out", file))
    read = "input" if names[0] is None else hook_of_module(names[0])
    written = read if names[1] is None else hook_of_module(names[1])
    transcoder = read != written
    if affine:
        tensors["W_skip"] = tensors.pop("affine_skip_connection")
        if not transcoder:
            raise DataError(f"{weights}: an affine skip connection of an autoencoder has no counterpart here")
    about = {"model_name": values["model_name"]} if isinstance(values.get("model_name"), str) else {}
    said = (f"it has no {CONFIG}: model and hook points are those that the names of its directories say",) if named else ()
    kind = "transcoder" if transcoder else "sae"
    return PlainDictionary(kind, "jumprelu", tensors, (read,), (written,), about=about, said=said)
