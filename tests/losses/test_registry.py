"""Sparsity losses by name, and steps in micro-batches: the same value and gradient as the whole batch."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pipeline.errors import ParamsError
from pipeline.losses.sparsity.power import power_loss
from pipeline.losses.sparsity.tanh_quad import tanh_quad_loss
from pipeline.losses.sparsity_losses import SparsityInputs, sparsity_loss, sparsity_loss_names
from pipeline.params.losses import SPARSITY_LOSSES
from pipeline.params.sections.trainer import TrainerParams
from tests.closure import ROOT
from tests.losses.cases import randn
from tests.messages import saying

FIELDS = {
    "p": 2.0,
    "tanh_stretch_coefficient": 1.5,
    "frequency_scale": 0.2,
    "l0_bandwidth": 0.7,
    "target_l0": 1.5,
    "target_l0_mode": "quadratic",
}
SETTINGS = SimpleNamespace(**FIELDS)
LINEAR = SimpleNamespace(**{**FIELDS, "target_l0_mode": "threshold"})


def test_names_are_the_files_with_hyphens() -> None:
    assert sparsity_loss_names() == ("l0", "power", "tanh", "tanh-quad")
    assert sparsity_loss("tanh-quad").function is tanh_quad_loss
    assert sparsity_loss("power").function is power_loss


@pytest.mark.parametrize("name", SPARSITY_LOSSES.names())
def test_parameters_know_the_losses_and_state_their_defaults(name: str) -> None:
    loss = sparsity_loss(name)
    assert loss.function.__kwdefaults__ == {field: getattr(TrainerParams(), field) for field in loss.fields}


@pytest.mark.parametrize(("wrong", "nearest"), [("powr", "power"), ("tanh_quad", "tanh-quad")])
def test_an_unknown_name_lists_the_others(wrong: str, nearest: str) -> None:
    with pytest.raises(ParamsError, match=saying("sparsity loss", f"'{wrong}'", f"'{nearest}'")):
        sparsity_loss(wrong)


def _fresh(code: str) -> str:
    """Output of code in a process that has imported none of the losses."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_name_finds_its_file_on_demand() -> None:
    names = "from pipeline.losses.sparsity_losses import *; "
    code = names + "print(*(sparsity_loss(n).function.__name__ for n in sparsity_loss_names()))"
    assert _fresh(code).split() == ["l0_loss", "power_loss", "tanh_loss", "tanh_quad_loss"]


def test_fields_are_read_off_the_settings() -> None:
    inputs = SparsityInputs(randn(4, 5).relu(), randn(4, 5), randn(5).abs(), randn(5, seed=1).abs())
    assert float(sparsity_loss("power")(inputs, SETTINGS)) == float(power_loss(inputs, p=2.0))
    found = sparsity_loss("tanh-quad")(inputs, SETTINGS)
    assert float(found) == float(tanh_quad_loss(inputs, tanh_stretch_coefficient=1.5, frequency_scale=0.2))
    assert float(sparsity_loss("l0")(inputs, SETTINGS)) != float(sparsity_loss("l0")(inputs, LINEAR))


@pytest.mark.parametrize("shape", [(24, 5), (12, 2, 5), (24, 3, 5)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["power", "tanh", "tanh-quad", "l0", "l0-linear"])
def test_micro_batches_add_up_to_the_whole_batch(name: str, shape: tuple[int, ...], masked: bool) -> None:
    """Parts of unequal numbers of kept tokens, one of none; weighted by their kept tokens, as the trainer does."""
    settings = LINEAR if name == "l0-linear" else SETTINGS
    loss = sparsity_loss(name.removesuffix("-linear"))
    layers = (3,) if shape == (24, 3, 5) else ()
    z = randn(*shape)
    z[: shape[0] // 4] += 1.0  # so that the parts' statistics differ
    mask = torch.arange(shape[0]) % 5 != 1 if masked else torch.ones(shape[0], dtype=torch.bool)
    cuts = [shape[0] // 4, shape[0] // 2]
    if masked:
        mask[cuts[0] : cuts[1]] = False
    mask = mask[:, None].expand(shape[:2]) if shape == (12, 2, 5) else mask
    norms, t = randn(*layers, 5, seed=2).abs() + 0.2, randn(*layers, 5, seed=3) * 0.3 - 1
    leaves = [z.relu().requires_grad_(), norms.requires_grad_(), t.requires_grad_()]

    def inputs(rows: slice, statistic: Tensor | None = None) -> SparsityInputs:
        f, n, t = leaves
        return SparsityInputs(f[rows], z[rows], n, t.exp(), mask[rows] if masked else None, statistic)

    def gradients(value: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]

    whole = loss(inputs(slice(None)), settings)
    parts = [slice(0, cuts[0]), slice(cuts[0], cuts[1]), slice(cuts[1], None)]
    weights = [mask[part].sum().double() / mask.sum() for part in parts]
    statistics = [loss.step_statistic(inputs(part), settings) for part in parts]
    linear = name in ("power", "tanh", "l0-linear")
    assert all((statistic is None) == linear for statistic in statistics)
    own = sum(w * loss(inputs(part), settings).detach() for w, part in zip(weights, parts, strict=True))
    together: Tensor | None = None
    if not linear:
        weighted = [w * s for w, s in zip(weights, statistics, strict=True) if s is not None]
        together = torch.stack(weighted).sum(0)
        assert not together.requires_grad
        assert float(own) != pytest.approx(float(whole.detach()), rel=1e-3), "the case does not tell the two apart"
        for part in parts:
            torch.testing.assert_close(loss(inputs(part, together), settings), whole, rtol=1e-12, atol=0)
    else:
        assert float(own) == pytest.approx(float(whole.detach()), rel=1e-12)
    values = [loss(inputs(part, together), settings) for part in parts]
    total = torch.stack([w * value for w, value in zip(weights, values, strict=True)]).sum()
    expected = gradients(whole)
    for found, wanted in zip(gradients(total), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)
    assert any((gradient != 0).any() for gradient in expected)
