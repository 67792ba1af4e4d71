"""The benchmark of short runs: what it counts as met, that it goes on where it was left, and what it hands to peers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from benchmarks import peer_trainers, short_runs
from benchmarks.peer_trainers import Batches, fvu
from benchmarks.planted import PlantedSet
from benchmarks.short_runs import OURS, PEERS, Found, Rows, Run, Setting, kept_runs, main, missed, table
from tests.closure import imports
from tests.messages import says

TINY = PlantedSet(
    name="main", width=16, n_directions=32, active=3, exponent=0.5, mean_norm=1.0, noise_norm=0.1, scale=2.0, l0=4
)
PLACE = Run("main", 512, 0, OURS)


def runs(trainer: str = OURS, **fvu_after: float) -> dict[Run, Found]:
    """Runs of PLACE: n5=0.3 is an FVU of 0.3 after 5 steps."""
    return {PLACE._replace(steps=int(name[1:]), trainer=trainer): Found(value, 1.0) for name, value in fvu_after.items()}


def test_a_rise_within_a_hundredth_is_noise() -> None:
    assert missed(runs(n5=0.5, n10=0.505, n20=0.4, n1000=0.404)) == []
    (line,) = missed(runs(n5=0.5, n10=0.506, n20=0.4))
    says(line, "main, 512 features, 10 steps:", "0.5060", "1.2%", "5 steps", "0.5000", "<= 1%")


def test_small_rises_do_not_add_up() -> None:
    """Each is within 1 % of the one before, the last is not of the first."""
    (line,) = missed(runs(n5=0.5, n10=0.504, n20=0.508))
    says(line, "main, 512 features, 20 steps:", "1.6%", "5 steps", "<= 1%")


def test_other_widths_and_sets_are_judged_by_themselves() -> None:
    wide = {run._replace(features=1024): found for run, found in runs(n10=0.9).items()}
    second = {run._replace(rows="second"): found for run, found in runs(n10=0.9).items()}
    assert missed({**runs(n5=0.5, n10=0.4), **wide, **second}) == []


def test_the_best_peer_decides_at_each_length() -> None:
    ours = runs(n5=0.42, n10=0.31)
    theirs = {**runs("sparsify", n5=0.5, n10=0.3), **runs("saelens", n5=0.4, n10=0.9), **runs("dictionary_learning", n5=0.41)}
    assert missed({**ours, **theirs}) == []
    (line,) = missed({**ours, **runs("saelens", n5=0.39), **runs("sparsify", n5=0.5, n10=0.3)})
    says(line, "main, 512 features, 5 steps:", "0.4200", "7.7%", "saelens", "0.3900", "<= 5%")


def test_peers_may_rise_and_what_is_not_finite_is_none_to_compare_with() -> None:
    assert missed({**runs(n5=0.4, n10=0.3), **runs("sparsify", n5=0.5, n10=0.7)}) == []
    for nothing in (float("nan"), float("inf")):
        assert missed({**runs(n5=0.4), **runs("sparsify", n5=nothing)}) == []
        (line,) = missed(runs(n5=nothing, n10=0.4))
        says(line, "main, 512 features, 5 steps:", f"FVU {nothing:.4f}", "finite")


def test_table_has_a_line_for_each_trainer_and_gaps_where_nothing_ran() -> None:
    lines = table({**runs("saelens", n5=0.5, n1000=0.25), **runs(n5=0.4)})
    assert lines == [
        "| set | features | FVU after steps: | 5 | 1,000 | seconds |",
        "|---|---:|---|---:|---:|---:|",
        "| main | 512 | fit() | 0.4000 |  | 1 |",
        "| main | 512 | saelens | 0.5000 | 0.2500 | 1 |",
    ]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of one small set."""
    monkeypatch.setattr(short_runs, "SETS", {"main": TINY})
    monkeypatch.setattr(short_runs, "SETTINGS", {"main": Setting(4, (32, 64))})
    monkeypatch.setattr(short_runs, "STEPS", (20, 300))
    monkeypatch.setattr(short_runs, "BATCH", 64)
    monkeypatch.setattr(short_runs, "TRAINING_BATCHES", 10)
    monkeypatch.setattr(short_runs, "HELD_OUT_ROWS", 500)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


def call(*options: str) -> Result:
    return CliRunner().invoke(main, options, catch_exceptions=False)


@pytest.mark.usefixtures("tiny")
def test_own_runs_are_kept_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "runs.jsonl"
    result = call("--runs", str(kept), "--widths", "32", "--output", str(tmp_path / "short.md"))
    assert result.exit_code == 0, result.output
    found = kept_runs(kept)
    assert found.keys() == {Run("main", 32, n, OURS) for n in (20, 300)}
    assert found[Run("main", 32, 300, OURS)].fvu < 0.9 * found[Run("main", 32, 20, OURS)].fvu < 0.9
    assert "All goals are met." in (tmp_path / "short.md").read_text()

    made = []
    own_runs = short_runs.own_runs

    def recorded(rows: Rows, asked: list[Run]):
        made.extend(asked)
        return own_runs(rows, asked)

    monkeypatch.setattr(short_runs, "own_runs", recorded)
    call("--runs", str(kept), "--steps", "20")
    assert made == [Run("main", 64, 20, OURS)]
    assert len(kept_runs(kept)) == 3
    assert not Path(short_runs.RESULTS).with_name("short.md").exists()


def fake_peer(folder: Path, body: str) -> str:
    """A program in the place of a peer's Python, which is given the script, the peer, the folder and the jobs."""
    file = folder / "python"
    file.write_text(
        f"#!{sys.executable}\nimport json, sys\nimport numpy as np\n_, script, peer, folder, jobs = sys.argv\n{body}"
    )
    file.chmod(0o755)
    return f"saelens={file}"


@pytest.mark.usefixtures("tiny")
def test_a_peer_gets_the_rows_and_what_it_ended_is_kept_when_it_fails(tmp_path: Path) -> None:
    kept = tmp_path / "runs.jsonl"
    body = """
asked = json.loads(jobs)
np.save(sys.argv[0] + "." + str(len(asked["runs"])), np.load(folder + "/training.npy"))
features, steps = asked["runs"][0]
print(json.dumps({"features": features, "steps": steps, "fvu": 0.5, "seconds": asked["batch"], "version": peer}), flush=True)
if len(asked["runs"]) > 1:
    sys.exit("out of luck")
"""
    peer = fake_peer(tmp_path, body)
    options = ("--peer", peer, "--only", "peers", "--steps", "20", "--runs", str(kept))
    result = call(*options)
    assert result.exit_code == 1
    says(result.output, "saelens on main", "status 1:\nout of luck")
    assert kept_runs(kept) == {Run("main", 32, 20, "saelens"): Found(0.5, 64, "saelens")}
    result = call(*options)
    assert result.exit_code == 0, result.output
    assert kept_runs(kept).keys() == {Run("main", features, 20, "saelens") for features in (32, 64)}
    handed = np.load(tmp_path / "python.2.npy")
    assert torch.equal(torch.from_numpy(handed), TINY.draw(0).rows(640, "training"))


@pytest.mark.usefixtures("tiny")
def test_options_that_ask_for_nothing_are_refused(tmp_path: Path) -> None:
    assert "wanted NAME=PYTHON" in call("--peer", "sparsify").output
    assert "wanted NAME=PYTHON" in call("--peer", "other=python").output
    assert "nothing to run" in call("--steps", "7").output
    missing = call("--peer", f"saelens={tmp_path / 'none'}", "--only", "peers")
    assert (missing.exit_code, "cannot be started" in missing.output) == (1, True)


def test_peers_see_the_rows_in_order_and_from_the_start_again() -> None:
    rows = torch.arange(14.0).view(7, 2)
    batches = Batches(rows, 3, 5)
    assert [batch[:, 0].tolist() for batch in batches] == [[0, 2, 4], [6, 8, 10]] * 2 + [[0, 2, 4]]
    for batch in batches:
        batch.zero_()
    assert rows.sum() == 91
    assert len(batches) == 5


def test_fvu_of_a_peer_is_error_over_variance() -> None:
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + 5
    means = [sum(float(row[i]) for row in rows) / 50 for i in range(3)]
    error = sum((float(row[i]) * 0.1) ** 2 for row in rows for i in range(3))
    variance = sum((float(row[i]) - means[i]) ** 2 for row in rows for i in range(3))
    assert fvu(lambda part: 0.9 * part, rows) == pytest.approx(error / variance, rel=1e-5)


def test_the_peers_script_needs_nothing_of_this_project() -> None:
    assert imports("benchmarks/short_runs.py")
    assert not imports("benchmarks/peer_trainers.py")
    assert set(peer_trainers.PEERS) == set(peer_trainers.PACKAGES) == set(PEERS)
