"""The object that SAEBench's evaluations take, and its files.

This module needs torch and safetensors alone: a copy of it lies beside the weights of a dictionary that was exported for
SAEBench, whose environment has no Scopeline.

    from scopeline_sae import load
    sae = load("directory")                  # encode, decode, W_enc, W_dec, b_enc, b_dec, cfg
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CFG, WEIGHTS = "cfg.json", "sae.safetensors"
_PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_dec")


@dataclass
class SAEBenchConfig:
    """What the evaluations read of a dictionary."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    architecture: str
    context_size: int | None = None
    prepend_bos: bool = True
    hook_head_index: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    apply_b_dec_to_input: bool = False
    normalize_activations: str = "none"
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = "relu"
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[None] = (None,)
    training_tokens: int = -1
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


class SAEBenchObject(nn.Module):
    """An autoencoder on raw activations.

    Args:
        tensors: W_enc [d, F], W_dec [F, d], b_enc [F], b_dec [d] and threshold [F].
        cfg: what it is; `activation_fn_kwargs` has k where the gate is TopK.

    Attributes:
        W_enc, W_dec, b_enc, b_dec: its parameters.
        cfg: as given.
    """

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter
    threshold: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], cfg: SAEBenchConfig) -> None:
        super().__init__()
        for name in _PARAMETERS:
            self.register_parameter(name, nn.Parameter(tensors[name].float().contiguous()))
        self.register_buffer("threshold", tensors["threshold"].float().clamp_min(0.0))
        self.k: int | None = cfg.activation_fn_kwargs.get("k")
        self.cfg = cfg

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.W_enc.dtype

    def encode(self, x: Tensor) -> Tensor:
        """Features [..., F] of x [..., d]."""
        z = x.to(self.dtype) @ self.W_enc + self.b_enc
        if self.k is None:
            return torch.where(z > self.threshold, z, 0.0)
        value, index = z.topk(self.k, dim=-1)
        return torch.zeros_like(z).scatter_(-1, index, value.relu())

    def decode(self, f: Tensor) -> Tensor:
        """Reconstruction [..., d] of features [..., F]."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of x."""
        return self.decode(self.encode(x))

    def save(self, directory: str | Path) -> None:
        """Write cfg.json and sae.safetensors to a directory that is there."""
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, str(Path(directory) / WEIGHTS))
        text = json.dumps(self.cfg.to_dict(), indent=2, sort_keys=True) + "\n"
        (Path(directory) / CFG).write_text(text, encoding="utf-8")


def load(directory: str | Path) -> SAEBenchObject:
    """Read what :meth:`SAEBenchObject.save` has written."""
    from safetensors.torch import load_file

    raw = json.loads((Path(directory) / CFG).read_text(encoding="utf-8"))
    cfg = SAEBenchConfig(**{**raw, "seqpos_slice": tuple(raw["seqpos_slice"])})
    return SAEBenchObject(load_file(str(Path(directory) / WEIGHTS)), cfg)
