"""Which kernels a run uses, said in a line; what this device cannot do is refused before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import ParamsError
from pipeline.kernels.dispatch import triton_fault
from pipeline.kernels.entries import EntryKernels
from pipeline.training.objective import autocast


def check_device(dictionary: Dictionary, amp_dtype: str) -> None:
    """Refuse Triton kernels, or an autocast dtype, that the dictionary's device cannot run.

    Raises:
        ParamsError: which key to change.
    """
    check_kernels(dictionary.config.use_triton_kernel, amp_dtype, next(dictionary.parameters()).device)


def check_kernels(use_triton_kernel: bool | str, amp_dtype: str, device: torch.device) -> None:
    """:func:`check_device` of a dictionary that need not be there yet.

    Raises:
        ParamsError: which key to change.
    """
    if use_triton_kernel is True and (fault := triton_fault(device.type)) is not None:
        raise ParamsError(f"dictionary.use_triton_kernel: true on {device}, but {fault}; write auto or false")
    if amp_dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise ParamsError(f"trainer.amp_dtype: {name} computes no bfloat16; write float16 or float32")


class Way(NamedTuple):
    """How a dictionary's steps are computed.

    Attributes:
        rule: the kernels, and when they are used.
        share: of the features that are active; None: there is no budget that tells.
        by: which of them are used at that share.
    """

    rule: str
    share: float | None
    by: str


def way(dictionary: Dictionary, amp_dtype: str, k: int) -> Way:
    """How steps of `k` active features per token (and layer) are computed."""
    first = next(dictionary.parameters())
    with autocast(first.device, amp_dtype):
        kernels: EntryKernels = dictionary.kernels(first.device)
    if not dictionary.activation.budgeted:
        return Way(kernels.rule, None, "")
    share = k / dictionary.config.k_layers / dictionary.config.d_sae
    return Way(kernels.rule, share, "chosen entries" if kernels.entries_pay(first.dtype, share) else "dense products")


def ways_in_words(ways: Mapping[str, Way]) -> list[str]:
    """A line for each rule of the kernels, with what follows from it for those of which the share of active features is known.

    Args:
        ways: of each member of a sweep, or of "".
    """
    lines: dict[str, dict[str, list[str]]] = {}
    for name, (rule, share, by) in ways.items():
        told = lines.setdefault(rule, {})
        if share is not None:
            told.setdefault(by, []).append(f"{share:.3g} ({name})" if name else f"{share:.3g}")
    return [
        "; ".join([rule, *(f"{', '.join(shares)} are active here: {by}" for by, shares in told.items())])
        for rule, told in lines.items()
    ]
