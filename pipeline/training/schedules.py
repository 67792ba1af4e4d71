"""What changes over the steps of a run: learning rate, sparsity coefficient, k (SPEC 6).

Steps s count from 0 to T - 1. Every step count of the parameters is an int (steps) or a float in [0, 1] (a fraction of T);
zero means "none".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.errors import ParamsError, unknown_name
from pipeline.params.choices import K_SCHEDULES
from pipeline.shares import resolve_steps

if TYPE_CHECKING:
    from pipeline.params.dictionary_config import DictionaryConfig
    from pipeline.params.sections.trainer import TrainerParams

AUTO_LR_NUMERATOR = 3.6
AUTO_LR_SHORT = 0.055
FINE_TUNING = 0.2


def resolve_learning_rate(lr: float | str, config: DictionaryConfig, total_steps: int) -> float:
    """The learning rate: a number is itself, `auto` a rule measured on planted dictionaries,

        min(3.6 / sqrt(d_sae T), 0.055 T^(1/4) / sqrt(L d_in))

    with L the hook points that are read, and a skip term. A run of up to about 100 steps does not gain from larger steps than
    the second bound: Adam moves every weight by the learning rate, and weights start at about 1 / sqrt(d_in). Best rates at 5
    steps of 1,024 rows: 0.008, 0.005 and 0.003 at d_in 64, 256 and 768, whatever d_sae is (512 to 8,192); at 20 steps about
    1.4 times that. The first bound alone gives 0.036 at 5 steps of 256 x 2,048, with which FVU ends above 1. Features of
    several hook points are read or written at all of them at once, so that a step moves a reconstruction L times: a cross-
    layer transcoder of four layers diverged in 48 steps at 0.0128 and ended with an explained variance of 0.77 at half of
    that. So did a transcoder with a skip term at 0.0128; at 0.009 it reached 0.65.
    """
    if lr == "auto":
        d_sae, width = config.d_sae, config.d_in * (len(config.hooks_in) + bool(getattr(config, "skip", False)))
        return min(AUTO_LR_NUMERATOR / math.sqrt(d_sae * total_steps), AUTO_LR_SHORT * total_steps**0.25 / math.sqrt(width))
    return float(lr)


def with_rate(trainer: TrainerParams, config: DictionaryConfig, total_steps: int, *, fine_tuning: bool) -> TrainerParams:
    """The trainer's parameters with the learning rate as a number; `auto` is FINE_TUNING of it for weights that are trained.

    At the full rate the first steps undo such weights (docs/fine-tuning.md has what was measured).
    """
    rate = resolve_learning_rate(trainer.lr, config, total_steps)
    return dataclasses.replace(trainer, lr=rate * FINE_TUNING if fine_tuning and trainer.lr == "auto" else rate)


def _constant(s: int, T: int, W: int, C: int, w: float, e: float) -> float:
    return 1.0


def _linear_warm_up(s: int, W: int, start: float) -> float:
    """start + (1 - start) (s + 1) / W, at most 1; 1 where W is 0."""
    return min(1.0, start + (1.0 - start) * (s + 1) / W) if W else 1.0


def _cosine_warm_up(s: int, W: int, start: float) -> float:
    """start + (1 - start) (1 - cos(pi (s + 1) / W)) / 2 up to 1; 1 where W is 0."""
    return start + (1.0 - start) * (1.0 - math.cos(math.pi * min(1.0, (s + 1) / W))) / 2.0 if W else 1.0


def _constant_with_warmup(s: int, T: int, W: int, C: int, w: float, e: float) -> float:
    cool_down = e + (1.0 - e) * (T - s) / C if C else 1.0
    return min(w, 1.0, cool_down)


def _linear_warmup_decay(s: int, T: int, W: int, C: int, w: float, e: float) -> float:
    return min(w, (T - s) / (T - W) if T > W else 1.0)


def _cosine(progress: float, e: float) -> float:
    return e + (1.0 - e) * (1.0 + math.cos(math.pi * progress)) / 2.0


def _cosine_annealing(s: int, T: int, W: int, C: int, w: float, e: float) -> float:
    return _cosine(s / T, e)


def _cosine_annealing_warmup(s: int, T: int, W: int, C: int, w: float, e: float) -> float:
    return w if s < W else _cosine((s - W) / (T - W), e)


def _exponential_warmup(s: int, T: int, W: int, C: int, w: float, e: float) -> float:
    return w if s < W else e ** ((s - W) / (T - W))


WARM_UPS = {"linear": _linear_warm_up, "cosine": _cosine_warm_up}
_LR_SCHEDULES: dict[str, Callable[[int, int, int, int, float, float], float]] = {
    "constant": _constant,
    "constantwithwarmup": _constant_with_warmup,
    "linearwarmupdecay": _linear_warmup_decay,
    "cosineannealing": _cosine_annealing,
    "cosineannealingwarmup": _cosine_annealing_warmup,
    "exponentialwarmup": _exponential_warmup,
}
LR_SCHEDULERS = tuple(_LR_SCHEDULES)


class LearningRateSchedule:
    """Factor of the learning rate at step s; W warm-up steps, C cool-down steps, e end ratio, r start ratio.

        constant               1
        constantwithwarmup     min(w(s), 1, e + (1 - e)(T - s) / C)
        linearwarmupdecay      min(w(s), (T - s) / (T - W))
        cosineannealing        e + (1 - e)(1 + cos(pi s / T)) / 2
        cosineannealingwarmup  w(s) before W, then the cosine over the T - W steps left
        exponentialwarmup      w(s) before W, then e^((s - W) / (T - W))

    with the warm-up w(s) = min(1, r + (1 - r)(s + 1) / W), or half a cosine from r to 1 (Gemma Scope's), in every schedule.
    T - s counts the present step too.

    Args:
        name: one of the above.
        total_steps: T.
        warm_up, cool_down: steps (int) or fraction of T (float in [0, 1]); 0: none.
        start_ratio: r, where the warm-up starts.
        warm_up_shape: linear or cosine.
        end_ratio: e, where cool-down, cosine and exponential end.

    Raises:
        ParamsError: unknown name; exponentialwarmup to 0, which it would be at once.
    """

    def __init__(
        self,
        name: str,
        total_steps: int,
        *,
        warm_up: int | float = 0,
        cool_down: int | float = 0,
        start_ratio: float = 0.0,
        warm_up_shape: str = "linear",
        end_ratio: float = 0.0,
    ) -> None:
        if name not in _LR_SCHEDULES:
            raise ParamsError(f"trainer.lr_scheduler_name: {unknown_name('schedule', name, LR_SCHEDULERS)}")
        if warm_up_shape not in WARM_UPS:
            raise ParamsError(f"trainer.lr_warm_up_shape: {unknown_name('shape', warm_up_shape, WARM_UPS)}")
        if name == "exponentialwarmup" and end_ratio <= 0:
            raise ParamsError("trainer.lr_end_ratio: exponentialwarmup, e^((s - W)/(T - W)), needs an end above 0")
        self._factor, self._warm_up = _LR_SCHEDULES[name], WARM_UPS[warm_up_shape]
        self.total_steps = total_steps
        self.warm_up_steps = resolve_steps(warm_up, total_steps)
        self.cool_down_steps = resolve_steps(cool_down, total_steps)
        self.start_ratio, self.end_ratio = float(start_ratio), float(end_ratio)

    def __call__(self, s: int) -> float:
        """The factor at step s, 0 <= s < T."""
        w = self._warm_up(s, self.warm_up_steps, self.start_ratio)
        return self._factor(s, self.total_steps, self.warm_up_steps, self.cool_down_steps, w, self.end_ratio)


class CoefficientSchedule:
    """The sparsity coefficient lambda at step s: value * min(1, (s + 1) / W).

    Args:
        value: lambda after the warm-up.
        total_steps: T.
        warm_up: W, steps (int) or fraction of T (float in [0, 1]); 0: none.
    """

    def __init__(self, value: float, total_steps: int, warm_up: int | float = 0) -> None:
        self.value = float(value)
        self.warm_up_steps = resolve_steps(warm_up, total_steps)

    def __call__(self, s: int) -> float:
        """lambda at step s."""
        return self.value * _linear_warm_up(s, self.warm_up_steps, 0.0)


class KSchedule:
    """The k of the topk family at step s.

    k0 before step c, then with p = min(1, (s - c) / W):
        linear       k0 + (k* - k0) p
        exponential  k0 - (k0 - k*)(1 - e^(-a p)) / (1 - e^(-a))
    as ceil(round(value, 9)), never below k*.

    Args:
        top_k: k*, the final k.
        total_steps: T.
        initial_k: k0; None: k* throughout.
        warm_up: W, steps or fraction of T over which k falls; 0: at once.
        cold_booting: c, steps or fraction of T at k0 before that.
        schedule_type: `linear` or `exponential`.
        exponential_factor: a; 0 is the linear limit.

    Raises:
        ParamsError: unknown schedule_type.
    """

    def __init__(
        self,
        top_k: int,
        total_steps: int,
        *,
        initial_k: float | None = None,
        warm_up: int | float = 0.1,
        cold_booting: int | float = 0,
        schedule_type: str = "linear",
        exponential_factor: float = 3.0,
    ) -> None:
        if schedule_type not in K_SCHEDULES:
            raise ParamsError(f"trainer.k_schedule_type: {unknown_name('k schedule', schedule_type, K_SCHEDULES)}")
        self.top_k, self.initial_k = top_k, initial_k
        self.warm_up_steps = resolve_steps(warm_up, total_steps)
        self.cold_booting_steps = resolve_steps(cold_booting, total_steps)
        self.schedule_type, self.exponential_factor = schedule_type, exponential_factor

    def __call__(self, s: int) -> int:
        """k at step s."""
        if self.initial_k is None:
            return self.top_k
        since = s - self.cold_booting_steps
        if since < 0:
            p = 0.0
        else:
            p = min(1.0, since / self.warm_up_steps) if self.warm_up_steps else 1.0
        if self.schedule_type == "exponential" and self.exponential_factor:
            p = math.expm1(-self.exponential_factor * p) / math.expm1(-self.exponential_factor)
        value = self.initial_k + (self.top_k - self.initial_k) * p
        return max(self.top_k, math.ceil(round(value, 9)))
