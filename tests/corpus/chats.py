"""A small tokenizer with chat templates, and conversations; by hand, the pieces that each template makes of them."""

from __future__ import annotations

from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|head|>' + message.role + '<|text|>\n\n' + message.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|text|>\n\n' }}{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' + message.content | trim + '<end>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for message in messages %}{{ '<turn>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<end>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<end>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
# What no beginning of a conversation tells of the whole: the system message stands before the last one.
LATE = (
    "{% for message in messages %}{% if message.role != 'system' %}"
    "{{ '<turn>' + message.role + '\n' }}{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + '\n' }}"
    "{% endif %}{{ message.content + '<end>' }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "turns": TURNS, "marked": MARKED}

BOS = "<s>"
SPECIALS = [BOS, "</s>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|text|>", "<|eot|>", "<turn>", "<end>"]
Messages = list[dict[str, Any]]

_WORDS = ("what", "is", "a cat?", "it", "sat", "on the mat", "caf\u00e9 \U0001f408", "2 + 2", "yes.")


def said(*texts: str, system: str | None = None) -> Messages:
    """User and assistant by turns."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, *({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts))]


def conversations(n: int, system: bool = False) -> list[Messages]:
    """Different ones, of 2, 4 or 6 turns."""
    made = []
    for number in range(n):
        turns = 2 * (1 + number % 3)
        texts = [f"{_WORDS[(number + turn) % len(_WORDS)]} {number * turn}" for turn in range(turns)]
        made.append(said(*texts, system="be brief" if system and number % 2 else None))
    return made


def pieces(name: str, messages: Messages) -> list[tuple[str, int | None, bool]]:
    """(text, number of the message, whether the assistant says it), by hand; the first special token has no message here."""
    found: list[tuple[str, int | None, bool]] = [] if name == "chatml" else [(BOS, None, False)]
    for n, message in enumerate(messages):
        role, content, own = message["role"], message["content"], message["role"] == "assistant"
        if name == "chatml":
            found += [(f"<|im_start|>{role}\n", n, False), (f"{content}<|im_end|>\n", n, own)]
        elif name == "headers":
            found += [(f"<|head|>{role}<|text|>\n\n", n, False), (f"{content.strip()}<|eot|>", n, own)]
        elif name == "turns":
            found += [(f"<turn>{'model' if own else role}\n", n, False), (f"{content.strip()}<end>\n", n, own)]
        else:
            found += [(f"<turn>{role}\n", n, False), (f"{content}<end>", n, own), ("\n", n, False)]
    return found


def chat_tokenizer(template: str | None, adds_bos: bool = True) -> Any:
    """Byte-level BPE with a few merges; `adds_bos`: it puts BOS before a text by itself, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*_WORDS, "user system assistant model \n\n be brief"] * 3, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token="</s>")
    made.chat_template = template
    return made
