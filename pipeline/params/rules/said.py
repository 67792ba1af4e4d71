"""What is no fault of a training but worth a line: that nothing makes it sparse, and keys that change nothing beside others.

Such a key is refused where its value can only be a mistake (`without_effect`, the rules beside this file). Here are those
that a change of another key leaves behind, as the steps of a warm-up that the new schedule has not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.params.fields import as_written
from pipeline.params.losses import SPARSITY_LOSSES
from pipeline.params.rules.losses import steers_thresholds
from pipeline.params.sections.initializer import DECODER_SWITCHES
from pipeline.params.sections.trainer import WARMS_UP

if TYPE_CHECKING:
    from pipeline.params.kinds.fields import DictionaryFields
    from pipeline.params.schema import FitParams, Params
    from pipeline.params.sections.initializer import InitializerParams
    from pipeline.params.sections.trainer import TrainerParams

Idle = tuple[str, str, tuple[str, ...]]  # section, why its keys change nothing, the keys


def said_of_training(params: Params) -> list[str]:
    """The lines that a stage which trains writes to standard error, without its name."""
    lines = [line for line in (not_sparse(params.dictionary, params.trainer),) if line is not None]
    found = without_effect_here(params)
    if found:
        lines.append(f"these keys change nothing here: {', '.join(found.values())}")
    return lines


def not_sparse(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """That a gate without a number of features has nothing that closes it; None where something does."""
    act_fn = dictionary.act_fn
    asks = trainer.sparsity_loss_type is not None or steers_thresholds(dictionary, trainer)
    if dictionary.is_topk_family or asks:
        return None
    if not dictionary.gate.has_threshold:
        return (
            f"dictionary.act_fn: {act_fn} keeps every positive value, and nothing makes it sparse; set "
            "trainer.sparsity_loss_type (power) and its l1_coefficient (with target_l0 and target_l0_mode coefficient for a "
            "wanted L0), or act_fn to topk"
        )
    return (
        f"dictionary.act_fn: nothing makes {act_fn} sparse; set trainer.target_l0, or trainer.sparsity_loss_type and "
        "trainer.l1_coefficient"
    )


def without_effect_here(params: Params | FitParams) -> dict[str, str]:
    """{dotted key: `key value (why)`} of keys that are not at their declared default and change nothing beside the others."""
    found: dict[str, str] = {}
    idle = [*_of_dictionary(params.dictionary, params.trainer), *_of_schedules(params.trainer), *_of_losses(params.trainer)]
    for section, why, keys in [*idle, *_of_start(params.initializer, params.dictionary, params.trainer)]:
        of = getattr(params, section)
        for key in keys:
            value: Any = getattr(of, key)
            if value != type(of).__dataclass_fields__[key].default:
                found.setdefault(f"{section}.{key}", f"{section}.{key} {as_written(value)} ({why})")
    return found


def _of_dictionary(dictionary: DictionaryFields, trainer: TrainerParams) -> Iterator[Idle]:
    act_fn = dictionary.act_fn
    if not dictionary.is_topk_family:
        yield "dictionary", f"{act_fn} has no k", ("top_k",)
    if not dictionary.gate.has_threshold:
        yield "dictionary", f"{act_fn} has no threshold", ("jumprelu_threshold_window",)
        yield "trainer", f"{act_fn} has no threshold", ("jumprelu_lr_factor",)
    elif trainer.sparsity_loss_type == "l0":
        yield "dictionary", "the window is l0_bandwidth with the l0 loss", ("jumprelu_threshold_window",)


def _of_schedules(trainer: TrainerParams) -> Iterator[Idle]:
    name = trainer.lr_scheduler_name
    if name not in WARMS_UP:
        yield "trainer", f"{name} has no warm-up", ("lr_warm_up_steps", "lr_start_ratio", "lr_warm_up_shape")
    elif not trainer.lr_warm_up_steps:
        yield "trainer", "lr_warm_up_steps is 0", ("lr_start_ratio", "lr_warm_up_shape")
    if name != "constantwithwarmup":
        yield "trainer", f"{name} has no cool-down", ("lr_cool_down_steps",)
    elif not trainer.lr_cool_down_steps:
        yield "trainer", "lr_cool_down_steps is 0", ("lr_end_ratio",)
    if name in ("constant", "linearwarmupdecay"):
        yield "trainer", f"{name} has no end to choose", ("lr_end_ratio",)
    if trainer.k_schedule_type != "exponential":
        yield "trainer", "k_schedule_type is linear", ("k_exponential_factor",)
    if not trainer.n_checkpoints:
        yield "trainer", "n_checkpoints is 0", ("checkpoint_schedule",)


def _of_losses(trainer: TrainerParams) -> Iterator[Idle]:
    loss, steered = trainer.sparsity_loss_type, ("target_l0", "target_l0_mode")
    used = () if loss is None else SPARSITY_LOSSES.get(loss).uses
    of_others = {key for name in SPARSITY_LOSSES for key in SPARSITY_LOSSES.get(name).uses} - {*used, *steered}
    without = "there is no sparsity loss" if loss is None else f"the {loss} loss has none"
    yield "trainer", without, tuple(sorted(of_others & set(type(trainer).__dataclass_fields__)))
    if loss is None:
        yield "trainer", without, ("l1_coefficient", "l1_coefficient_warmup_steps")
    if trainer.target_l0 is None:
        yield "trainer", "target_l0 is null", ("target_l0_mode", "target_l0_gain")
    elif trainer.target_l0_mode == "quadratic":
        yield "trainer", "the mode quadratic steers nothing", ("target_l0_gain",)
    if trainer.auxk_coefficient is None:
        yield "trainer", "auxk_coefficient is null", ("k_aux",)


def _of_start(initializer: InitializerParams, dictionary: DictionaryFields, trainer: TrainerParams) -> Iterator[Idle]:
    if initializer.from_dictionary is not None:
        calibrated = dictionary.gate.has_threshold
        others = [key for key in type(initializer).__dataclass_fields__ if key != "from_dictionary"]
        yield "initializer", "from_dictionary gives the weights", tuple(k for k in others if k != "tokens" or not calibrated)
        return
    looks = (*DECODER_SWITCHES, "grid_search_init_norm", "init_encoder_bias_with_mean_hidden_pre")
    drawn = initializer.bias_init_method == "all_zero" and not any(getattr(initializer, name) for name in looks)
    if drawn and not steers_thresholds(dictionary, trainer):
        yield "initializer", "the start looks at no activation", ("tokens",)
