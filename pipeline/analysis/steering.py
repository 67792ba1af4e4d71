"""Steering: what the language model does when a feature's direction is added to its activations at every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.analysis.attribution import standing
from pipeline.analysis.texts import bos_of, feature_index, token_ids
from pipeline.arguments import A_TEXT, checked, number, whole
from pipeline.dictionaries.given import A_DICTIONARY
from pipeline.errors import DataError, NumericsError
from pipeline.evaluation.language_model import Replacement
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.hook_keys import MAIN, by_model, split_key
from pipeline.lm.given import A_MODEL
from pipeline.lm.not_finite import advice

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.norms.hook_norm import HookNorm


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
    dictionary: Dictionary, feature: str | int, strength: float, norms: Mapping[str, HookNorm] | None = None, alias: str = MAIN
) -> dict[str, Replacement]:
    """{hook point: x -> x + strength * what the feature writes there}, of the written hook points of one model.

    What is added to the residual stream stays in it: of several hook points hook_resid_pre, _mid or _post only the last
    one at which the feature writes is changed (see pipeline.analysis.attribution.standing).

    Args:
        dictionary: any kind; of an unfolded one the directions are divided by the norm's factor.
        feature: `513`, or `2/513` for feature 513 of layer 2; or its index among all.
        strength: the activation that is added, in the dictionary's units: folded with raw units, the length of what is added
            (over all written hook points together).
        norms: {hook point: norm}, for a dictionary that is not folded.
        alias: of the model that is steered.

    Raises:
        DataError: no such feature, or it writes nothing in this model.
    """
    raw = RawDictionary(dictionary, norms)
    index = feature_index(feature, dictionary.feature_shape)
    rows = [dictionary.written_rows(place).detach().flatten(0, -2)[index] for place in range(len(dictionary.hooks_out))]
    there = {key: row for key, row in zip(dictionary.hooks_out, rows, strict=True) if bool(row.any())}
    found: dict[str, Replacement] = {}
    for place in standing(tuple(there), alias):
        key, row = list(there.items())[place]

        def replace(_: Mapping[str, Tensor], x: Tensor, row: Tensor = row, key: str = key) -> Tensor:
            factor = raw.normalizer.factor(key, x)
            return x + (strength * row.to(x.device) / factor).to(x.dtype)

        found[split_key(key)[1]] = replace
    if not found:
        models = ", ".join(f"'{name or 'model'}'" for name in by_model(dictionary.hooks_out))
        raise DataError(
            f"feature '{feature}' writes nothing at the hook points of model '{alias or 'model'}'; the dictionary writes those "
            f"of {models}"
        )
    return found


@checked(text=A_TEXT, dictionary=A_DICTIONARY, model=A_MODEL, strength=number(), n_tokens=whole(1), temperature=number(0))
def steer(
    text: str,
    dictionary: Dictionary,
    model: LanguageModel,
    feature: str | int,
    strength: float,
    *,
    norms: Mapping[str, HookNorm] | None = None,
    n_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    prepend_bos: bool | str = False,
    alias: str = MAIN,
) -> Steering:
    """Compare the model with itself when a feature is added at every token.

    Args:
        text: at most as long as a context of the model.
        dictionary, feature, strength, norms: see :func:`steering_replacements`.
        model: the language model that is steered.
        n_tokens, temperature, seed: see `LanguageModel.generate`; both continuations are drawn with the same seed.
        prepend_bos: whether the text starts with the beginning-of-text token; "auto": if the tokenizer puts it there by itself.
        alias: of `model` among those of the dictionary's hook points.

    Raises:
        DataError: no such feature; a text of fewer than two tokens, or one that is too long; a number out of its range.
        NumericsError: a loss or a logit is not finite, of the model as it is or steered.
    """
    bos = bos_of(model, prepend_bos)
    ids = token_ids(text, model)
    if bos is not None and ids[:1] != [bos]:
        ids = [bos, *ids]
    if model.max_context is not None and len(ids) > model.max_context:
        raise DataError(
            f"the text has {len(ids):,} tokens, model '{model.name}' takes {model.max_context:,} at a time; shorten the text"
        )
    replace = steering_replacements(dictionary, feature, strength, norms, alias)
    if len(ids) < 2:
        raise DataError("steering compares the loss of the text's tokens; give at least two tokens")
    by_token = dictionary.config.norm_activation != "batch-wise"  # its factor is that of all tokens
    losses, texts = [], []
    for change in (None, replace):
        loss = model.loss(ids, change)
        _require_finite(loss, model, torch.tensor([ids]), change)
        losses.append(float(loss.mean()))
        written = model.generate(ids, n_tokens, replace=change, temperature=temperature, seed=seed, cached=by_token)
        texts.append(model.tokenizer.decode(written))
    return Steering(losses[0], losses[1], texts[0], texts[1])


def _require_finite(found: Tensor, model: LanguageModel, ids: Tensor, replace: Mapping[str, Replacement] | None) -> None:
    """Refuse logits or losses of a run that are not finite."""
    if bool(torch.isfinite(found).all()):
        return
    first = model.first_not_finite(ids, replace)
    where = "its logits are not finite" if first is None else f"not finite, {first.place}"
    if replace is None:
        raise NumericsError(f"model '{model.name}': {where}: {advice(model.dtype)}")
    raise NumericsError(
        f"model '{model.name}', steered at {', '.join(replace)}: {where}; give a strength nearer to 0, or set model.dtype to "
        "float32 if it is not"
    )
