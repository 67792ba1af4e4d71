"""Text, or token ids in any form, as the token ids [b, T] of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pipeline.corpus.bos import adds_bos
from pipeline.errors import DataError

Tokens: TypeAlias = "str | Sequence[str] | Sequence[int] | Tensor"


def bos_token(tokenizer: Any, prepend_bos: bool | str, name: str) -> int | None:
    """The token that each context starts with; `auto`: if the tokenizer puts it before a text by itself.

    Args:
        tokenizer: of transformers.
        prepend_bos: true, false or "auto", as model.prepend_bos.
        name: of the model, for messages.

    Raises:
        DataError: it is asked for, and the tokenizer has none; or another word.
    """
    if isinstance(prepend_bos, str):
        if prepend_bos != "auto":
            raise DataError(f"model.prepend_bos: wanted true, false or 'auto', got {prepend_bos!r}")
        prepend_bos = adds_bos(tokenizer)
    if prepend_bos and tokenizer.bos_token_id is None:
        raise DataError(f"model.prepend_bos: the tokenizer of '{name}' has no beginning-of-text token; write false")
    return int(tokenizer.bos_token_id) if prepend_bos else None


def as_token_ids(given: Tokens, tokenizer: Any, prepend_bos: bool | str, name: str) -> Tensor:
    """Token ids int64 [b, T] of a text, of texts, or of ids.

    Args:
        given: a text; texts that have equally many tokens; ids of one context; or an integer tensor [T] or [b, T], which is
            taken as it is.
        tokenizer: of transformers.
        prepend_bos: whether a text starts with the beginning-of-text token, see :func:`bos_token`; ids are left as they are,
            and so is a text that begins with that token itself.
        name: of the model, for messages.

    Raises:
        DataError: nothing is given, a text has no token, texts differ in length, or it is none of these.
    """
    if isinstance(given, Tensor):
        if given.ndim not in (1, 2) or given.is_floating_point() or given.is_complex():
            raise DataError(f"token ids should be integers [T] or [b, T], got {given.dtype} of shape {tuple(given.shape)}")
        return given[None] if given.ndim == 1 else given
    if isinstance(given, str):
        return torch.tensor([_of_text(given, tokenizer, bos_token(tokenizer, prepend_bos, name))])
    items: list[Any] = list(given)
    if not items:
        raise DataError("wanted a text or token ids, got an empty list; give at least one token")
    if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        return torch.tensor([items])
    if not all(isinstance(item, str) for item in items):
        kinds = ", ".join(sorted({type(item).__name__ for item in items}))
        raise DataError(f"wanted a text, texts, token ids or a tensor of them, got a list of {kinds}")
    bos = bos_token(tokenizer, prepend_bos, name)
    contexts = [_of_text(text, tokenizer, bos) for text in items]
    lengths = [len(context) for context in contexts]
    if len(set(lengths)) > 1:
        raise DataError(
            f"texts of one run should have equally many tokens, got {', '.join(map(str, lengths))}; run them one at a time, or "
            "give token ids [b, T]"
        )
    return torch.tensor(contexts)


def _of_text(text: str, tokenizer: Any, bos: int | None) -> list[int]:
    ids = [int(i) for i in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    if not ids:
        raise DataError("the text has no token; give some text")
    return ids if bos is None or ids[0] == bos else [bos, *ids]
