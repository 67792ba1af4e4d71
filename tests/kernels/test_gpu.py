"""The Triton kernels, on a GPU if there is one, else interpreted, against plain torch in float64.

The checks are those of `python -m benchmarks.gpu`; here at sizes that an interpreter takes, with blocks small enough that
rows, runs and matrices still span several. They run in a process of their own, since TRITON_INTERPRET is read once.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

SET_UP = """
import torch
from benchmarks import gpu_checks as checks
from pipeline.kernels.gpu import accumulate, decode, select_batch, select_rows
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
select_rows.BLOCK, select_rows.SCANNED, select_rows.MOST_GROUPS = 64, 32, 64
select_batch.BLOCK, select_batch.SCANNED = 512, 64
accumulate.RUN, decode.WIDTH = 16, 32
"""
CASES = {
    "rows": """
for shape, ties in (((2, 17, 1), False), ((1, 1, 1), False), ((2, 33, 33), True), ((1, 200, 7), False)):
    checks._rows(device, torch.float32, *shape, ties)
for dtype in (torch.bfloat16, torch.float16):
    checks._rows(device, dtype, 1, 130, 7, True)
h = torch.zeros((2, 200), dtype=torch.bfloat16, device=device)  # more entries at the bound than there is room for
assert select_rows.select_rows(h, 5).columns.tolist() == [[0, 1, 2, 3, 4]] * 2
""",
    "batch": """
for shape in ((3, 17, 1), (4, 33, 132), (5, 300, 70)):
    for ties in (False, True):
        checks._batch(device, torch.float32, *shape, ties)
for dtype in (torch.bfloat16, torch.float16):
    checks._batch(device, dtype, 5, 100, 70, True)
z = torch.zeros(8, 100, device=device)  # all at the bound
assert select_batch.select_batch(z, 50).flat.tolist() == list(range(50))
""",
    "products": """
for dtype in checks.DTYPES:
    checks._products(device, dtype, 6, 20, 70)
for shape in ((1, 1, 1), (25, 5, 100)):
    checks._products(device, torch.float32, *shape)
""",
    "dictionaries": """
for kind, act_fn in (("clt", "batchlayertopk"), ("crosscoder", "relu"), ("sae", "jumprelu"), ("transcoder", "topk")):
    assert (kind, act_fn) in checks.entry_cases()
    checks._entries(device, kind, act_fn, 12)
from pipeline.kernels.gpu import entries  # what the selections do not take is torch's
entries.MOST_K = entries.MOST_ENTRIES = 1
kernels, rows = entries.TritonEntries(torch.float32, 0.0), torch.tensor([[3.0, 1.0, 2.0]], device=device)
assert kernels.largest(rows, 2).tolist() == kernels.largest_of_all(rows, 2).tolist() == [0, 2]
""",
    "adam": "checks._adam(device)",
    "step": """
for gate in ("topk", "batchtopk"):
    checks._step(device, gate)
""",
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_plain_torch(case: str) -> None:
    environment = os.environ if torch.cuda.is_available() else os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", SET_UP + CASES[case]]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]


def test_a_wrong_kernel_is_found() -> None:
    """The checks notice a selection that is off by one entry."""
    broken = """
right = select_rows.select_rows
def off(h, k, scale=None):
    found = right(h, k, scale)
    return found._replace(columns=(found.columns + 1) % h.shape[1])
select_rows.select_rows = off
try:
    checks._rows(device, torch.float32, 3, 17, 2, False)
except AssertionError as error:
    assert "other places" in str(error)
else:
    raise SystemExit("nothing was found")
"""
    environment = os.environ if torch.cuda.is_available() else os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", SET_UP + broken], env=environment, check=True)
