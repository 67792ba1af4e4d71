"""Triton kernels of the sparse step: they run on a CUDA device, or on the CPU with TRITON_INTERPRET=1.

Every one is deterministic: the same bits from run to run, ties go to the smaller place, and nothing waits for the device.
"""
