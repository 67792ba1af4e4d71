"""A tiny random language model as the chat model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.interpretation.chat import ChatError
from pipeline.interpretation.local import LocalModel
from tests.interpretation.conftest import set_context
from tests.messages import saying

MESSAGES = [{"role": "system", "content": "the mat"}, {"role": "user", "content": "the cat"}]
TEMPLATE = "{% for m in messages %}{{ m.role }}|{{ m.content }}|{% endfor %}{% if add_generation_prompt %}assistant|{% endif %}"
WITHOUT_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def greedy(folder: Path, prompt: str, n: int) -> str:
    """The continuation, a forward pass for each token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt)["input_ids"]
    written: list[int] = []
    with torch.no_grad():
        while len(written) < n:
            token = int(model(torch.tensor([[*ids, *written]])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            written.append(token)
    return tokenizer.decode(written, skip_special_tokens=True)


def test_plain_prompt_is_decoded_greedily(long_model: Path) -> None:
    answer = LocalModel(str(long_model), max_tokens=9).complete(MESSAGES)
    assert answer == greedy(long_model, "system: the mat\n\nuser: the cat\n\nassistant:", 9) != ""


@pytest.mark.parametrize(
    ("template", "prompt"),
    [(TEMPLATE, "system|the mat|user|the cat|assistant|"), (WITHOUT_SYSTEM, "user|the mat\n\nthe cat|assistant|")],
)
def test_chat_template(long_model: Path, tmp_path: Path, template: str, prompt: str) -> None:
    folder = Path(shutil.copytree(long_model, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(template)
    assert LocalModel(str(folder), max_tokens=5).complete(MESSAGES) == greedy(folder, prompt, 5)


def test_contexts_that_are_too_short(long_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(long_model, tmp_path / "model"))
    set_context(folder, 10)
    with pytest.raises(ChatError, match=saying("--local", 29, 10)):
        LocalModel(str(folder)).complete(MESSAGES)


def test_no_such_model(tmp_path: Path) -> None:
    for name in (str(tmp_path), "nobody/nothing"):
        with pytest.raises(ChatError, match=saying(f"--local {name}:", "tokenizer")) as caught:
            LocalModel(name).complete(MESSAGES)
        assert "\n" not in str(caught.value)
