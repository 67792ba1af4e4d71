"""The generate and norm stages, and the reading benchmark."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from pipeline.activations.for_params import generate_for
from pipeline.activations.opening import open_for
from pipeline.activations.reader import open_activations
from pipeline.corpus.tokens import TokenStore
from pipeline.errors import DataError
from pipeline.files import read_json
from pipeline.norms import load_norm_arrays, load_norms
from tests.activations.cases import HOOK, OTHER, FakeModel, make_store

PARAMS = str(Path(__file__).resolve().parents[2] / "params.yaml")


class Configuration:
    """What a FakeModel's configuration would say."""

    name, revision, d_model = "fake", None, 8

    def hook_width(self, hook_point: str) -> int:
        return 8

    def digest(self) -> str:
        return "model 8"


def _params(tokens: TokenStore, path: str | None = None, hook_points: tuple[str, ...] = (HOOK,), **changes: object):
    activations = {
        "path": path,
        "context_size": 16,
        "model_batch_size": 8,
        "total_tokens": 5000,
        "target": "activations-1d",
        "storage_dtype": "bfloat16",
        "buffer_shuffle": SimpleNamespace(perm_seed=42),
        "ignore_token_ids": None,
        **changes,
    }
    return SimpleNamespace(
        hook_points=hook_points,
        activations=SimpleNamespace(**activations),
        model=SimpleNamespace(backend="huggingface", dtype="float32"),
    )


@pytest.fixture
def generate(tokens, tmp_path, small_blocks, monkeypatch):
    """Generate into tmp_path for params; the figures."""
    monkeypatch.chdir(tmp_path)
    return lambda params: generate_for(params, Configuration, FakeModel, tokens.path, tmp_path / "activations.json")


def test_manifest_and_figures(tokens, generate, tmp_path):
    figures = generate(_params(tokens))
    assert (figures["rows"], figures["tokens"], figures["hook_points"]) == (5000, 5000, 1)
    assert figures["tokens_per_context"] == pytest.approx(5000 / figures["contexts"])
    on_disk = sum(p.stat().st_size for p in (tmp_path / "data" / "store").rglob("c.*"))
    assert figures["bytes"] == on_disk
    manifest = (tmp_path / "activations.json").read_bytes()
    generate(_params(tokens, hook_points=(HOOK, OTHER)))
    assert (tmp_path / "activations.json").read_bytes() != manifest
    generate(_params(tokens))
    assert (tmp_path / "activations.json").read_bytes() == manifest


def test_two_dimensional_figures_count_kept_tokens(tokens, generate):
    figures = generate(_params(tokens, target="activations-2d"))
    assert figures["rows"] == figures["contexts"]
    assert 5000 <= figures["tokens"] < 5016


def test_a_store_is_opened_for_the_params_it_was_made_for(tokens, generate, tmp_path):
    generate(_params(tokens))
    manifest = tmp_path / "activations.json"
    assert open_for(_params(tokens), manifest).n_rows == 5000
    with pytest.raises(DataError, match=r"made for other parameters \(activations.total_tokens 5000, not 4000\)"):
        open_for(_params(tokens, total_tokens=4000), manifest)
    with pytest.raises(DataError, match=f"unknown hook point '{OTHER}'"):
        open_for(_params(tokens, hook_points=(OTHER,)), manifest)


def test_a_named_store_is_verified_and_not_generated(tokens, generate, tmp_path):
    store = make_store(tmp_path / "mine", tokens)
    stated = f"mine/{store.path.name}"
    generate(_params(tokens, path=stated, total_tokens=7))
    assert read_json(tmp_path / "activations.json", "manifest")["path"] == stated
    assert open_activations(tmp_path / "activations.json").digests == store.digests
    assert open_for(_params(tokens, path=stated, total_tokens=7), tmp_path / "activations.json").n_rows == 5000
    assert not (tmp_path / "data").exists()
    with pytest.raises(DataError, match=r"activations.target 'activations-1d', not 'activations-2d'"):
        generate(_params(tokens, path=stated, target="activations-2d"))
    with pytest.raises(DataError, match=r"activations.path: .*elsewhere: no such activation store"):
        generate(_params(tokens, path="elsewhere"))
    content = bytearray((store.path / HOOK / "c.2.0").read_bytes())
    content[0] ^= 1
    (store.path / HOOK / "c.2.0").write_bytes(bytes(content))
    with pytest.raises(DataError, match="chunk 2 is altered"):
        generate(_params(tokens, path=stated))


def test_the_norm_stage_measures_the_store(tokens, generate, tmp_path):
    from stages.compute_norm import main

    generate(_params(tokens))
    outcome = CliRunner().invoke(main, ["--params", PARAMS, "--activations", "activations.json"])
    assert outcome.exit_code == 0, outcome.output
    norm = load_norms("data/norms.json")[HOOK]
    rows = open_activations("activations.json").read(HOOK, 0, 5000).double()
    assert norm.n_tokens == 5000
    assert norm.mean_norm == pytest.approx(float(rows.norm(dim=1).mean()))
    assert load_norm_arrays("data/norm_statistics.safetensors")[f"{HOOK}/mean"].shape == (8,)


def test_a_missing_store_is_one_line_and_exit_code_2(tmp_path, monkeypatch):
    from stages.compute_norm import main

    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(main, ["--params", PARAMS])
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("error: data/activations.json: the manifest of the activation store is missing")
    assert outcome.stderr.count("\n") == 1


def test_the_reading_benchmark_runs():
    from benchmarks.reading import main

    outcome = CliRunner().invoke(main, ["--small"])
    assert outcome.exit_code == 0, outcome.output
    assert "ratio: " in outcome.output
