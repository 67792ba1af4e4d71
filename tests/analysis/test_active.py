"""The list of active features against loops over dense activations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.analysis.active import ActiveFeatures
from pipeline.dictionaries.build import build_dictionary
from pipeline.seeding import generator

N, T, F = 5, 6, 16


def activations() -> Tensor:
    f = torch.randn(N, T, F, generator=generator(0, "tests", "active")).clamp_min(0.0)
    f[..., 3] = 0.0
    f[1, 2:5, 7] = 9.0  # of equal ones the first counts
    return f


def dense(active: ActiveFeatures) -> Tensor:
    f = torch.zeros(active.shape).flatten(0, 1)
    f[active.token, active.feature] = active.values
    return f.view(active.shape)


def test_the_strongest_token_of_each_context_is_that_of_a_loop() -> None:
    f = activations()
    active = ActiveFeatures.of(f)
    assert torch.equal(dense(active), f)
    largest, position = active.strongest()
    for context in range(N):
        for feature in range(F):
            values = f[context, :, feature].tolist()
            assert float(largest[context, feature]) == max(values)
            assert int(position[context, feature]) == values.index(max(values))
    assert int(position[1, 7]) == 2


@pytest.mark.parametrize("act_fn", ["topk", "jumprelu", "relu", "batchtopk"])
def test_of_an_encoding_it_has_what_is_active_at_kept_tokens(act_fn: str) -> None:
    config = {"kind": "sae", "hook_point_in": "blocks.0.hook_resid_post", "d_in": 8, "d_sae": F, "act_fn": act_fn, "top_k": 1}
    made = build_dictionary(config, seed=0)
    x = 3.0 * torch.randn(N, T, 8, generator=generator(1, "tests", "active"))
    mask = torch.ones(N, T, dtype=torch.bool)
    mask[0, 1], mask[3] = False, False
    with torch.no_grad():
        active = ActiveFeatures.of_codes(made.step_codes(x, mask, decoded_only=True), mask)
        wanted = made.encode(x, mask).masked_fill(~mask[..., None], 0.0)
    assert (wanted > 0).any()
    torch.testing.assert_close(dense(active), wanted)
