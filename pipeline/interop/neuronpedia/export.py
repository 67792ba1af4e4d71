"""The features of a dictionary for Neuronpedia: files of three forms, or an upload."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.analysis.store_digest import store_digest
from pipeline.errors import DataError
from pipeline.files import atomic_directory, read_object, write_json
from pipeline.interop.feature_format import FeatureFormat, FeatureInputs, settings_of
from pipeline.interop.neuronpedia.arrow_files import ArrowFiles
from pipeline.interop.neuronpedia.batches import BatchFiles, batches
from pipeline.interop.neuronpedia.bulk import BulkFiles
from pipeline.interop.neuronpedia.explanations import read_explanations
from pipeline.interop.neuronpedia.limits import LOGITS
from pipeline.interop.neuronpedia.pages import Page, Pages
from pipeline.interop.neuronpedia.settings import Settings, Target, public_name, target_of
from pipeline.interop.neuronpedia.site import HOST, Site
from pipeline.interop.neuronpedia.upload import Sent, Upload

NAME, MARK = "neuronpedia", "neuronpedia.json"
FOLDER = Path("data") / "export" / NAME
FIGURES = ("fvu", "l0_mean", "delta_ce", "ce_loss_recovered_mean")


@dataclass
class Counts:
    """What a pass over the pages has found.

    Attributes:
        features, activations, explanations: in all.
        dead: features without an activation, which no batch can hold.
        logits: features with more logits than a batch takes.
        batches, size: number of upload batches, and their bytes.
    """

    features: int = 0
    activations: int = 0
    explanations: int = 0
    dead: int = 0
    logits: int = 0
    batches: int = 0
    size: int = 0

    def seen(self, pages: Pages) -> Iterator[Page]:
        """The pages, counted."""
        for page in pages:
            self.features += 1
            self.activations += len(page.shown)
            self.explanations += page.explanation is not None
            self.dead += not page.shown
            self.logits += max(len(page.promoted[0]), len(page.suppressed[0])) > LOGITS
            yield page


@dataclass(frozen=True)
class Ready:
    """Features to be exported.

    Attributes:
        pages: of the features.
        target: names on the site.
        settings: what `--set` says.
        digest: of the feature store.
        facts: dataset, context_size and notes of a source.
    """

    pages: Pages
    target: Target
    settings: Settings
    digest: str
    facts: dict[str, Any]


class _Neuronpedia(FeatureFormat):
    name = NAME

    def export(self, inputs: FeatureInputs, to: str | None, settings: Sequence[str], *, dry_run: bool) -> list[str]:
        address, place, source_set = _where(to, inputs)
        given = settings_of(Settings, (*settings, *([f"source_set={source_set}"] if source_set else [])), NAME)
        ready = _ready(inputs, given)
        if address is not None:
            return _uploaded(ready, address, dry_run)
        if dry_run:
            return [*_said(ready, _checked(ready)), f"{place}: dry run: nothing was written"]
        return _written(ready, place)


FORMAT = _Neuronpedia()


def _where(to: str | None, inputs: FeatureInputs) -> tuple[str | None, Path, str]:
    """(address of a site or None, directory, source set) that --to names."""
    own = FOLDER / inputs.params.dictionary.name / inputs.member
    if to is None:
        return None, own, ""
    if to.startswith(f"{NAME}:"):
        return HOST, own, to.removeprefix(f"{NAME}:")
    return (to, own, "") if "://" in to else (None, Path(to), "")


def _ready(inputs: FeatureInputs, settings: Settings) -> Ready:
    store = FeatureStore(inputs.features)
    digest, target = store_digest(store), target_of(store.about, settings)
    pages = Pages(store, read_explanations(inputs.interpretations, digest))
    facts = {
        "dataset": public_name(str(inputs.params.dataset.dataset_name_or_path or "")) or None,
        "context_size": inputs.params.activations.context_size,
        "notes": _notes(inputs, store),
    }
    return Ready(pages, target, settings, digest, facts)


def _notes(inputs: FeatureInputs, store: FeatureStore) -> str:
    """What the features were found on, and how good the dictionary is, where it was evaluated."""
    said = [f"features over {store.about['tokens']:,} tokens"]
    if inputs.evaluation.exists():
        found = read_object(inputs.evaluation, "the evaluation", "run `dvc repro evaluate`")
        own = found.get(inputs.member) if inputs.member else found
        figures = own if isinstance(own, dict) else {}
        said += [f"{name} {figures[name]:.4g}" for name in FIGURES if isinstance(figures.get(name), (int, float))]
    return ", ".join(said)


def _checked(ready: Ready, files: BatchFiles | None = None) -> Counts:
    """Make and check every upload batch, and count; with files also write them."""
    counts = Counts()
    for batch in batches(counts.seen(ready.pages), ready.target, ready.settings):
        counts.batches, counts.size = counts.batches + 1, counts.size + len(batch.body)
        if files is not None:
            files.add(batch)
    return counts


def _said(ready: Ready, counts: Counts) -> list[str]:
    target, settings = ready.target, ready.settings
    place = f"{NAME}: model {target.model_id}, {_several(target.sources)}"
    lines = [
        f"{place}: {counts.features:,} features, {counts.activations:,} activations, {counts.explanations:,} explanations",
        f"{NAME}: {counts.batches:,} upload batches of at most {settings.batch_features} features, {counts.size:,} bytes, "
        "each within the site's limits",
    ]
    if counts.dead:
        lines.append(f"{NAME}: {counts.dead:,} features have no activation, which an upload cannot hold: they are not in it")
    if counts.logits:
        lines.append(f"{NAME}: of {counts.logits:,} features an upload holds the {LOGITS} strongest logits alone")
    if ready.pages.outside:
        lines.append(f"{NAME}: {ready.pages.outside:,} tokens that activations come from lie before the windows: left out")
    return lines


def _several(sources: Sequence[str]) -> str:
    return f"source {sources[0]}" if len(sources) == 1 else f"sources {sources[0]} to {sources[-1]}"


def _written(ready: Ready, place: Path) -> list[str]:
    """Write the forms that are asked for, all or nothing."""
    if place.exists() and not (place.is_dir() and (not any(place.iterdir()) or (place / MARK).is_file())):
        raise DataError(f"{place}: something else than an export to Neuronpedia is here; give another place by --to")
    forms, lines = ready.settings.forms, []
    with atomic_directory(place) as folder:
        counts = _checked(ready, BatchFiles(folder / "upload") if "upload" in forms else None)
        with contextlib.ExitStack() as stack:
            sinks: list[BulkFiles | ArrowFiles] = []
            if "bulk" in forms:
                own = BulkFiles(
                    folder / "bulk",
                    ready.target,
                    ready.settings,
                    ready.digest,
                    attention=ready.pages.attention,
                    facts=ready.facts,
                )
                sinks.append(own)
            if "arrow" in forms:
                sinks.append(ArrowFiles(folder / "arrow", ready.target, attention=ready.pages.attention))
            for sink in sinks:
                stack.callback(sink.close)
            for page in ready.pages if sinks else ():
                for sink in sinks:
                    sink.add(page)
        for form in forms:
            files = [path for path in (folder / form).rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
            lines.append(f"{place / form}: {len(files):,} files, {size:,} bytes")
        numbers = {name: getattr(counts, name) for name in ("features", "activations", "explanations")}
        said = {"format": NAME, "model_id": ready.target.model_id, "sources": list(ready.target.sources)}
        write_json(folder / MARK, {**said, **numbers, "feature_store": ready.digest})
    return [*_said(ready, counts), *lines]


def _uploaded(ready: Ready, address: str, dry_run: bool) -> list[str]:
    """Check every batch, then send them."""
    counts = _checked(ready)
    lines = _said(ready, counts)
    if dry_run:
        return [*lines, f"{address}: dry run: nothing was sent"]
    site = Site(address, backoff_s=ready.settings.backoff_s)
    try:
        parts = urlsplit(site.address)
        host = f"{parts.hostname}-{parts.port}" if parts.port else str(parts.hostname)
        journal = FOLDER / "uploads" / host / ready.target.model_id / f"{ready.target.source_set}.jsonl"
        upload = Upload(site, ready.target, ready.settings, journal, ready.digest)
        sent = upload.send(ready.pages, counts.features - counts.dead)
    finally:
        site.close()
    return [*lines, *_sent(sent, site.address)]


def _sent(sent: Sent, address: str) -> list[str]:
    lines = [f"{address}: {sent.features:,} features sent in {sent.batches:,} batches, {sent.size:,} bytes"]
    if sent.before:
        lines.append(f"{address}: {sent.before:,} features were accepted before and not sent again")
    if sent.found:
        lines.append(f"{address}: {sent.found:,} batches whose reply was lost had been accepted: not sent again")
    if sent.waits:
        lines.append(f"{address}: waited {sent.waits:,} times for the site")
    return lines
