"""What this machine needs for one of each thing that a run does much of; kept in data/rates.json for the stages to tell.

The file is no output of the pipeline: git and DVC know nothing of it, and no result depends on it. It lies in the user's
checkout, where queued and temporary experiments find it too. What was measured with other parameters on the same language model
serves as well: what depends on the dictionary is taken in proportion to the weights.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import DataError
from pipeline.files import fingerprint, is_number, read_object, root, write_json

if TYPE_CHECKING:
    from pipeline.params.schema import Params
    from pipeline.planning.run import Run

FILE = Path("data") / "rates.json"
KEPT = 8  # measurements of other parameters that the file keeps beside the last one
# What rates depend on: not on how much there is of anything. First what those of another dictionary share.
MODEL_SECTIONS = ("model", "models")
SECTIONS = (*MODEL_SECTIONS, "dictionary", "sweep")
COUNTED = ("weights", "batch", "runs", "members")  # of what was measured, beside its rates
# Grow with the weights; `step` with those of a batch, `evaluate` with the runs of the model, `analyze` with the members.
OF_WEIGHTS = ("initialize", "fold", "neighbours")
KEYS = {
    "activations": ("context_size", "model_batch_size", "target", "batch_size", "hook_points", "storage_dtype"),
    "trainer": ("amp_dtype", "gradient_accumulation_steps", "optimizer", "auxk_coefficient", "matryoshka_widths", "model_loss"),
    "evaluation": ("batch_contexts",),
    "analysis": ("batch_contexts", "top_contexts", "band_contexts", "window_before", "window_after", "neighbours"),
}


@dataclass(frozen=True)
class Rates:
    """Seconds on this machine, with the processors to itself.

    Attributes:
        start: of a stage until it works: Python, torch and the files of the models.
        tokenizers: of the libraries that read tokenizers; models: of those that run language models, over these.
        tracking: of a stage that tracks, beside that; 0 where tracking is off.
        tokenizer: of loading the tokenizer.
        text: until the first document is there.
        tokenize: a token of text, read, tokenized, packed and written.
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
        memory: bytes that a stage has before it works.
    """

    start: float
    tokenizers: float
    models: float
    tracking: float
    tokenizer: float
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


class Recorded(NamedTuple):
    """Rates that are kept.

    Attributes:
        rates: of these parameters.
        exact: whether these were measured; else other parameters were, on the same language model.
    """

    rates: Rates
    exact: bool


def key_of(params: Params) -> str:
    """What measured rates are found again by: what they depend on, and the machine's number of processors and threads."""
    plain = params.to_dict()
    about: dict[str, Any] = {section: plain[section] for section in SECTIONS}
    about |= {section: {key: plain[section][key] for key in keys} for section, keys in KEYS.items()}
    return fingerprint(about | _machine())


def _model_key(params: Params) -> str:
    """What rates of other dictionaries are found by: the language models, the contexts and the machine."""
    plain = params.to_dict()
    about = {section: plain[section] for section in MODEL_SECTIONS}
    return fingerprint(about | {"context_size": params.activations.context_size} | _machine())


def here() -> str:
    """`with OMP_NUM_THREADS=1 on this machine of 2 processors`: what is kept for other numbers of them is not taken."""
    processors, threads = _machine()["machine"]
    stated = "without OMP_NUM_THREADS" if threads is None else f"with OMP_NUM_THREADS={threads}"
    return f"{stated} on this machine of {'one processor' if processors == 1 else f'{processors} processors'}"


def _machine() -> dict[str, Any]:
    return {"machine": [os.cpu_count(), os.environ.get("OMP_NUM_THREADS")]}


def record(run: Run, rates: Rates) -> None:
    """Keep what was measured, beside a few measurements of other parameters."""
    path, key = root() / FILE, key_of(run.params)
    kept = [entry for entry in _read(path) if entry["key"] != key][-KEPT:]
    own = {
        "key": key,
        "model": _model_key(run.params),
        "weights": run.weight_bytes,
        "batch": run.params.activations.tokens_per_batch,
        "runs": run.evaluation_runs,
        "members": len(run.params.members),
        "rates": dataclasses.asdict(rates),
    }
    write_json(path, {"measured": [*kept, own]})


def recorded(run: Run) -> Recorded | None:
    """What was measured of these parameters on such a machine, else last of others on this language model, in
    proportion to the weights; None: neither.
    """
    entries = _read(root() / FILE)
    key, model = key_of(run.params), _model_key(run.params)
    for entry in entries:
        if entry["key"] == key:
            return Recorded(Rates(**entry["rates"]), True)
    for entry in reversed(entries):
        if entry["model"] == model:
            wider = run.weight_bytes / entry["weights"]
            scaled = {name: entry["rates"][name] * wider for name in OF_WEIGHTS}
            scaled["evaluate"] = entry["rates"]["evaluate"] * run.evaluation_runs / entry["runs"]
            scaled["analyze"] = entry["rates"]["analyze"] * len(run.params.members) / entry["members"]
            scaled["step"] = entry["rates"]["step"] * wider * run.params.activations.tokens_per_batch / entry["batch"]
            return Recorded(Rates(**entry["rates"] | scaled), False)
    return None


def _read(path: Path) -> list[dict[str, Any]]:
    """The entries, the oldest first; nothing of a file that is not there, damaged, or of other rates."""
    try:
        entries = read_object(path, "measured rates").get("measured")
    except DataError:
        return []
    return [entry for entry in entries if _is_entry(entry)] if isinstance(entries, list) else []


def _is_entry(entry: Any) -> bool:
    names = {field.name for field in dataclasses.fields(Rates)}
    if not isinstance(entry, dict) or set(entry) != {"key", "model", *COUNTED, "rates"}:
        return False
    rates = entry["rates"]
    return (
        all(isinstance(entry[key], str) for key in ("key", "model"))
        and all(is_number(entry[key]) and entry[key] > 0 for key in COUNTED)
        and isinstance(rates, dict)
        and set(rates) == names
        and all(is_number(value) for value in rates.values())
    )
