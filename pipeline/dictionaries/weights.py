"""By what a dictionary's weights are told from others."""

from __future__ import annotations

import hashlib

import torch

from pipeline.dictionaries.base import Dictionary


def weights_digest(dictionary: Dictionary) -> str:
    """sha256 over the names, shapes and bytes of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(dictionary.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
