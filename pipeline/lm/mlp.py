"""The MLP of one block as a function, whatever the family: a module, projections in the block, one that adds the residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.lm.architectures import Architecture


class BlockMLP(nn.Module):
    """From what the MLP reads to what it adds to the residual stream.

    Its parts are run by `forward`, not called: hooks of a run in progress are not to see it.

    Args:
        block: of transformers.
        names: of the block's modules.
    """

    def __init__(self, block: nn.Module, names: Architecture) -> None:
        super().__init__()
        self._adds_residual = names.adds_residual
        self._mlp = None if names.mlp is None else block.get_submodule(names.mlp)
        self._norm = None if names.ln2_post is None else block.get_submodule(names.ln2_post)
        inside = (*names.mlp_in, names.activation, names.mlp_out) if names.mlp is None else ()
        self._projections = nn.ModuleList(block.get_submodule(path) for path in inside if path is not None)

    def forward(self, x: Tensor) -> Tensor:
        """[b, T, D] -> [b, T, D]."""
        if self._mlp is not None:
            given = (x, torch.zeros_like(x)) if self._adds_residual else (x,)
            found: Any = self._mlp.forward(*given)
            out: Tensor = found[0] if isinstance(found, tuple) else found  # a mixture of experts may give its router's scores
        else:
            out = x
            for part in self._projections:
                out = part.forward(out)
        return out if self._norm is None else self._norm.forward(out)
