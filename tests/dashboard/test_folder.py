"""The dashboard's files: what is in the chunks, which features the single page has, that nothing breaks out of the page."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.feature_columns import INACTIVE
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.dashboard.chunks import CHUNK, chunk, fires_on, packed, part, short
from pipeline.dashboard.folder import SINGLE_PAGE, largest_energy, write_dashboard
from pipeline.dashboard.overview import OverviewFiles, check_files, feature_charts, hook_table, log_bins, overview, seen
from pipeline.dashboard.training_rows import initialization_words, training_rows
from pipeline.errors import DataError
from pipeline.evaluation.compared import compared
from pipeline.params.loader import load_params
from tests.dashboard import synthetic
from tests.messages import saying, says
from tests.project import Project


def unpack(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def read(folder: Path, name: str) -> Any:
    (text,) = re.fullmatch(
        rf'scopeline\.put\("{name}","([A-Za-z0-9+/=]+)"\)', (folder / "data" / f"{name}.js").read_text()
    ).groups()  # type: ignore[union-attr]
    return unpack(text)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(synthetic.make_store(tmp_path_factory.mktemp("store"), 100, contexts=4))


@pytest.fixture(scope="module")
def folder(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dashboard") / "dashboard"
    write_dashboard(place, store, synthetic.overview(), single=20)
    return place


def test_chunks_hold_the_store(store: FeatureStore, folder: Path) -> None:
    rows = store.features()
    assert sorted(path.name for path in (folder / "data").iterdir()) == sorted(
        ["overview.json", "table.js", *(f"chunk-{i}.js" for i in range(-(-100 // CHUNK)))]
    )
    for number in range(-(-100 // CHUNK)):
        found = read(folder, f"chunk-{number}")
        for name, page in found["features"].items():
            row = rows[int(name)]
            assert int(name) // CHUNK == number
            low, *counts = page["histogram"]
            assert row["histogram"][low : low + len(counts)] == counts
            assert sum(counts) == row["active_tokens"] == page["active"]
            contexts = [c for c in store.contexts(int(name)) if c["band"] != INACTIVE]
            assert sum(len(band) for band in page["bands"].values()) == len(contexts)
            for context in contexts:
                activation, peak, tokens, values, document, *_ = page["bands"][context["band"]][context["place"]]
                assert [found["t"][i] for i in tokens] == context["texts"]
                assert [found["ids"][i] for i in tokens] == context["tokens"]
                assert values == pytest.approx(context["activations"], rel=5e-3, abs=0)
                assert (activation, peak, found["t"][document]) == (2.0, 20, "text/a & b.txt")
            assert [near for near, _ in page["decoder"]] == [near["feature"] for near in row["decoder_neighbours"]]
            assert [found["t"][i] for i, _ in page["promoted"]] == [token["text"] for token in row["promoted"]]


def test_part_of_a_chunk_is_the_chunk_of_these_features(tmp_path: Path) -> None:
    made = FeatureStore(synthetic.make_store(tmp_path / "store", 40, contexts=2, sources=True))
    ((rows, contexts),) = made.blocks()
    some = [row for row in rows if row["feature"] % 3]
    assert packed(part(chunk(rows, contexts), {row["feature"] for row in some})) == packed(chunk(some, contexts))


def test_rows_are_those_of_arrow(store: FeatureStore) -> None:
    for tables, (rows, contexts) in zip(store.tables(), store.blocks(), strict=True):
        assert rows == tables[0].to_pylist()
        assert [row for some in contexts.values() for row in some] == tables[1].to_pylist()


def test_the_table_has_what_is_searched(folder: Path) -> None:
    table = read(folder, "table")
    assert table["feature"] == list(range(100))
    assert "name" not in table
    assert "explanation" not in table
    assert [(table["t"][i], table["ids"][i]) for i in table["fires"][8]] == [(" word-8", 1008)]
    assert table["fires"][7] == []
    assert [table["t"][i] for i in table["promotes"][8]] == [f" next-8-{k}" for k in range(10)]
    assert [table["t"][i] for i in table["suppresses"][8]] == [f" not-{80 + k}" for k in range(10)]
    assert table["density"][7] == 0
    assert table["density"][8] > 0


def test_the_single_page_has_the_features_of_the_largest_energy_inside(store: FeatureStore, folder: Path) -> None:
    text = (folder / SINGLE_PAGE).read_text(encoding="utf-8")
    inside = dict(re.findall(r'<script type="text/plain" id="data-([\w-]+)">([^<]*)</script>', text))
    table = unpack(inside.pop("table"))
    chosen = largest_energy(store.features(), 20)
    assert set(table["feature"]) == chosen
    assert {int(name) for data in inside.values() for name in unpack(data)["features"]} == chosen
    assert "src=" not in text.replace("script.src = `data/${name}.js`", "").replace('href="data:,"', "")


def test_energy_alone_decides_dense_or_not() -> None:
    rows = [
        {"feature": 0, "density": 0.0, "energy": 9.0},
        {"feature": 1, "density": 0.5, "energy": 5.0},
        {"feature": 2, "density": 0.01, "energy": 0.1},
        {"feature": 3, "density": 0.1, "energy": 0.2},
    ]
    assert largest_energy(rows, 1) == {1}
    assert largest_energy(rows, 2) == {1, 3}
    assert largest_energy(rows, 10) == {1, 2, 3}


def test_the_single_page_says_how_much_of_the_energy_it_has(store: FeatureStore, folder: Path) -> None:
    text = (folder / SINGLE_PAGE).read_text(encoding="utf-8")
    (about,) = re.findall(r'<script type="application/json" id="overview">(.*?)</script>', text, re.S)
    energies = sorted((row["energy"] for row in store.features()), reverse=True)
    assert json.loads(about)["part"] == "20 of 100 features"
    assert json.loads(about)["part_energy"] == pytest.approx(sum(energies[:20]), rel=5e-3)


def test_text_cannot_end_the_script(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    (about,) = re.findall(r'<script type="application/json" id="overview">(.*?)</script>', text, re.S)
    assert json.loads(about)["about"] == "SAE made up <b>"
    assert "<title>SAE made up &lt;b&gt;</title>" in text
    assert "http://" not in text
    assert "https://" not in text


def test_the_same_store_gives_the_same_bytes(store: FeatureStore, folder: Path, tmp_path: Path) -> None:
    write_dashboard(tmp_path / "again", store, synthetic.overview(), single=20)
    for path in folder.rglob("*.*"):
        again = tmp_path / "again" / path.relative_to(folder)
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(again.read_bytes()).digest(), path


def test_explanations_and_layers(tmp_path: Path) -> None:
    store = FeatureStore(synthetic.make_store(tmp_path / "store", 40, contexts=1, shape=(2, 20), hooks=2, sources=True))
    explained = {"1/5": {"explanation": "birds", "detection": 0.9, "fuzzing": None}}
    write_dashboard(tmp_path / "dashboard", store, synthetic.overview([2, 20]), single=0, explanations=explained)
    table = read(tmp_path / "dashboard", "table")
    assert table["name"][25] == "1/5"
    assert table["explanation"][25] == ["birds", 0.9, None]
    assert table["explanation"][24] is None
    page = read(tmp_path / "dashboard", "chunk-0")
    assert page["features"]["25"]["bands"]["top"][0][-1] == [[35, page["t"].index(" reads"), 0.25]]
    assert page["features"]["25"]["norms"] == [1, 0.5]
    assert not (tmp_path / "dashboard" / SINGLE_PAGE).exists()


def test_numbers_and_tokens() -> None:
    assert [short(v) for v in (None, 2.0, 0.123456, 1234567.0, 1e-9)] == [None, 2, 0.1235, 1235000, 1e-9]
    rows = [
        {"band": band, "texts": ["a", text], "tokens": [0, token], "peak": 1}
        for band, text, token in [("top", "x", 1), ("top", "y", 2), ("top", "y", 2), ("top", "y", 3), ("75-100 %", "z", 4)]
    ]
    assert fires_on(rows) == [("y", 2), ("x", 1), ("y", 3)]
    many = [{"band": "top", "texts": [str(i)], "tokens": [i], "peak": 0} for i in range(7)]
    assert fires_on(many) == [(str(i), i) for i in range(7)]
    assert unpack(packed({"a": "\u732b"})) == {"a": "\u732b"}
    assert chunk([], {}) == {"features": {}, "t": [], "ids": []}


def test_small_activations_stay(store: FeatureStore) -> None:
    row = {**store.features()[8], "max_activation": 1000.0}
    (context, *_) = store.contexts(8)
    values = [1000.0, 0.0123456, 0.0, 3.14159] + [0.0] * (len(context["tokens"]) - 4)
    (found,) = chunk([row], {8: [{**context, "activations": values}]})["features"][8]["bands"]["top"]
    assert found[3][:4] == [1000, 0.0123, 0, 3.14]


def test_the_overview_has_the_metrics_and_the_baselines(finished_project: Project) -> None:
    path = finished_project.path
    files = OverviewFiles(
        path / "data/inference/main",
        path / "metrics/evaluation.json",
        path / "metrics/train_history.jsonl",
        path / "data/norms.json",
        path / "data/norm_statistics.safetensors",
    )
    found = overview(FeatureStore(path / "data/features"), files)
    metrics = json.loads(files.evaluation.read_text())
    assert found["metrics"] == [list(row) for row in compared(metrics)]
    assert all(None not in row[4:] for row in found["metrics"] if row[0] != "KL divergence, nats")
    assert found["metrics"][-1][6] == metrics["kl_zero"]
    assert found["pca_rank"] == metrics["pca_rank"]
    assert json.loads(json.dumps(found["metrics"]))[0][3] == [metrics["fvu_low"], metrics["fvu_high"]]
    for title in ("Feature density", "Largest activations", "Training loss", "Activation norm"):
        assert any(title in chart for chart in found["charts"]), title
    assert ["features", 64] in found["figures"]
    assert found["figures"][0] == ["L0 (held out)", metrics["l0_mean"]]
    assert found["hook_table"] is None
    config = json.loads((path / "data/inference/main/config.json").read_text())["provenance"]["training"]
    training = dict(overview(FeatureStore(path / "data/features"), files, load_params(path / "params.yaml"))["training"])
    assert training["tokens"] == config["tokens"]
    assert training["learning rate"] == config["trainer"]["lr"]
    assert (training["norm of activations"], training["data set"]) == ("dataset-wise", "text.jsonl")
    assert training["initialisation"].startswith(
        "decoder rows are centred activations, encoder its transpose, decoder bias the mean"
    )
    assert "data set" not in dict(found["training"])


def test_the_overview_says_how_many_tokens_were_massive(project: Project) -> None:
    """And shows figures without them; of an evaluation and a feature store of before what there is."""
    path = project.path
    files = OverviewFiles(
        path / "data/inference/main",
        path / "metrics/evaluation.json",
        path / "metrics/train_history.jsonl",
        path / "data/norms.json",
        path / "data/norm_statistics.safetensors",
    )
    before = json.loads(files.evaluation.read_text())
    assert overview(FeatureStore(path / "data/features"), files)["massive"] is None
    found = {"massive_tokens": 4.0, "excluded_tokens": 4.0, "evaluated_tokens": 1000.0, "l0_mean_ordinary": 3.25}
    files.evaluation.write_text(json.dumps(before | found | {"fvu_ordinary": 0.375, "dead_fraction_ordinary": 0.625}))
    shown = overview(FeatureStore(path / "data/features"), files)
    says(shown["massive"], "4 of 1,000", "(0.40 %)", "massive", "excluded", 10)
    assert shown["metrics"][0][2] == 0.375
    figures = dict(shown["figures"])
    assert (figures["L0 (held out)"], figures["dead on held-out text"]) == (3.25, "62.50%")
    plain = {name: value for name, value in before.items() if "ordinary" not in name and "massive" not in name}
    files.evaluation.write_text(json.dumps(plain))
    shown = overview(FeatureStore(path / "data/features"), files)
    assert shown["massive"] is None
    assert shown["metrics"][0][2] == plain["fvu"]
    assert dict(shown["figures"])["L0 (held out)"] == plain["l0_mean"]
    about = {"tokens": 2000, "split": "train"}
    assert seen(about) == seen({**about, "excluded_tokens": 0}) == "2,000 tokens of the train split"
    says(seen({**about, "excluded_tokens": 1234}), "2,000", "train", "1,234", "massive")


def test_hook_points_have_rows_of_their_own() -> None:
    metrics = {
        "fvu.b": 0.1,
        "fvu.d": 0.2,
        "pca_fvu.b": 0.5,
        "pca_fvu.d": 0.6,
        "l0_mean.a": 3.0,
        "l0_mean.c": 4.0,
        "l0_mean": 7.0,
    }
    found = hook_table(metrics, ["a", "c"], ["b", "d"])
    assert found == {"columns": ["FVU", "FVU of the PCA", "L0"], "rows": [["b", 0.1, 0.5, 3.0], ["d", 0.2, 0.6, 4.0]]}
    assert hook_table(metrics, ["a"], ["b"]) is None
    metrics |= {"delta_ce.b": 0.01, "pca_delta_ce.b": 0.02, "loss_recovered_mean.d": 0.9}
    found = hook_table(metrics, ["a", "c"], ["b", "d"])
    assert found is not None
    assert found["columns"][2:5] == ["delta cross entropy", "of the PCA", "loss recovered against the mean"]
    assert found["rows"] == [["b", 0.1, 0.5, 0.01, 0.02, None, 3.0], ["d", 0.2, 0.6, None, None, 0.9, 4.0]]
    metrics |= {"fvu_ordinary.b": 0.11, "fvu_ordinary.d": 0.22, "pca_fvu_ordinary.b": 0.55, "l0_mean_ordinary.c": 3.5}
    found = hook_table(metrics, ["a", "c"], ["b", "d"])
    assert found is not None
    assert found["rows"] == [["b", 0.11, 0.55, 0.01, 0.02, None, 3.0], ["d", 0.22, 0.6, None, None, 0.9, 3.5]]


def test_beginnings_in_words() -> None:
    assert initialization_words({"bias_init_method": "all_zero"}, {}) == "decoder rows drawn uniformly, decoder bias 0"
    started = {
        "initialize_W_D_with_activations": True,
        "initialize_W_D_with_active_subspace": True,
        "init_encoder_with_decoder_transpose": True,
        "init_encoder_with_decoder_transpose_factor": 0.5,
        "bias_init_method": "geometric_median",
    }
    assert initialization_words({**started, "initialize_tc_with_mlp": True}, {"use_decoder_bias": False}) == (
        "the MLP's responses to the encoder rows"
    )
    assert initialization_words(started, {}) == (
        "decoder rows in the span of the top principal directions, encoder its transpose times 0.5, "
        "decoder bias the geometric median of the activations"
    )
    other = initialization_words(started, {"hook_point_in": "a", "hook_point_out": "b"})
    assert "transpose" not in other
    assert training_rows({"provenance": None}) == []


def test_log_bins_count_everything() -> None:
    edges, counts = log_bins([1.0, 1.05, 9.9, 0.011])
    assert sum(counts) == 4
    for value in (1.0, 1.05, 9.9, 0.011):
        place = next(i for i in range(len(counts)) if edges[i] <= value * (1 + 1e-12) and value < edges[i + 1])
        assert counts[place] >= 1
    assert log_bins([])[1] == [0.0]


def test_a_chart_says_what_a_log_scale_leaves_out() -> None:
    kurtosis = [2.0, 0.0, -0.5, 3.0, None]
    rows = [{"density": 0.1, "max_activation": 2.0, "threshold": None, "logit_kurtosis": k} for k in kurtosis]
    charts = {chart.name: chart for chart in feature_charts(rows, 0.5)}
    says(charts["kurtosis"].note, "not shown", "2 of 4", 0)
    assert charts["maximum"].note == ""


def test_what_the_overview_needs_is_looked_for_first(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("evaluation", "history", "norms", "statistics")}
    for path in paths.values():
        path.write_text("{}")
    check_files(OverviewFiles(tmp_path, **paths))
    paths["history"].unlink()
    with pytest.raises(DataError, match=saying("history:", "missing", "`dvc repro -s -f train`")):
        check_files(OverviewFiles(tmp_path, **paths))
