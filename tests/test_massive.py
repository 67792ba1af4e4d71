"""The benchmark of massive rows: its cells, what it counts as met, and that a run measures what it says."""

from __future__ import annotations

import concurrent.futures
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import massive
from benchmarks.massive import (
    ALONE,
    BATCHES,
    DIRECTIONS,
    FACTORS,
    GATES,
    NOISE,
    OFF,
    RULE,
    SHARES,
    STEPS,
    Cell,
    Measured,
    Result,
    Run,
    cells,
    draw,
    hard_cells,
    measure,
    missed,
    run_all,
    runs_in,
    runs_of,
    table,
    table_of_lengths,
)
from pipeline.errors import NumericsError
from pipeline.norms import normalizer
from tests.messages import says

CASE = Cell(NOISE, 64, 100, 1, "topk", 256, 256)
SHORT = CASE._replace(share=16, steps=2, batch=64)


def measured(ordinary: float = 0.5, every: float = 0.1, error: str | None = None) -> Measured:
    return Measured(ordinary, every, 16.0, 1.0, error)


def test_every_two_values_meet_and_the_first_cell_is_the_case_that_was_met() -> None:
    found = cells()
    assert found[0] == CASE
    assert len(found) == len(set(found))
    assert 60 <= len(found) <= 90
    noise = [cell[1:] for cell in found if cell.rows == NOISE]
    values = (SHARES, FACTORS, DIRECTIONS, GATES, STEPS, BATCHES)
    for (i, first), (j, second) in itertools.combinations(enumerate(values), 2):
        pairs = {(cell[i], cell[j]) for cell in noise}
        assert set(itertools.product(first, second)) - pairs == ({(2000, 4096)} if (i, j) == (4, 5) else set())  # type: ignore[call-overload]
    assert {cell.gate for cell in found if cell.rows != NOISE} == set(GATES)
    assert len(set(hard_cells())) == 12


def test_the_rows_of_the_case_that_was_met() -> None:
    training, rows_massive, held_out, held_massive = draw(CASE)
    torch.manual_seed(0)
    x = torch.randn(8192, 256)
    x[::64, 0] += 1600
    assert torch.equal(training, x)
    assert rows_massive.nonzero().flatten().tolist() == list(range(0, 8192, 64))
    assert held_massive.nonzero().flatten().tolist() == list(range(0, 4096, 64))
    assert bool((held_out.norm(dim=-1) > 1000).eq(held_massive).all())


@pytest.mark.parametrize("rows", [NOISE, "easy"])
def test_the_ordinary_rows_are_the_same_in_all_runs_of_a_cell(rows: str) -> None:
    cell = CASE._replace(rows=rows, share=50, directions=4, factor=30)
    alone, with_rule, without = (draw(run.cell) for run in runs_of(cell))
    for plain, other in zip(alone, with_rule, strict=True):
        if plain.dtype == torch.bool:
            assert torch.equal(plain, other)
    for number in (0, 2):
        mask = alone[number + 1]
        assert torch.equal(alone[number][~mask], with_rule[number][~mask])
        assert torch.equal(with_rule[number], without[number])
        added = with_rule[number][mask] - alone[number][mask]
        usual = 16.0 if rows == NOISE else float(alone[0].norm(dim=-1).median())
        for i, row in enumerate(added[:9].tolist()):
            wanted = [30 * usual if axis == i % 4 else 0.0 for axis in range(len(row))]
            assert row == pytest.approx(wanted, abs=1e-3)


def test_goals() -> None:
    alone = measured(0.5)

    def lines(rule: Measured, off: Measured, other: Measured = alone) -> list[str]:
        return [line.removeprefix(f"{CASE}: ") for line in missed([Result(CASE, other, rule, off)])]

    assert lines(measured(0.525), measured(0.65)) == []
    one, two = lines(measured(0.526), measured(0.651))
    says(one, "with the rule", "0.5260", "<= 1.05 x 0.5000")
    says(two, "without the rule", "0.6510", "<= 1.30 x 0.5000")
    for found, shown, other in ((1.4e10, "1.4e+10", 0.5), (math.inf, "inf", 0.5), (1.01, "1.01", 0.99)):
        (line,) = lines(measured(0.9 if other > 0.9 else 0.5), measured(found), measured(other))
        says(line, "without the rule", "diverged", f"FVU {shown}", f"alone {other:.4f}")
    stopped = measured(math.inf, math.inf, "NumericsError: diverged")
    one, two = lines(stopped, stopped)
    says(one, "with the rule", "NumericsError: diverged")
    says(two, "without the rule", "NumericsError: diverged")
    assert lines(stopped, measured(1.2), stopped) == []
    assert lines(measured(1.29), measured(1.6), measured(1.24)) == []  # a run so short that it learns nothing


def test_tables() -> None:
    result = Result(CASE, measured(0.5), measured(0.51), measured(0.6, 0.04))
    row = "| noise | 1/64 | 100 | 1 | topk | 256 | 256 | 0.5 | 0.51 (1.020) | 0.6 (1.200) | 0.04 | 16.0 | 16.0 | 16.0 | 3 |"
    assert table([result])[2:] == [row]
    stopped = Result(CASE, measured(0.5), measured(0.5), measured(math.inf, math.inf, "NumericsError: diverged"))
    assert "| 0.5 | 0.5 (1.000) | error | error | 16.0 | 16.0 |  |" in table([stopped])[2]
    hard = hard_cells()[0]
    found = {runs_of(hard)[0]: measured(0.5), Run(hard, OFF, 1.0): measured(0.6, 0.3), Run(hard, OFF, 10.0): measured(0.7, 0.2)}
    assert table_of_lengths(found, (1.0, 10.0))[2:] == [
        f"| {hard} | 0.5, 16.0 | 0.6 (1.200), 0.3, 16.0 | 0.7 (1.400), 0.2, 16.0 |"
    ]


def test_a_run_is_measured_on_held_out_rows_and_not_made_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[Any] = []
    lengths: list[float] = []
    original = massive.fit

    def remembered(rows: torch.Tensor, **fields: Any) -> Any:
        lengths.append(normalizer.SHORTENED)
        kept.append((rows, fields, original(rows, **fields)))
        return kept[-1][2]

    monkeypatch.setattr(massive, "fit", remembered)
    usual = normalizer.SHORTENED
    runs = (*runs_of(SHORT), Run(SHORT, OFF, 7.0))
    found = [measure(run) for run in runs]
    assert lengths == [usual, usual, usual, 7.0]
    assert usual == normalizer.SHORTENED
    training, rows_massive, held_out, held_massive = draw(SHORT)
    assert torch.equal(kept[0][0], training[~rows_massive])
    assert all(torch.equal(rows, training) for rows, _, _ in kept[1:])
    assert [fields["max_norm_factor"] for _, fields, _ in kept] == [10.0, 10.0, None, None]
    for run, result, (_, fields, made) in zip(runs, found, kept, strict=True):
        assert (fields["batch_size"], fields["trainer"]["total_training_tokens"]) == (64, 128)
        # On the ordinary rows alone the held-out rows have nothing massive either.
        every = held_out if run.massive != ALONE else draw(run.cell)[2]
        for rows, fvu in ((held_out[~held_massive], result.ordinary), (every, result.every)):
            error = (made.inference(rows) - rows).detach().double().square().sum()
            assert fvu == pytest.approx(float(error / (rows - rows.mean(0)).double().square().sum()), rel=1e-4)
    assert found[1].ordinary == found[0].ordinary
    assert found[3].ordinary != found[2].ordinary
    path = tmp_path / "runs.jsonl"
    pool = concurrent.futures.ThreadPoolExecutor  # a process would import everything anew
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", lambda workers, **_: pool(workers))
    first = run_all([runs[1], runs[1]], path, 1)
    assert list(first) == [runs[1]]
    assert runs_in(path)[runs[1]].ordinary == first[runs[1]].ordinary == found[1].ordinary

    def never(*args: object) -> None:
        raise AssertionError("run again")

    monkeypatch.setattr(massive, "measure", never)
    assert run_all([runs[1]], path, 1) == first


def test_an_error_of_the_pipeline_ends_a_run_and_not_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **fields: object) -> None:
        raise NumericsError("the run diverged")

    monkeypatch.setattr(massive, "fit", stopped)
    found = measure(Run(SHORT, RULE))
    assert (found.ordinary, found.error) == (math.inf, "NumericsError: the run diverged")


def test_the_exit_status_tells_of_goals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def all_of(off: float) -> Any:
        return lambda runs, kept, processes: {run: measured(off if run.massive == OFF else 0.5) for run in runs}

    for off, status, words in ((0.6, 0, "All goals are met."), (0.7, 1, "Goals missed:")):
        monkeypatch.setattr(massive, "run_all", all_of(off))
        file = tmp_path / f"{status}.md"
        result = CliRunner().invoke(massive.main, ["--gates", "topk", "--lengths", "3", "--output", str(file)])
        assert result.exit_code == status
        assert words in file.read_text()
        assert "SHORTENED, by default" in file.read_text()
    assert CliRunner().invoke(massive.main, ["--steps", "2000", "--batches", "4096"]).exit_code == 2
