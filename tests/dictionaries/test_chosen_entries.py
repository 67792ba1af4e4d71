"""A step by the chosen entries against the same step by dense matrices: values and gradients agree to rounding, for every kind,
every budgeted gate, masks, GLU, skip terms, nested widths and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary, Gate
from pipeline.dictionaries.build import build_dictionary
from pipeline.params.gates import GATES
from pipeline.seeding import generator

D, F, CONTEXTS, TOKENS = 5, 24, 3, 4
HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
KINDS: dict[str, dict[str, Any]] = {
    "sae": {"kind": "sae"},
    "sae without norm": {"kind": "sae", "sparsity_include_decoder_norm": False},
    "sae, b_D at the input": {"kind": "sae", "apply_b_dec_to_input": True},
    "glu": {"kind": "sae", "use_glu_encoder": True, "apply_b_dec_to_input": True},
    "transcoder with skip": {"kind": "transcoder", "skip": True, "d_out": 4},
    "clt": {"kind": "clt", "hook_points_in": HOOKS, "hook_points_out": [f"{hook}.out" for hook in HOOKS]},
    "crosscoder": {"kind": "crosscoder", "hook_points_in": HOOKS},
    "crosscoder, sum of norms": {"kind": "crosscoder", "hook_points_in": HOOKS, "crosscoder_norm": "sum"},
    "lorsa": {"kind": "lorsa", "n_qk_heads": 2, "d_qk_head": 4, "n_ctx": TOKENS, "positional_embedding_type": "none"},
}
BUDGETED = [name for name in GATES.names() if GATES.get(name).budgeted]
CASES = [(kind, gate) for kind in KINDS for gate in BUDGETED if kind == "clt" or not GATES.get(gate).joint_layers]


@contextmanager
def by_entries(wanted: bool) -> Iterator[None]:
    with mock.patch("pipeline.dictionaries.base.entries_pay", return_value=wanted):
        yield


def filled(kind: str, act_fn: str, k: int) -> Dictionary:
    dictionary = build_dictionary({"d_in": D, "d_sae": F, "dtype": "float64", **KINDS[kind], "act_fn": act_fn, "top_k": k})
    g = generator(0, kind)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return dictionary


def inputs(dictionary: Dictionary) -> tuple[Tensor, Tensor]:
    """Input [contexts, tokens, (L,) D] and a mask [contexts, tokens]."""
    g = generator(1, "inputs")
    hooks = () if dictionary.input_dims == 1 else (len(dictionary.hooks_in),)
    x = torch.randn(CONTEXTS, TOKENS, *hooks, D, generator=g, dtype=torch.float64)
    return x, torch.rand(CONTEXTS, TOKENS, generator=g) < 0.7


def compare(found: list[Tensor | None], wanted: list[Tensor | None]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("kind", "act_fn"), CASES)
def test_values_and_gradients_agree(kind: str, act_fn: str, masked: bool, k: int) -> None:
    found = []
    for entries in (True, False):
        dictionary = filled(kind, act_fn, k)
        x, mask = inputs(dictionary)
        x.requires_grad_()
        with by_entries(entries):
            codes, x_hat = dictionary.run(x, mask if masked else None)
        assert (codes.entries is not None) == entries
        weights = torch.randn(x_hat.shape, generator=generator(2, "weights"), dtype=torch.float64)
        loss = (x_hat * weights).sum() + x_hat.square().sum()
        loss.backward()
        made = [x_hat, codes.f, codes.h, codes.z, codes.gating, codes.norms, codes.n_active(), codes.fired(codes.f.shape[2:])]
        found.append([*made, x.grad, *(parameter.grad for parameter in dictionary.parameters())])
    compare(*found)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("kind", "act_fn"), CASES)
def test_what_a_loss_makes_of_the_dense_stages_has_the_same_gradient(kind: str, act_fn: str, masked: bool) -> None:
    """f, h and z of a sparse step are made when they are asked for, and differentiable."""
    found = []
    for entries in (True, False):
        dictionary = filled(kind, act_fn, 2)
        x, mask = inputs(dictionary)
        with by_entries(entries):
            codes, x_hat = dictionary.run(x, mask if masked else None)
        loss = x_hat.square().sum() + (codes.f * codes.norms).sum() + codes.h.square().sum() + codes.z.tanh().sum()
        loss.backward()
        found.append([loss, *(parameter.grad for parameter in dictionary.parameters())])
    compare(*found)


@pytest.mark.parametrize(("kind", "act_fn"), CASES)
def test_nested_widths_agree(kind: str, act_fn: str) -> None:
    found = []
    for entries in (True, False):
        dictionary = filled(kind, act_fn, 3)
        x, mask = inputs(dictionary)
        with by_entries(entries):
            codes = dictionary.step_codes(x, mask)
            made = dictionary.reconstructions(codes, x, (3, 10, F))
        by_hand = []
        for width in (3, 10, F):
            f = codes.f.clone()
            f[..., width:] = 0
            by_hand.append(dictionary.reconstruct(f, x))
        compare(list(made), list(by_hand))
        sum((i + 1) * r.square().sum() for i, r in enumerate(made)).backward()  # type: ignore[union-attr]
        found.append([*made, *(parameter.grad for parameter in dictionary.parameters())])
    compare(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_of_nothing_but_masked_tokens_and_of_nothing_positive(kind: str) -> None:
    for act_fn in ("topk", "batchtopk"):
        dictionary = filled(kind, act_fn, 2)
        x, mask = inputs(dictionary)
        with by_entries(True):
            codes, x_hat = dictionary.run(x, torch.zeros_like(mask))
            assert not codes.f.any()
            assert not codes.fired(codes.f.shape[2:]).any()
            torch.testing.assert_close(x_hat, dictionary.reconstruct(torch.zeros_like(codes.f), x))
            x_hat.sum().backward()
            with torch.no_grad():
                dictionary.encoder_bias().fill_(-1e4)
            assert not dictionary.run(x)[0].f.any() or kind == "glu"


@pytest.mark.parametrize("kind", ["sae", "clt"])
def test_another_gate_of_the_step(kind: str) -> None:
    """A scheduled k, and a TopK start of a gate that is none."""
    from pipeline.activation_functions.interface import activation_function

    found = []
    for entries in (True, False):
        dictionary = filled(kind, "relu", 2)
        x, mask = inputs(dictionary)
        with by_entries(entries):
            codes, x_hat = dictionary.run(x, mask, Gate(top_k=3, activation=activation_function("topk")))
        assert int(codes.n_active().max()) == 3
        found.append([x_hat, codes.f])
    compare(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_lie_in_memory_as_their_parameters_do(kind: str) -> None:
    """The fused optimiser goes through both as they lie in memory; a copy into the other order would cost a pass."""
    dictionary = filled(kind, "topk", 2)
    x, _ = inputs(dictionary)
    with by_entries(True):
        dictionary.run(x)[1].square().sum().backward()
    for name, parameter in dictionary.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name
