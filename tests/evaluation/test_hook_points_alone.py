"""Each of several hook points alone beside its baselines, and the intervals that an evaluation gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation.intervals import ratio_interval
from tests.evaluation import naive
from tests.evaluation.test_report import SAE, Case
from tests.evaluation.tiny import ArraySplit, hooked_run

CROSSCODER = {
    "kind": "crosscoder",
    "hook_points_in": ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"],
    "d_in": 16,
    "d_sae": 48,
    "act_fn": "topk",
    "top_k": 5,
}


def _document_sums(values: np.ndarray, documents: np.ndarray, chosen: np.ndarray) -> Tensor:
    sums = [0.0] * (int(documents.max()) + 1)
    for b, t in zip(*chosen.nonzero(), strict=True):
        sums[documents[b, t]] += float(values[b, t])
    return torch.tensor(sums, dtype=torch.float64)


def _losses(logits: Tensor, tokens: np.ndarray) -> np.ndarray:
    """[b, T]: of the prediction of each token, 0 of the first one."""
    log_p, losses = naive.log_softmax(logits.numpy()), np.zeros(tokens.shape)
    for b in range(tokens.shape[0]):
        for t in range(1, tokens.shape[1]):
            losses[b, t] = -log_p[b, t - 1, tokens[b, t]]
    return losses


def test_every_baseline_of_each_hook_point_alone(exact):
    """All other hook points of the model are left as they are."""
    model, module = exact
    case = Case(model, CROSSCODER)
    case.dictionary.double()
    got = case.evaluate().metrics
    x = torch.stack([case.activations[hook] for hook in case.dictionary.hooks_in], dim=-2)
    with torch.no_grad():
        x_hat = case.dictionary(x)
    keep, rank = case.mask[..., None], int(got["pca_rank"])
    for p, hook in enumerate(case.dictionary.hooks_out):
        principal = case.principal[hook]
        mean, v = principal.mean, principal.directions[:rank]
        news = {
            "spliced": lambda x, p=p: x_hat[..., p, :],
            "zero": torch.zeros_like,
            "mean": lambda x, mean=mean: mean.expand_as(x),
            "pca": lambda x, mean=mean, v=v: mean + (x - mean) @ v.T @ v,
        }
        layer, mask = module.gpt_neox.layers[p], case.mask.numpy()
        logits = {
            name: hooked_run(module, case.ids, layer, lambda x, new=new: torch.where(keep, new(x), x))
            for name, new in news.items()
        }
        ce = {name: naive.cross_entropy(run.numpy(), case.tokens, mask) for name, run in logits.items()}
        own = hooked_run(module, case.ids, layer, lambda x: x)
        original = naive.cross_entropy(own.numpy(), case.tokens, mask)
        wanted = {
            **{f"ce_{name}": ce[name] for name in ("spliced", "zero", "mean")},
            "delta_ce": ce["spliced"] - original,
            "pca_delta_ce": ce["pca"] - original,
            "loss_recovered_zero": (ce["zero"] - ce["spliced"]) / (ce["zero"] - original),
            "loss_recovered_mean": (ce["mean"] - ce["spliced"]) / (ce["mean"] - original),
            "kl": naive.kl(own.numpy(), logits["spliced"].numpy(), mask),
            "kl_zero": naive.kl(own.numpy(), logits["zero"].numpy(), mask),
        }
        for name, value in wanted.items():
            assert got[f"{name}.{hook}"] == pytest.approx(value, rel=1e-6, abs=1e-9), (name, hook)


def test_intervals_are_of_the_documents_of_the_predicted_tokens(exact):
    """Documents end within contexts; a prediction belongs to the document of the token that is predicted. A text file whose pieces
    are stored by themselves is one document."""
    model, module = exact
    case = Case(model, CROSSCODER)
    case.dictionary.double()
    got = case.evaluate(batch_contexts=2).metrics
    documents = ArraySplit(case.tokens).whole_documents()
    x = torch.stack([case.activations[hook] for hook in case.dictionary.hooks_in], dim=-2)
    with torch.no_grad():
        x_hat = case.dictionary(x)
    kept = case.mask.numpy()
    predicted = kept.copy()
    predicted[:, 0] = False
    number = _document_sums(np.ones(kept.shape), documents, predicted)
    before = _losses(hooked_run(module, case.ids, module.gpt_neox.layers[0], lambda x: x), case.tokens)
    for p, hook in enumerate(case.dictionary.hooks_out):
        splice = lambda x, p=p: torch.where(case.mask[..., None], x_hat[..., p, :], x)  # noqa: E731
        after = _losses(hooked_run(module, case.ids, module.gpt_neox.layers[p], splice), case.tokens)
        interval = ratio_interval(_document_sums(after - before, documents, predicted), number)
        assert (got[f"delta_ce_low.{hook}"], got[f"delta_ce_high.{hook}"]) == pytest.approx(interval, rel=1e-6)
        label = case.activations[hook]
        error = (x_hat[..., p, :] - label).square().sum(-1).numpy()
        variance = (label - label[case.mask].mean(0)).square().sum(-1).numpy()
        interval = ratio_interval(_document_sums(error, documents, kept), _document_sums(variance, documents, kept))
        assert (got[f"fvu_low.{hook}"], got[f"fvu_high.{hook}"]) == pytest.approx(interval, rel=1e-6)
    assert got["delta_ce_low"] < got["delta_ce"] < got["delta_ce_high"]
    assert (got["evaluated_documents"], got["evaluated_files"]) == (3, 1)


def test_the_interval_of_an_sae_is_of_its_spliced_run(exact):
    model, module = exact
    case = Case(model, SAE)
    case.dictionary.double()
    evaluation = case.evaluate(batch_contexts=4)
    got = evaluation.metrics
    documents = ArraySplit(case.tokens).whole_documents()
    with torch.no_grad():
        x_hat = case.dictionary(case.activations[case.hooks[0]])
    layer, predicted = module.gpt_neox.layers[1], case.mask.numpy().copy()
    predicted[:, 0] = False
    spliced = hooked_run(module, case.ids, layer, lambda x: torch.where(case.mask[..., None], x_hat, x))
    delta = _losses(spliced, case.tokens) - _losses(hooked_run(module, case.ids, layer, lambda x: x), case.tokens)
    number = _document_sums(np.ones(predicted.shape), documents, predicted)
    changes = _document_sums(delta, documents, predicted)
    interval = ratio_interval(changes, number)
    assert (got["delta_ce_low"], got["delta_ce_high"]) == pytest.approx(interval, rel=1e-6)
    assert evaluation.documents is not None
    there = [n for n, size in enumerate(_document_sums(np.ones(predicted.shape), documents, case.mask.numpy())) if size]
    label = case.activations[case.hooks[0]]
    error, spread = ((x - label).square().sum(-1).numpy() for x in (x_hat, label[case.mask].mean(0)))
    parts = [_document_sums(each, documents, case.mask.numpy()) for each in (error, spread)]
    for name, wanted in (("fvu", parts), ("delta_ce", [changes, number])):
        kept = evaluation.documents.of(name)
        assert kept is not None
        for values, each in zip(kept, wanted, strict=True):
            assert values == pytest.approx([float(each[n]) for n in there], rel=1e-6)
