"""Strategies on the kinds whose encoder is drawn apart from the decoder: it stays theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.initialization.compose import build_base, initialize_
from pipeline.initialization.mlp_responses import set_decoder_rows_
from pipeline.initialization.sample import Sample
from pipeline.losses.reconstruction import reconstruction_loss
from pipeline.params.schema import InitializerParams
from pipeline.seeding import generator
from tests.initialization.cases import rows, sample
from tests.initialization.test_attention import CONFIG as LORSA
from tests.initialization.test_attention import D, contexts, model_attention

HOOKS = tuple(f"blocks.{layer}.ln2.hook_out" for layer in range(3))
CLT: dict[str, Any] = {
    "kind": "clt",
    "hook_points_in": HOOKS,
    "hook_points_out": tuple(hook.replace("ln2.hook_out", "hook_mlp_out") for hook in HOOKS),
    "d_in": D,
    "d_sae": 16,
    "act_fn": "topk",
    "top_k": 4,
}
ENCODER = {"clt": "W_E", "lorsa": "w_V"}


def started(config: dict[str, Any], attention: bool = False, **options: Any) -> tuple[Dictionary, Sample, dict[str, float]]:
    """The dictionary after the options' strategies, its sample and the findings."""
    params = InitializerParams(initialize_lorsa_with_mhsa=attention, **options)
    made = build_base(config, params, seed=0)
    x = contexts() if config is LORSA else rows(900, D).reshape(300, 3, D)
    taken = sample(made, x, 2 * x.flip(-1))
    model = model_attention() if attention else None
    return made, taken, initialize_(made, taken, params, batch_rows=60, seed=0, model_attention=model)


def encoder(made: Dictionary) -> Tensor:
    return made.get_parameter(ENCODER[made.config.kind]).detach()


@pytest.mark.parametrize("config", [CLT, LORSA], ids=["clt", "lorsa"])
def test_the_grid_search_leaves_an_encoder_that_was_drawn(config: dict[str, Any]) -> None:
    made, taken, found = started(config, grid_search_init_norm=True)
    plain, _, _ = started(config)
    assert torch.equal(encoder(made), encoder(plain))
    norms = made.decoder_norms().detach()
    torch.testing.assert_close(norms, torch.full_like(norms, found["grid_search_norm"]))
    batch = taken.batch(60, made.reads_sequences)
    assert float(reconstruction_loss(made(batch.x).detach(), batch.y)) == pytest.approx(found["grid_search_l_rec"], rel=1e-5)


def test_the_grid_search_scales_all_that_a_feature_writes() -> None:
    """The directions of a cross-layer feature's rows to each layer keep their proportions."""
    made, _, _ = started(CLT, grid_search_init_norm=True)
    plain, _, _ = started(CLT)
    ratio = made.decoder_norms() / plain.decoder_norms()
    for target in range(3):
        torch.testing.assert_close(made.written_rows(target), plain.written_rows(target) * ratio[..., None])


def test_the_grid_search_leaves_the_values_that_came_from_the_models_heads() -> None:
    made, _, _ = started(LORSA, attention=True, grid_search_init_norm=True)
    heads, _, _ = started(LORSA, attention=True)
    direction = torch.nn.functional.normalize(encoder(made), dim=-1)
    torch.testing.assert_close(direction, torch.nn.functional.normalize(encoder(heads), dim=-1))


@torch.no_grad()
def test_rows_of_each_layer_are_the_responses_of_its_own_mlp() -> None:
    """By the formula, feature by feature, with MLPs that differ; blocks to later layers stay as drawn."""
    made = build_base(CLT, InitializerParams(), seed=0)
    blocks = [made.get_parameter(f"W_D.{layer}") for layer in range(3)]
    drawn = [block.clone() for block in blocks]
    x = rows(900, D).reshape(300, 3, D)
    weights = torch.randn(3, D, D, generator=generator(0, "tests", "mlps"))
    set_decoder_rows_(made, sample(made, x, 2 * x.flip(-1)), [lambda x, w=w: torch.tanh(x @ w) for w in weights])
    for layer, w in enumerate(weights):
        mean = x[:, layer].mean(0)
        spread = (x[:, layer] - mean).square().sum(-1).mean().sqrt()
        for i in range(16):
            e = made.get_parameter("W_E")[layer, :, i]
            response = torch.tanh((mean + spread * e / e.norm()) @ w) - torch.tanh(mean @ w)
            wanted = response / (spread * e.norm())  # both scales are those of mean norm 4: they cancel
            torch.testing.assert_close(blocks[layer][layer, i], wanted, rtol=1e-3, atol=1e-5)
        assert torch.equal(blocks[layer][:layer], drawn[layer][:layer])


@pytest.mark.parametrize("blocks", ["drawn", "by_sources", "zero"])
@torch.no_grad()
def test_every_row_that_writes_a_layer_is_in_its_labels_active_subspace(blocks: str) -> None:
    """Of every source, cross-layer blocks too: all directions are as long as drawn, up to the start's common scale."""
    options = {"cross_layer_decoders": blocks}
    made, taken, _ = started(CLT, initialize_W_D_with_active_subspace=True, d_active_subspace=2, **options)
    plain, _, _ = started(CLT, **options)
    scale = float(made.written_rows(0)[0].norm() / plain.written_rows(0)[0].norm())
    for target in range(3):
        label = taken.y[:, target].double()
        directions = torch.linalg.svd(label - label.mean(0), full_matrices=False).Vh[:2].float()
        rows, drawn = (kind.written_rows(target).detach() for kind in (made, plain))
        torch.testing.assert_close((rows @ directions.T) @ directions, rows, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(rows.norm(dim=-1), drawn.norm(dim=-1) * scale, rtol=1e-4, atol=1e-7)
        present = rows.norm(dim=-1).amin(-1) > 0
        assert present.tolist() == [source == target or (blocks != "zero" and source < target) for source in range(3)]


@pytest.mark.parametrize("config", [CLT, LORSA], ids=["clt", "lorsa"])
def test_the_active_subspace_is_of_the_rows_only(config: dict[str, Any]) -> None:
    made, _, found = started(config, initialize_W_D_with_active_subspace=True, d_active_subspace=2)
    plain, _, _ = started(config)
    assert found["d_active_subspace"] == 2
    ratio = encoder(made) / encoder(plain)  # the least-squares start gives encoder and decoder one mean length
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio.mean())))
