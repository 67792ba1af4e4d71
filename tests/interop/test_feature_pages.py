"""circuit-tracer's pages of features, read as its frontend does: index, range of bytes, length, inflated JSON."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.api import export_dictionary
from pipeline.dictionaries.base import Dictionary
from pipeline.errors import DataError, ParamsError
from pipeline.interop.circuit_tracer_pages import paired, shown_text
from pipeline.interop.exporting import export_dictionaries
from pipeline.interop.stored import feature_places
from pipeline.params.loader import load_params
from tests.interop.cases import F, N, folded
from tests.interpretation.conftest import context_row, feature_row, write_store
from tests.messages import says

EDGES = [2.0**exponent for exponent in range(-4, 5)]
FIELDS = {
    "transcoder_id": str, "index": int, "examples_quantiles": list, "top_logits": list, "bottom_logits": list, "act_min": float,
    "act_max": float, "quantile_values": list, "histogram": list, "activation_frequency": float,
}  # fmt: skip
EXAMPLE = {"tokens": list, "tokens_acts_list": list, "train_token_ind": int, "is_repeated_datapoint": bool}


def naive_page(folder: Path, index: int) -> dict[str, Any]:
    """What the frontend shows for a node of this number."""
    w = math.floor((math.sqrt(8 * index + 1) - 1) / 2)
    feature = index - w * (w + 1) // 2
    layer = w - feature
    place = json.loads(gzip.decompress((folder / "index.json.gz").read_bytes()))[str(layer)]
    first, last = place["offsets"][feature], place["offsets"][feature + 1]
    part = (folder / place["filename"]).read_bytes()[first : last + 1]  # a range of bytes has its end in it
    length = part[0] | part[1] << 8 | part[2] << 16 | part[3] << 24
    return json.loads(zlib.decompress(part[4 : 4 + length], wbits=47))  # type: ignore[no-any-return]


def store_of(dictionary: Dictionary, folder: Path, **about: Any) -> FeatureStore:
    """A store of all features; feature i is active at i + 1 (0: dead), in three tokens, and weakly in more."""
    n = math.prod(dictionary.feature_shape)
    features, contexts = [], []
    for i in range(n):
        histogram = [0] * (len(EDGES) - 1)
        if i:
            histogram[4] = 90
            histogram[5] = 10
        promoted = [{"token": 3, "text": "<0xE2>x", "logit": 1.0}, {"token": 4, "text": "a\n", "logit": 0.5}]
        changes = {"max_activation": 3.0 if i else 0.0, "density": 0.01 * bool(i), "active_tokens": 100 * bool(i)}
        features.append(feature_row(i, histogram=histogram, promoted=promoted, suppressed=None, **changes))
        texts = [f"t{i}", "\n", " end"]
        if i:
            contexts.append(context_row(i, "top", 0, 10 * i, texts, [0.0, 3.0, 0.5]))
            contexts.append(context_row(i, "75-100 %", 0, 10 * i + 1, texts, [2.0, 0.0, 0.0]))
            contexts.append(context_row(i, "0-25 %", 0, 10 * i + 2, texts, [0.0, 0.0, 1.25]))
        contexts.append(context_row(i, "inactive", 0, 10 * i + 3, texts, [0.0, 0.0, 0.0]))
    said = {
        "hook_points_in": list(dictionary.hooks_in), "hook_points_out": list(dictionary.hooks_out), "folded": True,
        "feature_shape": list(dictionary.feature_shape), "histogram_edges": EDGES, **about,
    }  # fmt: skip
    for row in features:
        row["written_norms"] = [1.0] * len(dictionary.hooks_out)
        pairs = len(dictionary.hooks_out) * (len(dictionary.hooks_out) - 1) // 2
        row["written_cosines"] = [0.0] * pairs if pairs else None
        if len(dictionary.feature_shape) > 1:
            layer, feature = divmod(row["feature"], dictionary.config.d_sae)
            row |= {"layer": layer, "name": f"{layer}/{feature}"}
    return FeatureStore(write_store(folder, features, contexts, **said))


def check(page: dict[str, Any], layer: int, feature: int, dead: bool) -> None:
    """A page has the fields of the documented form, and says what the store does."""
    assert {name: type(value) for name, value in page.items()} == FIELDS
    assert page["index"] == (layer + feature) * (layer + feature + 1) // 2 + feature
    assert page["top_logits"] == ["\\xe2x", "a\u23ce"]
    assert page["bottom_logits"] == []
    if dead:
        assert page["examples_quantiles"] == []
        assert page["act_max"] == 0.0
        assert page["quantile_values"] == []
        assert set(page["histogram"]) == {0.0}
        return
    assert [q["quantile_name"] for q in page["examples_quantiles"]] == ["Top activations", "75-100 %", "0-25 %"]
    top, high, low = (q["examples"][0] for q in page["examples_quantiles"])
    assert {name: type(value) for name, value in top.items()} == EXAMPLE
    assert top["tokens"][1:] == ["\u23ce", " end"]
    assert top["tokens_acts_list"] == [0.0, 3.0, 0.5]
    assert top["train_token_ind"] == 1
    assert high["tokens_acts_list"] == [2.0, 0.0, 0.0]
    assert low["train_token_ind"] == 2
    assert (page["act_min"], page["act_max"], page["activation_frequency"]) == (0.0, 3.0, 0.01)
    assert sum(page["histogram"]) == pytest.approx(100)
    # 90 activations spread over (1, 2), 10 over (2, 3)
    assert page["quantile_values"][44] == pytest.approx(1.5)
    assert page["quantile_values"][94] == pytest.approx(2.5)
    assert page["quantile_values"][-1] == pytest.approx(3.0)
    width = 3.0 / len(page["histogram"])
    ends = [width * i for i in range(len(page["histogram"]) + 1)]
    wanted = [90 * overlap(a, b, 1, 2) + 10 * overlap(a, b, 2, 3) for a, b in itertools.pairwise(ends)]
    assert page["histogram"] == pytest.approx(wanted, abs=1e-9)


def overlap(a: float, b: float, low: float, high: float) -> float:
    return max(0.0, min(b, high) - max(a, low)) / (high - low)


def test_a_cross_layer_transcoder_has_a_page_for_every_feature_of_every_layer(tmp_path: Path) -> None:
    made = folded("clt", "jumprelu")
    store = store_of(made, tmp_path / "store")
    export = export_dictionaries([made], tmp_path / "out", "circuit_tracer", features=[store])
    for layer, feature in itertools.product(range(N), range(F)):
        check(naive_page(export.path / "features", paired(layer, feature)), layer, feature, dead=layer == feature == 0)


def test_a_set_has_the_pages_of_each_layers_own_store(tmp_path: Path) -> None:
    layers = [
        folded("transcoder", "relu", hook_point_in=f"blocks.{i}.ln2.hook_out", hook_point_out=f"blocks.{i}.hook_mlp_out")
        for i in range(2)
    ]
    stores = [store_of(made, tmp_path / f"store{i}", name=f"own{i}") for i, made in enumerate(layers)]
    export = export_dictionaries(layers, tmp_path / "out", "circuit_tracer", features=stores)
    for layer, feature in itertools.product(range(2), range(F)):
        page = naive_page(export.path / "features", paired(layer, feature))
        assert page["transcoder_id"] == f"own{layer}-{layer}"
        check(page, layer, feature, dead=feature == 0)
    export_dictionary(layers, tmp_path / "out", "circuit_tracer")  # in its place, without pages
    assert not (tmp_path / "out" / "features").exists()


def test_what_has_no_pages_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    made, other = folded("clt", "relu"), folded("transcoder", "relu")
    store = store_of(made, tmp_path / "store")
    with pytest.raises(DataError) as error:
        export_dictionaries([made], tmp_path / "a", "circuit_tracer", features=[store_of(other, tmp_path / "other")])
    says(error.value, tmp_path / "other", "another dictionary", other.hooks_in[0], f"{F}", "run analyze")
    with pytest.raises(DataError) as kept:
        export_dictionaries(
            [made], tmp_path / "a", "circuit_tracer", features=[store_of(made, tmp_path / "kept", folded=False)]
        )
    says(kept.value, tmp_path / "kept", "before the fold")
    with pytest.raises(ParamsError) as refused:
        export_dictionaries([made], tmp_path / "a", "openmoss", features=[store])
    says(refused.value, "openmoss", "circuit_tracer")
    assert not (tmp_path / "a").exists()


def test_stores_are_found_where_analyze_writes_them() -> None:
    params = load_params("params.yaml")
    place = Path("data/inference/main")
    assert feature_places(params, [place], ()) == [Path("data/features")]
    assert feature_places(params, [place], ["there"]) == [Path("there")]
    with pytest.raises(ParamsError) as error:
        feature_places(params, [place], ["a", "b"])
    says(error.value, "--features", "2 feature stores for 1 dictionaries")


def test_bytes_without_a_character_are_as_the_frontend_merges_them() -> None:
    assert shown_text("<0xE2><0x82> a\tb\r\n") == "\\xe2\\x82 a\u2192b\u21b5\u23ce"
