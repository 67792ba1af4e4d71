"""What each gate can be trained with: losses, a target L0, constraints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.params.losses import SPARSITY_LOSSES
from pipeline.params.section import across
from pipeline.shares import resolve_share

if TYPE_CHECKING:
    from pipeline.params.kinds.fields import DictionaryFields
    from pipeline.params.sections.trainer import TrainerParams


def steers_thresholds(dictionary: DictionaryFields, trainer: TrainerParams) -> bool:
    """Whether JumpReLU's thresholds start at a target L0 and are steered to it."""
    steered = trainer.target_l0 is not None and trainer.target_l0_mode == "threshold"
    return steered and dictionary.gate.has_threshold


@across("dictionary.top_k")
def top_k_fits(dictionary: DictionaryFields) -> str | None:
    """No more features can be active than there are."""
    if not dictionary.d_sae or not dictionary.is_topk_family:
        return None
    features = dictionary.d_sae * dictionary.k_layers
    if dictionary.top_k > features:
        return f"{dictionary.top_k} is more than the dictionary's {features} features; lower it or raise expansion_factor"
    return None


@across("trainer.auxk_coefficient")
def auxk_needs_the_topk_family(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """AuxK revives the dead features of TopK gates; relu and jumprelu are refused (SPEC 5)."""
    if trainer.auxk_coefficient is not None and not dictionary.is_topk_family:
        return f"the AuxK loss is for the topk family; dictionary.act_fn is {dictionary.act_fn}; write null"
    return None


@across("trainer.sparsity_loss_type")
def l0_needs_thresholds(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """The l0 loss has a gradient for thresholds only."""
    loss = trainer.sparsity_loss_type
    if loss is not None and SPARSITY_LOSSES.get(loss).needs_thresholds and not dictionary.gate.has_threshold:
        return (
            f"the {loss} loss trains JumpReLU's thresholds; dictionary.act_fn is {dictionary.act_fn}; "
            "set it to jumprelu, or take another sparsity loss"
        )
    return None


@across("trainer.lp_coefficient")
def pre_act_loss_needs_thresholds(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """The pre-act loss pulls features up to their thresholds."""
    if trainer.lp_coefficient is not None and not dictionary.gate.has_threshold:
        return f"the pre-act loss needs JumpReLU's thresholds; dictionary.act_fn is {dictionary.act_fn}; write null"
    return None


@across("trainer.target_l0")
def target_l0_is_open(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """The topk family has its L0 by its k, and no more features can be active than there are."""
    target = trainer.target_l0
    if target is None:
        return None
    if dictionary.is_topk_family:
        return f"the L0 of {dictionary.act_fn} is dictionary.top_k ({dictionary.top_k}); write null, and set top_k"
    if dictionary.d_sae is not None and target > dictionary.d_sae:
        return f"{target} is more than the dictionary's {dictionary.d_sae} features; lower it"
    return None


@across("trainer.target_l0_mode")
def threshold_mode_needs_thresholds(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """ReLU has no threshold to steer."""
    gate = dictionary.gate
    if trainer.target_l0 is None or trainer.target_l0_mode != "threshold" or gate.has_threshold or gate.budgeted:
        return None
    return (
        f"threshold steers JumpReLU's thresholds; dictionary.act_fn is {gate.name}; "
        "set the mode to coefficient and trainer.sparsity_loss_type to power, or act_fn to jumprelu"
    )


@across("trainer.target_l0_mode")
def coefficient_mode_has_a_smooth_loss(trainer: TrainerParams) -> str | None:
    """The l0 loss moves thresholds in a window only; steering its weight winds up (measured: beyond 1e37 in 900 steps)."""
    loss = trainer.sparsity_loss_type
    if trainer.target_l0 is None or trainer.target_l0_mode != "coefficient" or loss is None:
        return None
    if SPARSITY_LOSSES.get(loss).steerable:
        return None
    return f"coefficient winds up with the {loss} loss; take quadratic, or threshold without a sparsity loss"


@across("trainer.jumprelu_lr_factor")
def thresholds_learn(trainer: TrainerParams) -> str | None:
    """The l0 loss has no gradient but that of the thresholds."""
    loss = trainer.sparsity_loss_type
    if loss is None or not SPARSITY_LOSSES.get(loss).needs_thresholds or trainer.jumprelu_lr_factor > 0:
        return None
    return f"is 0, so that the {loss} loss, which trains nothing but thresholds, does nothing; give it a positive value"


@across("trainer.topk_start_steps")
def topk_start_leads_to_another_gate(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """A TopK start has a k and a gate to go on with."""
    act_fn = dictionary.act_fn
    if not trainer.topk_start_steps:
        return None
    if not dictionary.gate.topk_start:
        return f"a TopK start is for batchtopk and jumprelu; dictionary.act_fn is {act_fn}; write 0"
    if dictionary.gate.has_threshold and not steers_thresholds(dictionary, trainer):
        return (
            "with jumprelu a TopK start takes its k from trainer.target_l0 in target_l0_mode threshold; set those, or write 0"
        )
    return None


@across("trainer.decoder_constraint")
def unit_rows_are_single(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """A unit norm needs one row for a feature."""
    if trainer.decoder_constraint == "unit_norm" and not dictionary.ONE_DECODER:
        kinds = "kinds with one decoder row for a feature (sae, transcoder)"
        return f"unit_norm is for {kinds}, not for {dictionary.kind}; write none"
    return None


@across("trainer.matryoshka_widths")
def prefixes_are_of_one_dictionary(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """Nested prefixes are of the SAE and the transcoder."""
    if trainer.matryoshka_widths and not dictionary.ONE_DECODER:
        return f"nested prefixes are for sae and transcoder, not for {dictionary.kind}; write null"
    return None


@across("trainer.matryoshka_widths")
def widths_are_of_the_dictionary(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """Prefixes of the dictionary, each longer than the last, the last one whole."""
    widths, features = trainer.matryoshka_widths, dictionary.d_sae
    if not widths or not features:
        return None
    found = [resolve_share(width, features) for width in widths]
    if found[-1] != features:
        return f"the last width is the whole dictionary, {features} features, got {found[-1]}; write {features} or 1.0 there"
    if len(set(found)) < len(found):
        return f"{list(widths)} of {features} features are the widths {found}: no two may be the same; write each once"
    return None
