"""The generate and norm stages, and the benchmark of the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from pipeline.activations.for_params import generate_for
from pipeline.corpus.tokens import TokenStore
from pipeline.errors import DataError
from pipeline.files import read_json, write_json
from pipeline.norms.hook_norm import load_norm_arrays, load_norms
from pipeline.opening import open_activations, open_for
from tests.activations.cases import HOOK, OTHER, FakeModel, make_store
from tests.sealing import rewritten

PARAMS = str(Path(__file__).resolve().parents[2] / "params.yaml")


class Configuration:
    """What a FakeModel's configuration would say; `model` is what params say of it."""

    revision = None

    def __init__(self, model: SimpleNamespace) -> None:
        self.name, self.d_model = model.model_name, model.width

    def hook_width(self, hook_point: str) -> int:
        return self.d_model

    def digest(self) -> str:
        return f"{self.name} {self.d_model}"


def _load(model: SimpleNamespace, hook_points: Sequence[str] = ()) -> FakeModel:
    return FakeModel(model.width, shift=float(len(model.model_name)))


def _params(
    tokens: TokenStore,
    path: str | None = None,
    hook_points: tuple[str, ...] = (HOOK,),
    other_width: int = 8,
    **changes: object,
):
    models = {
        alias: SimpleNamespace(
            model_name=name,
            width=width,
            backend="huggingface",
            dtype="float32",
            attention="auto",
            device="cpu",
            device_map=None,
            quantization=None,
        )
        for alias, name, width in (("", "fake", 8), ("tuned", "fake, tuned", other_width))
    }
    activations = {
        "source": "store",
        "path": path,
        "context_size": 16,
        "model_batch_size": 8,
        "total_tokens": 5000,
        "target": "activations-1d",
        "storage_dtype": "bfloat16",
        "buffer_shuffle": SimpleNamespace(perm_seed=changes.pop("perm_seed", 42)),
        "ignore_token_ids": None,
        "ignore_positions": 0,
        "compressor": None,
        **changes,
    }
    return SimpleNamespace(
        hook_points=hook_points,
        activations=SimpleNamespace(**activations),
        model=models[""],
        language_model=models.__getitem__,
    )


@pytest.fixture
def generate(tokens, tmp_path, small_blocks, monkeypatch):
    """Generate into tmp_path for params; the figures."""
    monkeypatch.chdir(tmp_path)
    return lambda params: generate_for(params, Configuration, _load, tokens.path, tmp_path / "activations.json")


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


def test_stores_of_several_models_join_on_the_same_tokens(tokens, generate, tmp_path):
    """Every row of both models' arrays is the activation of that row's token and position."""
    keys = (OTHER, f"tuned:{HOOK}", f"tuned:{OTHER}", HOOK)
    params = _params(tokens, hook_points=keys, storage_dtype="float32")
    figures = generate(params)
    assert (figures["rows"], figures["hook_points"]) == (5000, 4)
    assert figures["bytes"] == sum(p.stat().st_size for p in (tmp_path / "data" / "store").rglob("c.*"))
    store = open_for(params, tmp_path / "activations.json")
    assert set(store.hook_points) == set(keys)
    assert store.model == {"name": "fake", "revision": None, "models": {"tuned": {"name": "fake, tuned", "revision": None}}}
    batch = next(store.batches(512, seed=3, hook_points=keys))
    meta = batch.meta
    for key in keys:
        alias, _, hook = key.rpartition(":")
        wanted = _load(params.language_model(alias)).value(meta.tokens, meta.positions, hook)
        assert torch.equal(batch.activations[key], wanted), key
    assert not torch.equal(batch.activations[HOOK], batch.activations[f"tuned:{HOOK}"])
    manifest = (tmp_path / "activations.json").read_bytes()
    generate(_params(tokens, storage_dtype="float32"))
    alone = open_activations(tmp_path / "activations.json")
    assert alone.digests.items() <= store.digests.items()
    generate(params)
    assert (tmp_path / "activations.json").read_bytes() == manifest


@pytest.mark.parametrize(("dtype", "off"), [("float32", 0.0), ("int8", 0.2)])
def test_contexts_of_several_models_join_too(tokens, generate, tmp_path, dtype, off):
    keys = (HOOK, f"tuned:{HOOK}")
    params = _params(tokens, hook_points=keys, target="activations-2d", storage_dtype=dtype)
    generate(params)
    batch = next(open_for(params, tmp_path / "activations.json").batches(32, seed=3))
    for key, alias in zip(keys, ("", "tuned"), strict=True):
        wanted = _load(params.language_model(alias)).value(batch.tokens, batch.positions, HOOK)
        torch.testing.assert_close(batch.activations[key], wanted, rtol=0, atol=off)


def test_stores_with_other_rows_are_not_joined(tokens, generate, tmp_path):
    keys = (HOOK, f"tuned:{HOOK}")
    manifests = {}
    for name, changes in {"right": {}, "order": {"perm_seed": 3}, "fewer": {"total_tokens": 4000}}.items():
        generate(_params(tokens, hook_points=keys, **changes))
        manifests[name] = read_json(tmp_path / "activations.json", "manifest")
    for name, message in {"order": "content of 'tokens' is", "fewer": "n_rows is 4000, not 5000"}.items():
        mixed = {**manifests["right"], "models": manifests[name]["models"]}
        write_json(tmp_path / "mixed.json", mixed)
        rewritten(tmp_path / "mixed.json", lambda content: None)
        with pytest.raises(
            DataError, match=rf"model 'tuned' does not have the rows of .*: {message}.*dvc repro -s -f generate"
        ):
            open_activations(tmp_path / "mixed.json")
    write_json(tmp_path / "mixed.json", {**manifests["right"], "models": {"tuned": {}}})
    rewritten(tmp_path / "mixed.json", lambda content: None)
    with pytest.raises(DataError, match=r"mixed.json: the manifest of the activation store is damaged"):
        open_activations(tmp_path / "mixed.json")
    with pytest.raises(DataError, match=r"chunk_rows .* is 128, not 256"):
        generate(_params(tokens, hook_points=keys, other_width=16))


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


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_named_store_is_verified_and_not_generated(tokens, generate, tmp_path, dtype):
    store = make_store(tmp_path / "mine", tokens, storage_dtype=dtype)
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


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_norm_stage_measures_the_store(tokens, generate, tmp_path, dtype):
    from stages.compute_norm import main

    generate(_params(tokens, storage_dtype=dtype))
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
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: data/activations.json: the manifest of the activations is missing")


def test_the_store_benchmark_runs():
    from benchmarks.store import main

    outcome = CliRunner().invoke(main, ["--small"])
    assert outcome.exit_code == 0, outcome.output
    assert all(f"| {dtype} |" in outcome.output for dtype in ("float16", "bfloat16", "int8"))
