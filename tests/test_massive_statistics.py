"""Statistics of rows among which some are massive: against plain numpy sums over the ordinary ones and over all."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from pipeline.errors import NumericsError
from pipeline.norms import measure, statistics
from pipeline.norms.hook_norm import HookNorm, as_hook_norm, hook_norm, load_norms, write_norms
from pipeline.norms.measure import compute_norms, first_median
from pipeline.norms.statistics import ActivationStatistics, effective_rank
from tests.messages import saying
from tests.test_norms import HOOK, MemoryStore, rows

WIDTH = 6
LENGTHENED = {3: 40.0, 77: 15.0, 78: 11.0, 200: 8.0, 400: 300.0, 599: 20.0}  # row: factor; one stays below ten medians
MASSIVE = [3, 77, 78, 400, 599]


def with_massive_rows(n: int = 600) -> torch.Tensor:
    """Rows of norms about 50 sqrt(6), some of them lengthened."""
    x = rows(n, WIDTH)
    for row, factor in LENGTHENED.items():
        x[row] *= factor
    return x


def naive_median(x: torch.Tensor) -> float:
    """The lower of the two middle norms of rows."""
    ordered = np.sort(np.linalg.norm(x.numpy().astype(np.float64), axis=-1))
    return float(ordered[(len(ordered) - 1) // 2])


def measured(x: torch.Tensor, factor: float | None = 10.0, parts: int = 1) -> ActivationStatistics:
    found = ActivationStatistics(WIDTH, "cpu", naive_median(x.reshape(-1, WIDTH)), factor)
    for part in x.chunk(parts):
        found.update(part)
    return found


def check_against(found: ActivationStatistics, x: torch.Tensor, massive: list[int]) -> None:
    """The sums are those of the rows of `x` [n, d] that are not in `massive`; quantiles and histogram are those of all."""
    every = x.numpy().astype(np.float64)
    norms = np.sqrt((every**2).sum(1))
    ordinary = np.delete(every, massive, axis=0)
    assert (found.n, found.n_massive) == (len(ordinary), len(massive))
    assert found.mean_norm == pytest.approx(np.delete(norms, massive).mean(), rel=1e-12)
    assert found.mean_square == pytest.approx((ordinary**2).sum(1).mean(), rel=1e-12)
    np.testing.assert_allclose(found.mean().numpy(), ordinary.mean(0), rtol=1e-12)
    centred = ordinary - ordinary.mean(0)
    np.testing.assert_allclose(found.covariance().numpy(), centred.T @ centred / len(ordinary), rtol=1e-8, atol=1e-8)
    assert found.largest_norm == pytest.approx(norms.max(), rel=1e-12)
    for q in (0.01, 0.5, 0.99, 0.999):
        assert found.quantile(q) == pytest.approx(np.sort(norms)[math.ceil(q * len(norms)) - 1], rel=1.001e-3)
    edges, counts = (t.numpy() for t in found.histogram())
    assert counts.sum() == len(norms)
    assert edges[0] <= norms.min() * (1 + 1e-12)
    assert edges[-1] >= norms.max() * (1 - 1e-12)
    assert np.abs(np.histogram(norms, edges)[0] - counts).sum() <= 4  # a norm within rounding of an edge


@pytest.mark.parametrize("parts", [1, 7])
def test_sums_are_of_ordinary_rows_and_quantiles_of_all(parts: int) -> None:
    x = with_massive_rows()
    found = measured(x, parts=parts)
    check_against(found, x, MASSIVE)
    assert found.n_excluded == 5


def test_the_factor_is_ten_where_the_rule_is_off_and_nothing_is_excluded_then() -> None:
    x = with_massive_rows()
    found = measured(x, None)
    check_against(found, x, MASSIVE)
    assert (found.n_massive, found.n_excluded) == (5, 0)
    assert measured(x, 18.0).n_massive == measured(x, 18.0).n_excluded == 3
    assert measured(x, 7.5).n_massive == 6


def test_without_a_median_no_row_is_massive() -> None:
    x = with_massive_rows()
    found = ActivationStatistics(WIDTH, max_norm_factor=10.0)
    assert found.update(x) is None
    check_against(found, x, [])


def test_which_rows_are_massive_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the caller's shape, whatever blocks the sums are made in."""
    x = with_massive_rows()
    wanted = torch.zeros(600, dtype=torch.bool)
    wanted[MASSIVE] = True
    for elements in (2**21, 7 * WIDTH):
        monkeypatch.setattr(statistics, "_BLOCK_ELEMENTS", elements)
        found = ActivationStatistics(WIDTH, "cpu", naive_median(x), 10.0)
        assert torch.equal(found.update(x), wanted)
        assert torch.equal(found.update(x.reshape(60, 10, WIDTH)), wanted.reshape(60, 10))
        assert torch.equal(found.update(x[70:80].float()), wanted[70:80])
        assert found.update(x[100:300]) is None  # one is long, none is massive
        assert found.n_massive == 5 + 5 + 2


def test_masked_rows_are_neither_massive_nor_the_longest() -> None:
    x = with_massive_rows().reshape(60, 10, WIDTH)
    mask = torch.rand(60, 10, generator=torch.Generator().manual_seed(1)) < 0.7
    mask.view(-1)[[3, 77, 599]] = True
    mask.view(-1)[[78, 400]] = False
    found = ActivationStatistics(WIDTH, "cpu", naive_median(x.reshape(-1, WIDTH)), 10.0)
    above = found.update(x, mask)
    assert above is not None
    assert above.reshape(-1).nonzero().squeeze(1).tolist() == [3, 77, 599]
    kept = mask.reshape(-1).nonzero().squeeze(1).tolist()
    check_against(found, x.reshape(-1, WIDTH)[kept], [kept.index(row) for row in (3, 77, 599)])
    mask.view(-1)[[3, 77, 599]] = False
    assert found.update(x, mask) is None


def test_rows_that_are_not_finite_take_no_part_beside_massive_ones() -> None:
    x = with_massive_rows()
    bad = [0, 4, 76, 410]
    broken = x.clone()
    broken[bad, [0, 1, 2, 3]] = torch.tensor([math.nan, math.inf, -math.inf, math.nan], dtype=torch.float64)
    found = ActivationStatistics(WIDTH, "cpu", naive_median(x), 10.0)
    above = found.update(broken)
    assert above is not None
    assert above.nonzero().squeeze(1).tolist() == MASSIVE
    assert found.nonfinite == 4
    finite = [row for row in range(600) if row not in bad]
    check_against(found, x[finite], [finite.index(row) for row in MASSIVE])


def test_merged_statistics_are_those_of_all_rows() -> None:
    x = with_massive_rows()
    median = naive_median(x)
    parts = [ActivationStatistics(WIDTH, "cpu", median, 10.0) for _ in range(3)]
    for part, piece in zip(parts, (x[:77], x[77:300], x[300:]), strict=True):
        part.update(piece)
    merged = parts[2].merge(parts[0].merge(parts[1]))
    check_against(merged, x, MASSIVE)
    assert (merged.median_norm, merged.max_norm_factor, merged.n_excluded) == (median, 10.0, 5)
    assert (parts[0].n_massive, parts[1].n_massive, parts[2].n_massive) == (1, 2, 2)
    for other in (ActivationStatistics(WIDTH, "cpu", median, 11.0), ActivationStatistics(WIDTH, "cpu", 2 * median, 10.0)):
        with pytest.raises(ValueError, match=saying("merged", "massive")):
            parts[0].merge(other)


def collected(store: MemoryStore, **options: object) -> tuple[ActivationStatistics, list[tuple[str, int, torch.Tensor]]]:
    calls: list[tuple[str, int, torch.Tensor]] = []
    found = compute_norms(store, massive=lambda hook, start, above: calls.append((hook, start, above)), **options)  # type: ignore[arg-type]
    return found[HOOK], calls


def test_massive_tokens_of_a_store_are_told_with_their_rows() -> None:
    x = with_massive_rows()
    found, calls = collected(MemoryStore(x, chunk_rows=64), max_norm_factor=10.0)
    assert [(hook, start, len(above)) for hook, start, above in calls] == [
        (HOOK, 0, 64), (HOOK, 64, 64), (HOOK, 384, 64), (HOOK, 576, 24),
    ]  # fmt: skip
    assert [start + int(row) for _, start, above in calls for row in above.nonzero()] == MASSIVE
    check_against(found, x, MASSIVE)
    assert found.max_norm_factor == 10.0
    assert collected(MemoryStore(x[100:300]))[1] == []


def test_massive_tokens_of_contexts_are_told_by_row_and_position() -> None:
    x = with_massive_rows().reshape(60, 10, WIDTH)
    mask = torch.ones(60, 10, dtype=torch.bool)
    mask[:, 0] = False  # row 400 is position 0 of context 40
    found, calls = collected(MemoryStore(x, mask, chunk_rows=4), max_norm_factor=10.0)
    assert all(above.shape == (4, 10) for _, _, above in calls)
    places = [(start + int(row), int(at)) for _, start, above in calls for row, at in above.nonzero()]
    assert places == [(0, 3), (7, 7), (7, 8), (59, 9)]
    assert found.n_massive == 4
    assert found.median_norm == pytest.approx(naive_median(x[mask]), rel=1e-6)


def test_the_median_is_that_of_the_first_kept_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MEDIAN_TOKENS", 45)
    x = with_massive_rows()
    assert first_median(MemoryStore(x), HOOK) == pytest.approx(naive_median(x[:45]), rel=1e-6)
    contexts, mask = x.reshape(60, 10, WIDTH), torch.rand(60, 10, generator=torch.Generator().manual_seed(2)) < 0.5
    wanted = naive_median(contexts[:5][mask[:5]])  # 45 tokens begin five contexts of ten
    assert first_median(MemoryStore(contexts, mask), HOOK) == pytest.approx(wanted, rel=1e-6)
    broken = x.clone()
    broken[:20, 0] = math.inf
    assert first_median(MemoryStore(broken), HOOK) == pytest.approx(naive_median(x[20:45]), rel=1e-6)
    assert first_median(MemoryStore(torch.zeros(600, WIDTH)), HOOK) is None


def test_what_is_not_finite_is_refused_beside_massive_tokens() -> None:
    x = with_massive_rows()
    x[410, 2] = math.nan
    with pytest.raises(NumericsError, match=saying(f"hook point {HOOK}:", 1, 512, "row 410")):
        compute_norms(MemoryStore(x), max_norm_factor=10.0)


@pytest.mark.parametrize("factor", [10.0, None])
def test_the_file_gives_back_every_field(tmp_path, factor: float | None) -> None:
    x = with_massive_rows()
    found = compute_norms(MemoryStore(x), max_norm_factor=factor)
    write_norms(found, tmp_path / "norms.json", tmp_path / "statistics.safetensors")
    norm = load_norms(tmp_path / "norms.json")[HOOK]
    assert norm == hook_norm(found[HOOK], effective_rank(found[HOOK].spectrum()[0]))
    median = naive_median(x)
    assert norm.median_norm == pytest.approx(median, rel=1e-6)
    assert (norm.n_tokens, norm.n_massive, norm.n_excluded) == (595, 5, 5 if factor else 0)
    assert norm.largest_norm == pytest.approx(float(np.linalg.norm(x[400])), rel=1e-12)
    assert norm.massive_norm == pytest.approx(10 * median, rel=1e-6)
    assert norm.max_norm == (norm.massive_norm if factor else None)
    # What goes with weights tells the same tokens.
    carried = as_hook_norm(json.loads(json.dumps(norm.to_dict())), WIDTH)
    for name in ("mean_norm", "mean_square", "median_norm", "max_norm_factor", "n_tokens", "n_excluded"):
        assert getattr(carried, name) == getattr(norm, name), name
    assert (carried.max_norm, carried.massive_norm) == (norm.max_norm, norm.massive_norm)


def test_norms_of_an_earlier_version_are_read_and_exclude_nothing(tmp_path) -> None:
    quantiles = {"0.01": 1.0, "0.5": 2.0, "0.99": 3.0, "0.999": 4.0}
    before = {"mean_norm": 2.0, "mean_square": 4.5, "d": 6, "n_tokens": 7, "norm_quantiles": quantiles, "effective_rank": 3}
    (tmp_path / "norms.json").write_text(json.dumps({HOOK: {**before, "nonfinite": 0}}))
    norm = load_norms(tmp_path / "norms.json")[HOOK]
    assert norm == HookNorm(2.0, 4.5, 6, n_tokens=7, norm_quantiles=quantiles, effective_rank=3)
    assert (norm.median_norm, norm.max_norm, norm.massive_norm, norm.n_massive) == (None, None, None, 0)
    assert norm.to_dict() == {"mean_norm": 2.0, "mean_square": 4.5, "d": 6}
