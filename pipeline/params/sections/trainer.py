"""Optimiser, schedules, losses, logging and checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.errors import ParamsError
from pipeline.params.choices import K_SCHEDULES, MODEL_DTYPES, MODEL_LOSSES
from pipeline.params.fields import param
from pipeline.params.losses import SPARSITY_LOSSES
from pipeline.params.section import Section, rule, without_effect

WARMS_UP = ("constantwithwarmup", "linearwarmupdecay", "cosineannealingwarmup", "exponentialwarmup")
SCHEDULERS = ("constant", "cosineannealing", *WARMS_UP)
MODEL_LOSS = ("model_loss_steps", "model_loss_batches")
K_SCHEDULE = ("k_warmup_steps", "k_cold_booting_steps", "k_schedule_type", "k_exponential_factor")


@dataclass(frozen=True)
class TrainerParams(Section):
    """Optimiser, schedules, losses, logging, checkpoints."""

    NAME: ClassVar[str] = "trainer"
    OWN_KEYS: ClassVar[frozenset[str]] = frozenset()  # of the chosen sparsity loss

    lr: float | str = param(
        4e-4,
        more_than=0,
        words=("auto",),
        also_called=("learning_rate",),
        about="learning rate, or auto: 3.6 / sqrt(d_sae * steps), less under 100 steps and in fine-tuning; logged and stored",
    )
    optimizer: str = param(
        "adam", choices=("adam", "sparseadam"), about="adam | sparseadam (entries whose gradient is 0 are not updated)"
    )
    betas: tuple[float, float] = param((0.9, 0.999), at_least=0, less_than=1, about="Adam's decay rates of the two moments")
    eps: float = param(1e-8, more_than=0, about="Adam's epsilon")
    lr_scheduler_name: str = param(
        "constantwithwarmup",
        choices=SCHEDULERS,
        also_called=("lr_scheduler", "scheduler"),
        about="schedule of the learning rate",
    )
    lr_warm_up_steps: int | float = param(
        5000, steps=True, also_called=("warmup_steps", "lr_warmup_steps", "warmup"), about="warm-up of the learning rate"
    )
    lr_cool_down_steps: int | float = param(
        0.2, steps=True, also_called=("cooldown_steps", "lr_decay_steps"), about="linear decay at the end"
    )
    lr_start_ratio: float = param(0.0, at_least=0, at_most=1, about="share of lr at which a warm-up starts")
    lr_warm_up_shape: str = param(
        "linear",
        choices=("linear", "cosine"),
        about="of the warm-up, from lr_start_ratio to 1: linear | cosine (half a period)",
    )
    lr_end_ratio: float = param(0.03125, at_least=0, at_most=1, about="share of lr at the end")
    total_training_tokens: int = param(
        300_000_000,
        at_least=1,
        also_called=("total_tokens", "training_tokens"),
        about="tokens trained on; more than the store holds: further epochs, reshuffled",
    )
    initial_k: int | None = param(None, at_least=1, about="k at the start, falling to top_k; null: top_k throughout")
    k_warmup_steps: int | float = param(0.1, steps=True, about="over how long k falls")
    k_cold_booting_steps: int | float = param(0, steps=True, about="how long k stays at initial_k first")
    k_schedule_type: str = param("linear", choices=K_SCHEDULES, about="form of the fall of k")
    k_exponential_factor: float = param(3.0, more_than=0, about="steepness of the exponential fall")
    sparsity_loss_type: str | None = param(
        None, choices=SPARSITY_LOSSES, about="sparsity loss, times l1_coefficient (l0: jumprelu only; null: none)"
    )
    p: float = param(1.0, at_least=1, about="exponent of the power loss")
    tanh_stretch_coefficient: float = param(
        4.0, more_than=0, about="c of tanh and tanh-quad: a size well above 1/c counts as one feature"
    )
    frequency_scale: float = param(
        0.01, more_than=0, about="s of tanh-quad: features active more often than this share pay more than linearly"
    )
    l0_bandwidth: float = param(0.001, more_than=0, about="width of the window of the l0 loss, and of JumpReLU's with it")
    l1_coefficient: float = param(
        8e-5, at_least=0, also_called=("l1", "sparsity_coefficient"), about="weight of the sparsity loss"
    )
    l1_coefficient_warmup_steps: int | float = param(0.1, steps=True, about="linear warm-up of that weight")
    lp_coefficient: float | None = param(
        None, more_than=0, about="weight of the pre-act loss of inactive features (jumprelu), usual 3.0e-6; null: off"
    )
    target_l0: float | None = param(
        None, at_least=1, about="wanted mean L0 (relu, jumprelu; the topk family has top_k); null: off"
    )
    target_l0_mode: str = param(
        "threshold",
        choices=("threshold", "quadratic", "coefficient"),
        about="threshold (jumprelu) | quadratic (form of the l0 loss) | coefficient (l1_coefficient)",
    )
    target_l0_gain: float = param(
        0.3, more_than=0, at_most=2, about="gain of the steering in the modes threshold and coefficient"
    )
    topk_start_steps: int | float = param(0, steps=True, about="TopK gate at first (batchtopk, jumprelu; 0: none)")
    auxk_coefficient: float | None = param(
        None,
        more_than=0,
        also_called=("auxk_alpha", "auxk_coeff"),
        about="weight of the AuxK loss for dead features, usual 0.03125 (topk family); null: off",
    )
    k_aux: int = param(512, at_least=1, also_called=("auxk_k",), about="dead features per token that AuxK uses")
    dead_threshold: int | float = param(
        10_000_000, share=("tokens", "the run"), about="a feature is dead when so long not active"
    )
    revive_dead_features: bool = param(
        False, about="true: a feature dead for 64 d_sae / k tokens too is moved to the edge of the gate after each step"
    )
    decoder_constraint: str = param(
        "none", choices=("none", "unit_norm"), about="none | unit_norm (decoder rows of norm 1 after every step)"
    )
    matryoshka_widths: tuple[int | float, ...] | None = param(
        None, share=("features", "the dictionary"), about="nested prefixes trained too, as [0.0625, 0.25, 1.0] (null: off)"
    )
    model_loss: str | None = param(
        None,
        choices=MODEL_LOSSES,
        about="loss through the language model at the end of the run: kl (its KL divergence) | ce (cross entropy); null: none",
    )
    model_loss_steps: int | float = param(0.1, steps=True, about="last steps of the run that train on model_loss too")
    model_loss_batches: int = param(4, at_least=1, about="batches of tokens, as whole contexts, in each of these steps")
    clip_grad_norm: float = param(
        0.0, at_least=0, about="largest global L2 norm of the gradient, thresholds not counted; 0: off"
    )
    amp_dtype: str = param("float32", choices=MODEL_DTYPES, about="compute dtype of a step (weights stay float32)")
    gradient_accumulation_steps: int = param(1, at_least=1, about="equal parts that a batch is computed in, to save memory")
    jumprelu_lr_factor: float = param(0.1, at_least=0, about="learning rate of log thresholds, as a share of lr")
    log_frequency: int = param(1000, at_least=1, about="steps between logged metrics")
    n_checkpoints: int = param(10, at_least=0, about="weight snapshots kept over the run")
    checkpoint_schedule: str = param("linear", choices=("linear", "log"), about="spacing of the snapshots in steps")
    checkpoint_minutes: float = param(2.0, more_than=0, about="minutes between points from which a killed run resumes")

    @classmethod
    def chosen_by(cls, raw: Mapping[str, Any]) -> type[TrainerParams]:
        """The section with the keys that the chosen sparsity loss has of its own."""
        loss = raw.get("sparsity_loss_type")
        known = isinstance(loss, str) and loss in SPARSITY_LOSSES
        return _with_fields_of(cls, str(loss)) if known else cls  # type: ignore[arg-type]  # a class is hashable

    @property
    def steered_l0(self) -> float | None:
        """The L0 that thresholds are steered to (target_l0_mode threshold), or None."""
        return self.target_l0 if self.target_l0_mode == "threshold" else None

    @rule("lr_end_ratio")
    def _rate_does_not_vanish(self) -> str | None:
        if self.lr_scheduler_name != "exponentialwarmup" or self.lr_end_ratio > 0:
            return None
        return "is 0, so that exponentialwarmup, e^((s - W)/(T - W)), ends the training with the warm-up; give a positive share"

    @rule("initial_k")
    def _k_schedule_is_used(self) -> str | None:
        changed = "" if self.initial_k is not None else without_effect(TrainerParams, self, K_SCHEDULE)
        return f"is null, so that {changed}, or state the k at the start" if changed else None

    @rule("l1_coefficient")
    def _sparsity_loss_has_a_weight(self) -> str | None:
        if self.sparsity_loss_type is not None and self.l1_coefficient == 0:
            return (
                f"is 0, so that the {self.sparsity_loss_type} sparsity loss does nothing; "
                "give it a positive value, or set trainer.sparsity_loss_type to null"
            )
        return None

    @rule("target_l0_mode")
    def _mode_has_its_loss(self) -> str | None:
        if self.target_l0 is None:
            return None
        if self.target_l0_mode == "quadratic" and self.sparsity_loss_type != "l0":
            return (
                "quadratic is the form lambda * (L0 / target_l0 - 1)^2 of the l0 loss; trainer.sparsity_loss_type is "
                f"{self.sparsity_loss_type or 'null'}; set it to l0"
            )
        if self.target_l0_mode == "coefficient" and self.sparsity_loss_type is None:
            return "coefficient steers the weight of the sparsity loss, and trainer.sparsity_loss_type is null; set one"
        return None

    @rule("model_loss")
    def _model_loss_is_used(self) -> str | None:
        changed = "" if self.model_loss is not None else without_effect(TrainerParams, self, MODEL_LOSS)
        return f"is null, so that {changed}, or state the loss ({' or '.join(MODEL_LOSSES)})" if changed else None

    @rule("matryoshka_widths")
    def _widths_ascend(self) -> str | None:
        widths = self.matryoshka_widths
        if widths is None:
            return None
        if not widths:
            return "the list is empty; write null to train the whole dictionary only"
        if len({type(width) for width in widths}) > 1:
            return f"features (integers) and shares (as 1.0, not 1) cannot be mixed, got {list(widths)}"
        if any(a >= b for a, b in itertools.pairwise(widths)):
            return f"must ascend, got {list(widths)}"
        if isinstance(widths[-1], float) and widths[-1] != 1.0:
            return f"the last width is the whole dictionary, 1.0, got {widths[-1]}"
        return None


@functools.cache
def _with_fields_of(cls: Any, loss: str) -> type[TrainerParams]:
    own = SPARSITY_LOSSES.get(loss).fields
    if not own or set(own) <= cls.OWN_KEYS:
        return cls
    taken = sorted(set(own) & {field.name for field in dataclasses.fields(cls)})
    if taken:
        raise ParamsError(f"trainer.sparsity_loss_type: '{loss}' declares keys that trainer has already: {', '.join(taken)}")
    fields = [(name, annotation, default) for name, (annotation, default) in own.items()]
    named = f"{cls.__name__}_{loss.replace('-', '_')}"
    return dataclasses.make_dataclass(named, fields, bases=(cls,), frozen=True, namespace={"OWN_KEYS": frozenset(own)})
