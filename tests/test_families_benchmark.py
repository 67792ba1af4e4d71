"""benchmarks/families.py without its runs: every row is a parameter file that is accepted, and what is wrong is a fault."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import families
from benchmarks.families import FAMILIES, FEATURES, Row, flags, line, rows
from tests.lm.families import LAYERS
from tests.project import REPOSITORY

ROWS = rows()
RIGHT = {"seconds": 1.0, "rows": FEATURES, "l0_mean": 8.0, "fvu": 0.5, "pca_fvu": 0.6, "ce_original": 5.0, "delta_ce": 0.1}


def test_every_family_has_an_sae_a_transcoder_and_what_becomes_of_lorsa() -> None:
    for family in FAMILIES:
        kinds = {row.kind for row in ROWS if row.family == family}
        assert {"sae", "transcoder", "lorsa"} <= kinds
    assert any(row.name == "gemma2/clt" for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_the_parameters_of_a_row_are_accepted(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they fit the model is for the run to say."""
    monkeypatch.setattr(families, "write_model", lambda directory, model_type, options: directory.mkdir())
    (tmp_path / "clone").mkdir()
    shutil.copy(REPOSITORY / "params.yaml", tmp_path / "clone")
    given = flags(row, tmp_path)
    assert f"model.model_name={tmp_path / row.family}" in given
    kind = row.values["dictionary"].get("kind", "sae")
    assert kind == "sae" or f"dictionary.kind={kind}" in given


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"splice": 1e-7}, "splicing the true activation"),
        ({"rows": FEATURES - 1}, "rows in the dashboard"),
        ({"fvu": 1.5}, "FVU"),
        ({"delta_ce": float("nan")}, "delta_ce is nan"),
    ],
)
def test_what_is_wrong_is_a_fault(changed: dict[str, float], part: str) -> None:
    row = Row("gemma2", "sae", {})
    assert families._judged(row, {**RIGHT, "splice": 0.0}) == "ran"
    found = families._judged(row, {**RIGHT, "splice": 0.0, **changed})
    assert found.startswith("FAULT")
    assert part in found
    clt = Row("gemma2", "clt", {})
    assert families._judged(clt, {**RIGHT, "splice": 0.0, "rows": FEATURES * LAYERS}) == "ran"
    assert line(row, {**RIGHT, "splice": 0.0}, "ran").startswith("| gemma2 | sae | ran | 1 | 256 |")
