"""Each strategy against what it promises, written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from pipeline.errors import NumericsError, ParamsError
from pipeline.initialization.active_subspace import principal_directions
from pipeline.initialization.compose import build_base
from pipeline.initialization.decoder_bias import geometric_median
from pipeline.initialization.mlp_responses import set_decoder_rows_ as set_mlp_rows_
from pipeline.losses.reconstruction import reconstruction_loss
from pipeline.params.schema import InitializerParams
from tests.initialization.cases import D, F, config, initialized, rows
from tests.messages import saying


def weights(made: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in made.named_parameters()}


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize
    return unit(a, dim=-1) @ unit(b, dim=-1).T


def test_geometric_median_minimises_the_sum_of_distances() -> None:
    x = torch.cat([rows(101), torch.full((5, D), 80.0)])
    found = geometric_median(x)
    assert found.converged

    def cost(point: torch.Tensor) -> float:
        return float((x.double() - point.double()).norm(dim=-1).sum())

    best = cost(found.point)
    draw = torch.Generator().manual_seed(0)
    for scale in (1e-1, 1e-2):
        for _ in range(20):
            assert best <= cost(found.point + scale * torch.randn(D, generator=draw)) + 1e-4
    assert best < cost(x.mean(0))
    assert found.point.dtype == torch.float32


def test_geometric_median_of_visible_cases() -> None:
    line = torch.tensor([[0.0], [1.0], [10.0]])  # the median, on which a row lies
    assert float(geometric_median(line).point) == pytest.approx(1.0, abs=1e-4)
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    torch.testing.assert_close(geometric_median(square).point, torch.tensor([1.0, 1.0]))
    same = geometric_median(torch.ones(4, 2))
    assert same.converged
    torch.testing.assert_close(same.point, torch.ones(2))


@pytest.mark.parametrize("method", ["all_zero", "mean", "geometric_median"])
def test_decoder_bias(method: str) -> None:
    made, sample, _ = initialized({}, bias_init_method=method)
    wanted = {"all_zero": torch.zeros(D), "mean": sample.y.mean(0), "geometric_median": geometric_median(sample.y).point}
    torch.testing.assert_close(weights(made)["b_D"], wanted[method])


def test_rows_are_directions_of_centred_activations_with_one_factor() -> None:
    made, sample, found = initialized({}, initialize_W_D_with_activations=True, bias_init_method="mean")
    w = weights(made)
    matches = cosines(w["W_D"], sample.y - sample.y.mean(0)).max(1)
    torch.testing.assert_close(matches.values, torch.ones(F))
    assert len(set(matches.indices.tolist())) == F
    lengths = w["W_D"].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full((F,), found["least_squares_factor"] ** 0.5))
    torch.testing.assert_close(w["W_E"], w["W_D"].T)


@pytest.mark.parametrize("act_fn", ["topk", "batchtopk", "relu", "jumprelu"])
def test_the_factor_is_the_least_squares_one(act_fn: str) -> None:
    threshold = {"init_log_jumprelu_threshold_value": math.log(0.1)} if act_fn == "jumprelu" else {}
    made, sample, _ = initialized(
        {"act_fn": act_fn},
        initialize_W_D_with_activations=True,
        init_encoder_bias_with_mean_hidden_pre=True,
        bias_init_method="mean",
        **threshold,
    )
    x, y = sample.x[:64], sample.y[:64]
    f = made.encode(x).detach()
    part, b = made.decode_linear(f).detach(), weights(made)["b_D"]
    losses = [float((b + a * part - y).square().sum()) for a in (0.9, 0.99, 1.0, 1.01, 1.1)]
    tolerance = 1e-2 if act_fn == "jumprelu" else 1e-5  # thresholds: repeated until the factor is 1 to 1e-3
    assert losses[2] <= min(losses) * (1 + tolerance)


def test_an_encoder_of_its_own_gets_a_scale_all_the_same() -> None:
    made, sample, _ = initialized({}, initialize_W_D_with_activations=True, init_encoder_with_decoder_transpose=False)
    drawn, _, _ = initialized({}, init_encoder_with_decoder_transpose=False)
    w = weights(made)
    ratio = w["W_E"] / weights(drawn)["W_E"]
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    # Neither side is much longer than the other, and the gate, z = h n, is what it was at the drawn encoder.
    torch.testing.assert_close(w["W_E"].norm(dim=0).mean(), w["W_D"].norm(dim=-1).mean())
    part = made.decode_linear(made.encode(sample.x[:64])).detach()
    assert 0.0 < float(part.square().sum() / sample.y[:64].square().sum()) < 1.01


def test_a_transcoder_reads_where_its_label_was_written() -> None:
    x, y = rows(), rows(seed=1)
    fields = {"kind": "transcoder", "hook_point_out": "output"}
    made, sample, _ = initialized(fields, x, y, initialize_W_D_with_activations=True)
    w = weights(made)
    written = cosines(w["W_D"], sample.y - sample.y.mean(0)).max(1)
    read = cosines(w["W_E"].T, sample.x - sample.x.mean(0)).max(1)
    assert written.indices.tolist() == read.indices.tolist()
    torch.testing.assert_close(read.values, torch.ones(F))
    torch.testing.assert_close(w["W_E"].norm(dim=0), w["W_D"].norm(dim=-1))


def test_equal_activations_are_used_once_and_the_rest_keeps_its_draw() -> None:
    x = torch.cat([rows(1).expand(50, D), rows(9, seed=3), rows(1, seed=4).expand(20, D)])
    made, sample, _ = initialized({}, x, initialize_W_D_with_activations=True)
    similar = cosines(weights(made)["W_D"], weights(made)["W_D"]).fill_diagonal_(0.0)
    assert float(similar.max()) < 1 - 1e-5
    matches = cosines(weights(made)["W_D"], sample.y - sample.y.mean(0)).max(1).values
    assert int((matches > 1 - 1e-5).sum()) == 11
    with pytest.raises(NumericsError, match=saying("initializer.initialize_W_D_with_activations:", 40, "equal")):
        initialized({}, torch.ones(40, D), initialize_W_D_with_activations=True)
    with pytest.raises(NumericsError, match=saying("initializer.initialize_W_D_with_activations:", 1, "initializer.tokens")):
        initialized({}, rows(1), initialize_W_D_with_activations=True)


@pytest.mark.parametrize("d_active", [2, None])
def test_active_subspace_holds_every_row(d_active: int | None) -> None:
    x = rows() * torch.tensor([1.0, 1.0, 1.0, 1e-3, 1e-3, 1e-3])
    made, sample, found = initialized({}, x, initialize_W_D_with_active_subspace=True, d_active_subspace=d_active)
    base, _, _ = initialized({}, x)
    values, vectors = principal_directions(sample.y)
    n = d_active or math.ceil(math.exp(-float((values / values.sum() * (values / values.sum()).log()).sum())))
    assert found["d_active_subspace"] == n
    assert n <= 3
    w, drawn = weights(made), weights(base)
    factor = found["least_squares_factor"]
    outside = w["W_D"].double() @ vectors[n:].double().T
    assert float(outside.abs().max()) < 1e-5
    torch.testing.assert_close(w["W_D"].norm(dim=-1), drawn["W_D"].norm(dim=-1) * factor**0.5)
    torch.testing.assert_close(w["W_E"], w["W_D"].T)
    reconstruction = made.decode_linear(made.encode(sample.x)).detach()
    best = float((sample.y * reconstruction).sum() / reconstruction.square().sum())
    assert best == pytest.approx(1.0, abs=0.05)  # judged on a batch of the sample


def test_the_active_subspace_of_a_transcoder_is_its_labels() -> None:
    x, y = rows(), rows(seed=1).flip(-1) * torch.tensor([1.0, 1.0, 0.1, 0.1, 0.1, 0.1])
    fields = {"kind": "transcoder", "hook_point_out": "output"}
    made, sample, _ = initialized(fields, x, y, initialize_W_D_with_active_subspace=True, d_active_subspace=2)
    centred = (sample.y - sample.y.mean(0)).double()
    span = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    written = weights(made)["W_D"].double()
    torch.testing.assert_close(written @ span.T @ span, written, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"use_glu_encoder": True}, {"apply_b_dec_to_input": True}])
def test_mean_pre_activation_becomes_zero(fields: dict[str, bool]) -> None:
    made, sample, _ = initialized(fields, init_encoder_bias_with_mean_hidden_pre=True, bias_init_method="mean")
    mean = made.pre_activations(sample.x).detach().double().mean(0)
    assert float(mean.abs().max()) < 1e-4
    fresh, _, _ = initialized(fields)
    assert float(fresh.pre_activations(sample.x).detach().mean(0).abs().max()) > 0.1


def test_grid_search_looks_between_its_coarse_norms() -> None:
    """The best norm of a straight line of losses' minimum lies off the coarse grid, and the fine grid comes nearer."""
    made, sample, found = initialized({}, grid_search_init_norm=True)
    coarse = [0.1 + 4.9 * i / 49 for i in range(50)]
    assert min(abs(found["grid_search_norm"] - norm) for norm in coarse) > 1e-3
    directions = torch.nn.functional.normalize(weights(made)["W_D"], dim=-1)
    losses = []
    for norm in coarse:
        with torch.no_grad():
            made.get_parameter("W_D").copy_(directions * norm)
            made.get_parameter("W_E").copy_(norm * directions.T)
        losses.append(float(reconstruction_loss(made(sample.x[:64]).detach(), sample.y[:64])))
    assert found["grid_search_l_rec"] < min(losses)


def test_grid_search_finds_the_best_norm() -> None:
    options = {"init_encoder_with_decoder_transpose_factor": 0.5, "init_encoder_bias_with_mean_hidden_pre": True}
    made, sample, found = initialized({}, grid_search_init_norm=True, **options)
    w, norm = weights(made), found["grid_search_norm"]
    torch.testing.assert_close(w["W_D"].norm(dim=-1), torch.full((F,), norm))
    torch.testing.assert_close(w["W_E"], 0.5 * w["W_D"].T)
    assert float(made.pre_activations(sample.x).detach().mean(0).abs().max()) < 1e-4
    loss = float(reconstruction_loss(made(sample.x[:64]).detach(), sample.y[:64]))
    assert loss == pytest.approx(found["grid_search_l_rec"], rel=1e-6)
    directions = torch.nn.functional.normalize(w["W_D"], dim=-1)
    for i in range(50):
        other = 0.1 + 4.9 * i / 49
        with torch.no_grad():
            made.get_parameter("W_D").copy_(directions * other)
            made.get_parameter("W_E").copy_(0.5 * other * directions.T)
            made.get_parameter("b_E").sub_(made.pre_activations(sample.x).mean(0))
        assert loss <= float(reconstruction_loss(made(sample.x[:64]).detach(), sample.y[:64])) * (1 + 1e-5)


def mlp_rows(
    mlp: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, W_E: torch.Tensor, s_in: float, s_out: float
) -> torch.Tensor:
    """s_out (MLP(m + d e_i) - MLP(m)) / (d s_in ||W_E[:, i]||) of each feature."""
    mean, spread = x.mean(0), (x - x.mean(0)).square().sum(-1).mean().sqrt()
    rising = torch.nn.functional.normalize(W_E, dim=0).T
    response = mlp(mean + spread * rising) - mlp(mean)
    return s_out * response / (spread * s_in * W_E.norm(dim=0))[:, None]


def test_mlp_responses_are_written_out() -> None:
    matrix = torch.randn(D, 4, generator=torch.Generator().manual_seed(0))

    def mlp(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x @ matrix)

    x = rows()
    fields = {
        "kind": "transcoder",
        "hook_point_in": "blocks.1.ln2.hook_out",
        "hook_point_out": "blocks.1.hook_mlp_out",
        "d_out": 4,
    }
    made, sample, _ = initialized(fields, x, mlp(x), mlp=mlp, initialize_tc_with_mlp=True)
    w = weights(made)
    s_in, s_out = math.sqrt(D) / 4.0, math.sqrt(4) / 4.0
    wanted = mlp_rows(mlp, x, w["W_E"], s_in, s_out)
    alone = build_base(config(**fields), InitializerParams(), seed=0)  # before the one factor that allows for many at once
    set_mlp_rows_(alone, sample, [mlp])
    torch.testing.assert_close(weights(alone)["W_D"], mlp_rows(mlp, x, weights(alone)["W_E"], s_in, s_out))
    ratio = w["W_D"] / wanted
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=1e-6)
    assert sample.raw(made.parts()[0]).scale_in == pytest.approx(s_in, rel=1e-6)
    # A better start than any decoder without the MLP: less error than the labels' own variance.
    error = (made(sample.x).detach() - sample.y).square().sum()
    assert float(error / (sample.y - sample.y.mean(0)).square().sum()) < 1.0


def test_a_start_without_active_features_has_no_scale() -> None:
    silent = {"act_fn": "jumprelu"}, {"init_log_jumprelu_threshold_value": 20.0}
    with pytest.raises(NumericsError, match=saying("initializer.initialize_W_D_with_activations:", "scale", 0, "active")):
        initialized(silent[0], initialize_W_D_with_activations=True, **silent[1])


@pytest.mark.parametrize(
    ("fields", "options", "key", "parts"),
    [
        (
            {"use_decoder_bias": False},
            {"bias_init_method": "mean"},
            "bias_init_method",
            ("mean", "dictionary.use_decoder_bias"),
        ),
        ({}, {"initialize_tc_with_mlp": True}, "initialize_tc_with_mlp", ("blocks.L.hook_mlp_out", "input")),
        ({}, {"init_log_jumprelu_threshold_value": -2.3}, "init_log_jumprelu_threshold_value", ("topk", "null")),
        ({}, {"initialize_W_D_with_active_subspace": True, "d_active_subspace": 7}, "d_active_subspace", (7, 6)),
        (
            {"kind": "transcoder", "hook_point_in": "blocks.1.ln2.hook_out", "hook_point_out": "blocks.1.hook_mlp_out"},
            {"initialize_tc_with_mlp": True, "model_layer": 0},
            "model_layer",
            (0, 1, "null", "initializer.initialize_tc_with_mlp: needs the language model"),
        ),
        (
            {"kind": "transcoder", "hook_point_in": "blocks.1.ln2.hook_out", "hook_point_out": "blocks.2.hook_mlp_out"},
            {"initialize_tc_with_mlp": True},
            "initialize_tc_with_mlp",
            ("blocks.L.hook_mlp_out", "blocks.1.ln2.hook_out", "blocks.2.hook_mlp_out"),
        ),
    ],
)
def test_nonsense_is_refused_by_name(
    fields: dict[str, object], options: dict[str, object], key: str, parts: tuple[object, ...]
) -> None:
    with pytest.raises(ParamsError, match=saying(f"initializer.{key}:", *parts)):
        initialized(fields, y=rows(seed=1) if "kind" in fields else None, **options)
