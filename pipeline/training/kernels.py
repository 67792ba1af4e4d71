"""Which kernels a run uses, said in a line; what this device cannot do is refused before anything is computed."""

from __future__ import annotations

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


def way_in_words(dictionary: Dictionary, amp_dtype: str, k: int) -> str:
    """The kernels, when they are used, and whether that is so at `k` active features per token (and layer)."""
    first = next(dictionary.parameters())
    with autocast(first.device, amp_dtype):
        kernels: EntryKernels = dictionary.kernels(first.device)
    if not dictionary.activation.budgeted:
        return kernels.rule
    config = dictionary.config
    share = k / config.k_layers / config.d_sae
    way = "chosen entries" if kernels.entries_pay(first.dtype, share) else "dense products"
    return f"{kernels.rule}; {share:.3g} are active here: {way}"
