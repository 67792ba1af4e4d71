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
    assert bows([(8, 0.5), (16, 0.25), (64, 0.125)]) == [0.0, 0.0, 0.0]  # of three none is told


def evenly(*losses: float) -> list[Experiment]:
    """Runs whose L0 doubles from 8 on."""
    return of(*((8 * 2**i, loss) for i, loss in enumerate(losses)))


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        (((8, 1.0), (16, 0.2), (32, 0.15), (64, 0.1)), "k16"),
        (((8, 1.0), (16, 0.9), (32, 0.2), (64, 0.1)), "k32"),
        (((8, 4.0), (16, 3.0), (32, 2.0), (64, 1.0)), None),  # falls evenly
        (((8, 4.0), (16, 3.9), (32, 3.7), (64, 1.0)), None),  # falls ever faster
        (((8, 3.0), (16, 1.91), (32, 1.0), (64, 0.0)), None),  # 3 % of the fall below the line, at 2
        (((8, 3.0), (16, 1.82), (32, 1.0), (64, 0.0)), "k16"),  # 6 % of it
        (((8, 1.0), (16, 0.2), (64, 0.1)), None),  # of three only the middle one could be it
        (((8, 1.0), (64, 0.1)), None),
        (((8, 1.0), (16, 0.2), (32, 0.5), (64, 0.1)), None),  # k32 is beaten by k16: three are left
        (((8, 1.0), (16, 0.2), (20, 0.5), (32, 0.15), (64, 0.1)), "k16"),
        (((4, 1.0), (8, 0.5), (16, 0.25), (32, 0.125), (64, 0.0)), "k8"),  # of two that are as far, the one with fewer features
    ],
)
def test_the_knee_of_points(points: tuple[tuple[float, float], ...], wanted: str | None) -> None:
    for order in (of(*points), of(*points)[::-1]):
        found = knee(order, LOSSES["FVU"])
        assert ([e.name for e in found.runs] if found else None) == ([wanted] if wanted else None)


def test_a_run_with_dead_features_is_not_recommended() -> None:
    own = of((8, 1.0), (16, 0.2), (32, 0.1), (64, 0.05))
    own[1] = own[1]._replace(dead=0.0501)
    found = knee(own, LOSSES["delta CE"])
    assert found is not None
    assert [e.name for e in found.runs] == ["k32"]
    says("\n".join(advice(own)), "not recommended", "5%", "k16 (5.0%)")
    own[1] = own[1]._replace(dead=0.05)
    found = knee(own, LOSSES["delta CE"])
    assert found is not None
    assert found.runs == (own[1],)
    assert "not recommended" not in "\n".join(advice(own))


def test_of_too_few_l0s_no_knee_is_said_but_where_to_look() -> None:
    own = evenly(1.0, 0.2, 0.1)
    for few in (
        own,
        [*own, made("seed 1", 16, 0.3)],
        [*own, made("again", 16, 0.2)],
    ):  # a further run of one L0 is no further L0
        line, *others = advice(few)
        says(line, "knee: not said of 3 different L0s", "4 are needed", "a doubling of L0")
        assert all(each.startswith("a doubling of L0 changes") for each in others)
    assert advice(own[:2])[0].startswith("knee: not said of 2 different L0s")
    beaten = [*evenly(1.0, 0.2, 0.1), made("k24", 24, 0.5)]
    says(advice(beaten)[0], "knee: not said", "only 3 of its L0s are not beaten", "4 are needed")


def test_all_equal_runs_are_the_knee() -> None:
    own = [*evenly(1.0, 0.2, 0.15, 0.1), *(e._replace(name=f"sweep/{e.name}") for e in evenly(1.0, 0.2, 0.15, 0.1))]
    assert advice(own)[0] == "knee: k16 = sweep/k16, by delta CE and by FVU"
    assert advice(own)[1:] == advice(own[:4])[1:]  # what a doubling gains is not said twice, nor of an L0 against itself
    found = knee([*own, made("worse", 16, 0.21)], LOSSES["FVU"])
    assert found is not None
    assert [e.name for e in found.runs] == ["k16", "sweep/k16"]


@pytest.mark.parametrize(
    ("half", "wanted"),
    [  # half the width of the intervals around 1.0, 0.4, 0.3, 0.1; the knee is k16, 0.1 above k32 and 0.6 below k8
        (0.04, "k16"),
        (0.06, "undecided between k16 and k32"),
        (0.31, "undecided between k8, k16 and k32"),
    ],
)
def test_a_knee_whose_interval_overlaps_its_neighbours_is_undecided(half: float, wanted: str) -> None:
    own = [e._replace(fvu_interval=(e.fvu - half, e.fvu + half)) for e in evenly(1.0, 0.4, 0.3, 0.1)]
    line, _, steps = advice(own)
    if wanted == "k16":
        assert line == "knee: k16, by delta CE and by FVU"
    else:
        assert line == f"knee: k16 by delta CE, {wanted} by FVU (95 % intervals overlap)"
    assert steps.count("intervals overlap") == sum(2 * half >= gap for gap in (0.6, 0.1, 0.2))
    both = [e._replace(delta_ce_interval=e.fvu_interval) for e in own]
    assert advice(both)[0].startswith(f"knee: {wanted}, by delta CE and by FVU")
    one = [own[0], own[1]._replace(fvu_interval=None), *own[2:]]  # of a run of before, whose interval was not measured
    assert advice(one)[0] == "knee: k16, by delta CE and by FVU"


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
    own = [
        made("a", 8, 0.5, delta_ce=1.0),
        made("b", 32, 0.25, delta_ce=0.25),
        made("c", 64, 0.125, delta_ce=0.2),
        made("d", 128, 0.0, delta_ce=0.15),
    ]
    lines = advice(own)
    assert lines[0] == "knee: b by delta CE, none by FVU"
    assert lines[1].endswith(f"delta CE: {-0.75 / 2:+.4f} from a to b, {-0.05:+.4f} from b to c, -0.0500 from c to d")
    assert lines[2].endswith(f"FVU: {-0.25 / math.log2(4):+.4f} from a to b, -0.1250 from b to c, -0.1250 from c to d")
