"""The tokenize stage's core on hand-made documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.corpus.document import Document, held_out
from pipeline.corpus.tokenization import TokenizerInfo, TokenizeSettings, tokenize_corpus
from pipeline.corpus.tokens import open_tokens
from pipeline.errors import DataError
from tests.messages import saying

WORDS = ["<eos>", "<bos>", "the", "cat", "sat", "on", "a", "mat"]


def info(bos: int | None = 1) -> TokenizerInfo:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return TokenizerInfo(tokenizer, bos, 0, False, (0, 1), "digest")


def corpus(n: int = 40) -> list[Document]:
    rng = np.random.default_rng(0)
    return [Document(f"d{i}", " ".join(rng.choice(WORDS[2:], 11))) for i in range(n)]


def run(path: Path, total: int, *, bos: bool = False, fraction: float = 0.3) -> dict[str, int | float | str]:
    settings = TokenizeSettings(8, total, bos, None, 0, fraction, 0)
    return tokenize_corpus(corpus(), info(), settings, path)


@pytest.mark.parametrize("bos", [False, True])
def test_every_token_traces_to_its_text(tmp_path: Path, bos: bool) -> None:
    figures = run(tmp_path / "t", 100, bos=bos)
    store = open_tokens(tmp_path / "t")
    by_key = {d.key: d for d in corpus()}
    seen = {"train": set(), "eval": set()}
    for name, part in (("train", store.train), ("eval", store.eval)):
        tokens = part.read()
        assert store.mask(tokens).sum() == figures[f"{name}_tokens"]
        for context, position in np.ndindex(*tokens.shape):
            traced = store.trace(name, context, position)
            seen[name].add(traced.document)
            assert held_out(traced.document, 0.3, 0) == (name == "eval")
            if tokens[context, position] > 1:
                assert traced.text == WORDS[tokens[context, position]]
                assert by_key[traced.document].text[traced.start : traced.end] == traced.text
            else:
                assert traced.text == ""
        assert not bos or (tokens[:, 0] == 1).all()
    assert not seen["train"] & seen["eval"]


def test_training_stops_at_the_context_that_reaches_the_total(tmp_path: Path) -> None:
    figures = run(tmp_path / "t", 100)
    store = open_tokens(tmp_path / "t")
    kept = store.mask(store.train.read()).sum(1)
    assert kept.sum() >= 100 > kept[:-1].sum()
    assert figures["train_tokens"] == kept.sum()


def test_too_little_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=saying("activations.total_tokens", "5,000", 308, "1,483", 40, 12)):
        run(tmp_path / "t", 5000)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=saying("held-out", 8, "0 of 40", "dataset.eval_fraction")):
        run(tmp_path / "t", 100, fraction=1e-6)
    with pytest.raises(DataError, match=saying("model.prepend_bos is true", "model.prepend_bos=false")):
        tokenize_corpus(corpus(), info(bos=None), TokenizeSettings(8, 10, True, None, 0, 0.3, 0), tmp_path / "t")
