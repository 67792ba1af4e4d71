"""Massive tokens in the analysis: a token whose embedding is a hundred times longer than the others is planted in the small model."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.analysis import analyze as analysis_run
from pipeline.analysis.analyze import Inputs, analyze
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.analysis.inspection import Inspection, inspect_text
from pipeline.analysis.loading import Loaded, load_for_analysis
from pipeline.analysis.terminal import largest
from pipeline.corpus.tokens import open_tokens
from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError
from pipeline.lm.loading import load_language_model
from pipeline.params.loader import load_params
from tests.analysis.test_inspect_stage import run
from tests.messages import saying, says
from tests.project import D_MODEL, Project
from tests.sealing import rewritten

HOOK = "blocks.0.hook_resid_pre"  # the embedding itself
MASSIVE, OTHER = " cat", " dog"
TIMES = 100.0
BOTH, ALONE = 3, 5  # features: on both words; on the massive one alone


@pytest.fixture
def planted(project: Project) -> tuple[Project, dict[str, int]]:
    """Dictionaries `on` (max_norm_factor 10) and `off` (null) in data/inference; the tokens of both words."""
    weights = project.path / "model" / "model.safetensors"
    tensors = load_file(weights)
    model = load_language_model(str(project.path / "model"), device="cpu")
    ids = {text: int(model.tokenizer(text, add_special_tokens=False)["input_ids"][0]) for text in (MASSIVE, OTHER)}
    embeddings = tensors["gpt_neox.embed_in.weight"]
    median = float(embeddings.norm(dim=1).median())
    embeddings[ids[MASSIVE]] *= TIMES * median / float(embeddings[ids[MASSIVE]].norm())
    embeddings[ids[OTHER]] *= 3.0 * median / float(embeddings[ids[OTHER]].norm())
    save_file(tensors, weights, metadata={"format": "pt"})
    norm = {"mean_norm": median, "mean_square": median**2, "d": D_MODEL, "median_norm": median, "max_norm_factor": None}
    for name, factor in (("on", 10.0), ("off", None)):
        norms = {HOOK: {**norm, "max_norm_factor": factor}}
        config = {
            "kind": "sae",
            "name": name,
            "hook_point_in": HOOK,
            "d_in": D_MODEL,
            "d_sae": 8,
            "act_fn": "relu",
            "norms": norms,
        }
        made = build_dictionary(config, seed=0).fold(norms)
        with torch.no_grad():
            W_E, b_E = made.get_parameter("W_E"), made.get_parameter("b_E")
            massive, other = (embeddings[ids[text]] / embeddings[ids[text]].norm() for text in (MASSIVE, OTHER))
            W_E[:, ALONE], b_E[ALONE] = massive, -50.0 * median
            W_E[:, BOTH], b_E[BOTH] = massive + 2.0 * other, -2.5 * median
        made.save(project.path / "data" / "inference" / name)
    return project, ids


def analyse(project: Project, name: str, **how: Any) -> dict[str, Any]:
    """Write the feature store in features/; its metadata."""
    places = [project.path / "data" / part for part in (f"inference/{name}", "tokens.zarr", "norms.json")]
    with chdir(project.path):
        return analyze(load_params("params.yaml"), Inputs(*places), "features", **how)


def analysed(project: Project, name: str) -> FeatureStore:
    analyse(project, name)
    return FeatureStore(project.path / "features")


def loaded(project: Project, name: str) -> Loaded:
    with chdir(project.path):
        return load_for_analysis(load_params("params.yaml"), f"data/inference/{name}", norms="data/norms.json")


def analysed_tokens(project: Project) -> np.ndarray:
    """int32 [n, T] of the contexts that an analysis looks at."""
    split = open_tokens(project.path / "data/tokens.zarr").train
    n = min(2048 // split.context_size, split.n_contexts)
    return np.stack([split.read(int(c), int(c) + 1)[0] for c in np.arange(n) * split.n_contexts // n])


def test_an_excluded_token_is_not_counted_and_never_shown_as_the_strongest(planted: tuple[Project, dict[str, int]]) -> None:
    project, ids = planted
    found = analysed(project, "on")
    tokens = analysed_tokens(project)
    n, kept = int((tokens == ids[MASSIVE]).sum()), tokens != 0
    assert n > 20
    assert found.about["excluded_tokens"] == n
    assert found.about["tokens"] == int(kept.sum()) - n
    rows = found.features()
    assert rows[ALONE]["active_tokens"] == rows[ALONE]["density"] == rows[ALONE]["max_activation"] == 0
    assert not [row for row in found.contexts(ALONE) if row["band"] != "inactive"]
    assert rows[BOTH]["active_tokens"] == int((tokens == ids[OTHER]).sum())
    assert rows[BOTH]["density"] == rows[BOTH]["active_tokens"] / found.about["tokens"]
    for feature in range(8):
        for row in found.contexts(feature):
            assert row["tokens"][row["peak"]] != ids[MASSIVE]
            assert all(v == 0 for i, v in zip(row["tokens"], row["activations"], strict=True) if i == ids[MASSIVE])
    used = loaded(project, "on")
    dictionary = used.dictionary
    rest = torch.from_numpy(tokens[kept & (tokens != ids[MASSIVE])].astype(np.int64))
    x = used.main.activations(rest[:, None], [HOOK])[HOOK][:, 0]
    with torch.no_grad():
        f = dictionary.encode(x).double().numpy()
    assert [row["active_tokens"] for row in rows] == (f > 0).sum(0).tolist()
    assert [row["max_activation"] for row in rows] == pytest.approx(f.max(0).tolist(), rel=1e-5)
    energies = (f**2).sum(0) * dictionary.decoder_norms().detach().double().numpy() ** 2
    assert [row["energy"] for row in rows] == pytest.approx((energies / energies.sum()).tolist(), rel=1e-5)


def test_without_a_rule_the_massive_token_takes_part(planted: tuple[Project, dict[str, int]]) -> None:
    project, ids = planted
    found = analysed(project, "off")
    tokens = analysed_tokens(project)
    assert found.about["excluded_tokens"] == 0
    assert found.about["tokens"] == int((tokens != 0).sum())
    assert found.features()[ALONE]["active_tokens"] == int((tokens == ids[MASSIVE]).sum())
    assert {row["tokens"][row["peak"]] for row in found.contexts(ALONE) if row["band"] == "top"} == {ids[MASSIVE]}


def test_a_token_that_is_massive_where_the_dictionary_writes_is_left_out(project: Project) -> None:
    """At what it reads none is."""
    reads, writes = "blocks.0.ln2.hook_out", "blocks.0.hook_mlp_out"
    tokens = analysed_tokens(project)
    model = load_language_model(str(project.path / "model"), device="cpu")
    length = model.activations(torch.from_numpy(tokens.astype(np.int64)), [writes])[writes].norm(dim=-1)
    kept = torch.from_numpy(tokens != 0)
    limit = float(length[kept].quantile(0.9))
    medians = {reads: 1e6, writes: limit / 10.0}
    norms = {
        h: {"mean_norm": 1.0, "mean_square": 1.0, "d": D_MODEL, "median_norm": m, "max_norm_factor": 10.0}
        for h, m in medians.items()
    }
    config = {
        "kind": "transcoder",
        "name": "mlp",
        "hook_point_in": reads,
        "hook_point_out": writes,
        "d_in": D_MODEL,
        "d_sae": 8,
    }
    made = build_dictionary({**config, "act_fn": "relu", "norms": norms}, seed=0).fold(norms)
    made.save(project.path / "data" / "inference" / "mlp")
    about = analyse(project, "mlp")
    wanted = int(((length > limit) & kept).sum())
    assert wanted > 20
    assert about["excluded_tokens"] == pytest.approx(wanted, abs=1)  # other batches, other last bits at the limit
    assert about["tokens"] + about["excluded_tokens"] == int(kept.sum())


def test_the_state_of_a_pass_depends_on_the_limits(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(analysis_run, "run_pass", lambda _c, _t, saved, _s: names.append(saved.path.name))
    monkeypatch.setattr(analysis_run, "write_store", lambda *_: None)
    file = project.path / "data/inference/main/config.json"
    config = json.loads(file.read_text())
    ((hook, norm),) = config["norms"].items()
    changes: list[dict[str, Any]] = [{}, {}, {"median_norm": norm["median_norm"] / 2}, {"max_norm_factor": None}]
    for change in changes:
        limits = {hook: norm | change}
        rewritten(file, lambda config, limits=limits: config.update(norms=limits))  # type: ignore[misc]
        analyse(project, "main")
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_a_pass_that_was_stopped_counts_excluded_tokens_once(
    planted: tuple[Project, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = planted
    whole = analysed(project, "on").about
    collect, calls = analysis_run.Collection.collect, iter(range(10**6))

    def failing(self: Any, batch: Any) -> Any:
        if next(calls) == 5:
            raise OSError("disk")
        return collect(self, batch)

    monkeypatch.setattr(analysis_run.Collection, "collect", failing)
    with pytest.raises(OSError, match="disk"):
        analyse(project, "on", save_seconds=0.0)
    assert analyse(project, "on") == whole


TEXT = "the cat sat and the dog sat"


@pytest.fixture
def inspected(planted: tuple[Project, dict[str, int]]) -> Callable[[str], Inspection]:
    project, _ = planted

    def of(name: str) -> Inspection:
        found = loaded(project, name)
        with chdir(project.path):
            return inspect_text(TEXT, found.dictionary, found.models, norms=found.norms)

    return of


def test_inspection_marks_excluded_tokens_and_shows_their_features(inspected: Callable[[str], Inspection]) -> None:
    on, off = inspected("on"), inspected("off")
    (place,) = [i for i, token in enumerate(on.tokens) if token == MASSIVE]
    assert on.excluded == {place: pytest.approx(TIMES, rel=1e-4)}
    assert off.excluded == {}
    assert torch.equal(on.features.to_dense(), off.features.to_dense())
    assert str(ALONE) in [name for name, _ in on.strongest(place)]


def test_the_usual_strength_of_steering_is_not_that_of_an_excluded_token(inspected: Callable[[str], Inspection]) -> None:
    on, off = inspected("on"), inspected("off")
    (dog,) = [i for i, token in enumerate(on.tokens) if token == OTHER]
    values = dict(on.of_feature(BOTH))
    assert largest(on, str(BOTH)) == values[dog]
    assert largest(off, str(BOTH)) == max(values.values()) > 10 * values[dog]
    with pytest.raises(DataError, match=saying(f"feature {ALONE}", "excluded", "--strength")):
        largest(on, str(ALONE))
    assert largest(off, str(ALONE)) > 0


def test_the_command_says_it(planted: tuple[Project, dict[str, int]]) -> None:
    project, _ = planted
    marked = "excluded: massive (100 x the median norm)"
    project.set(dictionary__name="on", dictionary__hook_point_in=HOOK)
    code, out, err = run(project, "--text", TEXT)
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if marked in line]
    assert line.split()[:2] == ["1", "cat"]
    assert str(ALONE) in line.split()
    code, out, _ = run(project, "--text", TEXT, "--feature", str(BOTH))
    assert [line.endswith(marked) for line in out.splitlines() if "[" in line] == [True, False]
    project.set(dictionary__name="off")
    assert "excluded" not in run(project, "--text", TEXT)[1]


def test_the_dashboard_says_it(planted: tuple[Project, dict[str, int]]) -> None:
    project, ids = planted
    project.set(dictionary__name="on", dictionary__hook_point_in=HOOK)
    outcome = project.run("analyze")
    assert (outcome.exit_code, outcome.exception) == (0, None), outcome.stderr
    about = json.loads((project.path / "data/dashboard/data/overview.json").read_text())
    tokens = analysed_tokens(project)
    n = int((tokens == ids[MASSIVE]).sum())
    says(about["seen"], f"{int((tokens != 0).sum()) - n:,}", "train", f"{n:,}", "massive")
    assert Path(project.path / "data/dashboard/index.html").read_text().count("massive ones") == 1
