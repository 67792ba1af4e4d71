"""The files for Neuronpedia, read back by naive readers: every number and text is the feature store's own."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.analysis.store_digest import store_digest
from stages.export import main
from tests.interop.neuronpedia_site import objection
from tests.interop.neuronpedia_store import DEAD, DENSE, EDGES, PER_LAYER, planted_store
from tests.messages import says
from tests.project import REPOSITORY

SOURCE = "2-scopeline-main"
QUARTERS = {"75-100 %": 0.25, "50-75 %": 0.25, "25-50 %": 0.25, "0-25 %": 0.25}


def run(*arguments: str) -> tuple[int, str, str]:
    params = ["--params", str(REPOSITORY / "params.yaml"), "--format", "neuronpedia"]
    result = CliRunner().invoke(main, [*params, *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def exported(*arguments: str) -> str:
    code, out, err = run(*arguments)
    assert code == 0, err
    return out


def refused(*arguments: str) -> str:
    code, out, err = run(*arguments)
    assert (code, out) == (2, ""), out
    assert err.startswith("error: "), err
    return err


def lines(place: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(place.read_bytes()) if place.suffix == ".gz" else place.read_bytes()
    return [json.loads(line) for line in text.decode().splitlines()]


def shown(text: str, token: int) -> str:
    return {"": f"<token {token}>", "\0": "<0x00>"}.get(text, text)


def same(found: list[float], wanted: list[float]) -> bool:
    """Equal as float32, which is what the store holds."""
    return np.array_equal(np.array(found, np.float32), np.array(wanted, np.float32))


def active(contexts: list[dict[str, Any]], feature: int) -> list[dict[str, Any]]:
    """What should be shown of a feature, in order: the top, then the quarters from the highest."""
    bands = ["top", *QUARTERS]
    rows = [row for row in contexts if row["feature"] == feature and row["band"] != "inactive"]
    return sorted(rows, key=lambda row: (bands.index(row["band"]), row["place"]))


def check_window(found: dict[str, Any], row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    assert found["tokens"] == [shown(text, token) for text, token in zip(row["texts"], row["tokens"], strict=True)]
    assert same(found["values"], row["activations"])
    names = ("binMin", "binMax", "binContains") if "binMin" in found else ("quantileMin", "quantileMax", "quantileFraction")
    band = [each["activation"] for each in rows if each["band"] == row["band"]]
    low, high, share = (found[name] for name in names)
    if row["band"] == "top":
        assert low == -1
        assert same([high], [7.3])
        assert share == (-1 if "binMin" in found else None)
    else:
        assert same([low, high], [min(band), max(band)])
        assert share == QUARTERS[row["band"]]


def test_bulk_files(here: Path) -> None:
    features, contexts = planted_store(here / "data/features")
    out = exported("--to", "out")
    says(out, "demo", SOURCE, "10", f"{9 * 12}", "1 features have no activation")
    place = here / "out/bulk/demo" / SOURCE
    rows = lines(place / "features/batch-0.jsonl.gz")
    assert [row["index"] for row in rows] == [str(i) for i in range(PER_LAYER)]
    assert all(list(row) == list(rows[0]) for row in rows)  # the import takes the columns of the first
    for row, feature in zip(rows, features, strict=True):
        assert (row["modelId"], row["layer"], row["sourceSetName"]) == ("demo", SOURCE, "scopeline-main")
        assert row["frac_nonzero"] == feature["density"]
        assert same([row["maxActApprox"]], [feature["max_activation"]])
        for side, key in (("pos", "promoted"), ("neg", "suppressed")):
            assert row[f"{side}_str"] == [shown(each["text"], each["token"]) for each in feature[key]]
            assert same(row[f"{side}_values"], [each["logit"] for each in feature[key]])
        counts = dict(zip(row["freq_hist_data_bar_values"], row["freq_hist_data_bar_heights"], strict=True))
        middles = [(low + high) / 2 for low, high in itertools.pairwise(EDGES)]
        assert {bar: count for bar, count in counts.items() if count} == {
            bar: count for bar, count in zip(middles, feature["histogram"], strict=True) if count
        }
        assert row["topkCosSimIndices"] == [each["feature"] for each in feature["decoder_neighbours"]]
        assert same(row["topkCosSimValues"], [each["cosine"] for each in feature["decoder_neighbours"]])
    found = lines(place / "activations/batch-0.jsonl.gz")
    assert all(list(row) == list(found[0]) for row in found)
    assert len({row["id"] for row in found}) == len(found)
    for feature in range(PER_LAYER):
        wanted = active(contexts, feature)
        own = [row for row in found if row["index"] == str(feature)]
        for row, window in zip(own, wanted, strict=True):
            check_window(row, window, wanted)
            assert same([row["maxValue"], row["minValue"]], [max(window["activations"]), min(window["activations"])])
            assert row["maxValueTokenIndex"] == window["peak"]
    assert not (place / "explanations").exists()
    (release,), (model,), (group,), (source,) = (
        lines(place / f"{name}.jsonl") for name in ("release", "model", "sourceset", "source")
    )
    assert (model["id"], model["layers"]) == ("demo", 4)
    assert (group["modelId"], group["name"], group["releaseName"]) == ("demo", "scopeline-main", release["name"])
    assert (source["modelId"], source["id"], source["setName"]) == ("demo", SOURCE, "scopeline-main")
    assert "10,000 tokens" in source["notes"]


def test_arrow_and_upload_files_hold_the_same(here: Path) -> None:
    import pyarrow as pa

    features, contexts = planted_store(here / "data/features")
    exported("--to", "out", "--set", "forms=arrow,upload")
    assert sorted(path.name for path in (here / "out").iterdir()) == ["arrow", "neuronpedia.json", "upload"]
    with pa.ipc.open_stream(here / "out/arrow" / SOURCE / "data.arrow") as reader:
        rows = reader.read_all().to_pylist()
    batch = json.loads((here / "out/upload" / SOURCE / "batch-0.json").read_bytes())
    assert objection(batch) is None
    assert (batch["modelId"], batch["source"]) == ("demo", SOURCE)
    sent = {each["index"]: each for each in batch["features"]}
    assert sorted(sent) == [i for i in range(PER_LAYER) if i != DEAD]
    for row, feature in zip(rows, features, strict=True):
        index, wanted = row["feature_index"], active(contexts, feature["feature"])
        assert index == feature["feature"]
        assert row["frac_nonzero"] == feature["density"]
        assert row["explanations"] == []
        for name, key in (("pos", "promoted"), ("neg", "suppressed")):
            assert row[f"top_{name}_logits_str"] == [shown(each["text"], each["token"]) for each in feature[key]]
            assert same(row[f"top_{name}_logits_val"], [each["logit"] for each in feature[key]])
        assert len(row["activations"]) == len(wanted)
        for found, window in zip(row["activations"], wanted, strict=True):
            assert found["tokens"] == [
                shown(text, token) for text, token in zip(window["texts"], window["tokens"], strict=True)
            ]
            assert same(found["values"], window["activations"])
            assert found["z_pattern_indices"] is None
        if index != DEAD:
            assert sent[index]["density"] == feature["density"]
            for found, window in zip(sent[index]["activations"], wanted, strict=True):
                check_window(found, window, wanted)
            for name, key in (("topLogits", "promoted"), ("bottomLogits", "suppressed")):
                assert [each["token"] for each in sent[index][name]] == [
                    shown(each["text"], each["token"]) for each in feature[key][:20]
                ]
                assert same([each["value"] for each in sent[index][name]], [each["logit"] for each in feature[key][:20]])


def test_equal_work_gives_equal_bytes_and_only_an_export_is_replaced(here: Path) -> None:
    planted_store(here / "data/features")
    exported("--to", "one")
    exported()
    ours = here / "data/export/neuronpedia/main"
    files = sorted(path.relative_to(here / "one") for path in (here / "one").rglob("*") if path.is_file())
    assert len(files) == 9
    assert [path for path in files if (here / "one" / path).read_bytes() != (ours / path).read_bytes()] == []
    exported("--to", "one", "--set", "forms=arrow")
    assert not (here / "one/bulk").exists()
    (here / "mine").mkdir()
    (here / "mine/thesis.txt").write_text("years of work")
    says(refused("--to", "mine"), "mine", "--to")
    assert (here / "mine/thesis.txt").exists()


def test_a_dry_run_counts_what_would_be_written(here: Path) -> None:
    planted_store(here / "data/features")
    out = exported("--dry-run", "--to", "out", "--set", "batch_features=4")
    assert not (here / "out").exists()
    exported("--to", "out", "--set", "batch_features=4")
    bodies = [path.read_bytes() for path in sorted((here / "out/upload" / SOURCE).iterdir())]
    assert [len(json.loads(body)["features"]) for body in bodies] == [4, 4, 1]
    says(out, "3 upload batches", f"{sum(map(len, bodies)):,} bytes", "dry run")


def test_a_batch_is_no_larger_than_it_may_be(here: Path) -> None:
    planted_store(here / "data/features")
    exported("--to", "all", "--set", "forms=upload")
    whole = (here / "all/upload" / SOURCE / "batch-0.json").read_bytes()
    limit = len(whole) // 3
    exported("--to", "out", "--set", "forms=upload", "--set", f"batch_bytes={limit}")
    bodies = [path.read_bytes() for path in sorted((here / "out/upload" / SOURCE).iterdir())]
    assert len(bodies) >= 4
    assert max(map(len, bodies)) <= limit
    assert [each for body in bodies for each in json.loads(body)["features"]] == json.loads(whole)["features"]
    says(refused("--set", "batch_bytes=500"), "feature 0", "500", "batch_bytes")


def test_layers_have_sources_of_their_own(here: Path) -> None:
    """Of a cross-layer dictionary, and neighbours in another layer are not listed."""
    features, contexts = planted_store(here / "data/features", layers=3)
    exported("--to", "out")
    for layer in range(3):
        own = lines(here / f"out/bulk/demo/{layer}-scopeline-main/features/batch-0.jsonl.gz")
        assert [row["index"] for row in own] == [str(i) for i in range(PER_LAYER)]
        for row, feature in zip(own, features[PER_LAYER * layer :], strict=False):
            near = [each["feature"] for each in feature["decoder_neighbours"] if each["feature"] // PER_LAYER == layer]
            assert row["topkCosSimIndices"] == [index % PER_LAYER for index in near]
            assert row["frac_nonzero"] == feature["density"]
        shown_here = lines(here / f"out/bulk/demo/{layer}-scopeline-main/activations/batch-0.jsonl.gz")
        wanted = active(contexts, PER_LAYER * layer + 4)
        assert same([row["values"] for row in shown_here if row["index"] == "4"], [row["activations"] for row in wanted])
        batch = json.loads((here / f"out/upload/{layer}-scopeline-main/batch-0.json").read_bytes())
        assert objection(batch) is None
        assert [each["index"] for each in batch["features"]] == [i for i in range(PER_LAYER) if i != DEAD]


def test_transcoders_and_crosscoders(here: Path) -> None:
    """The layer is that of the hook points; where there is none or are several, it must be said."""
    hooks = {"hook_points_in": ["blocks.1.ln2.hook_out"], "hook_points_out": ["blocks.1.hook_mlp_out"]}
    planted_store(here / "data/features", **hooks)
    says(exported("--dry-run"), "1-scopeline-main")
    several = [f"blocks.{layer}.hook_resid_post" for layer in (1, 3)]
    planted_store(here / "data/features", hook_points_in=several, hook_points_out=["blocks.1.hook_resid_post"])
    says(refused("--dry-run"), "--set layer", *several)
    says(exported("--dry-run", "--set", "layer=3"), "3-scopeline-main")
    says(refused("--dry-run", "--set", "layer=4"), "--set layer", "4 layers")
    planted_store(here / "data/features", hook_points_in=["hook_embed"])
    says(refused("--dry-run"), "--set layer", "hook_embed")


def test_attention_says_what_activations_come_from(here: Path) -> None:
    import pyarrow as pa

    _, contexts = planted_store(here / "data/features", attention=True)
    out = exported("--to", "out")
    found = lines(here / "out/bulk/demo" / SOURCE / "activations/batch-0.jsonl.gz")
    outside = 0
    with pa.ipc.open_stream(here / "out/arrow" / SOURCE / "data.arrow") as reader:
        arrow = {row["feature_index"]: row["activations"] for row in reader.read_all().to_pylist()}
    for feature in range(PER_LAYER):
        wanted, own = active(contexts, feature), [row for row in found if row["index"] == str(feature)]
        for row, other, window in zip(own, arrow[feature], wanted, strict=True):
            inside = [each for each in window["sources"] if each["position"] >= window["position"] - window["peak"]]
            outside += len(window["sources"]) - len(inside)
            reads = [window["peak"] - (window["position"] - each["position"]) for each in inside]
            assert row["zIndices"] == other["z_pattern_indices"] == [[window["peak"]] * len(reads), reads]
            assert same(row["zValues"], [each["value"] for each in inside])
            assert same(other["z_pattern_values"], [each["value"] for each in inside])
    assert outside > 0
    says(out, f"{outside} tokens that activations come from")


def test_a_member_of_a_sweep(here: Path) -> None:
    for name in ("k16", "k64"):
        planted_store(here / "data/features" / name, name=f"main-{name}")
    (here / "metrics").mkdir()
    figures = {"k16": {"fvu": 0.25, "l0_mean": 16.0}, "k64": {"fvu": 0.125, "l0_mean": 64.0}}
    (here / "metrics/evaluation.json").write_text(json.dumps(figures))
    says(refused(), "--member", "k16, k64")
    exported("--member", "k64")
    place = here / "data/export/neuronpedia/main/k64/bulk/demo/2-scopeline-main-k64"
    (source,) = lines(place / "source.jsonl")
    says(source["notes"], "fvu 0.125", "l0_mean 64")
    says(refused("--member", "k99"), "--member", "k99", "k16")


def _interpret(here: Path, explained: dict[int, str], digest: str, run: str = "this run") -> None:
    folder = here / "data/interpretations"
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"run": run, "features": {}, "median": {}, "model": "m"}))
    for feature, text in explained.items():
        record = {"feature": feature, "name": str(feature), "run": run, "model": "m", "explanation": text}
        scores = {"detection": {"balanced_accuracy": 0.75}, "fuzzing": {"balanced_accuracy": None}}
        (folder / f"{feature}.json").write_text(json.dumps({**record, **scores, "store": {"sha256": digest}}))


def test_explanations(here: Path) -> None:
    planted_store(here / "data/features")
    digest = store_digest(FeatureStore(here / "data/features"))
    _interpret(here, {5: "of another run"}, digest, run="an earlier run")
    _interpret(here, {2: "the word cat", 7: "mats"}, digest)
    given = ["--set", "explanation_method=oai_token-act-pair", "--set", "explanation_model=gpt-4o"]
    says(exported("--to", "out", *given), "2 explanations")
    rows = lines(here / "out/bulk/demo" / SOURCE / "explanations/batch-0.jsonl.gz")
    assert [(row["index"], row["description"]) for row in rows] == [("2", "the word cat"), ("7", "mats")]
    assert [(row["typeName"], row["explanationModelName"]) for row in rows] == [("oai_token-act-pair", "gpt-4o")] * 2
    says(rows[0]["notes"], "explained by m", "detection 0.750")
    assert "fuzzing" not in rows[0]["notes"]
    batch = json.loads((here / "out/upload" / SOURCE / "batch-0.json").read_bytes())
    wanted = {"text": "the word cat", "methodName": "oai_token-act-pair", "modelName": "gpt-4o"}
    assert {each["index"]: each["explanations"] for each in batch["features"] if each["explanations"]}[2] == [wanted]
    exported("--to", "plain")
    batch = json.loads((here / "plain/upload" / SOURCE / "batch-0.json").read_bytes())
    assert [each["explanations"] for each in batch["features"] if each["index"] == 7] == [[{"text": "mats"}]]
    _interpret(here, {2: "\U0001f600" * 257}, digest)
    says(refused("--to", "long"), "feature 2", "514", "512", "data/interpretations")
    assert not (here / "long").exists()
    _interpret(here, {2: "\U0001f600" * 256}, digest)
    exported("--to", "long")
    _interpret(here, {2: "stale"}, "0" * 64)
    says(refused("--to", "stale"), "data/interpretations/2.json", "another feature store", "stages.interpret")


def test_what_no_export_may_hold_is_refused_by_name(here: Path) -> None:
    folder = here / "data/features"
    says(refused(), "data/features/features.parquet", "dvc repro analyze")

    def damaged(**changes: Any) -> str:
        """A store in which the third context of feature 5 has these."""
        from tests.interpretation.conftest import write_store

        features, contexts = planted_store(folder)
        row = [each for each in contexts if each["feature"] == 5][2]
        row |= changes
        hooks = ["blocks.2.hook_resid_post"]
        write_store(
            folder,
            features,
            contexts,
            model="demo",
            name="main",
            histogram_edges=EDGES,
            hook_points_in=hooks,
            hook_points_out=hooks,
        )
        return refused("--to", "out")

    says(damaged(activations=[float("nan")] * 6), "contexts.parquet", "row 58, column activations", "nan")
    says(damaged(activation=float("inf")), "contexts.parquet", "row 58, column activation", "inf")
    planted_store(folder, counts=DENSE | dict.fromkeys(("top", *QUARTERS), 0))
    says(refused("--to", "out"), "feature 0", "no context", "dvc repro analyze")
    assert not (here / "out").exists()


def test_a_window_longer_than_the_site_takes(here: Path) -> None:
    from tests.interpretation.conftest import context_row, feature_row, write_store

    row = feature_row(0, histogram=[1], promoted=[], suppressed=[])
    row["max_activation"] = 2.0
    context = context_row(0, "top", 0, 0, [" a"] * 1025, [0.0] * 1024 + [2.0])
    hooks = ["blocks.2.hook_resid_post"]
    write_store(here / "data/features", [row], [context], model="demo", hook_points_in=hooks, hook_points_out=hooks)
    says(refused(), "feature 0", "activations[0]", "1,025", "1,024", "analysis.window_before")


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("source", ("--set source", "source_set")),
        ("sourceset=x", ("setting of neuronpedia 'sourceset'", "did you mean 'source_set'?")),
        ("layer=two", ("--set layer", "an integer", "'two'")),
        ("create=maybe", ("--set create", "true or false")),
        ("forms=bulk,json", ("--set forms", "'json'", "arrow")),
        ("forms=", ("--set forms", "bulk")),
        ("batch_features=129", ("batch_features=129", "128")),
        ("batch_features=0", ("batch_features=0", "128")),
        ("source_set=Mine", ("source_set=Mine", "small letters")),
        ("source_set=a--b", ("source_set=a--b", "hyphens")),
        ("source_set=neurons", ("source_set=neurons",)),
        ("model_id=My Model", ("model_id=My Model", "small letters")),
        ("backoff_s=-1", ("backoff_s=-1", "seconds")),
        ("description=" + "x" * 129, ("--set description", "129", "128")),
    ],
)
def test_settings_are_refused_by_name(here: Path, setting: str, parts: tuple[str, ...]) -> None:
    planted_store(here / "data/features")
    says(refused("--set", setting), *parts)
    assert not (here / "data/export").exists()


def test_a_model_that_is_not_at_hand(here: Path) -> None:
    planted_store(here / "data/features", model="./models/Somewhere-7B", dictionary="SAE, ./models/Somewhere-7B")
    says(refused(), "models/Somewhere-7B", "--set model_layers=N")
    says(exported("--to", "out", "--set", "model_layers=3", "--set", "forms=bulk"), "model somewhere-7b", SOURCE)
    assert not any(b"models/" in path.read_bytes() for path in (here / "out").rglob("*.jsonl"))  # no place of this machine


def test_formats_of_weights_have_no_settings(here: Path) -> None:
    asked = ["--params", str(REPOSITORY / "params.yaml"), "--format", "saelens", "--set", "layer=1"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2
    says(result.stderr, "--set", "saelens", "neuronpedia")
    result = CliRunner().invoke(main, ["--params", str(REPOSITORY / "params.yaml"), "--format", "neuronpedya"])
    assert result.exit_code == 2
