"""docs/refusals.md: what a later stage would refuse is refused by tokenize (and inputs) on a small project, before it works."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import memory
from pipeline.activations import remote, schema
from pipeline.dictionaries.build import build_dictionary
from pipeline.dictionaries.sae import SparseAutoencoder
from pipeline.lm import placement
from pipeline.norms import statistics
from pipeline.planning.refusals import CHECKS, MACHINE, PARAMETERS, TOKENS
from tests.messages import says
from tests.project import REPOSITORY, Project, make_model, make_project

HOOK = "blocks.0.hook_resid_post"
MODELS_FIT = "dictionary that fits no model"


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which no stage has run."""
    return make_project(tmp_path_factory.mktemp("untouched") / "project")


@pytest.fixture
def fresh(untouched: Project, tmp_path: Path) -> Project:
    return untouched.copy(tmp_path / "project")


Prepare = Callable[[Project, pytest.MonkeyPatch], None]


def nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters alone are the fault."""


def no_weights(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.path / "model" / "model.safetensors").unlink()


def no_bitsandbytes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))


def weights_cut_short(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    file = project.path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def configured(project: Project, **changes: object) -> None:
    file = project.path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def gpt2_of_unscaled_scores(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which TransformerLens would scale."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 300}
    configured(project, model_type="gpt2", architectures=["GPT2LMHeadModel"], scale_attn_weights=False, **sizes)


def activation_of_the_future(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(project, hidden_act="gelu_of_the_future")


def output_in_the_way(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stage that would come after hours of others."""
    shutil.copy(REPOSITORY / "dvc.yaml", project.path)
    (project.path / "data").mkdir()
    (project.path / "data" / "trained").write_text("")


def start_of_another_width(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build_dictionary({"kind": "sae", "d_in": 16, "d_sae": 32, "act_fn": "topk", "top_k": 4, "hook_point_in": HOOK})
    made.save(project.path / "start")


def few_directions(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MAX_EIGENVECTORS", 8)


def chunks_of_half_the_rows(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,048 tokens of width 16, or 128 contexts."""
    monkeypatch.setattr(schema, "CHUNK_BYTES", 2048 * 16 * 2)


def kind_without_matrices(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kind of another package may be; of our own the parameter file's rules say it."""
    monkeypatch.setattr(SparseAutoencoder, "parts", lambda self: [])


def kind_that_does_not_say(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of its weights are of features."""
    monkeypatch.setattr(SparseAutoencoder, "FEATURE_DIMS", None)


def store_at_a_url(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody answers."""
    monkeypatch.setenv("SCOPELINE_STORE", "s3://bucket/store")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(remote, "RETRIES", 1)


def small_disk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(project.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))


def little_memory(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 100_000)


def other_tokenizer(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    make_model(project.path / "other")
    tokenizer = AutoTokenizer.from_pretrained(project.path / "other", local_files_only=True)
    tokenizer.add_tokens(["<further>"])
    tokenizer.save_pretrained(project.path / "other")


CROSSCODER: dict[str, object] = {
    "models": {"other": {"model_name": "other", "revision": None}},
    "dictionary__kind": "crosscoder",
    "dictionary__hook_point_in": None,
    "dictionary__hook_points_in": [HOOK, f"other:{HOOK}"],
    "dictionary__apply_b_dec_to_input": False,
}


@dataclass(frozen=True)
class Row:
    """One row: the check or rule, what is wrong, how, and what the line says."""

    check: str
    name: str
    parts: tuple[object, ...]
    changes: dict[str, object]
    prepare: Prepare = nothing


ROWS = [
    Row(MODELS_FIT, "unknown hook point", ("blocks.0.hook_resid_pst", "hook_resid_post"), {"dictionary__hook_point_in": "blocks.0.hook_resid_pst"}),
    Row(MODELS_FIT, "layer that the model has not", ("blocks.7.hook_resid_post", "layer 7", "2 layers"), {"dictionary__hook_point_in": "blocks.7.hook_resid_post"}),
    Row(MODELS_FIT, "stored hook point that the model has not", ("blocks.5.hook_mlp_out", "layer 5"), {"activations__hook_points": [HOOK, "blocks.5.hook_mlp_out"]}),
    Row(MODELS_FIT, "d_model that the model has not", ("dictionary.d_model:", 17, 16), {"dictionary__d_model": 17}),
    Row(MODELS_FIT, "k above the width", ("dictionary.top_k:", 100, 64), {"dictionary__top_k": 100}),
    Row(MODELS_FIT, "processes that features cannot be dealt to", ("distributed.model_parallel_size:", 3, "64 features", "write 1, 2, 4"), {"distributed__model_parallel_size": 3}),
    Row(MODELS_FIT, "processes that a member's features cannot be dealt to", ("sweep.odd:", "distributed.model_parallel_size:", 2, "15 features"),
        {"distributed__model_parallel_size": 2, "sweep": {"odd": {"dictionary.expansion_factor": 0.9375}, "even": {"dictionary.top_k": 3}}}),
    Row(MODELS_FIT, "more directions than dimensions", ("initializer.d_active_subspace:", 20, 16),
        {"initializer__d_active_subspace": 20, "initializer__initialize_W_D_with_active_subspace": True, "initializer__initialize_W_D_with_activations": False}),
    Row(MODELS_FIT, "member of a sweep with k above the width", ("sweep.wide:", "dictionary.top_k:", 65, 64), {"sweep": {"wide": {"dictionary.top_k": 65}, "narrow": {"dictionary.top_k": 3}}}),
    Row("context longer than the model's", "context longer than the model's", ("activations.context_size:", 32, 16, "model"), {"activations__context_size": 32}),
    Row("weight files missing, damaged or pickled", "no weight files", ("model.safetensors", "save_pretrained"), {}, no_weights),
    Row("weight files missing, damaged or pickled", "weights cut short", ("model.safetensors", "damaged", "restore the file"), {}, weights_cut_short),
    Row("back end that would run another model", "back end that would run another model", ("gpt2", "scale_attn_weights", "TransformerLens", "model.backend"),
        {"model__backend": "transformer_lens"}, gpt2_of_unscaled_scores),
    Row("model that the library computes otherwise", "unknown activation function", ("hidden_act", "gelu_of_the_future", "config.json"), {}, activation_of_the_future),
    Row("places of outputs", "an output in the way", ("data/trained:", "main", "is a file"), {}, output_in_the_way),
    Row("attention that the model or device has not", "flash attention on a CPU", ("model.attention:", "flash_attention_2", "CUDA", "cpu"),
        {"model__attention": "flash_attention_2", "model__dtype": "bfloat16"}),
    Row("device map or quantisation that cannot be had", "a package that is not there", ("model.quantization:", "4bit", "bitsandbytes", "pip install"), {"model__quantization": "4bit"}, no_bitsandbytes),
    Row("features that cannot be dealt to processes", "kind that cannot be dealt", ("distributed.model_parallel_size:", 2, "'sae'", "write 1"),
        {"distributed__model_parallel_size": 2}, kind_that_does_not_say),
    Row("store of activations.path", "no such store", ("activations.path:", "nowhere", "no such activation store"), {"activations__path": "nowhere"}),
    Row("dictionary to start from", "no such start", ("initializer.from_dictionary:", "gone:"), {"initializer__from_dictionary": "gone"}),
    Row("dictionary to start from", "start of another shape", ("initializer.from_dictionary:", "d_sae is 32, wanted 64"), {"initializer__from_dictionary": "start"}, start_of_another_width),
    Row("batch larger than the whole chunks that are left", "batch larger than whole chunks", ("a batch of 3,000 rows", "2,048 rows", "activations.batch_size"),
        {"activations__batch_size": 3000}, chunks_of_half_the_rows),
    Row("rank of PCA", "rank of PCA", ("evaluation.pca_rank:", 12, 8), {"evaluation__pca_rank": 12}, few_directions),
    Row("tracking store", "no such tracking store", ("tracking.tracking_uri:", "ftp://host"), {"tracking__enabled": True, "tracking__tracking_uri": "ftp://host"}),
    Row("devices and kernels", "no such device", ("model.device:", "'cuda:7'", "null"), {"model__device": "cuda:7"}),
    Row("devices and kernels", "kernels that the device has not", ("dictionary.use_triton_kernel:", "true"), {"dictionary__use_triton_kernel": True}),
    Row("options of the start", "options of the start", ("initializer.initialize_W_D_with_activations:", "'sae'"), {}, kind_without_matrices),
    Row("place and disk of the store", "store at a URL", ("s3://bucket/store", "cannot be listed", "after 1 tries"), {}, store_at_a_url),
    Row("place and disk of the store", "disk too small", ("data/store", "no space", "SCOPELINE_STORE"), {}, small_disk),
    Row("memory", "memory", ("evaluation.batch_contexts:", "100,000", f"{2 * 8 * 16 * 300 * 4:,}"), {}, little_memory),
    Row("tokenizers of further models", "another tokenizer", ("models.other:", "other has another tokenizer"), CROSSCODER, other_tokenizer),
    Row("held-out tokens", "held-out tokens", ("evaluation.tokens", "1,000,000", "dataset.eval_fraction"), {"evaluation__tokens": 1_000_000}),
    Row("whole contexts", "contexts of a step through the model", ("trainer.model_loss", "160", "trainer.model_loss_batches"),
        {"activations__source": "live", "trainer__model_loss": "kl", "trainer__model_loss_batches": 20}),
    Row("whole contexts", "batch of more contexts than there are", ("a batch of 240 rows", "128 rows", "activations.batch_size"),
        {"activations__target": "activations-2d", "activations__batch_size": 240, "trainer__total_training_tokens": 16384}, chunks_of_half_the_rows),
]  # fmt: skip
KNOWN = {MODELS_FIT: PARAMETERS, **{check.name: check.known for check in CHECKS}}


def refused(project: Project, row: Row, monkeypatch: pytest.MonkeyPatch, stage: str) -> list[str]:
    """The lines with which a stage refuses."""
    project.set(**row.changes)
    row.prepare(project, monkeypatch)
    outcome = project.run(stage)
    if outcome.exception is not None:
        raise outcome.exception
    assert outcome.exit_code == 2, outcome.stderr
    return [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]


COUNTED = "held-out tokens"  # the text is counted before it is tokenized, where its size leaves a doubt


def test_what_was_not_counted_is_refused_when_it_is_tokenized(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.planning.text.is_counted_first", lambda run: False)
    (row,) = [row for row in ROWS if row.check == COUNTED]
    (line,) = refused(fresh, row, monkeypatch, "tokenize_corpus")
    says(line, *row.parts)
    assert (fresh.path / "data" / "tokens.zarr").exists()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace(" ", "_"))
def test_tokenize_refuses(row: Row, fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = refused(fresh, row, monkeypatch, "tokenize_corpus")
    line = next(line for line in lines if str(row.parts[0]) in line)
    assert len(lines) == 1 or row.name in ("memory", "options of the start")  # of which several are too much
    says(line, *row.parts)
    assert (fresh.path / "data" / "tokens.zarr").exists() == (KNOWN[row.check] == TOKENS and row.check != COUNTED)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if KNOWN[row.check] == PARAMETERS], ids=lambda row: row.name.replace(" ", "_")
)
def test_inputs_refuses_what_needs_parameters_alone(row: Row, fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs at every `dvc repro`; tokenize does not, where a parameter has changed that its tokens do not depend on."""
    (line,) = refused(fresh, row, monkeypatch, "inputs")
    says(line, *row.parts)
    assert not (fresh.path / "data" / "inputs").exists()


def test_a_stated_store_that_holds_no_batch_or_is_of_another_model(project: Project) -> None:
    """The parameter file alone does not say how many rows it has."""
    project.set(activations__path=str(project.store), activations__total_tokens=100_000, activations__batch_size=8192)
    project.set(trainer__total_training_tokens=16384)

    def lines() -> list[str]:
        outcome = project.run("inputs")
        assert outcome.exit_code == 2, outcome.exception
        return [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]

    (line,) = lines()
    says(line, "activations.path:", project.store, "8,192", "activations.batch_size")
    project.set(activations__batch_size=128, distributed__model_parallel_size=3)
    (line,) = lines()
    says(line, "distributed.model_parallel_size:", 3, "64 features")
    project.set(distributed__model_parallel_size=1)
    assert project.run("inputs").exit_code == 0
    configured(project, hidden_size=32)
    (line,) = lines()
    says(line, "activations.path:", project.store, HOOK, "16 wide", 32, "null")


@pytest.mark.parametrize("stage", ["generate_activations", "initialize", "train"])
def test_a_long_stage_refuses_what_the_tokens_do_not_allow(stage: str, project: Project) -> None:
    """tokenize has not seen a parameter that was changed after it."""
    project.set(evaluation__tokens=1_000_000, trainer__lr=1e-4)
    outcome = project.run(stage)
    assert outcome.exit_code == 2
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    says(line, "evaluation.tokens", "1,000,000")


def test_all_faults_at_once(fresh: Project) -> None:
    fresh.set(activations__context_size=32, tracking__enabled=True, tracking__tracking_uri="ftp://host")
    fresh.set(model__attention="flash_attention_2", model__dtype="bfloat16")
    outcome = fresh.run("inputs")
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 3
    for key in ("activations.context_size:", "tracking.tracking_uri:", "model.attention:"):
        assert len([line for line in lines if key in line]) == 1


def test_a_fault_of_the_run_is_not_told_of_its_members_again(fresh: Project) -> None:
    fresh.set(dictionary__hook_point_in="blocks.7.hook_resid_post")
    fresh.set(sweep={"few": {"dictionary.top_k": 2}, "more": {"dictionary.top_k": 3}})
    outcome = fresh.run("inputs")
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    says(line, "error: unknown hook point 'blocks.7.hook_resid_post'", "2 layers")


def test_every_check_has_a_row_here_and_in_the_document() -> None:
    text = (REPOSITORY / "docs" / "refusals.md").read_text()
    table = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    documented = {cells[0]: cells for cells in table if len(cells) == 4 and cells[3].startswith(("inputs", "tokenize"))}
    assert set(documented) == set(KNOWN) == {row.check for row in ROWS}
    made = {PARAMETERS: "inputs, tokenize", MACHINE: "tokenize", TOKENS: "tokenize, at its end"}
    for check in CHECKS:
        assert documented[check.name][1] == check.stage
        assert documented[check.name][3].startswith(made[check.known])
