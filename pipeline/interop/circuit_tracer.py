"""circuit-tracer: config.yaml beside a set of per-layer transcoders, or a cross-layer transcoder.

    transcoder_set           layer_{i}.safetensors, each layer from 0 without a gap: W_enc, W_dec [F, d], b_enc, b_dec, optional
                             activation_function.threshold [F] and W_skip [d, d]
                             z = x W_enc^T + b_enc;   f = relu(z), or z where z > threshold;   y = f W_dec + b_dec + x W_skip^T
    cross_layer_transcoder   W_enc_{i}.safetensors {W_enc_i [F, d], b_enc_i, b_dec_i, threshold_i},
                             W_dec_{i}.safetensors {W_dec_i [F, n - i, d]}, which writes the layers i ... n - 1

A TopK set loaded from a directory runs there as relu, since its activation and k are dropped: it is not written, convert it to
JumpReLU. A set is named by its directory, one of its transcoders by its file. Position 0 is zeroed in attribution.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from pipeline.errors import DataError, ParamsError
from pipeline.foreign import reading
from pipeline.interop.circuit_tracer_pages import write_pages
from pipeline.interop.hook_names import layer_and_site, ours
from pipeline.interop.interface import Forward, InterchangeFormat, Layout, Loading
from pipeline.interop.plain import PlainDictionary
from pipeline.interop.tensors import AGAIN, Shape, checked, read_safetensors, text, write_safetensors

if TYPE_CHECKING:
    from pipeline.analysis.feature_tables import FeatureStore

CONFIG = "config.yaml"
SET, CLT = "transcoder_set", "cross_layer_transcoder"
THRESHOLD = "activation_function.threshold"
_LAYER = re.compile(r"layer_(\d+)\.safetensors")
_ENCODER = re.compile(r"W_enc_(\d+)\.safetensors")


class _CircuitTracer(InterchangeFormat):
    name = "circuit_tracer"
    library = "circuit-tracer"
    layouts = (
        Layout((CONFIG, "layer_*.safetensors"), each="layer_*.safetensors"),
        Layout((CONFIG, "W_enc_*.safetensors", "W_dec_*.safetensors")),
    )

    def recognises(self, path: Path) -> bool:
        if path.is_file():
            return bool(_LAYER.fullmatch(path.name)) and (path.parent / CONFIG).is_file()
        return (path / CONFIG).is_file() and (path / "W_enc_0.safetensors").is_file()

    def inside(self, path: Path) -> list[Path]:
        if not path.is_dir() or not (path / CONFIG).is_file():
            return []
        layers = {int(match[1]): file for file in path.iterdir() if (match := _LAYER.fullmatch(file.name))}
        return [layers[layer] for layer in sorted(layers)]

    def read(self, path: Path) -> PlainDictionary:
        folder = path.parent if path.is_file() else path
        values = _config(folder / CONFIG)
        sides = [text(values, f"feature_{side}_hook", folder / CONFIG) for side in ("input", "output")]
        if None in sides:
            raise DataError(f"{folder / CONFIG}: feature_input_hook and feature_output_hook should name hook points; {AGAIN}")
        about = {"model_name": values["model_name"]} if isinstance(values.get("model_name"), str) else {}
        if path.is_file():
            return _layer(path, str(sides[0]), str(sides[1]), about)
        return _cross_layer(path, str(sides[0]), str(sides[1]), about)

    def prepared(self, plain: PlainDictionary) -> PlainDictionary:
        if plain.kind not in ("transcoder", "clt"):
            raise self.refuse(plain, "this kind: transcoders alone")
        if plain.gate == "topk":
            raise self.refuse(plain, "TopK: a local set runs there as relu", "set fold.convert_topk_to_jumprelu: true")
        if plain.d_in != plain.d_out:
            raise self.refuse(plain, f"widths that differ ({plain.d_in} read, {plain.d_out} written)")
        return plain

    def write(self, dictionaries: Sequence[PlainDictionary], path: Path) -> list[Path]:
        clts = [plain for plain in dictionaries if plain.kind == "clt"]
        sides = [_suffix(self.name, [getattr(plain, side) for plain in dictionaries]) for side in ("hooks_in", "hooks_out")]
        places = _write_cross_layer(self.only(dictionaries), path) if clts else _write_set(self.name, dictionaries, path)
        about = dictionaries[0].about
        config = {
            "model_name": about.get("model_name"),
            "model_kind": CLT if clts else SET,
            "feature_input_hook": _theirs(sides[0]),
            "feature_output_hook": sides[1],
            "scan": about.get("scan"),
        }
        (path / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
        return places

    def write_features(self, dictionaries: Sequence[PlainDictionary], stores: Sequence[FeatureStore], path: Path) -> None:
        write_pages(path, dictionaries, stores)

    def forward(self, path: Path) -> Forward:
        return _forward_layer(path) if path.is_file() else _forward_cross_layer(path)

    def loading(self, place: Loading) -> dict[str, str]:
        path, name = "/".join(filter(None, (place.repository, place.folder))), place.about.get("model_name")
        load = "from circuit_tracer import ReplacementModel\n\n"
        return {"circuit-tracer": f'{load}model = ReplacementModel.from_pretrained("{name}", "{path}")'}


FORMAT = _CircuitTracer()


def _config(file: Path) -> dict[str, Any]:
    with reading(f"{file}: not YAML", AGAIN):
        values = yaml.safe_load(file.read_text())
    if not isinstance(values, dict) or values.get("model_kind") not in (SET, CLT):
        raise DataError(f"{file}: model_kind should be {SET} or {CLT}; {AGAIN}")
    if values.get("activation") not in (None, "relu", "jumprelu", "jump_relu", "topk"):
        raise DataError(f"{file}: activation {values['activation']!r} is not known (relu, jump_relu, topk)")
    return values


def _layer(path: Path, read: str, written: str, about: dict[str, Any]) -> PlainDictionary:
    match = _LAYER.fullmatch(path.name)
    assert match is not None  # or it would not have been recognised
    layer, found = int(match[1]), read_safetensors(path)
    values = _config(path.parent / CONFIG)
    topk = values.get("activation") == "topk"
    wanted = _widths(found, path)
    f, d = wanted["b_enc"][0], wanted["b_dec"][0]
    wanted |= {"W_enc": (f, d), "W_dec": (f, d)}
    wanted |= {name: shape for name, shape in ((THRESHOLD, (f,)), ("W_skip", (d, d))) if name in found}
    tensors = checked(found, wanted, path)
    if THRESHOLD in tensors and topk:
        raise DataError(f"{path}: has thresholds, and {CONFIG} says activation topk; {AGAIN}")
    gate = "jumprelu" if THRESHOLD in tensors else "topk" if topk else "relu"
    plain = {"W_enc": tensors["W_enc"].T, **{name: tensors[name] for name in ("b_enc", "W_dec", "b_dec")}}
    if "W_skip" in tensors:
        plain["W_skip"] = tensors["W_skip"].T
    if THRESHOLD in tensors:
        plain["threshold"] = _not_negative(tensors[THRESHOLD], path)
    k = values.get("k")
    if gate == "topk" and not (isinstance(k, int) and k >= 1):
        raise DataError(f"{path.parent / CONFIG}: activation topk needs k, got {k!r}; {AGAIN}")
    hooks = ((f"blocks.{layer}.{name}",) for name in (read, written))
    hooks_in, hooks_out = ((ours(hook),) for (hook,) in hooks)
    return PlainDictionary("transcoder", gate, plain, hooks_in, hooks_out, k=k if gate == "topk" else None, about=about)


def _widths(found: dict[str, Tensor], file: Path) -> dict[str, Shape]:
    for name in ("b_enc", "b_dec"):
        if name not in found or found[name].ndim != 1:
            got = "is missing" if name not in found else f"is {list(found[name].shape)}, wanted one row"
            raise DataError(f"{file}: the tensors do not fit: {name} {got}; {AGAIN}")
    return {"b_enc": (("d_transcoder", len(found["b_enc"])),), "b_dec": (("d_model", len(found["b_dec"])),)}


def _not_negative(theta: Tensor, file: Path) -> Tensor:
    """Where that tool would let negative features pass."""
    if bool((theta < 0).any()):
        raise DataError(
            f"{file}: {int((theta < 0).sum()):,} thresholds are negative: negative features, which have no counterpart here"
        )
    return theta


def _cross_layer(path: Path, read: str, written: str, about: dict[str, Any]) -> PlainDictionary:
    layers = sorted(int(match[1]) for file in path.iterdir() if (match := _ENCODER.fullmatch(file.name)))
    if layers != list(range(len(layers))):
        raise DataError(f"{path}: the layers {layers} have gaps; {AGAIN}")
    n, parts = len(layers), []
    sizes: tuple[tuple[str, int], tuple[str, int]] | None = None
    for i in layers:
        file = path / f"W_enc_{i}.safetensors"
        found = {name.removesuffix(f"_{i}"): tensor for name, tensor in read_safetensors(file).items()}
        own = _widths(found, file)
        sizes = sizes or (own["b_enc"][0], own["b_dec"][0])
        f, d = sizes
        wanted: dict[str, Shape] = {"W_enc": (f, d), "b_enc": (f,), "b_dec": (d,), "threshold": (f,)}
        part = checked(found, wanted, file, optional=("threshold",))
        decoder = path / f"W_dec_{i}.safetensors"
        shape = {f"W_dec_{i}": (f, ("layers written", n - i), d)}
        parts.append(part | {"W_dec": checked(read_safetensors(decoder), shape, decoder)[f"W_dec_{i}"]})
    gates = {"threshold" in part for part in parts}
    if len(gates) > 1:
        raise DataError(f"{path}: some layers have thresholds and some have none; {AGAIN}")
    tensors = {"W_enc": torch.stack([part["W_enc"].T for part in parts])}
    tensors |= {name: torch.stack([part[name] for part in parts]) for name in ("b_enc", "b_dec")}
    for j in range(n):
        tensors[f"W_dec.{j}"] = torch.stack([parts[i]["W_dec"][:, j - i] for i in range(j + 1)])
    if gates == {True}:
        tensors["threshold"] = _not_negative(torch.stack([part["threshold"] for part in parts]), path)
    hooks = [tuple(ours(f"blocks.{layer}.{name}") for layer in layers) for name in (read, written)]
    return PlainDictionary("clt", "jumprelu" if gates == {True} else "relu", tensors, hooks[0], hooks[1], about=about)


def _suffix(name: str, hooks: Sequence[Sequence[str]]) -> str:
    """What all hook points of a set are called inside their blocks, which must be all blocks from the first.

    Raises:
        ParamsError: they are no such set.
    """
    places = [layer_and_site(hook) for own in hooks for hook in own]
    layers, sites = [place[0] for place in places if place], {place[1] for place in places if place}
    if None in places or len(sites) != 1 or sorted(layers) != list(range(len(layers))):
        listed = ", ".join(hook for own in hooks for hook in own)
        raise ParamsError(
            f"--format {name}: a set has one hook point of each layer from 0 without a gap, the same in each, got {listed}; "
            "give a transcoder of each layer (--dictionary, several times)"
        )
    return sites.pop()


def _theirs(site: str) -> str:
    """What the tool calls the place: it adds mlp.hook_in to a model, what its MLP reads."""
    return "mlp.hook_in" if site == "ln2.hook_out" else site


def _write_set(name: str, dictionaries: Sequence[PlainDictionary], path: Path) -> list[Path]:
    widths = {(plain.d_in, plain.d_sae, plain.skip) for plain in dictionaries}
    if len(widths) > 1:
        raise ParamsError(
            f"--format {name}: the transcoders of a set have one width, one number of features and all a skip or none"
        )
    places = []
    for plain in dictionaries:
        place = layer_and_site(plain.hooks_in[0])
        assert place is not None  # or they would have been no set
        tensors = {"W_enc": plain.tensors["W_enc"].T, **{key: plain.tensors[key] for key in ("W_dec", "b_enc", "b_dec")}}
        if plain.gate == "jumprelu":
            tensors[THRESHOLD] = plain.tensors["threshold"]
        if plain.skip:
            tensors["W_skip"] = plain.tensors["W_skip"].T
        places.append(path / f"layer_{place[0]}.safetensors")
        write_safetensors(tensors, places[-1])
    return places


def _write_cross_layer(plain: PlainDictionary, path: Path) -> list[Path]:
    tensors, n = plain.tensors, len(plain.hooks_in)
    for i in range(n):
        encoder = {f"W_enc_{i}": tensors["W_enc"][i].T, f"b_enc_{i}": tensors["b_enc"][i], f"b_dec_{i}": tensors["b_dec"][i]}
        if plain.gate == "jumprelu":
            encoder[f"threshold_{i}"] = tensors["threshold"][i]
        write_safetensors(encoder, path / f"W_enc_{i}.safetensors")
        rows = torch.stack([tensors[f"W_dec.{j}"][i] for j in range(i, n)], dim=1)
        write_safetensors({f"W_dec_{i}": rows}, path / f"W_dec_{i}.safetensors")
    return [path]


def _forward_layer(path: Path) -> Forward:
    weights = {name: tensor.double() for name, tensor in read_safetensors(path).items()}

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.nn.functional.linear(x, weights["W_enc"], weights["b_enc"])
        f = z * (z > weights[THRESHOLD]) if THRESHOLD in weights else z.relu()
        y = f @ weights["W_dec"] + weights["b_dec"]
        return f, y + x @ weights["W_skip"].T if "W_skip" in weights else y

    return run


def _forward_cross_layer(path: Path) -> Forward:
    n = len(list(path.glob("W_enc_*.safetensors")))
    weights: dict[str, Tensor] = {}
    for i in range(n):
        for kind in ("enc", "dec"):
            weights |= {name: tensor.double() for name, tensor in read_safetensors(path / f"W_{kind}_{i}.safetensors").items()}

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        fs, ys = [], [weights[f"b_dec_{i}"].expand(*x.shape[:-2], -1) for i in range(n)]
        for i in range(n):
            z = torch.einsum("...d,fd->...f", x[..., i, :], weights[f"W_enc_{i}"]) + weights[f"b_enc_{i}"]
            f = z * (z > weights[f"threshold_{i}"]) if f"threshold_{i}" in weights else z.relu()
            fs.append(f)
            for j in range(i, n):
                ys[j] = ys[j] + f @ weights[f"W_dec_{i}"][:, j - i]
        return torch.stack(fs, dim=-2), torch.stack(ys, dim=-2)

    return run
