"""OpenMOSS Language-Model-SAEs 2.0: config.json (sae_type) and sae_weights.safetensors.

    sae         W_E [d, F], b_E [F], W_D [F, d], b_D [d]; with use_glu_encoder W_E_glu [d, F], b_E_glu [F]
    clt         W_E [L, d, F], b_E [L, F], W_D.j [j + 1, F, d], b_D.j [d]
    lorsa       W_Q, W_K [Q, d, dh], b_Q, b_K [Q, dh], W_V, W_O [F, d], b_V [F], b_D [d], ln_q.w, ln_k.w [Q, dh]
    crosscoder  W_E [H, d, F], b_E [H, F] (added up), W_D [H, F, d], b_D [H, d]

    z = x W_E + b_E;   the gate sees z, or z n with sparsity_include_decoder_norm (n the norm of what a feature writes)
    activation_function.log_jumprelu_threshold: theta = exp of it, compared with what the gate sees
    use_glu_encoder: z times the sigmoid of x W_E_glu + b_E_glu;   layertopk: top_k of all layers of a token together

With norm_activation dataset-wise x is multiplied by sqrt(d) / norm and what is written over it, the norms being tensors
`dataset_average_activation_norm.<hook>`: folded on reading. Written with norm_activation inference, so that it is folded no
second time. A crosscoder's gate sees z times the decoder norm of each hook point apart, so that a feature may be active at some
only: ReLU alone is the same as here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError, unknown_name
from pipeline.files import read_object, write_json
from pipeline.interop.interface import Forward, InterchangeFormat, Layout, Loading
from pipeline.interop.plain import PlainDictionary, decoder_lengths, rescaled, unit_rows
from pipeline.interop.tensors import AGAIN, Shape, checked, flag, integer, number, read_safetensors, text, write_safetensors

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
KINDS = ("sae", "clt", "lorsa", "crosscoder")
GATES = ("relu", "jumprelu", "topk", "layertopk")
BATCH_GATES = ("batchtopk", "batchlayertopk")
THRESHOLD, NORM = "activation_function.log_jumprelu_threshold", "dataset_average_activation_norm."
BUFFERS = (
    "mask",
    "IGNORE",
    "rotary_sin",
    "rotary_cos",
)  # of lorsa, which its loader wants and which follow from its configuration
ATTENTION = (
    "n_qk_heads", "d_qk_head", "n_ctx", "positional_embedding_type", "rotary_dim", "rotary_base", "rotary_adjacent_pairs",
    "rotary_scale", "use_NTK_by_parts_rope", "NTK_by_parts_factor", "NTK_by_parts_low_freq_factor",
    "NTK_by_parts_high_freq_factor", "old_context_len", "attn_scale", "use_post_qk_ln", "normalization_type", "eps",
)  # fmt: skip
_SAME_NAMES = ("W_Q", "W_K", "b_Q", "b_K", "W_V", "b_V", "W_O")
_NAMES = {
    "W_E": "W_enc", "b_E": "b_enc", "W_D": "W_dec", "b_D": "b_dec", "W_E_glu": "W_glu", "b_E_glu": "b_glu", "ln_q.w": "q_gain",
    "ln_k.w": "k_gain",
}  # fmt: skip


class _OpenMOSS(InterchangeFormat):
    name = "openmoss"
    library = "llamascopium"
    layouts = (Layout((CONFIG, WEIGHTS)),)

    def recognises(self, path: Path) -> bool:
        try:
            stated = json.loads((path / CONFIG).read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(stated, dict) and "sae_type" in stated and (path / WEIGHTS).is_file()

    def read(self, path: Path) -> PlainDictionary:
        file, weights = path / CONFIG, path / WEIGHTS
        values = read_object(file, "the configuration of an OpenMOSS dictionary", AGAIN)
        kind, gate = text(values, "sae_type", file) or "", text(values, "act_fn", file, "relu") or ""
        if kind not in KINDS:
            raise DataError(f"{file}: sae_type: {unknown_name('kind', kind, KINDS)}")
        glu = flag(values, "use_glu_encoder", file, False)
        _refuse_form(kind, gate, glu, file)
        if kind == "crosscoder" and gate != "relu":
            raise DataError(
                f"{file}: a crosscoder with {gate}: its gate sees each hook point apart, which has no counterpart here"
            )
        d, expansion = integer(values, "d_model", file), number(values, "expansion_factor", file)
        hooks = _hooks(values, kind, file)
        biased = flag(values, "use_decoder_bias", file, True)
        state = read_safetensors(weights)
        norms = {key.removeprefix(NORM): state.pop(key) for key in list(state) if key.startswith(NORM)}
        shapes = _shapes(values, kind, d, int(d * expansion), len(hooks[0]), biased, file)
        if gate == "jumprelu":
            shapes[THRESHOLD] = shapes["b_V" if kind == "lorsa" else "b_E"]
        if glu:
            shapes |= {"W_E_glu": shapes["W_E"], "b_E_glu": shapes["b_E"]}
        found = checked(state, shapes, weights, unused=BUFFERS if kind == "lorsa" else ())
        tensors = _plain(found, kind, len(hooks[0]), d)
        theta = tensors.pop(THRESHOLD).double().exp() if gate == "jumprelu" else None
        attention = {key: values[key] for key in ATTENTION if key in values} if kind == "lorsa" else {}
        if attention.get("positional_embedding_type") == "none":
            attention["rotary_dim"] = None
        plain = PlainDictionary(
            "transcoder" if kind == "sae" and hooks[0] != hooks[1] else kind,
            gate,
            tensors,
            hooks[0],
            hooks[1],
            k=integer(values, "top_k", file) if gate in ("topk", "layertopk") else None,
            attention=attention,
        )
        plain = _gated(plain, theta, flag(values, "sparsity_include_decoder_norm", file, True))
        return _unnormalised(plain, text(values, "norm_activation", file, "dataset-wise") or "", norms, d, file)

    def prepared(self, plain: PlainDictionary) -> PlainDictionary:
        if plain.skip:
            raise self.refuse(plain, "a skip term")
        if plain.d_in != plain.d_out:
            raise self.refuse(plain, f"widths that differ ({plain.d_in} read, {plain.d_out} written)")
        if plain.kind == "crosscoder" and plain.gate != "relu":
            raise self.refuse(
                plain, "this gate of a crosscoder, which sees each hook point apart there", "ReLU alone is the same"
            )
        if plain.kind == "crosscoder" and not bool((plain.tensors["W_dec"] != 0).any(-1).all()):
            raise self.refuse(plain, "a feature that writes nothing at a hook point: its gate divides by the length there")
        if plain.kind == "lorsa":
            self._check_attention(plain)
        return unit_rows(plain)

    def _check_attention(self, plain: PlainDictionary) -> None:
        of = plain.attention
        for wrong, what in (
            (of["use_post_qk_ln"] and of["normalization_type"] != "RMS", f"normalization_type {of['normalization_type']}"),
            (of["positional_embedding_type"] == "rotary" and of["rotary_scale"] != 1, f"rotary_scale {of['rotary_scale']}"),
            (float(of["rotary_base"]) != int(of["rotary_base"]), f"rotary_base {of['rotary_base']}, no whole number"),
        ):
            if wrong:
                raise self.refuse(plain, what, "its attention has no such form")

    def write(self, dictionaries: Sequence[PlainDictionary], path: Path) -> list[Path]:
        plain = self.only(dictionaries)
        n = len(plain.hooks_in)
        ours = {name: theirs for theirs, name in _NAMES.items()}
        tensors = {ours.get(name.split(".")[0], name.split(".")[0]) + name[len(name.split(".")[0]) :]: tensor
                   for name, tensor in plain.tensors.items() if name != "threshold"}  # fmt: skip
        if plain.kind == "clt":
            bias = tensors.pop("b_D")
            tensors |= {f"b_D.{j}": bias[j] for j in range(n)}
        if plain.kind == "crosscoder":
            tensors["b_E"] = torch.cat([tensors["b_E"][None], tensors["b_E"].new_zeros(n - 1, plain.d_sae)])
        if plain.gate == "jumprelu":
            tensors[THRESHOLD] = plain.tensors["threshold"].log()
        config: dict[str, Any] = {
            "sae_type": "sae" if plain.kind == "transcoder" else plain.kind,
            "d_model": plain.d_in,
            "expansion_factor": expansion_factor(plain.d_sae, plain.d_in),
            "use_decoder_bias": True,
            "act_fn": plain.gate,
            "norm_activation": "inference",
            "sparsity_include_decoder_norm": plain.kind == "crosscoder",  # which has no other form, and of ReLU it is the same
            "top_k": plain.k or 50,
        }
        if plain.kind == "lorsa":
            tensors |= _buffers(plain.attention)
            whole = {key: int(plain.attention[key]) for key in ("rotary_base", "rotary_scale")}
            config |= {**plain.attention, **whole, "rotary_dim": plain.attention["rotary_dim"] or 0}
        config |= {
            "clt": {"hook_points_in": list(plain.hooks_in), "hook_points_out": list(plain.hooks_out)},
            "crosscoder": {"hook_points": list(plain.hooks_in)},
        }.get(plain.kind, {"hook_point_in": plain.hooks_in[0], "hook_point_out": plain.hooks_out[0]})
        write_safetensors(tensors, path / WEIGHTS)
        write_json(path / CONFIG, config)
        return [path]

    def forward(self, path: Path) -> Forward:
        values = read_object(path / CONFIG, "the configuration", AGAIN)
        state = {name: tensor.double() for name, tensor in read_safetensors(path / WEIGHTS).items()}

        def gated(z: Tensor) -> Tensor:
            if values["act_fn"] == "jumprelu":
                return z * (z > state[THRESHOLD].exp())
            if values["act_fn"] == "topk":
                value, index = z.topk(values["top_k"], dim=-1)
                return torch.zeros_like(z).scatter_(-1, index, value.relu())
            return z.relu()

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            if values["sae_type"] == "lorsa":
                f = gated(_attended(values, state, x))
                return f, f @ state["W_O"] + state["b_D"]
            if values["sae_type"] == "crosscoder":
                f = gated(torch.einsum("...hd,hdf->...f", x, state["W_E"]) + state["b_E"].sum(0))
                return f, torch.einsum("...f,hfd->...hd", f, state["W_D"]) + state["b_D"]
            if values["sae_type"] == "clt":
                f = gated(torch.einsum("...ld,ldf->...lf", x, state["W_E"]) + state["b_E"])
                ys = [
                    torch.einsum("...lf,lfd->...d", f[..., : j + 1, :], state[f"W_D.{j}"]) + state[f"b_D.{j}"]
                    for j in range(x.shape[-2])
                ]
                return f, torch.stack(ys, dim=-2)
            f = gated(x @ state["W_E"] + state["b_E"])
            return f, f @ state["W_D"] + state["b_D"]

        return run

    def loading(self, place: Loading) -> dict[str, str]:
        module = place.kind if place.kind in ("clt", "lorsa", "crosscoder") else "sae"
        first = f"\nimport llamascopium.models.{module}\nfrom llamascopium.models.sparse_dictionary import SparseDictionary\n\n"
        use = 'dictionary = SparseDictionary.from_pretrained({}, device="cpu")'
        return {"Language-Model-SAEs": place.snapshot(use).replace("\n\n", first, 1)}


FORMAT = _OpenMOSS()


def _refuse_form(kind: str, gate: str, glu: bool, file: Path) -> None:
    """What has no counterpart here."""
    if gate in BATCH_GATES:
        raise DataError(
            f"{file}: act_fn {gate!r}: which features are active depends on the batch; convert it there to jumprelu, which is "
            "its inference form"
        )
    if gate not in GATES:
        raise DataError(f"{file}: act_fn: {unknown_name('activation function', gate, (*GATES, *BATCH_GATES))}")
    if gate == "layertopk" and kind != "clt":
        raise DataError(f"{file}: act_fn layertopk of a {kind}: it has no layers that compete; of a clt it is read")
    if glu and kind != "sae":
        raise DataError(f"{file}: use_glu_encoder of a {kind}: an encoder of that kind is multiplied by no second one here")


def _hooks(values: Mapping[str, Any], kind: str, file: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if kind in ("sae", "lorsa"):
        return ((text(values, "hook_point_in", file) or "input",), (text(values, "hook_point_out", file) or "output",))
    keys = ("hook_points", "hook_points") if kind == "crosscoder" else ("hook_points_in", "hook_points_out")
    found = []
    for key in keys:
        hooks = values.get(key)
        if not isinstance(hooks, list) or not all(isinstance(hook, str) for hook in hooks) or len(hooks) < 2:
            raise DataError(f"{file}: {key} should be a list of at least two hook points, got {hooks!r}; {AGAIN}")
        found.append(tuple(hooks))
    if len(found[0]) != len(found[1]):
        raise DataError(f"{file}: {len(found[0])} hook points are read and {len(found[1])} written; {AGAIN}")
    return found[0], found[1]


def _shapes(values: Mapping[str, Any], kind: str, d: int, d_sae: int, n: int, biased: bool, file: Path) -> dict[str, Shape]:
    wide, f, hooks = ("d_model", d), ("d_sae", d_sae), ("hook points", n)
    if kind == "lorsa":
        q, dh = ("n_qk_heads", integer(values, "n_qk_heads", file)), ("d_qk_head", integer(values, "d_qk_head", file))
        shapes: dict[str, Shape] = {"W_Q": (q, wide, dh), "W_K": (q, wide, dh), "b_Q": (q, dh), "b_K": (q, dh)}
        shapes |= {"W_V": (f, wide), "W_O": (f, wide), "b_V": (f,)}
        if flag(values, "use_post_qk_ln", file, False):
            shapes |= {"ln_q.w": (q, dh), "ln_k.w": (q, dh)}
        return shapes | ({"b_D": (wide,)} if biased else {})
    if kind == "sae":
        shapes = {"W_E": (wide, f), "b_E": (f,), "W_D": (f, wide)}
        return shapes | ({"b_D": (wide,)} if biased else {})
    if kind == "crosscoder":
        return {"W_E": (hooks, wide, f), "b_E": (hooks, f), "W_D": (hooks, f, wide), "b_D": (hooks, wide)}
    shapes = {"W_E": (hooks, wide, f), "b_E": (hooks, f)}
    shapes |= {f"W_D.{j}": (("layers", j + 1), f, wide) for j in range(n)}
    return shapes | {f"b_D.{j}": (wide,) for j in range(n)}


def _plain(found: dict[str, Tensor], kind: str, n: int, d: int) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in found.items():
        first, _, rest = name.partition(".")
        known = _NAMES.get(name) or (f"{_NAMES[first]}.{rest}" if first in _NAMES and rest.isdigit() else name)
        tensors[known] = tensor
    if kind == "clt":
        tensors["b_dec"] = torch.stack([tensors.pop(f"b_dec.{j}") for j in range(n)])
    if kind == "crosscoder":
        tensors["b_enc"] = tensors["b_enc"].sum(0)
    if "b_dec" not in tensors:
        tensors["b_dec"] = torch.zeros(d)
    return tensors


def _gated(plain: PlainDictionary, theta: Tensor | None, by_norm: bool) -> PlainDictionary:
    """With the gate on z itself."""
    norms = decoder_lengths(plain).double() if by_norm else None
    if theta is not None:
        return plain.with_tensors(threshold=theta if norms is None else theta / norms.clamp_min(1e-12))
    if norms is not None and plain.gate in ("topk", "layertopk"):
        return rescaled(plain, norms, "features compete by their length: they are in that unit, decoder rows have length 1")
    return plain


def _unnormalised(plain: PlainDictionary, norm: str, norms: Mapping[str, Tensor], d: int, file: Path) -> PlainDictionary:
    """On raw activations."""
    if norm == "inference":
        return plain
    if norm != "dataset-wise":
        raise DataError(f"{file}: norm_activation {norm!r} depends on the data, so that no weights take raw activations")
    hooks = (*plain.hooks_in, *plain.hooks_out)
    missing = [hook for hook in hooks if hook not in norms or norms[hook].numel() != 1 or not float(norms[hook]) > 0]
    if missing:
        raise DataError(
            f"{file}: norm_activation dataset-wise, and {WEIGHTS} has no norm of {', '.join(missing)} ({NORM}<hook>); {AGAIN}"
        )
    a, b = ([math.sqrt(d) / float(norms[hook]) for hook in hooks] for hooks in (plain.hooks_in, plain.hooks_out))
    wide = {name: tensor.double() for name, tensor in plain.tensors.items()}
    said = "the data set's norms are folded in; features are those of the normalised space"
    if plain.kind in ("sae", "transcoder", "lorsa"):
        scaled: dict[str, Tensor] = {
            name: wide[name] * a[0] for name in ("W_enc", "W_glu", "W_Q", "W_K", "W_V") if name in wide
        }
        scaled |= {name: wide[name] / b[0] for name in ("W_dec", "W_O", "b_dec") if name in wide}
        return plain.with_tensors(said, **scaled)
    read, written = (torch.tensor(factors, dtype=torch.float64)[:, None] for factors in (a, b))
    scaled = {"W_enc": wide["W_enc"] * read[:, :, None], "b_dec": wide["b_dec"] / written}
    for name in wide:
        if name == "W_dec":
            scaled[name] = wide[name] / written[:, :, None]
        elif name.startswith("W_dec."):
            scaled[name] = wide[name] / b[int(name.removeprefix("W_dec."))]
    return plain.with_tensors(said, **scaled)


def expansion_factor(d_sae: int, d: int) -> float:
    """The expansion factor of which int(d * factor) is d_sae."""
    factor = d_sae / d
    while int(d * factor) < d_sae:
        factor = math.nextafter(factor, math.inf)
    return factor


def _buffers(of: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the module of that tool holds besides its parameters."""
    n = of["n_ctx"]
    found = {"mask": torch.ones(n, n, dtype=torch.bool).tril(), "IGNORE": torch.tensor(-torch.inf)}
    if of["positional_embedding_type"] == "rotary":
        angles = torch.arange(n, dtype=torch.float64)[:, None] * _frequencies(of)
        angles = angles.repeat_interleave(2, dim=-1) if of["rotary_adjacent_pairs"] else angles.repeat(1, 2)
        found |= {"rotary_sin": angles.sin(), "rotary_cos": angles.cos()}
    return found


def _frequencies(of: Mapping[str, Any]) -> Tensor:
    dim = of["rotary_dim"]
    inverse = float(of["rotary_base"]) ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if not of["use_NTK_by_parts_rope"]:
        return inverse
    low, high = (of[f"NTK_by_parts_{end}_freq_factor"] for end in ("low", "high"))
    share = ((of["old_context_len"] * inverse / (2 * math.pi) - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - share) * inverse / of["NTK_by_parts_factor"] + share * inverse


def _attended(values: Mapping[str, Any], state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Pre-activations of a lorsa, head by head, with the tables of the file."""
    n, heads = x.shape[-2], values["n_qk_heads"]
    v = x @ state["W_V"].T + state["b_V"]
    each = v.shape[-1] // heads
    out = []
    for head in range(heads):
        q, k = (x @ state[f"W_{name}"][head] + state[f"b_{name}"][head] for name in ("Q", "K"))
        if values["use_post_qk_ln"]:
            q, k = (
                t / (t.square().mean(-1, keepdim=True) + values["eps"]).sqrt() * state[f"ln_{name}.w"][head]
                for t, name in ((q, "q"), (k, "k"))
            )
        if values["positional_embedding_type"] == "rotary":
            q, k = (
                _turned(t, state["rotary_sin"][:n], state["rotary_cos"][:n], values["rotary_adjacent_pairs"]) for t in (q, k)
            )
        scale = values["attn_scale"] or math.sqrt(values["d_qk_head"])
        scores = (q @ k.mT / scale).masked_fill(~state["mask"][:n, :n].bool(), -torch.inf)
        out.append(scores.softmax(-1) @ v[..., head * each : (head + 1) * each])
    return torch.cat(out, dim=-1)


def _turned(x: Tensor, sin: Tensor, cos: Tensor, adjacent: bool) -> Tensor:
    dim = sin.shape[-1]
    turned, rest = x[..., :dim], x[..., dim:]
    other = torch.empty_like(turned)
    if adjacent:
        other[..., ::2], other[..., 1::2] = -turned[..., 1::2], turned[..., ::2]
    else:
        other[..., : dim // 2], other[..., dim // 2 :] = -turned[..., dim // 2 :], turned[..., : dim // 2]
    return torch.cat([turned * cos + other * sin, rest], dim=-1)
