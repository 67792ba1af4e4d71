"""A language model that is linear but for its MLPs: attention patterns and the norms' denominators are those of a run.

Queries and keys are held, so that each head's pattern is; a norm divides by what it divided by,

    hook_normalized = r c(x),   c(x) = x, of a LayerNorm x - mean(x),   r = <n, c(x)> / <c(x), c(x)> of the run

so that every activation is a linear function, with an offset, of what the tokens and the MLPs add to the residual stream.
Source: Ameisen et al. 2025, local replacement model. Norms inside the attention (of queries and keys) stand before what is
held; that of an MLP's output (Gemma 2) stands before hook_mlp_out, which is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.lm.language_model import LanguageModel
    from pipeline.lm.splicing import Replacement

ALLOWED = 0.02  # relative, of what a norm gives from r c(x): bfloat16 rounds to 0.004
TINY = 1e-30


class Frozen:
    """What is held of the run on some tokens.

    Args:
        model: the language model.
        tokens: int64 [b, T].

    Attributes:
        reads: hook points that the replacements look up: a run has to keep them.

    Raises:
        DataError: the model's attention has no queries and keys to hold, or a norm is of neither kind.
    """

    def __init__(self, model: LanguageModel, tokens: Tensor) -> None:
        held, norms = _held(model), dict(_norms(model))
        self.reads = tuple(dict.fromkeys(norms.values()))
        found = model.activations(tokens, [*held, *norms, *self.reads])
        self._held = {hook: found[hook] for hook in held}
        self._norms = {norm: _Norm(norm, x, found[x], found[norm]) for norm, x in norms.items()}

    def replacements(self) -> dict[str, Replacement]:
        """For a run on the same tokens, or of one context on copies of it, [n, T] for [1, T]."""

        def hold(value: Tensor) -> Replacement:
            return lambda captured, original: value.expand_as(original)

        return {**{hook: hold(value) for hook, value in self._held.items()}, **self._norms}


class _Norm:
    """A norm that divides by what it divided by."""

    def __init__(self, name: str, read: str, x: Tensor, n: Tensor) -> None:
        self._read = read
        fits = []
        for centred in (False, True):
            c = _centred(x, centred).double()
            r = (n.double() * c).sum(-1, keepdim=True) / c.square().sum(-1, keepdim=True).clamp_min(TINY)
            fits.append((float((n.double() - r * c).norm() / n.double().norm().clamp_min(TINY)), centred, r.to(x.dtype)))
        error, self._is_centred, self._r = min(fits, key=lambda fit: fit[0])
        if error > ALLOWED:
            raise DataError(f"{name} is no LayerNorm or RMSNorm of {read} (off by {error:.1%}), and can't be held")

    def __call__(self, captured: Mapping[str, Tensor], original: Tensor) -> Tensor:
        return _centred(captured[self._read], self._is_centred) * self._r


def _centred(x: Tensor, centred: bool) -> Tensor:
    return x - x.mean(-1, keepdim=True) if centred else x


def _held(model: LanguageModel) -> list[str]:
    names = set(model.hook_points())
    held = [f"blocks.{layer}.attn.{site}" for layer in range(model.n_layers) for site in ("hook_q", "hook_k")]
    missing = [hook for hook in held if hook not in names]
    if missing:
        raise DataError(f"the attention of {model.name} has no {missing[0]}, whose pattern would be held")
    return held


def _norms(model: LanguageModel) -> Iterator[tuple[str, str]]:
    """(hook_normalized of a norm, what it reads), in the order of a run."""
    names = set(model.hook_points())
    for layer in range(model.n_layers):
        before = f"blocks.{layer}."
        middle = "hook_resid_mid" if f"{before}hook_resid_mid" in names else "hook_resid_pre"
        for norm, read in (("ln1", "hook_resid_pre"), ("ln1_post", "attn.hook_out"), ("ln2", middle)):
            if f"{before}{norm}.hook_normalized" in names:
                yield f"{before}{norm}.hook_normalized", before + read
    if "ln_final.hook_normalized" in names:
        yield "ln_final.hook_normalized", f"blocks.{model.n_layers - 1}.hook_resid_post"


@torch.no_grad()
def agreement(logits_BTV: Tensor, other_BTV: Tensor, mask_BT: Tensor) -> Tensor:
    """Whether both name the same most likely token, float64 [n], of each counted prediction (mask[b, t + 1] is True)."""
    same = logits_BTV[:, :-1].argmax(-1) == other_BTV[:, :-1].argmax(-1)
    return same[mask_BT[:, 1:]].double()
