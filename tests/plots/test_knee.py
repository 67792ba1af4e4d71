"""Which of several runs along L0 is recommended: the rule against points whose knee is known."""

from __future__ import annotations

import math

import pytest

from pipeline.plots.experiment import Experiment
from pipeline.plots.knee import LOSSES, advice, bows, curves, knee
from tests.messages import says


def made(name: str, l0: float, loss: float, dead: float = 0.0, **changes: object) -> Experiment:
    found = Experiment(name, "demo, blocks.2", "sae topk", l0, loss, loss, dead, trained=1000.0, gate="sae topk")
    return found._replace(**changes)


def of(*points: tuple[float, float]) -> list[Experiment]:
    return [made(f"k{l0:g}", l0, loss) for l0, loss in points]


def test_how_far_points_lie_below_the_line() -> None:
    """Against distances counted by hand: in log2 L0 the line falls by 0.25 each doubling."""
    assert bows([(4, 1.0), (8, 0.5), (16, 0.25), (32, 0.125), (64, 0.0)]) == [0.0, 0.25, 0.25, 0.125, 0.0]
    assert bows([(8, 0.5), (16, 0.25), (64, 0.25)][:2]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        (((8, 1.0), (16, 0.2), (32, 0.15), (64, 0.1)), "k16"),
        (((8, 1.0), (16, 0.9), (32, 0.2), (64, 0.1)), "k32"),
        (((8, 4.0), (16, 3.0), (32, 2.0), (64, 1.0)), None),  # falls evenly
        (((8, 4.0), (16, 3.9), (32, 3.7), (64, 1.0)), None),  # falls ever faster
        (((8, 1.0), (16, 0.46875), (32, 0.0)), None),  # 3 % of the fall below the line
        (((8, 1.0), (16, 0.4375), (32, 0.0)), "k16"),  # 6 % of it
        (((8, 1.0), (64, 0.1)), None),  # two points
        (((8, 1.0), (16, 0.2), (32, 0.5), (64, 0.1)), "k16"),  # k32 is beaten by k16
        (((4, 1.0), (8, 0.5), (16, 0.25), (32, 0.125), (64, 0.0)), "k8"),  # of two that are as far, the one with fewer features
    ],
)
def test_the_knee_of_points(points: tuple[tuple[float, float], ...], wanted: str | None) -> None:
    for order in (of(*points), of(*points)[::-1]):
        found = knee(order, LOSSES["FVU"])
        assert (found.name if found else None) == wanted


def test_a_run_with_dead_features_is_not_recommended() -> None:
    own = of((8, 1.0), (16, 0.2), (32, 0.1), (64, 0.05))
    own[1] = own[1]._replace(dead=0.0501)
    found = knee(own, LOSSES["delta CE"])
    assert found is not None
    assert found.name == "k32"
    says("\n".join(advice(own)), "not recommended", "5%", "k16 (5.0%)")
    own[1] = own[1]._replace(dead=0.05)
    assert knee(own, LOSSES["delta CE"]) == own[1]
    assert "not recommended" not in "\n".join(advice(own))


def test_only_runs_that_differ_in_l0_alone_are_a_curve() -> None:
    own = of((8, 1.0), (16, 0.2), (64, 0.1))
    wide = (("dictionary.expansion_factor", "32"),)
    others = [
        made("longer", 16, 0.1, trained=2000.0), made("relu", 16, 0.1, gate="sae relu"), made("wide", 16, 0.1, stated=wide)
    ]  # fmt: skip
    assert [[e.name for e in runs] for runs in curves([*others, *own]).values()] == [
        ["k8", "k16", "k64"], ["longer"], ["relu"], ["wide"]
    ]  # fmt: skip
    assert advice([*own, *others]) == advice(own)
    assert advice(others) == []
    assert advice(own[:1]) == []


def test_what_a_doubling_gains_is_said() -> None:
    own = [made("a", 8, 0.5, delta_ce=1.0), made("b", 32, 0.25, delta_ce=0.25), made("c", 64, 0.125, delta_ce=0.2)]
    lines = advice(own)
    assert lines[0] == "knee: b by delta CE, none by FVU"
    assert lines[1].endswith(f"delta CE: {-0.75 / 2:+.4f} from a to b, {-0.05:+.4f} from b to c")
    assert lines[2].endswith(f"FVU: {-0.25 / math.log2(4):+.4f} from a to b, -0.1250 from b to c")
    assert advice(own[:2])[0] == "knee: not said of 2 runs, 3 are needed"
