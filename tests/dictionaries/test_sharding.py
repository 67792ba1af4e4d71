"""Features dealt to processes: each has its part of every weight that has features, and together they have the dictionary."""

from __future__ import annotations

import pytest
import torch

from pipeline.dictionaries import sharding
from pipeline.dictionaries.build import build_dictionary, config_from_dict, dictionary_class
from pipeline.dictionaries.sae import SparseAutoencoder
from pipeline.dictionaries.sharding import check_divisible, deal_, feature_dim, of_all, weights_of_all
from pipeline.errors import ParamsError
from tests.dictionaries.make import read_by
from tests.dictionaries.test_contract import KIND_CONFIGS, every_case, make
from tests.training.threads import Place, in_mesh


@every_case
@pytest.mark.parametrize("model", [2, 4])
def test_parts_are_the_dictionary(kind: str, act_fn: str, model: int) -> None:
    whole = make(kind, act_fn, use_glu_encoder=True) if kind == "sae" else make(kind, act_fn)
    x = read_by(whole, 12)
    codes, x_hat = whole.run(x)

    def part(place: Place) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        own = whole.rebuilt(whole.state_dict())
        deal_(own, place.features)
        assert own.feature_shape == (*whole.feature_shape[:-1], whole.d_sae // model)
        for name, parameter in own.named_parameters():
            share = 1 if feature_dim(own, name) is None else model
            assert parameter.numel() * share == whole.get_parameter(name).numel()
            order = sorted(range(parameter.ndim), key=parameter.stride)
            assert order == sorted(range(parameter.ndim), key=whole.get_parameter(name).stride)
        found, reconstruction = own.run(x)
        again = of_all(own, weights_of_all(own))
        assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in again.state_dict().items())
        assert again.state_dict().keys() == whole.state_dict().keys()
        return found.f, reconstruction, own.decode(found.f)

    parts = in_mesh(1, model, part)
    torch.testing.assert_close(torch.cat([f for f, _, _ in parts], -1), codes.f, rtol=1e-12, atol=1e-12)
    for _, reconstruction, decoded in parts:
        torch.testing.assert_close(reconstruction, x_hat, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(decoded, whole.decode(codes.f), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["sae", "clt", "lorsa"])
def test_weights_are_put_together_a_block_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "BLOCK", 7)
    whole = make(kind, "jumprelu")

    def together(place: Place) -> dict[str, torch.Tensor]:
        own = whole.rebuilt(whole.state_dict())
        deal_(own, place.features)
        return weights_of_all(own, keeps=place.features.rank == 1)

    first, second = in_mesh(1, 2, together)
    assert first == {}
    assert second.keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second[name], tensor)


@pytest.mark.parametrize(
    ("kind", "size", "wanted"),
    [
        ("sae", 3, "distributed.model_parallel_size: 3 does not divide the 20 features of dictionary 'main'; write 1, 2, 4, 5"),
        ("clt", 8, "8 does not divide the 20 features of each layer of dictionary 'main'"),
        ("lorsa", 5, "5 does not divide the 4 query-key heads of dictionary 'main'; write 1, 2, 4"),
    ],
)
def test_what_does_not_divide_is_said(kind: str, size: int, wanted: str) -> None:
    config = config_from_dict({"kind": kind, "d_in": 6, "d_sae": 20, "act_fn": "topk", "top_k": 3, **KIND_CONFIGS[kind]})
    with pytest.raises(ParamsError, match=wanted):
        check_divisible(config, dictionary_class(kind), size)


def test_a_kind_that_does_not_say_is_refused() -> None:
    class Silent(SparseAutoencoder):
        FEATURE_DIMS = None

    made = build_dictionary({"kind": "sae", "d_in": 6, "d_sae": 20, "act_fn": "topk", "top_k": 3})
    with pytest.raises(ParamsError, match=r"dictionary.kind 'sae' cannot be dealt to processes; write 1"):
        check_divisible(made.config, Silent, 2)
    check_divisible(made.config, Silent, 1)
