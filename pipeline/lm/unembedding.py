"""From a direction in the residual stream to logits: final norm and unembedding, as plain tensors.

logits = (norm(x) * gain + bias) W_U, where the norm divides by a scale that depends on the token and, a LayerNorm, subtracts
the mean before. What a direction adds to the logits is, up to that scale, (direction - its mean, * gain) W_U. A projection
between norm and unembedding (OPT) and a factor of the logits are part of W_U. A soft cap (Gemma 2: c tanh(logit / c)) is not
linear: what is attributed is added to the logits before it, whose order it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.lm.placement import weights_there

if TYPE_CHECKING:
    from pipeline.lm.architectures import Architecture


@dataclass(frozen=True)
class Unembedding:
    """The end of a language model.

    Attributes:
        W_U: [V, D], the rows of the unembedding (of its transpose, as torch keeps it).
        gain: [D] of the final norm; None: 1.
        centred: the final norm is a LayerNorm, which subtracts the mean.
        softcap: logits are squashed into (-softcap, softcap) after this; None: they are not.
    """

    W_U: Tensor
    gain: Tensor | None
    centred: bool
    softcap: float | None = None

    @torch.no_grad()
    def logits(self, directions: Tensor) -> Tensor:
        """What directions [n, D] of the residual stream add to the logits, [n, V] float32, before a soft cap and without the
        norm's scale.
        """
        rows = directions.to(self.W_U.device, torch.float32)
        if self.centred:
            rows = rows - rows.mean(-1, keepdim=True)
        if self.gain is not None:
            rows = rows * self.gain.float()
        return rows @ self.W_U.float().T


def read_unembedding(
    model: nn.Module, architecture: Architecture, name: str, gain: Tensor | None, device: torch.device | None = None
) -> Unembedding:
    """The end of a transformers model.

    Args:
        model: with its head.
        architecture: where its final norm is, and what stands between that and the logits.
        name: of the model, for errors.
        gain: of the final norm.
        device: to put it on; None: where it is.

    Raises:
        DataError: the model has no head.
    """
    find: Any = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    if head is None:
        raise DataError(f"model '{name}' has no unembedding, which gives the logits; give one with a head that predicts tokens")
    config: Any = model.config
    projection = part_of(model, architecture.final_projection)
    with weights_there(head, projection):
        W_U = head.weight if projection is None else head.weight @ projection.get_parameter("weight")
    if architecture.logit_scale is not None:
        W_U = W_U * float(getattr(config, architecture.logit_scale))
    centred = isinstance(part_of(model, architecture.final_norm), nn.LayerNorm)
    if device is not None:
        W_U, gain = W_U.to(device), None if gain is None else gain.to(device)
    return Unembedding(W_U, gain, centred, getattr(config, "final_logit_softcapping", None))


def part_of(model: nn.Module, path: str | None) -> nn.Module | None:
    """The module at a path that a family declares, if it declares one."""
    return None if path is None else model.get_submodule(path)
