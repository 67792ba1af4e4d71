"""Steps of a run: what rises, falls or starts must be over before the run is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.params.section import across
from pipeline.params.sections.trainer import WARMS_UP
from pipeline.shares import resolve_share, resolve_steps

if TYPE_CHECKING:
    from pipeline.params.kinds.fields import DictionaryFields
    from pipeline.params.sections.activations import ActivationsParams
    from pipeline.params.sections.trainer import TrainerParams


def total_steps(trainer: TrainerParams, activations: ActivationsParams) -> int:
    """T = total_training_tokens // tokens of a batch (2-D targets: batch_size * context_size)."""
    return trainer.total_training_tokens // activations.tokens_per_batch


@across("trainer.total_training_tokens")
def at_least_one_step(trainer: TrainerParams, activations: ActivationsParams) -> str | None:
    """T = total_training_tokens // tokens of a batch is at least 1."""
    if total_steps(trainer, activations) > 0:
        return None
    return (
        f"{trainer.total_training_tokens} tokens are less than one batch "
        f"of {activations.tokens_per_batch} (activations.batch_size)"
    )


@across("trainer.lr_warm_up_steps")
def warm_up_ends_before_the_run(trainer: TrainerParams, activations: ActivationsParams) -> str | None:
    """The learning rate that is asked for is reached, and there are steps to spread the rest of the schedule over."""
    total = total_steps(trainer, activations)
    if trainer.lr_scheduler_name not in WARMS_UP or total < 1:
        return None
    warm_up = resolve_steps(trainer.lr_warm_up_steps, total)
    if warm_up < total:
        return None
    return f"a warm-up of {warm_up} steps leaves none of the {total} to {trainer.lr_scheduler_name}; shorten it"


@across("trainer.lr_cool_down_steps")
def cool_down_begins_after_the_warm_up(trainer: TrainerParams, activations: ActivationsParams) -> str | None:
    """The learning rate that is asked for is reached where a schedule both warms up and cools down."""
    total = total_steps(trainer, activations)
    if trainer.lr_scheduler_name != "constantwithwarmup" or total < 1:
        return None
    warm_up, cool_down = (resolve_steps(steps, total) for steps in (trainer.lr_warm_up_steps, trainer.lr_cool_down_steps))
    if warm_up >= total or warm_up + cool_down <= total:  # the former is a fault of its own
        return None
    return (
        f"a warm-up of {warm_up} steps (lr_warm_up_steps) and a cool-down of {cool_down} do not fit in the {total} of the run: "
        "trainer.lr would not be reached; shorten one of them"
    )


@across("trainer.initial_k")
def k_starts_above_its_end(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """The k schedule falls from initial_k to top_k."""
    first = trainer.initial_k
    if first is None:
        return None
    if not dictionary.is_topk_family:
        return f"only the topk family has a k to schedule; dictionary.act_fn is {dictionary.act_fn}; write null"
    if first < dictionary.top_k:
        return f"{first} is below dictionary.top_k {dictionary.top_k}; the schedule goes down to top_k"
    features = None if dictionary.d_sae is None else dictionary.d_sae * dictionary.k_layers
    return f"{first} is more than the dictionary's {features} features" if features is not None and first > features else None


@across("trainer.k_warmup_steps")
def k_arrives(dictionary: DictionaryFields, trainer: TrainerParams, activations: ActivationsParams) -> str | None:
    """The k of the inference form is the one that was trained with in the end."""
    total = total_steps(trainer, activations)
    if trainer.initial_k is None or total < 1:
        return None
    cold, falling = (resolve_steps(steps, total) for steps in (trainer.k_cold_booting_steps, trainer.k_warmup_steps))
    if cold + falling < total:
        return None
    return (
        f"k stays for {cold} steps (k_cold_booting_steps) and falls for {falling}, which leaves none of the {total} at "
        f"dictionary.top_k {dictionary.top_k}; shorten them"
    )


@across("trainer.l1_coefficient_warmup_steps")
def coefficient_arrives(trainer: TrainerParams, activations: ActivationsParams) -> str | None:
    """A sparsity coefficient that rises over the whole run is a method, over more than that a mistake."""
    total = total_steps(trainer, activations)
    if trainer.sparsity_loss_type is None or total < 1:
        return None
    steps = resolve_steps(trainer.l1_coefficient_warmup_steps, total)
    return f"l1_coefficient would rise for {steps} steps, and the run has {total}; shorten it" if steps > total else None


@across("trainer.topk_start_steps")
def topk_start_ends_before_the_run(
    dictionary: DictionaryFields, trainer: TrainerParams, activations: ActivationsParams
) -> str | None:
    """Steps are left to the gate that is asked for."""
    total = total_steps(trainer, activations)
    steps = resolve_steps(trainer.topk_start_steps, total)
    if not dictionary.gate.topk_start or total < 1 or steps < total:
        return None
    return f"a TopK start of {steps} steps leaves none of the {total} to {dictionary.act_fn}; shorten it"


@across("trainer.dead_threshold")
def features_die_within_the_run(trainer: TrainerParams) -> str | None:
    """What revives dead features needs them to be counted as dead before the run ends."""
    reviving = [name for name in ("revive_dead_features", "auxk_coefficient") if getattr(trainer, name)]
    tokens = resolve_share(trainer.dead_threshold, trainer.total_training_tokens)
    if not reviving or tokens < trainer.total_training_tokens:
        return None
    return (
        f"no feature can be silent for {tokens} of the run's {trainer.total_training_tokens} tokens before it ends, so that "
        f"{reviving[0]} does nothing; lower it (0.0075 of the run), or switch {reviving[0]} off"
    )
