"""Features to a site, in batches; one that the site has accepted is never sent again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from pipeline.errors import DataError
from pipeline.files import locked
from pipeline.interop.neuronpedia.batches import Batch, batches, encoded
from pipeline.interop.neuronpedia.journal import Journal
from pipeline.interop.neuronpedia.limits import LAYERS
from pipeline.interop.neuronpedia.site import Site, SiteError, object_of
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.interop.neuronpedia.pages import Page
    from pipeline.interop.neuronpedia.settings import Settings, Target

_BATCH = "/api/feature/upload-batch"


class Sent(NamedTuple):
    """What an upload came to.

    Attributes:
        features, batches, size: sent now, of size bytes.
        before: features that the site had accepted before.
        found: batches whose reply was lost and that the site had nevertheless.
        waits: times that were waited for the site.
    """

    features: int
    batches: int
    size: int
    before: int
    found: int
    waits: int


class Upload:
    """Features on their way to a source set.

    Args:
        site: that they go to.
        target: names there.
        settings: sizes of a batch, and whether to make what is missing.
        journal: file in which it is kept what was accepted.
        digest: of the feature store.
    """

    def __init__(self, site: Site, target: Target, settings: Settings, journal: Path, digest: str) -> None:
        self._site, self._target, self._settings = site, target, settings
        self._path, self._digest = journal, digest
        self._found = 0

    def send(self, pages: Iterable[Page], total: int) -> Sent:
        """Send what is not accepted yet.

        Args:
            pages: in the order of features; every batch of them has been checked.
            total: features that have an activation, for the progress.

        Raises:
            SiteError: the site cannot be reached, or refuses.
            DataError: the source set is not there or has features of others, or another process is sending to it.
        """
        with locked(self._path.with_suffix(".lock"), "the upload"):
            journal = Journal(self._path, self._digest)
            self._prepare()
            self._settle(journal)
            before = len(journal.accepted)
            progress = Progress("upload", total, unit="features", done=before)
            features = count = size = 0
            for batch in batches(pages, self._target, self._settings, frozenset(journal.accepted)):
                if not journal.begun:
                    self._refuse_used(batch)
                    journal.begun = True
                self._one(batch, journal)
                features, count, size = features + len(batch.indexes), count + 1, size + len(batch.body)
                progress.update(len(batch.indexes))
            progress.close()
        return Sent(features, count, size, before, self._found, self._site.waits)

    def _prepare(self) -> None:
        """The source set must be there: the site says nothing but that something went wrong where it is not."""
        target = self._target
        place = f"/api/source-set/{quote(target.model_id)}/{quote(target.source_set)}"
        found = self._site.get(place)
        if found is None and self._settings.create:
            self._create()
            found = self._site.get(place)
        if found is None:
            raise DataError(
                f"{self._site.address}: model '{target.model_id}' has no source set '{target.source_set}' there; "
                "make both by --set create=true, or name one that is by --set model_id and source_set"
            )
        there = {source.get("id") for source in object_of(found, place).get("sources") or [] if isinstance(source, dict)}
        missing = [source for source in target.sources if source not in there]
        if missing:
            raise DataError(
                f"{self._site.address}: the source set '{target.source_set}' of model '{target.model_id}' has no source "
                f"'{missing[0]}'; its model there has fewer layers, or give another --set layer"
            )

    def _create(self) -> None:
        target = self._target
        if target.layers > LAYERS:
            raise DataError(f"Neuronpedia: a model there has at most {LAYERS} layers, '{target.model_id}' has {target.layers}")
        url = {"url": self._settings.url} if self._settings.url else {}
        self._made("/api/model/new", {"id": target.model_id, "layers": target.layers, **url})
        said = {"name": target.source_set, "modelId": target.model_id, "description": target.description}
        self._made("/api/source-set/new", said | url)

    def _made(self, path: str, said: Mapping[str, object]) -> None:
        """Make it; what is there already is no fault."""
        try:
            self._site.post(path, encoded(said))
        except SiteError as error:
            if "already exists" not in str(error):
                raise

    def _settle(self, journal: Journal) -> None:
        """The batch that an earlier process was stopped at."""
        if journal.open is not None:
            source, indexes = journal.open
            there = self._has(source, indexes[0])
            self._found += there
            journal.write("accepted" if there else "absent", source, indexes)

    def _refuse_used(self, batch: Batch) -> None:
        """Nothing is put to what others have sent: the site keeps its features and would add activations to them."""
        if self._has(batch.source, batch.indexes[0]):
            raise DataError(
                f"{self._site.address}: source '{batch.source}' has a feature {batch.indexes[0]} already, which was not "
                "sent from here; give another --set source_set"
            )

    def _one(self, batch: Batch, journal: Journal) -> None:
        journal.write("sent", batch.source, batch.indexes)

        def done() -> bool:
            there = self._has(batch.source, batch.indexes[0])
            self._found += there
            return there

        self._site.post(_BATCH, batch.body, done)
        journal.write("accepted", batch.source, batch.indexes)

    def _has(self, source: str, index: int) -> bool:
        """Whether a feature is there; a batch is taken whole or not at all."""
        place = f"/api/feature/{quote(self._target.model_id)}/{quote(source)}/{index}"
        return self._site.get(place) is not None
