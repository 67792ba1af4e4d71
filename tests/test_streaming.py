"""Streams, stores of them, and trainings on them in Python: the same rows and weights as the stages and fit() give."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch

from pipeline.api import (
    ActivationStream,
    evaluate_reconstruction,
    fit,
    load_language_model,
    stream_activations,
    train_dictionary,
    train_on_text,
    write_activations,
)
from pipeline.corpus.tokens import open_tokens
from pipeline.errors import DataError, ParamsError
from tests.messages import saying
from tests.project import CONTEXT, D_MODEL, make_model

HOOK, OTHER = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
TEXTS = [f"the cat number {i} sat on the mat and saw {i * 7 % 13} dogs" * 3 for i in range(200)]
TRAINER = {"total_training_tokens": 4096, "lr": 1e-3}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streaming") / "model"
    make_model(path)
    return path


@pytest.fixture(scope="module")
def stream(model_path: Path) -> ActivationStream:
    return stream_activations(
        str(model_path), TEXTS, [HOOK, OTHER], total_tokens=4000, context_size=CONTEXT, model_batch_size=8, batch_size=64
    )


def test_batches_are_rows_of_the_texts(stream: ActivationStream, model_path: Path) -> None:
    batch = next(iter(stream))
    assert batch.activations[HOOK].shape == (64, D_MODEL)
    again = next(iter(stream))
    assert batch.rows.equal(again.rows)
    model = load_language_model(model_path)
    live = stream.activations
    contexts = live.plan.contexts
    # A row by itself, from the model: the context that it says, at its position.
    row = int(batch.rows[5])
    context, position = int(batch.context_ids[5]), int(batch.positions[5])
    tokens = torch.from_numpy(live._contexts.take(contexts[contexts == context])).long()
    alone = model.activations(tokens, [OTHER])[OTHER][0, position]
    assert int(tokens[0, position]) == int(batch.tokens[5])
    torch.testing.assert_close(live.read(OTHER, row, row + 1)[0], alone, rtol=1e-5, atol=1e-6)


def test_a_written_stream_has_its_rows(stream: ActivationStream, tmp_path: Path) -> None:
    store = write_activations(stream, tmp_path)
    for hook in (HOOK, OTHER):
        assert store.read(hook, 0, store.n_rows).equal(stream.activations.read(hook, 0, store.n_rows))
    fewer = write_activations(stream, tmp_path, total_tokens=1000)
    assert fewer.n_rows == 1000
    assert fewer.path != store.path
    with pytest.raises(DataError, match=saying("4,000", "5,000")):
        write_activations(stream, tmp_path, total_tokens=5000)


@pytest.mark.parametrize("act_fn", ["topk", "batchtopk", "jumprelu"])
def test_training_on_a_stream_a_store_and_tensors(stream: ActivationStream, tmp_path: Path, act_fn: str) -> None:
    dictionary = {"d_sae": 64, "top_k": 4, "act_fn": act_fn, "hook_point_in": HOOK}
    live = train_dictionary(stream, dictionary=dictionary, trainer=TRAINER)
    store = write_activations(stream, tmp_path)
    stored = train_dictionary(store, dictionary=dictionary, trainer=TRAINER, batch_size=64)
    for name, tensor in live.inference.state_dict().items():
        assert tensor.equal(stored.inference.state_dict()[name]), name
    rows = store.read(HOOK, 0, store.n_rows)
    in_memory = fit(
        rows, dictionary={k: v for k, v in dictionary.items() if k != "hook_point_in"}, trainer=TRAINER, batch_size=64
    )

    found, wanted = (evaluate_reconstruction(result.inference, rows)["fvu"] for result in (live, in_memory))
    assert found < 0.6
    assert found == pytest.approx(wanted, rel=0.2)
    assert live.norms[HOOK]["mean_norm"] == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-5)


def test_contexts_and_several_hook_points(model_path: Path) -> None:
    stream = stream_activations(
        str(model_path),
        TEXTS,
        [HOOK, OTHER],
        target="activations-2d",
        total_tokens=4000,
        context_size=CONTEXT,
        batch_size=8,
        model_batch_size=8,
    )
    result = train_dictionary(
        stream, dictionary={"kind": "crosscoder", "d_sae": 64, "top_k": 4}, trainer={"total_training_tokens": 2048}
    )
    assert result.dictionary.hooks_in == (HOOK, OTHER)
    assert set(result.norms) == {HOOK, OTHER}


def test_a_data_set_is_tokenized_as_the_stage_does(model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"words": text}) + "\n" for text in TEXTS))
    stream = stream_activations(
        str(model_path),
        str(file),
        [HOOK],
        text_field="words",
        total_tokens=1000,
        context_size=CONTEXT,
        folder=tmp_path / "kept",
    )
    tokens = open_tokens(tmp_path / "kept" / "tokens.zarr")
    batch = next(stream.activations.batches(8))
    for context, position, token in zip(batch.context_ids, batch.positions, batch.tokens, strict=True):
        assert int(tokens.train.read(int(context), int(context) + 1)[0, int(position)]) == int(token)
    with pytest.raises(ParamsError, match=saying("dataset.texts_field", "text_field")):
        stream_activations(str(model_path), str(file), [HOOK], texts_field="words", context_size=CONTEXT)


def test_one_call(model_path: Path) -> None:
    result = train_on_text(
        str(model_path),
        TEXTS,
        [HOOK],
        dictionary={"d_sae": 64, "top_k": 4},
        trainer=TRAINER,
        total_tokens=4000,
        context_size=CONTEXT,
        model_batch_size=8,
        batch_size=64,
    )
    assert result.inference.config.folded
    assert result.dictionary.hooks_in == (HOOK,)


def test_refusals(stream: ActivationStream, model_path: Path) -> None:
    with pytest.raises(ParamsError, match=saying("dictionary.hook_point_in", HOOK, OTHER)):
        train_dictionary(stream, dictionary={"d_sae": 64}, trainer=TRAINER)
    with pytest.raises(ParamsError, match=saying("trainer.learning_rate")):
        train_dictionary(stream, dictionary={"d_sae": 64, "hook_point_in": HOOK}, trainer={"learning_rate": 1e-3})
    with pytest.raises(DataError, match=saying("blocks.0.hook_nothing")):
        stream_activations(str(model_path), TEXTS, ["blocks.0.hook_nothing"], total_tokens=100, context_size=CONTEXT)
    before = set(Path(tempfile.gettempdir()).glob("activations-*"))
    with pytest.raises(DataError, match=saying("too little text")):
        stream_activations(str(model_path), TEXTS[:3], [HOOK], total_tokens=100_000, context_size=CONTEXT)
    assert set(Path(tempfile.gettempdir()).glob("activations-*")) <= before


def test_a_training_in_python_shows_the_progress_of_the_stages(
    stream: ActivationStream, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(**options: bool) -> list[str]:
        train_dictionary(
            stream,
            dictionary={"d_sae": 64, "top_k": 4, "hook_point_in": HOOK},
            trainer=TRAINER,
            **options,  # type: ignore[arg-type]
        )
        return [line for line in capsys.readouterr().err.splitlines() if "%" in line]

    norm, train = shown()
    assert norm.startswith("norm 100%  4,000/4,000 tokens at 1 hook point  ")
    assert train.startswith("train 100%  4,096/4,096 tokens  ")
    assert "  at step 63 of 64:  loss " in train
    assert shown(progress=False) == []


def test_figures_say_of_which_step_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a line after each step and figures of each third: a line names the step that they were measured at, not its own."""
    from pipeline.training import loop

    class Each(loop.Progress):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options, every_seconds=0.0)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "Progress", Each)
    rows = torch.randn(512, D_MODEL, generator=torch.Generator().manual_seed(0))
    trainer = {"total_training_tokens": 320, "log_frequency": 3}
    fit(rows, dictionary={"d_sae": 64, "top_k": 4}, trainer=trainer, batch_size=64, device="cpu")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fit ")]
    said = [line.partition("  at step ")[2].partition(":  loss ")[0] for line in lines]
    assert [line.split()[2] for line in lines] == ["64/320", "128/320", "192/320", "256/320", "320/320"]
    start = "0 of 5 (before training)"
    assert said == [start, start, start, "3 of 5", "4 of 5"]
