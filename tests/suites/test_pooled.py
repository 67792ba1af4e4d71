"""Pooled examples against encoding each context by hand, token by token."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError
from pipeline.suites.pooled import LEAST_TOKENS, pooled_examples
from tests.project import D_MODEL

HOOK = "blocks.0.hook_resid_post"
TEXTS = [
    "the cat sat on the mat and the dog<|endoftext|> ran far, the cat sat on the mat and the dog ran",
    "dog",
    "far home the cat ran and sat",
]


def sae(median: float | None = None, hook: str = HOOK) -> Dictionary:
    made = build_dictionary(
        {"kind": "sae", "hook_point_in": hook, "d_in": D_MODEL, "d_sae": 40, "act_fn": "topk", "top_k": 5}, seed=2
    )
    norm = {"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL}
    if median is not None:
        norm |= {"median_norm": median, "max_norm_factor": 1.0, "n_tokens": 10, "n_massive": 1, "n_excluded": 1}
    folded = made.fold({hook: norm})
    folded.config = dataclasses.replace(folded.config, norms={hook: norm})  # as the fold stage keeps them
    return folded


def naive(model, dictionary: Dictionary, text: str, size: int, n: int, bos: bool, limit: float = float("inf")):
    """(activations, features) of each context with enough tokens: sums over tokens that are not special, divided."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    body = size - bos
    for start in range(0, min(len(ids), n * body), body):
        part = ([0] if bos else []) + ids[start : start + body]
        x = model.activations(torch.tensor([part]), [HOOK])[HOOK][0]
        f = dictionary.encode(x).detach()
        kept = [i for i, token in enumerate(part) if token != 0 and float(x[i].norm()) <= limit]
        if len(kept) >= LEAST_TOKENS:
            yield sum(x[i] for i in kept) / len(kept), sum(f[i] for i in kept) / len(kept)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("batch", [1, 8])
def test_examples_are_means_over_the_tokens_that_count(bos: bool, batch: int, small_model) -> None:
    made = sae()
    found = pooled_examples(
        TEXTS, made, small_model, context_size=14, prepend_bos=bos, contexts_per_text=2, batch_contexts=batch
    )
    wanted = [(number, *pair) for number, text in enumerate(TEXTS) for pair in naive(small_model, made, text, 14, 2, bos)]
    assert found.text.tolist() == [number for number, *_ in wanted]
    assert 1 not in found.text.tolist()  # too short
    np.testing.assert_allclose(found.activations, torch.stack([x for _, x, _ in wanted]).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.features.toarray(), torch.stack([f for *_, f in wanted]).numpy(), rtol=1e-4, atol=1e-5)


def test_massive_tokens_do_not_count(small_model) -> None:
    ids = torch.tensor([small_model.tokenizer(TEXTS[2], add_special_tokens=False)["input_ids"]])
    lengths = small_model.activations(ids, [HOOK])[HOOK][0].norm(dim=-1)
    limit = float(lengths.sort().values[-2:].mean())  # the longest one is massive
    made = sae(median=limit)
    found = pooled_examples(TEXTS[2:], made, small_model, context_size=16)
    ((x, f),) = naive(small_model, made, TEXTS[2], 16, 1, False, limit)
    np.testing.assert_allclose(found.activations[0], x.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.features.toarray()[0], f.numpy(), rtol=1e-4, atol=1e-5)
    ((all_of_them, _),) = naive(small_model, made, TEXTS[2], 16, 1, False)
    assert not np.allclose(found.activations[0], all_of_them.numpy(), rtol=1e-3)


def test_no_text_is_long_enough(small_model) -> None:
    with pytest.raises(DataError, match="longer texts"):
        pooled_examples(["dog"], sae(), small_model, context_size=16)
