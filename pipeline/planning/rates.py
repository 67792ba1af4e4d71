"""What this machine needs for one of each thing that a run does much of; kept in data/rates.json for the stages to tell.

The file is no output of the pipeline: git and DVC know nothing of it, and no result depends on it.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError
from pipeline.files import fingerprint, is_number, read_object, root, write_json

if TYPE_CHECKING:
    from pipeline.params.schema import Params

FILE = Path("data") / "rates.json"
KEPT = 8  # measurements of other parameters that the file keeps beside the last one
# What rates depend on: not on how much there is of anything.
SECTIONS = ("model", "models", "dictionary", "sweep")
KEYS = {
    "activations": ("context_size", "model_batch_size", "target", "batch_size", "hook_points", "storage_dtype"),
    "trainer": ("amp_dtype", "gradient_accumulation_steps", "optimizer", "auxk_coefficient", "matryoshka_widths", "model_loss"),
    "evaluation": ("batch_contexts",),
    "analysis": ("batch_contexts", "top_contexts", "band_contexts", "window_before", "window_after", "neighbours"),
}


@dataclass(frozen=True)
class Rates:
    """Seconds on this machine.

    Attributes:
        start: of a stage until it works: Python and its libraries; models: of the libraries that run language models.
        tracking: of a stage that tracks, beside that; 0 where tracking is off.
        text: until the first document is there.
        tokenize: a token of text.
        load: of the whole language model (of all of them), part: up to the deepest hook point.
        model: a token through the language models up to their deepest hook points.
        write: a token into the store.
        norm: a token of a hook point; norm_end: what follows, of all of them.
        initialize: of all members.
        step: a step of all members, reading its batch.
        fold: of all members.
        evaluate: an evaluated token, all runs; evaluate_end: what does not grow with them.
        analyze: an analysed token, all members.
        neighbours: of all features.
        feature: a feature in the feature store and on the pages.
        memory: bytes that a stage has before it works; models_memory: further ones of a stage that runs language models,
            without their weights; tracking_memory: of one that tracks.
    """

    start: float
    models: float
    tracking: float
    text: float
    tokenize: float
    load: float
    part: float
    model: float
    write: float
    norm: float
    norm_end: float
    initialize: float
    step: float
    fold: float
    evaluate: float
    evaluate_end: float
    analyze: float
    neighbours: float
    feature: float
    memory: float
    models_memory: float
    tracking_memory: float


def key_of(params: Params) -> str:
    """What measured rates are found again by: what they depend on, and the machine's number of processors and threads."""
    plain = params.to_dict()
    about: dict[str, Any] = {section: plain[section] for section in SECTIONS}
    about |= {section: {key: plain[section][key] for key in keys} for section, keys in KEYS.items()}
    about["machine"] = [os.cpu_count(), os.environ.get("OMP_NUM_THREADS")]
    return fingerprint(about)


def record(params: Params, rates: Rates) -> None:
    """Keep what was measured, beside a few measurements of other parameters."""
    path = root() / FILE
    before = _read(path)
    before.pop(key_of(params), None)
    kept = dict(list(before.items())[-KEPT:])
    write_json(
        path, {"measured": [[key, value] for key, value in kept.items()] + [[key_of(params), dataclasses.asdict(rates)]]}
    )


def recorded(params: Params) -> Rates | None:
    """What was measured of these parameters on such a machine; None: nothing."""
    found = _read(root() / FILE).get(key_of(params))
    names = {field.name for field in dataclasses.fields(Rates)}
    if not isinstance(found, dict) or set(found) != names or not all(is_number(value) for value in found.values()):
        return None
    return Rates(**found)


def _read(path: Path) -> dict[str, Any]:
    """{key: rates}, the oldest first; nothing of a file that is not there or damaged."""
    try:
        entries = read_object(path, "measured rates").get("measured")
        return {str(key): value for key, value in entries} if isinstance(entries, list) else {}
    except (DataError, TypeError, ValueError):
        return {}
