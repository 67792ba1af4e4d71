"""Six dictionaries from one pass against six trainings: seconds of the train stage, and whether the weights are the same bits.

    python -m benchmarks.sweep                    # preset demo-sweep from a store and live; an hour on two cores
    python -m benchmarks.sweep --source store     # of one source of activations
    python -m benchmarks.sweep --small            # a tiny project, nothing is written

One folder holds the sweep, another one the members as runs of their own, one after another; both read one token store and one
activation store, made first, and start from weights that their own initialize has made. A stage is a process: its start,
imports and outputs count. `again` is the same stage once more, when the end of the training is kept: start, opening and outputs
alone. `reading` is the batches of a stage without a step, in this process. Then `fold` and `evaluate` both ways, as far as
their figures are by member. Seconds of the clock say what is gained on an idle machine; CPU seconds (user and system) hold on a
machine that others use too. Nothing is tracked. Writes benchmarks/results/sweep.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import click
import yaml

from benchmarks.quality import machine
from pipeline.params.choices import LIVE, STORE
from pipeline.params.loader import load_params
from pipeline.params.presets import apply_preset
from pipeline.params.schema import Params
from pipeline.training.outputs import Places
from pipeline.training.session import open_members
from pipeline.training.shared_batches import joint_batches

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "sweep.md"
GOAL = 0.75
PRESET = "demo-sweep"
SHARED = ("tokenize_corpus", "generate_activations", "compute_norm")
TRAIN, AGAIN, READING, EVALUATE = "train", "again", "reading", "evaluate"


class Cost(NamedTuple):
    """What a command took, its children included.

    Attributes:
        clock: seconds of the clock.
        cpu: user and system seconds.
    """

    clock: float
    cpu: float

    def __add__(self, other: object) -> Cost:
        assert isinstance(other, Cost)
        return Cost(self.clock + other.clock, self.cpu + other.cpu)


@dataclasses.dataclass
class Found:
    """What was measured of one source of activations.

    Attributes:
        together: {measured: its cost} of the sweep.
        alone: {member: the same} of the members as runs of their own.
        same: {member: whether the weights have the same bits}.
        figures: {member: whether all figures of the evaluation are the same}; none where the stage has none of a sweep.
    """

    together: dict[str, Cost] = dataclasses.field(default_factory=dict)
    alone: dict[str, dict[str, Cost]] = dataclasses.field(default_factory=dict)
    same: dict[str, bool] = dataclasses.field(default_factory=dict)
    figures: dict[str, bool] = dataclasses.field(default_factory=dict)

    def sum(self, name: str) -> Cost:
        """What the runs of one member took together."""
        total = Cost(0.0, 0.0)
        for costs in self.alone.values():
            total = total + costs[name]
        return total


def stage(name: str, folder: Path, params: Path, store: Path) -> Cost:
    """Run a stage in a folder.

    Raises:
        ClickException: it has failed.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("DVC_ROOT", "DVC_EXP_NAME")}
    environment |= {"PYTHONPATH": str(ROOT), "SCOPELINE_STORE": str(store)}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{name}", "--params", str(params)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise click.ClickException(f"stages.{name} in {folder} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return Cost(clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def write_params(params: Params, path: Path) -> Path:
    """The parameter file of a run."""
    path.write_text(yaml.safe_dump(params.to_dict(), sort_keys=False))
    return path


def digest(place: Path) -> str:
    """sha256 of a dictionary's weights."""
    return hashlib.sha256((place / "weights.safetensors").read_bytes()).hexdigest()


def trained(folder: Path, params: Path, store: Path) -> dict[str, Cost]:
    """Initialize, train, and train once more; what training twice and the reading took."""
    stage("initialize", folder, params, store)
    found = {TRAIN: stage("train", folder, params, store), AGAIN: stage("train", folder, params, store)}
    return found | {READING: reading(folder, params, store)}


def reading(folder: Path, params: Path, store: Path) -> Cost:
    """The batches of a training, taken as its steps take them."""
    loaded = load_params(params)
    read = {"activations": Path("data/activations.json"), "norms": Path("data/norms.json")}
    read["initial"] = Path("data/initial") / loaded.dictionary.name
    places = Places(**{field.name: read.get(field.name, Path()) for field in dataclasses.fields(Places)})
    with contextlib.chdir(folder), _environment(SCOPELINE_STORE=str(store)):
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        _, members = open_members(loaded, places)
        sources = [member.source for member in members.values()]
        for _ in itertools.islice(joint_batches(sources, [0] * len(sources)), loaded.total_steps):
            pass
        after = resource.getrusage(resource.RUSAGE_SELF)
    return Cost(time.perf_counter() - started, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def measure(params: Params, start: Path, place: Path) -> Found:
    """The sweep, and each of its members alone.

    Args:
        params: with a sweep.
        start: a folder with what the first stages read: data/demo, or a model and a text; maybe data/tokens.zarr.
        place: an empty directory to work in.
    """
    params = dataclasses.replace(params, tracking=dataclasses.replace(params.tracking, enabled=False))
    together, alone, store = place / "together", place / "alone", place / "store"
    place.mkdir()
    shutil.copytree(start, together)
    file = write_params(params, place / "sweep.yaml")
    for name in SHARED if not (together / "data" / "tokens.zarr").exists() else SHARED[1:]:
        stage(name, together, file, store)
    shutil.copytree(together, alone)
    found = Found(together=trained(together, file, store))
    files = {name: write_params(member, place / f"{name}.yaml") for name, member in params.members.items()}
    for name, own in files.items():
        found.alone[name] = trained(alone, own, store)
        trained_alone = alone / "data" / "trained" / f"{params.dictionary.name}-{name}"
        found.same[name] = digest(trained_alone) == digest(together / "data" / "trained" / params.dictionary.name / name)
        _say(name, found.alone[name], found.together)
    _evaluate(found, files, {"": file}, together, alone, store)
    return found


def _say(name: str, costs: Mapping[str, Cost], together: Mapping[str, Cost]) -> None:
    own, whole = costs[TRAIN], together[TRAIN]
    click.echo(f"{name}: train {own.clock:.0f} s, {own.cpu:.0f} CPU s (sweep: {whole.clock:.0f}, {whole.cpu:.0f})", err=True)


def _evaluate(
    found: Found, files: Mapping[str, Path], sweep: Mapping[str, Path], together: Path, alone: Path, store: Path
) -> None:
    """Fold and evaluate both ways; nothing is added where the evaluation gives no figures by member."""
    stage("fold_norm", together, sweep[""], store)
    try:
        cost = stage(EVALUATE, together, sweep[""], store)
        figures = json.loads((together / "metrics" / "evaluation.json").read_text())
    except click.ClickException:
        return
    if set(figures) != set(files):
        return
    found.together[EVALUATE] = cost
    for name, file in files.items():
        # Of one dictionary the figures of training have no member.
        stage("train", alone, file, store)
        stage("fold_norm", alone, file, store)
        found.alone[name][EVALUATE] = stage(EVALUATE, alone, file, store)
        found.figures[name] = json.loads((alone / "metrics" / "evaluation.json").read_text()) == figures[name]


def table(found: Found) -> list[str]:
    """Lines of markdown: each stage both ways."""
    lines = ["| | six runs, s | sweep, s | ratio | six runs, CPU s | sweep, CPU s | ratio |", "|---" + "|---:" * 6 + "|"]
    for name in (TRAIN, AGAIN, READING, EVALUATE):
        if name not in found.together:
            continue
        many, one = found.sum(name), found.together[name]
        cells = [f"{many.clock:.1f}", f"{one.clock:.1f}", f"{one.clock / many.clock:.2f}"]
        cells += [f"{many.cpu:.1f}", f"{one.cpu:.1f}", f"{one.cpu / many.cpu:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    ratio = found.together[TRAIN].clock / found.sum(TRAIN).clock
    return [
        *lines,
        "",
        f"Training, of the clock: {ratio:.2f}, goal {GOAL}: {'met' if ratio <= GOAL else 'missed'}.",
        _equal("weights, bit for bit", found.same),
        _equal("figures of the evaluation", found.figures) if found.figures else "The evaluation gives no figures of a sweep.",
    ]


def _equal(what: str, same: Mapping[str, bool]) -> str:
    other = [name for name, equal in same.items() if not equal]
    return f"Equal {what}: {len(same) - len(other)} of {len(same)}" + (f"; not {', '.join(other)}." if other else ".")


def report(results: Mapping[str, Found], command: str) -> str:
    """The text of the results file."""
    lines: list[str] = []
    for source, found in results.items():
        lines += ["", f"## Activations: {source}", *table(found)]
    return "\n".join(
        [
            "# Six dictionaries from one pass",
            "",
            f"`{command}` on {machine()}.",
            f"Preset {PRESET}. train: the stage from its start to its outputs. again: the same with the end of the training",
            "kept, so without a step. reading: the batches without a step, in one process. evaluate: the stage on the folded",
            "dictionaries.",
            *lines,
            "",
        ]
    )


def check(found: Found) -> None:
    """Refuse other bits.

    Raises:
        ClickException: of which members.
    """
    other = [name for same in (found.same, found.figures) for name, equal in same.items() if not equal]
    if other:
        raise click.ClickException(f"not as trained alone: {', '.join(dict.fromkeys(other))}")


def small(folder: Path) -> Found:
    """Three members of a tiny project."""
    from tests.project import make_project

    project = make_project(folder / "start")
    project.set(
        sweep={
            "k2": {"dictionary.top_k": 2},
            "wide": {"dictionary.expansion_factor": 8},
            "late": {"dictionary.hook_point_in": "blocks.1.hook_resid_post"},
        }
    )
    return measure(load_params(project.path / "params.yaml"), project.path, folder / "work")


@click.command()
@click.option("--source", "sources", type=click.Choice([STORE, LIVE]), multiple=True, default=(STORE, LIVE))
@click.option("--small", "tiny", is_flag=True, help="A tiny project; nothing is written.")
def main(sources: Iterable[str], tiny: bool) -> None:
    """Measure and write the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if tiny:
            found = small(folder)
            check(found)
            click.echo("\n".join(table(found)))
            return
        start = folder / "start"
        shutil.copytree(ROOT / "data" / "demo", start / "data" / "demo")
        params = apply_preset(PRESET, ROOT / "params.yaml")
        results = {}
        for source in sources:
            own = dataclasses.replace(params, activations=dataclasses.replace(params.activations, source=source))
            results[source] = measure(own, start, folder / source)
    text = report(results, "python -m benchmarks.sweep" + "".join(f" --source {source}" for source in sources))
    click.echo(text)
    RESULTS.write_text(text, encoding="utf-8")
    for found in results.values():
        check(found)


if __name__ == "__main__":
    main()
