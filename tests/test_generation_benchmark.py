"""The benchmark of generation on a case of seconds: its rows are the plain loop's."""

from __future__ import annotations

import pytest
import torch

from benchmarks.generation import FLOOR, PARTS, SMALL, Run, measure, table


def test_rows_are_the_plain_loops_and_every_part_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = SMALL
    found = measure(case, rounds=1)
    assert set(found) == {FLOOR} | {f"{what}, {how}" for what in ("generation", "plain loop") for how in ("sdpa", "eager")}
    for what, (run,) in found.items():
        assert run.cpu > 0, what
        assert sum(run.parts.values()) <= run.cpu, what
        assert not run.parts or all(run.parts[part] > 0 for part in PARTS), what
    monkeypatch.setattr("benchmarks.generation.plain_loop", lambda *_: lambda tokens: torch.zeros(*tokens.shape, 64))
    with pytest.raises(SystemExit, match="not those of the plain loop"):
        measure(case, rounds=1)


def test_the_table_has_shares_of_the_floor_and_of_the_parts() -> None:
    (case,) = SMALL
    found = {
        FLOOR: [Run(1.0, {}), Run(3.0, {})],
        "generation, sdpa": [Run(2.0, dict.fromkeys(PARTS, 0.25), 0.5), Run(4.0, dict.fromkeys(PARTS, 0.5))],
    }
    floor, ours = table(case, found)
    assert floor == f"| small | {FLOOR} | 384 (192 to 576) | 1.00 |  |"
    assert ours == (
        "| small | generation, sdpa | 216 (144 to 288) | 0.62 | forward 12.5%, encode 12.5%, permute 12.5%, write 12.5%, "
        "rest 50.0%; waited 0.50 s |"
    )
