"""Chat messages as a text: what the tokenizer's own chat template makes of them, and which characters are whose.

1. A row's messages are rendered by `apply_chat_template`; encoded without further special tokens, the text has the tokens that
   `apply_chat_template` gives.
2. Where a message begins and ends is what the template makes of the messages before it, if that is how the whole begins.
3. The assistant's characters are those that a template marks by {% generation %}. Where it marks none: from behind the prompt
   for a reply (`add_generation_prompt`) to the message's end, its end-of-turn token included.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.errors import DataError
from pipeline.foreign import reading, shortened

ASSISTANT = ("assistant", "model")  # roles of the assistant; the latter is Gemma's
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CORRECT = "correct the row, or take it out"
_MARK = "put {% generation %} and {% endgeneration %} around what the assistant says in the template"


class Message(NamedTuple):
    """A message of a conversation.

    Attributes:
        role: of who says it.
        start, end: its characters in the text, with what the template puts around it; -1 where the template renders the
            messages up to it otherwise alone than here.
    """

    role: str
    start: int
    end: int


class Content(NamedTuple):
    """What a row holds.

    Attributes:
        text: the text, or the rendered messages.
        messages: of a chat, in order.
        counted: (start, end) of the characters whose tokens count; None: all.
    """

    text: str
    messages: tuple[Message, ...] = ()
    counted: tuple[tuple[int, int], ...] | None = None


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: of transformers.
        name: of the model.

    Raises:
        DataError: it has no chat template.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        if not tokenizer.chat_template:
            raise DataError(
                f"tokenizer of '{name}': dataset.messages_field is given, but there is no chat template; take the model's chat "
                "variant, put a chat_template.jinja beside the tokenizer, or give text by dataset.text_field"
            )
        with reading(f"tokenizer of '{name}': of its chat templates none is the default", "name one of them 'default'"):
            self.marked = _MARKED.search(tokenizer.get_chat_template()) is not None

    def content(self, value: Any, place: str, assistant_only: bool) -> Content:
        """The text of a row's messages; empty where there are none.

        Args:
            value: what the row holds.
            place: file and row, for messages.
            assistant_only: only the assistant's tokens count.

        Raises:
            DataError: no list of {role, content}, the template refuses it, or does not tell where the assistant speaks.
        """
        messages = _checked(value, place)
        if not messages:
            return Content("")
        whole = self._rendered(messages, place)
        ends = self._ends(messages, whole)
        check_unicode(whole, place)
        own = tuple(
            Message(message["role"], -1, -1) if start is None or end is None else Message(message["role"], start, end)
            for message, (start, end) in zip(messages, itertools.pairwise(ends), strict=True)
        )
        if not assistant_only:
            return Content(whole, own)
        counted = self._marked_spans(messages, place) if self.marked else self._replies(messages, whole, ends, place)
        return Content(whole, own, tuple(counted))

    def _rendered(self, messages: Sequence[Mapping[str, Any]], place: str, prompt: bool = False) -> str:
        roles = shortened(", ".join(message["role"] for message in messages))
        with reading(f"{place}: the chat template of '{self._name}' refuses the messages, by {roles}", _CORRECT):
            return self._raw(messages, prompt)

    def _raw(self, messages: Sequence[Mapping[str, Any]], prompt: bool = False) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))

    def _ends(self, messages: Sequence[Mapping[str, Any]], whole: str) -> list[int | None]:
        """Where each message ends in the text, 0 first; None where the messages up to it alone are not how the text begins."""
        ends: list[int | None] = [0]
        for n in range(1, len(messages)):
            try:
                begin = self._raw(messages[:n])
            except Exception:  # as of a system message alone
                begin = None
            ends.append(len(begin) if begin is not None and whole.startswith(begin) else None)
        return [*ends, len(whole)]

    def _replies(
        self, messages: Sequence[Mapping[str, Any]], whole: str, ends: Sequence[int | None], place: str
    ) -> list[tuple[int, int]]:
        """What the assistant says, from behind the prompt for it, of a template that does not mark it."""
        found = []
        for n, message in enumerate(messages):
            if message["role"] not in ASSISTANT:
                continue
            end = ends[n + 1]
            prompt = self._rendered(messages[:n], place, prompt=True) if n else None
            if prompt is None or end is None or not whole.startswith(prompt):
                raise self._unknown(f"{place}: message {n}", "renders what is before a reply otherwise alone than with it")
            start = len(prompt)
            if start == ends[n] and not whole[start:end].lstrip().startswith(message["content"].strip()):
                raise self._unknown(f"{place}: message {n}", "has no prompt for a reply (add_generation_prompt)")
            found.append((start, end))
        return found

    def _unknown(self, place: str, why: str) -> DataError:
        return DataError(
            f"{place}: the chat template of '{self._name}' {why}, so the assistant's tokens cannot be told; {_MARK}, or set "
            "dataset.assistant_tokens_only=false"
        )

    def _marked_spans(self, messages: Sequence[Mapping[str, Any]], place: str) -> list[tuple[int, int]]:
        """The characters of the runs of tokens that the tokenizer's own mask has."""
        with reading(f"{place}: the chat template of '{self._name}' marks no assistant tokens", _MARK):
            encoded = self._tokenizer.apply_chat_template(
                list(messages),
                return_dict=True,
                return_assistant_tokens_mask=True,
                tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
            )
        spans: list[tuple[int, int]] = []
        before = 0
        for mask, (start, end) in zip(encoded["assistant_masks"], encoded["offset_mapping"], strict=True):
            if mask and before:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            elif mask:
                spans.append((start, end))
            before = mask
        return spans


def _checked(value: Any, place: str) -> list[Mapping[str, Any]]:
    wanted = "wanted a list of messages, each {role, content} with text in both"
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{place}: holds {kind_of(value)}; {wanted}")
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise DataError(f"{place}: message {number} is {kind_of(message)}; {wanted}")
        for key in ("role", "content"):
            text = message.get(key)
            if not isinstance(text, str):
                keys = shortened(", ".join(map(str, message)))
                found = f"has {kind_of(text)} as its {key}" if key in message else f"has no {key} (its keys: {keys or 'none'})"
                raise DataError(f"{place}: message {number} {found}; {wanted}")
    return list(value)


def kind_of(value: object) -> str:
    """`a number`, of what a row holds."""
    if value is None:
        return "null"
    kinds = {
        bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "bytes", str: "text"
    }  # fmt: skip
    return kinds.get(type(value), type(value).__name__)


def check_unicode(text: str, place: str) -> None:
    """Refuse a text that no file can hold.

    Raises:
        DataError: it has half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: character {error.start} of the text is half a surrogate pair "
            f"(\\u{ord(text[error.start]):04x}), which is no Unicode text; remove it or write the text anew"
        ) from None
