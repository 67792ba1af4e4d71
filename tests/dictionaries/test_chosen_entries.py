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
from pipeline.dictionaries.sae import SparseAutoencoder
from pipeline.kernels.cpu import CpuEntries
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
    with mock.patch.object(CpuEntries, "entries_pay", return_value=wanted):
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
        made += [codes.uses(codes.f.shape[2:]), codes.smallest_active()]
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
            assert not dictionary.run(x)[0].f.any()


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


# Gates without a budget: by entries where nothing but the reconstruction is differentiated ------------------------------

LINEAR = [kind for kind in KINDS if kind.startswith(("sae", "glu", "transcoder"))]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [0.3, 2.0])
@pytest.mark.parametrize("kind", LINEAR)
def test_thresholds_get_the_gradient_of_the_dense_gate(kind: str, window: float, masked: bool) -> None:
    found = []
    for entries in (True, False):
        dictionary = filled(kind, "jumprelu", 2)
        with torch.no_grad():
            dictionary.log_jumprelu_threshold.copy_(torch.rand(F, generator=generator(3, "t"), dtype=torch.float64))
        x, mask = inputs(dictionary)
        given = mask if masked else None
        with mock.patch("pipeline.kernels.cpu.CROSSOVER", 1.0 if entries else 0.0):
            codes = dictionary.step_codes(x, given, Gate(window=window), decoded_only=True)
            x_hat = dictionary.reconstructions(codes, x)[-1]
        assert (codes.entries is not None) == entries
        weights = torch.randn(x_hat.shape, generator=generator(2, "weights"), dtype=torch.float64)
        ((x_hat * weights).sum() + x_hat.square().sum()).backward()
        gradient = dictionary.log_jumprelu_threshold.grad
        assert gradient is not None
        assert gradient.abs().max() > 0
        made = [x_hat, codes.f, codes.n_active(), codes.fired((F,))]
        found.append([*made, *(parameter.grad for parameter in dictionary.parameters())])
    compare(*found)


def test_threshold_gradient_of_more_tokens_than_are_looked_at_in_one_go() -> None:
    from pipeline.kernels.threshold_gradient import ROWS, with_threshold_gradient

    n, g = 2 * ROWS + 5, generator(0, "rows")
    z, W = torch.randn(n, 7, generator=g, dtype=torch.float64), torch.randn(7, 3, generator=g, dtype=torch.float64)
    scale, grad = torch.rand(7, generator=g, dtype=torch.float64) + 0.5, torch.randn(n, 3, generator=g, dtype=torch.float64)
    t = (torch.rand(7, generator=g, dtype=torch.float64) - 0.5).requires_grad_()
    with_threshold_gradient(torch.zeros(n, 3, dtype=torch.float64), t, W, z, scale, 0.8).backward(grad)
    wanted = [0.0] * 7
    for i in range(7):
        theta = float(t[i].detach().exp())
        for b in range(n):
            if abs(float(z[b, i]) - theta) < 0.4 and float(z[b, i]) > 0:
                wanted[i] -= theta * theta / 0.8 / float(scale[i]) * float(grad[b] @ W[i])
    torch.testing.assert_close(t.grad, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["sae", "clt", "crosscoder"])
def test_relu_by_its_entries(kind: str) -> None:
    found = []
    for crossover in (1.0, 0.0):
        dictionary = filled(kind, "relu", 2)
        x, mask = inputs(dictionary)
        with mock.patch("pipeline.kernels.cpu.CROSSOVER", crossover):
            codes = dictionary.step_codes(x, mask, decoded_only=True)
            x_hat = dictionary.reconstructions(codes, x)[-1]
        assert (codes.entries is not None) == (crossover > 0)
        x_hat.square().sum().backward()
        found.append([x_hat, codes.f, *(parameter.grad for parameter in dictionary.parameters())])
    compare(*found)


def test_a_kind_that_overrides_a_dense_way_alone_is_not_computed_by_the_other() -> None:
    """Its entries come from the dense encoder, or nothing is done by entries: never by what it has inherited."""

    class Louder(SparseAutoencoder):
        def pre_activations(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
            return 3.0 * super().pre_activations(x, padding)

    class Negative(SparseAutoencoder):
        def decode_linear(self, f: Tensor) -> Tensor:
            return -super().decode_linear(f)

    for cls in (Louder, Negative):
        plain = filled("sae", "topk", 2)
        other = cls(plain.config)
        other.load_weights_(plain.state_dict())
        x, _ = inputs(other)
        torch.testing.assert_close(other.run(x)[1], other(x), rtol=1e-10, atol=1e-10)
