"""The features of a dictionary dealt to several processes, each of which holds as many, and put together again.

Features are dealt in order (of a dictionary with layers those of each layer). What has no dimension of features, as a decoder's
bias, is the same in all processes. What a kind computes for its tokens then is of its process's features alone; base.py sums
what they add up to over the `feature_group`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.dictionaries.base import Dictionary, in_memory_order
from pipeline.errors import ParamsError
from pipeline.memory import Need
from pipeline.params.dictionary_config import DictionaryConfig
from pipeline.params.rules.distributed import KEY, indivisible
from pipeline.processes import Reductions

BLOCK = 2**26  # numbers of all features' weights that a device holds at a time while they are put together


def check_divisible(config: DictionaryConfig, kind: type[Dictionary], size: int) -> None:
    """Refuse a dictionary whose features so many processes cannot hold.

    Raises:
        ParamsError: what is not divisible, or the kind has not said which of its weights belong to features.
    """
    if size == 1:
        return
    if kind.FEATURE_DIMS is None:
        raise ParamsError(f"{KEY}: {size}, and dictionary.kind '{config.kind}' cannot be dealt to processes; write 1")
    if (fault := indivisible(config, size)) is not None:
        raise ParamsError(f"{KEY}: {fault}")


def part_need(dictionary: Dictionary, size: int) -> Need:
    """What the weights of a whole dictionary take in each of so many processes."""
    n_bytes = sum(
        parameter.nbytes // (1 if feature_dim(dictionary, name) is None else size)
        for name, parameter in dictionary.named_parameters()
    )
    config = dictionary.config
    keys = {"dictionary.expansion_factor": config.d_sae / config.d_in}
    return Need(f"weights of {config.d_sae // size:,} of {config.d_sae:,} features", n_bytes, keys)


def feature_dim(dictionary: Dictionary, name: str) -> int | None:
    """The dimension of features of a tensor of the state_dict; None: it has none."""
    own = name.split(".")[0]
    if own in ("log_jumprelu_threshold", "gate_scale"):
        return len(dictionary.feature_shape) - 1
    return (dictionary.FEATURE_DIMS or {}).get(own)


@torch.no_grad()
def deal_(dictionary: Dictionary, group: Reductions) -> None:
    """Leave the dictionary this process's part of its features.

    Args:
        dictionary: whole, the same in all processes.
        group: over them.

    Raises:
        ParamsError: they cannot be dealt to so many.
    """
    if group.size == 1:
        return
    check_divisible(dictionary.config, type(dictionary), group.size)
    dims = {name: feature_dim(dictionary, name) for name in dictionary.state_dict()}
    weights = dictionary.state_dict()
    take_part_(dictionary, {name: own_part(weights[name], dim, group) for name, dim in dims.items() if dim is not None}, group)


@torch.no_grad()
def take_part_(dictionary: Dictionary, parts: Mapping[str, Tensor], group: Reductions) -> None:
    """Put tensors, whose features are this process's, in the place of those of these names; a gate_scale may come with them."""
    parameters = dict(dictionary.named_parameters())
    for name, tensor in parts.items():
        owner, _, own = name.rpartition(".")
        part = in_memory_order(tensor, dictionary.MEMORY_ORDER.get(name, range(tensor.ndim)))
        setattr(dictionary.get_submodule(owner), own, nn.Parameter(part) if name in parameters else part)
    dictionary.feature_group = group


def own_slices(dictionary: Dictionary, name: str, shape: Sequence[int], group: Reductions) -> tuple[slice, ...]:
    """What this process has of a whole tensor of the state_dict, of this shape; all of one without a dimension of features."""
    if (dim := feature_dim(dictionary, name)) is None:
        return (slice(None),)
    n = shape[dim] // group.size
    return (*(slice(None),) * dim, slice(group.rank * n, (group.rank + 1) * n))


def own_part(whole: Tensor, dim: int, group: Reductions) -> Tensor:
    """A view of this process's part of a tensor along its dimension of features."""
    n = whole.shape[dim] // group.size
    return whole.narrow(dim, group.rank * n, n)


def features_of_all(part: Tensor, group: Reductions, dim: int = -1) -> Tensor:
    """`part`, what is of this process's features along `dim`, with that of the others, which each of them calls this for."""
    return part if group.size == 1 else torch.cat(group.gathered(part.transpose(0, dim))).transpose(0, dim)


def numbers_of_part(feature_shape: Sequence[int], rank: int, size: int) -> Tensor:
    """Numbers, among all features (layers one after another), of those that one of so many processes holds, int64 [n].

    Args:
        feature_shape: of what each holds.
    """
    *layers, n = feature_shape
    return torch.arange(math.prod(layers) * size * n).view(-1, size, n)[:, rank].reshape(-1)


@torch.no_grad()
def weights_of_all(dictionary: Dictionary, keeps: bool = True) -> dict[str, Tensor]:
    """The state_dict with the features of all processes, each of which calls this, on the CPU; on one the state_dict itself.

    A device holds a block of BLOCK numbers of the others' features at a time.

    Args:
        keeps: whether this process wants it; else it tells the others its part, and is given nothing.
    """
    group = dictionary.feature_group
    if group.size == 1:
        return dictionary.state_dict()
    found = {}
    for name, tensor in dictionary.state_dict().items():
        dim = feature_dim(dictionary, name)
        whole = tensor.cpu() if dim is None else _put_together(tensor, dim, group, keeps)
        if keeps and whole is not None:
            found[name] = whole
    return found


def _put_together(part: Tensor, dim: int, group: Reductions, keeps: bool) -> Tensor | None:
    """The whole tensor on the CPU, of which the processes have parts along `dim`; None: it is not kept."""
    shape = [n * group.size if i == dim else n for i, n in enumerate(part.shape)]
    whole = torch.empty(shape, dtype=part.dtype) if keeps else None
    across = next((i for i in range(part.ndim) if i != dim), None)
    if across is None:
        block = features_of_all(part, group, dim)
        return block.cpu() if keeps else None
    step = max(1, BLOCK * shape[across] // max(math.prod(shape), 1))
    for start in range(0, shape[across], step):
        n = min(step, shape[across] - start)
        block = features_of_all(part.narrow(across, start, n), group, dim)
        if whole is not None:
            whole.narrow(across, start, n).copy_(block)
    return whole


def of_all(dictionary: Dictionary, weights: dict[str, Tensor]) -> Dictionary:
    """The dictionary with all features, whose weights these are (see :func:`weights_of_all`): another, unless it has them."""
    return dictionary if dictionary.feature_group.size == 1 else dictionary.rebuilt(weights)
