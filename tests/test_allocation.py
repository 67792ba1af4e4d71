"""What a process does with memory that it no longer uses."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys

import pytest

from pipeline.allocation import GROWN
from pipeline.garbage import uncollected

FAULTS = """
import resource, sys, threading
from pipeline.allocation import keep_freed_memory
keep_freed_memory()

def allocate():
    b"a" * 2**26
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        b"a" * 2**26
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "thread":
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
else:
    allocate()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize("where", ["process", "thread"])
def test_a_block_lies_where_the_last_one_lay(where: str) -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS, where], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**26 // resource.getpagesize()  # of 8 such blocks


def test_nothing_is_searched_in_the_block_and_all_is_as_before_after_it() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


HOLES = """
import sys
from pipeline.allocation import FreedMemory, keep_freed_memory, resident
keep_freed_memory()
before, kept, most = resident(), [], 0
freed = FreedMemory()
for number in range(24):
    batch = [bytearray(b"a") * ((100 + number) * 2**20) for _ in range(2)]
    most = max(most, resident())
    for each in batch:
        del each[2**18 :]  # what is left stays in its place; between the two is a hole, in which the next one has no room
    kept.append(batch)
    if sys.argv[1] == "looks":
        freed.look()
print((most - before) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_batches_leave_behind_does_not_make_the_process_larger_without_end() -> None:
    found = {}
    for way in ("looks", "does not look"):
        done = subprocess.run([sys.executable, "-c", HOLES, way], capture_output=True, text=True, check=True)
        found[way] = int(done.stdout)  # MB
    assert found["does not look"] > 2000  # 24 holes of 100 and more
    assert found["looks"] < (GROWN >> 20) + 3 * 120  # a hole may come before the look, and a batch after it


TRAINING = """
import resource
import torch
from pipeline.api import fit
rows = torch.randn(4096 * 8, 8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
gate = {"act_fn": "topk", "d_sae": 4096, "top_k": 4}
fit(rows, dictionary=gate, trainer={"total_training_tokens": len(rows)}, batch_size=4096, device="cpu")
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_the_steps_of_a_training_in_python_use_the_memory_of_the_last_one() -> None:
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 8 * 4 * 4096**2 // resource.getpagesize()  # of the pre-activations of 8 steps alone
