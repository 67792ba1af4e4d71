"""The feature store of a small project: a planted feature, traced contexts, quantile bands, resuming, and the stage's errors."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.analysis import analyze as analysis_run
from pipeline.analysis.analyze import Inputs, analyze
from pipeline.analysis.feature_columns import CONTEXTS, FEATURES, INACTIVE, TOP
from pipeline.analysis.feature_tables import FeatureStore, TableWriter
from pipeline.analysis.shown_contexts import banded
from pipeline.analysis.tracing import AnalysedContexts
from pipeline.corpus.tokens import open_tokens
from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError, Interrupted
from pipeline.evaluation.models import LanguageModels
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.lm.loading import load_language_model
from pipeline.params.loader import load_params
from tests.messages import saying, says
from tests.project import CONTEXT, D_MODEL, Project

PLANTED = 5


def inputs(project: Project, dictionary: str = "data/inference/main") -> Inputs:
    return Inputs(project.path / dictionary, project.path / "data/tokens.zarr", project.path / "data/norms.json")


def analyzed(
    project: Project, dictionary: str = "data/inference/main", folder: str = "features", **changes: Any
) -> FeatureStore:
    project.set(**changes)
    with chdir(project.path):
        analyze(load_params("params.yaml"), inputs(project, dictionary), folder)
    return FeatureStore(project.path / folder)


@pytest.fixture(scope="module")
def store(finished_project: Project) -> FeatureStore:
    return FeatureStore(finished_project.path / "data" / "features")


def plant(project: Project, text: str) -> int:
    """A dictionary in data/planted whose feature PLANTED is active where the residual stream begins with one token; the token."""
    model = load_language_model(str(project.path / "model"), device="cpu")
    (token,) = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    hook = "blocks.0.hook_resid_pre"  # the embedding itself
    embeddings = model.activations(torch.arange(model.vocab_size)[:, None], [hook])[hook][:, 0]
    direction = embeddings[token] / embeddings[token].norm()
    nearest = float((embeddings @ direction)[torch.arange(model.vocab_size) != token].max())
    own = float(embeddings[token].norm())
    assert nearest < own
    made = build_dictionary({"kind": "sae", "hook_point_in": hook, "d_in": D_MODEL, "d_sae": 12, "act_fn": "relu"}, seed=0)
    made = made.fold({hook: {"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL}})
    with torch.no_grad():
        made.get_parameter("W_E")[:, PLANTED] = direction
        made.get_parameter("b_E")[PLANTED] = -(own + max(nearest, 0.9 * own)) / 2
    made.save(project.path / "data" / "planted")
    return int(token)


def test_a_planted_feature_has_exactly_its_token(project: Project) -> None:
    token = plant(project, " cat")
    found = analyzed(project, "data/planted", analysis__top_contexts=6)
    tokens = open_tokens(project.path / "data/tokens.zarr")
    rows = found.contexts(PLANTED)
    active = [row for row in rows if row["band"] != INACTIVE]
    assert sum(row["band"] == TOP for row in rows) == 6
    assert len({row["band"] for row in rows}) == 6
    for row in active:
        assert row["tokens"][row["peak"]] == token
        assert {i for i, value in zip(row["tokens"], row["activations"], strict=True) if value > 0} == {token}
        traced = tokens.trace("train", row["context"], row["position"])
        assert (traced.document, traced.start, traced.end) == (row["document"], row["token_start"], row["token_end"])
        assert traced.text == row["texts"][row["peak"]] == " cat"
    inactive = [row for row in rows if row["band"] == INACTIVE]
    assert inactive
    for row in inactive:
        assert token not in tokens.train.read(row["context"], row["context"] + 1)[0]
        assert row["activation"] == 0.0
    feature = found.features()[PLANTED]
    assert feature["density"] == feature["active_tokens"] / found.about["tokens"]


def test_counts_and_windows_are_those_of_a_second_run(finished_project: Project, store: FeatureStore) -> None:
    with chdir(finished_project.path):
        params = load_params("params.yaml")
        found = analysis_run.load_for_analysis(params, finished_project.path / "data/inference/main", norms="data/norms.json")
    tokens = open_tokens(finished_project.path / "data/tokens.zarr")
    raw, models = RawDictionary(found.dictionary, found.norms), LanguageModels(found.models)
    n = min(2048 // tokens.context_size, tokens.train.n_contexts)
    chosen = np.arange(n) * tokens.train.n_contexts // n
    ids = np.stack([tokens.train.read(int(c), int(c) + 1)[0] for c in chosen]).astype(np.int64)
    mask = torch.from_numpy(tokens.mask(ids))
    # In the batches of the first run: in others, products have other last bits on some machines.
    parts, size = [], params.analysis.batch_contexts
    for some, kept in zip(torch.from_numpy(ids).split(size), mask.split(size), strict=True):
        x = models.activations(some, raw.hooks_in)
        parts.append(found.dictionary.encode(*raw.encoder_input(x, kept)) * kept[..., None])
    f = torch.cat(parts).double()
    assert store.about["tokens"] == int(mask.sum())
    f = f.detach()
    energies = f.square().sum((0, 1)) * found.dictionary.decoder_norms().detach().double().square()
    for row in store.features():
        own = f[..., row["feature"]]
        assert row["active_tokens"] == int((own > 0).sum())
        assert sum(row["histogram"]) == row["active_tokens"]
        assert row["max_activation"] == pytest.approx(float(own.max()), rel=1e-5)
        assert row["mean_activation"] == pytest.approx(float(own.sum()) / max(row["active_tokens"], 1), rel=1e-5)
        assert row["energy"] == pytest.approx(float(energies[row["feature"]] / energies.sum()), rel=1e-5)
        contexts = store.contexts(row["feature"])
        peaks = zip(*own.max(1), ids, strict=True)  # of contexts that are the same up to the peak only one is shown
        distinct = {tuple(line[: int(t) + 1]): float(v) for v, t, line in peaks if v > 0}
        best = sorted(distinct.values(), reverse=True)
        shown = [context["activation"] for context in contexts if context["band"] == TOP]
        assert shown == pytest.approx(best[: len(shown)], rel=1e-5)
        assert len(shown) == min(10, len(best))
        for context in contexts:
            line = int(np.flatnonzero(chosen == context["context"])[0])
            first = context["position"] - context["peak"]
            expected = own[line, first : first + len(context["tokens"])].tolist()
            assert context["activations"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
            assert context["tokens"] == ids[line, first : first + len(context["tokens"])].tolist()
            if context["band"] == INACTIVE:
                assert float(own[line].max()) == 0.0


def test_windows_stay_in_their_document_and_have_its_characters(finished_project: Project, store: FeatureStore) -> None:
    split = open_tokens(finished_project.path / "data/tokens.zarr").train
    texts = {}
    for number in range(split.n_documents):
        record = split.document(number)
        texts[record["key"]] = record["text"]
    seen = 0
    for _, contexts in store.blocks():
        for rows in contexts.values():
            for row in rows:
                if row["char_start"] < 0:
                    continue
                characters = texts[row["document"]][row["char_start"] : row["char_end"]]
                assert "".join(text for text in row["texts"] if text != "<|endoftext|>") == characters
                seen += 1
    assert seen > 100


def test_bands_are_quarters_from_the_top() -> None:
    value = [5.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0]
    found = [(band, value[place]) for band, place in banded(value, 2)]
    assert found == [(3, 8.0), (3, 7.0), (2, 6.0), (2, 5.0), (1, 4.0), (1, 3.0), (0, 2.0), (0, 1.0)]
    assert [value[place] for _, place in banded(value, 1)] == [7.0, 5.0, 3.0, 1.0]
    assert [place for _, place in banded(value[:1], 3)] == [0]


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (FEATURES, CONTEXTS)]


def test_an_interrupted_pass_goes_on_to_the_same_bytes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    collect = analysis_run.Collection.collect

    def interrupted(self: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        found = collect(self, batch)
        if calls == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(analysis_run.Collection, "collect", interrupted)
    with pytest.raises(Interrupted, match=saying("SIGINT", "again")):
        analyzed(project)
    assert not (project.path / "features").exists()
    states = list((project.path / "data" / "checkpoints").glob("analysis-*"))
    assert len(states) == 1
    analyzed(project)
    batches = -(-2048 // (project.params["activations"]["context_size"] * 8))
    assert calls == batches
    assert digests(project.path / "features") == digests(project.path / "data" / "features")
    assert not states[0].exists()


@pytest.fixture
def harmless_signals() -> Iterator[None]:
    """SIGINT and SIGTERM do nothing where the code under test doesn't say what they do."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("harmless_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["pipeline.analysis.writing.context_columns", "pipeline.dashboard.folder.chunk"])
def test_a_stop_after_the_pass_keeps_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, phase: str
) -> None:
    data = project.path / "data"
    before = {name: (data / name).stat().st_ino for name in ("features", "dashboard")}
    with monkeypatch.context() as patch:
        patch.setattr(phase, lambda *_: os.kill(os.getpid(), number))
        outcome = project.run("analyze")
    assert outcome.exit_code == 130
    says(outcome.stderr, "analysis:", number.name, "again")
    assert not list(data.glob(".*.partial-*"))
    assert (data / "dashboard").stat().st_ino == before["dashboard"]
    assert ((data / "features").stat().st_ino == before["features"]) == ("analysis" in phase)
    assert len(list((data / "checkpoints").glob("analysis-*"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(analysis_run.Collection, "collect", lambda *_: pytest.fail("the pass is done again"))
        again = project.run("analyze")
    assert again.exit_code == 0, again.exception
    assert not list((data / "checkpoints").glob("analysis-*"))


@pytest.mark.parametrize(
    "change", [{"model__dtype": "bfloat16"}, {"model__backend": "transformer_lens"}, {"analysis__tokens": 2000}]
)
def test_another_pass_does_not_go_on_from_the_state(
    project: Project, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    names = []
    monkeypatch.setattr(analysis_run, "run_pass", lambda _c, _t, saved, _s: names.append(saved.path.name))
    monkeypatch.setattr(analysis_run, "write_store", lambda *_: None)
    for changes in ({}, {}, change):
        project.set(**changes)
        with chdir(project.path):
            analyze(load_params("params.yaml"), inputs(project), "features")
    assert names[0] == names[1] != names[2]


def test_other_code_does_not_go_on_from_the_state_and_says_so(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(analysis_run, "write_store", lambda *_: (_ for _ in ()).throw(OSError("disk")))
        with pytest.raises(OSError, match="disk"):
            analyzed(project)
    (state,) = (project.path / "data" / "checkpoints").glob("analysis-*")
    monkeypatch.setattr(analysis_run, "code_digest", lambda *_: "another")
    monkeypatch.setattr(analysis_run.Collection, "load", lambda *_: pytest.fail("it goes on from what other code has made"))
    analyzed(project)
    lines = [line for line in capsys.readouterr().err.splitlines() if "anew" in line]
    assert len(lines) == 1
    says(lines[0], "analyze:", state, "code")
    assert digests(project.path / "features") == digests(project.path / "data" / "features")
    state.unlink()
    analyzed(project)
    assert "anew" not in capsys.readouterr().err


def test_reading_the_texts_spans_no_more_than_a_few_chunks() -> None:
    spans = []

    class Split:
        def read(self, start: int, stop: int, field: str) -> np.ndarray:
            spans.append(stop - start)
            return np.arange(start, stop)[:, None] + np.zeros((1, 3), dtype=np.int64)

    contexts = np.arange(0, 400_000, 997)
    found = AnalysedContexts(Split(), contexts, lambda i: str(i))  # type: ignore[arg-type]
    assert max(spans) <= 4096
    assert found.texts_at(np.array([997 * 5]), np.array([1])).to_pylist() == [str(997 * 5)]


def test_both_files_have_the_same_blocks_however_many_contexts(tmp_path: Path) -> None:
    columns = {"feature": pa.int32(), "text": pa.string()}
    writer = TableWriter(tmp_path / "many.parquet", pa.schema(columns.items()), {})
    for block in range(2):
        writer.write({"feature": [block] * 1_100_000, "text": ["a"] * 1_100_000})
    writer.close()
    assert pq.ParquetFile(tmp_path / "many.parquet").num_row_groups == 2


def test_asking_for_more_than_there_is_gives_all_of_it_in_the_same_memory(project: Project) -> None:
    """Half a terabyte, were room made for it."""
    found = []
    for contexts, window, features, tokens in ((32, CONTEXT - 1, 64, 300), (32_767, 32_767, 2**40, 2**40)):
        project.set(
            analysis__tokens=32 * CONTEXT,
            analysis__top_contexts=contexts, analysis__window_before=window, analysis__window_after=window,
            analysis__neighbours=features, analysis__logit_tokens=tokens,
        )  # fmt: skip
        outcome = project.run("analyze")
        assert outcome.exit_code == 0, outcome.stderr
        found.append({name: (project.path / "data" / "features" / name).read_bytes() for name in (FEATURES, CONTEXTS)})
    assert found[0] == found[1]


def test_a_damaged_state_starts_anew(project: Project) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis_run, "write_store", lambda *_: (_ for _ in ()).throw(OSError("disk")))
        patch.setattr(analysis_run, "SAVE_SECONDS", 0.0)
        with pytest.raises(OSError, match="disk"), chdir(project.path):
            analyze(load_params("params.yaml"), inputs(project), "features", save_seconds=0.0)
    (state,) = (project.path / "data" / "checkpoints").glob("analysis-*")
    state.write_bytes(state.read_bytes()[:1000])
    analyzed(project)
    assert digests(project.path / "features") == digests(project.path / "data" / "features")


def test_batches_and_cuts_of_the_model_run_change_little_but_not_the_contexts(project: Project, store: FeatureStore) -> None:
    other = analyzed(project, analysis__batch_contexts=3)
    for one, two in zip(store.features(), other.features(), strict=True):
        assert one["active_tokens"] == pytest.approx(two["active_tokens"], abs=2)
        assert one["max_activation"] == pytest.approx(two["max_activation"], rel=1e-4)


def test_attention_dictionaries_have_the_tokens_that_they_read(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.set(
        dictionary__kind="lorsa",
        dictionary__n_qk_heads=2,
        dictionary__d_qk_head=8,
        dictionary__n_ctx=CONTEXT,
        dictionary__rotary_dim=4,
        dictionary__hook_point_in="blocks.0.ln1.hook_out",
        dictionary__hook_point_out="blocks.0.hook_attn_out",
        dictionary__apply_b_dec_to_input=False,
        activations__target="activations-2d",
        activations__batch_size=8,
        initializer__initialize_W_D_with_activations=False,
    ).run_all()
    found = FeatureStore(project.path / "data" / "features")
    monkeypatch.chdir(project.path)
    loaded = analysis_run.load_for_analysis(load_params("params.yaml"), "data/inference/main", norms="data/norms.json")
    tokens, models = open_tokens(project.path / "data/tokens.zarr"), LanguageModels(loaded.models)
    (hook,) = loaded.dictionary.hooks_in
    checked = 0
    for feature in range(0, found.n_features, 9):
        for row in (row for row in found.contexts(feature) if row["band"] == TOP):
            ids = tokens.train.read(row["context"], row["context"] + 1).astype(np.int64)
            x = models.activations(torch.from_numpy(ids), [hook])[hook]
            pattern = loaded.dictionary.z_pattern(x, torch.tensor([feature]))[0, 0, row["position"]].detach()
            order = [int(i) for i in pattern.argsort(descending=True)[:4] if pattern[i] > 0]
            assert [source["position"] for source in row["sources"]] == order
            assert [source["value"] for source in row["sources"]] == pytest.approx(pattern[order].tolist(), rel=1e-4)
            assert [source["text"] for source in row["sources"]] == [loaded.main.tokenizer.decode([ids[0, i]]) for i in order]
            assert max(order) <= row["position"]
            checked += 1
    assert checked > 10


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (
            lambda path: (path / "metrics" / "evaluation.json").unlink(),
            ("metrics/evaluation.json:", "missing", "`dvc repro -s -f evaluate`"),
        ),
        (
            lambda path: (path / "metrics" / "train_history.jsonl").write_text("{"),
            ("metrics/train_history.jsonl:", "line 1", "damaged"),
        ),
        (lambda path: (path / "data" / "inference" / "main" / "config.json").unlink(), ("config.json:",)),
    ],
)
def test_the_stage_says_what_is_missing(project: Project, damage: Any, parts: tuple[str, ...]) -> None:
    damage(project.path)
    outcome = project.run("analyze")
    assert outcome.exit_code == 2
    says(outcome.stderr, *parts)


def test_reading_a_store_that_is_not_there_or_damaged(tmp_path: Path, store: FeatureStore) -> None:
    with pytest.raises(DataError, match=saying("missing", "`dvc repro analyze`")):
        FeatureStore(tmp_path)
    for name in (FEATURES, CONTEXTS):
        (tmp_path / name).write_bytes(b"no parquet")
    with pytest.raises(DataError, match=saying("damaged", "`dvc repro analyze`")):
        FeatureStore(tmp_path)
    assert json.loads(json.dumps(store.about))["feature_shape"] == [64]
