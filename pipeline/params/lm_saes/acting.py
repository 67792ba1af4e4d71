"""Where a key of the reference does nothing, so that ours, which refuse a key without effect, are left at their defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.params.gates import GATES
from pipeline.params.lm_saes.settings import Settings
from pipeline.params.sections.trainer import K_SCHEDULE

Reason = Callable[[Settings], str | None]


def act_fn(settings: Settings) -> str:
    """The gate; of a pretrained dictionary that of its own configuration, which is not known here."""
    return str(settings["sae.act_fn"])


def is_transcoder(settings: Settings) -> bool:
    """Whether one hook point is read and another is written."""
    return settings.kind == "sae" and settings["sae.hook_point_out"] != settings["sae.hook_point_in"]


def _has_draw_of_its_own(settings: Settings) -> str | None:
    return f"kind {settings.kind} has a draw of its own, there and here" if settings.kind in ("clt", "lorsa") else None


def _encoder_is_drawn(settings: Settings) -> str | None:
    if settings["initializer.init_encoder_with_decoder_transpose"] and not is_transcoder(settings):
        return "init_encoder_with_decoder_transpose makes the encoder"
    return _has_draw_of_its_own(settings)


def _encoder_is_transposed(settings: Settings) -> str | None:
    if not settings["initializer.init_encoder_with_decoder_transpose"]:
        return "init_encoder_with_decoder_transpose is false"
    return _has_draw_of_its_own(settings)


def _first_threshold(settings: Settings) -> str | None:
    return None if GATES.get(act_fn(settings)).has_threshold else f"{act_fn(settings)} has no threshold"


def _of_lorsa(settings: Settings) -> str | None:
    return None if settings.kind == "lorsa" else "it acts on lorsa only"


def _of_transcoders(settings: Settings) -> str | None:
    return None if is_transcoder(settings) else "it acts on an sae with two hook points only"


def _layer(settings: Settings) -> str | None:
    lorsa = settings["initializer.initialize_lorsa_with_mhsa"] and _of_lorsa(settings) is None
    mlp = settings["initializer.initialize_tc_with_mlp"] and _of_transcoders(settings) is None
    return None if lorsa or mlp else "neither initialize_lorsa_with_mhsa nor initialize_tc_with_mlp acts"


def _subspace(settings: Settings) -> str | None:
    return (
        None if settings["initializer.initialize_W_D_with_active_subspace"] else "initialize_W_D_with_active_subspace is false"
    )


def _falling_k(settings: Settings) -> str | None:
    if not GATES.get(act_fn(settings)).budgeted:
        return f"{act_fn(settings)} has no k"
    return None if settings["trainer.k_warmup_steps"] else "k_warmup_steps is 0"


def _k_schedule(settings: Settings) -> str | None:
    return "initial_k is null" if settings["trainer.initial_k"] is None else _falling_k(settings)


def _auxk(settings: Settings) -> str | None:
    if not GATES.get(act_fn(settings)).budgeted:
        return f"the AuxK loss is for the topk family; {act_fn(settings)} has trainer.target_l0 and revive_dead_features here"
    dead, total = settings["trainer.dead_threshold"], settings["trainer.total_training_tokens"]
    return f"no feature is dead before {dead:,.0f} tokens, and the run has {total:,}" if dead >= total else None


def _pre_act(settings: Settings) -> str | None:
    return None if GATES.get(act_fn(settings)).has_threshold else f"it acts on jumprelu only, and act_fn is {act_fn(settings)}"


def _sparsity(settings: Settings) -> str | None:
    return "l1_coefficient is 0" if settings["trainer.l1_coefficient"] == 0 else None


def _rotated(settings: Settings) -> str | None:
    return "positional_embedding_type is none" if settings["sae.positional_embedding_type"] == "none" else None


def _by_parts(settings: Settings) -> str | None:
    return None if settings["sae.use_NTK_by_parts_rope"] else "use_NTK_by_parts_rope is false"


def _normed(settings: Settings) -> str | None:
    return None if settings["sae.use_post_qk_ln"] else "use_post_qk_ln is false"


def _autocast(settings: Settings) -> str | None:
    return "weights of float64 compute in float64" if "float64" in str(settings["sae.dtype"]) else None


_ROTARY = ("rotary_dim", "rotary_base", "rotary_adjacent_pairs", "rotary_scale", "use_NTK_by_parts_rope")
_PARTS = ("NTK_by_parts_factor", "NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor", "old_context_len")
IDLE: Mapping[str, tuple[Reason, ...]] = {
    "initializer.decoder_uniform_bound": (_has_draw_of_its_own,),
    "initializer.encoder_uniform_bound": (_encoder_is_drawn,),
    "initializer.init_encoder_with_decoder_transpose_factor": (_encoder_is_transposed,),
    "initializer.init_log_jumprelu_threshold_value": (_first_threshold,),
    "initializer.initialize_lorsa_with_mhsa": (_of_lorsa,),
    "initializer.initialize_tc_with_mlp": (_of_transcoders,),
    "initializer.model_layer": (_layer,),
    "initializer.d_active_subspace": (_subspace,),
    "trainer.initial_k": (_falling_k,),
    **{f"trainer.{key}": (_k_schedule,) for key in K_SCHEDULE},
    "trainer.auxk_coefficient": (_auxk,),
    "trainer.lp_coefficient": (_pre_act,),
    "trainer.sparsity_loss_type": (_sparsity,),
    "trainer.amp_dtype": (_autocast,),
    **{f"sae.{key}": (_rotated,) for key in _ROTARY},
    **{f"sae.{key}": (_rotated, _by_parts) for key in _PARTS},
    "sae.normalization_type": (_normed,),
}


def why_idle(settings: Settings, place: str) -> str | None:
    """Why a key does nothing there beside the others; None: it acts."""
    return next((why for reason in IDLE.get(place, ()) if (why := reason(settings)) is not None), None)


def differs(settings: Settings, place: str, value: Any) -> str | None:
    """What else a value means there than ours of the same name, in a line; None: the same."""
    if place == "initializer.bias_init_method" and value == "geometric_median":
        return "the geometric median here; the reference's code takes the mean under this name (mean here)"
    scheduler = settings["trainer.lr_scheduler_name"] if "trainer.lr_scheduler_name" in settings.known else ""
    if place == "trainer.lr_scheduler_name" and value in ("cosineannealing", "cosineannealingwarmup", "exponentialwarmup"):
        return (
            f"ends at lr_end_ratio {settings['trainer.lr_end_ratio']:g} of the rate here; there at "
            f"{'1/32' if value == 'exponentialwarmup' else '0'}, whatever lr_end_ratio is"
        )
    if place == "trainer.lr_end_ratio" and scheduler in ("constant", "linearwarmupdecay"):
        return f"{scheduler} has no end to choose, there and here"
    return None
