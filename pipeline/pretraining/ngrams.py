"""Unigram and bigram cross entropies: what the embedded language model has to beat."""

from __future__ import annotations

import numpy as np


def unigram_cross_entropy(train: np.ndarray, held_out: np.ndarray, vocab_size: int) -> float:
    """Mean of -ln p(token) over `held_out[1:]` in nats, p with one added to every count."""
    counts = np.bincount(train, minlength=vocab_size).astype(np.float64) + 1.0
    return float(-np.log(counts / counts.sum())[held_out[1:]].mean())


def bigram_cross_entropy(train: np.ndarray, held_out: np.ndarray, vocab_size: int, discount: float = 0.75) -> float:
    """Mean of -ln p(token | previous) over `held_out[1:]` in nats.

    Interpolated absolute discounting: p(b|a) = max(c(ab) - d, 0) / c(a) + d * types(a) / c(a) * p(b), with p(b) the unigram of
    :func:`unigram_cross_entropy` (also where `a` was never seen).

    Args:
        train, held_out: token ids, [n].
        vocab_size: number of token ids.
        discount: d.
    """
    counts = np.bincount(train, minlength=vocab_size).astype(np.float64) + 1.0
    unigram = counts / counts.sum()
    pairs, pair_counts = np.unique(train[:-1].astype(np.int64) * vocab_size + train[1:], return_counts=True)
    first = pairs // vocab_size
    context_count = np.bincount(first, weights=pair_counts, minlength=vocab_size)
    context_types = np.bincount(first, minlength=vocab_size).astype(np.float64)
    wanted = held_out[:-1].astype(np.int64) * vocab_size + held_out[1:]
    slot = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[slot] == wanted, pair_counts[slot], 0).astype(np.float64)
    previous, token = held_out[:-1], held_out[1:]
    total = np.maximum(context_count[previous], 1.0)
    backoff = np.where(context_count[previous] > 0, discount * context_types[previous] / total, 1.0)
    probability = np.maximum(seen - discount, 0.0) / total + backoff * unigram[token]
    return float(-np.log(probability).mean())
