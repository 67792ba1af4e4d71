"""Direct logit attribution: which next tokens a feature promotes and suppresses by what it writes to the residual stream.

(what the feature writes, times the final norm's gain, centred first for LayerNorm) W_U, the norm's scale left out; a feature
that writes at several hook points of the model is summed over those that `standing` names. Source: Elhage et al. 2021;
nostalgebraist 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pipeline.analysis.texts import ReadableTexts
from pipeline.errors import DataError, NumericsError
from pipeline.hook_keys import MAIN, split_key
from pipeline.lm.not_finite import advice
from pipeline.norms.normalizer import scale_factor

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.lm.unembedding import Unembedding
    from pipeline.norms.hook_norm import HookNorm


RESIDUAL = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")  # in the order of a layer
STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")


class Attribution(NamedTuple):
    """Tokens and what a feature of activation 1 adds to their logits, largest effect first.

    Attributes:
        promoted, suppressed: (text of the token, logit); the bytes of a split character stand as <0xE2>.
    """

    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]


def writes_residual_stream(dictionary: Dictionary) -> bool:
    """Whether all that it writes is added to, or is, the residual stream: only then does a feature have logits of its own."""
    return all(key.endswith(RESIDUAL) for key in dictionary.hooks_out)


def standing(keys: Sequence[str], alias: str = MAIN) -> list[int]:
    """Places in `keys` of one model's hook points whose rows add up to what a feature does to its residual stream.

    The outputs of attention and MLP layers are added to the stream. A reconstruction spliced in at hook_resid_pre, _mid or
    _post takes the stream's place, with all that was written before: of such hook points only the last one counts,
    or a feature of several layers would count once for each.
    """
    own = [place for place, key in enumerate(keys) if split_key(key)[0] == alias]
    streams = [_depth(keys[place]) for place in own if keys[place].endswith(STREAM)]
    if not streams:
        return own
    return [place for place in own if not keys[place].endswith(RESIDUAL) or _depth(keys[place]) >= max(streams)]


def _depth(key: str) -> tuple[int, int]:
    """Where a hook point stands in the model: layer, and place within it."""
    _, layer, site = split_key(key)[1].split(".", 2)
    return int(layer), RESIDUAL.index(site)


def unfolded_factor(norm_activation: str | None, norm: HookNorm) -> float:
    """The factor of SPEC 3 at a hook point; token-wise and batch-wise have none of their own and get that of the mean norm."""
    name = norm_activation if norm_activation in ("dataset-wise", "dataset-rms", "inference") else "dataset-wise"
    return float(scale_factor(name, norm))


@torch.no_grad()
def written_directions(dictionary: Dictionary, norms: Mapping[str, HookNorm] | None = None, alias: str = MAIN) -> Tensor:
    """What each feature of activation 1 writes to the residual stream of one model, [all features, D]: see `standing`.

    Args:
        dictionary: any kind.
        norms: {hook point: norm}: rows of an unfolded dictionary are divided by the factor of their hook point.
        alias: of the model.

    Raises:
        DataError: it writes nothing in that model.
    """
    total: Tensor | None = None
    for place in standing(dictionary.hooks_out, alias):
        key = dictionary.hooks_out[place]
        rows = dictionary.written_rows(place).detach().flatten(0, -2)
        if not dictionary.config.folded and norms is not None:
            rows = rows / unfolded_factor(dictionary.config.norm_activation, norms[key])
        total = rows if total is None else total + rows
    if total is None:
        raise DataError(f"the dictionary writes no hook point of model '{alias or 'model'}'")
    return total


class LogitEffects(NamedTuple):
    """What n directions add to the logits.

    Attributes:
        promoted, suppressed: (logits float32 [n, top], tokens int64 [n, top]), largest effect first, on the CPU; no more than
            there are tokens.
        kurtosis: float64 [n], excess kurtosis over the vocabulary (0 for normally distributed effects); nan: all are equal.
    """

    promoted: tuple[Tensor, Tensor]
    suppressed: tuple[Tensor, Tensor]
    kurtosis: Tensor


@torch.no_grad()
def logit_effects(directions: Tensor, model: LanguageModel, top: int) -> LogitEffects:
    """The effects of directions [n, D] of the residual stream.

    Raises:
        DataError: they are not as wide as the residual stream.
        NumericsError: an effect is not finite.
    """
    end = model.unembedding()
    if directions.shape[-1] != end.W_U.shape[-1]:
        raise DataError(
            f"the dictionary writes activations of width {directions.shape[-1]}, not to the residual stream of "
            f"{end.W_U.shape[-1]} of model '{model.name}'; its features have no direct logit attribution"
        )
    logits = end.logits(directions)
    if not bool(torch.isfinite(logits).all()):
        raise NumericsError(_not_finite(directions, logits, end, model))
    most = [tuple(part.cpu() for part in logits.topk(min(top, logits.shape[-1]), largest=largest)) for largest in (True, False)]
    centred = logits.double() - logits.double().mean(-1, keepdim=True)
    variance = centred.square().mean(-1)
    kurtosis = centred.pow(4).mean(-1) / variance.square() - 3.0
    return LogitEffects(most[0], most[1], kurtosis.cpu())  # type: ignore[arg-type]


def _not_finite(directions: Tensor, logits: Tensor, end: Unembedding, model: LanguageModel) -> str:
    """What is not finite in logits [n, V] of directions [n, D], and what to do."""
    row, token = (int(i) for i in (~torch.isfinite(logits)).nonzero()[0])
    if not bool(torch.isfinite(directions).all()):
        return "the dictionary's decoder weights are not finite; train it anew with a lower trainer.lr"
    parts = {"final norm's gain": end.gain, f"unembedding of token {token}": end.W_U[token]}
    bad = next((what for what, part in parts.items() if part is not None and not bool(torch.isfinite(part).all())), None)
    what = f"the {bad} is not finite" if bad else f"they overflow float32 (direction {row}, token {token})"
    return f"model '{model.name}': the logits that features add cannot be computed: {what}: {advice(model.dtype)}"


def attribute(directions: Tensor, model: LanguageModel, top: int = 10) -> list[Attribution]:
    """The tokens that each direction [n, D] promotes and suppresses most."""
    effects = logit_effects(directions, model, top)
    shown = ReadableTexts(model)

    def named(part: tuple[Tensor, Tensor], row: int) -> list[tuple[str, float]]:
        values, tokens = (t[row].tolist() for t in part)
        return [(shown(token), value) for value, token in zip(values, tokens, strict=True)]

    return [Attribution(named(effects.promoted, i), named(effects.suppressed, i)) for i in range(len(directions))]
