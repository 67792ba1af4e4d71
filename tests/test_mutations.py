"""The formula mutation run: mutants are made, a right test notices them, a useless one does not, and the exit status says so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.formulas import Formula, formulas
from benchmarks.mutants import mutants
from benchmarks.mutations import Examined, by_place, examine, main, report

SHAPES = '''
"""Areas and perimeters."""

SIDES = 4
WIDTHS = (2, 3)


class Box:
    """A box."""

    def area(self, a: float, b: float) -> float:
        """a b, not a + b."""
        if a < 0:
            raise ValueError(f"{a - b}")
        return a * b


def perimeter(a: float, b: float, *, twice: bool = True) -> float:
    total = sum(x for x in (a, b) if x > 0)
    if twice:
        total += max(total, 0.0)
    return total
'''
TESTS = """
import pytest

from shapes import SIDES, Box, perimeter


def test_area():
    assert Box().area(3.0, 5.0) == 15.0


def test_no_side_is_negative():
    with pytest.raises(ValueError):
        Box().area(-3.0, 5.0)


def test_nothing():
    assert Box().area(3.0, 5.0) is not None


def test_wrong():
    assert perimeter(1.0, 2.0) == 0.0


def test_endless():
    while SIDES == 5:
        pass
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with a module and its tests."""
    (tmp_path / "shapes.py").write_text(SHAPES)
    (tmp_path / "test_shapes.py").write_text(TESTS)
    return tmp_path


def row(where: str, *tests: str) -> Formula:
    return Formula("1", f"{where} by {', '.join(tests)}", f"shapes:{where}", tuple(f"test_shapes.py::{test}" for test in tests))


def test_mutants_change_one_thing_inside_the_place_and_the_rest_stays(small: Path) -> None:
    made = [mutant() for mutant in mutants("shapes:Box.area", small)]
    changes = {mutant.change for mutant in made}
    assert changes == {
        "a * b -> a / b",
        "a * b -> a",
        "a * b -> b",
        "a < 0 -> a <= 0",
        "a < 0 -> a > 0",
        "a < 0 -> False",
        "0 -> 1",
    }
    plain = ast.unparse(ast.parse(SHAPES))
    assert len({mutant.source for mutant in made} | {plain}) == len(made) + 1
    for mutant in made:
        assert mutant.source.split("def perimeter")[1] == plain.split("def perimeter")[1]
        assert "'a b, not a + b.'" in mutant.source or "a b, not a + b." in mutant.source
        assert "{a - b}" in mutant.source


def test_operators(small: Path) -> None:
    changes = {mutant().change for mutant in mutants("shapes:perimeter", small)}
    assert changes >= {
        "True -> False", "x > 0 -> x >= 0", "x > 0 -> nothing", "twice -> not twice", "total += max(total, 0.0) -> pass",
        "total += max(total, 0.0) -> total -= max(total, 0.0)", "max(total, 0.0) -> min(total, 0.0)", "(a, b) -> (b, a)",
    }  # fmt: skip
    assert [mutant().change for mutant in mutants("shapes:SIDES", small)] == ["4 -> 5"]
    (small / "tensors.py").write_text("def f(x, dim) -> Tensor:\n    return x.square().sum(dim, keepdim=True)[1:].float64\n")
    assert {mutant().change for mutant in mutants("tensors:f", small)} >= {
        "keepdim=True -> nothing", "x.square() -> x", "x.square() -> x.sqrt()", "1: -> :",
        "x.square().sum(dim, keepdim=True) -> x.square().mean(dim, keepdim=True)",
        "return x.square().sum(dim, keepdim=True)[1:].float64 -> x.square().sum(dim, keepdim=True)[1:].float64.detach()",
    }  # fmt: skip


@pytest.mark.parametrize("where", ["shapes:Box.volume", "shapes:Sphere", "nowhere:f"])
def test_a_place_that_is_nowhere_is_named(small: Path, where: str) -> None:
    with pytest.raises(LookupError, match=r"volume|Sphere|nowhere"):
        mutants(where, small)


def test_a_right_test_notices_and_a_useless_one_does_not(small: Path) -> None:
    right, guard, useless = (
        row("Box.area", "test_area"),
        row("Box.area", "test_no_side_is_negative"),
        row("Box.area", "test_nothing"),
    )
    found = examine("shapes:Box.area", [right, guard, useless], number=0, seed=0, root=small)
    assert found.tried == 7
    assert found.noticed == {right: 4, guard: 2, useless: 1}  # a < 0 turned round raises, which each notices
    assert set(found.survivors) == {"a < 0 -> a <= 0", "0 -> 1"}
    assert found.faults(0.5) == []
    assert [fault.partition(" ")[0] for fault in found.faults(0.2)] == ["2"]
    assert "survived: 0 -> 1" in report(found)


def test_a_formula_whose_tests_notice_nothing_is_a_fault_after_all_mutants_were_tried(small: Path) -> None:
    blind = row("WIDTHS", "test_nothing")
    found = examine("shapes:WIDTHS", [blind], number=1, seed=0, root=small)
    assert found.tried == 1
    assert found.further == len(mutants("shapes:WIDTHS", small)) - 1 == 2
    assert found.faults(1.0) == [f"1, {blind.what}: its tests notice no mutant"]


def test_equivalent_mutants_are_left_out_and_old_entries_named(small: Path) -> None:
    listed = {"2 -> 3": "nothing reads it", "a ** b -> a": "gone"}
    found = examine("shapes:WIDTHS", [row("WIDTHS", "test_nothing")], number=0, seed=0, equivalent=listed, root=small)
    assert found.tried == 2
    assert found.stale == ["a ** b -> a"]


def test_tests_that_fail_as_things_are_end_it(small: Path) -> None:
    for test in ("test_wrong", "test_gone"):
        found = examine("shapes:perimeter", [row("perimeter", test)], number=1, seed=0, root=small)
        assert found.tried == 0
        assert "as things are" in found.faults(1.0)[0]


def test_a_mutant_whose_tests_do_not_end_is_noticed(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.mutations.LEAST_S", 2.0)
    monkeypatch.setattr("benchmarks.mutations.PATIENCE", 0.0)
    endless = row("SIDES", "test_endless")
    assert examine("shapes:SIDES", [endless], number=0, seed=0, root=small).noticed == {endless: 1}


def test_the_command_reports_by_formula_and_its_status_tells_of_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(where: str, rows: list[Formula], **_: object) -> Examined:
        return Examined(where, dict.fromkeys(rows, 0 if blind else 1), tried=2, survivors=["a -> b"])

    monkeypatch.setattr("benchmarks.mutations.examine", shown)
    blind = False
    done = CliRunner().invoke(main, ["--section", "2.1"])
    rows = [row for row in formulas() if row.section == "2.1"]
    assert done.exit_code == 0
    places = by_place(rows)
    siblings = [row for row in formulas() if row.where in places]  # a function's mutants are for all of its formulas
    assert f"{len(siblings)} formulas in {len(places)} functions, 0 faults" in done.output
    assert all(f"  2.1, {row.what}: 1 noticed" in done.output for row in rows)
    assert CliRunner().invoke(main, ["--section", "2.1", "--survivors", "0.4"]).exit_code == 1
    assert CliRunner().invoke(main, ["--section", "10"]).exit_code == 2
    blind = True
    assert CliRunner().invoke(main, ["--sample", "3"]).exit_code == 1
