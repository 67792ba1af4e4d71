"""A text as token contexts for a language model, tokens as texts that can be told apart, and features by name."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.arguments import is_whole, shown
from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.lm.language_model import LanguageModel


def token_ids(text: str, model: LanguageModel) -> list[int]:
    """The text's tokens, without special ones.

    Raises:
        DataError: there are none.
    """
    ids = [int(i) for i in model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    if not ids:
        raise DataError("the text has no token; give some text")
    return ids


def contexts(ids: Sequence[int], size: int, bos: int | None) -> list[Tensor]:
    """Contexts int64 [1, T] of at most `size` tokens, with the beginning-of-text token first where one is given.

    A text that begins with that token itself, as a rendered chat may, gets no other.
    """
    body = size - (bos is not None)
    if body < 1:
        raise DataError(f"a context of {size} tokens has no room for text")
    first = [] if bos is None else [bos]
    if first and list(ids[:1]) == first and len(ids) > 1:
        ids = ids[1:]
    return [torch.tensor([[*first, *ids[start : start + body]]]) for start in range(0, len(ids), body)]


def bos_of(model: LanguageModel, prepend_bos: bool | str) -> int | None:
    """The token that each context starts with; `auto`: if the tokenizer puts it before a text by itself.

    Raises:
        DataError: it is asked for, and the tokenizer has none.
    """
    return model.bos_token(prepend_bos)


class ReadableTexts:
    """Texts of a model's tokens, in which bytes that are no UTF-8 by themselves stand as <0xE2>, as SentencePiece writes them.

    A decoder gives U+FFFD for each of them, so that the tokens of a split character could not be told apart.

    Args:
        model: whose tokens.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._text, self._tokenizer = model.token_text, model.tokenizer

    def __call__(self, token: int) -> str:
        text = self._text(token)
        return text if "\ufffd" not in text else readable(str(self._tokenizer.convert_ids_to_tokens(token)), text)


def readable(piece: str, text: str) -> str:
    """A vocabulary entry with its bytes written out; `text` if it is neither byte-level BPE nor a SentencePiece byte."""
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return piece
    if not all(c in _BYTE_OF for c in piece):
        return text
    decoded = bytes(_BYTE_OF[c] for c in piece).decode("utf-8", errors="surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda found: f"<0x{ord(found[0]) - 0xDC00:02X}>", decoded)


def _byte_alphabet() -> dict[str, int]:
    """{character: byte} of byte-level BPE vocabularies: printable bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def feature_name(index: int, shape: Sequence[int]) -> str:
    """`513`, or `2/513` for feature 513 of layer 2."""
    return "/".join(str(int(i)) for i in torch.unravel_index(torch.tensor(index), tuple(shape)))


def feature_index(name: str | int, shape: Sequence[int]) -> int:
    """The index of a feature among all, from its name; a number is the index already.

    Raises:
        DataError: no such feature.
    """
    if not isinstance(name, str):
        if not is_whole(name):
            raise DataError(f"feature: wanted a number such as 513, or '2/513' for feature 513 of layer 2, got {shown(name)}")
        if not 0 <= operator.index(name) < math.prod(shape):
            raise DataError(f"feature {name}: out of range; the dictionary has {math.prod(shape):,} features")
        return operator.index(name)
    parts = name.split("/")
    wanted = "LAYER/FEATURE" if len(shape) > 1 else "a number"
    if len(parts) != len(shape) or not all(part.isdecimal() for part in parts):
        raise DataError(f"feature '{name}': expected {wanted} within {' x '.join(str(n) for n in shape)}")
    places = [int(part) for part in parts]
    if any(place >= n for place, n in zip(places, shape, strict=True)):
        raise DataError(f"feature '{name}': out of range; the dictionary has {' x '.join(f'{n:,}' for n in shape)} features")
    index = 0
    for place, n in zip(places, shape, strict=True):
        index = index * n + place
    assert index < math.prod(shape)
    return index
