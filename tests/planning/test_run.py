"""What a run is known to need beforehand, beside what its stages then have."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.tokenization import BATCH_CHARACTERS
from pipeline.corpus.tokens import open_tokens
from pipeline.errors import DataError
from pipeline.extent import Extent
from pipeline.params.loader import load_params
from pipeline.planning.disk import store_bytes
from pipeline.planning.refusals import refuse_by_text
from pipeline.planning.report import few_documents_line
from pipeline.planning.run import Counts, Run
from pipeline.planning.stages import BY_NAME, STAGES, peak_bytes
from pipeline.planning.text import HeldOut, SourceSample, TextSample, sample_text
from pipeline.planning.weights import n_parameters
from tests.messages import says
from tests.project import CONTEXT, D_MODEL, Project


def run_of(project: Project, monkeypatch: pytest.MonkeyPatch, tokens: str | None = None) -> Run:
    monkeypatch.chdir(project.path)
    return Run.of(load_params(), tokens)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_the_store_takes_what_was_planned(dtype: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.set(
        activations__storage_dtype=dtype, activations__hook_points=["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"]
    )
    monkeypatch.setenv("SCOPELINE_STORE", str(project.path / "elsewhere"))
    assert project.run("generate_activations").exit_code == 0
    chunks = [file for file in (project.path / "elsewhere").rglob("c.*") if file.is_file()]
    assert store_bytes(run_of(project, monkeypatch)) == sum(file.stat().st_size for file in chunks) > 0
    project.set(activations__source="live")
    assert store_bytes(run_of(project, monkeypatch)) == 0


def test_counts_are_those_of_the_token_store(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(project, monkeypatch, "data/tokens.zarr")
    store = open_tokens(project.path / "data" / "tokens.zarr")
    assert run.counts == Counts(store.train.n_contexts, store.eval.n_contexts)
    assert run.evaluated_tokens == store.eval.n_contexts * CONTEXT
    before = run_of(project, monkeypatch)
    assert before.counts is None
    assert before.train_contexts == 4096 // CONTEXT
    assert before.held_out_contexts == round(4096 // CONTEXT * 0.2 / 0.8)
    project.set(activations__total_tokens=2 * 4096)  # of which that store is not
    assert run_of(project, monkeypatch, "data/tokens.zarr").counts is None


def test_evaluation_has_as_many_runs_as_it_says_itself(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = project.run("evaluate")
    (n_runs,) = {int(found) for found in re.findall(r"tokens in (\d+) runs  ", outcome.stderr)}
    assert run_of(project, monkeypatch).evaluation_runs == n_runs
    # label means and original; all at once and each of two alone: spliced, PCA, zeros, mean
    two = {
        "kind": "crosscoder",
        "hook_point_in": None,
        "hook_points_in": ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"],
    }
    project.set(**{f"dictionary__{key}": value for key, value in two.items()}, dictionary__apply_b_dec_to_input=False)
    assert run_of(project, monkeypatch).evaluation_runs == 2 + 3 * 4


def test_parameters_of_the_model_and_of_its_first_blocks(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(project.path)
    source = Run.of(load_params()).sources.main
    model = AutoModelForCausalLM.from_pretrained(project.path / "model", local_files_only=True)
    assert n_parameters(source) == sum(parameter.numel() for parameter in model.parameters())
    (project.path / "model" / "model.safetensors").write_bytes(b"no such file")
    assert n_parameters(source) == 2 * 300 * D_MODEL + 2 * 12 * D_MODEL**2  # by the configuration
    assert n_parameters(source, 1) == 300 * D_MODEL + (300 * D_MODEL + 2 * 12 * D_MODEL**2) // 2


def test_a_whole_text_is_counted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    monkeypatch.chdir(project.path)
    params = load_params()
    sample = sample_text(params, Run.of(params).sources.main)
    tokenizer = AutoTokenizer.from_pretrained(project.path / "model", local_files_only=True)
    texts = [line.split('"')[3] for line in (project.path / "text.jsonl").read_text().splitlines()]
    assert sample.whole
    assert sample.there == sample.tokens == sum(len(tokenizer(text)["input_ids"]) + 1 for text in texts)


@pytest.mark.parametrize("batch", [2_000, 10_000_000])
def test_what_is_held_out_is_what_tokenize_holds_out(batch: int, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there are tokens enough is looked at after a batch of documents, so that its size counts."""
    monkeypatch.chdir(project.path)
    monkeypatch.setattr("pipeline.corpus.tokenization.BATCH_CHARACTERS", batch)
    monkeypatch.setattr("pipeline.planning.text.BATCH_CHARACTERS", batch)
    assert project.run("tokenize_corpus").exit_code == 0
    store = open_tokens(project.path / "data" / "tokens.zarr")
    params = load_params()
    sample = sample_text(params, Run.of(params).sources.main)
    found = sample.held_out_of(params.activations.total_tokens, 0.2)
    assert found.deviation == 0.0
    assert found.extent == (store.eval.n_documents, 0)
    assert 0 <= found.tokens / CONTEXT - store.eval.n_contexts < 1  # what is left makes no context
    assert Run.of(params).with_text(sample).held_out_contexts in (store.eval.n_contexts, store.eval.n_contexts + 1)


def test_what_is_held_out_of_a_text_read_in_part_is_a_range(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over seeds of the split: as many tokens as come on average, within two standard deviations about 19 times of 20."""
    monkeypatch.chdir(project.path)
    params = load_params()
    whole = sample_text(params, Run.of(params).sources.main)
    (source,) = whole.sources.values()
    wanted, share = source.tokens * 0.8, 0.2
    source.whole, source.stop = False, None
    found = whole.held_out_of(round(wanted), share)
    assert found.tokens == pytest.approx(share * source.tokens, rel=1e-3)
    assert found.extent.documents == pytest.approx(share * source.documents, rel=1e-3)
    assert source.documents == len(source.kept)
    sides = np.random.default_rng(0).random((4000, source.documents)) < share
    lengths = np.array([len(whole.info.tokenizer.encode(each.text).ids) + 1 for each in source.kept])
    drawn = sides @ lengths
    assert found.deviation == pytest.approx(2 * drawn.std(), rel=0.05)


def test_few_evaluated_documents_are_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run = dataclasses.replace(run_of(project, monkeypatch), held_out=HeldOut(9000, Extent(19, 19), 0.0, 0.09))
    says(str(few_documents_line(run)), "dataset.eval_fraction, evaluation.tokens:", "19 text files", "rough")
    many = dataclasses.replace(run, held_out=HeldOut(9000, Extent(20), 0.0, 0.09))
    assert few_documents_line(many) is None
    assert few_documents_line(dataclasses.replace(run, held_out=None)) is None  # nothing is known
    about = dataclasses.replace(run, held_out=HeldOut(9000, Extent(19.2), 100.0, 0.08))
    assert "about 19 documents" in str(few_documents_line(about))


def test_the_share_that_holds_out_enough_documents_is_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: documents of 100 tokens, 4,096 training tokens. 20 documents are 2,000 tokens, 0.328 of 6,096; 26 are 0.39."""
    run = dataclasses.replace(run_of(project, monkeypatch), held_out=HeldOut(400, Extent(4), 0.0, 0.1))
    said = str(few_documents_line(run, _text(1000, whole=True)))
    says(said, "dataset.eval_fraction=0.4 would hold out about 20", "activations.total_tokens 4,096")  # 6 fewer than expected
    run = dataclasses.replace(run, held_out=HeldOut(1300, Extent(13), 0.0, 0.2))
    says(str(few_documents_line(run, _text(1000, whole=True))), "dataset.eval_fraction=0.33 would hold out about 20 (only")
    says(str(few_documents_line(run)), "dataset.eval_fraction=0.33 would", "if there are as many")
    short = str(few_documents_line(run, _text(50, whole=True)))
    says(short, "dataset.eval_fraction=0.4 with activations.total_tokens of at most 2,800", "20 of the text's 50")
    says(str(few_documents_line(run, _text(30, whole=True))), "give more documents: the text has about 30")
    many = dataclasses.replace(run, held_out=HeldOut(4000, Extent(40), 0.0, 0.2, tuple((100, n) for n in range(40))))
    evaluation = dataclasses.replace(run.params.evaluation, tokens=160)
    many = dataclasses.replace(many, params=dataclasses.replace(run.params, evaluation=evaluation))
    says(str(few_documents_line(many)), "raise evaluation.tokens", "null")


def test_the_share_that_is_said_holds_out_enough_documents(project: Project) -> None:
    """Of the same text, with that share, tokenize holds out 20 documents or so."""
    said = project.set(dataset__eval_fraction=0.05, evaluation__tokens=None, activations__total_tokens=2048).run(
        "plan", "--no-measure", "--tokens", "nowhere"
    )
    found = re.search(r"dataset\.eval_fraction=(0\.\d+) would hold out about 20", said.stdout)
    assert found is not None, said.stdout
    assert project.set(dataset__eval_fraction=float(found[1])).run("tokenize_corpus").exit_code == 0
    assert 14 <= open_tokens(project.path / "data" / "tokens.zarr").eval.n_documents <= 30


def _text(n: int, *, whole: bool) -> TextSample:
    """A text of n documents of 100 tokens."""
    source = SourceSample(documents=n, tokens=100 * n, characters=200 * BATCH_CHARACTERS * n, whole=whole, there=100.0 * n)
    return TextSample({"": source}, None, 0.0)  # type: ignore[arg-type]


def test_the_documents_of_the_evaluated_tokens_are_those_of_their_contexts() -> None:
    """Four pieces of two files, and two documents, in 65 tokens; contexts of 10, of which two are evaluated: tokens 0 to 9, 30 to 39."""
    parts = ((12, "a.txt"), (9, "b.txt"), (12, 3), (3, "a.txt"), (4, "b.txt"), (25, 6))
    held = HeldOut(65, Extent(4, 2), 0.0, 0.1, parts)
    assert held.evaluated(None, 10) == held.evaluated(60, 10) == Extent(4, 2)
    assert held.evaluated(20, 10) == Extent(3, 2)  # "a.txt"; 3, "a.txt" and "b.txt"
    assert held.evaluated(11, 10) == held.evaluated(20, 10)
    assert held.evaluated(10, 10) == Extent(1, 1)
    guessed = HeldOut(100_000, Extent(100), 500.0, 0.1)  # of 1,000 tokens each; a tenth of the contexts hold an end of one
    assert guessed.evaluated(1_000, 100).documents == pytest.approx(11)
    assert guessed.evaluated(50_000, 100).documents == 100


def test_text_files_are_one_document_each_in_every_figure_of_a_plan(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the plan of a text that was counted is what the token store then has."""
    texts = project.path / "texts"
    texts.mkdir()
    words = [line.split('"')[3] for line in (project.path / "text.jsonl").read_text().splitlines()]
    licence = " ".join(words[:12])[:2500]  # a piece of every file, which is left out on one side
    assert len(licence) >= 2000
    for n in range(40):
        (texts / f"{n}.txt").write_text(
            licence + "\n\n" + "\n\n".join(f"{n} {k} {words[(7 * n + k) % len(words)]} " * 6 for k in range(8))
        )
    project.set(
        dataset__dataset_name_or_path=str(texts),
        dataset__eval_fraction=0.1,
        activations__total_tokens=4096,
        evaluation__tokens=160,
    )
    counted = project.run("plan", "--no-measure", "--tokens", "nowhere")
    assert counted.exit_code == 0, counted.stderr
    tokenized = project.run("tokenize_corpus")
    assert tokenized.exit_code == 0
    store = open_tokens(project.path / "data" / "tokens.zarr")
    assert store.eval.file_ids is not None
    n_files = len(set(store.eval.file_ids.tolist()))
    assert n_files < store.eval.n_documents
    assert json.loads((project.path / "metrics" / "tokenize.json").read_text())["left_out_documents"] > 0
    for said in (counted.stdout, tokenized.stderr):
        says(said, "40 text files", f"in {n_files} text files", "asks for about 10%")
    assert "documents" not in counted.stdout.replace("documents fall", "").split("too little")[0]
    run = run_of(project, monkeypatch, "data/tokens.zarr")
    evaluated, sample = run.evaluated_extent, sample_text(run.params, run.sources.main)
    assert 0 <= sample.held_out_of(4096, 0.1).tokens / CONTEXT - store.eval.n_contexts < 1
    assert run.held_out_extent == (n_files, n_files)
    assert evaluated is not None
    assert 2 <= evaluated.documents <= n_files
    says(counted.stdout, f"held-out tokens of {evaluated.words()}")


def test_that_documents_are_few_is_said_once(project: Project) -> None:
    """At the end of tokenize, where it is known; not by the stages after it."""
    said = project.set(evaluation__tokens=64).run("tokenize_corpus").stderr
    assert said.count("intervals are rough") == 1
    for stage in ("generate_activations", "evaluate"):
        assert "rough" not in project.run(stage).stderr


def test_a_text_is_refused_by_an_estimate_only_with_a_wide_margin(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(project, monkeypatch)
    text = sample_text(run.params, run.sources.main, seconds=0.0)
    assert not text.whole
    assert text.there is not None
    for share, refused in ((1.5, False), (2.5, True)):
        acts = dataclasses.replace(run.params.activations, total_tokens=round(share * text.there))
        asked = dataclasses.replace(run, params=dataclasses.replace(run.params, activations=acts))
        with pytest.raises(DataError, match="by the size of its files") if refused else contextlib.nullcontext():
            refuse_by_text(asked, text)


def test_a_long_text_is_estimated_by_its_files(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.path)
    params = load_params()
    whole = sample_text(params, Run.of(params).sources.main)
    part = sample_text(params, Run.of(params).sources.main, seconds=0.0)
    assert not part.whole
    assert part.tokens < whole.tokens
    assert whole.there is not None
    assert part.there == pytest.approx(whole.there, rel=0.1)


def test_what_is_held_grows_with_what_makes_it_large(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stage.name: peak_bytes(run_of(project, monkeypatch), stage) for stage in STAGES}
    assert all(each >= 300_000_000 for each in before.values())
    project.set(dictionary__expansion_factor=4000.0, evaluation__batch_contexts=8)
    run = run_of(project, monkeypatch)
    weights = 4 * (2 * 16 * 64_000 + 64_000 + 16)  # W_E, W_D, b_E, b_D in float32
    assert run.weight_bytes == weights
    # weights, gradients and two moments; h and z of a batch, three times
    assert peak_bytes(run, BY_NAME["train"]) - before["train"] > 4 * weights + 3 * 2 * 4 * 128 * (64_000 - 64) - 4 * 10_000


def test_every_stage_of_the_pipeline_that_works_is_planned() -> None:
    import yaml

    stages = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
    assert set(BY_NAME) == set(stages) - {"inputs"}
