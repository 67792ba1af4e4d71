"""Which of several runs along L0 to take: what a doubling of L0 gains, and from where on it gains little.

Runs are compared along L0 where they are of one group and differ in nothing else that makes a dictionary better: kind,
activation function, width and tokens trained on. What chance is worth is found by drawing the documents again, the same ones
for all runs (redrawn.py); where those of a run are not known, or are others, by the intervals of each run by itself.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.plots.charts import number
from pipeline.plots.experiment import Experiment
from pipeline.plots.pareto import front
from pipeline.plots.redrawn import Array, knees, redrawn_losses
from pipeline.redraws import DRAWS, TAIL

MOST_DEAD = 0.05  # share of dead features above which a run is not recommended
LEAST_BOW = 0.05  # share of the whole fall by which a knee lies below the straight line
FEWEST = 4  # different L0s of a curve that may have a knee: of three it could only be the one in the middle
KNEE = "knee"  # how its line begins
DECIDED = 1 - 2 * TAIL  # share of the redraws that a knee is decided by
OVERLAP = "95 % intervals overlap"
HOLDS_0 = "which holds 0"
RULES = {
    KNEE: "the run farthest below the straight line from the first to the last one, loss against log L0, by "
    f"{LEAST_BOW:.0%} of the whole fall or more; of {FEWEST} or more L0s; never the first, the last, or one with more than "
    f"{MOST_DEAD:.0%} dead features",
    "redraws": f"the evaluated documents are drawn again {DRAWS:,} times, as many as there are, the same for all runs; each "
    "draw has losses and a knee of its own. Said is how many of them have this knee, and behind what a doubling changes the "
    f"ends of the middle {DECIDED:.0%} of the draws",
    "undecided": f"no knee has {DECIDED:.0%} of the redraws; named are those, or none, that have them together. Of runs that "
    "were not evaluated on the same documents, or have kept no sums of these: the 95 % interval of the knee overlaps that of "
    "its neighbour on the curve",
}


class Loss(NamedTuple):
    """What runs are compared by.

    Attributes:
        field: of an :class:`Experiment`, to which `_interval` is appended.
    """

    field: str

    def of(self, e: Experiment) -> float:
        """The loss of a run."""
        return float(getattr(e, self.field))

    def overlaps(self, a: Experiment, b: Experiment) -> bool:
        """Whether the 95 % intervals of two runs have a value in common; False where one was not measured."""
        ends = [getattr(e, f"{self.field}_interval") for e in (a, b)]
        return None not in ends and max(low for low, _ in ends) <= min(high for _, high in ends)

    def redrawn(self, runs: Sequence[Experiment]) -> Array | None:
        """The losses of runs in each redraw of their documents, [draws, runs]; None: these are not the same or not known."""
        found = []
        for e in runs:
            documents = None if e.documents is None else e.documents.documents
            if documents is None:
                return None
            found.append(documents)
        return redrawn_losses(found, self.field, [self.of(e) for e in runs])


LOSSES = {"delta CE": Loss("delta_ce"), "FVU": Loss("fvu")}


class Knee(NamedTuple):
    """The knee of a curve.

    Attributes:
        runs: that are it: one, or several of equal L0 and loss.
        beside: neighbours on the curve, from which its interval does not tell it.
    """

    runs: tuple[Experiment, ...]
    beside: tuple[Experiment, ...]


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


def levels(own: Sequence[Experiment], loss: Loss) -> list[tuple[Experiment, ...]]:
    """The runs of a curve that no other one beats, by growing L0; those of equal L0 and loss together."""
    return [tuple(same) for _, same in itertools.groupby(front(own, loss.of), lambda e: (e.l0, loss.of(e)))]


def knee(own: Sequence[Experiment], loss: Loss) -> Knee | None:
    """The knee by the rule (RULES); None: there is none.

    Args:
        own: the runs of a curve, in any order; what another one beats is left out.
        loss: delta cross entropy or FVU.
    """
    best = levels(own, loss)
    far = bows([(same[0].l0, loss.of(same[0])) for same in best])
    alive = [any(e.dead <= MOST_DEAD for e in same) for same in best]
    bow, at = max(((bow, -i) for i, bow in enumerate(far) if alive[i]), default=(0.0, 0))
    if bow < LEAST_BOW:
        return None
    runs = tuple(e for e in best[-at] if e.dead <= MOST_DEAD)
    neighbours = [best[i][0] for i in (-at - 1, -at + 1) if 0 <= i < len(best)]
    return Knee(runs, tuple(e for e in neighbours if loss.overlaps(e, runs[0])))


def curves(own: Sequence[Experiment]) -> dict[str, list[Experiment]]:
    """{what they have in common: experiments that differ in L0 alone, by growing L0}, of the experiments of a group."""
    found: dict[str, list[Experiment]] = {}
    for e in sorted(own, key=lambda e: e.l0):
        width = dict(e.stated).get("dictionary.expansion_factor")
        parts = [e.gate, f"expansion {width}" if width else "", "" if e.trained is None else f"{number(e.trained)} tokens"]
        found.setdefault(", ".join(part for part in parts if part), []).append(e)
    return found


def advice(own: Sequence[Experiment]) -> list[str]:
    """Lines on the experiments of a group: the knee of each loss, what a doubling of L0 gains, what is not recommended; nothing
    where none differ in L0 alone."""
    lines = []
    for of, runs in _several(own):
        lines.append(f"{KNEE}{of}: {_knees(runs)}")
        lines += [f"a doubling of L0 changes {label}{of}: {_steps(runs, loss)}" for label, loss in LOSSES.items()]
        if dead := [f"{e.name} ({e.dead:.1%})" for e in runs if e.dead > MOST_DEAD]:
            lines.append(f"not recommended{of}, more than {MOST_DEAD:.0%} of the features are dead: {', '.join(dead)}")
    return lines


def knee_lines(own: Sequence[Experiment], *, brief: bool = False) -> list[str]:
    """Of :func:`advice` the lines on the knee; brief: without how sure it is."""
    return [f"{KNEE}{of}: {_knees(runs, brief)}" for of, runs in _several(own)]


def _several(own: Sequence[Experiment]) -> list[tuple[str, list[Experiment]]]:
    """(what is said of it where there are others, its runs) of each curve."""
    found = {name: runs for name, runs in curves(own).items() if len({e.l0 for e in runs}) > 1}
    return [(f" ({name})" if len(found) > 1 else "", runs) for name, runs in found.items()]


class Said(NamedTuple):
    """The knee of a curve in words.

    Attributes:
        word: its name, or which ones it is undecided between.
        share: of the redraws that it has; "": they are not known, or stand with the names.
        why: it is not decided, or not said.
        brief: the word without shares; "": it has none.
    """

    word: str
    share: str = ""
    why: str = ""
    brief: str = ""


def _knees(runs: Sequence[Experiment], brief: bool = False) -> str:
    """The knee of a curve by each loss, in words; brief: without how sure it is."""
    n = len({e.l0 for e in runs})
    if n < FEWEST:
        return f"not said of {n} different L0s, {FEWEST} are needed; look at what a doubling of L0 changes"
    said = {label: _knee_in_words(runs, loss) for label, loss in LOSSES.items()}
    if brief:
        said = {label: Said(each.brief or each.word) for label, each in said.items()}
    (word, share, why, _), *others = said.values()
    if all((each.word, each.why, bool(each.share)) == (word, why, bool(share)) for each in others):
        shares = f" (in {' and '.join(each.share for each in said.values())} of redraws)" if share else ""
        return f"{word}, by {' and by '.join(LOSSES)}{shares}{why}"
    shares_of = {label: f" (in {each.share} of redraws)" if each.share else "" for label, each in said.items()}
    return ", ".join(f"{each.word} by {label}{shares_of[label]}{each.why}" for label, each in said.items())


def _knee_in_words(runs: Sequence[Experiment], loss: Loss) -> Said:
    if (n := len(levels(runs, loss))) < FEWEST:
        return Said("not said", why=f" (only {n} of its L0s are not beaten by another run, {FEWEST} are needed)")
    found, losses = knee(runs, loss), loss.redrawn(runs)
    if losses is not None:
        return _of_redraws(runs, losses, found)
    if found is None:
        return Said("none")
    if not found.beside:
        return Said(_names(found.runs))
    between = sorted([found.runs, *((e,) for e in found.beside)], key=lambda same: same[0].l0)
    return Said(_undecided([_names(same) for same in between]), why=f" ({OVERLAP})")


def _of_redraws(runs: Sequence[Experiment], losses: Array, found: Knee | None) -> Said:
    """The knee, by which one the redraws have: decided where enough of them have the one that was found."""
    chosen = knees(losses, [e.l0 for e in runs], [e.dead <= MOST_DEAD for e in runs], FEWEST, LEAST_BOW)
    counts = collections.Counter(tuple(np.flatnonzero(row).tolist()) for row in chosen)
    own = () if found is None else tuple(i for i, e in enumerate(runs) if any(e is each for each in found.runs))
    if counts[own] >= DECIDED * len(losses):
        return Said(_word(runs, own), _percent(counts[own], len(losses)))
    likely, together = [own], counts[own]
    for which, n in counts.most_common():
        if together < DECIDED * len(losses) and which != own:
            likely, together = [*likely, which], together + n
    likely.sort(key=lambda which: (-counts[which], which))
    names = [_word(runs, which) for which in likely]
    shares = [_percent(counts[which], len(losses)) for which in likely]
    return Said(_undecided([f"{name} ({share})" for name, share in zip(names, shares, strict=True)]), brief=_undecided(names))


def _word(runs: Sequence[Experiment], which: Sequence[int]) -> str:
    return _names([runs[i] for i in which]) or "none"


def _percent(n: int, of: int) -> str:
    """Rounded down, so that nothing below a bound is written as if it had reached it."""
    return f"{100 * n // of} %"


def _undecided(names: Sequence[str]) -> str:
    *others, last = names
    return f"undecided between {', '.join(others)} and {last}"


def _names(same: Sequence[Experiment]) -> str:
    return " = ".join(e.name for e in same)


def _steps(runs: Sequence[Experiment], loss: Loss) -> str:
    """The change of the loss for each doubling of L0, from one run to the next of those that no other one beats."""
    said, losses = [], loss.redrawn(runs)
    places = {id(e): i for i, e in enumerate(runs)}
    for (a, *_), (b, *_) in itertools.pairwise(levels(runs, loss)):
        if a.l0 > 0:
            doublings = math.log2(b.l0 / a.l0)
            change = f"{(loss.of(b) - loss.of(a)) / doublings:+.4f}"
            if losses is None:
                said.append(f"{change} from {a.name} to {b.name}{f' ({OVERLAP})' if loss.overlaps(a, b) else ''}")
                continue
            changes = (losses[:, places[id(b)]] - losses[:, places[id(a)]]) / doublings
            low, high = np.quantile(changes, [TAIL, 1 - TAIL]).tolist()
            zero = f", {HOLDS_0}" if low <= 0 <= high else ""
            said.append(f"{change} ({low:+.4f} to {high:+.4f}{zero}) from {a.name} to {b.name}")
    return ", ".join(said) or "nothing is gained by a larger one"
