"""sparsify: cfg.json and sae.safetensors in a directory named by the module, `layers.5.mlp` (of seeds <module>/seed<N>).

    z = relu((x - b_dec [unless transcode]) encoder.weight^T + encoder.bias);   f = the k largest z
    y = f W_dec + b_dec (+ x W_skip^T)

Only TopK; selection is by z itself. A transcoder reads the input of its module and writes its output. delphi reads these
directories.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError, ParamsError
from pipeline.files import read_object, write_json
from pipeline.interop.hook_names import hook_of_module, module_of_hook
from pipeline.interop.interface import Forward, InterchangeFormat, Layout, Loading
from pipeline.interop.plain import PlainDictionary, decoder_lengths
from pipeline.interop.tensors import AGAIN, Shape, checked, flag, integer, read_safetensors, text, write_safetensors

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
_SEED = re.compile(r"seed\d+")


class _Sparsify(InterchangeFormat):
    name = "sparsify"
    library = "sparsify"
    layouts = (Layout((CONFIG, WEIGHTS), (f"../{RUN}", f"../../{RUN}")),)

    def recognises(self, path: Path) -> bool:
        return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()

    def read(self, path: Path) -> PlainDictionary:
        file = path / CONFIG
        values = read_object(file, "the configuration of a sparsify dictionary", AGAIN)
        activation = text(values, "activation", file, "topk")
        if activation != "topk":
            what = "the largest of each of k groups" if activation == "groupmax" else "not known"
            raise DataError(f"{file}: activation {activation!r} ({what}) has no counterpart here; topk has")
        d_in, k = integer(values, "d_in", file), integer(values, "k", file)
        d_sae = integer(values, "num_latents", file, 0) if "num_latents" in values else 0
        d_sae = d_sae or d_in * integer(values, "expansion_factor", file)
        transcode, skip = flag(values, "transcode", file, False), flag(values, "skip_connection", file, False)
        if skip and not transcode:
            raise DataError(f"{file}: skip_connection of an autoencoder (transcode is false) has no counterpart here")
        one, f = (("d_in", d_in),), (("num_latents", d_sae),)
        wanted: dict[str, Shape] = {"encoder.weight": (*f, *one), "encoder.bias": f, "W_dec": (*f, *one), "b_dec": one}
        if skip:
            wanted["W_skip"] = (*one, *one)
        found = checked(read_safetensors(path / WEIGHTS), wanted, path / WEIGHTS)
        W_enc, b_enc = found["encoder.weight"].T, found["encoder.bias"]
        if not transcode:
            b_enc = b_enc.double() - W_enc.T.double() @ found["b_dec"].double()
        tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": found["W_dec"], "b_dec": found["b_dec"]}
        if skip:
            tensors["W_skip"] = found["W_skip"].T
        return PlainDictionary(
            "transcoder" if transcode else "sae",
            "topk",
            tensors,
            (_hook(path, reads=transcode),),
            (_hook(path, reads=False),),
            k=k,
            about=_about(path),
        )

    def place(self, dictionaries: Sequence[PlainDictionary], path: Path) -> Path:
        """<path>/<module>, unless `path` is so named already."""
        plain = self.only(dictionaries)
        module = module_of_hook(plain.hooks_out[0], plain.about.get("model_type"))
        if module is None:
            raise self.refuse(
                plain,
                f"the hook point {plain.hooks_out[0]}, which is no module's output",
                "hook_resid_post, hook_mlp_out and hook_attn_out are",
            )
        return path if path.name == module else path / module

    def prepared(self, plain: PlainDictionary) -> PlainDictionary:
        if plain.kind not in ("sae", "transcoder"):
            raise self.refuse(plain, "this kind")
        if plain.gate != "topk":
            raise self.refuse(plain, "a gate with thresholds or none: TopK alone")
        if plain.d_in != plain.d_out:
            raise self.refuse(plain, f"widths that differ ({plain.d_in} read, {plain.d_out} written)")
        if (plain.k or 0) > plain.d_sae:
            raise ParamsError(f"--format {self.name}: k {plain.k} is more than the {plain.d_sae} features")
        module = module_of_hook(plain.hooks_out[0])
        if plain.kind == "transcoder" and module is not None and hook_of_module(module, reads=True) != plain.hooks_in[0]:
            raise self.refuse(
                plain,
                f"what reads {plain.hooks_in[0]} and writes {plain.hooks_out[0]}",
                f"a module's own input is read there, {hook_of_module(module, reads=True)}",
            )
        return plain

    def write(self, dictionaries: Sequence[PlainDictionary], path: Path) -> list[Path]:
        plain = self.only(dictionaries)
        W_enc, b_enc, b_dec = (plain.tensors[name] for name in ("W_enc", "b_enc", "b_dec"))
        transcode = plain.kind == "transcoder"
        tensors = {"encoder.weight": W_enc.T, "W_dec": plain.tensors["W_dec"], "b_dec": b_dec}
        tensors["encoder.bias"] = b_enc if transcode else b_enc + b_dec @ W_enc
        if plain.skip:
            tensors["W_skip"] = plain.tensors["W_skip"].T
        write_safetensors(tensors, path / WEIGHTS)
        lengths = decoder_lengths(plain)
        config = {
            "activation": "topk",
            "expansion_factor": max(1, round(plain.d_sae / plain.d_in)),
            "normalize_decoder": bool(torch.allclose(lengths, torch.ones_like(lengths), rtol=1e-6, atol=0)),
            "num_latents": plain.d_sae,
            "k": plain.k,
            "multi_topk": False,
            "skip_connection": plain.skip,
            "transcode": transcode,
            "d_in": plain.d_in,
        }
        known = {"model": "model_name", "dataset": "dataset_path", "ctx_len": "context_size"}
        run = {key: plain.about[name] for key, name in known.items() if name in plain.about}
        write_json(path / CONFIG, config | ({"scopeline_run": run} if run else {}))
        return [path]

    def forward(self, path: Path) -> Forward:
        config = read_object(path / CONFIG, "the configuration", AGAIN)
        weights = {name: tensor.double() for name, tensor in read_safetensors(path / WEIGHTS).items()}

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            read = x if config["transcode"] else x - weights["b_dec"]
            z = torch.nn.functional.linear(read, weights["encoder.weight"], weights["encoder.bias"]).relu()
            value, index = z.topk(config["k"], dim=-1, sorted=False)
            f = torch.zeros_like(z).scatter_(-1, index, value)
            y = f @ weights["W_dec"] + weights["b_dec"]
            return f, y + x @ weights["W_skip"].mT if "W_skip" in weights else y

        return run

    def loading(self, place: Loading) -> dict[str, str]:
        hook = f', hookpoint="{place.folder}"' if place.folder else ""
        return {"sparsify": f'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_hub("{place.repository}"{hook})'}


FORMAT = _Sparsify()


def _hook(path: Path, *, reads: bool) -> str:
    """The hook point of the directory's name; `input` or `output` of one that names no module."""
    name = path.parent.name if _SEED.fullmatch(path.name) else path.name
    try:
        return hook_of_module(name, reads=reads)
    except DataError:
        return "input" if reads else "output"


def _about(path: Path) -> dict[str, Any]:
    """Model, data set and context of the run, from its config.json beside the directories, or from what we have written."""
    own = read_object(path / CONFIG, "the configuration", AGAIN).get("scopeline_run")
    found: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
    for folder in (path.parent, path.parent.parent):
        if not found and (folder / RUN).is_file():
            found = read_object(folder / RUN, "the run's configuration", AGAIN)
    names = {"model": "model_name", "dataset": "dataset_path", "ctx_len": "context_size"}
    return {names[key]: found[key] for key in names if isinstance(found.get(key), str | int)}
