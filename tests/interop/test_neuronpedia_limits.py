"""The limits that are checked before anything is sent are those that the site checks."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.interop.neuronpedia.limits import check_batch
from tests.interop.neuronpedia_site import objection
from tests.messages import says

ACTIVATION = {"tokens": [" a", "\n"], "values": [0, 2.5], "quantileMin": -1.0, "quantileMax": 2.5, "quantileFraction": None}
FEATURE = {
    "index": 3,
    "density": 0.5,
    "topLogits": [{"token": " x", "value": 1.5}],
    "bottomLogits": None,
    "explanations": [{"text": "cats", "methodName": "m"}],
    "activations": [ACTIVATION],
}
NAN = float("nan")
# (path in the batch, value there, does the site take it?, where the message says it is)
CASES: list[tuple[tuple[Any, ...], Any, bool, str]] = [
    (("modelId",), "", False, "modelId"),
    (("source",), None, False, "source"),
    (("features",), [], False, "features"),
    (("features",), [FEATURE | {"index": i} for i in range(128)], True, ""),
    (("features",), [FEATURE | {"index": i} for i in range(129)], False, "features"),
    (("features",), [FEATURE, FEATURE], False, "features"),
    (("features", 0, "index"), 10_000_000, True, ""),
    (("features", 0, "index"), 10_000_001, False, "index"),
    (("features", 0, "index"), -1, False, "index"),
    (("features", 0, "index"), 1.5, False, "index"),
    (("features", 0, "index"), "3", False, "index"),
    (("features", 0, "density"), 1.0, True, ""),
    (("features", 0, "density"), 1.0001, False, "density"),
    (("features", 0, "density"), NAN, False, "density"),
    (("features", 0, "topLogits"), None, True, ""),
    (("features", 0, "topLogits"), [{"token": "x", "value": 1}] * 20, True, ""),
    (("features", 0, "topLogits"), [{"token": "x", "value": 1}] * 21, False, "topLogits"),
    (("features", 0, "topLogits", 0, "token"), "", False, "topLogits[0].token"),
    (("features", 0, "bottomLogits"), [{"token": "x", "value": NAN}], False, "bottomLogits[0].value"),
    (("features", 0, "bottomLogits"), [{"token": "x"}], False, "bottomLogits[0].value"),
    (("features", 0, "explanations"), [], True, ""),
    (("features", 0, "explanations", 0, "text"), "x" * 512, True, ""),
    (("features", 0, "explanations", 0, "text"), "x" * 513, False, "explanations[0].text"),
    (("features", 0, "explanations", 0, "text"), "", False, "explanations[0].text"),
    (("features", 0, "activations"), [], False, "activations"),
    (("features", 0, "activations"), None, False, "activations"),
    (("features", 0, "activations", 0), {"tokens": ["a"] * 1024, "values": [1] * 1024}, True, ""),
    (("features", 0, "activations", 0), {"tokens": ["a"] * 1025, "values": [1] * 1025}, False, "activations[0]: tokens"),
    (("features", 0, "activations", 0, "values"), [1.0], False, "activations[0]"),
    (("features", 0, "activations", 0, "values", 1), float("inf"), False, "activations[0]: values[1]"),
    (("features", 0, "activations", 0, "tokens", 0), "", False, "activations[0]: tokens[0]"),
    (("features", 0, "activations", 0, "tokens", 0), "a\0", False, "activations[0]: tokens[0]"),
    (("features", 0, "activations", 0, "quantileMax"), 99_999_999, True, ""),
    (("features", 0, "activations", 0, "quantileMax"), 1e8, False, "quantileMax"),
    (("features", 0, "activations", 0, "quantileFraction"), 1.0, True, ""),
    (("features", 0, "activations", 0, "quantileFraction"), -1.0, False, "quantileFraction"),
]


def batch() -> dict[str, Any]:
    return {"modelId": "demo", "source": "2-mine", "features": [copy.deepcopy(FEATURE)]}


@pytest.mark.parametrize(("path", "value", "taken", "place"), CASES)
def test_each_limit(path: tuple[Any, ...], value: Any, taken: bool, place: str) -> None:
    changed = batch()
    at: Any = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert (objection(changed) is None) == taken
    if taken:
        check_batch(changed, "this batch")
        return
    with pytest.raises(DataError) as error:
        check_batch(changed, "this batch")
    assert str(error.value).startswith("this batch: ")
    says(error.value, "Neuronpedia would refuse")
    assert place in str(error.value)


def test_what_the_site_does_not_know_is_not_sent() -> None:
    for changed in (
        batch() | {"more": 1},
        {**batch(), "features": [FEATURE | {"densities": 1}]},
        batch() | {"source": "2-Mine"},
    ):
        with pytest.raises(DataError):
            check_batch(changed, "this batch")
