"""The feature store, data/features/: two Parquet files whose schema is feature_columns.py and docs/features.md.

features.parquet has a row for each feature, in order; contexts.parquet the contexts shown for it, features in order. The
file metadata of both holds, as JSON under the key "scopeline": format_version, dictionary (a line), hook_points_in,
hook_points_out, feature_shape, model, split, tokens (that were seen), excluded_tokens (massive ones that were left out;
missing in stores of before), coactivation_tokens, histogram_edges, and logit_softcap where the model has one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.analysis.feature_checks import check_store
from pipeline.analysis.feature_columns import CONTEXT_COLUMNS, CONTEXTS, FEATURE_COLUMNS, FEATURES, NEXT, TOP, arrow_type
from pipeline.errors import DataError
from pipeline.files import json_object, parse_json
from pipeline.foreign import reading

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMAT_VERSION = 1
KEY = b"scopeline"


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

    return pa.schema([(name, arrow_type(column)) for name, column in FEATURE_COLUMNS.items()])


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

    return pa.schema([(name, arrow_type(column)) for name, column in CONTEXT_COLUMNS.items()])


class TableWriter:
    """One of the two files, written a block of rows at a time.

    Args:
        path: of the file.
        schema: of its columns.
        about: kept in its metadata.
    """

    def __init__(self, path: Path, schema: pa.Schema, about: Mapping[str, Any]) -> None:
        import pyarrow.parquet as pq

        self.schema = schema.with_metadata({KEY: json.dumps(dict(about), sort_keys=True).encode()})
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
    """A feature store that is read. All of it is looked at once, when it is opened (feature_checks.py).

    Args:
        folder: data/features.

    Raises:
        DataError: it is missing, damaged, of another version, or holds what no column may hold.
    """

    def __init__(self, folder: str | Path) -> None:
        import pyarrow.parquet as pq

        self.folder = Path(folder)
        for name in (FEATURES, CONTEXTS):
            if not (self.folder / name).exists():
                raise DataError(f"{self.folder / name}: the feature store is missing; {NEXT}")
        with self._reading(FEATURES):
            self._features = pq.ParquetFile(self.folder / FEATURES)
        with self._reading(CONTEXTS):
            self._contexts = pq.ParquetFile(self.folder / CONTEXTS)
        self.about = self._about(FEATURES, self._features)
        if self.about.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{self.folder}: feature store {self.about.get('format_version')!r}, wanted {FORMAT_VERSION}; {NEXT}"
            )
        if self._about(CONTEXTS, self._contexts) != self.about:
            raise DataError(f"{self.folder / CONTEXTS}: not written with {FEATURES}: it states something else; {NEXT}")
        check_store(self)

    def digest(self) -> str:
        """sha256 over the contents of the two files."""
        digest = hashlib.sha256()
        for name in (FEATURES, CONTEXTS):
            with open(self.folder / name, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def _reading(self, name: str) -> AbstractContextManager[None]:
        return reading(f"{self.folder / name}: the feature store is damaged", NEXT)

    def _about(self, name: str, file: pq.ParquetFile) -> dict[str, Any]:
        what = f"{self.folder / name}: the description in its metadata (key {KEY.decode()})"
        with self._reading(name):
            stated = (file.schema_arrow.metadata or {}).get(KEY)
        return json_object(parse_json(b"null" if stated is None else stated, what, NEXT), what, NEXT)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return int(self._features.metadata.num_rows)

    @property
    def files(self) -> dict[str, pq.ParquetFile]:
        """{name: the open file}."""
        return {FEATURES: self._features, CONTEXTS: self._contexts}

    def tables(self, numbered: Mapping[str, Sequence[str]] | None = None) -> Iterator[tuple[pa.Table, pa.Table]]:
        """(rows of features, rows of their contexts), a block at a time; both files have the same blocks.

        Args:
            numbered: {file: paths of texts that are read as numbers of a dictionary}.
        """
        import pyarrow.parquet as pq

        opened = {}
        for name, paths in (numbered or {}).items():
            with self._reading(name):
                opened[name] = pq.ParquetFile(self.folder / name, read_dictionary=list(paths))
        features, contexts = ({**self.files, **opened}[name] for name in (FEATURES, CONTEXTS))
        for group in range(self._features.num_row_groups):
            with self._reading(FEATURES):
                some = features.read_row_group(group)
            with self._reading(CONTEXTS):
                shown = contexts.read_row_group(group)
            yield some, shown

    def features(self, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """All rows of features.parquet, or some of their columns."""
        with self._reading(FEATURES):
            rows = table_rows(self._features.read(columns=columns))
        return rows

    def blocks(self) -> Iterator[tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]]]:
        """(rows of features, {feature: rows of its contexts}), a block at a time."""
        for features, contexts in self.tables():
            rows = table_rows(features)
            found: dict[int, list[dict[str, Any]]] = {row["feature"]: [] for row in rows}
            for row in table_rows(contexts):
                found[row["feature"]].append(row)
            yield rows, found

    def contexts(self, feature: int) -> list[dict[str, Any]]:
        """The contexts of one feature."""
        import pyarrow.parquet as pq

        with self._reading(CONTEXTS):
            found = pq.read_table(self.folder / CONTEXTS, filters=[("feature", "=", feature)])
        return sorted(table_rows(found), key=lambda row: (row["band"] != TOP, row["band"], row["place"]))


def table_rows(table: pa.Table) -> list[dict[str, Any]]:
    """What `to_pylist` gives, in a fifth of the time: whole columns are turned into Python's values, not one after another."""
    columns = [_values(column.combine_chunks()) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(array: pa.Array) -> list[Any]:
    import pyarrow as pa

    kind = array.type
    if array.null_count:
        return array.to_pylist()  # type: ignore[no-any-return]
    if pa.types.is_list(kind):
        values = _values(array.flatten())
        ends = [0, *array.value_lengths().to_numpy(zero_copy_only=False).cumsum(dtype="int64").tolist()]
        return [values[start:end] for start, end in itertools.pairwise(ends)]
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return [dict(zip(names, row, strict=True)) for row in zip(*map(_values, array.flatten()), strict=True)]
    if pa.types.is_string(kind):
        array = array.dictionary_encode()
    if pa.types.is_dictionary(array.type):
        texts = array.dictionary.to_pylist()
        return [texts[i] for i in array.indices.to_numpy(zero_copy_only=False).tolist()]
    return array.to_numpy(zero_copy_only=False).tolist()  # type: ignore[no-any-return]
