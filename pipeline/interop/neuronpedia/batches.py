"""Upload batches: the bodies of POST /api/feature/upload-batch, each checked against the site's limits."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import DataError
from pipeline.interop.neuronpedia.limits import LOGITS, check_batch
from pipeline.interop.neuronpedia.pages import Page, Shown
from pipeline.interop.neuronpedia.settings import Settings, Target

_TOP = -1.0  # quantileMin of the strongest of all: the site heads them as such


class Batch(NamedTuple):
    """A batch.

    Attributes:
        source: name of its source.
        indexes: of its features, within the source.
        activations, explanations: how many it holds.
        body: JSON.
    """

    source: str
    indexes: list[int]
    activations: int
    explanations: int
    body: bytes


def feature_object(page: Page, settings: Settings) -> dict[str, Any]:
    """A feature as a batch has it; of more logits than the site takes, the strongest."""
    return {
        "index": page.index,
        "density": page.density,
        "topLogits": _logits(*page.promoted),
        "bottomLogits": _logits(*page.suppressed),
        "explanations": _explanations(page, settings),
        "activations": [_activation(shown, page.largest) for shown in page.shown],
    }


def batches(
    pages: Iterable[Page], target: Target, settings: Settings, accepted: Collection[tuple[str, int]] = ()
) -> Iterator[Batch]:
    """All features that have an activation, which the site asks for, in batches of one source each.

    Args:
        pages: in the order of features.
        target: where they go.
        settings: how large a batch may be.
        accepted: (name of the source, index) of features that are left out.

    Raises:
        DataError: the site would refuse a batch, or a feature alone is larger than a batch may be.
    """
    waiting: list[tuple[Page, bytes]] = []
    size, longest = 0, settings.batch_bytes
    for page in pages:
        if not page.shown or (target.sources[page.source], page.index) in accepted:
            continue
        text = encoded(feature_object(page, settings))
        if waiting and (
            page.source != waiting[0][0].source or len(waiting) == settings.batch_features or size + len(text) + 1 > longest
        ):
            yield _batch(waiting, target)
            waiting, size = [], 0
        size += len(text) + 1 if waiting else len(text) + len(_ends(target, target.sources[page.source], b""))
        if size > longest:
            raise DataError(
                f"feature {page.index} of {target.sources[page.source]} takes {size:,} bytes, more than the {longest:,} of a "
                "batch; raise --set batch_bytes, or lower analysis.top_contexts, band_contexts or the windows and run "
                "`dvc repro analyze`"
            )
        waiting.append((page, text))
    if waiting:
        yield _batch(waiting, target)


def _batch(features: list[tuple[Page, bytes]], target: Target) -> Batch:
    source = target.sources[features[0][0].source]
    body = _ends(target, source, b",".join(text for _, text in features))
    indexes = [page.index for page, _ in features]
    check_batch(json.loads(body), f"batch of features {indexes[0]} to {indexes[-1]} of {source}")
    shown = sum(len(page.shown) for page, _ in features)
    return Batch(source, indexes, shown, sum(page.explanation is not None for page, _ in features), body)


def _ends(target: Target, source: str, features: bytes) -> bytes:
    head = encoded({"modelId": target.model_id, "source": source})
    return head[:-1] + b',"features":[' + features + b"]}"


def encoded(value: Any) -> bytes:
    """JSON in UTF-8 without spaces."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _logits(texts: list[str], values: list[float]) -> list[dict[str, Any]]:
    pairs = list(zip(texts, values, strict=True))[:LOGITS]
    return [{"token": text, "value": value} for text, value in pairs]


def _explanations(page: Page, settings: Settings) -> list[dict[str, Any]]:
    if page.explanation is None:
        return []
    stated = {"methodName": settings.explanation_method, "modelName": settings.explanation_model}
    return [{"text": page.explanation.text, **{key: name for key, name in stated.items() if name}}]


def _activation(shown: Shown, largest: float) -> dict[str, Any]:
    low, high, share = shown.quantile or (_TOP, largest, None)
    quantile = {"quantileMin": low, "quantileMax": high, "quantileFraction": share}
    return {"tokens": shown.tokens, "values": shown.values, **quantile}


class BatchFiles:
    """Batches as files: <folder>/<source>/batch-0.json, ... of each source."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[str, int] = {}

    def add(self, batch: Batch) -> None:
        """Write one."""
        number = self._written.get(batch.source, 0)
        place = self._folder / batch.source
        place.mkdir(parents=True, exist_ok=True)
        (place / f"batch-{number}.json").write_bytes(batch.body)
        self._written[batch.source] = number + 1
