"""Strategies together: masks, sequences, several options at once, the same seed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pipeline.errors import DataError, ParamsError
from pipeline.initialization.compose import build_base, check, initialize_
from pipeline.initialization.weights import parts_of
from pipeline.params.schema import InitializerParams
from tests.initialization.cases import D, config, initialized, rows, sample
from tests.messages import saying

OPTIONS = (
    {},
    {"initialize_W_D_with_activations": True, "bias_init_method": "mean", "init_encoder_bias_with_mean_hidden_pre": True},
    {"initialize_W_D_with_active_subspace": True, "bias_init_method": "geometric_median"},
    {"grid_search_init_norm": True, "init_encoder_bias_with_mean_hidden_pre": True},
)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("act_fn", ["topk", "relu"])
def test_sequences_and_masks_are_kept_rows(options: dict[str, object], act_fn: str) -> None:
    """[n, T, D] with a mask starts as the kept rows alone do, whatever masked positions hold."""
    x = rows(60).reshape(10, 6, D)
    mask = torch.rand(10, 6, generator=torch.Generator().manual_seed(0)) < 0.7
    wild = torch.where(mask[..., None], x, 1e4)
    params = InitializerParams(**options)  # type: ignore[arg-type]
    found = []
    for activations, kept in ((x[mask], None), (wild, mask)):
        made = build_base(config(act_fn=act_fn), params, seed=3)
        taken = sample(made, activations, mask=kept)
        assert len(taken) == int(mask.sum())
        initialize_(made, taken, params, batch_rows=20, seed=3)
        found.append(made.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_seed_gives_the_same_bits(options: dict[str, object]) -> None:
    first, second = (initialized({}, **options)[0].state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_fully_masked_sample_is_refused() -> None:
    made = build_base(config(), InitializerParams(), seed=0)
    with pytest.raises(DataError, match=saying("initializer:", "masked", "initializer.tokens")):
        sample(made, rows(12).reshape(2, 6, D), mask=torch.zeros(2, 6, dtype=torch.bool))


def test_two_ways_to_set_the_decoder_are_refused() -> None:
    made = build_base(config(), InitializerParams(), seed=0)
    fields = {name: getattr(InitializerParams(), name) for name in InitializerParams().to_dict()}
    both = fields | {"initialize_W_D_with_activations": True, "initialize_W_D_with_active_subspace": True}
    with pytest.raises(
        ParamsError, match=saying("initializer.initialize_W_D_with_active_subspace:", "initialize_W_D_with_activations")
    ):
        check(made, SimpleNamespace(**both), has_model=False)


def test_a_kind_with_other_tensors_is_refused_by_name() -> None:
    made = build_base(config(), InitializerParams(), seed=0)
    made.parts = lambda: []  # type: ignore[method-assign]
    with pytest.raises(ParamsError, match=saying("initializer.grid_search_init_norm:", "dictionary.kind 'sae'")):
        parts_of(made, "grid_search_init_norm")


def test_activations_start_lower_than_a_drawn_decoder() -> None:
    def fvu(**options: object) -> float:
        made, taken, _ = initialized({}, **options)
        return float((made(taken.x).detach() - taken.y).square().sum() / (taken.y - taken.y.mean(0)).square().sum())

    rich = {"bias_init_method": "mean", "init_encoder_bias_with_mean_hidden_pre": True}
    assert fvu(initialize_W_D_with_activations=True, **rich) < 1.0 < fvu()
    assert fvu(grid_search_init_norm=True, **rich) < 1.0
