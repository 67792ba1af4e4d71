"""Gemma Scope 2's cross-layer transcoders, read only.

    params_layer_i.safetensors, i from 0 without a gap: w_enc [d, F], b_enc [F], threshold [F], b_dec [d], w_dec [F, layers, d]

    z_i = x_i w_enc_i + b_enc_i;   f_i = z_i where z_i > threshold_i;   y_j = sum over i <= j of f_i w_dec_i[:, j] + b_dec_j

What w_dec has for layers before a feature's own is no part of it: circuit-tracer's loader cuts it off. affine_skip_connection
[d, d] adds x_j times it to y_j. What is read and written stands in config.json, as a list or for one layer, which then means
all; else it is what the release says of all of them. Its crosscoders have the same files, on the residual stream, and no
counterpart here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import read_object
from pipeline.interop.hook_names import hook_of_module
from pipeline.interop.plain import PlainDictionary
from pipeline.interop.tensors import AGAIN, Shape, checked, read_safetensors

CONFIG = "config.json"
_FILE = re.compile(r"params_layer_(\d+)\.safetensors")
NEGLIGIBLE = 1e-3  # norm of what w_dec has for earlier layers, over its norm
_MLPS = ("model.layers.{}.pre_feedforward_layernorm.output", "model.layers.{}.post_feedforward_layernorm.output")


def is_of_layers(path: Path) -> bool:
    """Whether a directory holds a dictionary of several layers."""
    return (path / "params_layer_0.safetensors").is_file()


def read_layers(path: Path) -> PlainDictionary:
    """The dictionary in a directory.

    Raises:
        DataError: a layer is missing, damaged or of another shape; features write backwards; it has a skip term.
    """
    layers = sorted(int(match[1]) for file in path.iterdir() if (match := _FILE.fullmatch(file.name)))
    if layers != list(range(len(layers))) or len(layers) < 2:
        raise DataError(
            f"{path}: has the layers {layers} of params_layer_i.safetensors, wanted 0, 1, ... without a gap; {AGAIN}"
        )
    file = path / CONFIG
    values = read_object(file, "the configuration of a Gemma Scope dictionary", AGAIN) if file.exists() else {}
    n = len(layers)
    sizes: tuple[tuple[str, int], tuple[str, int]] | None = None
    parts, backwards = [], 0.0
    for i in layers:
        part, sizes = _layer(path / f"params_layer_{i}.safetensors", n, sizes)
        backwards = max(backwards, _backwards(part["w_dec"], i, path / f"params_layer_{i}.safetensors"))
        parts.append(part)
    tensors = {f"W_dec.{j}": torch.stack([parts[i]["w_dec"][:, j] for i in range(j + 1)]) for j in layers}
    tensors["W_enc"] = torch.stack([part["w_enc"] for part in parts])
    tensors |= {name: torch.stack([part[name] for part in parts]) for name in ("b_enc", "b_dec", "threshold")}
    reads, writes, said = _hooks(values, path, n)
    if backwards:
        said += (
            f"w_dec of layers before a feature's own is left out, as circuit-tracer does (at most {backwards:.0e} by norm)",
        )
    about = {"model_name": values["model_name"]} if isinstance(values.get("model_name"), str) else {}
    return PlainDictionary("clt", "jumprelu", tensors, reads, writes, about=about, said=said)


def _layer(
    file: Path, n: int, sizes: tuple[tuple[str, int], tuple[str, int]] | None
) -> tuple[dict[str, Tensor], tuple[tuple[str, int], tuple[str, int]]]:
    """The tensors of a layer, of the sizes of the first one."""
    found = read_safetensors(file)
    if "affine_skip_connection" in found:
        raise DataError(
            f"{file}: affine_skip_connection: a cross-layer transcoder with a skip term has no counterpart here; take the one "
            "of a directory without _affine in its name, or transcoders of single layers, which may have one"
        )
    for name in ("b_enc", "b_dec"):
        if name not in found or found[name].ndim != 1:
            got = "is missing" if name not in found else f"is {list(found[name].shape)}, wanted one row"
            raise DataError(f"{file}: the tensors do not fit: {name} {got}; {AGAIN}")
    sizes = sizes or (("d_sae", len(found["b_enc"])), ("d_model", len(found["b_dec"])))
    f, d = sizes
    wanted: dict[str, Shape] = {
        "w_enc": (d, f),
        "b_enc": (f,),
        "threshold": (f,),
        "b_dec": (d,),
        "w_dec": (f, ("layers", n), d),
    }
    return checked(found, wanted, file), sizes


def _backwards(w_dec: Tensor, layer: int, file: Path) -> float:
    """Norm of what would be written to layers before the own one, over the norm of all that is written."""
    share = float(w_dec[:, :layer].norm() / w_dec.norm().clamp_min(1e-30))
    if share > NEGLIGIBLE:
        raise DataError(
            f"{file}: w_dec[:, :{layer}], what its features write to layers before their own, is {share:.1%} of w_dec by norm, "
            "wanted 0: a dictionary that writes backwards has no counterpart here"
        )
    return share


def _hooks(values: dict[str, Any], path: Path, n: int) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What is read and written, and what is to be said of it."""
    sides, said = [], []
    for side, standard in zip(("in", "out"), _MLPS, strict=True):
        key = f"hf_hook_point_{side}"
        stated = values.get(key)
        if stated is None:
            stated = standard.format(0)
            said.append(f"{CONFIG} has no {key}: taken to be {standard.format('N')} of each layer")
        if isinstance(stated, str):
            stated = [re.sub(r"\.(\d+|\{layer\})(?=\.)", f".{layer}", stated, count=1) for layer in range(n)]
        if not isinstance(stated, list) or len(stated) != n or not all(isinstance(name, str) for name in stated):
            raise DataError(f"{path / CONFIG}: {key} should name a module, or a list of {n}, got {stated!r:.200}; {AGAIN}")
        sides.append(tuple(hook_of_module(name) for name in stated))
    reads, writes = sides
    if set(reads) & set(writes):
        raise DataError(
            f"{path / CONFIG}: a crosscoder, {', '.join(reads)}: each of its features sees one layer and writes others, while "
            "one here sees all; it has no counterpart"
        )
    return reads, writes, tuple(said)
