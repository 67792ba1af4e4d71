"""Lengths of a training that the reference lets run past its end, which ours refuse: shortened to what there is, and said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.params.gates import GATES
from pipeline.params.sections.trainer import WARMS_UP
from pipeline.shares import resolve_steps

if TYPE_CHECKING:
    from pipeline.params.lm_saes.translation import Translation

CALIBRATION = 16384  # tokens kept from training for the threshold of a gate that needs one


def fit_lengths(made: Translation) -> None:
    """Warm-ups within the run, k where it is to end, and tokens for the threshold of the inference form."""
    values = made.values
    per_row = (
        values["activations.context_size"]
        if values.get("activations.target") == "activations-2d" and ("activations.context_size" in values)
        else 1
    )
    batch = values["activations.batch_size"] * per_row
    total = values["trainer.total_training_tokens"] // batch if batch > 0 else 0
    if total > 0:
        _fit_rate(made, total)
        _fit_k(made, total)
        _fit_coefficient(made, total)
    _fit_calibration(made, batch)


def _fit_rate(made: Translation, total: int) -> None:
    values = made.values
    name = values["trainer.lr_scheduler_name"]
    warm_up, cool_down = (resolve_steps(values[f"trainer.lr_{which}_steps"], total) for which in ("warm_up", "cool_down"))
    if name == "constantwithwarmup" and cool_down > total:
        cool_down = values["trainer.lr_cool_down_steps"] = total
        made.say("trainer.lr_cool_down_steps", f"{total} here, all steps of the run", counterpart=True)
    most = min(total - 1, total - cool_down) if name == "constantwithwarmup" else total - 1
    if name in WARMS_UP and warm_up > most:
        values["trainer.lr_warm_up_steps"] = most
        made.say(
            "trainer.lr_warm_up_steps",
            f"{most} here: of the run's {total} steps no more are left to it, so that the rate is reached",
            counterpart=True,
        )


def _fit_k(made: Translation, total: int) -> None:
    values = made.values
    if values.get("trainer.initial_k") is None:
        return
    cold, falling = (resolve_steps(values[f"trainer.{key}_steps"], total) for key in ("k_cold_booting", "k_warmup"))
    if cold + falling >= total > cold + 1:
        values["trainer.k_warmup_steps"] = total - cold - 1
        made.say(
            "trainer.k_warmup_steps",
            f"{total - cold - 1} steps here: the last of the {total} is trained with top_k itself",
            counterpart=True,
        )


def _fit_coefficient(made: Translation, total: int) -> None:
    values = made.values
    steps = resolve_steps(values["trainer.l1_coefficient_warmup_steps"], total)
    if values.get("trainer.sparsity_loss_type") is not None and steps > total:
        values["trainer.l1_coefficient_warmup_steps"] = 1.0
        made.say("trainer.l1_coefficient_warmup_steps", f"1.0 here, all {total} steps of the run", counterpart=True)


def _fit_calibration(made: Translation, batch: int) -> None:
    values = made.values
    needed = GATES.get(values["dictionary.act_fn"]).batch_dependent
    values["fold.calibration_tokens"] = max(CALIBRATION, batch) if needed else 0
    if "activations.total_tokens" in values and needed:
        tokens = values["trainer.total_training_tokens"]
        if tokens - values["fold.calibration_tokens"] < batch:
            values["activations.total_tokens"] = tokens + values["fold.calibration_tokens"]
