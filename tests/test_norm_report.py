"""What the norm stage says of massive tokens: counts, line, figures, page; in the stage, and in the training's run."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.corpus.tokens import open_tokens
from pipeline.lm.loading import load_tokenizer
from pipeline.metric_names import NORM
from pipeline.norms.charts import norm_histograms
from pipeline.norms.hook_norm import HookNorm, load_norms
from pipeline.norms.massive import MassiveTokens, ModelTexts, commonest
from pipeline.norms.report import NormReport
from pipeline.opening import open_activations
from pipeline.training.tracked import log_earlier
from tests.messages import says
from tests.project import CONTEXT, Project

A, B = "blocks.0.hook_resid_post", "tuned:blocks.1.hook_resid_post"
QUANTILES = {"0.01": 1.5, "0.5": 2.5, "0.99": 3.5, "0.999": 90.0}
TEXTS = {0: "\n", 1: " the", 2: "'"}


def store_of(tokens: torch.Tensor, positions: torch.Tensor) -> Any:
    rows = lambda start, stop: SimpleNamespace(tokens=tokens[start:stop], positions=positions[start:stop])  # noqa: E731
    return SimpleNamespace(context_size=16, read_rows_meta=rows)


def norm(**changes: Any) -> HookNorm:
    stated = {
        "median_norm": 2.0,
        "max_norm_factor": 10.0,
        "n_tokens": 197,
        "n_massive": 3,
        "n_excluded": 3,
        "largest_norm": 1624.0,
    }
    return HookNorm(2.25, 5.0, 4, **{**stated, "norm_quantiles": QUANTILES, **changes})


def report(norms: dict[str, HookNorm], texts: dict[int, str] | None = None) -> NormReport:
    """Of massive tokens at A (three, among them twice id 0 at position 0) and, if it is there, at B (one of them)."""
    massive = MassiveTokens(store_of(torch.tensor([5, 0, 0, 1, 5, 5]), torch.tensor([3, 0, 0, 12, 4, 9])))
    massive.add(A, 0, torch.tensor([False, True, True, True]))
    if B in norms:
        massive.add(B, 0, torch.tensor([False, True, False, False]))
        massive.add(B, 4, torch.tensor([False, True]))
    return NormReport(norms, massive, lambda hook, token: (texts or {}).get(token))


def test_tokens_and_positions_are_counted_in_rows_and_in_contexts() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, positions = torch.randint(0, 7, (40,), generator=generator), torch.randint(0, 16, (40,), generator=generator)
    above = {hook: torch.rand(40, generator=generator) < 0.3 for hook in (A, B)}
    for shape in ((40,), (8, 5)):
        massive = MassiveTokens(store_of(tokens.reshape(shape), positions.reshape(shape)))
        for hook, rows in above.items():
            for start in range(0, shape[0], 4):
                massive.add(hook, start, rows.reshape(shape)[start : start + 4])
        for hook, rows in above.items():
            places = [i for i in range(40) if rows[i]]
            assert massive.tokens[hook] == Counter(int(tokens[i]) for i in places)
            assert massive.positions[hook] == Counter(int(positions[i]) for i in places)
        assert massive.n_anywhere == len({i for rows in above.values() for i in range(40) if rows[i]})


def test_the_commonest_come_first_and_equal_ones_by_value() -> None:
    assert commonest({7: 2, 3: 5, 9: 2, 1: 1}, 3) == [(3, 5), (7, 2), (9, 2)]
    assert commonest({}, 3) == []


def test_a_line_says_how_many_how_long_where_and_which() -> None:
    counted = ("3 of 200", "(1.5 %)", "10 x", "812 x", "positions 0 (2), 12 (1);")
    (line,) = report({A: norm()}, TEXTS).lines()
    says(line, f"{A}:", *counted, 2, "tokens '\\n' (2), ' the' (1);", "excluded", "activations.max_norm_factor: null")
    (line,) = report({A: norm(max_norm_factor=None, n_excluded=0)}).lines()
    says(line, f"{A}:", *counted, "tokens id 0 (2), id 1 (1);", "kept", "activations.max_norm_factor is null")
    (line,) = report({A: norm(max_norm_factor=4.5, n_massive=1)}).lines()
    says(line, f"{A}:", "1 of 198", "(0.5051 %)", "4.5 x")


def test_hook_points_without_massive_tokens_have_no_line() -> None:
    quiet = norm(n_massive=0, n_excluded=0, largest_norm=4.0)
    assert (
        NormReport({A: quiet, B: quiet}, MassiveTokens(store_of(torch.zeros(0), torch.zeros(0))), TEXTS.__getitem__).lines()
        == []
    )  # type: ignore[arg-type]
    assert [line.split(": ")[0] for line in report({B: norm(), A: norm(), "c": quiet}).lines()] == [B, A]


def test_long_lists_are_cut() -> None:
    massive = MassiveTokens(store_of(torch.arange(100) % 30, torch.arange(100) % 16))
    massive.add(A, 0, torch.ones(100, dtype=torch.bool))
    found = NormReport({A: norm(n_massive=100)}, massive, lambda hook, token: None)
    assert "positions 0 (7), 1 (7), 2 (7), 3 (7), 4 (6) and 11 more; tokens id 0 (4), id 1 (4)" in found.lines()[0]
    metrics = found.metrics()
    assert [entry["position"] for entry in metrics[f"massive_positions.{A}"]] == [0, 1, 2, 3, *range(4, 10)]
    assert metrics[f"massive_tokens.{A}"][-1] == {"id": 9, "count": 4}


def test_figures_are_flat_and_their_names_defined() -> None:
    metrics = report({A: norm(), B: norm(n_massive=2, n_excluded=2, n_tokens=198)}, TEXTS).metrics()
    assert metrics == json.loads(json.dumps(metrics))
    assert {key.partition(".")[0] for key in metrics} == set(NORM)
    assert (metrics["n_massive"], metrics["n_excluded"]) == (4, 4)  # one of them at both hook points
    wanted = {
        "mean_norm": 2.25, "median_norm": 2.0, "norm_q01": 1.5, "norm_q50": 2.5, "norm_q99": 3.5, "norm_q999": 90.0, "largest_norm": 1624.0,
        "massive_norm": 20.0, "n_tokens": 197, "n_massive": 3, "n_excluded": 3, "massive_fraction": 3 / 200,
        "massive_positions": [{"position": 0, "count": 2}, {"position": 12, "count": 1}],
        "massive_tokens": [{"id": 0, "count": 2, "text": "\n"}, {"id": 1, "count": 1, "text": " the"}],
    }  # fmt: skip
    assert {name: metrics[f"{name}.{A}"] for name in wanted} == wanted
    assert metrics[f"massive_fraction.{B}"] == 2 / 200
    off = report({A: norm(max_norm_factor=None, n_excluded=0)}).metrics()
    assert (off["n_massive"], off["n_excluded"], off[f"massive_norm.{A}"]) == (3, 0, 20.0)
    old = NormReport({A: HookNorm(2.0, 4.0, 4, n_tokens=7)}, report({}).massive, lambda hook, token: None).metrics()
    assert f"median_norm.{A}" not in old


def test_numbers_go_to_the_tracked_run_and_lists_do_not(tmp_path: Path) -> None:
    metrics = report({A: norm()}, TEXTS).metrics()
    (tmp_path / "norm.json").write_text(json.dumps(metrics))
    (tmp_path / "train.json").write_text(json.dumps({"steps": 3}))
    logged: dict[str, float] = {}
    log_earlier(SimpleNamespace(log_metrics=logged.update), tmp_path)  # type: ignore[arg-type]
    lists = {f"massive_positions.{A}", f"massive_tokens.{A}"}
    assert logged == {f"norm/{key}": value for key, value in metrics.items() if key not in lists}
    assert logged[f"norm/n_massive.{A}"] == 3


def long_token(project: Project) -> int:
    """Make one token's activation massive at the project's hook point: its embedding is 1,000 times as long. Its id."""
    file = project.path / "model" / "model.safetensors"
    weights = load_file(file)
    tokens = open_tokens(project.path / "data" / "tokens.zarr").train.read()
    token = int(np.bincount(tokens.ravel())[1:].argmax()) + 1
    weights["gpt_neox.embed_in.weight"][token] *= 1000
    save_file(weights, file, {"format": "pt"})
    return token


def measured(project: Project) -> tuple[str, dict[str, Any]]:
    """Run generate and norm; the lines about norms, and metrics/norm.json."""
    assert project.run("generate_activations").exit_code == 0
    outcome = project.run("compute_norm")
    assert outcome.exception is None
    assert outcome.exit_code == 0, outcome.stderr
    said = "".join(line for line in outcome.stderr.splitlines(keepends=True) if "median norm" in line)
    return said, json.loads((project.path / "metrics" / "norm.json").read_text())


def test_histograms_mark_the_limit_where_tokens_are_beyond_it(tmp_path: Path) -> None:
    """Of norms with a rule, without one, with one that no token exceeds, and of an earlier version."""
    edges, counts = torch.tensor([1.0, 10.0, 100.0]).double(), torch.tensor([90, 3])
    long, old = norm(median_norm=3.0), HookNorm(2.25, 5.0, 4)
    norms = {"a": long, "b": norm(median_norm=3.0, max_norm_factor=None), "c": norm(median_norm=30.0), "d": old}
    save_file(
        {f"{hook}/norm_histogram_{name}": x.clone() for hook in norms for name, x in (("edges", edges), ("counts", counts))},
        tmp_path / "statistics.safetensors",
    )
    (tmp_path / "norms.json").write_text(json.dumps({hook: dataclasses.asdict(each) for hook, each in norms.items()}))
    files = tmp_path / "norms.json", tmp_path / "statistics.safetensors"
    charts = norm_histograms(*files)
    assert [chart.title for chart in charts] == [f"Activation norm at {hook}" for hook in "abcd"]
    mean = (2.25, "mean 2.25")
    assert [chart.marks for chart in charts] == [
        (mean, (30.0, "excluded above 30")), (mean, (30.0, "massive above 30")), (mean,), (mean,),
    ]  # fmt: skip
    assert [chart.y_log for chart in charts] == [True, True, False, False]
    (tmp_path / "norms.json").write_text(json.dumps({"d": {"mean_norm": 2.25, "mean_square": 5.0, "d": 4}}))
    assert [chart.marks for chart in norm_histograms(*files)] == [(mean,)]
    assert [chart.marks for chart in norm_histograms(*files, "median_norm")] == [()]


@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
def test_the_stage_tells_massive_tokens_of_a_store(project: Project, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    token = long_token(project)
    project.set(activations__target=target, activations__batch_size=128 if target == "activations-1d" else 8)
    said, metrics = measured(project)
    monkeypatch.chdir(project.path)
    store = open_activations("data/activations.json")
    meta = store.read_rows_meta(0, store.n_rows)
    norms = np.linalg.norm(store.read(A, 0, store.n_rows).double().numpy(), axis=-1)[meta.mask.numpy()]
    tokens, positions = (t.numpy()[meta.mask.numpy()] for t in (meta.tokens, meta.positions))
    median = np.sort(norms)[(len(norms) - 1) // 2]
    massive = norms > 10 * median
    assert 0 < massive.sum() < len(norms) / 2
    assert set(tokens[massive]) == {token}
    assert metrics[f"n_massive.{A}"] == metrics[f"n_excluded.{A}"] == metrics["n_massive"] == massive.sum()
    assert metrics[f"n_tokens.{A}"] == (~massive).sum()
    assert metrics[f"mean_norm.{A}"] == pytest.approx(norms[~massive].mean(), rel=1e-9)
    assert metrics[f"largest_norm.{A}"] == pytest.approx(norms.max(), rel=1e-9)
    assert metrics[f"norm_q50.{A}"] == pytest.approx(median, rel=1e-2)
    counts = Counter(positions[massive].tolist())
    listed = [(entry["position"], entry["count"]) for entry in metrics[f"massive_positions.{A}"]]
    assert listed == sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
    text = load_tokenizer("model").decode([token])
    assert text
    assert metrics[f"massive_tokens.{A}"] == [{"id": token, "count": massive.sum(), "text": text}]
    assert said.startswith(f"norm: {A}: {massive.sum():,} of {len(norms):,} ")
    says(said, "10 x", f"{median:.4g}", f"{norms.max() / median:,.0f} x", f"tokens {text!r} ({massive.sum():,});", "excluded")
    assert said.count("\n") == 1
    plots = project.path / "metrics" / "plots" / "norm"
    assert {file.name for file in plots.iterdir()} == {"activation_norm.png", "massive_positions.png", "index.html"}
    page = (plots / "index.html").read_text()
    assert page.count("<svg") == 2
    for shown in (
        f"median {median:.4g}",
        f"excluded above {10 * median:.4g}",
        "Massive tokens by position",
        "tokens, log scale",
    ):
        assert shown in page, shown


def test_the_stage_says_nothing_where_there_are_none(project: Project) -> None:
    said, metrics = measured(project)
    assert said == ""
    assert (metrics["n_massive"], metrics["n_excluded"], metrics[f"massive_fraction.{A}"]) == (0, 0, 0.0)
    assert not any(key.startswith(("massive_positions", "massive_tokens")) for key in metrics)
    plots = project.path / "metrics" / "plots" / "norm"
    assert {file.name for file in plots.iterdir()} == {"activation_norm.png", "index.html"}
    page = (plots / "index.html").read_text()
    assert f"median {metrics[f'median_norm.{A}']:.4g}" in page
    assert "excluded above" not in page
    assert "massive above" not in page
    assert metrics["n_massive"] == 0
    assert load_norms(project.path / "data" / "norms.json")[A].n_tokens == metrics[f"n_tokens.{A}"] == 4096
    assert "norm 100%  4,096/4,096 tokens at 1 hook point  " in project.run("compute_norm").stderr


def test_without_the_rule_massive_tokens_are_told_and_kept(project: Project) -> None:
    long_token(project)
    excluded = measured(project)[1]
    said, metrics = measured(project.set(activations__max_norm_factor=None))
    says(said, "kept", "activations.max_norm_factor is null")
    assert metrics == excluded | {"n_excluded": 0, f"n_excluded.{A}": 0}
    assert "massive above" in (project.path / "metrics" / "plots" / "norm" / "index.html").read_text()


def test_the_factor_is_the_stated_one(project: Project) -> None:
    token = long_token(project)
    said, metrics = measured(project.set(activations__max_norm_factor=1e6))
    assert (said, metrics["n_massive"]) == ("", 0)
    said, metrics = measured(project.set(activations__max_norm_factor=25.0))
    says(said, "25 x")
    assert metrics[f"massive_norm.{A}"] == pytest.approx(25 * metrics[f"median_norm.{A}"])
    assert [entry["id"] for entry in metrics[f"massive_tokens.{A}"]] == [token]


def test_without_a_tokenizer_tokens_are_told_by_id(project: Project) -> None:
    token = long_token(project)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (project.path / "model" / file).unlink()
    said, metrics = measured(project)
    assert re.search(rf"; tokens id {token} \(\d+\); excluded", said)
    assert list(metrics[f"massive_tokens.{A}"][0]) == ["count", "id"]


def test_texts_are_of_the_model_that_the_hook_point_is_of(finished_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each tokenizer is loaded once."""
    from pipeline.lm import loading

    loaded = []
    load = loading.load_tokenizer

    def other(name: str, revision: str | None, tokenizer_name: str | None) -> Any:
        loaded.append((name, revision))
        return load("model", None) if name == "model" else load("nowhere/at all", revision)

    monkeypatch.chdir(finished_project.path)
    monkeypatch.setattr(loading, "load_tokenizer", other)
    sections = {
        "": SimpleNamespace(model_name="model", revision=None, tokenizer_name=None),
        "tuned": SimpleNamespace(model_name="x", revision="r", tokenizer_name=None),
    }
    texts = ModelTexts(SimpleNamespace(language_model=sections.__getitem__))  # type: ignore[arg-type]
    tokenizer = load("model", None)
    (cat,) = tokenizer(" cat", add_special_tokens=False)["input_ids"]
    assert [texts(A, cat), texts(A, 0), texts(B, cat), texts(B, 0)] == [" cat", "<|endoftext|>", None, None]
    assert loaded == [("model", None), ("x", "r")]


def test_the_positions_of_a_page_are_those_of_a_context(tmp_path: Path, project: Project) -> None:
    long_token(project)
    measured(project)
    page = (project.path / "metrics" / "plots" / "norm" / "index.html").read_text()
    assert f"of {CONTEXT} positions" in page
    hints = re.findall(r"<title>(\d+): (\d+) tokens</title>", page)
    assert [int(at) for at, _ in hints] == list(range(CONTEXT))
    metrics = json.loads((project.path / "metrics" / "norm.json").read_text())
    listed = {entry["position"]: entry["count"] for entry in metrics[f"massive_positions.{A}"]}
    assert listed.items() <= {int(at): int(count) for at, count in hints}.items()
    assert sum(int(count) for _, count in hints) == metrics["n_massive"]
