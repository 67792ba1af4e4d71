"""What the tests of the formats share: dictionaries of each kind and gate, and files as each tool writes them, made by hand.

A maker writes a small dictionary in the form that its tool documents and returns what that tool would compute: x -> (features,
reconstruction), in float64, with loops and transposes of its own. Nothing here comes from pipeline/interop.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.seeding import generator
from tests.dictionaries.make import LAYERS_IN, LAYERS_OUT, filled, inputs

D, F, K, N = 6, 20, 4, 3
KINDS: dict[str, dict[str, Any]] = {
    "sae": {"kind": "sae", "hook_point_in": "blocks.1.hook_resid_post", "apply_b_dec_to_input": True},
    "transcoder": {"kind": "transcoder", "hook_point_in": "blocks.0.ln2.hook_out", "hook_point_out": "blocks.0.hook_mlp_out"},
    "skip": {"kind": "transcoder", "skip": True, "hook_point_in": "blocks.0.ln2.hook_out", "hook_point_out": "blocks.0.hook_mlp_out"},
    "clt": {"kind": "clt", "hook_points_in": LAYERS_IN, "hook_points_out": LAYERS_OUT},
    "crosscoder": {"kind": "crosscoder", "hook_points_in": ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]},
    "lorsa": {
        "kind": "lorsa", "hook_point_in": "blocks.1.ln1.hook_out", "hook_point_out": "blocks.1.hook_attn_out", "n_qk_heads": 2,
        "d_qk_head": 4, "n_ctx": 32, "rotary_dim": 4, "use_post_qk_ln": True, "normalization_type": "RMS",
    },
}  # fmt: skip
GATES = ("relu", "jumprelu", "topk")
# What each format that is written holds.
HELD = {
    "saelens": {("sae", gate) for gate in GATES}
    | {(kind, gate) for kind in ("transcoder", "skip") for gate in ("relu", "jumprelu")},
    "sparsify": {(kind, "topk") for kind in ("sae", "transcoder", "skip")},
    "dictionary_learning": {("sae", gate) for gate in GATES},
    "openmoss": {(kind, gate) for kind in ("sae", "transcoder", "clt", "lorsa") for gate in GATES} | {("crosscoder", "relu")},
    "circuit_tracer": {(kind, gate) for kind in ("transcoder", "skip", "clt") for gate in ("relu", "jumprelu")},
}
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def folded(kind: str, gate: str, **changes: Any) -> Dictionary:
    """A folded dictionary in float32, every tensor of it filled."""
    made = filled(act_fn=gate, dtype="float32", **{**KINDS[kind], **changes})
    norms = {
        hook: {"mean_norm": 2.0 + i, "mean_square": 9.0 + i, "d": D} for i, hook in enumerate((*made.hooks_in, *made.hooks_out))
    }
    return made.fold(norms)


def drawn(name: str, *shape: int) -> Tensor:
    """Gaussian float32 weights, the same for a name."""
    return torch.randn(*shape, generator=generator(0, "interop", name))


def rows(n: int = 200) -> Tensor:
    """Activations [n, D]."""
    return 2 * inputs(n, D, dtype=torch.float64)


def naive(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    *,
    theta: Tensor | float = 0.0,
    k: int | None = None,
    b_in: Tensor | float = 0.0,
    glu: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Token by token: f of (x - b_in) W_enc + b_enc above theta, or the k largest positive ones; f W_dec + b_dec.

    glu: weights and biases of what multiplies each feature as 1 / (1 + exp(-it)).
    """
    W_enc, b_enc, W_dec, b_dec = (tensor.double() for tensor in (W_enc, b_enc, W_dec, b_dec))
    bound = theta.double() if isinstance(theta, Tensor) else torch.full((len(b_enc),), float(theta), dtype=torch.float64)
    fs, ys = [], []
    for row in x.double():
        z = torch.stack([(row - b_in) @ W_enc[:, i] + b_enc[i] for i in range(len(b_enc))])
        if glu is not None:
            z = torch.stack([z[i] / (1 + (-row @ glu[0].double()[:, i] - glu[1].double()[i]).exp()) for i in range(len(z))])
        chosen = set(range(len(z))) if k is None else set(z.argsort(descending=True)[:k].tolist())
        f = torch.stack([z[i] if i in chosen and z[i] > max(0.0, float(bound[i])) else z.new_zeros(()) for i in range(len(z))])
        fs.append(f)
        ys.append(sum((f[i] * W_dec[i] for i in range(len(f))), start=b_dec.clone()))
    return torch.stack(fs), torch.stack(ys)


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _weights() -> dict[str, Tensor]:
    theta = drawn("threshold", F).abs() * 0.5 + 0.1
    return {
        "W_enc": drawn("W_enc", D, F), "b_enc": 0.3 * drawn("b_enc", F), "W_dec": drawn("W_dec", F, D), "b_dec": drawn("b_dec", D),
        "threshold": theta,
    }  # fmt: skip


def saelens(path: Path, architecture: str = "jumprelu", **config: Any) -> Forward:
    """cfg.json and sae_weights.safetensors."""
    w, skip = _weights(), 0.2 * drawn("skip", D, D)
    transcoder, gated = "transcoder" in architecture, architecture == "gated"
    applied = config.get("apply_b_dec_to_input", not transcoder)
    meta = {"sae_lens_version": "6.12.0", "model_name": "tiny", "hook_name": "blocks.0.hook_resid_post", "prepend_bos": True}
    if transcoder:
        meta |= {"hook_name": "blocks.0.mlp.hook_in", "hook_name_out": "blocks.0.hook_mlp_out"}
    stated: dict[str, Any] = {"architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "metadata": meta}
    stated |= {"apply_b_dec_to_input": applied, "normalize_activations": "none"}
    stated |= {"d_out": D} if transcoder else {}
    stated |= {"k": K} if architecture == "topk" else {}
    tensors = {key: w[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if "jumprelu" in architecture:
        tensors["threshold"] = w["threshold"]
    if "skip" in architecture:
        tensors["W_skip"] = skip
    mag = {"r_mag": 0.3 * drawn("r_mag", F), "b_gate": 0.5 * drawn("b_gate", F), "b_mag": 0.5 * drawn("b_mag", F)}
    if gated:
        del tensors["b_enc"]
        tensors |= mag
    _json(path / "cfg.json", stated | config)
    save_file(tensors, path / "sae_weights.safetensors")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        b_in: Any = w["b_dec"].double() if applied else 0.0
        if gated:
            u = (x - b_in) @ w["W_enc"].double()
            f = ((u + mag["b_gate"].double()) > 0) * (u * mag["r_mag"].double().exp() + mag["b_mag"].double()).relu()
            return f, f @ w["W_dec"].double() + w["b_dec"].double()
        norms = (
            w["W_dec"].norm(dim=-1).double()
            if config.get("rescale_acts_by_decoder_norm")
            else torch.ones(F, dtype=torch.float64)
        )
        f, y = naive(
            x, w["W_enc"].double() * norms, w["b_enc"].double() * norms, w["W_dec"].double() / norms[:, None], w["b_dec"],
            theta=w["threshold"] if "jumprelu" in architecture else 0.0, k=K if architecture == "topk" else None, b_in=b_in,
        )  # fmt: skip
        return f, y + x @ skip.T.double() if "skip" in architecture else y

    return forward


def sparsify(path: Path, *, transcode: bool = False, skip: bool = False, **config: Any) -> Forward:
    """cfg.json and sae.safetensors; the caller names the directory by the module."""
    w, W_skip = _weights(), 0.2 * drawn("skip", D, D)
    stated = {"activation": "topk", "expansion_factor": 32, "num_latents": F, "k": K, "d_in": D, "transcode": transcode}
    _json(path / "cfg.json", {**stated, "skip_connection": skip, "multi_topk": False, "normalize_decoder": True, **config})
    tensors = {
        "encoder.weight": w["W_enc"].T.contiguous(),
        "encoder.bias": w["b_enc"],
        "W_dec": w["W_dec"],
        "b_dec": w["b_dec"],
    }
    save_file(tensors | ({"W_skip": W_skip} if skip else {}), path / "sae.safetensors")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f, y = naive(x, *_four(w), k=K, b_in=0.0 if transcode else w["b_dec"].double())
        return f, y + x @ W_skip.T.double() if skip else y

    return forward


def _four(w: dict[str, Tensor]) -> list[Tensor]:
    return [w[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")]


def dictionary_learning(
    path: Path, dict_class: str = "AutoEncoderTopK", *, resume: float | None = None, **trainer: Any
) -> Forward:
    """ae.pt and config.json; `resume`: the state that a training goes on from, with this norm_factor."""
    w = _weights()
    scale = resume or 1.0
    linear = {
        "encoder.weight": w["W_enc"].T.contiguous(),
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T.contiguous(),
    }
    mag = {"r_mag": 0.3 * drawn("r_mag", F), "gate_bias": 0.5 * drawn("b_gate", F), "mag_bias": 0.5 * drawn("b_mag", F)}
    theta = torch.tensor(0.7)
    budget = {"k": torch.tensor(K, dtype=torch.int), "threshold": theta}
    states = {
        "AutoEncoder": {**linear, "bias": w["b_dec"]},
        "AutoEncoderNew": {**linear, "decoder.bias": w["b_dec"]},
        "AutoEncoderTopK": {**linear, "b_dec": w["b_dec"], **budget},
        "BatchTopKSAE": {**linear, "b_dec": w["b_dec"], **budget},
        "MatryoshkaBatchTopKSAE": {**{key: w[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}, **budget, "group_sizes": torch.tensor([8, 12])},
        "JumpReluAutoEncoder": dict(w),
        "GatedAutoEncoder": {
            "encoder.weight": linear["encoder.weight"], "decoder.weight": linear["decoder.weight"], "decoder_bias": w["b_dec"], **mag,
        },
    }  # fmt: skip
    state: Any = states[dict_class]
    path.mkdir(parents=True, exist_ok=True)
    if resume is not None:
        state = {"step": 3, "ae": state, "optimizer": {"state": {}}, "config": {"lr": 1e-3}, "norm_factor": resume}
    torch.save(state, path / "ae.pt")
    stated = {
        "dict_class": dict_class,
        "activation_dim": D,
        "dict_size": F,
        "k": K,
        "layer": 1,
        "lm_name": "tiny",
        "submodule_name": "resid_post_layer_1",
    }
    _json(path / "config.json", {"trainer": stated | trainer, "buffer": {"ctx_len": 64}})

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        W_enc, b_enc, W_dec, b_dec = (tensor.double() for tensor in _four(w))
        b_enc, b_dec = b_enc * scale, b_dec * scale
        if dict_class == "GatedAutoEncoder":
            u = (x - b_dec) @ W_enc
            f = ((u + mag["gate_bias"] * scale) > 0) * (u * mag["r_mag"].double().exp() + mag["mag_bias"] * scale).relu()
            return f, f @ W_dec + b_dec
        bound = {"BatchTopKSAE": theta, "MatryoshkaBatchTopKSAE": theta, "JumpReluAutoEncoder": w["threshold"]}.get(dict_class)
        bounds: Any = 0.0 if bound is None else (bound.double() * scale).expand(F)
        subtracted = dict_class not in ("JumpReluAutoEncoder", "AutoEncoderNew")
        return naive(
            x,
            W_enc,
            b_enc,
            W_dec,
            b_dec,
            theta=bounds,
            k=K if dict_class == "AutoEncoderTopK" else None,
            b_in=b_dec if subtracted else 0.0,
        )

    return forward


def gemma_scope(path: Path, **arrays: Any) -> Forward:
    """params.npz of the first release."""
    w = _weights()
    path.mkdir(parents=True, exist_ok=True)
    np.savez(path / "params.npz", **{**{key: tensor.numpy() for key, tensor in w.items()}, **arrays})
    return lambda x: naive(x, *_four(w), theta=w["threshold"])


def gemma_scope_2(path: Path, *, affine: bool = False, **config: Any) -> Forward:
    """config.json and params.safetensors of the second release."""
    w, skip = _weights(), 0.2 * drawn("skip", D, D)
    read, written = "model.layers.1.output", "model.layers.1.output"
    if affine:
        read, written = "model.layers.1.pre_feedforward_layernorm.output", "model.layers.1.post_feedforward_layernorm.output"
    stated = {
        "architecture": "jump_relu",
        "model_name": "tiny",
        "hf_hook_point_in": read,
        "hf_hook_point_out": written,
        "affine_connection": affine,
    }
    _json(path / "config.json", stated | config)
    names = {"W_enc": "w_enc", "W_dec": "w_dec"}
    tensors = {names.get(key, key): tensor for key, tensor in w.items()}
    save_file(tensors | ({"affine_skip_connection": skip} if affine else {}), path / "params.safetensors")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f, y = naive(x, *_four(w), theta=w["threshold"])
        return f, y + x @ skip.double() if affine else y

    return forward


def gemma_scope_2_clt(path: Path, *, backwards: float = 0.0, affine: bool = False, **config: Any) -> Forward:
    """config.json and params_layer_i.safetensors; `backwards`: size of what is there of layers before a feature's own."""
    layers = []
    for i in range(N):
        part = {"w_enc": drawn(f"scope {i} w_enc", D, F), "b_enc": 0.3 * drawn(f"scope {i} b_enc", F)}
        part |= {"b_dec": drawn(f"scope {i} b_dec", D), "threshold": drawn(f"scope {i} threshold", F).abs() * 0.5}
        part["w_dec"] = drawn(f"scope {i} w_dec", F, N, D)
        part["w_dec"][:, :i] *= backwards
        layers.append(part)
    template = "model.layers.0.{}_feedforward_layernorm.output"
    stated = {"architecture": "jump_relu", "model_name": "tiny", "affine_connection": affine}
    stated |= {"hf_hook_point_in": template.format("pre"), "hf_hook_point_out": template.format("post")}
    _json(path / "config.json", stated | config)
    for i, part in enumerate(layers):
        extra = {"affine_skip_connection": drawn("scope skip", D, D)} if affine else {}
        save_file(part | extra, path / f"params_layer_{i}.safetensors")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        fs, ys = [], [layers[j]["b_dec"].double().expand(len(x), D).clone() for j in range(N)]
        for i, part in enumerate(layers):
            z = x[:, i] @ part["w_enc"].double() + part["b_enc"].double()
            fs.append(torch.where(z > part["threshold"].double(), z, 0.0))
            for j in range(i, N):
                ys[j] += fs[i] @ part["w_dec"][:, j].double()
        return torch.stack(fs, dim=1), torch.stack(ys, dim=1)

    return forward


def llama_scope(path: Path, **config: Any) -> Forward:
    """hyperparams.json and checkpoints/final.safetensors, norms not folded."""
    w = _weights()
    norms, theta = {"in": 7.0, "out": 5.0}, 0.6
    stated = {"d_model": D, "d_sae": F, "jump_relu_threshold": theta, "dataset_average_activation_norm": norms}
    _json(
        path / "hyperparams.json",
        {**stated, "hook_point_in": "blocks.1.hook_mlp_out", "hook_point_out": "blocks.1.hook_mlp_out", **config},
    )
    (path / "checkpoints").mkdir(exist_ok=True)
    tensors = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"]}
    tensors |= {"decoder.weight": w["W_dec"].T.contiguous(), "decoder.bias": w["b_dec"]}
    save_file(tensors, path / "checkpoints" / "final.safetensors")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f, y = naive(x * math.sqrt(D) / norms["in"], *_four(w), theta=theta)
        return f, y * norms["out"] / math.sqrt(D)

    return forward


def openmoss(
    path: Path, *, by_norm: bool = True, gate: str = "jumprelu", norm: str = "dataset-wise", glu: bool = False, **config: Any
) -> Forward:
    """config.json and sae_weights.safetensors of an autoencoder."""
    w, hook, mean = _weights(), "blocks.1.hook_resid_post", 7.0
    stated: dict[str, Any] = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": F / D + 1e-9,
        "act_fn": gate,
        "top_k": K,
        "norm_activation": norm,
    }
    stated |= {
        "sparsity_include_decoder_norm": by_norm,
        "hook_point_in": hook,
        "hook_point_out": hook,
        "use_decoder_bias": True,
        "use_glu_encoder": glu,
    }
    _json(path / "config.json", stated | config)
    gates = (drawn("W_E_glu", D, F), drawn("b_E_glu", F))
    tensors = {"W_E": w["W_enc"], "b_E": w["b_enc"], "W_D": w["W_dec"], "b_D": w["b_dec"]}
    tensors[f"dataset_average_activation_norm.{hook}"] = torch.tensor(mean)
    if gate == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = w["threshold"].log()
    if glu:
        tensors |= {"W_E_glu": gates[0], "b_E_glu": gates[1]}
    save_file(tensors, path / "sae_weights.safetensors")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        s = math.sqrt(D) / mean if norm == "dataset-wise" else 1.0
        n = w["W_dec"].norm(dim=-1).double() if by_norm else torch.ones(F, dtype=torch.float64)
        theta: Any = w["threshold"].double() if gate == "jumprelu" else 0.0
        f, y = naive(
            x * s, w["W_enc"].double() * n, w["b_enc"].double() * n, w["W_dec"].double() / n[:, None], w["b_dec"], theta=theta,
            k=K if gate == "topk" else None, glu=gates if glu else None,
        )  # fmt: skip
        return f if gate == "topk" else f / n, y / s

    return forward


def openmoss_clt(path: Path, *, by_norm: bool = True, **config: Any) -> Forward:
    """A cross-layer transcoder whose layers compete for K features of a token."""
    w = {"W_E": drawn("moss W_E", N, D, F), "b_E": 0.3 * drawn("moss b_E", N, F)}
    w |= {f"W_D.{j}": drawn(f"moss W_D {j}", j + 1, F, D) for j in range(N)}
    w |= {f"b_D.{j}": drawn(f"moss b_D {j}", D) for j in range(N)}
    stated: dict[str, Any] = {
        "sae_type": "clt",
        "d_model": D,
        "expansion_factor": F / D + 1e-9,
        "act_fn": "layertopk",
        "top_k": K,
    }
    stated |= {"norm_activation": "inference", "sparsity_include_decoder_norm": by_norm}
    stated |= {"hook_points_in": LAYERS_IN, "hook_points_out": LAYERS_OUT}
    _json(path / "config.json", stated | config)
    save_file(w, path / "sae_weights.safetensors")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        wide = {name: tensor.double() for name, tensor in w.items()}
        squares = torch.zeros(N, F, dtype=torch.float64)
        for i in range(N):
            for j in range(i, N):
                squares[i] += (wide[f"W_D.{j}"][i] ** 2).sum(-1)
        n = squares.sqrt() if by_norm else torch.ones(N, F, dtype=torch.float64)
        fs, ys = [], []
        for token in x:
            z = torch.stack([token[i] @ wide["W_E"][i] + wide["b_E"][i] for i in range(N)]) * n
            chosen = z.flatten().argsort(descending=True)[:K]
            f = torch.zeros(N * F, dtype=torch.float64)
            f[chosen] = z.flatten()[chosen].clamp_min(0)
            f = f.reshape(N, F)
            fs.append(f)
            ys.append(
                torch.stack(
                    [sum(((f[i] / n[i]) @ wide[f"W_D.{j}"][i] for i in range(j + 1)), start=wide[f"b_D.{j}"]) for j in range(N)]
                )
            )
        return torch.stack(fs), torch.stack(ys)

    return forward


def circuit_tracer(
    path: Path, *, skip: bool = False, activation: str = "jumprelu", layers: int = 2, **config: Any
) -> dict[str, Forward]:
    """config.yaml and layer_i.safetensors."""
    path.mkdir(parents=True, exist_ok=True)
    forwards: dict[str, Forward] = {}
    for layer in range(layers):
        w = {key: tensor + 0.1 * layer for key, tensor in _weights().items()}
        W_skip = 0.2 * drawn("skip", D, D)
        tensors = {"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
        tensors |= {"activation_function.threshold": w["threshold"]} if activation == "jumprelu" else {}
        save_file(tensors | ({"W_skip": W_skip} if skip else {}), path / f"layer_{layer}.safetensors")

        def forward(x: Tensor, w: dict[str, Tensor] = w, W_skip: Tensor = W_skip) -> tuple[Tensor, Tensor]:
            f, y = naive(
                x, *_four(w), theta=w["threshold"] if activation == "jumprelu" else 0.0, k=K if activation == "topk" else None
            )
            return f, y + x @ W_skip.T.double() if skip else y

        forwards[f"layer_{layer}.safetensors"] = forward
    stated = {
        "model_name": "tiny",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
    }
    _json(path / "config.yaml", stated | config)  # JSON is YAML
    return forwards


def circuit_tracer_clt(path: Path, *, thresholds: bool = True) -> Forward:
    """config.yaml, W_enc_i.safetensors and W_dec_i.safetensors."""
    path.mkdir(parents=True, exist_ok=True)
    w = {
        "W_enc": drawn("clt W_enc", N, F, D), "b_enc": 0.3 * drawn("clt b_enc", N, F), "b_dec": drawn("clt b_dec", N, D),
        "threshold": drawn("clt threshold", N, F).abs() * 0.5,
    }  # fmt: skip
    decoders = [drawn(f"clt W_dec {i}", F, N - i, D) for i in range(N)]
    for i in range(N):
        own = {f"{key}_{i}": tensor[i].contiguous() for key, tensor in w.items() if thresholds or key != "threshold"}
        save_file(own, path / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": decoders[i]}, path / f"W_dec_{i}.safetensors")
    stated = {
        "model_name": "tiny",
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": "hook_resid_pre",
        "feature_output_hook": "hook_mlp_out",
    }
    _json(path / "config.yaml", stated)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        fs, ys = [], [w["b_dec"][j].double().expand(len(x), D).clone() for j in range(N)]
        for i in range(N):
            z = x[:, i] @ w["W_enc"][i].double().T + w["b_enc"][i].double()
            f = torch.where(z > (w["threshold"][i].double() if thresholds else 0.0), z, 0.0)
            fs.append(f)
            for j in range(i, N):
                ys[j] += f @ decoders[i][:, j - i].double()
        return torch.stack(fs, dim=1), torch.stack(ys, dim=1)

    return forward
