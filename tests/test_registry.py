"""Things found by name, ours and those of other packages."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pipeline import registry
from pipeline.errors import ParamsError
from pipeline.registry import Registry
from tests.messages import saying


@dataclass(frozen=True)
class Thing:
    name: str
    implementation: str


def things(**places: str) -> Registry[Thing]:
    return Registry("thing", "scopeline.no_such_group", (Thing(name, place) for name, place in places.items()))


def test_the_implementation_is_imported_when_it_is_asked_for() -> None:
    found = things(root="math:sqrt", nested="pathlib:Path.home", nothing="no_such_module:x")
    assert found.load("root")(9) == 3
    assert callable(found.load("nested"))
    assert list(found) == ["root", "nested", "nothing"]
    assert "nothing" in found
    with pytest.raises(ParamsError, match=saying("thing 'nothing':", "no_such_module:x", "No module named")):
        found.load("nothing")


def test_names_are_unique_and_unknown_ones_name_the_nearest() -> None:
    found = things(root="math:sqrt")
    with pytest.raises(ParamsError, match=saying("thing 'root'", "twice")):
        found.add(Thing("root", "math:cos"))
    with pytest.raises(ParamsError, match=saying("unknown thing 'rot'", "'root'", "known: root")):
        found.get("rot")


class Point:
    def __init__(self, thing: object) -> None:
        self.value, self._thing = "elsewhere:THING", thing

    def load(self) -> object:
        if isinstance(self._thing, Exception):
            raise self._thing
        return self._thing


def test_entry_points_declare_further_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        "cosine": Point(Thing("cosine", "math:cos")),
        "wrong": Point(Thing("another", "math:cos")),
        "broken": Point(ImportError("no torch here")),
    }
    monkeypatch.setattr(registry, "_entry_points", lambda group: points)
    found = things(root="math:sqrt")
    assert list(found) == ["root", "cosine", "wrong", "broken"]
    assert found.load("cosine")(0) == 1
    with pytest.raises(ParamsError, match=saying("thing 'wrong':", "elsewhere:THING", "'another'")):
        found.get("wrong")
    with pytest.raises(ParamsError, match=saying("thing 'broken':", "elsewhere:THING", "no torch here")):
        found.get("broken")
