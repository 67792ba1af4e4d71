"""By what a dictionary's weights are told from others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary


def weights_digest(dictionary: Dictionary) -> str:
    """sha256 over the names, shapes and bytes of the weights."""
    return digest_of({name: (tuple(tensor.shape), [tensor.detach()]) for name, tensor in dictionary.state_dict().items()})


def digest_of(weights: Mapping[str, tuple[tuple[int, ...], Iterable[Tensor]]]) -> str:
    """The same of {name: shape of a tensor, and its pieces along the first dimension}."""
    digest = hashlib.sha256()
    for name, (shape, pieces) in sorted(weights.items(), key=lambda item: item[0]):
        for number, piece in enumerate(pieces):
            if number == 0:
                digest.update(f"{name} {shape} {piece.dtype}\n".encode())
            digest.update(piece.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
