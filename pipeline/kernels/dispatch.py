"""Which kernels work on the entries of a device's tensors."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from pipeline.kernels.cpu import CpuEntries
from pipeline.kernels.entries import EntryKernels
from pipeline.kernels.reference import TorchEntries

AUTO = "auto"
OLDEST = (8, 0)  # CUDA capability that the Triton kernels are compiled for


@functools.cache
def entry_kernels(
    device_type: str, use_triton: bool | str = AUTO, sparsity_threshold: float = 0.996, dtype: torch.dtype = torch.float32
) -> EntryKernels:
    """The kernels of a device.

    Args:
        device_type: of the tensors.
        use_triton: dictionary.use_triton_kernel: auto takes Triton's on CUDA; true also on an interpreted CPU.
        sparsity_threshold: dictionary.sparsity_threshold_for_triton_spmm_kernel.
        dtype: of the products.
    """
    wanted = use_triton is True or (use_triton == AUTO and device_type == "cuda")
    if wanted and dtype != torch.float64 and triton_fault(device_type) is None:
        from pipeline.kernels.gpu.entries import TritonEntries

        return TritonEntries(dtype, sparsity_threshold)
    return CpuEntries() if device_type == "cpu" else TorchEntries()


@functools.cache
def triton_fault(device_type: str) -> str | None:
    """Why the Triton kernels cannot run on a device, and what would help; None: they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device_type == "cpu":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else "they need a CUDA device (TRITON_INTERPRET=1 interprets them on the CPU, slowly)"
    if device_type != "cuda":
        return f"they need a CUDA device, not {device_type}"
    found = torch.cuda.get_device_capability()
    if found < OLDEST:
        return f"they need CUDA capability {OLDEST[0]}.{OLDEST[1]}, and this device has {found[0]}.{found[1]}"
    return None
