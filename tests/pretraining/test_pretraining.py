"""The embedded language model's parts: n-gram baselines, schedule, resume."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.corpus.document import Document
from pipeline.params.schema import DemoParams
from pipeline.pretraining.corpus import token_stream, train_tokenizer
from pipeline.pretraining.ngrams import bigram_cross_entropy, unigram_cross_entropy
from pipeline.pretraining.training import rate, train_language_model


def test_ngrams_against_loops() -> None:
    rng = np.random.default_rng(0)
    train, held = rng.integers(0, 6, 200), rng.integers(0, 7, 50)
    v, d = 7, 0.75
    unigram = [(sum(int(t) == i for t in train) + 1) / (len(train) + v) for i in range(v)]
    total_uni = total_bi = 0.0
    pairs = list(zip(train[:-1].tolist(), train[1:].tolist(), strict=True))
    for a, b in zip(held[:-1].tolist(), held[1:].tolist(), strict=True):
        following = [y for x, y in pairs if x == a]
        p = unigram[b]
        if following:
            p = max(following.count(b) - d, 0) / len(following) + d * len(set(following)) / len(following) * unigram[b]
        total_uni -= math.log(unigram[b])
        total_bi -= math.log(p)
    assert unigram_cross_entropy(train, held, v) == pytest.approx(total_uni / (len(held) - 1))
    assert bigram_cross_entropy(train, held, v) == pytest.approx(total_bi / (len(held) - 1))


def test_rate() -> None:
    assert rate(0, 100, 10, 0.2) == pytest.approx(0.1)
    assert rate(50, 100, 10, 0.2) == 1.0
    assert rate(99, 100, 10, 0.2) == pytest.approx(1 / 20)


SMALL = DemoParams(
    text_packages=("numpy",), pretrain_packages=(), vocab_size=300, d_model=16, n_layers=1, n_heads=2, d_mlp=32, context_size=8, batch_size=4,
    total_tokens=320 * 32, warmup_steps=5,
)  # fmt: skip


def test_learns_and_resumes(tmp_path: Path) -> None:
    text = Document("d", "the cat sat on the mat and the dog sat on the cat. " * 200)
    stream = token_stream(train_tokenizer([text], 300), [text])
    losses: list[float] = []

    class Stop(Exception):
        pass

    def stop(model: torch.nn.Module, step: int) -> None:
        raise Stop

    whole = train_language_model(SMALL, stream, tmp_path / "a", evaluate=lambda m, s: losses.append(s))
    with pytest.raises(Stop):
        train_language_model(SMALL, stream, tmp_path / "b", evaluate=stop)
    resumed = train_language_model(dataclasses.replace(SMALL), stream, tmp_path / "b", evaluate=lambda m, s: None)
    assert losses == [250]
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    window = torch.from_numpy(stream[:9].astype(np.int64))[None]
    with torch.no_grad():
        logits = whole(window[:, :-1]).logits
    assert torch.nn.functional.cross_entropy(logits[0], window[0, 1:]) < 3.0
