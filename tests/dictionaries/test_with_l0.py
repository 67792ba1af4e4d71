"""A wanted L0 on rows that were not trained on: one factor on all thresholds, in the dictionary and through the fold."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import ParamsError
from pipeline.folding import fold_dictionary, mean_l0
from tests.dictionaries.make import filled, inputs

NORMS = {"input": {"mean_norm": 12.0, "mean_square": 150.0, "d": 6}}
SCALE = math.sqrt(6) / 12.0


def dictionary(**fields: object) -> torch.nn.Module:
    made = filled(act_fn="jumprelu", d_sae=60, dtype="float64", **fields)
    with torch.no_grad():
        made.log_jumprelu_threshold.copy_(torch.linspace(-2, 0, 60))
    return made


@pytest.mark.parametrize("include_norm", [True, False])
@pytest.mark.parametrize("target", [2.0, 9.5])
def test_one_factor_meets_the_target(include_norm: bool, target: float) -> None:
    made = dictionary(sparsity_include_decoder_norm=include_norm)
    seen = [inputs(500, 6, seed=s) for s in range(4)]
    steered, calibration = made.with_l0(seen, target)
    shift = (steered.log_jumprelu_threshold - made.log_jumprelu_threshold).detach()
    assert shift.numpy() == pytest.approx([math.log(calibration.threshold)] * 60, abs=1e-9)
    active = sum(float(v > t) for x in seen for row in made.codes(x).z for v, t in zip(row, steered.thresholds(), strict=True))
    assert active == round(target * 2000)
    assert mean_l0(steered, [(inputs(5000, 6, seed=77), None)])[0] == pytest.approx(target, rel=0.05)


def test_masked_rows_do_not_count() -> None:
    made, x = dictionary(), inputs(600, 6, seed=1)
    mask = torch.arange(600) % 2 == 0
    x[~mask] *= 100
    steered, calibration = made.with_l0([(x, mask)], 4.0)
    assert calibration.n_tokens == 300
    assert mean_l0(steered, [(x[mask], None)])[0] == pytest.approx(4.0, abs=1e-3)


def test_the_fold_sets_it_on_calibration_rows_and_says_so() -> None:
    made = dictionary()
    raw = [inputs(500, 6, seed=s) / SCALE for s in range(4)]
    report = fold_dictionary(made, NORMS, calibration_batches=raw, target_l0=5.0)
    assert report.l0_after == pytest.approx(5.0, abs=1e-3)
    assert report.l0_before == pytest.approx(mean_l0(made, [(x * SCALE, None) for x in raw])[0])
    assert report.figures["target_l0"] == 5.0
    direct, calibration = made.with_l0([x * SCALE for x in raw], 5.0)
    assert report.figures["threshold_factor"] == pytest.approx(calibration.threshold)
    wanted = direct(raw[0] * SCALE).detach() / SCALE
    assert float((report.dictionary(raw[0]).detach() - wanted).norm() / wanted.norm()) < 1e-9


def test_what_has_no_thresholds_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"trainer.target_l0: act_fn 'topk' has no thresholds"):
        filled(act_fn="topk").with_l0([inputs(10, 6)], 3.0)
    with pytest.raises(ParamsError, match=r"gets its thresholds for trainer.target_l0, which needs rows"):
        fold_dictionary(dictionary(), NORMS, target_l0=3.0)
