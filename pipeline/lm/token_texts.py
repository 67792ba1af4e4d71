"""The text of single tokens, spaces included.

A tokenizer's decoder may strip the space that a text begins with (Llama's does), so a token is decoded behind another one,
whose own text is then taken off.
"""

from __future__ import annotations

from typing import Any


class TokenTexts:
    """Texts of a tokenizer's tokens, each decoded once.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        ids = [int(i) for i in tokenizer("a", add_special_tokens=False)["input_ids"]]
        self._before = ids[-1:]
        self._taken_off = self._decoded([])
        self._texts: dict[int, str] = {}

    def _decoded(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode([*self._before, *ids], clean_up_tokenization_spaces=False)
        return text

    def __repr__(self) -> str:
        return f"TokenTexts(token id -> its text, by {type(self._tokenizer).__name__})"

    def __call__(self, token: int) -> str:
        found = self._texts.get(token)
        if found is None:
            text = self._decoded([token])
            fits = text.startswith(self._taken_off)
            found = text[len(self._taken_off) :] if fits else str(self._tokenizer.decode([token]))
            self._texts[token] = found
        return found
