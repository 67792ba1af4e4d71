"""The checks between the trainer's losses and constraints and the other sections: what each gate can be trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.params.losses import SPARSITY_LOSSES
from pipeline.params.section import Rule, rule
from pipeline.shares import resolve_share, resolve_steps

if TYPE_CHECKING:
    from pipeline.params.schema import Params


def steers_thresholds(params: Params) -> bool:
    """Whether JumpReLU's thresholds start at a target L0 and are steered to it."""
    trainer = params.trainer
    steered = trainer.target_l0 is not None and trainer.target_l0_mode == "threshold"
    return steered and params.dictionary.gate.has_threshold


def sparsity_is_asked_for(params: Params) -> str | None:
    """A gate without a number of features needs something that closes it; asked of parameter files and of `fit`."""
    trainer, act_fn = params.trainer, params.dictionary.act_fn
    asks = trainer.sparsity_loss_type is not None or steers_thresholds(params)
    if params.dictionary.is_topk_family or asks:
        return None
    if not params.dictionary.gate.has_threshold:
        return (
            f"{act_fn} keeps every positive value, and nothing makes it sparse; set trainer.sparsity_loss_type (power) and its "
            "l1_coefficient (with target_l0 and target_l0_mode coefficient for a wanted L0), or act_fn to topk"
        )
    return f"nothing makes {act_fn} sparse; set trainer.target_l0, or trainer.sparsity_loss_type and trainer.l1_coefficient"


@rule("initializer.init_log_jumprelu_threshold_value")
def jumprelu_has_a_first_threshold(params: Params) -> str | None:
    """JumpReLU has no default threshold, but with a target L0 in mode threshold the data give it; other gates have none."""
    stated = params.initializer.init_log_jumprelu_threshold_value
    if not params.dictionary.gate.has_threshold:
        if stated is not None:
            return f"{stated} is for jumprelu only; dictionary.act_fn is {params.dictionary.act_fn}; write null"
        return None
    if steers_thresholds(params):
        if stated is not None:
            return (
                f"{stated} is not used: thresholds start where they give trainer.target_l0 {params.trainer.target_l0} "
                "on the data (target_l0_mode threshold); write null"
            )
        return None
    if stated is None:
        return (
            "is required by dictionary.act_fn jumprelu; usual: -2.302585 (log 0.1). With trainer.target_l0 (target_l0_mode "
            "threshold) the data set it: then leave null"
        )
    return None


@rule("trainer.auxk_coefficient")
def auxk_needs_the_topk_family(params: Params) -> str | None:
    """AuxK revives the dead features of TopK gates; relu and jumprelu are refused (SPEC 5)."""
    if params.trainer.auxk_coefficient is not None and not params.dictionary.is_topk_family:
        return f"the AuxK loss is for the topk family; dictionary.act_fn is {params.dictionary.act_fn}; write null"
    return None


@rule("trainer.sparsity_loss_type")
def l0_needs_thresholds(params: Params) -> str | None:
    """The l0 loss has a gradient for thresholds only."""
    loss = params.trainer.sparsity_loss_type
    if loss is not None and SPARSITY_LOSSES.get(loss).needs_thresholds and not params.dictionary.gate.has_threshold:
        return (
            f"the {loss} loss trains JumpReLU's thresholds; dictionary.act_fn is {params.dictionary.act_fn}; "
            "set it to jumprelu, or take another sparsity loss"
        )
    return None


@rule("trainer.lp_coefficient")
def pre_act_loss_needs_thresholds(params: Params) -> str | None:
    """The pre-act loss pulls features up to their thresholds."""
    if params.trainer.lp_coefficient is not None and not params.dictionary.gate.has_threshold:
        return f"the pre-act loss needs JumpReLU's thresholds; dictionary.act_fn is {params.dictionary.act_fn}; write null"
    return None


@rule("trainer.target_l0")
def target_l0_is_open(params: Params) -> str | None:
    """The topk family has its L0 by its k, and no more features can be active than there are."""
    target, dictionary = params.trainer.target_l0, params.dictionary
    if target is None:
        return None
    if dictionary.is_topk_family:
        return f"the L0 of {dictionary.act_fn} is dictionary.top_k ({dictionary.top_k}); write null, and set top_k"
    if dictionary.d_sae is not None and target > dictionary.d_sae:
        return f"{target} is more than the dictionary's {dictionary.d_sae} features"
    return None


@rule("trainer.target_l0_mode")
def threshold_mode_needs_thresholds(params: Params) -> str | None:
    """ReLU has no threshold to steer."""
    trainer = params.trainer
    gate = params.dictionary.gate
    if trainer.target_l0 is None or trainer.target_l0_mode != "threshold" or gate.has_threshold or gate.budgeted:
        return None
    return (
        f"threshold steers JumpReLU's thresholds; dictionary.act_fn is {gate.name}; "
        "set the mode to coefficient and trainer.sparsity_loss_type to power, or act_fn to jumprelu"
    )


@rule("trainer.target_l0_mode")
def coefficient_mode_has_a_smooth_loss(params: Params) -> str | None:
    """The l0 loss moves thresholds in a window only; steering its weight winds up (measured: beyond 1e37 in 900 steps)."""
    trainer = params.trainer
    loss = trainer.sparsity_loss_type
    if trainer.target_l0 is None or trainer.target_l0_mode != "coefficient" or loss is None:
        return None
    if SPARSITY_LOSSES.get(loss).steerable:
        return None
    return f"coefficient winds up with the {loss} loss; take quadratic, or threshold without a sparsity loss"


@rule("trainer.lr_end_ratio")
def rate_does_not_vanish(params: Params) -> str | None:
    """0 to any power is 0."""
    if params.trainer.lr_scheduler_name != "exponentialwarmup" or params.trainer.lr_end_ratio > 0:
        return None
    return "is 0, so that exponentialwarmup, e^((s - W)/(T - W)), ends the training with the warm-up; give a positive share"


@rule("trainer.topk_start_steps")
def topk_start_leads_to_another_gate(params: Params) -> str | None:
    """A TopK start has a k and a gate to go on with, and ends before the run does."""
    trainer, act_fn = params.trainer, params.dictionary.act_fn
    if not trainer.topk_start_steps:
        return None
    if not params.dictionary.gate.topk_start:
        return f"a TopK start is for batchtopk and jumprelu; dictionary.act_fn is {act_fn}; write 0"
    if params.dictionary.gate.has_threshold and not steers_thresholds(params):
        return (
            "with jumprelu a TopK start takes its k from trainer.target_l0 in target_l0_mode threshold; set those, or write 0"
        )
    total = params.total_steps
    steps = resolve_steps(trainer.topk_start_steps, total)
    if total > 0 and steps >= total:
        return f"a TopK start of {steps} steps leaves none of the {total} to {act_fn}; shorten it"
    return None


@rule("trainer.k_warmup_steps")
def k_arrives(params: Params) -> str | None:
    """The k that is served is the one that was trained with in the end."""
    trainer, total = params.trainer, params.total_steps
    if trainer.initial_k is None or total < 1:
        return None
    cold, falling = (resolve_steps(steps, total) for steps in (trainer.k_cold_booting_steps, trainer.k_warmup_steps))
    if cold + falling < total:
        return None
    return (
        f"k stays for {cold} steps (k_cold_booting_steps) and falls for {falling}, which leaves none of the {total} at "
        f"dictionary.top_k {params.dictionary.top_k}; shorten them"
    )


@rule("trainer.l1_coefficient_warmup_steps")
def coefficient_arrives(params: Params) -> str | None:
    """A sparsity coefficient that rises over the whole run is a method, over more than that a mistake."""
    total = params.total_steps
    if params.trainer.sparsity_loss_type is None or total < 1:
        return None
    steps = resolve_steps(params.trainer.l1_coefficient_warmup_steps, total)
    return f"l1_coefficient would rise for {steps} steps, and the run has {total}; shorten it" if steps > total else None


@rule("trainer.jumprelu_lr_factor")
def thresholds_learn(params: Params) -> str | None:
    """The l0 loss has no gradient but that of the thresholds."""
    loss = params.trainer.sparsity_loss_type
    if loss is None or not SPARSITY_LOSSES.get(loss).needs_thresholds or params.trainer.jumprelu_lr_factor > 0:
        return None
    return f"is 0, so that the {loss} loss, which trains nothing but thresholds, does nothing; give it a positive value"


@rule("trainer.dead_threshold")
def features_die_within_the_run(params: Params) -> str | None:
    """What revives dead features needs them to be counted as dead before the run ends."""
    trainer = params.trainer
    reviving = [name for name in ("revive_dead_features", "auxk_coefficient") if getattr(trainer, name)]
    tokens = resolve_share(trainer.dead_threshold, trainer.total_training_tokens)
    if not reviving or tokens < trainer.total_training_tokens:
        return None
    return (
        f"no feature can be silent for {tokens} of the run's {trainer.total_training_tokens} tokens before it ends, so that "
        f"{reviving[0]} does nothing; lower it (0.0075 of the run), or switch {reviving[0]} off"
    )


@rule("trainer.decoder_constraint")
def unit_rows_have_no_norm_to_search(params: Params) -> str | None:
    """The grid search looks for the decoder norm that unit rows have given up."""
    if params.trainer.decoder_constraint == "unit_norm" and params.initializer.grid_search_init_norm:
        return "unit_norm fixes the decoder norm that initializer.grid_search_init_norm searches; switch one of them off"
    return None


@rule("trainer.decoder_constraint")
def unit_rows_are_single(params: Params) -> str | None:
    """A unit norm needs one row for a feature."""
    if params.trainer.decoder_constraint == "unit_norm" and not params.dictionary.ONE_DECODER:
        return f"unit_norm is for kinds with one decoder row for a feature (sae, transcoder), not for {params.dictionary.kind}"
    return None


@rule("trainer.matryoshka_widths")
def prefixes_are_of_one_dictionary(params: Params) -> str | None:
    """Nested prefixes are of the SAE and the transcoder."""
    if params.trainer.matryoshka_widths and not params.dictionary.ONE_DECODER:
        return f"nested prefixes are for sae and transcoder, not for {params.dictionary.kind}; write null"
    return None


@rule("trainer.matryoshka_widths")
def widths_are_of_the_dictionary(params: Params) -> str | None:
    """Prefixes of the dictionary, each longer than the last, the last one whole."""
    widths, features = params.trainer.matryoshka_widths, params.dictionary.d_sae
    if not widths or not features:
        return None
    found = [resolve_share(width, features) for width in widths]
    if found[-1] != features:
        return f"the last width is the whole dictionary, {features} features, got {found[-1]}"
    if len(set(found)) < len(found):
        return f"{list(widths)} of {features} features are the widths {found}: no two may be the same"
    return None


RULES: tuple[Rule, ...] = tuple(check for check in list(globals().values()) if hasattr(check, "rule_key"))
