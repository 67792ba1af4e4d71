"""Gates on z [..., L, F]: which layers compete, by loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.activation_functions.interface import GateSettings, activation_function
from tests.activation_functions.cases import PROPERTY, Case, cases

NAMES = ("topk", "batchtopk", "layertopk", "batchlayertopk")


OF_TOKEN = [("layertopk", True), ("batchlayertopk", True)]
every_gate = pytest.mark.parametrize(("name", "of_token"), [*((name, False) for name in NAMES), *OF_TOKEN])


def groups(name: str, case: Case, of_token: bool) -> list[tuple[list[tuple[int, ...]], int]]:
    """Entries [token, layer, feature] that compete with one another, kept tokens only, and how many of them may open.

    of_token: k counts the features of all layers of a token, not of each.
    """
    n_layers, width = case.z.shape[-2:]
    n_tokens = case.z[..., 0, 0].numel()
    kept = [True] * n_tokens if case.mask is None else case.mask.reshape(-1).tolist()
    tokens = [t for t in range(n_tokens) if kept[t]]
    layers, features = range(n_layers), range(width)
    k = case.k
    if name == "topk":
        return [([(t, i, j) for j in features], k) for t in tokens for i in layers]
    if name == "batchtopk":
        return [([(t, i, j) for t in tokens for j in features], k * len(tokens)) for i in layers]
    each = k if of_token else k * n_layers
    if name == "layertopk":
        return [([(t, i, j) for i in layers for j in features], each) for t in tokens]
    return [([(t, i, j) for t in tokens for i in layers for j in features], each * len(tokens))]


def layered(case: Case, of_token: bool) -> GateSettings:
    return case.settings._replace(layered=True, k_of_token=of_token)


@every_gate
@PROPERTY
@given(case=cases(layers=True))
def test_the_largest_of_those_that_compete_open(name: str, of_token: bool, case: Case) -> None:
    is_open = activation_function(name).support(case.z, layered(case, of_token))
    z, opened = (t.reshape(-1, *case.z.shape[-2:]) for t in (case.z.double(), is_open))
    n_open = 0
    for entries, budget in groups(name, case, of_token):
        values = [float(z[entry]) for entry in entries]
        wanted = sorted((value for value in values if value > 0), reverse=True)[:budget]
        found = sorted((float(z[entry]) for entry in entries if bool(opened[entry])), reverse=True)
        assert found == wanted
        n_open += len(found)
    assert int(is_open.sum()) == n_open


@every_gate
@PROPERTY
@given(case=cases(layers=True), loud=st.sampled_from([1e6, torch.inf, torch.nan]))
def test_masked_tokens_never_compete(name: str, of_token: bool, case: Case, loud: float) -> None:
    if case.mask is None:
        return
    gate = activation_function(name)
    kept = case.mask[..., None, None]
    loud_z, quiet_z = (torch.where(kept, case.z, value) for value in (loud, -1.0))
    found, wanted = (gate.support(z, layered(case, of_token)) for z in (loud_z, quiet_z))
    assert not (found & ~kept).any()
    values = [torch.where(support, quiet_z, 0.0).flatten().sort().values for support in (found, wanted)]
    assert torch.equal(*values)


@every_gate
@PROPERTY
@given(case=cases(layers=True))
def test_the_selection_lists_the_support_in_order(name: str, of_token: bool, case: Case) -> None:
    gate = activation_function(name)
    chosen = gate.selection(case.z, layered(case, of_token))
    assert chosen is not None
    opened = chosen.flat[chosen.active]
    assert torch.equal(opened, gate.support(case.z, layered(case, of_token)).flatten().nonzero().squeeze(1))
    assert (chosen.flat.diff() > 0).all()
    assert torch.equal(chosen.values, case.z.reshape(-1)[chosen.flat])


@every_gate
@PROPERTY
@given(case=cases(layers=True))
def test_the_threshold_parts_active_from_inactive(name: str, of_token: bool, case: Case) -> None:
    gate = activation_function(name)
    is_open = gate.support(case.z, layered(case, of_token))
    smallest = torch.where(is_open, case.z, torch.inf).amin(-1, keepdim=True)
    threshold: Tensor = gate.threshold(smallest, layered(case, of_token)).expand(case.z.shape)
    assert (case.z[is_open] >= threshold[is_open]).all()
    closed = ~is_open if case.mask is None else ~is_open & case.mask[..., None, None]
    full = threshold.isfinite()
    budgeted = [len(entries) > budget for entries, budget in groups(name, case, of_token)]
    if all(budgeted):
        assert (case.z[closed & full] <= threshold[closed & full]).all()
