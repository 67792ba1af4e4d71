"""What SAEBench's evaluations leave: their JSON files, as figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import is_number, json_object, read_object

METRICS = "eval_result_metrics"
UNDEFINED = -1  # what the core evaluation writes in the place of NaN
NEXT = "read the log beside it"


def read_result(folder: Path, name: str) -> dict[str, float]:
    """{metric: value} of the one result below a folder; metrics keep SAEBench's names, which are unique over its groups.

    What is undefined (null; of core -1) is left out.

    Args:
        folder: eval_results of the run.
        name: of the evaluation.

    Raises:
        DataError: no result, several, or one of another form.
    """
    found = sorted((folder / name).glob("*_eval_results.json"))
    if len(found) != 1:
        raise DataError(f"{folder / name}: {len(found)} results of SAEBench's evaluation {name}, wanted one; {NEXT}")
    what = f"SAEBench's result of {name}"
    groups = json_object(read_object(found[0], what, NEXT).get(METRICS), f"{found[0]}: {METRICS}", NEXT)
    values: dict[str, float] = {}
    for group, metrics in groups.items():
        for key, value in json_object(metrics, f"{found[0]}: {METRICS}.{group}", NEXT).items():
            if value is None or (name == "core" and value == UNDEFINED):
                continue
            if not is_number(value):
                raise DataError(f"{found[0]}: {METRICS}.{group}.{key}: wanted a number, got {value!r}; {NEXT}")
            if key in values:
                raise DataError(f"{found[0]}: {METRICS}: {key} is in two groups; {NEXT}")
            values[key] = float(value)
    if not values:
        raise DataError(f"{found[0]}: {METRICS}: no figure; {NEXT}")
    return values


def logged(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`saebench_<evaluation>/<metric>` of all results, for tracked runs: `saebench/...` are our own figures by these names."""
    return {f"saebench_{name}/{key}": value for name, values in results.items() for key, value in values.items()}


def table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each figure."""
    return [f"{name}  {key:<36} {value:.6g}" for name, values in results.items() for key, value in values.items()]
