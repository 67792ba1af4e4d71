"""Activations of known features are what they are said to be; a dictionary that is the truth scores as such."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import ParamsError
from pipeline.params.loader import load_params, params_from_dict
from pipeline.params.reading import read_mapping
from pipeline.suites.ground_truth import figures, trained
from pipeline.suites.synthetic import LEAST, SyntheticSet
from tests.messages import saying
from tests.project import REPOSITORY, put

SMALL = SyntheticSet(width=12, features=24, active=4.0, exponent=0.7, children=3, correlation=0.6, rank=2, seed=3)
ROWS = 40_960


def coefficients(about: SyntheticSet, n: int = ROWS, part: str = "train") -> Tensor:
    return torch.cat([rows.a for rows in about.draw().blocks(n, part)]).double()


def test_each_feature_keeps_its_probability_in_hierarchy_and_correlation() -> None:
    known, active = SMALL.draw(), coefficients(SMALL) > 0
    p = known.probabilities.double()
    assert p.sum().item() == pytest.approx(SMALL.active, rel=1e-5)
    assert ((active.double().mean(0) - p).abs() < 5 * (p * (1 - p) / ROWS).sqrt()).all()


def test_children_are_active_only_where_their_roots_are() -> None:
    known, active = SMALL.draw(), coefficients(SMALL) > 0
    assert (known.n_roots, (known.parents >= 0).sum().item()) == (6, 18)
    for child in range(known.n_roots, SMALL.features):
        assert not (active[:, child] & ~active[:, known.parents[child]]).any()
    assert sorted(known.parents[known.n_roots :].tolist()) == sorted([*range(6)] * 3)
    assert (SMALL.draw().parents[:6] == -1).all()


def test_without_children_or_correlation_features_are_independent() -> None:
    about = dataclasses.replace(SMALL, children=0, correlation=0.0)
    known, active = about.draw(), (coefficients(about) > 0).double()
    assert known.n_roots == about.features
    correlation = torch.corrcoef(active.T).fill_diagonal_(0.0)
    assert correlation.abs().max() < 6 / ROWS**0.5
    tied = torch.corrcoef((coefficients(dataclasses.replace(SMALL, children=0)) > 0).double().T).fill_diagonal_(0.0)
    loadings = dataclasses.replace(SMALL, children=0).draw().loadings.double()
    gaussian = (loadings @ loadings.T).fill_diagonal_(0.0)
    strong = gaussian.abs() > 0.7
    # A copula's correlation has the sign of the Gaussian's, and is large where that is.
    assert (tied[strong].sign() == gaussian[strong].sign()).all()
    assert tied[strong].abs().mean() > 10 * correlation.abs().mean()


def test_rows_are_the_mixture() -> None:
    silent = dataclasses.replace(SMALL, noise_norm=0.0)
    known = silent.draw()
    (rows,) = list(known.blocks(5, "train"))
    for row in range(5):
        for j in range(silent.width):
            total = float(known.mean[j]) + sum(
                float(rows.a[row, i]) * float(known.directions[i, j]) for i in range(silent.features)
            )
            assert float(rows.x[row, j]) == pytest.approx(total, abs=1e-5)
    sizes = coefficients(silent)
    sizes = sizes[sizes > 0]
    assert sizes.min() >= LEAST
    assert (sizes.mean().item(), sizes.std().item()) == (pytest.approx(1.5, abs=0.02), pytest.approx(1.0, abs=0.02))
    (noisy,) = list(SMALL.draw().blocks(4096, "train"))
    noise = noisy.x - torch.cat([part.x for part in known.blocks(4096, "train")])
    assert noise.square().sum(1).mean().sqrt().item() == pytest.approx(SMALL.noise_norm, rel=0.05)
    torch.testing.assert_close(known.directions.norm(dim=-1), torch.ones(SMALL.features))
    assert known.mean.norm().item() == pytest.approx(SMALL.mean_norm, rel=1e-5)


def test_draws_repeat_and_parts_differ() -> None:
    first = next(SMALL.draw().blocks(9, "train"))
    longer = next(SMALL.draw().blocks(5000, "train"))
    torch.testing.assert_close(first.x, longer.x[:9], rtol=0, atol=0)
    assert not torch.equal(first.x, next(SMALL.draw().blocks(9, "held out")).x)
    other = dataclasses.replace(SMALL, seed=4).draw()
    assert not torch.equal(other.directions, SMALL.draw().directions)


def test_too_many_active_features_are_refused() -> None:
    with pytest.raises(ParamsError, match=saying(13, 24, 12)):
        dataclasses.replace(SMALL, active=13.0)


def test_the_truth_scores_as_the_truth_and_chance_as_chance() -> None:
    """Orthogonal directions, no noise: encoder and decoder are the directions, so every activation is found exactly."""
    about = SyntheticSet(width=16, features=8, active=2.0, children=1, correlation=0.2, rank=2, mean_norm=0.0, noise_norm=0.0)
    known = about.draw()
    known.directions = torch.linalg.qr(torch.randn(16, 8, generator=torch.Generator().manual_seed(1)))[0].T.contiguous()
    made = build_dictionary({"kind": "sae", "d_in": 16, "d_sae": 8, "act_fn": "relu"}, seed=0)
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    w = known.directions[order]
    made.load_weights_({**made.state_dict(), "W_E": w.T, "W_D": w, "b_E": torch.full((8,), -0.01), "b_D": torch.zeros(16)})
    folded = made.fold({"input": {"mean_norm": 4.0, "mean_square": 16.0, "d": 16}})
    found = figures(folded, known, rows=4096)
    for name in ("mcc", "recovery", "recovered_fraction", "uniqueness", "precision", "recall", "f1"):
        assert found[name] == pytest.approx(1.0, abs=1e-5), name
    assert found["l0_mean"] == pytest.approx(found["true_l0"])
    assert found["fvu"] < 1e-3
    assert found["noise_fvu"] == 0
    assert found["mcc_chance"] < 0.7
    assert found["pca_fvu"] > found["fvu"]


@pytest.fixture(scope="module")
def params():
    loaded = load_params(REPOSITORY / "params.yaml")
    return dataclasses.replace(
        loaded,
        dictionary=dataclasses.replace(loaded.dictionary, top_k=4, expansion_factor=2.0),
        activations=dataclasses.replace(loaded.activations, batch_size=256),
        initializer=dataclasses.replace(loaded.initializer, tokens=2048),
    )


def test_a_short_training_finds_more_than_chance(params) -> None:
    about = dataclasses.replace(SMALL, noise_norm=0.05)
    known = about.draw()
    dictionary = trained(params, known, 40_000, progress=False)
    found = figures(dictionary, known, rows=4096)
    assert (dictionary.config.d_in, dictionary.config.d_sae, dictionary.config.folded) == (12, 24, True)
    assert found["l0_mean"] == pytest.approx(4.0, abs=0.01)
    assert found["mcc"] > found["mcc_chance"] + 0.05
    assert found["fvu"] < found["pca_fvu"]


def transcoder():
    values = read_mapping(REPOSITORY / "params.yaml")
    changes = {"kind": "transcoder", "hook_point_in": "blocks.2.ln2.hook_out", "hook_point_out": "blocks.2.hook_mlp_out"}
    for key, value in {**changes, "apply_b_dec_to_input": False}.items():
        put(values, f"dictionary.{key}", value)
    return params_from_dict(values)


def test_what_needs_the_run_is_refused(params) -> None:
    known = SMALL.draw()
    start = dataclasses.replace(params, initializer=dataclasses.replace(params.initializer, from_dictionary="base"))
    with pytest.raises(ParamsError, match=saying("initializer.from_dictionary")):
        trained(start, known, 1000)
    other = transcoder()
    with pytest.raises(ParamsError, match=saying("dictionary.kind")):
        trained(other, known, 1000)
