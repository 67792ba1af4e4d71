"""Which tokens of a batch have features, and which a dictionary was trained without."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import DataError, ParamsError
from pipeline.hooks import split
from pipeline.norms.exclusion import NormLimits
from pipeline.norms.normalizer import stated_norms
from pipeline.params.dictionary_config import DictionaryConfig


def kept_tokens(mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """mask & ~padding, either of them being absent; None where every token is kept.

    Whether all are kept is looked at on the CPU only, elsewhere it would wait for the device.

    Args:
        mask: bool [...], True for a token that is trained on.
        padding: bool [...], True for a position that holds no token.
    """
    if padding is not None:
        mask = ~padding if mask is None else mask & ~padding
    return None if mask is None or (mask.device.type == "cpu" and bool(mask.all())) else mask


def exclusion(config: DictionaryConfig) -> NormLimits:
    """Norms above which the dictionary was trained without a token, by hook point (activations.max_norm_factor); often none."""
    return NormLimits.excluded(stated_norms(config, config.norms))


def excluded_tokens(config: DictionaryConfig, x: Tensor, target: Tensor | None = None) -> Tensor:
    """Which tokens the dictionary was trained without, bool of the tokens' shape.

    Args:
        config: of the dictionary.
        x: raw activations that it reads, [..., d_in], of several hook points [..., L, d_in].
        target: raw activations where it writes, likewise; None: only what it reads is looked at.
    """
    parts = split(x, config.hooks_in) | ({} if target is None else split(target, config.hooks_out))
    above = exclusion(config).above(parts)
    first = parts[config.hooks_in[0]]
    return torch.zeros(first.shape[:-1], dtype=torch.bool, device=x.device) if above is None else above.to(x.device)


def check_padding(padding: Tensor | None, x: Tensor, *, kind: str, reads_sequences: bool) -> None:
    """Refuse padding that is not of these contexts, or of a kind that reads each token by itself.

    Args:
        padding: bool [b, S], True for a position that holds no token; None: there are none.
        x: input [b, S, d_in].
        kind: of the dictionary.
        reads_sequences: features of a token depend on those before it.

    Raises:
        ParamsError: the kind reads no sequences.
        DataError: another type or shape.
    """
    if padding is None:
        return
    if not reads_sequences:
        raise ParamsError(f"padding: dictionary.kind '{kind}' reads each token by itself; leave tokens out with mask instead")
    if padding.dtype != torch.bool:
        raise DataError(
            f"padding: wanted bool, True for a position that holds no token, got {padding.dtype}; give padding.bool()"
        )
    if padding.shape != x.shape[:-1]:
        raise DataError(
            f"padding: wanted one value for each token, {list(x.shape[:-1])}, got {list(padding.shape)}; give it in the shape "
            "of the contexts"
        )
