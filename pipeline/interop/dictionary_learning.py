"""dictionary_learning: ae.pt (a state dict) and config.json.

    AutoEncoder              f = relu((x - bias) encoder^T + encoder.bias);                 y = f decoder^T + bias
    AutoEncoderNew           the same without the subtraction, biases encoder.bias and decoder.bias
    AutoEncoderTopK          the k largest of relu((x - b_dec) encoder^T + encoder.bias)
    BatchTopKSAE             relu(z) where it exceeds `threshold`, a scalar (-1: unset, every positive one)
    MatryoshkaBatchTopKSAE   the same with W_enc, b_enc, W_dec
    JumpReluAutoEncoder      relu(z) where z exceeds threshold [F]; nothing is subtracted from x
    GatedAutoEncoder         relu(u e^r_mag + mag_bias) where u + gate_bias > 0

ae.pt is read with weights_only. The state that a training resumes from is called ae.pt too: {step, ae, optimizer, config,
norm_factor}; it takes normalised activations, so that biases and thresholds are multiplied by norm_factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError, unknown_name
from pipeline.files import json_object, read_object, write_json
from pipeline.interop.hook_names import hook_of_module, layer_and_site, module_of_hook
from pipeline.interop.interface import Forward, InterchangeFormat, Layout, Loading
from pipeline.interop.plain import PlainDictionary, unit_rows
from pipeline.interop.saelens import gated_as_jumprelu
from pipeline.interop.tensors import AGAIN, Shape, checked, integer, number, read_pickle, text

CONFIG, WEIGHTS = "config.json", "ae.pt"
# dict_class: its tensors, by what they are here. `encoder.weight` is [F, d], `W_enc` [d, F].
_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
_MATRICES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
CLASSES: dict[str, dict[str, str]] = {
    "AutoEncoder": {**_LINEAR, "bias": "b_dec"},
    "AutoEncoderNew": {**_LINEAR, "decoder.bias": "b_dec"},
    "AutoEncoderTopK": {**_LINEAR, "b_dec": "b_dec"},
    "BatchTopKSAE": {**_LINEAR, "b_dec": "b_dec"},
    "MatryoshkaBatchTopKSAE": _MATRICES,
    "JumpReluAutoEncoder": {**_MATRICES, "threshold": "threshold"},
    "GatedAutoEncoder": {
        "encoder.weight": "W_enc", "r_mag": "r_mag", "gate_bias": "b_gate", "mag_bias": "b_mag", "decoder.weight": "W_dec",
        "decoder_bias": "b_dec",
    },
}  # fmt: skip
SUBTRACTED = ("AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE", "GatedAutoEncoder")
SCALAR = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
BIASES = ("bias", "encoder.bias", "decoder.bias", "b_dec", "b_enc", "gate_bias", "mag_bias", "decoder_bias", "threshold")


class _DictionaryLearning(InterchangeFormat):
    name = "dictionary_learning"
    library = "dictionary_learning"
    layouts = (Layout((WEIGHTS,), (CONFIG,)),)

    def recognises(self, path: Path) -> bool:
        return (path / WEIGHTS).is_file()

    def read(self, path: Path) -> PlainDictionary:
        file, weights = path / CONFIG, path / WEIGHTS
        values = read_object(file, "the configuration of a dictionary_learning dictionary", AGAIN)
        trainer = json_object(values.get("trainer"), f"{file}: trainer", AGAIN)
        name = text(trainer, "dict_class", file) or ""
        if name not in CLASSES:
            raise DataError(f"{file}: trainer.dict_class: {unknown_name('class', name, CLASSES)}")
        state, said = _state(read_pickle(weights), weights)
        d_in, d_sae = integer(trainer, "activation_dim", file), integer(trainer, "dict_size", file)
        scalar = _scalar_threshold(state, weights) if name in SCALAR else 0.0
        found = checked(state, _shapes(name, d_in, d_sae), weights, unused=_unused(name))
        tensors = {ours: found[theirs].T if "." in theirs and found[theirs].ndim == 2 else found[theirs]
                   for theirs, ours in CLASSES[name].items()}  # fmt: skip
        gate = {"AutoEncoder": "relu", "AutoEncoderNew": "relu", "AutoEncoderTopK": "topk"}.get(name, "jumprelu")
        if name == "GatedAutoEncoder":
            tensors |= gated_as_jumprelu(*(tensors.pop(key) for key in ("W_enc", "r_mag", "b_gate", "b_mag")))
            said.append("the gated encoder is the JumpReLU that computes the same (its weights are tied)")
        if name in SCALAR:
            tensors["threshold"] = torch.full((d_sae,), scalar, dtype=torch.float64)
            if scalar < 0:
                said.append(f"threshold is unset ({scalar:g}): every positive pre-activation is active, in that tool too")
        if name in SUBTRACTED:
            shift = tensors["W_enc"].T.double() @ tensors["b_dec"].double()
            if name == "GatedAutoEncoder":
                said.append("the decoder bias that is subtracted from the input is in the encoder's bias")
                tensors["b_enc"] = tensors["b_enc"] - shift
            else:
                tensors["b_enc"] = tensors["b_enc"].double() - shift
        k = _k(state, trainer, file) if gate == "topk" else None
        hook = _hook(trainer, file)
        return PlainDictionary("sae", gate, tensors, (hook,), (hook,), k=k, about=_about(values, trainer), said=tuple(said))

    def prepared(self, plain: PlainDictionary) -> PlainDictionary:
        if plain.kind != "sae":
            raise self.refuse(plain, "this kind: autoencoders alone")
        return unit_rows(plain) if plain.gate == "relu" else plain  # the loader there would do it

    def write(self, dictionaries: Sequence[PlainDictionary], path: Path) -> list[Path]:
        plain = self.only(dictionaries)
        name = {"relu": "AutoEncoder", "topk": "AutoEncoderTopK", "jumprelu": "JumpReluAutoEncoder"}[plain.gate]
        tensors = dict(plain.tensors)
        if name in SUBTRACTED:
            tensors["b_enc"] = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]
        state = {}
        for theirs, ours in CLASSES[name].items():
            tensor = tensors[ours].T if "." in theirs and tensors[ours].ndim == 2 else tensors[ours]
            state[theirs] = tensor.float().contiguous().clone()
        trainer: dict[str, Any] = {
            "dict_class": name,
            "trainer_class": {"relu": "StandardTrainer", "topk": "TopKTrainer", "jumprelu": "JumpReluTrainer"}[plain.gate],
            "activation_dim": plain.d_in,
            "dict_size": plain.d_sae,
            "submodule_name": plain.hooks_in[0],
        }
        place = layer_and_site(plain.hooks_in[0])
        if place is not None:
            trainer["layer"] = place[0]
        module = module_of_hook(plain.hooks_in[0], plain.about.get("model_type"))
        if module is not None:
            trainer["module"] = module
        if "model_name" in plain.about:
            trainer["lm_name"] = plain.about["model_name"]
        if plain.gate == "topk":
            state |= {"k": torch.tensor(plain.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
            trainer["k"] = plain.k
        torch.save(state, path / WEIGHTS)
        buffer = {"ctx_len": plain.about["context_size"]} if "context_size" in plain.about else {}
        write_json(path / CONFIG, {"trainer": trainer, "buffer": buffer})
        return [path]

    def forward(self, path: Path) -> Forward:
        trainer = read_object(path / CONFIG, "the configuration", AGAIN)["trainer"]
        state = {name: tensor.double() for name, tensor in read_pickle(path / WEIGHTS).items()}

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            if trainer["dict_class"] == "JumpReluAutoEncoder":
                z = x @ state["W_enc"] + state["b_enc"]
                f = (z * (z > state["threshold"])).relu()
                return f, f @ state["W_dec"] + state["b_dec"]
            bias = state["bias"] if trainer["dict_class"] == "AutoEncoder" else state["b_dec"]
            f = ((x - bias) @ state["encoder.weight"].T + state["encoder.bias"]).relu()
            if trainer["dict_class"] == "AutoEncoderTopK":
                value, index = f.topk(int(state["k"]), sorted=False, dim=-1)
                f = torch.zeros_like(f).scatter_(-1, index, value)
            return f, f @ state["decoder.weight"].T + bias

        return run

    def loading(self, place: Loading) -> dict[str, str]:
        use = 'dictionary, config = load_dictionary({}, device="cpu")'
        first = "\nfrom dictionary_learning.utils import load_dictionary\n\n"
        return {"dictionary_learning": place.snapshot(use).replace("\n\n", first, 1)}


FORMAT = _DictionaryLearning()


def _state(found: dict[str, Any], file: Path) -> tuple[dict[str, Any], list[str]]:
    """The state dict, of one that a training resumes from with its biases on raw activations, and what is to be said."""
    if "ae" not in found:
        return found, []
    state = dict(json_object(found["ae"], f"{file}: ae", AGAIN))
    if "norm_factor" not in found:
        raise DataError(
            f"{file}: the state that a training resumes from, without its norm_factor: its biases are of activations "
            "normalised by a factor that is not known; export the finished ae.pt"
        )
    if found["norm_factor"] is None:
        return state, ["read from the state that a training resumes from"]
    factor = number(found, "norm_factor", file)
    for name in BIASES:
        if isinstance(state.get(name), Tensor) and not (name == "threshold" and bool((state[name] < 0).all())):
            state[name] = state[name] * factor
    return state, [f"read from the state that a training resumes from: biases and thresholds times its norm_factor {factor:g}"]


def _shapes(name: str, d_in: int, d_sae: int) -> dict[str, Shape]:
    d, f = ("activation_dim", d_in), ("dict_size", d_sae)
    shapes: dict[str, Shape] = {}
    for theirs, ours in CLASSES[name].items():
        if ours == "b_dec":
            shapes[theirs] = (d,)
        elif ours in ("W_enc", "W_dec"):
            shapes[theirs] = (d, f) if theirs in ("W_enc", "decoder.weight") else (f, d)
        else:
            shapes[theirs] = (f,)
    return shapes


def _unused(name: str) -> tuple[str, ...]:
    if name == "AutoEncoderTopK" or name in SCALAR:
        return ("k", "threshold", *(["group_sizes"] if name == "MatryoshkaBatchTopKSAE" else []))
    return ()


def _scalar_threshold(state: Mapping[str, Any], file: Path) -> float:
    value = state.get("threshold")
    if not isinstance(value, Tensor) or value.numel() != 1 or not bool(value.isfinite().all()):
        got = "is missing" if value is None else f"got {list(value.shape) if isinstance(value, Tensor) else value!r}"
        raise DataError(f"{file}: threshold should be one finite number, {got}; {AGAIN}")
    return float(value)


def _k(state: Mapping[str, Any], trainer: Mapping[str, Any], file: Path) -> int:
    stated, own = trainer.get("k"), state.get("k")
    if not isinstance(own, Tensor):
        return integer(trainer, "k", file)
    if own.numel() != 1 or own.is_complex() or not 0 < float(own) < 2**31:  # also of nan
        raise DataError(f"{file}: k of {WEIGHTS} should be one number of features, got {list(own.shape)}; {AGAIN}")
    if stated is not None and int(own) != stated:
        raise DataError(f"{file}: trainer.k {stated} contradicts k {int(own)} of {WEIGHTS}; {AGAIN}")
    return integer({"k": int(own)}, "k", file)


def _hook(trainer: Mapping[str, Any], file: Path) -> str:
    """Of submodule_name where it is a hook point or a module, else the residual stream after `layer`."""
    name = text(trainer, "submodule_name", file)
    if name and layer_and_site(name):
        return name
    if name:
        try:
            return hook_of_module(name)
        except DataError:
            pass
    layer = trainer.get("layer")
    if not isinstance(layer, int):
        return "input"
    kinds = {"mlp": "hook_mlp_out", "attn": "hook_attn_out", "attention": "hook_attn_out"}
    site = next((site for word, site in kinds.items() if name and word in name), "hook_resid_post")
    return f"blocks.{layer}.{site}"


def _about(values: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, Any]:
    buffer = values.get("buffer")
    found = {"model_name": trainer.get("lm_name"), "training_architecture": trainer.get("trainer_class")}
    if isinstance(buffer, Mapping):
        found["context_size"] = buffer.get("ctx_len")
    return {key: value for key, value in found.items() if isinstance(value, str | int)}
