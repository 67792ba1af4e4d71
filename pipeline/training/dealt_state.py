"""The state of a training whose features are dealt to processes: this process's part of it."""

from __future__ import annotations

from torch import Tensor

from pipeline.dictionaries.sharding import own_part
from pipeline.processes import Reductions


def own_tensor(tensor: Tensor, dim: int | None, group: Reductions) -> Tensor:
    """This process's part of a tensor of a state.

    Args:
        tensor: a DTensor, or that of all features.
        dim: of features; None: it has none.
        group: over the processes that the features are dealt to.
    """
    if group.size == 1 or dim is None:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else own_part(tensor, dim, group)
