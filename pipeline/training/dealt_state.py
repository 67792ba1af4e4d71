"""The state of a training whose features are dealt to processes: put together for a checkpoint, and parts of it taken again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pipeline.dictionaries.sharding import own_part
from pipeline.processes import Reductions


def of_all_features(state: Mapping[str, Tensor], group: Reductions) -> Mapping[str, Tensor]:
    """Plain tensors of all features, on the CPU; each process of the group calls this. On one process the state itself."""
    if group.size == 1:
        return state
    from torch.distributed.tensor import DTensor

    whole = ((name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor) for name, tensor in state.items())
    return {name: tensor.cpu() for name, tensor in whole}


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
