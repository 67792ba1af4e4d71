"""Feature stores with one thing wrong: every reader refuses them in one line that names the place; whole ones are taken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.analysis.feature_checks import ABOUT
from pipeline.analysis.feature_columns import CONTEXT_COLUMNS, CONTEXTS, FEATURE_COLUMNS, FEATURES, Listed, Record, Values
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.errors import DataError
from stages.interpret import main as interpret
from tests.dashboard import synthetic
from tests.messages import says

ROW = 3
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module", params=[(20,), (2, 10)], ids=["flat", "layers"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole") / "features"
    return synthetic.make_store(place, 20, contexts=2, shape=request.param, hooks=3, sources=True)


def put(column: str, value: Any, row: int = ROW) -> Change:
    """One value of a column becomes another; a function makes it of the old one."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        at = table.schema.get_field_index(column)
        return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))

    return change


def inside(column: str, value: Any, field: str | None = None) -> Change:
    """The first element of a list (or a field of it) becomes another."""
    return put(column, lambda old: [{**old[0], field: value} if field else value, *old[1:]])


def mapped(column: str, function: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(column)
        values = pa.array(function(table[column].to_numpy()), table.schema.field(at).type)
        return table.set_column(at, table.schema.field(at), values)

    return change


def retyped(column: str, kind: pa.DataType) -> Change:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(column)
        return table.set_column(at, column, pc.cast(table[column], kind))

    return change


def described(**changes: Any) -> Change:
    def change(table: pa.Table) -> pa.Table:
        about = json.loads(table.schema.metadata[b"scopeline"])
        kept = {key: value for key, value in {**about, **changes}.items() if value != "lost"}
        return table.replace_schema_metadata({b"scopeline": json.dumps(kept).encode()})

    return change


def not_utf8(table: pa.Table) -> pa.Table:
    at = table.schema.get_field_index("document")
    values = pa.array([b"\xff"] * len(table), pa.binary()).view(pa.string())
    return table.set_column(at, table.schema.field(at), values)


def shifted(table: pa.Table) -> pa.Table:
    """Each context under the number of the next feature."""
    return mapped("feature", lambda numbers: numbers + 1)(table.filter(pc.less(table["feature"], 19)))


NAN, INFINITY = math.nan, math.inf
# (file, damage, useful parts of the message)
DAMAGES: dict[str, tuple[str, Change, tuple[object, ...]]] = {
    "duplicate number": (FEATURES, put("feature", 2), ("row 3", "feature 2", 3)),
    "shifted numbers": (FEATURES, mapped("feature", lambda n: np.minimum(n + 1, 19)), ("row 0", "feature 1")),
    "foreign number": (FEATURES, put("feature", 20), ("row 3", "feature", 20, "0 to 19")),
    "negative number": (FEATURES, put("feature", -1), ("row 3", "feature", -1)),
    "other order": (FEATURES, lambda t: t.take(list(range(19, -1, -1))), ("row 0", "feature 19")),
    "a row lost": (FEATURES, lambda t: t.slice(1), (19, 20)),
    "other name": (FEATURES, put("name", "elsewhere"), ("row 3", "'elsewhere'")),
    "other layer": (FEATURES, put("layer", 7), ("row 3", "layer 7")),
    "more active tokens than tokens": (FEATURES, put("active_tokens", 100_001), ("row 3", "active_tokens", "100,000")),
    "negative count": (FEATURES, put("active_tokens", -1), ("row 3", "active_tokens", -1)),
    "density above 1": (FEATURES, put("density", 1.5), ("row 3", "density", 1.5)),
    "density NaN": (FEATURES, put("density", NAN), ("row 3", "density", "nan")),
    "energy negative": (FEATURES, put("energy", -0.5), ("row 3", "energy", -0.5)),
    "maximum infinite": (FEATURES, put("max_activation", INFINITY), ("row 3", "max_activation", "inf")),
    "mean null": (FEATURES, put("mean_activation", None), ("row 3", "mean_activation", "null")),
    "threshold NaN": (FEATURES, put("threshold", NAN), ("row 3", "threshold", "nan")),
    "a norm too few": (FEATURES, put("written_norms", lambda old: old[1:]), ("row 3", "written_norms", 2, 3)),
    "a norm null": (FEATURES, inside("written_norms", None), ("row 3", "written_norms", "null")),
    "cosine above 1": (FEATURES, inside("written_cosines", 1.5), ("row 3", "written_cosines", 1.5)),
    "a cosine too many": (FEATURES, put("written_cosines", lambda old: [*old, 0.0]), ("row 3", "written_cosines", 4, 3)),
    "histogram of other bins": (FEATURES, put("histogram", [1]), ("row 3", "histogram", 1)),
    "histogram negative": (FEATURES, inside("histogram", -1), ("row 3", "histogram", -1)),
    "histogram null": (FEATURES, put("histogram", None), ("row 3", "histogram", "null")),
    "kurtosis infinite": (FEATURES, put("logit_kurtosis", -INFINITY), ("row 3", "logit_kurtosis", "-inf")),
    "logit NaN": (FEATURES, inside("promoted", NAN, "logit"), ("row 3", "promoted", "logit", "nan")),
    "token text null": (FEATURES, inside("suppressed", None, "text"), ("row 3", "suppressed", "text", "null")),
    "token null": (FEATURES, inside("promoted", None), ("row 3", "promoted", "null")),
    "foreign neighbour": (FEATURES, inside("decoder_neighbours", 20, "feature"), ("row 3", "decoder_neighbours", 20)),
    "neighbours null": (FEATURES, put("coactive_neighbours", None), ("row 3", "coactive_neighbours", "null")),
    "jaccard NaN": (FEATURES, inside("coactive_neighbours", NAN, "jaccard"), ("row 3", "coactive_neighbours", "jaccard")),
    "column missing": (FEATURES, lambda t: t.drop_columns(["histogram"]), ("column histogram", "missing")),
    "column twice": (FEATURES, lambda t: t.append_column("density", t["density"]), ("column density", "twice")),
    "wrong type": (FEATURES, retyped("feature", pa.int64()), ("column feature", "int64", "int32")),
    "text of numbers": (FEATURES, retyped("density", pa.string()), ("column density", "string", "double")),
    "no metadata": (FEATURES, lambda t: t.replace_schema_metadata(None), ("scopeline", "null")),
    "metadata a list": (FEATURES, lambda t: t.replace_schema_metadata({b"scopeline": b"[1]"}), ("scopeline", "a list")),
    "metadata no JSON": (FEATURES, lambda t: t.replace_schema_metadata({b"scopeline": b"{"}), ("scopeline",)),
    "other version": (FEATURES, described(format_version=2), (2, 1)),
    "other shape": (FEATURES, described(feature_shape=[21]), ("contexts.parquet:", "features.parquet")),
    "foreign feature": (CONTEXTS, put("feature", 19, 0), ("row 1", "feature 1", 19)),
    "shifted contexts": (CONTEXTS, shifted, ("activation 2", "largest is 0")),
    "other activation than at the peak": (CONTEXTS, put("activation", 1.0), ("row 3", "activation 1", 2)),
    "a largest activation of another feature": (FEATURES, put("max_activation", 3.0), ("activation 2", "largest is 3")),
    "feature out of range": (CONTEXTS, put("feature", 20, 0), ("row 0", "feature", 20, "0 to 19")),
    "feature null": (CONTEXTS, put("feature", None), ("row 3", "feature", "null")),
    "contexts doubled": (CONTEXTS, lambda t: pa.concat_tables([t, t]), ("feature",)),
    "a context twice": (CONTEXTS, lambda t: t.take([0, 0, *range(1, len(t))]), ("feature 1", "place 0", "'top'", "twice")),
    "unknown band": (CONTEXTS, put("band", "best"), ("row 3", "'best'", "top")),
    "band null": (CONTEXTS, put("band", None), ("row 3", "band", "null")),
    "place negative": (CONTEXTS, put("place", -1), ("row 3", "place", -1)),
    "activation NaN": (CONTEXTS, put("activation", NAN), ("row 3", "activation", "nan")),
    "position negative": (CONTEXTS, put("position", -5), ("row 3", "position", -5)),
    "document null": (CONTEXTS, put("document", None), ("row 3", "document", "null")),
    "document not UTF-8": (CONTEXTS, not_utf8, ("contexts.parquet:", "damaged")),
    "characters before the text": (CONTEXTS, put("char_start", -2), ("row 3", "char_start", -2)),
    "characters in reverse": (CONTEXTS, put("char_end", 5), ("row 3", "char_end 5", "char_start 7")),
    "token in reverse": (CONTEXTS, put("token_end", 5), ("row 3", "token_end 5")),
    "peak out of range": (CONTEXTS, put("peak", 31), ("row 3", "peak 31", "31 tokens")),
    "peak negative": (CONTEXTS, put("peak", -1), ("row 3", "peak", -1)),
    "fewer texts than tokens": (CONTEXTS, put("texts", lambda old: old[1:]), ("row 3", "30 texts", "31 tokens")),
    "fewer tokens than texts": (CONTEXTS, put("tokens", lambda old: old[1:]), ("row 3", "31 texts", "30 tokens")),
    "no activations": (CONTEXTS, put("activations", []), ("row 3", "0 activations", "31 tokens")),
    "activations null": (CONTEXTS, put("activations", None), ("row 3", "activations", "null")),
    "an activation infinite": (CONTEXTS, inside("activations", INFINITY), ("row 3", "activations", "inf")),
    "a text null": (CONTEXTS, inside("texts", None), ("row 3", "texts", "null")),
    "a token negative": (CONTEXTS, inside("tokens", -1), ("row 3", "tokens", -1)),
    "source value NaN": (CONTEXTS, inside("sources", NAN, "value"), ("row 3", "sources", "value", "nan")),
    "source without text": (CONTEXTS, inside("sources", None, "text"), ("row 3", "sources", "text", "null")),
    "contexts' column missing": (CONTEXTS, lambda t: t.drop_columns(["peak"]), ("column peak", "missing")),
    "contexts' wrong type": (CONTEXTS, retyped("texts", pa.list_(pa.large_string())), ("column texts", "large_string")),
    "contexts of another store": (CONTEXTS, described(model="other"), ("contexts.parquet:", "features.parquet")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_thing_wrong(whole: Path, tmp_path: Path, damage: str) -> None:
    """Through the reader of the dashboard, and through the command that interprets: one line, with the place."""
    name, change, parts = DAMAGES[damage]
    for file in (FEATURES, CONTEXTS):
        table = pq.read_table(whole / file)
        pq.write_table(change(table) if file == name else table, tmp_path / file)
    with pytest.raises(DataError) as caught:
        FeatureStore(tmp_path)
    says(caught.value, tmp_path.name, *parts, "`dvc repro analyze`")
    assert len(str(caught.value).splitlines()) == 1
    run = CliRunner().invoke(interpret, ["--features-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--local", "none"])
    assert (run.exit_code, run.stderr) == (2, f"error: {caught.value}\n")


def test_every_number_is_checked(whole: Path, tmp_path: Path) -> None:
    """No column, and no field in one, whose numbers may be anything: NaN, or a number below its smallest, is found."""
    whole_tables = {file: pq.read_table(whole / file) for file in (FEATURES, CONTEXTS)}
    for file, columns in ((FEATURES, FEATURE_COLUMNS), (CONTEXTS, CONTEXT_COLUMNS)):
        for name, column in columns.items():
            element = column.of if isinstance(column, Listed) else column
            parts = {None: element} if isinstance(element, Values) else element.fields
            for field, values in parts.items():
                if values.kind in ("string", "band"):
                    continue
                wrong = NAN if values.kind.startswith("float") else -2
                change = inside(name, wrong, field) if isinstance(column, Listed) else put(name, wrong)
                for other, table in whole_tables.items():
                    pq.write_table(change(table) if other == file else table, tmp_path / other)
                with pytest.raises(DataError) as caught:
                    FeatureStore(tmp_path)
                says(caught.value, f"{file}:", f"row {ROW}", name, "nan" if values.kind.startswith("float") else -2)


@pytest.mark.parametrize("key", ABOUT)
@pytest.mark.parametrize("value", ["lost", None, -1, [], [-1.0], {"a": 1}], ids=str)
def test_metadata(whole: Path, tmp_path: Path, key: str, value: object) -> None:
    value = 5 if value == "lost" and key in ("dictionary", "name", "model", "split") else value
    for file in (FEATURES, CONTEXTS):
        pq.write_table(described(**{key: value})(pq.read_table(whole / file)), tmp_path / file)
    with pytest.raises(DataError) as caught:
        FeatureStore(tmp_path)
    says(caught.value, "features.parquet:", key)


def test_null_where_it_may_be(whole: Path, tmp_path: Path) -> None:
    optional = {FEATURES: ("written_cosines", "threshold", "logit_kurtosis", "promoted"), CONTEXTS: ("sources",)}
    for file, columns in optional.items():
        table = pq.read_table(whole / file)
        for column in columns:
            table = put(column, None)(table)
        pq.write_table(table, tmp_path / file)
    assert FeatureStore(tmp_path).features(["threshold", "promoted"])[ROW] == {"threshold": None, "promoted": None}


def test_damaged_pages(whole: Path, tmp_path: Path) -> None:
    """A compressed block that cannot be unpacked."""
    for file in (FEATURES, CONTEXTS):
        content = bytearray((whole / file).read_bytes())
        if file == CONTEXTS:
            content[40:2000] = bytes(1960)
        (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        FeatureStore(tmp_path)
    says(caught.value, "contexts.parquet:", "damaged", "`dvc repro analyze`")


def test_blocks_that_do_not_belong_together(tmp_path: Path) -> None:
    synthetic.make_store(tmp_path / "store", 300, contexts=1)
    file = tmp_path / "store" / CONTEXTS
    table = pq.read_table(file)
    pq.write_table(table, file)
    with pytest.raises(DataError) as caught:
        FeatureStore(tmp_path / "store")
    says(caught.value, "contexts.parquet:", "1 blocks", 2)
    pq.write_table(table, file, row_group_size=len(table) // 2)
    with pytest.raises(DataError) as caught:
        FeatureStore(tmp_path / "store")
    says(caught.value, "contexts.parquet:", "block", "256 to 299")


def test_records_are_no_lists() -> None:
    """The declarations are of the three forms that the check knows."""
    for column in (*FEATURE_COLUMNS.values(), *CONTEXT_COLUMNS.values()):
        assert isinstance(column, Values) or isinstance(column.of, Values | Record)
