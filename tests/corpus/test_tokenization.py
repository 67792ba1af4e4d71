"""The tokenize stage's core on hand-made documents."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.corpus.document import Document, held_out
from pipeline.corpus.near_duplicates import NearDuplicates
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


def settings(total: int, fraction: float = 0.3, **more: Any) -> TokenizeSettings:
    return TokenizeSettings(8, total, False, None, 0, fraction, 0, **more)


def run(path: Path, total: int, *, bos: bool = False, fraction: float = 0.3) -> dict[str, int | float | str]:
    asked = TokenizeSettings(8, total, bos, None, 0, fraction, 0)
    return tokenize_corpus(corpus(), info(), asked, path)


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
            assert held_out(by_key[traced.document].split_name, 0.3, 0) == (name == "eval")
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
    with pytest.raises(DataError, match=saying("activations.total_tokens", "5,000", "1,483 characters of 40 documents")):
        run(tmp_path / "t", 5000)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=saying("held-out", 8, "0 of 40", "dataset.eval_fraction")):
        run(tmp_path / "t", 100, fraction=1e-6)
    with pytest.raises(DataError, match=saying("model.prepend_bos is true", "model.prepend_bos=false")):
        tokenize_corpus(corpus(), info(bos=None), TokenizeSettings(8, 10, True, None, 0, 0.3, 0), tmp_path / "t")


def sides(path: Path) -> dict[str, list[str]]:
    """{split: keys of its documents}."""
    store = open_tokens(path)
    return {part.name: [part.document(n)["key"] for n in range(part.n_documents)] for part in (store.train, store.eval)}


def test_equal_texts_are_on_one_side_and_counted(tmp_path: Path) -> None:
    once = corpus(300)
    twice = [*once, *(Document(f"again {d.key}", f" {d.text}\n") for d in once)]
    figures = tokenize_corpus(twice, info(), settings(4000), tmp_path / "t")
    found = {name: {key.removeprefix("again ") for key in keys} for name, keys in sides(tmp_path / "t").items()}
    assert sum(len(keys) for keys in sides(tmp_path / "t").values()) == 600
    assert len(found["train"]) + len(found["eval"]) == 300
    assert not found["train"] & found["eval"]
    assert figures["duplicate_documents"] == 300
    assert figures["near_duplicate_documents"] == figures["left_out_documents"] == 0


def test_the_side_is_drawn_from_the_text_or_from_the_key_where_that_is_said(tmp_path: Path) -> None:
    """By the definition: the first 8 bytes of a sha256, as a share of all numbers of 8 bytes."""

    def is_held(name: str) -> bool:
        return int(hashlib.sha256(f"0:{name}".encode()).hexdigest()[:16], 16) / 2**64 < 0.3

    for by_key in (False, True):
        texts = [Document(d.key, d.text, split_by_key=by_key) for d in corpus()]
        tokenize_corpus(texts, info(), settings(100), tmp_path / "t")
        names = {d.key: d.key if by_key else hashlib.blake2b(d.text.encode(), digest_size=16).hexdigest() for d in texts}
        assert sides(tmp_path / "t") == {
            "train": [key for key, name in names.items() if not is_held(name)],
            "eval": [key for key, name in names.items() if is_held(name)],
        }


def test_the_figures_count_the_documents_that_a_context_holds(tmp_path: Path) -> None:
    """Of a batch that is read whole only the first documents are used."""
    figures = run(tmp_path / "t", 100)
    store = open_tokens(tmp_path / "t")
    for part in (store.train, store.eval):
        used = len(np.unique(part.read(field="document_ids")))
        assert figures[f"{part.name}_documents"] == used
    assert figures["train_documents"] < store.train.n_documents


def long_texts(n: int, seed: int) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    return [[f"{word}" for word in rng.integers(0, 10_000, 200)] for _ in range(n)]


def test_near_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    """A copy with two words of 200 changed shares most sequences of five; other texts share none."""
    pytest.importorskip("datasketch")
    originals = long_texts(60, 0)
    copies = [[*words[:50], "other", *words[51:120], "another", *words[121:]] for words in originals]
    texts = [
        Document(f"{kind}{n}", " ".join(words)) for kind, of in (("a", originals), ("b", copies)) for n, words in enumerate(of)
    ]

    def pairs_apart() -> int:
        found = sides(tmp_path / "t")
        return len({key[1:] for key in found["train"]} & {key[1:] for key in found["eval"]})

    figures = tokenize_corpus(texts, info(), settings(5000), tmp_path / "t")
    assert pairs_apart() > 5
    assert figures["near_duplicate_documents"] == 0
    figures = tokenize_corpus(texts, info(), settings(5000, near_duplicate_similarity=0.8), tmp_path / "t")
    assert pairs_apart() == 0
    assert figures["near_duplicate_documents"] == 60
    assert figures["left_out_documents"] == 0


def test_what_resembles_documents_of_both_sides_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    drawn = {True: [], False: []}
    for words in long_texts(20, 1):
        document = Document(words[0], " ".join(words))
        drawn[held_out(document.split_name, 0.3, 0)].append(document)
    train, held = drawn[False][0], drawn[True][0]
    both = Document("both", f"{train.text} {held.text}")
    others = [d for side in drawn.values() for d in side[1:]]
    figures = tokenize_corpus(
        [train, held, both, *others], info(), settings(1000, near_duplicate_similarity=0.4), tmp_path / "t"
    )
    assert figures["left_out_documents"] == 1
    assert all("both" not in keys for keys in sides(tmp_path / "t").values())


@pytest.mark.parametrize("similarity", [1.0, 1e-308])
def test_the_ends_of_the_similarity_find_equal_texts(similarity: float) -> None:
    pytest.importorskip("datasketch")
    text = " ".join(f"word{i}" for i in range(50))
    near = NearDuplicates(similarity)
    assert near.side(Document("a", text), "eval") == ("eval", False)
    assert near.side(Document("b", text), "train") == ("eval", True)
    assert near.side(Document("c", "nothing of all this is in it"), "train") == ("train", False)


def test_near_duplicates_need_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(DataError, match=r"dataset\.near_duplicate_similarity needs .* `pip install datasketch`"):
        tokenize_corpus(corpus(), info(), settings(100, near_duplicate_similarity=0.8), tmp_path / "t")
