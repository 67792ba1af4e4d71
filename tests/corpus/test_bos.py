"""model.prepend_bos: contexts start with BOS where the tokenizer puts it before a text by itself, or as is stated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.analysis.inspection import inspect_text
from pipeline.analysis.steering import steer
from pipeline.analysis.texts import bos_of, contexts
from pipeline.corpus.bos import adds_bos
from pipeline.corpus.document import Document
from pipeline.corpus.tokenization import TokenizeSettings, bos_choice, prepends_bos, tokenize_corpus, tokenizer_info
from pipeline.corpus.tokens import open_tokens
from pipeline.errors import DataError
from pipeline.lm.loading import load_language_model, load_tokenizer
from pipeline.lm.text_input import bos_token
from tests.analysis.test_inspection import folded, sae
from tests.corpus.tokenizers import ADDING, PLAIN, WITHOUT, fast_tokenizer
from tests.lm.conftest import CONFIGURATIONS
from tests.lm.families import write_model
from tests.lm.gguf_files import vocabulary, write_gguf
from tests.messages import saying, says
from tests.project import Project

SETTINGS = TokenizeSettings(8, 100, "auto", None, 0, 0.3, 0)
CHOICES = {
    ADDING: ("true;", "'model'", "<s>"),
    PLAIN: ("false;", "'model'", "<s>", "not"),
    WITHOUT: ("false;", "'model'", "no beginning-of-text"),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_auto_is_what_the_tokenizer_does(tmp_path: Path, kind: str) -> None:
    fast_tokenizer(kind).save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    assert adds_bos(loaded) == (kind == ADDING)
    info = tokenizer_info(loaded, "model")
    assert prepends_bos("auto", info) is (kind == ADDING)
    says(bos_choice(info, "model"), *CHOICES[kind])
    assert prepends_bos(False, info) is False
    if kind == WITHOUT:
        with pytest.raises(DataError, match=saying("model.prepend_bos is true", "model.prepend_bos=false")):
            prepends_bos(True, info)
    else:
        assert prepends_bos(True, info) is True


@pytest.mark.parametrize(
    ("kind", "stated", "first"),
    [(ADDING, "auto", True), (ADDING, False, False), (PLAIN, "auto", False), (PLAIN, True, True), (WITHOUT, "auto", False)],
)
def test_contexts_start_with_bos_or_hold_none(tmp_path: Path, kind: str, stated: bool | str, first: bool) -> None:
    info = tokenizer_info(fast_tokenizer(kind), "model")
    documents = [Document(f"d{i}", "some text" * (1 + i % 3)) for i in range(40)]
    tokenize_corpus(documents, info, dataclasses.replace(SETTINGS, prepend_bos=stated), tmp_path / "t")
    store = open_tokens(tmp_path / "t")
    assert store.prepend_bos == first
    chosen = f"auto: {str(first).lower()}; the tokenizer" if stated == "auto" else f"{str(stated).lower()}; as stated"
    assert store.prepend_bos_why.startswith(chosen)
    for part in (store.train, store.eval):
        tokens = part.read()
        bos = np.zeros_like(tokens, dtype=bool) if info.bos is None else tokens == info.bos
        assert bos[:, 0].all() == first
        assert not bos[:, 1:].any()


@pytest.mark.parametrize("add_bos", [True, False, None])
def test_a_gguf_file_says_it_by_its_own_key(tmp_path: Path, add_bos: bool | None) -> None:
    """tokenizer.ggml.add_bos_token; a byte-level vocabulary without it adds none."""
    write_model(tmp_path / "llama", *CONFIGURATIONS["llama"])
    keys = {**vocabulary(tmp_path / "llama"), "tokenizer.ggml.add_bos_token": add_bos}
    loaded = load_tokenizer(write_gguf(tmp_path / "llama", tmp_path / "a.gguf", metadata=keys))
    assert adds_bos(loaded) is bool(add_bos)
    info = tokenizer_info(loaded, "a.gguf")
    assert prepends_bos("auto", info) is bool(add_bos)
    says(bos_choice(info, "a.gguf"), f"{str(bool(add_bos)).lower()};", "'a.gguf'", "<|endoftext|>")
    assert loaded("the cat", add_special_tokens=False)["input_ids"] == loaded("the cat")["input_ids"][bool(add_bos) :]


@pytest.mark.parametrize("prepend_bos", [True, "auto"])
def test_the_template_of_a_gguf_file_that_begins_with_bos_gets_no_other(
    tmp_path: Path, project: Project, prepend_bos: bool | str
) -> None:
    write_model(tmp_path / "llama", *CONFIGURATIONS["llama"])
    template = "{{ bos_token }}{% for message in messages %}{{ message.role + ': ' + message.content + ' ' }}{% endfor %}"
    keys = {**vocabulary(tmp_path / "llama", add_bos=True), "tokenizer.chat_template": template}
    write_gguf(tmp_path / "llama", project.path / "chat.gguf", metadata=keys)
    chats = [[{"role": "user", "content": "the cat"}, {"role": "assistant", "content": f"the mat {n}"}] for n in range(200)]
    (project.path / "chats.jsonl").write_text("".join(f"{json.dumps({'messages': chat})}\n" for chat in chats))
    project.set(model__model_name="chat.gguf", dataset__dataset_name_or_path="chats.jsonl", dataset__messages_field="messages")
    project.set(activations__total_tokens=500, model__prepend_bos=prepend_bos)
    outcome = project.run("tokenize_corpus")
    assert outcome.exit_code == 0, outcome.stderr
    store = open_tokens(project.path / "data" / "tokens.zarr")
    tokens = store.train.read()
    assert store.prepend_bos
    assert (tokens[:, 0] == 0).all()
    assert not ((tokens[:, 1:] == 0) & (tokens[:, :-1] == 0)).any()
    assert (tokens[:, 1:] == 0).any()  # and a conversation inside a context keeps its own
    figures = json.loads((project.path / "metrics" / "tokenize.json").read_text())
    says(figures["prepend_bos"], "true;", *(["stated"] if prepend_bos is True else ["'chat.gguf'", "<|endoftext|>"]))


def test_why_is_no_part_of_the_digest(tmp_path: Path) -> None:
    """The same tokens, stated and chosen: one content, told apart by the attribute alone."""
    info = tokenizer_info(fast_tokenizer(ADDING), "model")
    documents = [Document(f"d{i}", "some text" * (1 + i % 3)) for i in range(40)]
    stores = []
    for stated in ("auto", True):
        tokenize_corpus(documents, info, dataclasses.replace(SETTINGS, prepend_bos=stated), tmp_path / str(stated))
        stores.append(open_tokens(tmp_path / str(stated)))
    assert stores[0].digest == stores[1].digest
    assert stores[0].prepend_bos_why != stores[1].prepend_bos_why


def test_a_text_that_begins_with_bos_gets_no_other() -> None:
    assert [context.tolist() for context in contexts([0, 5, 6, 7], 3, 0)] == [[[0, 5, 6]], [[0, 7]]]
    assert [context.tolist() for context in contexts([5, 6, 7], 3, 0)] == [[[0, 5, 6]], [[0, 7]]]
    assert [context.tolist() for context in contexts([0, 5, 6, 7], 3, None)] == [[[0, 5, 6]], [[7]]]


def of_model(kind: str) -> SimpleNamespace:
    """As much of a language model as bos_of asks."""
    tokenizer = fast_tokenizer(kind)
    return SimpleNamespace(bos_token=lambda prepend: bos_token(tokenizer, prepend, "model"))


def test_texts_begin_as_contexts_do() -> None:
    assert bos_of(of_model(ADDING), "auto") == 0
    assert bos_of(of_model(ADDING), False) is None
    assert bos_of(of_model(PLAIN), "auto") is None
    assert bos_of(of_model(PLAIN), True) == 0
    assert bos_of(of_model(WITHOUT), "auto") is None
    with pytest.raises(DataError, match=saying("model.prepend_bos:", "'model'", "false")):
        bos_of(of_model(WITHOUT), True)


@pytest.mark.parametrize("kind", [ADDING, PLAIN])
def test_inspection_and_steering_take_auto(finished_project: Project, kind: str) -> None:
    """As true where the tokenizer adds BOS, as false where it does not; these two differ."""
    model = load_language_model(str(finished_project.path / "model"), device="cpu")
    model.tokenizer = fast_tokenizer(kind)
    made, text = folded(sae()), "the cat"
    found = {bos: inspect_text(text, made, model, prepend_bos=bos).tokens for bos in ("auto", True, False)}
    assert len(found[True]) == len(found[False]) + 1
    assert found["auto"] == found[kind == ADDING]
    losses = {bos: steer(text, made, model, "3", 2.0, n_tokens=2, prepend_bos=bos).loss for bos in ("auto", True, False)}
    assert losses[True] != losses[False]
    assert losses["auto"] == losses[kind == ADDING]


@pytest.mark.parametrize("kind", CHOICES)
def test_the_stage_says_what_auto_comes_to(project: Project, kind: str) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (project.path / "model" / file).unlink()
    fast_tokenizer(kind).save_pretrained(project.path / "model")
    outcome = project.run("tokenize_corpus")
    assert outcome.exit_code == 0, outcome.stderr
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("tokenize: model.prepend_bos auto: ")]
    says(line, *CHOICES[kind])
    store = open_tokens(project.path / "data" / "tokens.zarr")
    assert store.prepend_bos == (kind == ADDING)
    outcome = project.set(model__prepend_bos=False).run("tokenize_corpus")
    assert "prepend_bos" not in outcome.stderr
    assert open_tokens(project.path / "data" / "tokens.zarr").prepend_bos is False


def test_what_a_tokenizer_leaves_out_is_said(project: Project) -> None:
    config = project.path / "model" / "tokenizer_config.json"
    lines = project.run("tokenize_corpus").stderr
    assert not {"eos", "tokenizer_config.json"} & set(lines.split())
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "eos_token"}))
    says(project.run("tokenize_corpus").stderr, "no eos token")
    config.unlink()
    says(project.run("tokenize_corpus").stderr, "model has no tokenizer_config.json")
