from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import DataError, NumericsError
from pipeline.evaluation.baselines import PcaMetrics, checked_rank, load_principal_directions, pca_replacements, used_rank
from tests.evaluation.tiny import principal_of
from tests.messages import saying


def _rows(n: int, d: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=rng) @ torch.randn(d, d, generator=rng) + 2.0


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_pca_fvu_equals_a_singular_value_decomposition(rank):
    """Directions and mean from one sample, evaluated on another, in unequal batches with a mask."""
    train, x = _rows(400, 8, seed=0), _rows(90, 8, seed=1)
    mask = torch.rand(90, generator=torch.Generator().manual_seed(2)) < 0.6
    metrics = PcaMetrics({"h": principal_of(train)})
    for start, stop in ((0, 5), (5, 70), (70, 90)):
        metrics.add(metrics.of({"h": x[start:stop]}, mask[start:stop]))
    mean = train.double().numpy().mean(0)
    _, _, vt = np.linalg.svd(train.double().numpy() - mean, full_matrices=False)
    kept = x[mask].double().numpy()
    x_hat = mean + (kept - mean) @ vt[:rank].T @ vt[:rank]
    variance = ((kept - kept.mean(0)) ** 2).sum()
    want = ((kept - x_hat) ** 2).sum() / variance
    assert metrics.fvu(rank, {"h": float(variance)})["pca_fvu"] == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_several_hook_points():
    parts = {"a": _rows(50, 4, seed=3), "b": _rows(50, 6, seed=4)}
    metrics = PcaMetrics({hook: principal_of(x) for hook, x in parts.items()})
    metrics.add(metrics.of(parts))
    variances = {hook: float((x.double() - x.double().mean(0)).square().sum()) for hook, x in parts.items()}
    got = metrics.fvu(2, variances)
    total = sum(got[f"pca_fvu.{hook}"] * variances[hook] for hook in parts)
    assert got["pca_fvu"] == pytest.approx(total / sum(variances.values()))


def test_replacement_is_the_projection_at_kept_positions():
    principal = principal_of(_rows(100, 6, seed=5))
    original = _rows(10, 6, seed=6).view(2, 5, 6)
    mask = torch.arange(10).view(2, 5) % 4 != 1
    got = pca_replacements({"h": principal}, 3, mask)["h"]({}, original)
    v = principal.directions[:3]
    want = principal.mean + (original.double() - principal.mean) @ v.T @ v
    assert torch.allclose(got[mask].double(), want[mask], rtol=1e-5, atol=1e-5)
    assert torch.equal(got[~mask], original[~mask])


def test_rank_is_the_rounded_mean_l0_unless_asked_for():
    principal = {"h": principal_of(_rows(50, 8, seed=7))}
    assert used_rank(None, 3.4, principal) == 3
    assert used_rank(None, 0.1, principal) == 1
    assert used_rank(None, 100.0, principal) == 8
    assert used_rank(2, 7.0, principal) == 2
    short = {"h": type(principal["h"])(principal["h"].mean, principal["h"].directions[:4]), "g": principal["h"]}
    assert used_rank(None, 7.0, short) == 4
    checked_rank(None, short)
    checked_rank(4, short)
    checked_rank(100, principal)
    with pytest.raises(NumericsError, match=saying("evaluation.pca_rank:", 7, "4 leading", "h", "at most 4", "null")):
        checked_rank(7, short)


def test_statistics_are_read_and_faults_named(tmp_path):
    path = tmp_path / "norm_statistics.safetensors"
    with pytest.raises(DataError, match=saying("norm_statistics.safetensors:", "missing", "`dvc repro -s -f norm`")):
        load_principal_directions(path, ("h",))
    principal = principal_of(_rows(50, 8, seed=8))
    save_file({"h/mean": principal.mean, "h/eigenvectors": principal.directions.float()}, path)
    got = load_principal_directions(path, ("h",))["h"]
    assert got.mean.dtype == got.directions.dtype == torch.float64
    assert torch.allclose(got.directions, principal.directions, atol=1e-6)
    with pytest.raises(DataError, match=saying("norm_statistics.safetensors:", "g", "h", "`dvc repro -s -f norm`")):
        load_principal_directions(path, ("g",))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="damaged"):
        load_principal_directions(path, ("h",))
