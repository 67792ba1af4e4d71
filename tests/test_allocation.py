"""What a process does with memory that it no longer uses."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys

import pytest

from pipeline.garbage import uncollected

FAULTS = """
import resource
from pipeline.allocation import keep_freed_memory
keep_freed_memory()
b"a" * 2**26
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    b"a" * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_block_lies_where_the_last_one_lay() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
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
