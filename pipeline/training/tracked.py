"""The tracked runs of the train stage: one, or that of a sweep with one nested in it for each member."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline import metric_names as names
from pipeline.activations.interface import Activations
from pipeline.contracts.sealing import remake
from pipeline.errors import PipelineError
from pipeline.files import fingerprint, is_number
from pipeline.metric_files import read_metrics
from pipeline.params.loader import params_from_dict
from pipeline.params.members import own_keys
from pipeline.params.reading import Yaml12Loader
from pipeline.params.schema import Params, flatten
from pipeline.plots.experiment import differs, sweep_of
from pipeline.provenance import committed_text
from pipeline.tracking.opening import open_tracker
from pipeline.tracking.run_file import read_ids, write_ids
from pipeline.tracking.tracker import Tracker
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.member import Member
from pipeline.training.outputs import Places

NO_DIFFERENCE = ("tracking.", "demo.", "sweep.", "dictionary.name")  # no run is another by them, or it is told elsewhere
EARLIER = ("generate", "norm", "tokenize")  # stages whose figures are there before a run is


@contextlib.contextmanager
def tracked(
    params: Params, places: Places, members: Mapping[str, tuple[Member, Checkpoints]], store: Activations
) -> Iterator[dict[str, Tracker]]:
    """{member: the tracker of its run} for the block, and "": that of the stage; of one dictionary they are the same.

    A run goes on with the tracked run that its checkpoints belong to; a sweep with that of the same members' runs.
    """
    with contextlib.ExitStack() as stack:
        if params.sweep is None:
            member, checkpoints = members[""]
            run_file = checkpoints.directory / "run.json"
            tracker = stack.enter_context(_of_run(params, places, member, checkpoints, run_file, params.dictionary.name))
            trackers = {"": tracker}
        else:
            directories = {name: checkpoints.directory for name, (_, checkpoints) in members.items()}
            run_file = _of_sweep(next(iter(directories.values())).parent, directories) / "run.json"
            trackers, sweep = {"": stack.enter_context(_of_the_sweep(params, places, run_file))}, params.dictionary.name
            for name, (member, checkpoints) in members.items():
                tracker = stack.enter_context(_of_run(member.params, places, member, checkpoints, run_file, sweep))
                tracker.log_params(logged(member.params))
                trackers[name] = tracker
        trackers[""].log_params(_shared(params))
        for tracker in trackers.values():
            _log_activations(tracker, store)
        try:
            yield trackers
        finally:
            log_earlier(trackers[""], places.metrics.parent)  # last: MLflow lists figures in the order in which they came


def _of_run(params: Params, places: Places, member: Member, checkpoints: Checkpoints, run_file: Path, name: str) -> Tracker:
    """The tracker of a run of one dictionary, with its tags; `name` is that of the run, or of the sweep that it is in."""
    ids = read_ids(run_file, member.name)
    past = checkpoints.past()
    tracker = open_tracker(
        params.tracking,
        stage="train",
        run_file=places.run,
        ids=ids,
        resume_step=None if past is None else past.get("last", {}).get(names.STEP),
        past=checkpoints.history.file,
        name=name,
        member=member.name,
        about=(own := differs_from_commit(params)),
    )
    write_ids(run_file, {**ids, **tracker.ids}, member.name)
    dictionary = params.dictionary
    tags = {"kind": dictionary.kind, "name": dictionary.name, "checkpoints": checkpoints.directory.name}
    tags |= {"differs": own, "sae_name": dictionary.sae_name or "", "sae_series": dictionary.sae_series or ""}
    tracker.set_tags({key: value for key, value in tags.items() if value})
    return tracker


def _of_the_sweep(params: Params, places: Places, run_file: Path) -> Tracker:
    """The tracker of the run that those of the members are nested in, with a note of what they are."""
    ids, name = read_ids(run_file), params.dictionary.name
    known = {member: read_ids(run_file, member) for member in params.members}
    own, differing = sweep_of(params.members), differs_from_commit(params)
    tracker = open_tracker(params.tracking, stage="train", run_file=places.run, ids=ids, name=name, about=own)
    write_ids(run_file, {**ids, **tracker.ids})
    for member, of_member in known.items():
        write_ids(run_file, of_member, member)
    lines = [f"- {member}: {_in_words(stated)}" for member, stated in (params.sweep or {}).items()]
    note = f"A sweep of {len(lines)} members, trained in one pass; each has its figures in a run of its own below this one.\n\n"
    tracker.set_tags({"name": name, "differs": "; ".join([own, differing] if differing else [own])})
    tracker.describe(note + "\n".join(lines))
    return tracker


def _of_sweep(checkpoints: Path, directories: Mapping[str, Path]) -> Path:
    """Where the ids of a sweep's tracked runs are kept: beside the checkpoints of its members."""
    return checkpoints / f"sweep-{fingerprint({name: place.name for name, place in directories.items()})}"


def logged(params: Params) -> dict[str, Any]:
    """The parameters of a run; of the embedded model's own those that are the run's text, where it is."""
    values = params.to_dict()
    demo = values.pop("demo")
    return values | (
        {"demo": {"text_packages": demo["text_packages"]}} if params.dataset.dataset_name_or_path == "demo" else {}
    )


def _shared(params: Params) -> dict[str, Any]:
    """The parameters of a run; of a sweep without those that members have of their own, which are no member's there."""
    values = logged(params)
    for key in {key for name in params.members for key in own_keys(params, name)}:
        section, _, field = key.partition(".")
        values[section].pop(field, None)
    return values


def differs_from_commit(params: Params, path: str = "params.yaml") -> str:
    """In words what is stated otherwise than by the parameter file of the commit that is checked out; "" where nothing is."""
    try:
        text = committed_text(path)
        before = {} if text is None else dict(flatten(params_from_dict(yaml.load(text, Loader=Yaml12Loader)).to_dict()))
    except (yaml.YAMLError, PipelineError, TypeError):
        return ""
    now = flatten(params.to_dict())
    return differs({key: value for key, value in now if before.get(key, value) != value and not key.startswith(NO_DIFFERENCE)})


def _in_words(stated: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in flatten(dict(stated))) or "the parameters as they are"


def _log_activations(tracker: Tracker, store: Activations) -> None:
    shape = (store.n_rows, *store.shape(store.hook_points[0])[1:])
    about = {"store": str(store.path), "model": store.model}
    tracker.log_dataset("activations", store.fingerprint, source=about, shape=shape, dtype=store.storage_dtype)


def log_earlier(tracker: Tracker, metrics: Path) -> None:
    """Log the figures of the stages that ran before there was a run to log to."""
    for stage in EARLIER:
        file = metrics / f"{stage}.json"
        if not file.exists():
            continue
        found = read_metrics(file, f"metrics of {stage}", remake(stage))
        tracker.log_metrics({f"{stage}/{key}": value for key, value in names.flatten(found) if is_number(value)})
