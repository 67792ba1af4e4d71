"""The Arrow form in which Language-Model-SAEs publishes features, which Neuronpedia's tools convert: a row for each feature."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.interop.neuronpedia.pages import Page, Shown
from pipeline.interop.neuronpedia.settings import Target

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 256  # of a record batch


def arrow_schema() -> pa.Schema:
    """The columns. z_pattern_indices: [the tokens that are active, those that they read], by index; null without attention."""
    import pyarrow as pa

    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float64())
    activation = [
        ("tokens", texts),
        ("values", numbers),
        ("z_pattern_indices", pa.list_(pa.list_(pa.int64()))),
        ("z_pattern_values", numbers),
    ]
    return pa.schema(
        [
            ("feature_index", pa.int64()),
            ("frac_nonzero", pa.float64()),
            ("explanations", texts),
            ("top_pos_logits_str", texts),
            ("top_pos_logits_val", numbers),
            ("top_neg_logits_str", texts),
            ("top_neg_logits_val", numbers),
            ("activations", pa.list_(pa.struct(activation))),
        ]
    )


class ArrowFiles:
    """<folder>/<source>/data.arrow of each source, an IPC stream.

    Args:
        folder: that they are written to.
        target: names on the site.
        attention: activations state what they come from.
    """

    def __init__(self, folder: Path, target: Target, *, attention: bool) -> None:
        self._folder, self._target, self._attention = folder, target, attention
        self._source, self._writer, self._rows = -1, None, list[dict[str, Any]]()
        self._schema = arrow_schema()

    def add(self, page: Page) -> None:
        """Write a feature."""
        if page.source != self._source:
            self.close()
            self._open(page.source)
        self._rows.append(self._row(page))
        if len(self._rows) == ROWS:
            self._flush()

    def close(self) -> None:
        """Finish the file that is open."""
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None

    def _open(self, source: int) -> None:
        import pyarrow as pa

        place = self._folder / self._target.sources[source] / "data.arrow"
        place.parent.mkdir(parents=True, exist_ok=True)
        self._source, self._writer = source, pa.ipc.new_stream(str(place), self._schema)

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows and self._writer is not None:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def _row(self, page: Page) -> dict[str, Any]:
        return {
            "feature_index": page.index,
            "frac_nonzero": page.density,
            "explanations": [] if page.explanation is None else [page.explanation.text],
            "top_pos_logits_str": page.promoted[0],
            "top_pos_logits_val": page.promoted[1],
            "top_neg_logits_str": page.suppressed[0],
            "top_neg_logits_val": page.suppressed[1],
            "activations": [self._activation(shown) for shown in page.shown],
        }

    def _activation(self, shown: Shown) -> dict[str, Any]:
        indices = [[shown.peak] * len(shown.sources), [place for place, _ in shown.sources]]
        return {
            "tokens": shown.tokens,
            "values": shown.values,
            "z_pattern_indices": indices if self._attention else None,
            "z_pattern_values": [value for _, value in shown.sources] if self._attention else None,
        }
