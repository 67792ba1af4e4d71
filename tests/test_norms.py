"""Norms: streamed statistics against plain computations, merging in any order, the factors, the files, the faults."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError, NumericsError, ParamsError
from pipeline.norms.hook_norm import HookNorm, as_hook_norm, load_norm_arrays, load_norms, write_norms
from pipeline.norms.measure import compute_norms
from pipeline.norms.normalizer import scale_factor
from pipeline.norms.statistics import ActivationStatistics, effective_rank
from tests.messages import saying

HOOK = "blocks.0.hook_resid_post"
NORM_AGAIN = "`dvc repro -s -f norm`"


def rows(n: int = 4000, width: int = 12, seed: int = 0) -> torch.Tensor:
    """Correlated rows with a large mean, as a residual stream has."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(n, width, generator=generator, dtype=torch.float64) @ mix + 50.0


@dataclass
class MemoryStore:
    """What compute_norms asks of a store."""

    values: torch.Tensor
    mask: torch.Tensor | None = None
    chunk_rows: int = 256
    path: Path = Path("store")
    hook_points: list[str] = field(default_factory=lambda: [HOOK])

    @property
    def target(self) -> str:
        return "activations-1d" if self.mask is None else "activations-2d"

    @property
    def n_rows(self) -> int:
        return len(self.values)

    @property
    def context_size(self) -> int:
        return 16 if self.mask is None else self.values.shape[1]

    def width(self, hook_point: str) -> int:
        return self.values.shape[-1]

    def read_together(self, hook_points: list[str], start: int, stop: int) -> dict[str, torch.Tensor]:
        return {name: self.read(name, start, stop) for name in hook_points}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        source = self.mask if name == "mask" else self.values
        assert source is not None
        return source[start:stop]


def measured(values: torch.Tensor, parts: int = 1) -> ActivationStatistics:
    found = ActivationStatistics(values.shape[-1])
    for part in values.chunk(parts):
        found.update(part)
    return found


def test_a_case_with_a_visible_answer():
    found = measured(torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [0.0, 1.0]]))
    assert found.mean_norm == pytest.approx((5 + 0 + 10 + 1) / 4)
    assert found.mean_square == pytest.approx((25 + 0 + 100 + 1) / 4)
    assert found.mean().tolist() == [2.25, 3.25]
    # Neither the norm of the mean row (3.95) nor the root of the mean square (5.61).
    assert found.mean_norm == 4.0


def test_streamed_statistics_equal_plain_ones():
    x = rows()
    found = measured(x, parts=7)
    norms = x.norm(dim=1)
    assert found.n == 4000
    assert found.mean_norm == pytest.approx(float(norms.mean()), rel=1e-13)
    assert found.mean_square == pytest.approx(float(norms.square().mean()), rel=1e-13)
    torch.testing.assert_close(found.mean(), x.mean(0), rtol=1e-13, atol=0)
    covariance = torch.cov(x.T, correction=0)
    torch.testing.assert_close(found.covariance(), covariance, rtol=1e-10, atol=1e-10)
    for q in (0.01, 0.5, 0.99, 0.999):
        assert found.quantile(q) == pytest.approx(float(np.quantile(norms.numpy(), q, method="hazen")), rel=2e-3)
    values, vectors = found.spectrum()
    assert (values.diff() <= 0).all()
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(vectors.T @ torch.diag(values) @ vectors, covariance, rtol=1e-8, atol=1e-8)
    assert (vectors.gather(1, vectors.abs().argmax(1, keepdim=True)) > 0).all()


@given(q=st.floats(0.001, 0.999), scale=st.floats(1e-6, 1e9), seed=st.integers(0, 50))
def test_quantiles_are_exact_to_a_bin(q, scale, seed):
    norms = np.sort(np.random.default_rng(seed).lognormal(size=300)) * scale
    found = ActivationStatistics(1)
    found.update(torch.from_numpy(norms).unsqueeze(1))
    exact = norms[math.ceil(q * 300) - 1]  # the smallest value with at least a share q at or below it
    assert found.quantile(q) == pytest.approx(exact, rel=1.001e-3)


@given(seed=st.integers(0, 1000), parts=st.integers(1, 9))
def test_merging_is_free_of_order_and_grouping(seed, parts):
    x = rows(500, 5, seed)
    draw = random.Random(seed)
    pieces = [measured(part) for part in x.split([500 // parts] * (parts - 1) + [500 - 500 // parts * (parts - 1)])]
    while len(pieces) > 1:
        a, b = pieces.pop(draw.randrange(len(pieces))), pieces.pop(draw.randrange(len(pieces)))
        pieces.append(a.merge(b))
    whole = measured(x)
    (merged,) = pieces
    assert merged.n == whole.n
    assert torch.equal(merged.counts, whole.counts)
    assert [merged.quantile(q) for q in (0.01, 0.5, 0.99)] == [whole.quantile(q) for q in (0.01, 0.5, 0.99)]
    assert merged.mean_norm == pytest.approx(whole.mean_norm, rel=1e-14)
    torch.testing.assert_close(merged.covariance(), whole.covariance(), rtol=1e-11, atol=1e-11)


def test_merging_leaves_its_arguments_and_refuses_another_width():
    a, b = measured(rows(10)), measured(rows(20))
    a.merge(b)
    assert (a.n, b.n) == (10, 20)
    with pytest.raises(ValueError, match="width 12 and 3"):
        a.merge(ActivationStatistics(3))


def test_low_precision_rows_are_summed_in_float64():
    x = torch.full((100_000, 4), 0.1, dtype=torch.bfloat16)
    exact = 2 * float(x[0, 0])
    assert measured(x, parts=13).mean_norm == pytest.approx(exact, rel=1e-12)


def test_masked_rows_count_nowhere():
    x = rows(60).reshape(5, 12, 12)
    mask = torch.rand(5, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    found = ActivationStatistics(12)
    found.update(torch.where(mask.unsqueeze(-1), x, float("nan")), mask)
    wanted = measured(x[mask])
    assert (found.n, found.nonfinite) == (int(mask.sum()), 0)
    torch.testing.assert_close(found.outer, wanted.outer)


@pytest.mark.parametrize(
    ("eigenvalues", "rank"), [([1.0] * 7, 7), ([5.0, 0.0, 0.0], 1), ([0.0, 0.0], 0), ([1.0, 1.0, 1e-3], 3), ([0.5, 0.5], 2)]
)
def test_effective_rank(eigenvalues, rank):
    assert effective_rank(torch.tensor(eigenvalues, dtype=torch.float64)) == rank


def test_the_histogram_holds_every_norm_between_its_edges():
    x = rows()
    edges, counts = measured(x).histogram()
    assert len(edges) == len(counts) + 1
    assert int(counts.sum()) == 4000
    assert float((edges[1:] / edges[:-1]).max()) < 1.0011
    wanted, _ = np.histogram(x.norm(dim=1).numpy(), bins=edges.numpy())
    assert np.abs(wanted - counts.numpy()).sum() <= 4  # a norm within rounding of an edge


def test_compute_norms_reads_as_many_tokens_as_asked():
    x = rows(1000)
    seen = []
    found = compute_norms(MemoryStore(x), 300, done=seen.append)[HOOK]
    assert found.n == sum(seen) == 300
    several: list[int] = []
    compute_norms(MemoryStore(x, hook_points=["a", "b", "c"]), 300, done=several.append)
    assert several == seen  # a token counts once, at however many hook points
    assert found.mean_norm == pytest.approx(float(x[:300].norm(dim=1).mean()))
    assert compute_norms(MemoryStore(x))[HOOK].n == compute_norms(MemoryStore(x), 10**9)[HOOK].n == 1000
    mask = torch.ones(100, 10, dtype=torch.bool)
    mask[:, 0] = False
    two_dimensional = compute_norms(MemoryStore(x.reshape(100, 10, 12), mask), 295)[HOOK]
    assert two_dimensional.n == 30 * 9
    kept = x.reshape(100, 10, 12)[:30, 1:].reshape(-1, 12)
    assert two_dimensional.mean_norm == pytest.approx(float(kept.norm(dim=1).mean()))


def test_non_finite_activations_are_named():
    x = rows(1000)
    x[300, 2], x[301, 0] = float("inf"), float("nan")
    with pytest.raises(NumericsError, match=saying(f"hook point {HOOK}:", 2, 512, "non-finite", "row 300", "model.dtype")):
        compute_norms(MemoryStore(x))
    mask = torch.ones(100, 10, dtype=torch.bool)
    with pytest.raises(NumericsError, match=saying(f"hook point {HOOK}:", 2, 100, "row 30", "position 0")):
        compute_norms(MemoryStore(x.reshape(100, 10, 12), mask))
    mask[30, :2] = False
    assert compute_norms(MemoryStore(x.reshape(100, 10, 12), mask))[HOOK].n == 998


@pytest.mark.parametrize(
    ("values", "mask", "part"),
    [(torch.zeros(10, 3), None, "zero"), (torch.ones(10, 4, 3), torch.zeros(10, 4, dtype=torch.bool), "mask")],
)
def test_what_has_no_norm_is_refused(values, mask, part):
    with pytest.raises(NumericsError, match=saying(f"hook point {HOOK}:", part)):
        compute_norms(MemoryStore(values, mask))


def test_files_hold_what_was_measured_and_are_the_same_every_time(tmp_path):
    x = rows()
    for name in ("a", "b"):
        write_norms(compute_norms(MemoryStore(x)), tmp_path / f"{name}.json", tmp_path / f"{name}.safetensors")
    for suffix in ("json", "safetensors"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    norm = load_norms(tmp_path / "a.json")[HOOK]
    assert (norm.d, norm.n_tokens, norm.nonfinite) == (12, 4000, 0)
    assert norm.mean_norm == pytest.approx(float(x.norm(dim=1).mean()))
    assert list(norm.norm_quantiles) == ["0.01", "0.5", "0.99", "0.999"]
    arrays = load_norm_arrays(tmp_path / "a.safetensors")
    torch.testing.assert_close(arrays[f"{HOOK}/mean"], x.mean(0))
    assert norm.effective_rank == effective_rank(arrays[f"{HOOK}/eigenvalues"])
    assert arrays[f"{HOOK}/eigenvectors"].shape == (12, 12)
    assert int(arrays[f"{HOOK}/norm_histogram_counts"].sum()) == 4000


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("norms.json:", "missing", NORM_AGAIN)),
        ("{", ("norms.json:", "damaged", NORM_AGAIN)),
        ("[]", ("norms.json:", "damaged", NORM_AGAIN)),
        ('{"h": {"mean_norm": 1.0}}', ("norms.json:", "damaged", NORM_AGAIN)),
        ('{"h": {"d": 2}}', ("norms:", "'mean_norm'", "missing")),
        ('{"h": {"d": 2, "mean_norm": -1.0}}', ("norms:", "mean_norm", "-1.0", "positive", "finite")),
        ('{"h": {"d": 2, "mean_nrm": 1.0, "mean_norm": 1.0}}', ("norms:", "'mean_nrm'", "'mean_norm'")),
    ],
)
def test_damaged_norms_are_named(tmp_path, content, parts):
    if content is not None:
        (tmp_path / "norms.json").write_text(content)
    with pytest.raises(DataError, match=saying(*parts)):
        load_norms(tmp_path / "norms.json")


def test_missing_and_damaged_statistics_are_named(tmp_path):
    with pytest.raises(DataError, match=saying("x.safetensors:", "missing", NORM_AGAIN)):
        load_norm_arrays(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=saying("x.safetensors:", "damaged", NORM_AGAIN)):
        load_norm_arrays(tmp_path / "x.safetensors")


def test_a_bare_number_is_the_mean_norm():
    assert as_hook_norm(3.0, 4) == HookNorm(3.0, None, 4)
    assert as_hook_norm({"mean_norm": 3.0}, 4) == HookNorm(3.0, None, 4)
    assert as_hook_norm({"mean_norm": 3.0, "mean_square": 10.0, "d": 4}, 4) == HookNorm(3.0, 10.0, 4)
    norm = HookNorm(2.0, 5.0, 4)
    assert as_hook_norm(norm, 4) is norm
    with pytest.raises(DataError, match=saying("norms:", 4, 5, NORM_AGAIN)):
        as_hook_norm(norm, 5)
    for bad in (0.0, float("nan"), float("inf"), -1.0):
        with pytest.raises(DataError, match=saying("norms:", "mean_norm", bad, "positive", "finite")):
            as_hook_norm(bad, 4)


def test_factors_by_hand():
    norm = HookNorm(mean_norm=4.0, mean_square=25.0, d=4)
    assert scale_factor("inference", None) == 1.0
    assert scale_factor("dataset-wise", norm) == 0.5
    assert scale_factor("dataset-rms", norm) == 0.2
    with pytest.raises(DataError, match=saying("dataset-rms", "mean square", NORM_AGAIN)):
        scale_factor("dataset-rms", HookNorm(4.0, None, 4))
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0] * 4])
    token = scale_factor("token-wise", None, x)
    assert token.shape == (3, 1)
    torch.testing.assert_close(token[:2], torch.tensor([[0.4], [2.0]]))
    assert ((x * token)[:2].norm(dim=1) == 2.0).all()
    assert torch.isfinite(x * token).all()
    batch = scale_factor("batch-wise", None, x)
    torch.testing.assert_close(batch, torch.tensor([[1.0]]))
    torch.testing.assert_close(scale_factor("batch-wise", None, x, torch.tensor([True, False, False])), torch.tensor([[0.4]]))


@pytest.mark.parametrize("name", ["dataset-wise", "token-wise", "batch-wise"])
def test_normalised_rows_have_norm_root_d(name):
    x = rows(500, 12)
    norm = as_hook_norm(measured(x).mean_norm, 12)
    scaled = (x * scale_factor(name, norm, x)).norm(dim=1)
    assert float(scaled.mean()) == pytest.approx(math.sqrt(12), rel=1e-6)


def test_low_precision_norms_are_taken_in_float32():
    x = rows(50, 12).bfloat16().reshape(5, 10, 12)
    factor = scale_factor("token-wise", None, x)
    assert (factor.dtype, factor.shape) == (torch.float32, (5, 10, 1))
    torch.testing.assert_close(factor, math.sqrt(12) / x.float().norm(dim=-1, keepdim=True))


def test_faults_of_factors():
    with pytest.raises(ParamsError, match=saying("norm_activation 'datset-wise'", "'dataset-wise'")):
        scale_factor("datset-wise", None)
    with pytest.raises(DataError, match=saying("dataset-wise", "norms", NORM_AGAIN)):
        scale_factor("dataset-wise", None)
    with pytest.raises(DataError, match=saying("token-wise", "activations")):
        scale_factor("token-wise", None)
