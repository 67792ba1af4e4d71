"""A kind with several hook points needs nothing but its own class: a small crosscoder, defined here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.initial import BaseInitialization
from pipeline.folding import fold_dictionary, mean_l0
from pipeline.losses.reconstruction import reconstruction_loss
from pipeline.params.dictionary_config import config_class
from pipeline.params.kinds.fields import DictionaryFields
from pipeline.seeding import generator

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
NORMS = {HOOKS[0]: 5.0, HOOKS[1]: {"mean_norm": 90.0, "mean_square": 9000.0, "d": 6}}


@dataclasses.dataclass(frozen=True)
class CrossFields(DictionaryFields):
    hook_points: tuple[str, ...] = HOOKS

    @property
    def hooks_in(self) -> tuple[str, ...]:
        return self.hook_points

    hooks_out = hooks_in


class Cross(Dictionary):
    """W_E [P, D, F], b_E [F], W_D [P, F, D], b_D [P, D]."""

    W_E: nn.Parameter
    b_E: nn.Parameter
    W_D: nn.Parameter

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return (self.config.d_sae,)

    def _parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        p, d, f = len(self.hooks_in), self.config.d_in, self.config.d_sae
        return {"W_E": (p, d, f), "b_E": (f,), "W_D": (p, f, d), "b_D": (p, d)}

    def _draw(self, seed: int, initialization: BaseInitialization) -> None:
        for name, parameter in self.named_parameters():
            if "threshold" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator(seed, name)))

    def pre_activations(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return torch.einsum("bpd,pdf->bf", x, self.W_E) + self.b_E

    def decoder_norms(self) -> Tensor:
        return self.W_D.square().sum((0, 2)).sqrt()

    def decode_linear(self, f: Tensor) -> Tensor:
        return torch.einsum("bf,pfd->bpd", f, self.W_D)

    def scale_activations_(self, a: Sequence[float], b: Sequence[float]) -> None:
        for p in range(2):
            self.W_E[p].mul_(a[p])
            self.W_D[p].div_(b[p])
            self.b_D[p].div_(b[p])


def make(act_fn: str, include_norm: bool) -> Cross:
    config = config_class(CrossFields, "cross")(
        d_in=6, d_sae=40, act_fn=act_fn, top_k=5, sparsity_include_decoder_norm=include_norm, dtype="float64"
    )
    return Cross(config).initialize_(0)


def raw(n: int = 50, seed: int = 0) -> Tensor:
    scales = torch.tensor([5.0, 90.0], dtype=torch.float64) / math.sqrt(6)
    return torch.randn(n, 2, 6, generator=generator(seed, "raw"), dtype=torch.float64) * scales[:, None]


@pytest.mark.parametrize("act_fn", ["relu", "topk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("include_norm", [True, False])
def test_it_trains_masks_converts_and_folds_through_the_shared_code(act_fn: str, include_norm: bool) -> None:
    dictionary = make(act_fn, include_norm)
    mask = torch.arange(50) % 4 != 0
    codes, x_hat = dictionary.run(raw(), mask)
    assert (codes.f[~mask] == 0).all()
    assert x_hat.shape == (50, 2, 6)
    reconstruction_loss(x_hat, raw(seed=1), mask).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in dictionary.parameters())
    assert dictionary.decode_dead(codes.z, codes.h, torch.arange(40) < 3, 2).shape == (50, 2, 6)
    batches = [(raw(400, seed), None) for seed in range(4)]
    report = fold_dictionary(dictionary, NORMS, calibration_batches=batches)
    assert float(report.figures["relative_error"]) <= 1e-9
    assert report.l0_after == pytest.approx(report.l0_before, rel=0.002)
    assert report.dictionary.is_batch_dependent is False
    if act_fn == "topk":  # the hooks' scales differ, so that the units c do, and the gate must keep the trained selection
        assert report.dictionary.gate_scale is not None
    assert mean_l0(report.dictionary, batches)[1] == 1600
