"""What a loss through the language model asks of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.params.choices import LIVE
from pipeline.params.rules.schedule import total_steps
from pipeline.params.section import across
from pipeline.shares import resolve_steps

if TYPE_CHECKING:
    from pipeline.params.kinds.fields import DictionaryFields
    from pipeline.params.sections.activations import ActivationsParams
    from pipeline.params.sections.trainer import TrainerParams


@across("trainer.model_loss")
def model_loss_has_a_model(trainer: TrainerParams, activations: ActivationsParams) -> str | None:
    """A store has rows, and neither the model nor the context of a row."""
    if trainer.model_loss is None or activations.source == LIVE:
        return None
    return (
        f"{trainer.model_loss} runs the language model on whole contexts, and activations.source is {activations.source}; "
        "set that to live (in Python: train on a stream), or write null"
    )


@across("trainer.model_loss")
def model_loss_replaces_one_hook_point(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """What the language model makes of several replaced at once is not what the step has encoded."""
    written = dictionary.hooks_out
    if trainer.model_loss is None or len(written) < 2:
        return None
    return (
        f"{trainer.model_loss} replaces one hook point, and this {dictionary.kind} writes {len(written)} "
        f"({', '.join(written)}); take kind sae, transcoder or lorsa, or write null"
    )


@across("trainer.model_loss_steps")
def model_loss_acts_within_the_run(trainer: TrainerParams, activations: ActivationsParams) -> str | None:
    """At least one step, at most all of them."""
    total = total_steps(trainer, activations)
    if trainer.model_loss is None or total < 1:
        return None
    steps = resolve_steps(trainer.model_loss_steps, total)
    if steps < 1:
        return (
            f"{trainer.model_loss_steps} is none of the run's {total} steps, so that model_loss {trainer.model_loss} does "
            "nothing; state more, or model_loss null"
        )
    return (
        f"{steps} steps of model_loss {trainer.model_loss} are more than the run's {total}; lower it" if steps > total else None
    )


@across("trainer.gradient_accumulation_steps")
def model_loss_sees_the_whole_step(trainer: TrainerParams) -> str | None:
    """It is weighed against the reconstruction error of all its tokens."""
    parts = trainer.gradient_accumulation_steps
    if trainer.model_loss is None or parts == 1:
        return None
    return (
        f"a step with model_loss {trainer.model_loss} is computed in one part, got {parts}; write 1 (and fewer "
        "model_loss_batches), or model_loss null"
    )
