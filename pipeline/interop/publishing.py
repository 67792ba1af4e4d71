"""Export of a run's dictionaries with their card: into a directory in the layout of the hub, or pushed to it.

A sweep has one folder a member and one card. Nothing is pushed that a pass of its format has not read back and compared; the
hub is asked before the work begins whether the target can be.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.dictionaries.places import chosen, dictionary_places
from pipeline.dictionaries.store import read_config
from pipeline.errors import DataError, ParamsError
from pipeline.files import read_object, write_bytes, write_json
from pipeline.interop.card import EVALUATION, NAME, PARAMS, Described, is_hub_id, is_ours, model_card
from pipeline.interop.exporting import Export
from pipeline.interop.hub_paths import HubPath, hub_path, is_of_hub
from pipeline.interop.licence import Licence, declared_licence
from pipeline.interop.pushing import Remote, Target, additions, listed_files, look, push
from pipeline.interop.stored import export_stored, feature_places
from pipeline.params.reading import read_mapping
from pipeline.params.schema import Params

METRICS = "metrics/evaluation.json"


@dataclass(frozen=True)
class Publishing:
    """What the options about publishing say (options.py)."""

    evaluation: str | None = None
    licence: str | None = None
    licence_name: str | None = None
    licence_link: str | None = None
    languages: tuple[str, ...] = ()
    named: str | None = None
    private: bool = False
    revision: str | None = None
    message: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Chosen:
    """The dictionaries that are exported.

    Attributes:
        places: {member: directories}; "" without a sweep, or of one member.
        own: they are the run's, so that its parameters and metrics are theirs.
        member: the one member of a sweep that was named.
    """

    places: Mapping[str, Sequence[Path]]
    own: bool = True
    member: str = ""


def chosen_dictionaries(params: Params, places: Sequence[str], member: str | None, inference: str | Path) -> Chosen:
    """The directories that are named, else those of the run: of a sweep the member's, or all.

    Raises:
        ParamsError: no such member.
        DataError: one is not there.
    """
    if places:
        return Chosen({"": [Path(place) for place in places]}, own=False)
    found = dictionary_places(params, inference)
    if member is None and "" not in found:
        return Chosen({name: [place] for name, place in found.items()})
    name = chosen(member, params.members, "the run")
    return Chosen({"": [found[name]]}, member=name)


def export_run(
    params: Params,
    params_file: str | Path,
    found: Chosen,
    format: str,
    to: str | None,
    options: Publishing,
    *,
    activations: str | Path | None,
    n_tokens: int,
    features: Sequence[str] | None = None,
) -> list[str]:
    """Export, write the card, and push where `to` is of the hub.

    Args:
        params, params_file: of the run.
        found: the dictionaries.
        format: name.
        to: directory, or hf:user/repository[/folder]; None: data/export/<format>/<name>.
        options: about publishing.
        activations: manifest of a store, or a store, that the written files are checked on; None: drawn activations.
        n_tokens: so many tokens of it.
        features: feature stores of the dictionaries, to be written too; empty: those of the run; None: they are not.

    Returns: what was done, for a terminal.

    Raises:
        ParamsError: options that contradict each other, no licence where one is required, a format that cannot hold it.
        DataError: something else is at the target, the hub refuses or does not answer.
        NumericsError: what was written computes something else; nothing is pushed.
    """
    target = _target(to, options)
    licence = declared_licence(options.licence, options.licence_name, options.licence_link, required=target is not None)
    metrics = _metrics(found, options.evaluation)
    source = _Source(params, params_file, found, format, metrics, activations, n_tokens, features)
    if target is None:
        named = hub_path(options.named) if options.named else None
        folder = Path(to) if to else Path("data") / "export" / format / _name(params, found)
        _check_free(folder)
        return source.write(folder, named, licence, options.languages)
    remote = Remote(None) if options.dry_run else look(target)
    with tempfile.TemporaryDirectory(prefix="scopeline-") as temporary:
        folder = Path(temporary) / "export"
        written = source.write(folder, target.path, licence, options.languages)
        lines = [line.replace(str(folder), str(dataclasses.replace(target.path, revision=None))) for line in written]
        if not options.dry_run:
            return [*lines, *push(folder, target, remote, format)]
        files = additions(folder, target.path)
        total = sum(file.stat().st_size for file in files.values())
        head = f"{target.path}: would be pushed, nothing was sent (--dry-run): {len(files)} files, {total:,} bytes"
        return [*lines, head, *listed_files(files)]


def _target(to: str | None, options: Publishing) -> Target | None:
    """Where to push to; None: into a directory."""
    if to is None or not is_of_hub(to):
        pushes = {"private": "--private", "revision": "--revision", "message": "--message", "dry_run": "--dry-run"}
        given = [flag for field, flag in pushes.items() if getattr(options, field)]
        if given:
            raise ParamsError(f"{', '.join(given)}: of a push alone; give --to hf:user/repository[/folder]")
        return None
    if options.named:
        raise ParamsError("--as: of a directory alone; --to names the repository itself")
    path = hub_path(to)
    if path.revision and options.revision not in (None, path.revision):
        raise ParamsError(f"--revision {options.revision}: --to names the branch {path.revision}; give one of them")
    return Target(dataclasses.replace(path, revision=path.revision or options.revision), options.private, options.message)


def _name(params: Params, found: Chosen) -> Path:
    if found.own:
        return Path(params.dictionary.name) / found.member
    return Path(next(iter(found.places.values()))[0].name)


def _metrics(found: Chosen, file: str | None) -> dict[str, Mapping[str, Any]]:
    """{member: metrics} as far as they are there."""
    if file is None and (not found.own or not Path(METRICS).exists()):
        return {}
    values = read_object(file or METRICS, "the metrics of an evaluation", "run `python -m stages.evaluate`")
    if file is not None and not found.own and sum(map(len, found.places.values())) > 1:
        raise ParamsError("--evaluation: is of one dictionary, and several are exported; leave it out")
    if "" in found.places and not found.member:
        return {"": values}
    missing = [
        name for name in (found.places if not found.member else [found.member]) if not isinstance(values.get(name), dict)
    ]
    if missing:
        raise DataError(f"{file or METRICS}: has no figures of {', '.join(missing)}; run `python -m stages.evaluate`")
    return {"": values[found.member]} if found.member else {name: values[name] for name in found.places}


def _check_free(folder: Path) -> None:
    """A card, parameters or figures that we have not written are not replaced."""
    there = [name for name in (NAME, PARAMS, EVALUATION) if (folder / name).exists()]
    card = folder / NAME
    if there and not (card.is_file() and is_ours(card.read_text(errors="replace"))):
        raise DataError(f"{folder}: {', '.join(there)} is here and of no earlier export; give a directory of its own by --to")


@dataclass(frozen=True)
class _Source:
    """What is exported, and what is known of it."""

    params: Params
    params_file: str | Path
    found: Chosen
    format: str
    metrics: Mapping[str, Mapping[str, Any]]
    activations: str | Path | None
    n_tokens: int
    features: Sequence[str] | None

    def write(self, folder: Path, path: HubPath | None, licence: Licence | None, languages: Sequence[str]) -> list[str]:
        """Files and card; what was done, for a terminal."""
        lines, described, inside = [], [], path.folder if path else ""
        for member, places in self.found.places.items():
            export = export_stored(
                self.params,
                places,
                folder / member,
                self.format,
                activations=self.activations,
                n_tokens=self.n_tokens,
                features=None if self.features is None else feature_places(self.params, places, self.features),
            )
            lines += export.lines()
            described.append(self._described(member, places, export, folder, inside))
        attached = self._attach(folder)
        text = model_card(
            described,
            self.params,
            self.format,
            repository=path.repository if path else None,
            licence=licence,
            languages=languages,
            attached=attached,
        )
        write_bytes(folder / NAME, text.encode())
        return [*lines, f"{folder / NAME}: the model card", *self._warnings(described, licence)]

    def _described(self, member: str, places: Sequence[Path], export: Export, folder: Path, inside: str) -> Described:
        configs = [read_config(place).to_dict() for place in places]
        at = "/".join(part for part in (inside, export.path.relative_to(folder).as_posix()) if part not in ("", "."))
        return Described(member, at, configs, export.about, export.names, self.metrics.get(member))

    def _attach(self, folder: Path) -> list[str]:
        """Parameters and figures of the run's own dictionaries."""
        attached = []
        if self.found.own:
            values = {key: value for key, value in read_mapping(self.params_file).items() if key != "tracking"}
            write_bytes(folder / PARAMS, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
            attached.append(PARAMS)
        if self.metrics:
            write_json(folder / EVALUATION, self.metrics.get("", self.metrics))
            attached.append(EVALUATION)
        return attached

    def _warnings(self, described: Sequence[Described], licence: Licence | None) -> list[str]:
        said = []
        if licence is None:
            said.append("the card states no licence: give --license before it is published")
        if not self.metrics:
            said.append(f"the card has no figures: {METRICS} is not there, or of other dictionaries (--evaluation)")
        model, revision = (described[0].about.get(key) for key in ("model_name", "model_revision"))
        if not revision and not is_hub_id(str(model)):
            said.append(f"the model '{model}' is no name of the hub: nobody else can load it by that name")
        return [f"{NAME}: {sentence}" for sentence in said]
