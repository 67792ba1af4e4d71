"""Runs on the same documents, with these drawn again: against loops over the draws, and cases whose answer is known."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest
import torch

from pipeline.documents import Documents, Kept
from pipeline.evaluation.intervals import ratio_interval
from pipeline.plots.experiment import Experiment, distinct, told_apart
from pipeline.plots.knee import FEWEST, LEAST_BOW, LOSSES, MOST_DEAD, advice, knee
from pipeline.plots.redrawn import knees, redrawn_losses
from pipeline.redraws import DRAWS, redrawn_sums, redraws
from tests.messages import says

FVU = LOSSES["FVU"]


def run(name: str, l0: float, errors: np.ndarray, sizes: np.ndarray, digest: str = "same", dead: float = 0.0) -> Experiment:
    """A run with the losses of its documents, the same by both, and with the intervals that it has by itself."""
    loss, pair = float(errors.sum() / sizes.sum()), (errors.tolist(), sizes.tolist())
    ends = ratio_interval(torch.from_numpy(errors), torch.from_numpy(sizes))
    kept = Kept.of(Documents(digest, {"fvu_ordinary": pair, "delta_ce": pair}))
    found = Experiment(name, "demo, blocks.2", "sae topk", l0, loss, loss, dead, trained=1000.0, gate="sae topk")
    return found._replace(fvu_interval=ends, delta_ce_interval=ends, documents=kept)


def runs(losses: dict[float, float], hard: float, own: float, n: int = 60, seed: int = 0) -> list[Experiment]:
    """Of documents that are `hard` apart for all runs alike, and `own` for each run by itself."""
    rng = np.random.default_rng(seed)
    sizes, shared = rng.integers(20, 200, n).astype(float), hard * rng.standard_normal(n)
    made = []
    for l0, loss in losses.items():
        errors = sizes * (loss + shared + own * rng.standard_normal(n))
        errors += sizes * (loss - errors.sum() / sizes.sum())  # the loss is as stated
        made.append(run(f"k{l0:g}", l0, errors, sizes))
    return made


def by_loops(own: list[Experiment]) -> list[tuple[str, ...]]:
    """The names of the knee in each draw, with the rule for single runs, on ratios that are added up one by one."""
    pairs = [e.documents.documents.of("fvu") for e in own if e.documents and e.documents.documents]
    found = []
    for rows in redraws(len(pairs[0][0])):
        for row in rows.tolist():
            losses = [math.fsum(over[i] for i in row) / math.fsum(under[i] for i in row) for over, under in pairs]
            drawn = knee([e._replace(fvu=loss) for e, loss in zip(own, losses, strict=True)], FVU)
            found.append(tuple(sorted(e.name for e in drawn.runs)) if drawn else ())
    return found


def in_arrays(own: list[Experiment]) -> list[tuple[str, ...]]:
    losses = FVU.redrawn(own)
    assert losses is not None
    chosen = knees(losses, [e.l0 for e in own], [e.dead <= MOST_DEAD for e in own], FEWEST, LEAST_BOW)
    return [tuple(sorted(e.name for e, here in zip(own, row, strict=True) if here)) for row in chosen]


def test_sums_of_draws_are_those_of_the_documents_drawn() -> None:
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((23, 3)))
    by_hand = torch.stack([values[row].sum(0) for rows in redraws(23) for row in rows])
    assert by_hand.shape == (DRAWS, 3)
    torch.testing.assert_close(redrawn_sums(values), by_hand)


OPEN = {8.0: 1.0, 16.0: 0.42, 32.0: 0.2, 64.0: 0.1, 128.0: 0.05}


@pytest.mark.parametrize("case", ["open", "beaten", "dead", "two of one L0", "equal", "even", "four", "three"])
def test_the_knee_of_each_draw_is_that_of_the_rule(case: str) -> None:
    own = runs(OPEN, hard=0.5, own=0.35, n=12)
    if case == "beaten":
        own = [*own, *(e._replace(name=f"other {e.name}", l0=e.l0 + 4) for e in runs(OPEN, 0.5, 0.5, 12, seed=1))]
    if case == "dead":
        own[2] = own[2]._replace(dead=0.2)
    if case == "two of one L0":
        own = [*own, *(e._replace(name=f"other {e.name}") for e in runs(OPEN, 0.5, 0.3, 12, seed=2))]
        own[1] = own[1]._replace(dead=0.2)
    if case == "equal":
        own = [*own, own[1]._replace(name="again")]
    if case == "even":
        own = runs({8.0: 3.0, 16.0: 1.85, 32.0: 1.0, 64.0: 0.0}, hard=0.5, own=0.3, n=12)
    if case == "four":
        own = own[1:]
    if case == "three":
        own = own[:3]
    wanted = by_loops(own)
    if case != "three":
        assert len(set(wanted)) > 1
    assert in_arrays(own) == wanted


def test_runs_that_differ_alike_on_all_documents_are_told_apart() -> None:
    """By itself each run is uncertain by far more than what lies between two of them: every document differs by the same."""
    own = runs({8.0: 1.0, 16.0: 0.4, 32.0: 0.3, 64.0: 0.2}, hard=2.0, own=0.01)
    assert all(FVU.overlaps(a, b) for a in own for b in own)
    line, *steps = advice(own)
    assert line == "knee: k16, by delta CE and by FVU (in 100 % and 100 % of redraws)"
    assert all("-0.6000 (-0.60" in step and "from k8 to k16, -0.1000 (-0.10" in step for step in steps)
    assert "which holds 0" not in "\n".join(steps)
    alone = [e._replace(documents=None) for e in own]
    says(advice(alone)[0], "undecided between k8, k16 and k32", "95 % intervals overlap")


def test_an_open_knee_has_the_shares_of_its_candidates() -> None:
    own = runs(OPEN, hard=0.5, own=0.35, n=12)
    counts = collections.Counter(by_loops(own))
    assert counts.most_common(1)[0][1] < 0.95 * DRAWS
    wanted, together = [], 0
    for names, n in counts.most_common():
        if together < 0.95 * DRAWS:
            wanted.append(f"{' = '.join(names) or 'none'} ({100 * n // DRAWS} %)")
            together += n
    line = advice(own)[0]
    *others, last = wanted
    assert line == f"knee: undecided between {', '.join(others)} and {last}, by delta CE and by FVU"


def test_the_interval_of_a_step_is_that_of_the_change() -> None:
    """Two runs, the difference of whose losses is a ratio of sums itself."""
    own = runs({8.0: 1.0, 16.0: 0.4, 64.0: 0.39}, hard=2.0, own=0.2)
    pairs = [e.documents.documents.of("fvu") for e in own if e.documents and e.documents.documents]
    said = []
    for (a, b), doublings in zip([(0, 1), (1, 2)], (1, 2), strict=True):
        difference = torch.tensor(pairs[b][0], dtype=torch.float64) - torch.tensor(pairs[a][0], dtype=torch.float64)
        low, high = ratio_interval(difference / doublings, torch.tensor(pairs[a][1], dtype=torch.float64)) or (0.0, 0.0)
        zero = ", which holds 0" if low <= 0 <= high else ""
        change = (own[b].fvu - own[a].fvu) / doublings
        said.append(f"{change:+.4f} ({low:+.4f} to {high:+.4f}{zero}) from {own[a].name} to {own[b].name}")
    assert advice(own)[-1] == f"a doubling of L0 changes FVU: {', '.join(said)}"
    assert ["which holds 0" in each for each in said] == [False, True]


def test_no_knee_may_be_decided_as_well() -> None:
    own = runs({8.0: 4.0, 16.0: 3.0, 32.0: 2.0, 64.0: 1.0}, hard=2.0, own=0.01)
    assert advice(own)[0] == "knee: none, by delta CE and by FVU (in 100 % and 100 % of redraws)"


def test_documents_that_are_others_or_not_known_leave_the_intervals() -> None:
    own = runs({8.0: 1.0, 16.0: 0.4, 32.0: 0.3, 64.0: 0.2}, hard=2.0, own=0.01)
    alone = advice([e._replace(documents=None) for e in own])

    def with_last(documents: Kept | None) -> list[str]:
        return advice([*own[:-1], own[-1]._replace(documents=documents)])

    kept = own[-1].documents.documents if own[-1].documents else None
    assert kept is not None
    over, under = kept.of("fvu") or ((), ())
    pair = (over, under)
    other = Documents("other", kept.sums)
    fewer = Documents("same", {"fvu_ordinary": (over[:-1], under[:-1]), "delta_ce": (over[:-1], under[:-1])})
    of_another_run = own[0].documents
    for case in (None, Kept(lambda: None), Kept.of(other), Kept.of(fewer), Kept.of(Documents("same", {})), of_another_run):
        assert with_last(case) == alone
    assert with_last(Kept.of(Documents("same", {"fvu": pair, "delta_ce": pair}))) == advice(own)
    half = with_last(Kept.of(Documents("same", {"fvu": pair})))
    says(half[0], "undecided between k8, k16 and k32 by delta CE (95 % intervals overlap), k16 by FVU (in 100 % of redraws)")
    one = Documents("same", {"fvu": ([1.0, 0.0], [2.0, 0.0])})
    assert redrawn_losses([one, one], "fvu", [0.5, 0.5]) is None  # one document, the other has no such token


def test_documents_are_read_once_and_only_where_runs_are_compared() -> None:
    own = runs({8.0: 1.0, 16.0: 0.4, 32.0: 0.3, 64.0: 0.2}, hard=2.0, own=0.01)
    read = []

    def reading(e: Experiment) -> Kept:
        kept = e.documents
        assert kept is not None
        return Kept(lambda: (read.append(e.name), kept.documents)[1])

    lazy = [e._replace(documents=reading(e)) for e in own]
    assert told_apart(distinct([*lazy, *(e._replace(name="workspace") for e in own)])[0]) == lazy
    assert advice([lazy[0], lazy[1]._replace(gate="other")]) == []
    assert read == []
    assert advice(lazy) == advice(lazy) == advice(own)
    assert read == [e.name for e in own]


def test_a_file_that_is_not_what_it_should_be_is_none() -> None:
    documents = Documents("ab", {"fvu_ordinary": ([0.1, 1 / 3], [1.0, 2.0]), "delta_ce": ([-1e-300, 0.0], [3.0, 0.0])})
    found = Documents.read(documents.content())
    assert found is not None
    assert (found.digest, {name: tuple(map(list, pair)) for name, pair in found.sums.items()}) == (
        "ab", {name: tuple(map(list, pair)) for name, pair in documents.sums.items()}
    )  # fmt: skip
    good = documents.content()
    for bad in (
        None,
        b"",
        b"[]",
        b"{}",
        good[:-20],
        good.replace(b'"ab"', b"null"),
        good.replace(b"[1.0, 2.0]", b"[1.0]"),
        good.replace(b"[1.0, 2.0]", b"[1.0, NaN]"),
        good.replace(b"[1.0, 2.0]", b'"x"'),
        b'{"digest": "ab", "sums": {"fvu": 1}}',
    ):
        assert Documents.read(bad) is None, bad
