"""Schedules against the worked checks of SPEC 6 and formulas written out naively."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import ParamsError
from pipeline.params.schema import TrainerParams
from pipeline.training.schedules import (
    LR_SCHEDULERS,
    CoefficientSchedule,
    KSchedule,
    LearningRateSchedule,
    resolve_learning_rate,
    with_rate,
)


def test_constant_with_warmup_worked_check() -> None:
    factor = LearningRateSchedule("constantwithwarmup", 100, warm_up=10, cool_down=20, end_ratio=1 / 32)
    assert factor(0) == pytest.approx(0.1)
    assert [factor(s) for s in range(9, 81)] == [1.0] * 72
    assert factor(99) == 0.0796875


def test_fractions_are_of_the_run_and_zero_is_none() -> None:
    fractions = LearningRateSchedule("constantwithwarmup", 97, warm_up=0.1, cool_down=0.3, end_ratio=0.0)
    assert (fractions.warm_up_steps, fractions.cool_down_steps) == (9, 29)
    assert LearningRateSchedule("constantwithwarmup", 10, warm_up=0.7, cool_down=0).warm_up_steps == 7  # 0.7 * 10 < 7 in floats
    for name in LR_SCHEDULERS:
        factor = LearningRateSchedule(name, 10, warm_up=0, cool_down=0, end_ratio=0.5)
        assert all(math.isfinite(factor(s)) for s in range(10))
    assert LearningRateSchedule("constantwithwarmup", 10)(0) == 1.0


def naive(name: str, s: int, T: int, W: int, C: int, r: float, e: float) -> float:
    warm = r + (1 - r) * (s + 1) / W if s < W else 1.0
    if name == "constant":
        return 1.0
    if name == "constantwithwarmup":
        return min(1.0, warm, e + (1 - e) * (T - s) / C)
    if name == "linearwarmupdecay":
        return min(warm, (T - s) / (T - W))
    if name == "cosineannealing":
        return e + (1 - e) * (1 + math.cos(math.pi * s / T)) / 2
    if s < W:
        return warm
    if name == "cosineannealingwarmup":
        return e + (1 - e) * (1 + math.cos(math.pi * (s - W) / (T - W))) / 2
    return e ** ((s - W) / (T - W))


@pytest.mark.parametrize("name", LR_SCHEDULERS)
def test_every_schedule_is_its_formula(name: str) -> None:
    T, W, C, r, e = 60, 12, 18, 0.1, 0.05
    factor = LearningRateSchedule(name, T, warm_up=W, cool_down=C, start_ratio=r, end_ratio=e)
    for s in range(T):
        assert factor(s) == pytest.approx(naive(name, s, T, W, C, r, e), abs=1e-12), s


def test_the_warm_up_starts_at_its_ratio() -> None:
    factor = LearningRateSchedule("cosineannealingwarmup", 1000, warm_up=100, start_ratio=0.1, end_ratio=1.0)
    assert factor(0) == pytest.approx(0.1 + 0.9 / 100)
    assert factor(99) == factor(500) == 1.0


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ParamsError, match=r"lr_scheduler_name.*did you mean 'constantwithwarmup'"):
        LearningRateSchedule("constantwithwarmups", 10)
    with pytest.raises(ParamsError, match=r"lr_end_ratio: exponentialwarmup.* above 0"):
        LearningRateSchedule("exponentialwarmup", 10, warm_up=2)
    with pytest.raises(ParamsError, match=r"k_schedule_type.*linear, exponential"):
        KSchedule(4, 10, schedule_type="cosine")


def test_auto_learning_rate() -> None:
    def rate(lr: float | str, d_in: int, steps: int, *hooks: str) -> float:
        several = {"kind": "crosscoder", "hook_points_in": hooks} if hooks else {"kind": "sae"}
        made = build_dictionary({**several, "d_in": d_in, "d_sae": 2048, "act_fn": "topk", "top_k": 4})
        return resolve_learning_rate(lr, made.config, steps)

    assert rate("auto", 128, 976) == pytest.approx(3.6 / math.sqrt(2048 * 976))
    assert rate(1e-3, 128, 976) == 1e-3
    # A short run takes the other bound: 0.055 * 16^(1/4) / sqrt(256), of four hook points half of it.
    assert rate("auto", 256, 16) == pytest.approx(0.055 * 2 / 16)
    assert rate("auto", 64, 16, "a", "b", "c", "d") == pytest.approx(0.055 * 2 / 16)
    with_skip = build_dictionary({"kind": "transcoder", "d_in": 128, "d_sae": 2048, "act_fn": "topk", "top_k": 4, "skip": True})
    assert resolve_learning_rate("auto", with_skip.config, 16) == pytest.approx(0.055 * 2 / 16)
    assert rate("auto", 256, 81) == pytest.approx(3.6 / math.sqrt(2048 * 81))  # the other bound would be 0.0103


def test_fine_tuning_takes_a_fifth_of_the_auto_rate() -> None:
    config = build_dictionary({"kind": "sae", "d_in": 128, "d_sae": 2048, "act_fn": "topk", "top_k": 4}).config
    auto = 3.6 / math.sqrt(2048 * 976)
    for lr, fine_tuning, wanted in (("auto", True, auto / 5), ("auto", False, auto), (1e-3, True, 1e-3), (1e-3, False, 1e-3)):
        made = with_rate(TrainerParams(lr=lr), config, 976, fine_tuning=fine_tuning)
        assert made.lr == pytest.approx(wanted)
        assert made == TrainerParams(lr=made.lr)


def test_coefficient_warms_up_linearly() -> None:
    coefficient = CoefficientSchedule(8e-5, 100, 0.1)
    assert [coefficient(s) for s in (0, 4, 9, 50)] == pytest.approx([8e-6, 4e-5, 8e-5, 8e-5])
    assert CoefficientSchedule(2.0, 100, 0)(0) == 2.0


def test_k_worked_checks() -> None:
    linear = KSchedule(10, 1000, initial_k=100, warm_up=10)
    assert [linear(s) for s in range(12)] == [100, 91, 82, 73, 64, 55, 46, 37, 28, 19, 10, 10]
    exponential = KSchedule(10, 1000, initial_k=100, warm_up=10, schedule_type="exponential", exponential_factor=3.0)
    assert exponential(5) == 27
    assert exponential(0) == 100
    assert exponential(10) == 10


def test_k_waits_at_its_start_and_falls_at_once_without_warm_up() -> None:
    k = KSchedule(10, 100, initial_k=20, warm_up=10, cold_booting=0.05)
    assert [k(s) for s in range(7)] == [20, 20, 20, 20, 20, 20, 19]
    assert [KSchedule(10, 100, initial_k=20, warm_up=0, cold_booting=2)(s) for s in range(4)] == [20, 20, 10, 10]
    assert KSchedule(10, 100)(0) == 10


def test_k_stays_at_top_k_where_the_schedule_would_start_below_it() -> None:
    k = KSchedule(10, 100, initial_k=4, warm_up=10)
    assert [k(s) for s in (0, 5, 10)] == [10, 10, 10]


@given(
    st.integers(1, 50),
    st.integers(0, 50),
    st.integers(0, 30),
    st.integers(0, 10),
    st.sampled_from(["linear", "exponential"]),
)
def test_k_never_rises_and_never_falls_below_top_k(top_k: int, more: int, warm_up: int, cold: int, kind: str) -> None:
    k = KSchedule(top_k, 100, initial_k=top_k + more, warm_up=warm_up, cold_booting=cold, schedule_type=kind)
    values = [k(s) for s in range(60)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == top_k
    assert values[0] == (top_k + more if cold or warm_up else top_k)


def test_the_cosine_warm_up() -> None:
    """Half a cosine: slow, fast, slow; the halves are symmetric about the middle of start ratio and 1."""
    factor = LearningRateSchedule("constantwithwarmup", 1000, warm_up=100, start_ratio=0.1, warm_up_shape="cosine")
    assert factor(49) == pytest.approx(0.55)
    assert factor(24) == pytest.approx(0.1 + 0.9 * (1 - 2**-0.5) / 2)
    assert factor(24) + factor(74) == pytest.approx(1.1)
    assert factor(99) == pytest.approx(1.0)
    assert factor(500) == pytest.approx(1.0)
    with pytest.raises(ParamsError, match=r"lr_warm_up_shape.*unknown shape 'square'"):
        LearningRateSchedule("constant", 10, warm_up_shape="square")
