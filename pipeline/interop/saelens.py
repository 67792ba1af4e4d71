"""SAELens: a directory with cfg.json and sae_weights.safetensors.

    z = (x - b_dec [apply_b_dec_to_input]) W_enc + b_enc
    standard, transcoder   f = relu(z)
    topk                   f = relu of the k largest z (times decoder norm n with rescale_acts_by_decoder_norm; decoded over n)
    jumprelu               f = relu(z) where z > threshold
    gated                  f = relu(u e^r_mag + b_mag) where u + b_gate > 0, u = (x - b_dec) W_enc
    y = f W_dec + b_dec (+ x W_skip^T of skip transcoders)

A gated encoder is a JumpReLU: with z = u e^r_mag + b_mag, u + b_gate > 0 is z > b_mag - e^r_mag b_gate (Rajamanoharan et al.
2024, on weight tying). Files before version 6 are flat and have other defaults (`_current`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError, unknown_name
from pipeline.files import json_object, read_object, write_json
from pipeline.interop.hook_names import module_of_hook, ours
from pipeline.interop.interface import Forward, InterchangeFormat, Layout, Loading
from pipeline.interop.plain import PlainDictionary, rescaled
from pipeline.interop.tensors import (
    AGAIN,
    Shape,
    checked,
    flag,
    integer,
    read_safetensors,
    text,
    write_safetensors,
)

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.12"  # whose loader reads what is written here (benchmarks/peer_formats.py)
AUTOENCODERS = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "jumprelu"}
TRANSCODERS = {
    "transcoder": ("relu", False),
    "skip_transcoder": ("relu", True),
    "jumprelu_transcoder": ("jumprelu", False),
    "jumprelu_skip_transcoder": ("jumprelu", True),
}
# What has no counterpart here, and why.
REFUSED = {
    "abstopk": "features of both signs",
    "matching_pursuit": "features found one after the other",
    "temporal": "features that depend on earlier tokens",
    "batchtopk": "a training form, without an inference threshold; save it with save_inference_model",
    "matryoshka_batchtopk": "a training form, without an inference threshold; save it with save_inference_model",
}
ABOUT = (
    "model_name", "prepend_bos", "context_size", "dataset_path", "l0", "num_dead_features", "training_architecture",
    "model_from_pretrained_kwargs", "hf_hook_name", "neuronpedia_id",
)  # fmt: skip


class _SAELens(InterchangeFormat):
    name = "saelens"
    library = "saelens"
    layouts = (Layout((CONFIG, WEIGHTS)),)

    def recognises(self, path: Path) -> bool:
        return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()

    def read(self, path: Path) -> PlainDictionary:
        file = path / CONFIG
        values = read_object(file, "the configuration of a SAELens dictionary", AGAIN)
        values, meta, said = _current(values, file)
        architecture = text(values, "architecture", file, "standard") or "standard"
        if architecture in REFUSED:
            raise DataError(f"{file}: architecture {architecture} has no counterpart here ({REFUSED[architecture]})")
        if architecture not in AUTOENCODERS and architecture not in TRANSCODERS:
            known = (*AUTOENCODERS, *TRANSCODERS)
            raise DataError(f"{file}: {unknown_name('architecture', architecture, known)}")
        said += _normalisation(values, file)
        transcoder = architecture in TRANSCODERS
        hooks = _hooks(meta, file, transcoder)
        d_in, d_sae = integer(values, "d_in", file), integer(values, "d_sae", file)
        d_out = integer(values, "d_out", file) if transcoder else d_in
        found = _unscaled(read_safetensors(path / WEIGHTS), path / WEIGHTS)
        tensors = checked(found, _shapes(architecture, d_in, d_sae, d_out), path / WEIGHTS)
        applied = flag(values, "apply_b_dec_to_input", file, True)
        if transcoder and applied:
            raise DataError(
                f"{file}: apply_b_dec_to_input is true, and the bias of a transcoder is not of its input; write false"
            )
        about = {key: meta[key] for key in ABOUT if meta.get(key) is not None}
        gate = TRANSCODERS[architecture][0] if transcoder else AUTOENCODERS[architecture]
        plain = PlainDictionary(
            "transcoder" if transcoder else "sae",
            gate,
            _plain(architecture, tensors, applied),
            (hooks[0],),
            (hooks[1],),
            k=integer(values, "k", file) if gate == "topk" else None,
            about=about,
            said=tuple(said),
        )
        if architecture == "gated":
            plain = plain.with_tensors("the gated encoder is the JumpReLU that computes the same (its weights are tied)")
        if gate == "topk" and flag(values, "rescale_acts_by_decoder_norm", file, False):
            norms = torch.linalg.vector_norm(tensors["W_dec"].double(), dim=-1)
            plain = rescaled(
                plain, norms, "features compete by their length: decoder rows have length 1, as SAELens' own features"
            )
        return plain

    def prepared(self, plain: PlainDictionary) -> PlainDictionary:
        self._architecture(plain)
        return plain

    def write(self, dictionaries: Sequence[PlainDictionary], path: Path) -> list[Path]:
        plain = self.only(dictionaries)
        architecture = self._architecture(plain)
        tensors = {key: plain.tensors[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
        if plain.gate == "jumprelu":
            tensors["threshold"] = plain.tensors["threshold"]
        if plain.skip:
            tensors["W_skip"] = plain.tensors["W_skip"].T
        write_safetensors(tensors, path / WEIGHTS)
        config: dict[str, Any] = {
            "architecture": architecture,
            "d_in": plain.d_in,
            "d_sae": plain.d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "hook_z" if plain.hooks_in[0].endswith("hook_z") else "none",
        }
        if plain.kind == "transcoder":
            config["d_out"] = plain.d_out
        if plain.gate == "topk":
            config |= {"k": plain.k, "rescale_acts_by_decoder_norm": False}
        config["metadata"] = _metadata(plain)
        write_json(path / CONFIG, config)
        return [path]

    def _architecture(self, plain: PlainDictionary) -> str:
        if plain.kind == "sae":
            return {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}[plain.gate]
        if plain.kind != "transcoder":
            raise self.refuse(plain, "this kind")
        if plain.gate == "topk":
            advice = "set fold.convert_topk_to_jumprelu: true, so that it has a calibrated threshold"
            raise self.refuse(plain, "a TopK transcoder", advice)
        return next(name for name, form in TRANSCODERS.items() if form == (plain.gate, plain.skip))

    def forward(self, path: Path) -> Forward:
        config = read_object(path / CONFIG, "the configuration", AGAIN)
        weights = {name: tensor.double() for name, tensor in read_safetensors(path / WEIGHTS).items()}

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            shifted = x - weights["b_dec"] if config["apply_b_dec_to_input"] else x
            z = shifted @ weights["W_enc"] + weights["b_enc"]
            if config["architecture"] == "topk":
                value, index = z.topk(config["k"], dim=-1)
                f = torch.zeros_like(z).scatter_(-1, index, value.relu())
            else:
                f = z.relu()
                if "threshold" in weights:
                    f = f * (z > weights["threshold"])
            y = f @ weights["W_dec"] + weights["b_dec"]
            return f, y + x @ weights["W_skip"].T if "W_skip" in weights else y

        return run

    def loading(self, place: Loading) -> dict[str, str]:
        if place.folder:
            code = f'from sae_lens import SAE\n\nsae = SAE.from_pretrained("{place.repository}", "{place.folder}")'
        else:
            code = place.snapshot("sae = SAE.load_from_disk({})").replace("\n\n", "\nfrom sae_lens import SAE\n\n", 1)
        return {"SAELens": code}


FORMAT = _SAELens()


def _current(values: dict[str, Any], file: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The configuration as of version 6 (fields, metadata), of a file of any version, and what is to be said of it."""
    meta = json_object(values.get("metadata", {}), f"{file}: metadata", AGAIN)
    version = values.get("sae_lens_version") or meta.get("sae_lens_version")
    major = re.match(r"\d+", version) if isinstance(version, str) else None
    if major is not None and int(major[0]) >= 6:
        return values, dict(meta), []
    renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
    flat = {renamed.get(key, key): value for key, value in values.items()}
    flat = {"prepend_bos": True, "architecture": "standard", "activation_fn": "relu"} | flat
    arguments = json_object(flat.get("activation_fn_kwargs") or {}, f"{file}: activation_fn_kwargs", AGAIN)
    if flat["activation_fn"] == "topk":
        flat |= {"architecture": "topk", "k": arguments.get("k")}
    elif flat["activation_fn"] != "relu":
        raise DataError(f"{file}: activation_fn {flat['activation_fn']!r} has no counterpart here (relu and topk have)")
    if isinstance(flat.get("normalize_activations"), bool):
        flat["normalize_activations"] = "expected_average_only_in" if flat["normalize_activations"] else "none"
    if flat.get("hook_head_index") is not None:
        raise DataError(f"{file}: hook_head_index {flat['hook_head_index']}: one head of a hook point is no hook point here")
    return flat, {**meta, **flat}, [f"read as a configuration before version 6 (sae_lens_version {version})"]


def _normalisation(values: Mapping[str, Any], file: Path) -> list[str]:
    norm = values.get("normalize_activations") or "none"
    if norm == "expected_average_only_in":
        return [
            "normalize_activations expected_average_only_in does nothing at inference, in SAELens as here: weights as they are"
        ]
    if norm != "none":
        raise DataError(
            f"{file}: normalize_activations {norm!r} depends on the data and is in no weights, so that it takes no raw "
            "activations; fold it in SAELens, where that is possible"
        )
    return []


def _hooks(meta: Mapping[str, Any], file: Path, transcoder: bool) -> tuple[str, str]:
    read = text(meta, "hook_name", file) or "input"
    written = text(meta, "hook_name_out", file) if transcoder else None
    return ours(read), ours(written or ("output" if transcoder else read))


def _unscaled(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Without the scaling_factor of ones that old files have."""
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not torch.equal(scaling, torch.ones_like(scaling)):
        raise DataError(
            f"{file}: scaling_factor is not 1: finetuned scaling of features is not read; fold it into W_enc in SAELens"
        )
    return tensors


def _shapes(architecture: str, d_in: int, d_sae: int, d_out: int) -> dict[str, Shape]:
    f, out = (("d_sae", d_sae),), ("d_out", d_out)
    shapes: dict[str, Shape] = {"W_enc": (("d_in", d_in), *f), "W_dec": (*f, out), "b_dec": (out,)}
    if architecture == "gated":
        return shapes | {"b_gate": f, "b_mag": f, "r_mag": f}
    shapes["b_enc"] = f
    if "jumprelu" in architecture:
        shapes["threshold"] = f
    if "skip" in architecture:
        shapes["W_skip"] = (out, ("d_in", d_in))
    return shapes


def _plain(architecture: str, tensors: dict[str, Tensor], applied: bool) -> dict[str, Tensor]:
    made = {key: tensor for key, tensor in tensors.items() if key not in ("b_gate", "b_mag", "r_mag", "W_skip")}
    if architecture == "gated":
        made |= gated_as_jumprelu(tensors["W_enc"], tensors["r_mag"], tensors["b_gate"], tensors["b_mag"])
    if applied:
        made["b_enc"] = made["b_enc"].double() - tensors["b_dec"].double() @ made["W_enc"].double()
    if "W_skip" in tensors:
        made["W_skip"] = tensors["W_skip"].T
    return made


def gated_as_jumprelu(W_enc: Tensor, r_mag: Tensor, b_gate: Tensor, b_mag: Tensor) -> dict[str, Tensor]:
    """Encoder and thresholds of the JumpReLU that a gated encoder is, in float64: W_enc [d, F], the others [F]."""
    scale = r_mag.double().exp()
    threshold = (b_mag.double() - scale * b_gate.double()).clamp_min(0.0)
    return {"W_enc": W_enc.double() * scale, "b_enc": b_mag.double(), "threshold": threshold}


def _metadata(plain: PlainDictionary) -> dict[str, Any]:
    read, written = plain.hooks_in[0], plain.hooks_out[0]
    known: dict[str, Any] = {
        "sae_lens_version": VERSION,
        "hook_name": read,
        "hook_name_out": written if plain.kind == "transcoder" else None,
        "hf_hook_name": module_of_hook(read, plain.about.get("model_type")),
        "neuronpedia_id": None,
        "model_from_pretrained_kwargs": {},
    }
    return {key: value for key, value in ({**plain.about} | known).items() if key != "model_type" and value is not None}
