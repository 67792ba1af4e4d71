"""Wrong arguments are refused in a line that names the function, the argument, what was wanted and what was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.arguments import A_PATH, A_TEXT, ByName, checked, names, number, shown, whole
from pipeline.errors import DataError
from pipeline.training.fit import fit
from pipeline.training.on_activations import train_dictionary, train_on_text
from tests.messages import saying


@checked(text=A_TEXT, n=whole(1), strength=number(), hooks=names, path=A_PATH)
def example(
    text: Any, n: Any = 3, *, strength: Any = 1.0, hooks: Any = (), path: Any = None, other: Any = None
) -> tuple[Any, ...]:
    """What was given."""
    return text, n, strength, hooks, path, other


@pytest.mark.parametrize(
    ("args", "given", "parts"),
    [
        ((), {}, ("example:", "'text'", "example(text, n=..., strength=...")),
        (("a", 1, 2), {}, ("example:", "too many positional arguments")),
        (("a",), {"strenght": 2.0}, ("example:", "'strenght'", "did you mean 'strength'")),
        ((None,), {}, ("example: text:", "a text", "None")),
        ((["a", 2],), {}, ("text:", "a list of int, str")),
        ((torch.zeros(2, 3),), {}, ("text:", "a Tensor of shape [2, 3]")),
        (("a", 0), {}, ("n:", "at least 1", "got 0")),
        (("a", 2.0), {}, ("n:", "whole number", "2.0")),
        (("a", True), {}, ("n:", "True")),
        (("a", "2"), {}, ("n:", "'2'")),
        (("a",), {"strength": float("nan")}, ("strength:", "finite", "nan")),
        (("a",), {"strength": "1"}, ("strength:", "finite", "'1'")),
        (("a",), {"hooks": "blocks.0"}, ("hooks:", "a list of names", "'blocks.0'")),
        (("a",), {"hooks": [2]}, ("hooks:", "a list of names", "a list of int")),
        (("a",), {"path": 3}, ("path:", "a path", "got 3")),
    ],
)
def test_what_is_refused(args: tuple[Any, ...], given: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=saying(*parts)) as caught:
        example(*args, **given)
    assert "\n" not in str(caught.value)


def test_what_is_right_is_passed_on() -> None:
    assert example("a") == ("a", 3, 1.0, (), None, None)
    given = example("", torch.tensor(2), strength=-3, hooks=["x"], path=Path("y"), other=4)
    assert given == ("", torch.tensor(2), -3, ["x"], Path("y"), 4)
    assert example("a", hooks=(name for name in "xy"))[1] == 3
    assert example.__name__ == "example"


def test_long_texts_are_cut() -> None:
    assert shown("x" * 100) == f"'{'x' * 60}'..."


def test_a_name_that_is_not_there_is_told_from_those_that_are() -> None:
    found = ByName("dictionary of the run", {"early": 1, "late": 2})
    assert found["early"] == 1
    assert found.get("x") is None
    assert "x" not in found
    with pytest.raises(DataError, match=saying("dictionary of the run 'lat'", "did you mean 'late'", "early, late")):
        found["lat"]


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: fit(torch.zeros(8, 2), dictionary={"top_k": 1}), ("fit:", "'trainer'", "fit(activations")),
        (lambda: fit(torch.zeros(8, 2), dictionary="sae", trainer={}), ("fit: dictionary:", "a mapping of fields", "'sae'")),
        (
            lambda: train_dictionary(None, dictionary={}, trainer={}),
            ("train_dictionary: activations:", "batches in turn", "None"),
        ),
        (lambda: train_dictionary([], dictionary={}, trainer=3), ("train_dictionary: trainer:", "a mapping of fields", "3")),
        (
            lambda: train_on_text("demo", "demo", "blocks.2.hook_resid_post", dictionary={}, trainer={}),
            ("train_on_text: hook_points:", "a list of names"),
        ),
    ],
)
def test_trainings_in_python_refuse_what_is_no_mapping_of_fields(call: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=saying(*parts)):
        call()
