"""An initialisation never looks at massive tokens, whether a rule leaves them out of training or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import DataError
from pipeline.initialization.compose import build_base, initialize_
from pipeline.initialization.sample import Sample, make_sample
from pipeline.norms.normalizer import Normalizer
from pipeline.params.schema import InitializerParams
from tests.dictionaries.test_contract import KIND_CONFIGS
from tests.initialization.cases import D, N, config, rows
from tests.messages import saying

MEDIAN, EVERY = 8.0, 17
ORDINARY = torch.arange(N) % EVERY > 0
both = pytest.mark.parametrize("factor", [None, 10.0], ids=["off", "rule"])


def massive(x: Tensor, axis: int = 1) -> Tensor:
    """`x` [N, ...], every EVERY-th row made 5,000 long."""
    x = x.clone()
    x[::EVERY, ..., axis] += 5000.0
    return x


def normalizer(made: Dictionary, factor: float | None) -> Normalizer:
    widths = dict.fromkeys(made.hooks_out, made.config.d_out) | dict.fromkeys(made.hooks_in, made.config.d_in)
    about = {"mean_norm": MEDIAN, "mean_square": MEDIAN**2, "median_norm": MEDIAN, "max_norm_factor": factor}
    return Normalizer(made.config, {hook: {**about, "d": width} for hook, width in widths.items()})


def started(
    fields: dict[str, Any], x: Tensor, y: Tensor | None, factor: float | None, target_l0: float | None = None, **options: Any
) -> Dictionary:
    params = InitializerParams(**options)
    made = build_base(config(**fields), params, seed=0)
    taken = make_sample(made, normalizer(made, factor), x, x if y is None else y)
    initialize_(made, taken, params, batch_rows=64, seed=0, target_l0=target_l0)
    return made


def same(a: Dictionary, b: Dictionary) -> bool:
    other = b.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.state_dict().items())


@both
@pytest.mark.parametrize(
    ("fields", "target_l0", "options"),
    [
        ({"apply_b_dec_to_input": True}, None, {"initialize_W_D_with_activations": True, "bias_init_method": "mean"}),
        ({}, None, {"bias_init_method": "geometric_median"}),
        ({}, None, {"initialize_W_D_with_active_subspace": True, "d_active_subspace": 3}),
        ({}, None, {"init_encoder_bias_with_mean_hidden_pre": True, "grid_search_init_norm": True}),
        ({"act_fn": "jumprelu"}, 3.0, {"init_log_jumprelu_threshold_value": -2.0}),
    ],
    ids=["rows and mean", "median", "subspace", "encoder bias and norm", "thresholds"],
)
def test_every_strategy_starts_as_on_the_ordinary_rows(
    fields: dict[str, Any], target_l0: float | None, options: dict[str, Any], factor: float | None
) -> None:
    x = rows()
    found = started(fields, massive(x), None, factor, target_l0, **options)
    assert same(found, started(fields, x[ORDINARY], None, factor, target_l0, **options))
    # The test would see a difference: these rows without their median, by which massive ones are told.
    params = InitializerParams(**options)
    blind = build_base(config(**fields), params, seed=0)
    everything = make_sample(blind, Normalizer(blind.config, {"input": MEDIAN}), massive(x), massive(x))
    initialize_(blind, everything, params, batch_rows=64, seed=0, target_l0=target_l0)
    assert not same(found, blind)


@both
@pytest.mark.parametrize("place", ["input", "label"])
@pytest.mark.parametrize("kind", ["transcoder", "clt", "crosscoder"])
def test_a_token_is_left_out_of_inputs_and_labels_alike(kind: str, place: str, factor: float | None) -> None:
    fields = {"kind": kind, **KIND_CONFIGS[kind]}
    made = build_base(config(**fields), InitializerParams(), seed=0)
    n_in, n_out = len(made.hooks_in), len(made.hooks_out)
    x = rows(N * n_in).reshape(N, n_in, D).squeeze(1)
    y = x if kind == "crosscoder" else rows(N * n_out, made.config.d_out, seed=1).reshape(N, n_out, -1).squeeze(1)
    at = (x if place == "input" else y).clone()
    (at if n_in == 1 else at[:, -1])[::EVERY] *= 1000.0
    inputs, labels = (at, at) if y is x else (at, y) if place == "input" else (x, at)
    found = make_sample(made, normalizer(made, factor), inputs, labels)
    wanted = make_sample(made, normalizer(made, factor), x[ORDINARY], x[ORDINARY] if y is x else y[ORDINARY])
    assert len(found) == int(ORDINARY.sum())
    for name in ("x", "y", "raw_x", "raw_y"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    assert torch.equal(found.raw_x, x[ORDINARY])
    assert (found.x is found.y) == (kind == "crosscoder")


@both
@pytest.mark.parametrize("place", ["input", "label"])
def test_contexts_keep_their_places(place: str, factor: float | None) -> None:
    """A kind that reads sequences: massive tokens are masked, beside those that were."""
    made = build_base(config(kind="lorsa", **KIND_CONFIGS["lorsa"]), InitializerParams(), seed=0)
    x, y = rows().reshape(20, 10, D), rows(seed=1).reshape(20, 10, D)
    at = massive((x if place == "input" else y).reshape(N, D)).reshape(20, 10, D)
    given = torch.arange(N).reshape(20, 10) % 7 > 0
    inputs, labels = (at, y) if place == "input" else (x, at)
    found: Sample = make_sample(made, normalizer(made, factor), inputs, labels, given)
    assert found.mask is not None
    assert found.mask.flatten().tolist() == [row % 7 > 0 and row % EVERY > 0 for row in range(N)]
    assert torch.equal(found.raw_x, inputs)
    assert given.flatten().tolist() == [row % 7 > 0 for row in range(N)]  # the caller's own


@both
def test_nothing_but_massive_tokens_is_refused(factor: float | None) -> None:
    made = build_base(config(), InitializerParams(), seed=0)
    x = 1000 * rows()
    with pytest.raises(DataError, match=saying("initializer:", "masked", "initializer.tokens")):
        make_sample(made, normalizer(made, factor), x, x)
