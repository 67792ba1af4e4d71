"""Steering: what the language model does when a feature's direction is added to its activations at every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.analysis.texts import bos_of, feature_index, token_ids
from pipeline.errors import DataError
from pipeline.evaluation.language_model import Replacement
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.hook_keys import split_key
from pipeline.seeding import generator

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.norms import HookNorm


@dataclass(frozen=True)
class Steering:
    """The model on one text, as it is and steered.

    Attributes:
        loss, steered_loss: mean cross entropy of the text's tokens, nats a token.
        continuation, steered_continuation: what the model writes after the text.
    """

    loss: float
    steered_loss: float
    continuation: str
    steered_continuation: str


def steering_replacements(
    dictionary: Dictionary, feature: str, strength: float, norms: Mapping[str, HookNorm] | None = None, alias: str = ""
) -> dict[str, Replacement]:
    """{hook point: x -> x + strength * what the feature writes there}, of the written hook points of one model.

    Args:
        dictionary: any kind; of an unfolded one the directions are divided by the norm's factor.
        feature: `513`, or `2/513` for feature 513 of layer 2.
        strength: the activation that is added, in the dictionary's units: folded with raw units, the length of what is added
            (over all written hook points together).
        norms: {hook point: norm}, for a dictionary that is not folded.
        alias: of the model that is steered.

    Raises:
        DataError: no such feature, or it writes nothing in this model.
    """
    raw = RawDictionary(dictionary, norms)
    index = feature_index(feature, dictionary.feature_shape)
    found: dict[str, Replacement] = {}
    for place, key in enumerate(dictionary.hooks_out):
        row = dictionary.written_rows(place).detach().flatten(0, -2)[index]
        model, hook = split_key(key)
        if model != alias or not bool(row.any()):
            continue

        def replace(_: Mapping[str, Tensor], x: Tensor, row: Tensor = row, key: str = key) -> Tensor:
            factor = 1.0 if dictionary.config.folded else raw.scale(key, x, None)
            return x + (strength * row.to(x.device) / factor).to(x.dtype)

        found[hook] = replace
    if not found:
        raise DataError(f"feature '{feature}' writes nothing at the hook points of this model")
    return found


@torch.no_grad()
def continue_text(
    ids: list[int],
    model: LanguageModel,
    n_tokens: int,
    *,
    replace: Mapping[str, Replacement] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """The tokens that the model writes after `ids`, up to the end of the text.

    Args:
        n_tokens: at most so many.
        replace: activations to replace.
        temperature: 0: always the likeliest token; else logits are divided by it and a token is drawn.
        seed: of the draws.
    """
    written: list[int] = []
    draw = generator(seed, "analysis", "continuation")
    longest = model.max_context or len(ids) + n_tokens
    for _ in range(n_tokens):
        logits = model.logits(torch.tensor([[*ids, *written][-longest:]]), replace)[0, -1].float().cpu()
        if temperature > 0:
            token = int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=draw))
        else:
            token = int(logits.argmax())
        if token == model.eos_token_id:
            break
        written.append(token)
    return written


def steer(
    text: str,
    dictionary: Dictionary,
    model: LanguageModel,
    feature: str,
    strength: float,
    *,
    norms: Mapping[str, HookNorm] | None = None,
    n_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    prepend_bos: bool = False,
) -> Steering:
    """Compare the model with itself when a feature is added at every token.

    Args:
        text: at most as long as a context of the model.
        dictionary, feature, strength, norms: see :func:`steering_replacements`.
        model: the language model.
        n_tokens, temperature, seed: see :func:`continue_text`; both continuations are drawn with the same seed.
        prepend_bos: the text starts with the beginning-of-text token.

    Raises:
        DataError: no such feature; a text of fewer than two tokens, or one that is too long.
    """
    replace = steering_replacements(dictionary, feature, strength, norms)
    bos = bos_of(model, prepend_bos)
    ids = [*([] if bos is None else [bos]), *token_ids(text, model)]
    if len(ids) < 2:
        raise DataError("steering compares the loss of the text's tokens; give at least two tokens")
    losses, texts = [], []
    for change in (None, replace):
        losses.append(float(model.loss(torch.tensor([ids]), change).mean()))
        written = continue_text(ids, model, n_tokens, replace=change, temperature=temperature, seed=seed)
        texts.append(model.tokenizer.decode(written))
    return Steering(losses[0], losses[1], texts[0], texts[1])
