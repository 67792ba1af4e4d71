"""The benchmark of defaults: what it counts as met, and that a small run of it measures what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import quality
from benchmarks.planted import PlantedSet
from benchmarks.quality import Case, Goal, Measured, goals, mean_l0, missed, run_all, runs_in, table
from pipeline.training.fit import FitResult
from tests.messages import says

TINY = PlantedSet(
    name="tiny", width=16, n_directions=32, active=3, exponent=0.5, mean_norm=1.0, noise_norm=0.1, scale=2.0, l0=4
)


def measured(fvu: float = 0.1, dead: float = 0.0, l0_error: float = 0.0, recovery: float = 1.0) -> Measured:
    return Measured(fvu, dead, l0_error, recovery, 32.0, 1.0)


def test_goals_are_those_of_the_project() -> None:
    bounds = {
        case: {goal.figure: goal.most if goal.least is None else goal.least for goal in goals(case)}
        for case in (
            Case("main", 198_000, "topk", False, 0),
            Case("main", 1_000_000, "topk", False, 1),
            Case("main", 1_000_000, "batchtopk", False, 2),
            Case("main", 1_000_000, "jumprelu", True, 0),
            Case("easy", 2_000_000, "jumprelu", True, 1),
        )
    }
    assert list(bounds.values()) == [
        {"fvu": 0.22, "dead": 0.005},
        {"fvu": 0.165, "dead": 0.005, "recovery": 0.95},
        {"fvu": 0.22, "dead": 0.01, "l0_error": 0.01},
        {"dead": 0.01, "l0_error": 0.02, "recovery": 0.95},
        {"dead": 0.01, "l0_error": 0.02, "recovery": 0.98},
    ]


def test_bounds_are_included_and_have_a_side() -> None:
    assert Goal("fvu", most=0.22).met(0.22)
    assert not Goal("fvu", most=0.22).met(0.2201)
    assert Goal("recovery", least=0.95).met(0.95)
    assert not Goal("recovery", least=0.95).met(0.9499)
    assert not Goal("fvu", most=0.22).met(float("nan"))


def test_the_median_over_seeds_decides() -> None:
    case = Case("main", 1_000_000, "topk", False, 0)
    values = [measured(fvu=0.5), measured(fvu=0.16, recovery=0.9), measured(fvu=0.161)]
    assert missed([(case._replace(seed=i), value) for i, value in enumerate(values)]) == []
    values[2] = measured(fvu=0.161, recovery=0.94)
    (line,) = missed([(case._replace(seed=i), value) for i, value in enumerate(values)])
    says(line, "main", "1,000,000", "topk:", "recovered 0.9400", ">= 0.9500")


def test_the_table_has_median_spread_and_goal() -> None:
    case = Case("main", 198_000, "batchtopk", True, 0)
    runs = [measured(fvu=fvu, l0_error=error) for fvu, error in ((0.27, 0.002), (0.25, 0.004), (0.26, 0.001))]
    line = table([(case._replace(seed=i), run) for i, run in enumerate(runs)])[-1]
    assert "| main | 198,000 | batchtopk with TopK start | 0.2600 (0.2500 to 0.2700) |" in line
    assert "| 0.20% (0.10% to 0.40%); <= 1.00% |" in line


def test_a_small_run_measures_the_inference_form_on_unseen_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("TRAINING_ROWS", 6000), ("HELD_OUT_ROWS", 1000), ("FRESH_ROWS", 3000), ("BATCH", 256)):
        monkeypatch.setattr(quality, name, value)
    kept: list[FitResult] = []
    stated: list[dict[str, Any]] = []
    original = quality.fit

    def remembered(*args: Any, **fields: Any) -> FitResult:
        stated.append(fields["trainer"])
        kept.append(original(*args, **fields))
        return kept[-1]

    monkeypatch.setattr(quality, "fit", remembered)
    cases = [Case("tiny", 20_000, act_fn, act_fn == "jumprelu", 1) for act_fn in quality.ACT_FNS]
    found = run_all(TINY, cases, tmp_path / "runs.jsonl")
    assert [case for case, _ in found] == cases
    assert runs_in(tmp_path / "runs.jsonl") == dict(found)
    data = TINY.draw(1)
    held_out, fresh = data.rows(1000, "held out"), data.rows(3000, "fresh")
    assert [trained_with["topk_start_steps"] for trained_with in stated if "topk_start_steps" in trained_with] == [0.9]
    for (case, result), trained in zip(found, kept, strict=True):
        with torch.no_grad():
            f, x_hat = trained.inference.encode(held_out), trained.inference(held_out)
            active = sum(int((row > 0).sum()) for row in trained.inference.encode(fresh))
            rows = trained.inference.state_dict()["W_D"]
        fvu = (x_hat - held_out).double().square().sum() / (held_out - held_out.mean(0)).double().square().sum()
        cosines = [max(float(w @ row / row.norm()) for row in rows) for w in data.directions]
        assert result.fvu == pytest.approx(float(fvu), rel=1e-5)
        assert result.dead == pytest.approx(float(((f > 0).sum(0) == 0).float().mean()), abs=1e-9)
        assert result.l0 == pytest.approx(active / 3000)
        assert result.l0_error == pytest.approx(abs(active / 3000 - 4) / 4)
        assert result.recovery == pytest.approx(sum(cosines) / 32, abs=1e-5)
        assert trained.inference.config.act_fn == ("topk" if case.act_fn == "topk" else "jumprelu")
        assert result.l0 == pytest.approx(mean_l0(trained.inference, fresh))
