"""What is known of features: of a real feature store, and of explanations beside it."""

from __future__ import annotations

import json

import pytest

from pipeline.analysis.feature_columns import FEATURES
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.analysis.inspection import inspect_text
from pipeline.analysis.labels import feature_labels, known_features
from pipeline.dictionaries.store import load_dictionary
from pipeline.errors import DataError
from pipeline.experiments.top_features import top_features
from tests.analysis.test_inspection import folded, sae
from tests.messages import saying

TEXT = "the cat sat on the mat"


def test_labels_are_strongest_tokens_or_the_explanation(finished_project, tmp_path) -> None:
    place = finished_project.path / "data" / "features"
    store = FeatureStore(place)
    known = known_features(place, tmp_path)
    rows = {row["name"]: row for row in store.features(["name", "feature", "max_activation"])}
    assert set(known.labels) == set(known.largest) == {name for name, row in rows.items() if row["max_activation"]}
    name = next(iter(known.labels))
    top = [row for row in store.contexts(rows[name]["feature"]) if row["band"] == "top"]
    assert known.largest[name] == pytest.approx(max(row["activation"] for row in top), rel=1e-6)
    assert known.labels[name].startswith(f"on: {top[0]['texts'][top[0]['peak']]!r}")
    (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, "feature": 3, "explanation": "pets\n  and rugs"}))
    (tmp_path / "summary.json").write_text(json.dumps({"features": {}}))
    labels = feature_labels(place, tmp_path)
    assert labels[name] == "pets and rugs"
    assert {key: text for key, text in labels.items() if key != name} == {k: t for k, t in known.labels.items() if k != name}


def test_a_store_of_another_dictionary_and_one_that_is_not_there(finished_project, tmp_path) -> None:
    place = finished_project.path / "data" / "features"
    with pytest.raises(DataError, match=saying(str(place), "another dictionary", "[40]", "[64]")):
        known_features(place, None, folded(sae()))
    assert known_features(tmp_path / "none", tmp_path / "none").labels == {}
    with pytest.raises(DataError, match=saying("none", "missing", "analyze")):
        feature_labels(tmp_path / "none")
    (tmp_path / "sweep" / "k8").mkdir(parents=True)
    (tmp_path / "sweep" / "k8" / FEATURES).write_bytes(b"")
    with pytest.raises(DataError, match=saying(str(tmp_path / "sweep"), "members of a sweep", str(tmp_path / "sweep" / "k8"))):
        feature_labels(tmp_path / "sweep")
    (tmp_path / "1.json").write_text("[")
    with pytest.raises(DataError, match=saying("1.json", "damaged", "stages.interpret")):
        known_features(tmp_path / "none", tmp_path)


def test_top_features_are_ranked_by_what_they_add(finished_project, small_model) -> None:
    made = load_dictionary(finished_project.path / "data" / "inference" / "main")
    labels = feature_labels(finished_project.path / "data" / "features", finished_project.path / "none")
    found = top_features(small_model, made, TEXT, 5, labels=labels, prepend_bos=False)
    dense = inspect_text(TEXT, made, small_model).features.to_dense()
    sizes = dense.amax(0) * made.decoder_lengths().detach()
    wanted = sizes.argsort(descending=True, stable=True)[:5].tolist()
    assert [int(one.feature) for one in found.features] == wanted
    for one in found.features:
        column = dense[:, int(one.feature)]
        assert one.activation == pytest.approx(float(column.max()))
        assert one.n_tokens == int((column > 0).sum())
        assert one.label == labels[one.feature]
        assert f"[{small_model.to_str_tokens(TEXT)[int(column.argmax())]}]" in one.token
    assert found.features[0].feature in repr(found).splitlines()[1]
