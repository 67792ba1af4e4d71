"""What a training stage says of parameters that are accepted: nothing makes it sparse; keys that change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.params.loader import load_params, params_from_dict
from pipeline.params.presets import apply_preset, preset_names
from pipeline.params.rules.said import not_sparse, said_of_training, without_effect_here
from pipeline.planning.beginning import begin_training
from tests.params.changes import changed

ROOT = Path(__file__).resolve().parents[2]
TOPK = {"dictionary.act_fn": "topk"}
POWER = {"trainer.sparsity_loss_type": "power"}
JUMP: dict[str, Any] = {"dictionary.act_fn": "jumprelu", "trainer.target_l0": 16}


def idle(changes: dict[str, Any]) -> dict[str, str]:
    return without_effect_here(params_from_dict(changed(changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "dictionary.act_fn: relu keeps every positive value, and nothing makes it sparse; set trainer.sparsity_loss_type"),
        (
            {"dictionary.act_fn": "jumprelu", "initializer.init_log_jumprelu_threshold_value": -2.3},
            "dictionary.act_fn: nothing makes jumprelu sparse; set trainer.target_l0, or trainer.sparsity_loss_type",
        ),
        (POWER, None),
        (TOPK, None),
        (JUMP, None),
    ],
)
def test_what_nothing_makes_sparse_is_said(changes: dict[str, Any], message: str | None) -> None:
    params = params_from_dict(changed(changes))
    found = not_sparse(params.dictionary, params.trainer)
    assert found is None if message is None else message in str(found)
    assert said_of_training(params) == ([] if found is None else [found])


CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (POWER, {"dictionary.top_k": 24}, "relu has no k"),
    (JUMP, {"dictionary.top_k": 24}, "jumprelu has no k"),
    (TOPK, {"dictionary.jumprelu_threshold_window": 1.0}, "topk has no threshold"),
    (TOPK, {"trainer.jumprelu_lr_factor": 1.0}, "topk has no threshold"),
    (
        {**JUMP, "trainer.sparsity_loss_type": "l0", "trainer.target_l0_mode": "quadratic", "initializer.init_log_jumprelu_threshold_value": -2.3},
        {"dictionary.jumprelu_threshold_window": 1.0},
        "the window is l0_bandwidth with the l0 loss",
    ),
    *(
        ({**TOPK, "trainer.lr_scheduler_name": name}, {f"trainer.{key}": value}, why)
        for name, key, value, why in (
            ("constant", "lr_warm_up_steps", 0.1, "constant has no warm-up"),
            ("cosineannealing", "lr_start_ratio", 0.5, "cosineannealing has no warm-up"),
            ("cosineannealing", "lr_warm_up_shape", "cosine", "cosineannealing has no warm-up"),
            ("linearwarmupdecay", "lr_cool_down_steps", 0.1, "linearwarmupdecay has no cool-down"),
            ("linearwarmupdecay", "lr_end_ratio", 0.1, "linearwarmupdecay has no end to choose"),
            ("constant", "lr_end_ratio", 0.1, "constant has no end to choose"),
        )
    ),
    ({**TOPK, "trainer.lr_cool_down_steps": 0}, {"trainer.lr_end_ratio": 0.1}, "lr_cool_down_steps is 0"),
    ({**TOPK, "trainer.lr_warm_up_steps": 0}, {"trainer.lr_start_ratio": 0.1}, "lr_warm_up_steps is 0"),
    ({**TOPK, "trainer.initial_k": 90}, {"trainer.k_exponential_factor": 2.0}, "k_schedule_type is linear"),
    ({**TOPK, "trainer.n_checkpoints": 0}, {"trainer.checkpoint_schedule": "log"}, "n_checkpoints is 0"),
    (TOPK, {"trainer.k_aux": 64}, "auxk_coefficient is null"),
    (TOPK, {"trainer.target_l0_gain": 0.1}, "target_l0 is null"),
    (TOPK, {"trainer.target_l0_mode": "quadratic"}, "target_l0 is null"),
    (TOPK, {"trainer.l1_coefficient": 0.1}, "there is no sparsity loss"),
    (TOPK, {"trainer.l1_coefficient_warmup_steps": 0.2}, "there is no sparsity loss"),
    (TOPK, {"trainer.p": 2.0}, "there is no sparsity loss"),
    (POWER, {"trainer.tanh_stretch_coefficient": 2.0}, "the power loss has none"),
    ({"trainer.sparsity_loss_type": "tanh"}, {"trainer.frequency_scale": 0.1}, "the tanh loss has none"),
    ({"trainer.sparsity_loss_type": "tanh"}, {"trainer.l0_bandwidth": 0.1}, "the tanh loss has none"),
    (TOPK, {"initializer.tokens": 4096}, "the start looks at no activation"),
    *(
        ({**TOPK, "initializer.from_dictionary": "base"}, {f"initializer.{key}": value}, "from_dictionary gives the weights")
        for key, value in (
            ("bias_init_method", "mean"),
            ("decoder_uniform_bound", 0.5),
            ("init_encoder_with_decoder_transpose_factor", 0.5),
            ("tokens", 4096),
        )
    ),
    (
        {"dictionary.act_fn": "jumprelu", "initializer.from_dictionary": "base"},
        {"initializer.init_log_jumprelu_threshold_value": -2.5},
        "from_dictionary gives the weights",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "key", "why"), CASES)
def test_a_key_that_changes_nothing_is_said(changes: dict[str, Any], key: dict[str, Any], why: str) -> None:
    without = {} if changes.get("trainer.lr_scheduler_name") is None else {"trainer.lr_cool_down_steps": 0.2}
    assert set(idle({**changes, **without})) <= set(changes)
    ((name, value),) = key.items()
    found = idle({**changes, **without, **key})
    shown = str(float(value)) if isinstance(value, float) else str(value)
    assert found[name] == f"{name} {shown} ({why})"
    assert set(found) - {name} <= set(changes)
    lines = said_of_training(params_from_dict(changed({**changes, **key})))
    assert sum(found[name] in line for line in lines) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {**TOPK, "dictionary.top_k": 24, "initializer.bias_init_method": "mean", "initializer.tokens": 4096},
        {**JUMP, "dictionary.jumprelu_threshold_window": 1.0, "trainer.jumprelu_lr_factor": 1.0, "trainer.target_l0_gain": 0.1},
        {"trainer.sparsity_loss_type": "tanh-quad", "trainer.frequency_scale": 0.1, "trainer.tanh_stretch_coefficient": 2.0},
        {**POWER, "trainer.p": 2.0, "trainer.l1_coefficient": 0.1, "trainer.l1_coefficient_warmup_steps": 0.2},
        {**TOPK, "trainer.lr_warm_up_steps": 0.1, "trainer.lr_start_ratio": 0.1, "trainer.lr_end_ratio": 0.1},
        {**TOPK, "trainer.auxk_coefficient": 0.03, "trainer.k_aux": 64},
        {**JUMP, "initializer.from_dictionary": "base", "initializer.tokens": 4096},
        {**TOPK, "trainer.initial_k": 90, "trainer.k_schedule_type": "exponential", "trainer.k_exponential_factor": 2.0},
    ],
)
def test_a_key_that_changes_something_is_not(changes: dict[str, Any]) -> None:
    assert idle(changes) == {}


def test_the_embedded_default_says_nothing() -> None:
    assert said_of_training(load_params(ROOT / "params.yaml")) == []


@pytest.mark.parametrize("name", preset_names())
def test_something_makes_every_preset_sparse(name: str) -> None:
    params = apply_preset(name, ROOT / "params.yaml")
    assert not_sparse(params.dictionary, params.trainer) is None
    assert len(said_of_training(params)) <= 1


def test_what_members_of_a_sweep_have_in_common_is_said_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    members = {name: {"trainer.lr": lr} for name, lr in (("slow", 1e-4), ("fast", 1e-3))}
    begin_training(params_from_dict(changed({"sweep": members})), (10, 10))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "nothing makes it sparse" in line]
    assert line.startswith("train: dictionary.act_fn: relu")
    members["fast"]["dictionary.act_fn"] = "topk"
    begin_training(params_from_dict(changed({"sweep": members})), (10, 10))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "nothing makes it sparse" in line]
    assert line.startswith("train: slow: dictionary.act_fn: relu")
