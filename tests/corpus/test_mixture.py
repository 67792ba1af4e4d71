"""Sources mixed by weights: shares of every beginning, one source a context, what each gave, what has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.corpus.document import Document, held_out
from pipeline.corpus.mixture import Mixture, Source
from pipeline.corpus.tokenization import TokenizeSettings, tokenize_corpus
from pipeline.corpus.tokens import open_tokens
from pipeline.errors import DataError
from tests.corpus.test_tokenization import WORDS, info
from tests.messages import says
from tests.project import make_project

CONTEXT, TOTAL = 8, 4000
WEIGHTS = {"few": 1.0, "many": 3.0, "half": 2.0}


def texts(name: str, n: int, words: int) -> list[Document]:
    rng = np.random.default_rng(len(name))
    return [Document(f"d{i}", " ".join(rng.choice(WORDS[2:], words + i % 5))) for i in range(n)]


def mixture(**sizes: int) -> Mixture:
    """Sources of documents of very different lengths."""
    lengths = {"few": 40, "many": 7, "half": 19}
    return Mixture(
        {name: Source(texts(name, sizes.get(name, 2000), lengths[name]), weight) for name, weight in WEIGHTS.items()}
    )


def run(path: Path, mixed: Mixture, **more: Any) -> dict[str, int | float | str]:
    return tokenize_corpus(mixed, info(), TokenizeSettings(CONTEXT, TOTAL, False, None, 0, 0.2, 0, **more), path)


def test_every_beginning_has_the_shares_asked_for(tmp_path: Path) -> None:
    figures = run(tmp_path / "t", mixture())
    store = open_tokens(tmp_path / "t")
    kept = store.mask(store.train.read()).sum(1)
    assert store.sources == tuple(WEIGHTS)
    ids = store.train.source_ids
    assert ids is not None
    total = np.cumsum(kept)
    longest = 45 + CONTEXT  # a document's tokens, and those that wait for a whole context
    for at, (name, weight) in enumerate(WEIGHTS.items()):
        own = np.cumsum(np.where(ids == at, kept, 0))
        assert np.abs(own - total * weight / 6).max() < 2 * longest
        assert figures[f"train_tokens.{name}"] == own[-1]
    assert figures["train_tokens"] == total[-1] >= TOTAL > total[-2]


def test_a_context_is_of_one_source_and_every_token_traces_to_it(tmp_path: Path) -> None:
    figures = run(tmp_path / "t", mixture())
    store = open_tokens(tmp_path / "t")
    own = {name: {d.key: d for d in texts(name, 2000, length)} for name, length in (("few", 40), ("many", 7), ("half", 19))}
    for part in (store.train, store.eval):
        documents, ids, tokens = part.read(field="document_ids"), part.source_ids, part.read()
        assert ids is not None
        assert ids.dtype == np.int32
        assert len(ids) == part.n_contexts
        for at, name in enumerate(WEIGHTS):
            found = np.unique(documents[ids == at])
            assert {part.document(int(n))["source"] for n in found} == {name}
            assert figures[f"{part.name}_documents.{name}"] == len(found)
            assert figures[f"{part.name}_contexts.{name}"] == (ids == at).sum()
            assert figures[f"{part.name}_tokens.{name}"] == store.mask(tokens[ids == at]).sum()
        assert figures[f"{part.name}_documents"] == len(np.unique(documents))
        for context in range(0, part.n_contexts, 17):
            traced = store.trace(part.name, context, 3)
            name, _, key = traced.document.partition(":")
            assert traced.source == name == store.sources[ids[context]]
            text = own[name][key].text
            assert held_out(own[name][key].split_name, 0.2, 0) == (part.name == "eval")
            assert text[traced.start : traced.end] == traced.text
            assert tokens[context, 3] == 0 or traced.text == WORDS[tokens[context, 3]]


def test_the_store_names_its_sources_and_its_digest_covers_them(tmp_path: Path) -> None:
    digests = set()
    for place, names in (("a", ("x", "y")), ("b", ("x", "y")), ("c", ("x", "z"))):
        # The same documents, of other sources.
        made = {name: Source(texts("same", 300, 9)[at::2], 1.0) for at, name in enumerate(names)}
        figures = tokenize_corpus(
            Mixture(made), info(), TokenizeSettings(CONTEXT, 500, False, None, 0, 0.2, 0), tmp_path / place
        )
        attributes = json.loads((tmp_path / place / "zarr.json").read_text())["attributes"]
        assert attributes["sources"] == [
            {"name": name, **{f"{split}_contexts": figures[f"{split}_contexts.{name}"] for split in ("train", "eval")}}
            for name in names
        ]
        digests.add(figures["digest"])
    assert len(digests) == 2


def test_a_source_that_ends_is_said_and_never_repeated(tmp_path: Path) -> None:
    mixed = mixture(many=30)
    run(tmp_path / "t", mixed)
    store = open_tokens(tmp_path / "t")
    keys = [part.document(n)["key"] for part in (store.train, store.eval) for n in range(part.n_documents)]
    assert len(keys) == len(set(keys))
    assert sum(key.startswith("many:") for key in keys) == 30
    (line,) = mixed.lines()
    given, total = mixed.tokens["many"], sum(mixed.tokens.values())
    assert given == sum(len(d.text.split()) for d in texts("many", 30, 7) if not held_out(d.split_name, 0.2, 0))
    says(line, "dataset.sources.many", f"{given:,} of {total:,}", "50.0%", f"{given / total:.1%}")
    # The others go on with their own shares.
    assert mixed.tokens["half"] == pytest.approx(2 * mixed.tokens["few"], abs=100)
    assert mixture().lines() == []


def test_equal_texts_of_two_sources_are_on_one_side(tmp_path: Path) -> None:
    same = texts("same", 300, 9)
    mixed = Mixture({name: Source(same, 1.0) for name in ("a", "b")})
    figures = run(tmp_path / "t", mixed)
    store = open_tokens(tmp_path / "t")
    sides = [{part.document(n)["text"] for n in range(part.n_documents)} for part in (store.train, store.eval)]
    assert not sides[0] & sides[1]
    assert figures["duplicate_documents"] > 200


def test_a_fault_names_the_source(tmp_path: Path) -> None:
    def broken() -> Any:
        yield from texts("half", 3, 9)
        raise DataError("half.jsonl: line 4 is not JSON")

    mixed = Mixture({"whole": Source(texts("few", 2000, 9), 1.0), "broken": Source(broken(), 1.0)})
    with pytest.raises(DataError, match=r"^dataset\.sources\.broken: half\.jsonl: line 4 is not JSON$"):
        run(tmp_path / "t", mixed)


def test_the_stage_mixes_text_and_chat(tmp_path: Path) -> None:
    from tests.corpus.chats import TEMPLATES, chat_tokenizer, conversations

    project = make_project(tmp_path / "project")
    chat_tokenizer(TEMPLATES["chatml"]).save_pretrained(project.path / "model")
    (project.path / "chat.jsonl").write_text("".join(json.dumps({"turns": chat}) + "\n" for chat in conversations(200)))
    sources = {
        "web": {"dataset_name_or_path": "text.jsonl", "weight": 3},
        "chat": {"dataset_name_or_path": "chat.jsonl", "messages_field": "turns", "assistant_tokens_only": True},
    }
    project.set(dataset__dataset_name_or_path="demo", dataset__sources=sources, activations__total_tokens=1000)
    for stage in ("inputs", "tokenize_corpus"):
        outcome = project.run(stage)
        assert outcome.exit_code == 0, outcome.stderr
    text = json.loads((project.path / "data" / "inputs" / "text.json").read_text())
    assert set(text) == {"web", "chat"}
    figures = json.loads((project.path / "metrics" / "tokenize.json").read_text())
    assert figures["train_tokens.chat"] == pytest.approx(figures["train_tokens.web"] / 3, abs=80)
    store = open_tokens(project.path / "data" / "tokens.zarr")
    counted, ids = store.train.counted(), store.train.source_ids
    assert counted is not None
    assert ids is not None
    assert store.sources == ("chat", "web")  # in the order of names
    assert counted[ids == 1].all()
    assert 0 < counted[ids == 0].mean() < 0.8
    listed = [{"name": name, **source} for name, source in sources.items()]
    project.set(dataset__sources=listed)
    assert project.run("tokenize_corpus").exit_code == 0
    assert json.loads((project.path / "metrics" / "tokenize.json").read_text()) == figures
