"""What Neuronpedia takes: the limits of POST /api/feature/upload-batch, and how models, source sets and sources are called.

A batch is {modelId, source, features}; it is checked whole, as it is sent, before anything is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import DataError, ParamsError

FEATURES = 128  # of a batch
INDEX = 10_000_000
LOGITS = 20  # of a feature, promoted and suppressed each
EXPLANATION = 512  # UTF-16 code units of a text
TOKENS = 1024  # of an activation
QUANTILE = 99_999_999.0
MODEL_ID = (2, 32)
LAYERS = 127
DESCRIPTION = 128

_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")
_NEW_ID = re.compile(r"[a-z][a-z0-9.-]*[a-z0-9]")
_SET = re.compile(r"[a-z][a-z0-9-]*[a-z0-9]|[a-z0-9]")
Fault = tuple[str, str]  # (place, what is wrong)


def check_model_id(name: str, *, new: bool = False) -> None:
    """Refuse what no model can be called; with `new` also what the site makes no new model by.

    Raises:
        ParamsError: says what it should be.
    """
    if not _ID.fullmatch(name):
        raise ParamsError(f"--set model_id={name}: wanted small letters, digits, hyphens, points and underscores")
    low, high = MODEL_ID
    if new and not (_NEW_ID.fullmatch(name) and low <= len(name) <= high and "--" not in name and ".." not in name):
        raise ParamsError(
            f"--set model_id={name}: a new model is called by {low} to {high} small letters, digits, and single hyphens and "
            "points between them"
        )


def check_source_set(name: str) -> None:
    """Refuse what no source set can be called.

    Raises:
        ParamsError: says what it should be.
    """
    if not _SET.fullmatch(name) or "--" in name or name == "neurons":
        raise ParamsError(
            f"--set source_set={name}: wanted small letters, digits and single hyphens between them, beginning with a letter, "
            "not 'neurons'"
        )


def check_batch(batch: Mapping[str, Any], where: str) -> None:
    """Refuse a batch that the site would not take.

    Args:
        batch: as JSON has it.
        where: what it is of, for the message.

    Raises:
        DataError: the first fault: where in the batch, what is there, what the site takes.
    """
    for place, wrong in _batch_faults(batch):
        raise DataError(f"{where}: Neuronpedia would refuse {place}: {wrong}")


def _batch_faults(batch: Mapping[str, Any]) -> Iterator[Fault]:
    yield from _keys(batch, "the batch", {"modelId", "source", "features"})
    for name in ("modelId", "source"):
        yield from _text(batch.get(name), name)
        if batch[name] != batch[name].lower():
            yield name, f"capitals in '{batch[name]}'"
    features = batch.get("features")
    yield from _listed(features, "features", 1, FEATURES)
    assert features is not None
    for place, feature in enumerate(features):
        number = feature.get("index") if isinstance(feature, dict) else None
        yield from _feature_faults(feature, f"feature {place if number is None else number}")
    indexes = [feature["index"] for feature in features]
    if len(set(indexes)) < len(indexes):
        yield "features", "an index is there twice"


def _feature_faults(feature: Any, at: str) -> Iterator[Fault]:
    yield from _keys(feature, at, {"index", "density", "topLogits", "bottomLogits", "explanations", "activations"})
    index = feature.get("index")
    if not (isinstance(index, int) and not isinstance(index, bool) and 0 <= index <= INDEX):
        yield f"{at}: index", f"got {index!r}, wanted an integer of 0 to {INDEX:,}"
    yield from _number(feature.get("density", 0.0), f"{at}: density", 0.0, 1.0)
    for name in ("topLogits", "bottomLogits"):
        logits = feature.get(name) or []
        yield from _listed(logits, f"{at}: {name}", 0, LOGITS)
        for i, logit in enumerate(logits):
            yield from _keys(logit, f"{at}: {name}[{i}]", {"token", "value"})
            yield from _text(logit.get("token"), f"{at}: {name}[{i}].token")
            yield from _number(logit.get("value"), f"{at}: {name}[{i}].value")
    for i, explanation in enumerate(feature.get("explanations") or []):
        place = f"{at}: explanations[{i}]"
        yield from _keys(explanation, place, {"text", "methodName", "modelName"})
        yield from _text(explanation.get("text"), f"{place}.text", EXPLANATION, "shorten it in data/interpretations")
    yield from _listed(feature.get("activations"), f"{at}: activations", 1)
    for i, activation in enumerate(feature["activations"]):
        yield from _activation_faults(activation, f"{at}: activations[{i}]")


def _activation_faults(activation: Any, at: str) -> Iterator[Fault]:
    yield from _keys(activation, at, {"tokens", "values", "quantileMin", "quantileMax", "quantileFraction"})
    advice = "lower analysis.window_before and window_after, and run `dvc repro analyze`"
    tokens, values = activation.get("tokens"), activation.get("values")
    yield from _listed(tokens, f"{at}: tokens", 1, TOKENS, advice)
    yield from _listed(values, f"{at}: values", 1, TOKENS, advice)
    if len(tokens) != len(values):
        yield at, f"{len(values)} values of {len(tokens)} tokens"
    for i, token in enumerate(tokens):
        yield from _text(token, f"{at}: tokens[{i}]")
    for i, value in enumerate(values):
        yield from _number(value, f"{at}: values[{i}]")
    for name, low, high in (
        ("quantileMin", -math.inf, QUANTILE),
        ("quantileMax", -math.inf, QUANTILE),
        ("quantileFraction", 0.0, 1.0),
    ):
        if activation.get(name) is not None:
            yield from _number(activation[name], f"{at}: {name}", low, high)


def _keys(value: Any, at: str, known: set[str]) -> Iterator[Fault]:
    if not isinstance(value, dict):
        yield at, f"got {type(value).__name__}, wanted an object"
    elif set(value) - known:
        yield at, f"unknown keys {', '.join(sorted(set(value) - known))}"


def _listed(value: Any, at: str, low: int, high: int | None = None, advice: str = "") -> Iterator[Fault]:
    if not isinstance(value, list):
        yield at, "missing" if value is None else f"got {type(value).__name__}, wanted a list"
    elif len(value) < low:
        yield at, f"{len(value)} of them, wanted at least {low}"
    elif high is not None and len(value) > high:
        yield at, f"{len(value):,} of them, the site takes {high:,}" + (f"; {advice}" if advice else "")


def _text(value: Any, at: str, longest: int | None = None, advice: str = "") -> Iterator[Fault]:
    if not isinstance(value, str) or not value:
        yield at, f"got {value!r}, wanted a text that is not empty"
    elif "\0" in value:
        yield at, "a character U+0000, which its database cannot hold"
    elif longest is not None and (units := len(value.encode("utf-16-le")) // 2) > longest:
        yield at, f"{units:,} characters, the site takes {longest:,}; {advice}"


def _number(value: Any, at: str, low: float = -math.inf, high: float = math.inf) -> Iterator[Fault]:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        yield at, f"got {value!r}, wanted a finite number"
    elif not low <= value <= high:
        yield at, f"got {value:g}, wanted {low:g} to {high:g}"
