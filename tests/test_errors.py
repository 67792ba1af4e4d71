"""Errors: exit codes, all faults at once, the nearest name."""

from __future__ import annotations

import pickle

import pytest

from pipeline import errors
from pipeline.errors import DataError, Interrupted, ParamsError, PipelineError, nearest, unknown_name

HOOKS = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"]


@pytest.mark.parametrize("kind", [ParamsError, DataError, errors.CheckpointError, errors.NumericsError])
def test_kinds(kind):
    assert issubclass(kind, PipelineError)
    assert kind("x").exit_code == 2
    assert str(kind("a message")) == "a message"


def test_an_interrupt_has_its_own_exit_code():
    assert issubclass(Interrupted, PipelineError)
    assert Interrupted("x").exit_code == 130


def test_all_faults_at_once():
    error = ParamsError(["a: wrong", "b: wrong"])
    assert error.faults == ["a: wrong", "b: wrong"]
    assert str(error) == "a: wrong\nb: wrong"
    assert ParamsError(("a",)).faults == ParamsError("a").faults == ["a"]


def test_faults_survive_pickling():
    """As when a worker process raises it."""
    error = pickle.loads(pickle.dumps(ParamsError(["a", "b"])))
    assert str(error) == "a\nb"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("blocks.1.hook_resid_pots", "blocks.1.hook_resid_post"),
        ("blocks.1.mlp_out", "blocks.1.hook_mlp_out"),
        ("zzz", None),
        ("", None),
    ],
)
def test_nearest(name, wanted):
    assert nearest(name, HOOKS) == wanted


def test_nearest_takes_anything():
    assert nearest("1", [1, 2]) == "1"
    assert nearest("lr", iter(["lr", "k"])) == "lr"
    assert nearest("x", []) is None


def test_unknown_name():
    """The one place of these words; whoever raises them is tested by the names."""
    assert unknown_name("act_fn", "top_k", ["relu", "topk"]) == (
        "unknown act_fn 'top_k'; did you mean 'topk'? (known: relu, topk)"
    )
    assert unknown_name("act_fn", "zzz", ["relu", "topk"]) == "unknown act_fn 'zzz' (known: relu, topk)"
    assert unknown_name("model", "x", []) == "unknown model 'x' (known: none)"
    assert unknown_name("act_fn", "topk2", iter(["topk"])) == "unknown act_fn 'topk2'; did you mean 'topk'? (known: topk)"
