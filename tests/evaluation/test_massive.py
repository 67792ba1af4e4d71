"""Massive tokens in the sums of an evaluation: the figures without them, their median, and what they change of other tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.build import build_dictionary
from pipeline.evaluation.baselines import PcaMetrics
from pipeline.evaluation.in_memory import evaluate_reconstruction
from pipeline.evaluation.intervals import ratio_interval
from pipeline.evaluation.medians import HIGHEST, StreamingMedian
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.evaluation.reconstruction import ORDINARY, LabelMean, ReconstructionMetrics
from pipeline.evaluation.sparsity import SparsityMetrics
from pipeline.norms.hook_norm import as_hook_norm
from tests.evaluation import naive
from tests.evaluation.tiny import principal_of

SAE = {"kind": "sae", "hook_point_in": "a", "d_in": 8, "d_sae": 24, "act_fn": "topk", "top_k": 4}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Rows:
    """120 labels with reconstructions, a quarter masked; some kept ones are a few hundred times longer, and well reconstructed."""

    def __init__(self, seed: int, d: int = 6, offset: float = 2.0) -> None:
        rng = torch.Generator().manual_seed(99)  # the same tokens at every hook point
        self.mask = torch.rand(120, generator=rng) < 0.75
        self.massive = (torch.rand(120, generator=rng) < 0.08) & self.mask
        self.documents = torch.sort(torch.randint(0, 9, (120,), generator=rng)).values
        self.x = draw(120, d, seed=seed) + offset
        self.x[self.massive] *= 300.0
        self.r = 0.7 * self.x + 0.4 * draw(120, d, seed=seed + 1)
        assert 3 < int(self.massive.sum()) < 20

    @property
    def kept(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, reconstructions and which are massive."""
        return self.x[self.mask].numpy(), self.r[self.mask].numpy(), self.massive[self.mask].numpy()

    def interval(self, x: Tensor, mean: Tensor, rows: Tensor) -> tuple[float, float] | None:
        error, spread = torch.zeros(9, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
        for i in rows.nonzero()[:, 0].tolist():
            error[self.documents[i]] += float(((x[i] - self.r[i]) ** 2).sum())
            spread[self.documents[i]] += float(((x[i] - mean) ** 2).sum())
        return ratio_interval(error, spread)


def streamed(parts: dict[str, Rows], cuts: list[int], massive: bool = True) -> ReconstructionMetrics:
    rows = [slice(a, b) for a, b in itertools.pairwise(np.cumsum([0, *cuts]).tolist())]
    one = next(iter(parts.values()))

    def marks(some: slice) -> Tensor | None:
        found = one.massive[some]
        return found if massive and bool(found.any()) else None

    means = {hook: LabelMean() for hook in parts}
    for some in rows:
        for hook, part in parts.items():
            means[hook].update(part.x[some], one.mask[some], massive=marks(some))
    metrics = ReconstructionMetrics.of(means)
    for some in rows:
        x_hats = {hook: part.r[some] for hook, part in parts.items()}
        labels = {hook: part.x[some] for hook, part in parts.items()}
        metrics.update(x_hats, labels, one.mask[some], "", one.documents[some], marks(some))
    return metrics


@pytest.mark.parametrize("cuts", [[120], [40, 3, 77]])
def test_reconstruction_with_massive_rows_equals_the_naive_one(cuts: list[int]) -> None:
    rows = Rows(seed=0)
    got, want = streamed({"h": rows}, cuts).results(), naive.reconstruction(*rows.kept)
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-9), name
    x, _, massive = rows.kept
    spread = [((one - one.mean(0)) ** 2).sum() for one in (x[~massive], x)]
    assert got["fvu_massive_share"] == pytest.approx(1 - spread[0] / spread[1], rel=1e-12)
    assert got["fvu_massive_share"] > 0.99
    assert got["fvu_ordinary"] > 1.5 * got["fvu"]  # the plain one is that of the massive rows
    assert got["normalized_error_q50"] == pytest.approx(naive.normalized_error_q50(*rows.kept), rel=1e-3)
    rest = rows.mask & ~rows.massive
    wanted = rows.interval(rows.x, rows.x[rest].mean(0), rest)
    assert (got["fvu_ordinary_low"], got["fvu_ordinary_high"]) == pytest.approx(wanted, rel=1e-9)
    wanted = rows.interval(rows.x, rows.x[rows.mask].mean(0), rows.mask)
    assert (got["fvu_low"], got["fvu_high"]) == pytest.approx(wanted, rel=1e-9)


def test_without_massive_rows_the_ordinary_figures_are_the_plain_ones() -> None:
    got = streamed({"a": Rows(seed=0), "b": Rows(seed=4)}, [50, 70], massive=False).results()
    for name, ordinary in ORDINARY.items():
        assert got[ordinary] == got[name]
    assert got["fvu_massive_share"] == got["fvu_massive_share.a"] == 0.0
    for name, hook in itertools.product(("fvu", "explained_variance", "zero_fvu"), "ab"):
        assert got[f"{name}_ordinary.{hook}"] == got[f"{name}.{hook}"]


def test_several_hook_points_leave_out_the_same_tokens() -> None:
    """Massive at `a` alone: at `b` the same tokens are ordinary by their length, and left out all the same."""
    a, b = Rows(seed=0), Rows(seed=4, d=5)
    b.x[b.massive] /= 300.0
    b.r = 0.9 * b.x + 0.2 * draw(120, 5, seed=6)
    got = streamed({"a": a, "b": b}, [30, 90]).results()
    errors, spreads, medians = [], [], []
    for hook, part in (("a", a), ("b", b)):
        want = naive.reconstruction(*part.kept)
        for name in ("fvu_ordinary", "zero_fvu_ordinary", "explained_variance_ordinary", "fvu"):
            assert got[f"{name}.{hook}"] == pytest.approx(want[name], rel=1e-9), (name, hook)
        x, r, massive = part.kept
        mean = x[~massive].mean(0)
        errors.append(((x - r) ** 2)[~massive].sum())
        spreads.append(((x - mean) ** 2)[~massive].sum())
        medians.append(((x - r) ** 2).sum(1) / ((x - mean) ** 2).sum(1))
        assert got[f"normalized_error_q50.{hook}"] == pytest.approx(np.median(medians[-1]), rel=1e-3)
    assert got["fvu_ordinary"] == pytest.approx(sum(errors) / sum(spreads), rel=1e-9)
    assert got["normalized_error_q50"] == pytest.approx(np.median(np.concatenate(medians)), rel=1e-3)


def test_what_is_undefined_without_ordinary_tokens_is_left_out() -> None:
    rows = Rows(seed=0)
    rows.massive = rows.mask.clone()
    got = streamed({"h": rows}, [120]).results()
    assert not {name for name in got if "ordinary" in name}
    assert got["fvu"] == pytest.approx(naive._plain(*rows.kept[:2])["fvu"], rel=1e-9)
    sparsity = SparsityMetrics((3,))
    sparsity.update(draw(5, 3), massive=torch.ones(5, dtype=torch.bool))
    assert not {name for name in sparsity.results() if "ordinary" in name}
    assert sparsity.l0_mean_ordinary() == sparsity.l0_mean()


@pytest.mark.parametrize("n", [1, 2, 3, 500, 501])
def test_the_median_is_numpys_to_a_thousandth(n: int) -> None:
    values = (4.0 * draw(n, seed=n)).exp()
    median = StreamingMedian()
    size = len(median.counts)
    for part in values.tensor_split(3):
        median.add(part)
    assert median.value() == pytest.approx(float(np.median(values.numpy())), rel=6e-4)
    assert len(median.counts) == size  # however many numbers there are


def test_the_median_at_the_ends_of_its_range() -> None:
    median = StreamingMedian()
    assert median.value() is None
    median.add(torch.zeros(3, dtype=torch.float64))
    assert median.value() == 0.0
    median.add(torch.full((4,), torch.inf, dtype=torch.float64))
    assert median.value() == HIGHEST
    other = StreamingMedian()
    other.add(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
    other.add_all(median)
    assert other.value() == pytest.approx(1.0, rel=6e-4)  # 3 zeros, 3 ones, 4 infinities: 1 and 1 are in the middle


def test_sparsity_with_massive_tokens_equals_the_naive_one() -> None:
    """A feature that only massive tokens open is dead among the others."""
    rows = Rows(seed=0)
    f = torch.where(torch.rand(120, 10, generator=torch.Generator().manual_seed(3)) < 0.2, 1.5, 0.0)
    f[rows.massive] = 1.0
    f[~rows.massive, 7] = 0.0
    metrics = SparsityMetrics((10,))
    for some in (slice(0, 50), slice(50, 120)):
        metrics.update(f[some], rows.mask[some], rows.massive[some])
    got, want = metrics.results(), naive.sparsity(f[rows.mask].numpy(), rows.massive[rows.mask].numpy())
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-9), name
    assert got["dead_fraction_ordinary"] == 0.1
    assert got["dead_fraction"] == 0.0
    assert got["l0_mean_ordinary"] < got["l0_mean"]
    assert metrics.massive_tokens == int(rows.massive.sum())
    assert metrics.histogram().never == 1


def test_sparsity_of_layers_with_massive_tokens() -> None:
    rows = Rows(seed=0)
    f = torch.where(torch.rand(120, 2, 5, generator=torch.Generator().manual_seed(3)) < 0.1, 1.5, 0.0)
    f[rows.massive] = 1.0
    f[~rows.massive, 1, 3] = 0.0
    metrics = SparsityMetrics((2, 5), ("one", "two"))
    metrics.update(f, rows.mask, rows.massive)
    got, rest = metrics.results(), rows.mask & ~rows.massive
    for layer, name in enumerate(("one", "two")):
        own = naive.sparsity(f[rest, layer].numpy())
        assert got[f"l0_mean_ordinary.{name}"] == pytest.approx(own["l0_mean"], rel=1e-12)
        assert got[f"dead_fraction_ordinary.{name}"] == own["dead_fraction"]
    assert got["l0_mean_ordinary"] == pytest.approx(naive.sparsity(f[rest].flatten(1).numpy())["l0_mean"], rel=1e-12)


def test_pca_with_massive_tokens_equals_projections_of_each_token() -> None:
    rows = Rows(seed=0)
    principal = principal_of(draw(300, 6, seed=8) + 2.0)
    metrics = PcaMetrics({"h": principal})
    for some in (slice(0, 7), slice(7, 120)):
        metrics.add(metrics.of({"h": rows.x[some]}, rows.mask[some], rows.massive[some]))
    mean, v = principal.mean.numpy(), principal.directions[:2].numpy()
    variances, wanted = [], []
    for chosen in (rows.mask, rows.mask & ~rows.massive):
        x = rows.x[chosen].numpy()
        variances.append(sum(np.sum((row - x.mean(0)) ** 2) for row in x))
        wanted.append(sum(np.sum((row - mean - (row - mean) @ v.T @ v) ** 2) for row in x) / variances[-1])
    got = metrics.fvu(2, {"h": variances[0]}, {"h": variances[1]})
    assert [got["pca_fvu"], got["pca_fvu_ordinary"]] == pytest.approx(wanted, rel=1e-9)


def raw_of(config: dict, **norm: float) -> RawDictionary:
    """An unfolded dictionary whose configuration has the norm of its hook point."""
    about = {"mean_norm": 3.0, "mean_square": 9.0, "d": 8, **norm}
    made = build_dictionary({**config, "norms": {"a": about}}, seed=1)
    return RawDictionary(made.double(), {"a": as_hook_norm(about, 8)})


@pytest.mark.parametrize("change", [{"norm_activation": "batch-wise"}, {"act_fn": "batchtopk"}], ids=["norm", "gate"])
def test_other_tokens_of_the_batch_are_encoded_as_if_massive_ones_were_not_there(change: dict) -> None:
    """A batch-wise factor and a batch's budget of active features."""
    raw = raw_of({**SAE, **change}, median_norm=2.8, max_norm_factor=10.0)
    x = draw(3, 9, 8, seed=5)
    x[1, 4] *= 500.0
    x[2, 0] *= 400.0
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[0, :3] = False
    massive = raw.massive.above({"a": x})
    assert massive is not None
    assert massive.nonzero().tolist() == [[1, 4], [2, 0]]
    got = raw({"a": x}, {"a": x}, mask, massive)
    rest = mask & ~massive
    alone = x[rest][:, None]  # each a context of its own, no massive one among them
    want = raw({"a": alone}, {"a": alone}, torch.ones(len(alone), 1, dtype=torch.bool))
    assert torch.allclose(got.features[rest], want.features[:, 0], rtol=1e-12, atol=1e-12)
    assert torch.allclose(got.x_hats["a"][rest], want.x_hats["a"][:, 0], rtol=1e-12, atol=1e-12)
    assert (got.features[massive] > 0).any(dim=-1).all()  # they have features all the same
    fooled = raw({"a": x}, {"a": x}, mask)
    assert not torch.allclose(fooled.features[rest], want.features[:, 0], rtol=1e-3)


def test_limits_are_those_of_the_configuration() -> None:
    assert raw_of(SAE).massive.limits == {}
    on = raw_of(SAE, median_norm=2.0, max_norm_factor=7.0)
    assert on.massive.limits == on.excluded.limits == {"a": 14.0}
    off = raw_of(SAE, median_norm=2.0)
    assert (off.massive.limits, off.excluded.limits) == ({"a": 20.0}, {})


def test_in_memory_without_norms_the_given_activations_say_it() -> None:
    dictionary, x = build_dictionary(SAE, seed=1).double(), draw(200, 8)
    x[[3, 60]] *= 50.0
    x[7] = 1e6  # masked
    mask = torch.ones(200, dtype=torch.bool)
    mask[5:30] = False
    got = evaluate_reconstruction(dictionary, x, mask=mask, batch_size=64)
    length = np.array([np.linalg.norm(row) for row in x[mask].numpy()])
    massive = length > 10 * np.median(length)
    assert massive.sum() == 2
    assert (got["massive_tokens"], got["massive_fraction"]) == (2, 2 / 175)
    with torch.no_grad():
        x_hat, f = dictionary(x[mask]).numpy(), dictionary.encode(x[mask]).numpy()
    want = naive.reconstruction(x[mask].numpy(), x_hat, massive) | naive.sparsity(f, massive)
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-9), name
    median = naive.normalized_error_q50(x[mask].numpy(), x_hat, massive)
    assert got["normalized_error_q50"] == pytest.approx(median, rel=1e-3)


def test_in_memory_a_folded_dictionary_says_it() -> None:
    """Its own median is far from that of the activations: a quarter of them are massive by it."""
    x = draw(200, 8, seed=2)
    length = np.sqrt((x.numpy() ** 2).sum(1))
    limit = float(np.quantile(length, 0.75))
    norms = {"a": {"mean_norm": 2.8, "mean_square": 8.0, "d": 8, "median_norm": limit / 4, "max_norm_factor": 4.0}}
    dictionary = build_dictionary({**SAE, "norms": norms}, seed=1).double().fold(norms)
    got = evaluate_reconstruction(dictionary, x)
    massive = length > limit
    assert got["massive_tokens"] == massive.sum() == 50
    with torch.no_grad():
        want = naive.reconstruction(x.numpy(), dictionary(x).numpy(), massive)
    assert got["fvu_ordinary"] == pytest.approx(want["fvu_ordinary"], rel=1e-9)
    unfolded = evaluate_reconstruction(build_dictionary({**SAE, "norms": norms}, seed=1), x.float())
    assert unfolded["massive_tokens"] == 0


def test_in_memory_a_token_is_massive_by_what_is_read_or_written() -> None:
    config = {**SAE, "kind": "transcoder", "hook_point_out": "b", "d_out": 5}
    dictionary, x, y = build_dictionary(config, seed=1).double(), draw(150, 8), draw(150, 5, seed=1)
    x[4] *= 100.0
    y[9] *= 100.0
    got = evaluate_reconstruction(dictionary, x, y)
    assert got["massive_tokens"] == 2
    massive = np.isin(np.arange(150), (4, 9))
    with torch.no_grad():
        want = naive.reconstruction(y.numpy(), dictionary(x).numpy(), massive)
    assert got["fvu_ordinary"] == pytest.approx(want["fvu_ordinary"], rel=1e-9)
