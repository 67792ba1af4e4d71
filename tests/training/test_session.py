"""The stages initialize and train on a small store: outputs, going on, and the kept end of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.dictionaries.store import load_dictionary, read_config
from tests.project import D_MODEL, Project

WEIGHTS = "data/trained/main/weights.safetensors"


def outputs(project: Project) -> dict[str, bytes]:
    names = (WEIGHTS, "data/trained/main/config.json", "metrics/train.json", "metrics/train_history.jsonl")
    return {name: (project.path / name).read_bytes() for name in names}


def checkpoints(project: Project) -> list[Path]:
    return sorted((project.path / "data" / "checkpoints").iterdir())


def test_what_is_written(finished_project: Project) -> None:
    metrics = json.loads((finished_project.path / "metrics" / "train.json").read_text())
    assert metrics["steps"] == 8192 // 128
    assert metrics["tokens"] == 8192
    assert metrics["left_out_tokens"] == 0
    assert metrics["epochs"] == 64 / ((4096 - 256) // 128)  # the rows of fold.calibration_tokens are not trained on
    assert metrics["learning_rate"] == pytest.approx(0.055 * metrics["steps"] ** 0.25 / D_MODEL**0.5)
    assert not any("second" in name or "time" in name for name in metrics)
    config = read_config(finished_project.path / "data" / "trained" / "main")
    assert set(config.norms or {}) == {"blocks.0.hook_resid_post"}
    assert config.provenance["training"]["trainer"]["lr"] == metrics["learning_rate"]
    assert config.provenance["initialization"]["found"]["least_squares_factor"] > 0
    assert config.provenance["model"]["name"] == "model"
    history = [
        json.loads(line) for line in (finished_project.path / "metrics" / "train_history.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in history] == [*range(0, 64, 8), 63]
    assert {"loss", "l_rec", "l_rec_weighted", "l0", "explained_variance", "lr", "top_k", "grad_norm", "dead_features"} <= set(
        history[0]
    )


def test_lost_outputs_are_written_again_without_training(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = outputs(project)
    for name in wanted:
        (project.path / name).unlink()

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.session.train_together", never)
        assert project.run("train").exit_code == 0
    assert outputs(project) == wanted
    (directory,) = checkpoints(project)
    (directory / "finished" / "state.safetensors").write_bytes(b"")
    assert project.run("train").exit_code == 0  # a damaged end is made again
    assert outputs(project) == wanted


def test_another_parameter_has_other_checkpoints(project: Project) -> None:
    wanted = outputs(project)
    project.set(trainer__log_frequency=16, trainer__checkpoint_minutes=1e-9)
    assert project.run("train").exit_code == 0
    assert len(checkpoints(project)) == 1  # of no influence on the weights
    assert outputs(project)[WEIGHTS] == wanted[WEIGHTS]
    project.set(trainer__lr=1e-3)
    assert project.run("train").exit_code == 0
    assert len(checkpoints(project)) == 2
    assert outputs(project)[WEIGHTS] != wanted[WEIGHTS]


def test_an_interrupted_run_goes_on_to_the_same_bytes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    from pipeline.training.step import Trainer

    project.set(trainer__log_frequency=5)
    (directory,) = checkpoints(project)
    (directory / "finished" / "state.json").unlink()
    assert project.run("train").exit_code == 0
    wanted = outputs(project)
    (directory / "finished" / "state.json").unlink()
    step = Trainer.step

    def stopping(trainer: Trainer, batch: object, observe: bool = False, asks: object = None) -> object:
        if trainer.step_number in (13, 14, 40):
            signal.raise_signal(signal.SIGINT)
        return step(trainer, batch, observe, asks)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", stopping)
    begins = ["64 steps of 128 tokens, 8,192 in all", "the last 50 of 64 steps", "the last 49 of 64 steps"]
    for done, line in zip((14, 15, 41), begins, strict=True):
        outcome = project.run("train")
        assert outcome.exit_code == 130
        assert outcome.stderr.startswith(f"train: {line}")  # of what is left, not of the whole run
        assert f"stopped by SIGINT after step {done} of 64" in outcome.stderr
    last = project.run("train")
    assert last.exit_code == 0
    assert last.stderr.startswith("train: the last 23 of 64 steps of 128 tokens, 2,944 of 8,192;")
    assert outputs(project) == wanted
    assert project.run("train").stderr.startswith("train: all 64 steps of 128 tokens are done, their outputs are written;")


def test_a_run_that_is_interrupted_in_its_model_loss_goes_on_to_the_same_bytes(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from pipeline.training.step import Trainer

    project.set(activations__source="live", trainer__model_loss="kl", trainer__model_loss_steps=0.25, trainer__log_frequency=1)
    project.set(fold__calibration_tokens=0)
    for stage in ("generate_activations", "compute_norm", "initialize"):
        assert project.run(stage).exit_code == 0
    outcome = project.run("train")
    assert outcome.exit_code == 0, outcome.stderr
    (line,) = [line for line in outcome.stderr.splitlines() if "model_loss" in line]
    assert line.startswith("train: trainer.model_loss kl: the last 16 of 64 steps, from 48 on, take 32 whole contexts each")
    assert "8,192 tokens" in line
    wanted = outputs(project)
    history = [json.loads(row) for row in wanted["metrics/train_history.jsonl"].splitlines()]
    assert [row["step"] for row in history if "model_loss" in row] == list(range(48, 64))
    metrics = json.loads(wanted["metrics/train.json"])
    assert metrics["final_model_loss"] > 0
    assert metrics["tokens"] + metrics["left_out_tokens"] == 48 * 128 + 16 * 4 * 128
    assert metrics["left_out_tokens"] > 0  # special tokens of whole contexts
    newest = max(checkpoints(project), key=lambda place: place.stat().st_mtime)
    (newest / "finished" / "state.json").unlink()
    step = Trainer.step

    def stopping(trainer: Trainer, batch: object, observe: bool = False, asks: object = None) -> object:
        if trainer.step_number in (47, 53):
            signal.raise_signal(signal.SIGINT)
        return step(trainer, batch, observe, asks)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", stopping)
    for done in (48, 54):
        outcome = project.run("train")
        assert outcome.exit_code == 130
        assert f"stopped by SIGINT after step {done} of 64" in outcome.stderr
    assert project.run("train").exit_code == 0
    assert outputs(project) == wanted
    assert project.run("fold_norm").exit_code == 0
    assert project.run("evaluate").exit_code == 0


def test_what_nothing_makes_sparse_is_trained_with_a_line_that_says_so(project: Project) -> None:
    """The seed's own basic run: relu, no sparsity loss. Stages that train nothing say nothing of it."""
    project.set(dictionary__act_fn="relu", trainer__auxk_coefficient=None, trainer__k_aux=64)
    words = ("relu keeps every positive value, and nothing makes it sparse", "trainer.k_aux 64 (auxk_coefficient is null)")
    for stage in ("initialize", "train", "fold_norm"):
        outcome = project.run(stage)
        assert outcome.exit_code == 0, outcome.stderr
        lines = outcome.stderr.splitlines()
        for word in words:
            found = [line for line in lines if word in line]
            assert len(found) == (stage == "train")
            assert all(line.startswith("train: ") for line in found)


def test_a_dictionary_for_other_parameters_is_refused(project: Project) -> None:
    project.set(dictionary__top_k=5)
    outcome = project.run("train")
    assert outcome.exit_code == 2
    assert "made for other parameters (top_k is 4, wanted 5); run `dvc repro -s -f initialize`" in outcome.stderr


def test_initializers_of_the_pipeline(project: Project) -> None:
    project.set(
        dictionary__kind="transcoder",
        dictionary__hook_point_in="blocks.0.ln2.hook_normalized",
        dictionary__hook_point_out="blocks.0.hook_mlp_out",
        dictionary__apply_b_dec_to_input=False,
        initializer__initialize_W_D_with_activations=False,
        initializer__initialize_tc_with_mlp=True,
        activations__target="activations-2d",
        activations__batch_size=8,
    )
    for stage in ("generate_activations", "compute_norm", "initialize"):
        outcome = project.run(stage)
        assert outcome.exception is None, outcome.exception
        assert outcome.exit_code == 0, outcome.stderr
    made = load_dictionary(project.path / "data" / "initial" / "main")
    assert made.config.kind == "transcoder"
    assert made.config.provenance["initialization"]["found"]["least_squares_factor"] > 0
    project.set(initializer__model_layer=1)
    outcome = project.run("initialize")
    assert outcome.exit_code == 2
    assert "initializer.model_layer: the MLP of layer 1" in outcome.stderr


@pytest.mark.parametrize("left", ["finished", "step-000000064"])
def test_other_code_starts_anew_and_says_so(project: Project, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    """As after an edit of what a step runs, or with checkpoints of another version."""
    wanted = outputs(project)
    (earlier,) = checkpoints(project)
    (earlier / "finished").rename(earlier / left)
    monkeypatch.setattr("pipeline.training.fingerprint.code_digest", lambda *_: "another")
    outcome = project.run("train")
    assert outcome.exit_code == 0
    line = f"train: starting anew: the checkpoint of this run in {earlier} was made by other code"
    assert [text for text in outcome.stderr.splitlines() if "anew" in text] == [line]
    assert outputs(project) == wanted
    assert len(checkpoints(project)) == 2
    assert "anew" not in project.run("train").stderr  # its own end is there now
    project.set(trainer__lr=1e-3)
    assert "anew" not in project.run("train").stderr  # another run: nothing to go on from was expected


def test_an_empty_directory_of_other_code_is_nothing_to_go_on_from(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (earlier,) = checkpoints(project)
    (earlier / "finished").rename(earlier / "snapshot-000000064")
    monkeypatch.setattr("pipeline.training.fingerprint.code_digest", lambda *_: "another")
    assert "anew" not in project.run("train").stderr
