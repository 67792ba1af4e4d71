"""The object that SAEBench's evaluations take: encode, decode, the matrices by name, and a configuration.

Everything is float32 and plain torch, so that it works in an environment of its own. Decoder rows have length 1 where the gate
allows it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ParamsError
from pipeline.interop.hook_names import layer_and_site
from pipeline.interop.plain import PlainDictionary, unit_rows


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
    normalize_activations: str = "none"
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = "relu"
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
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

    Attributes:
        W_enc, W_dec, b_enc, b_dec: [d, F], [F, d], [F], [d].
        cfg: what it is.
    """

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter
    threshold: Tensor

    def __init__(self, plain: PlainDictionary, cfg: SAEBenchConfig) -> None:
        super().__init__()
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            self.register_parameter(name, nn.Parameter(plain.tensors[name].float().contiguous()))
        self.register_buffer("threshold", plain.thresholds.float().clamp_min(0.0))
        self.k, self.cfg = plain.k, cfg

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


def saebench_object(plain: PlainDictionary) -> SAEBenchObject:
    """The object of an autoencoder.

    Raises:
        ParamsError: another kind.
    """
    if plain.kind != "sae":
        raise ParamsError(f"saebench: holds autoencoders of one hook point alone, got a {plain.kind}")
    unit = unit_rows(plain)
    place, about = layer_and_site(unit.hooks_in[0]), unit.about
    cfg = SAEBenchConfig(
        model_name=str(about.get("model_name", "")),
        d_in=unit.d_in,
        d_sae=unit.d_sae,
        hook_layer=place[0] if place else 0,
        hook_name=unit.hooks_in[0],
        architecture={"relu": "standard"}.get(unit.gate, unit.gate),
        context_size=about.get("context_size"),
        prepend_bos=bool(about.get("prepend_bos", True)),
        training_tokens=int(about.get("training_tokens", -1)),
        activation_fn_str="topk" if unit.gate == "topk" else "relu",
        activation_fn_kwargs={"k": unit.k} if unit.gate == "topk" else {},
    )
    return SAEBenchObject(unit, cfg)
