"""AuxK's reconstruction of every kind: what it does with a pre-activation that is not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import kind_names
from pipeline.losses.auxk import AuxKLoss, auxk_loss
from tests.dictionaries.make import read_by
from tests.dictionaries.test_contract import make

DEAD = [2, 5, 11]


def term(
    dictionary: Dictionary, z: Tensor, h: Tensor, k_aux: int, mask: Tensor | None = None
) -> tuple[AuxKLoss, dict[str, Tensor]]:
    """The AuxK loss of pre-activations h, ranked by z, against zeros, and its gradients."""
    dictionary.zero_grad()
    dead = torch.zeros(dictionary.feature_shape, dtype=torch.bool)
    dead[..., DEAD] = True
    e_hat = dictionary.decode_dead(z, h, dead, k_aux)
    zeros = torch.zeros_like(e_hat)
    found = auxk_loss(zeros, zeros, e_hat, dead, mask)
    found.value.backward()
    return found, {name: p.grad.clone() for name, p in dictionary.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("k_aux", [3, 512])
@pytest.mark.parametrize("kind", kind_names())
def test_a_token_that_is_not_finite_has_no_part_in_the_gradient(kind: str, k_aux: int, bad: float) -> None:
    dictionary = make(kind, "topk")
    x = read_by(dictionary, 12)
    h = dictionary.codes(x).h.detach()
    tokens = h.shape[: h.ndim - len(dictionary.feature_shape)]
    broken, mask = h.clone(), torch.ones(tokens, dtype=torch.bool)
    broken[(0,) * (h.ndim - 1)][5] = bad
    mask[(0,) * len(tokens)] = False
    found, gradients = term(dictionary, h, broken, k_aux)
    wanted, without = term(dictionary, h, h, k_aux, mask)
    kept = float(mask.double().mean())
    assert gradients.keys() == without.keys() != set()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, without[name] * kept, rtol=1e-12, atol=1e-14)
    assert float(found.value.detach()) == pytest.approx(float(wanted.value.detach()) * kept, rel=1e-12)
    assert int(found.n_dropped) == len(dictionary.hooks_out)  # counted for every hook point that is written


@pytest.mark.parametrize("kind", kind_names())
def test_a_feature_that_is_not_dead_or_not_chosen_may_be_anything(kind: str) -> None:
    dictionary = make(kind, "topk")
    h = dictionary.codes(read_by(dictionary, 12)).h.detach()
    plain, _ = term(dictionary, h, h, 512)
    h[..., 0] = torch.inf
    again, _ = term(dictionary, h, h, 512)
    assert torch.equal(plain.value, again.value)
    h[..., DEAD[0]] = -torch.inf
    chosen, _ = term(dictionary, h, h, 2)
    assert int(chosen.n_dropped) == 0
