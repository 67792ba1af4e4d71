"""The Triton kernels, on a GPU if there is one, else interpreted, against plain torch in float64.

The checks are those of `python -m benchmarks.gpu`; here at sizes that an interpreter takes, with blocks small enough that
rows, runs and matrices still span several. They run in one process of their own, since TRITON_INTERPRET is read once.
"""

from __future__ import annotations

import json
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
    checks._step(device, gate, 40, 70, 3, 6)
""",
    "timings": """
from benchmarks import gpu
bench, tiny = gpu.Bench(device, 1), gpu.Size("tiny", 24, 64, 3, 8)
gpu.measure_limits(bench, True)
gpu.measure_kernels(bench, tiny)
gpu.measure_generation(bench, True)
gpu.measure_training(bench, tiny, ("topk", "batchtopk", "jumprelu"), ("bfloat16",), 1)
measured = [row["what"] for row in bench.rows]
assert {"sparse_decode", "generation to layer 6", "step, jumprelu, bfloat16, graph", "step, topk, bfloat16, from a store"} < set(measured)
""",
    "a wrong kernel": """
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
    raise AssertionError("nothing was found")
finally:
    select_rows.select_rows = right
""",
}
EACH = """
import contextlib, json, sys, traceback
for name, code in json.load(sys.stdin).items():
    fault = ""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            exec(code)
    except Exception:
        fault = traceback.format_exc()
    print(json.dumps([name, fault]), flush=True)
"""


@pytest.fixture(scope="module")
def faults() -> dict[str, str]:
    """What is wrong with each case, empty for nothing; an interpreted kernel says the same each time."""
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    once = "checks.TIMES = 1\n" if interpreted else ""
    command = [sys.executable, "-c", SET_UP + once + EACH]
    done = subprocess.run(
        command, input=json.dumps(CASES), env=os.environ | interpreted, capture_output=True, text=True, check=False
    )
    return dict.fromkeys(CASES, done.stderr) | dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_plain_torch(case: str, faults: dict[str, str]) -> None:
    """The last case: the checks notice a selection that is off by one entry."""
    assert faults[case] == ""
