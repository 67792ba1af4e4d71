"""Which of several runs along L0 to take: what a doubling of L0 gains, and from where on it gains little.

Runs are compared along L0 where they are of one group and differ in nothing else that makes a dictionary better: kind,
activation function, width and tokens trained on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from pipeline.plots.charts import number
from pipeline.plots.experiment import Experiment
from pipeline.plots.pareto import front

MOST_DEAD = 0.05  # share of dead features above which a run is not recommended
LEAST_BOW = 0.05  # share of the whole fall by which a knee lies below the straight line
FEWEST = 3  # runs of a curve that may have a knee
KNEE = "knee"  # how its line begins
LOSSES: dict[str, Callable[[Experiment], float]] = {"delta CE": lambda e: e.delta_ce, "FVU": lambda e: e.fvu}
RULE = (
    "knee: the run farthest below the straight line from the first to the last one, loss against log L0, by at least "
    f"{LEAST_BOW:.0%} of the whole fall; of {FEWEST} or more runs that differ in L0 alone, without those with more than "
    f"{MOST_DEAD:.0%} dead features. The first and the last run cannot be it: with another range of L0 it may move"
)


def bows(points: Sequence[tuple[float, float]]) -> list[float]:
    """How far each point lies below the straight line from the first to the last one, as a share of the whole fall.

    Args:
        points: (L0, loss) by growing L0, each loss smaller than that before; L0 is taken by its logarithm.
    """
    if len(points) < FEWEST or points[0][0] <= 0:
        return [0.0] * len(points)
    x = [math.log2(l0) for l0, _ in points]
    first, last = points[0][1], points[-1][1]
    fall, way = first - last, x[-1] - x[0]
    return [(first - fall * (each - x[0]) / way - loss) / fall for each, (_, loss) in zip(x, points, strict=True)]


def knee(own: Sequence[Experiment], loss: Callable[[Experiment], float]) -> Experiment | None:
    """The run of a curve by the rule (RULE); None: it has no knee.

    Args:
        own: those of a curve, in any order; what another one beats is left out.
        loss: delta cross entropy or FVU.
    """
    best = front(own, loss)
    far = bows([(e.l0, loss(e)) for e in best])
    bow, at = max(((bow, -i) for i, bow in enumerate(far) if best[i].dead <= MOST_DEAD), default=(0.0, 0))
    return best[-at] if bow >= LEAST_BOW else None


def curves(own: Sequence[Experiment]) -> dict[str, list[Experiment]]:
    """{what they have in common: experiments that differ in L0 alone, by growing L0}, of the experiments of a group."""
    found: dict[str, list[Experiment]] = {}
    for e in sorted(own, key=lambda e: e.l0):
        width = dict(e.stated).get("dictionary.expansion_factor")
        parts = [e.gate, f"expansion {width}" if width else "", "" if e.trained is None else f"{number(e.trained)} tokens"]
        found.setdefault(", ".join(part for part in parts if part), []).append(e)
    return found


def advice(own: Sequence[Experiment]) -> list[str]:
    """Lines on the experiments of a group: what a doubling of L0 gains, the knee of each loss, what is not recommended; nothing
    where none differ in L0 alone."""
    several = {name: runs for name, runs in curves(own).items() if len({e.l0 for e in runs}) > 1}
    lines = []
    for name, runs in several.items():
        of = f" ({name})" if len(several) > 1 else ""
        named = {label: found.name if (found := knee(runs, loss)) else "none" for label, loss in LOSSES.items()}
        n = len({e.l0 for e in runs})
        if n < FEWEST:
            lines.append(f"{KNEE}{of}: not said of {n} runs, {FEWEST} are needed")
        elif len(set(named.values())) == 1:
            lines.append(f"{KNEE}{of}: {named.popitem()[1]}, by {' and by '.join(LOSSES)}")
        else:
            lines.append(f"{KNEE}{of}: {', '.join(f'{name} by {label}' for label, name in named.items())}")
        lines += [f"a doubling of L0 changes {label}{of}: {_steps(runs, loss)}" for label, loss in LOSSES.items()]
        if dead := [f"{e.name} ({e.dead:.1%})" for e in runs if e.dead > MOST_DEAD]:
            lines.append(f"not recommended{of}, more than {MOST_DEAD:.0%} of the features are dead: {', '.join(dead)}")
    return lines


def _steps(runs: Sequence[Experiment], loss: Callable[[Experiment], float]) -> str:
    """The change of the loss for each doubling of L0, from one run to the next of those that no other one beats."""
    best = front(runs, loss)
    said = [
        f"{(loss(b) - loss(a)) / math.log2(b.l0 / a.l0):+.4f} from {a.name} to {b.name}"
        for a, b in itertools.pairwise(best)
        if a.l0 > 0
    ]
    return ", ".join(said) or "nothing is gained by a larger one"
