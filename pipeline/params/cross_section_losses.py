"""The checks between the trainer's losses and constraints and the other sections: what each gate can be trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.params.fields import resolve_share, resolve_steps
from pipeline.params.section import Rule, rule

if TYPE_CHECKING:
    from pipeline.params.schema import Params


def steers_thresholds(params: Params) -> bool:
    """Whether JumpReLU's thresholds start at a target L0 and are steered to it."""
    trainer = params.trainer
    steered = trainer.target_l0 is not None and trainer.target_l0_mode == "threshold"
    return steered and params.dictionary.act_fn == "jumprelu"


@rule("initializer.init_log_jumprelu_threshold_value")
def jumprelu_has_a_first_threshold(params: Params) -> str | None:
    """JumpReLU has no default threshold, but with a target L0 in mode threshold the data give it; other gates have none."""
    stated = params.initializer.init_log_jumprelu_threshold_value
    if params.dictionary.act_fn != "jumprelu":
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
        return "is required by dictionary.act_fn jumprelu; usual: -2.302585 (log 0.1)"
    return None


@rule("trainer.auxk_coefficient")
def auxk_needs_the_topk_family(params: Params) -> str | None:
    """AuxK revives the dead features of TopK gates; relu and jumprelu are refused (SPEC section 5)."""
    if params.trainer.auxk_coefficient is not None and not params.dictionary.is_topk_family:
        return f"the AuxK loss is for topk and batchtopk; dictionary.act_fn is {params.dictionary.act_fn}; write null"
    return None


@rule("trainer.sparsity_loss_type")
def l0_needs_thresholds(params: Params) -> str | None:
    """The l0 loss has a gradient for thresholds only."""
    if params.trainer.sparsity_loss_type == "l0" and params.dictionary.act_fn != "jumprelu":
        return (
            f"the l0 loss trains JumpReLU's thresholds; dictionary.act_fn is {params.dictionary.act_fn}; "
            "set it to jumprelu, or take another sparsity loss"
        )
    return None


@rule("trainer.lp_coefficient")
def pre_act_loss_needs_thresholds(params: Params) -> str | None:
    """The pre-act loss pulls features up to their thresholds."""
    if params.trainer.lp_coefficient is not None and params.dictionary.act_fn != "jumprelu":
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
    if trainer.target_l0 is None or trainer.target_l0_mode != "threshold" or params.dictionary.act_fn != "relu":
        return None
    return (
        "threshold steers JumpReLU's thresholds; dictionary.act_fn is relu; "
        "set the mode to coefficient and trainer.sparsity_loss_type to power, or act_fn to jumprelu"
    )


@rule("trainer.topk_start_steps")
def topk_start_leads_to_another_gate(params: Params) -> str | None:
    """A TopK start has a k and a gate to go on with, and ends before the run does."""
    trainer, act_fn = params.trainer, params.dictionary.act_fn
    if not trainer.topk_start_steps:
        return None
    if act_fn not in ("batchtopk", "jumprelu"):
        return f"a TopK start is for batchtopk and jumprelu; dictionary.act_fn is {act_fn}; write 0"
    if act_fn == "jumprelu" and not steers_thresholds(params):
        return (
            "with jumprelu a TopK start takes its k from trainer.target_l0 in target_l0_mode threshold; set those, or write 0"
        )
    if act_fn == "jumprelu" and trainer.target_l0 is not None and round(trainer.target_l0) < 1:
        return f"a TopK start needs a k of at least 1; trainer.target_l0 is {trainer.target_l0}; write 0"
    total = params.total_steps
    steps = resolve_steps(trainer.topk_start_steps, total)
    if total > 0 and steps >= total:
        return f"a TopK start of {steps} steps leaves none of the {total} to {act_fn}; shorten it"
    return None


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
