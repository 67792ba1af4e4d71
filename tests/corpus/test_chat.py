"""Chat messages: the tokens of the tokenizer's own template, whose they are, which of them count, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from pipeline.corpus.chat import ChatTemplate
from pipeline.corpus.sources import documents
from pipeline.corpus.tokenization import TokenizeSettings, counted_tokens, tokenize_corpus, tokenizer_info
from pipeline.corpus.tokens import TokenSplit, TokenStore, open_tokens
from pipeline.errors import DataError
from pipeline.params.schema import DatasetParams
from tests.corpus.chats import LATE, TEMPLATES, TURNS, Messages, chat_tokenizer, conversations, pieces, said
from tests.messages import saying

CONTEXT = 32


def write_chats(path: Path, chats: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"n": n, "chat": chat}) + "\n" for n, chat in enumerate(chats)))
    return path


def section(path: Path, only: bool = False, **more: Any) -> DatasetParams:
    return DatasetParams(
        dataset_name_or_path=str(path), messages_field="chat", assistant_tokens_only=only, shuffle_seed=None, **more
    )


def tokenized(
    path: Path, tokenizer: Any, out: Path, *, only: bool = False, prepend_bos: bool | str = True, total: int = 300
) -> TokenStore:
    corpus = documents(section(path, only), (), ChatTemplate(tokenizer, "tiny"))
    asked = TokenizeSettings(CONTEXT, total, prepend_bos, None, 0, 0.3, 0, counted=only)
    figures = tokenize_corpus(corpus, tokenizer_info(tokenizer, "tiny"), asked, out)
    store = open_tokens(out)
    for part in (store.train, store.eval):
        contexts = np.arange(part.n_contexts)
        assert part.mask(contexts, part.read()).sum() == figures[f"{part.name}_tokens"]
    return store


def streams(part: TokenSplit) -> dict[int, list[tuple[int, int, int]]]:
    """{document: (token, context, position) of its own tokens in order}, without those that the packing has put there."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    arrays = {field: part.read(field=field) for field in ("tokens", "document_ids", "char_starts")}
    for context, position in np.ndindex(*arrays["tokens"].shape):
        if arrays["char_starts"][context, position] >= 0:
            number = int(arrays["document_ids"][context, position])
            found.setdefault(number, []).append((int(arrays["tokens"][context, position]), context, position))
    return found


def ids_of(tokenizer: Any, messages: Messages) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])


def expected(tokenizer: Any, name: str, messages: Messages) -> list[tuple[int, int | None, bool]]:
    """(token, message, whether the assistant says it): of the piece, by hand, in which the token's first character is."""
    by_hand = pieces(name, messages)
    whose = [n for n, (text, _, _) in enumerate(by_hand) for _ in text]
    encoded = tokenizer("".join(text for text, _, _ in by_hand), add_special_tokens=False, return_offsets_mapping=True)
    return [
        (token, *by_hand[whose[start]][1:])
        for token, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "prepend_bos"), [*((name, True) for name in TEMPLATES), ("headers", False), ("headers", "auto")]
)
def test_tokens_are_those_of_the_tokenizers_own_template(tmp_path: Path, name: str, prepend_bos: bool | str) -> None:
    tokenizer = chat_tokenizer(TEMPLATES[name])
    chats = conversations(40, system=name != "turns")
    store = tokenized(write_chats(tmp_path / "a.jsonl", chats), tokenizer, tmp_path / "t", prepend_bos=prepend_bos)
    bos, whole = tokenizer.bos_token_id, 0
    for part in (store.train, store.eval):
        tokens, starts = part.read(), part.read(field="char_starts")
        for number, stream in streams(part).items():
            messages = chats[part.document(number)["origin"]["row"]]
            wanted = ids_of(tokenizer, messages)
            found = [token for token, *_ in stream]
            assert found == wanted[: len(found)]
            whole += len(found) == len(wanted)
        # Every context begins with one BOS where that is asked for: the template's own, or else one that is put there.
        assert not (starts[:, 1:] < 0).any()
        if prepend_bos is False:
            assert not (starts < 0).any()
        else:
            assert (tokens[:, 0] == bos).all()
            assert not ((starts[:, 0] < 0) & (tokens[:, 1] == bos)).any()
            assert (starts[:, 0] < 0).any()
    assert whole > 5


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_token_traces_to_its_message(tmp_path: Path, name: str) -> None:
    tokenizer = chat_tokenizer(TEMPLATES[name])
    chats = conversations(40, system=name != "turns")
    path = write_chats(tmp_path / "a.jsonl", chats)
    store = tokenized(path, tokenizer, tmp_path / "t")
    for part in (store.train, store.eval):
        for number, stream in list(streams(part).items())[:3]:
            record = part.document(number)
            messages = chats[record["origin"]["row"]]
            for (token, context, position), (wanted, message, _) in zip(
                stream, expected(tokenizer, name, messages), strict=False
            ):
                traced = store.trace(part.name, context, position)
                assert (token, traced.document) == (wanted, f"a.jsonl#{record['origin']['row']}")
                assert traced.message == (message or 0)
                assert traced.role == messages[message or 0]["role"]
                assert traced.text == record["text"][traced.start : traced.end]
                assert traced.source is None
    first = store.train.read(field="char_starts")[:, 0]
    put = int(np.flatnonzero(first < 0)[0])
    assert (store.trace("train", put, 0).message, store.trace("train", put, 0).text) == (None, "")


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_assistants_tokens_count(tmp_path: Path, name: str) -> None:
    tokenizer = chat_tokenizer(TEMPLATES[name])
    chats = conversations(40, system=name != "turns")
    store = tokenized(write_chats(tmp_path / "a.jsonl", chats), tokenizer, tmp_path / "t", only=True, total=150)
    for part in (store.train, store.eval):
        tokens, counted = part.read(), part.read(field="counted")
        mask = part.mask(np.arange(part.n_contexts), tokens)
        seen = [0, 0]
        for number, stream in streams(part).items():
            messages = chats[part.document(number)["origin"]["row"]]
            wanted = expected(tokenizer, name, messages)
            assert [token for token, *_ in wanted] == ids_of(tokenizer, messages)
            for (_, context, position), (token, _, own) in zip(stream, wanted, strict=False):
                assert counted[context, position] == own
                assert mask[context, position] == (own and token > 1)
                seen[own] += 1
        assert min(seen) > 20


def test_a_template_that_marks_the_assistant_is_asked_by_the_tokenizers_own_mask(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(TEMPLATES["marked"])
    chats = conversations(40, system=True)
    store = tokenized(write_chats(tmp_path / "a.jsonl", chats), tokenizer, tmp_path / "t", only=True, total=150)
    counted, n = store.train.read(field="counted"), 0
    for number, stream in streams(store.train).items():
        messages = chats[store.train.document(number)["origin"]["row"]]
        encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        for (_, context, position), wanted in zip(stream, encoded["assistant_masks"], strict=False):
            assert counted[context, position] == wanted
            n += 1
    assert n > 300


def test_tokens_that_reach_into_a_span_count() -> None:
    offsets = np.array([(0, 2), (2, 5), (5, 5), (5, 6), (5, 6), (6, 9), (9, 12)])
    for spans in ([], [(0, 12)], [(3, 5)], [(5, 6)], [(1, 2), (8, 10)], [(0, 0), (4, 4), (6, 7)]):
        naive = [any(max(a, s) < min(b, e) for s, e in spans) for a, b in offsets]
        assert counted_tokens(offsets, spans).tolist() == naive, spans


def test_a_store_of_text_has_nothing_of_a_chat(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"it sat on the mat {n}"}) + "\n" for n in range(60)))
    tokenizer = chat_tokenizer(None)
    corpus = documents(DatasetParams(dataset_name_or_path=str(path)), ())
    tokenize_corpus(corpus, tokenizer_info(tokenizer, "t"), TokenizeSettings(8, 100, True, None, 0, 0.3, 0), tmp_path / "t")
    store = open_tokens(tmp_path / "t")
    assert store.train.counted() is None
    assert store.train.source_ids is None
    assert store.sources == ()
    assert set(store.train.document(0)) == {"key", "origin", "text"}
    assert np.array_equal(store.train.mask(np.arange(2), store.train.read(0, 2)), store.mask(store.train.read(0, 2)))


@pytest.mark.parametrize("form", ["parquet", "json", "saved"])
def test_other_forms_hold_messages_too(tmp_path: Path, form: str) -> None:
    tokenizer = chat_tokenizer(TEMPLATES["chatml"])
    chats = [*conversations(3), None, []]
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"chat": chats}), path)
    elif form == "json":
        path.write_text(json.dumps([{"chat": chat} for chat in chats]))
    else:
        datasets.Dataset.from_dict({"chat": chats}).save_to_disk(path)
    corpus = documents(section(path), (), ChatTemplate(tokenizer, "tiny"))
    assert [document.text for document in corpus] == [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats[:3]]
    assert corpus.skipped.null_rows == 1


def test_a_template_may_write_whole_numbers(tmp_path: Path) -> None:
    """A file's 5 is no 5.0."""
    tokenizer = chat_tokenizer("{% for message in messages %}{{ message.content }} {{ message.n }}{% endfor %}")
    path = write_chats(tmp_path / "a.jsonl", [[{"role": "user", "content": "a", "n": 5}]])
    assert [document.text for document in documents(section(path), (), ChatTemplate(tokenizer, "tiny"))] == ["a 5"]


ASSISTANT_FIRST = [{"role": "assistant", "content": "hello"}]
FAULTS: list[tuple[str, Any, bool, tuple[object, ...]]] = [
    (TURNS, "text", False, ("line 2", "text", "role", "content", "dataset.messages_field")),
    (TURNS, {"role": "user"}, False, ("line 2", "an object", "a list of messages")),
    (TURNS, ["hello"], False, ("line 2", "message 0", "text", "role", "content")),
    (TURNS, [{"from": "human", "value": "hello"}], False, ("message 0 has no role", "from, value")),
    (TURNS, [{"role": "user", "content": None}], False, ("message 0", "null", "content")),
    (TURNS, [{"role": "user", "content": [{"type": "text"}]}], False, ("message 0", "a list", "content")),
    (TURNS, [{"role": 3, "content": "a"}], False, ("message 0", "a number", "role")),
    (TURNS, said("a", "b", system="c"), False, ("line 2", "'tiny'", "system, user, assistant", "roles must alternate")),
    (TURNS, said("half \ud83d"), False, ("line 2", "half a surrogate pair", "\\ud83d")),
    (TEMPLATES["headers"], ASSISTANT_FIRST, True, ("message 0", "{% generation %}", "dataset.assistant_tokens_only=false")),
    (
        LATE,
        said("a", "b", "c", "d", system="e"),
        True,
        ("message 2", "{% generation %}", "dataset.assistant_tokens_only=false"),
    ),
    (TEMPLATES["chatml"].partition("{% if")[0], said("a", "b"), True, ("message 1", "add_generation_prompt", "generation")),
]


@pytest.mark.parametrize(("template", "row", "only", "parts"), FAULTS)
def test_what_is_no_conversation_is_refused_by_its_row(
    tmp_path: Path, template: str, row: Any, only: bool, parts: tuple[object, ...]
) -> None:
    path = write_chats(tmp_path / "a.jsonl", [said("a", "b") if not only else said("a"), row])
    with pytest.raises(DataError, match=saying("a.jsonl:", *parts)) as raised:
        list(documents(section(path, only), (), ChatTemplate(chat_tokenizer(template), "tiny")))
    assert "\n" not in str(raised.value)


def test_what_no_beginning_tells_has_no_message(tmp_path: Path) -> None:
    """A conversation of which the template makes something else than of its beginnings is read, as far as they tell."""
    path = write_chats(tmp_path / "a.jsonl", [said("a", "b", "c", system="d")])
    (document,) = documents(section(path), (), ChatTemplate(chat_tokenizer(LATE), "tiny"))
    assert document.text == "<turn>user\na<end><turn>assistant\nb<end><turn>user\nd\nc<end>"
    assert [message.role for message in document.messages] == ["system", "user", "assistant", "user"]
    assert [(message.start, message.end) for message in document.messages][1] == (-1, -1)


def test_no_template_no_column_no_messages(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=saying("'tiny'", "dataset.messages_field", "chat template", "dataset.text_field")):
        ChatTemplate(chat_tokenizer(None), "tiny")
    chat = ChatTemplate(chat_tokenizer(TURNS), "tiny")
    path = tmp_path / "a.jsonl"
    path.write_text('{"chats": []}\n')
    with pytest.raises(DataError, match=saying("line 1", "dataset.messages_field", "'chat'", "'chats'")):
        list(documents(section(path), (), chat))
    pyarrow.parquet.write_table(pyarrow.table({"chat": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=saying("dataset.messages_field", "'chat'", "string", "{role, content}")):
        list(documents(section(tmp_path / "a.parquet"), (), chat))
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=saying("dataset.messages_field", ".txt", ".jsonl")):
        list(documents(section(tmp_path / "a.txt"), (), chat))
    with pytest.raises(DataError, match=saying("dataset.messages_field", "'demo'")):
        documents(DatasetParams(messages_field="chat"), (), chat)
