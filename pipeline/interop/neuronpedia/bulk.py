"""Bulk files: what Neuronpedia's import reads, with the columns of its tables.

    <model>/<source>/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl                a line each
                     features/batch-0.jsonl.gz, activations/batch-0.jsonl.gz, explanations/...   a line for each row

The import takes the columns of a file from its first line, so all lines have the same keys; what is not stated (times, columns
that nothing here fills) has the site's default. The ids of rows follow from what they are of: a second import adds nothing.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.interop.neuronpedia.batches import encoded
from pipeline.interop.neuronpedia.pages import Page, Shown
from pipeline.interop.neuronpedia.settings import Settings, Target

FEATURES_OF_A_FILE = 1024
_TOP = (-1.0, -1.0)  # smallest activation and share by which the site tells the strongest of all


class BulkFiles:
    """The files of a dictionary, a source after the other.

    Args:
        folder: that they are written to.
        target: names on the site.
        settings: names that the site must know.
        digest: of the feature store; the ids of rows depend on it.
        attention: activations state what they come from.
        facts: dataset, context_size and notes of a source.
    """

    def __init__(
        self, folder: Path, target: Target, settings: Settings, digest: str, *, attention: bool, facts: Mapping[str, Any]
    ) -> None:
        self._folder, self._target, self._settings, self._digest = folder, target, settings, digest
        self._attention, self._facts = attention, facts
        self._source, self._number, self._features = -1, 0, 0
        self._open = contextlib.ExitStack()
        self._files: dict[str, gzip.GzipFile] = {}

    def add(self, page: Page) -> None:
        """Write a feature and what belongs to it."""
        if page.source != self._source:
            self.close()
            self._source, self._number = page.source, 0
            self._describe()
        elif self._features == FEATURES_OF_A_FILE:
            self.close()
            self._number += 1
        self._features += 1
        self._write("features", self._feature(page))
        for number, shown in enumerate(page.shown):
            self._write("activations", self._activation(page, number, shown))
        if page.explanation is not None:
            self._write("explanations", self._explanation(page, page.explanation.text, page.explanation.notes))

    def close(self) -> None:
        """Finish the files that are open."""
        self._open.close()
        self._files, self._features = {}, 0

    def _write(self, kind: str, row: Mapping[str, Any]) -> None:
        if kind not in self._files:
            place = self._place / kind / f"batch-{self._number}.jsonl.gz"
            place.parent.mkdir(parents=True, exist_ok=True)
            stream = gzip.GzipFile(place, "wb", compresslevel=6, mtime=0)
            self._files[kind] = self._open.enter_context(stream)
        self._files[kind].write(encoded(row) + b"\n")

    @property
    def _place(self) -> Path:
        return self._folder / self._target.model_id / self._name

    @property
    def _name(self) -> str:
        return self._target.sources[self._source]

    def _describe(self) -> None:
        target, said, facts = self._target, self._settings, self._facts
        urls, creator = [said.url] if said.url else [], {"creatorId": said.creator_id}
        release = said.release or target.source_set
        rows = {
            "release": {
                "name": release, "description": target.description, "descriptionShort": target.description, "urls": urls,
                "creatorName": said.creator_name, "creatorNameShort": said.creator_name, "visibility": "PUBLIC", **creator,
            },
            "model": {
                "id": target.model_id, "displayName": target.model_id, "displayNameShort": target.model_id,
                "layers": target.layers, "neuronsPerLayer": 0, "owner": said.creator_name, "visibility": "PUBLIC", **creator,
            },
            "sourceset": {
                "modelId": target.model_id, "name": target.source_set, "description": target.description, "urls": urls,
                "creatorName": said.creator_name, "releaseName": release, "visibility": "PUBLIC", **creator,
            },
            "source": {
                "modelId": target.model_id, "id": self._name, "setName": target.source_set, "visibility": "PUBLIC",
                "dataset": facts["dataset"], "num_tokens_in_prompt": facts["context_size"], "notes": facts["notes"],
                "hfRepoId": said.hf_repo or None, "hfFolderId": said.hf_folder or None, **creator,
            },
        }  # fmt: skip
        self._place.mkdir(parents=True, exist_ok=True)
        for name, row in rows.items():
            (self._place / f"{name}.jsonl").write_bytes(encoded(row) + b"\n")

    def _of(self, page: Page) -> dict[str, Any]:
        return {"modelId": self._target.model_id, "layer": self._name, "index": str(page.index)}

    def _id(self, page: Page, *what: object) -> str:
        said = "\n".join(map(str, (self._digest, *self._of(page).values(), *what)))
        return "c" + hashlib.sha256(said.encode()).hexdigest()[:24]

    def _feature(self, page: Page) -> dict[str, Any]:
        return {
            **self._of(page),
            "creatorId": self._settings.creator_id,
            "sourceSetName": self._target.source_set,
            "maxActApprox": page.largest,
            "frac_nonzero": page.density,
            "pos_str": page.promoted[0],
            "pos_values": page.promoted[1],
            "neg_str": page.suppressed[0],
            "neg_values": page.suppressed[1],
            "freq_hist_data_bar_values": page.histogram[0],
            "freq_hist_data_bar_heights": page.histogram[1],
            "topkCosSimIndices": [index for index, _ in page.similar],
            "topkCosSimValues": [cosine for _, cosine in page.similar],
        }

    def _activation(self, page: Page, number: int, shown: Shown) -> dict[str, Any]:
        strongest = max(shown.values)
        low, high, share = shown.quantile or (_TOP[0], page.largest, _TOP[1])
        row = {
            "id": self._id(page, "activation", number),
            **self._of(page),
            "creatorId": self._settings.creator_id,
            "tokens": shown.tokens,
            "values": shown.values,
            "maxValue": strongest,
            "maxValueTokenIndex": shown.values.index(strongest),
            "minValue": min(shown.values),
            "binMin": low,
            "binMax": high,
            "binContains": share,
        }
        if self._attention:
            row["zIndices"] = [[shown.peak] * len(shown.sources), [place for place, _ in shown.sources]]
            row["zValues"] = [value for _, value in shown.sources]
        return row

    def _explanation(self, page: Page, text: str, notes: str) -> dict[str, Any]:
        return {
            "id": self._id(page, "explanation"),
            **self._of(page),
            "authorId": self._settings.creator_id,
            "description": text,
            "typeName": self._settings.explanation_method or None,
            "explanationModelName": self._settings.explanation_model or None,
            "notes": notes,
        }
