"""Whether a tokenizer puts the beginning-of-text token before a text by itself: what the model was trained to see."""

from __future__ import annotations

from typing import Any


def adds_bos(tokenizer: Any) -> bool:
    """Whether encoding a plain text with a transformers tokenizer starts with its beginning-of-text token.

    Asked of the tokenizer itself rather than of its configuration, whose keys differ between families and versions. A chat
    model is asked the same: its template is for messages, and the text here is none.
    """
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a").input_ids[:1] == [bos]
