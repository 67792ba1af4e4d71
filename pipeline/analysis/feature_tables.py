"""The feature store, data/features/: two Parquet files whose schema is this module and docs/features.md.

features.parquet has a row for each feature, in order; contexts.parquet the contexts shown for it, features in order. The
file metadata of both holds, as JSON under the key "scopeline": format_version, dictionary (a line), hook_points_in,
hook_points_out, feature_shape, model, split, tokens (that were seen), excluded_tokens (massive ones that were left out;
missing in stores of before), coactivation_tokens, histogram_edges.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1
FEATURES, CONTEXTS = "features.parquet", "contexts.parquet"
TOP, INACTIVE = "top", "inactive"
_KEY = b"scopeline"
_NEXT = "run `dvc repro analyze`"


def band_name(band: int, bands: int) -> str:
    """The quantile band of the activation: `75-100 %` is the highest of four."""
    return f"{round(100 * band / bands)}-{round(100 * (band + 1) / bands)} %"


def features_schema() -> pa.Schema:
    """Columns of features.parquet.

    feature: index among all features. name: `513`, or `2/513` for feature 513 of layer 2. layer: null without layers.
    active_tokens, density: kept tokens, excluded ones left out, on which it is active, and their share. max_activation,
    mean_activation (over the tokens on which it is active), in the dictionary's units (folded: the model's own). energy: its
    share of the sum over tokens and features of (activation x decoder norm)^2. decoder_norm: of all it writes; written_norms:
    at each written hook point; written_cosines: of what it writes at two of them, pairs (0, 1), (0, 2), ..., (1, 2), ...
    threshold: the activation above which a JumpReLU gate lets through. histogram: tokens by activation, in the bins
    histogram_edges (the first and the last also hold what is beyond). logit_kurtosis: excess kurtosis over the vocabulary of
    what it adds to the logits. promoted, suppressed: the tokens whose logits it raises and lowers most, for an activation of 1.
    decoder_neighbours: features with the most similar decoder rows. coactive_neighbours: features active on the same tokens, by
    Jaccard index (tokens with both / tokens with either) over the sampled tokens.
    """
    import pyarrow as pa

    tokens = pa.list_(pa.struct([("token", pa.int32()), ("text", pa.string()), ("logit", pa.float32())]))
    return pa.schema(
        [
            ("feature", pa.int32()),
            ("name", pa.string()),
            ("layer", pa.int16()),
            ("active_tokens", pa.int64()),
            ("density", pa.float64()),
            ("max_activation", pa.float32()),
            ("mean_activation", pa.float64()),
            ("energy", pa.float64()),
            ("decoder_norm", pa.float32()),
            ("written_norms", pa.list_(pa.float32())),
            ("written_cosines", pa.list_(pa.float32())),
            ("threshold", pa.float32()),
            ("histogram", pa.list_(pa.int64())),
            ("logit_kurtosis", pa.float32()),
            ("promoted", tokens),
            ("suppressed", tokens),
            ("decoder_neighbours", pa.list_(pa.struct([("feature", pa.int32()), ("cosine", pa.float32())]))),
            ("coactive_neighbours", pa.list_(pa.struct([("feature", pa.int32()), ("jaccard", pa.float32())]))),
        ]
    )


def contexts_schema() -> pa.Schema:
    """Columns of contexts.parquet: windows of text around one token, of one document, at most one of a context in a band.

    feature. band: `top`; a quantile band of the feature's largest activation in a context (over all contexts in which it is
    active) as `75-100 %`, drawn at random; or `inactive` (contexts in which it is never active). place: 0 is the strongest of
    its band. activation: the largest in the context (0 if inactive). context, position: of that token in the split of the token
    store (inactive: of a token drawn at random). document: key of its document; document_id: number in the split.
    token_start, token_end: characters of the token in the document; char_start, char_end: of the window. -1: none (a special
    token). tokens, texts, activations: of the window's tokens; peak: index of the token in them. sources: of attention
    dictionaries, the earlier tokens that this activation comes from, by position in the context, largest share first: text, and
    value (what that token contributes to the pre-activation).
    """
    import pyarrow as pa

    source = pa.struct([("position", pa.int32()), ("text", pa.string()), ("value", pa.float32())])
    return pa.schema(
        [
            ("feature", pa.int32()),
            ("band", pa.dictionary(pa.int8(), pa.string())),
            ("place", pa.int16()),
            ("activation", pa.float32()),
            ("context", pa.int32()),
            ("position", pa.int32()),
            ("document_id", pa.int32()),
            ("document", pa.string()),
            ("token_start", pa.int32()),
            ("token_end", pa.int32()),
            ("char_start", pa.int32()),
            ("char_end", pa.int32()),
            ("peak", pa.int16()),
            ("tokens", pa.list_(pa.int32())),
            ("texts", pa.list_(pa.string())),
            ("activations", pa.list_(pa.float32())),
            ("sources", pa.list_(source)),
        ]
    )


class TableWriter:
    """One of the two files, written a block of rows at a time.

    Args:
        path: of the file.
        schema: of its columns.
        about: kept in its metadata.
    """

    def __init__(self, path: Path, schema: pa.Schema, about: Mapping[str, Any]) -> None:
        import pyarrow.parquet as pq

        self.schema = schema.with_metadata({_KEY: json.dumps(dict(about), sort_keys=True).encode()})
        self._writer = pq.ParquetWriter(path, self.schema, compression="zstd")

    def write(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Append rows, given as one list for each column."""
        import pyarrow as pa

        table = pa.table({field.name: columns[field.name] for field in self.schema}, schema=self.schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class FeatureStore:
    """A feature store that is read.

    Args:
        folder: data/features.

    Raises:
        DataError: it is missing, damaged, or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.folder = Path(folder)
        for name in (FEATURES, CONTEXTS):
            if not (self.folder / name).exists():
                raise DataError(f"{self.folder / name}: the feature store is missing; {_NEXT}")
        try:
            self._features, self._contexts = (pq.ParquetFile(self.folder / name) for name in (FEATURES, CONTEXTS))
            self.about: dict[str, Any] = json.loads(self._features.schema_arrow.metadata[_KEY])
        except (pa.ArrowInvalid, KeyError, TypeError, OSError, ValueError) as error:
            raise DataError(f"{self.folder}: the feature store is damaged ({error}); {_NEXT}") from None
        if self.about.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{self.folder}: feature store {self.about.get('format_version')!r}, wanted {FORMAT_VERSION}; {_NEXT}"
            )
        for file, name, schema in (
            (self._features, FEATURES, features_schema()),
            (self._contexts, CONTEXTS, contexts_schema()),
        ):
            if not file.schema_arrow.equals(schema):
                raise DataError(f"{self.folder / name}: its columns are not those of a feature store; {_NEXT}")

    @property
    def n_features(self) -> int:
        """Number of features."""
        return int(self._features.metadata.num_rows)

    def features(self, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """All rows of features.parquet, or some of their columns."""
        rows: list[dict[str, Any]] = self._features.read(columns=columns).to_pylist()
        return rows

    def blocks(self) -> Iterator[tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]]]:
        """(rows of features, {feature: rows of its contexts}), a block at a time; both files have the same blocks."""
        for group in range(self._features.num_row_groups):
            rows = self._features.read_row_group(group).to_pylist()
            found: dict[int, list[dict[str, Any]]] = {row["feature"]: [] for row in rows}
            for row in self._contexts.read_row_group(group).to_pylist():
                found[row["feature"]].append(row)
            yield rows, found

    def contexts(self, feature: int) -> list[dict[str, Any]]:
        """The contexts of one feature."""
        import pyarrow.parquet as pq

        rows = pq.read_table(self.folder / CONTEXTS, filters=[("feature", "=", feature)]).to_pylist()
        return sorted(rows, key=lambda row: (row["band"] != TOP, row["band"], row["place"]))
