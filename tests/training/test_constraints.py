"""decoder_constraint: unit rows after every step, no gradient along them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.training.constraints import normalize_rows_, remove_parallel_gradient_
from pipeline.training.source import TrainingBatch
from tests.training.cases import F, dictionary, rows, trainer, weights


def test_the_gradient_left_is_orthogonal_to_its_row() -> None:
    rows_FD = nn.Parameter(rows(F, seed=1))
    rows_FD.grad = rows(F, seed=2)
    before, grad = rows_FD.detach().double(), rows_FD.grad.double().clone()
    remove_parallel_gradient_(rows_FD)
    for i in range(F):
        unit = before[i] / before[i].norm()
        wanted = grad[i] - (grad[i] @ unit) * unit
        assert rows_FD.grad[i].numpy() == pytest.approx(wanted.numpy(), abs=1e-5)
    remove_parallel_gradient_(nn.Parameter(torch.ones(2, 2)))  # without a gradient: nothing


def test_rows_get_unit_length_and_keep_their_direction() -> None:
    rows_FD = rows(F)
    directions = rows_FD / rows_FD.norm(dim=1, keepdim=True)
    normalize_rows_(rows_FD)
    assert rows_FD.numpy() == pytest.approx(directions.numpy(), abs=1e-6)


@pytest.mark.parametrize("act_fn", ["topk", "jumprelu"])
def test_rows_stay_of_unit_length_through_training(act_fn: str) -> None:
    made = trainer(dictionary(act_fn=act_fn), decoder_constraint="unit_norm")
    for i in range(8):
        lengths = weights(made.dictionary)["W_D"].norm(dim=1)
        assert lengths.numpy() == pytest.approx([1.0] * F, abs=1e-5)
        x = rows(32, seed=i)
        made.step(TrainingBatch(i, x, x))
    assert weights(made.dictionary)["W_D"].norm(dim=1).numpy() == pytest.approx([1.0] * F, abs=1e-5)


def test_a_step_moves_a_row_by_the_orthogonal_gradient_only() -> None:
    """The first step of Adam is lr g / (|g| + eps), which can be followed by hand; a large eps makes it g itself."""
    lr, eps = 100.0, 1e3
    made = trainer(dictionary(), decoder_constraint="unit_norm", lr=lr, eps=eps, lr_scheduler_name="constant")
    free = trainer(dictionary(), lr=lr, eps=eps, lr_scheduler_name="constant")
    with torch.no_grad():
        free.dictionary.load_weights_(weights(made.dictionary))
    before, x = weights(made.dictionary)["W_D"].double(), rows(32)
    for each in (made, free):
        each.step(TrainingBatch(0, x, x))
    grad = free.dictionary.get_parameter("W_D").grad
    assert grad is not None
    along = (grad.double() * before).sum(1, keepdim=True) * before
    orthogonal = grad.double() - along
    assert float(along.norm()) > 0.05 * float(grad.norm())  # there is something to remove
    moved = before - lr * orthogonal / (orthogonal.abs() + eps)
    wanted = moved / moved.norm(dim=1, keepdim=True)
    assert float((moved - before).norm()) > 0.01
    assert weights(made.dictionary)["W_D"].numpy() == pytest.approx(wanted.numpy(), abs=1e-6)
