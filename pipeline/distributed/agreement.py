"""Whether all processes of a group are about the same run: the same code, the same parameters, the same torch."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from pipeline.distributed.roll_call import TIMEOUT, named, part
from pipeline.errors import DataError, ParamsError
from pipeline.files import differences
from pipeline.stage_code import code_digest

CODE = "code"  # key of what a process says of itself: the digest of its code
SHOWN = 5  # differences of one process


def described(stage: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in all processes of a stage: its code, torch, the parameters (plain values by their keys)."""
    return {CODE: code_digest(stage), "torch": torch.__version__, **params}


def check_alike(store: dist.Store, rank: int, size: int, about: Mapping[str, Any], minutes: float) -> None:
    """Refuse a process whose run is another than that of process 0; all processes call this, and all raise the same.

    Args:
        store: that all of them reach.
        rank: of this process.
        size: number of processes.
        about: the run, as plain values; under CODE the digest of its code.
        minutes: that they wait for one another.

    Raises:
        ParamsError: names the first such process, and the keys that differ.
        DataError: a process did not say what it runs.
    """
    store = dist.PrefixStore("run", store)
    wait = datetime.timedelta(minutes=minutes)
    own = json.loads(json.dumps(dict(about)))
    if rank == 0:
        store.set("about", json.dumps(own))
    store.wait(["about"], wait)
    store.set(str(rank), _fault(json.loads(store.get("about")), own, rank))
    try:
        store.wait([str(each) for each in range(size)], wait)
    except RuntimeError:
        silent = [each for each in range(size) if not store.check([str(each)])]
        part(store, rank, [each for each in range(size) if each not in silent])
        raise DataError(
            f"{named(silent)} of {size} did not say which run it is of within {TIMEOUT} ({minutes:g}); look at what it says, "
            "and start the same commit everywhere"
        ) from None
    faults = [store.get(str(each)).decode() for each in range(size)]
    if any(faults):
        part(store, rank, range(size))
        raise ParamsError(next(fault for fault in faults if fault))


def _fault(first: Mapping[str, Any], own: Mapping[str, Any], rank: int) -> str:
    """What is other in this process than in process 0; "": nothing."""
    found = [(where or "its form", there, here) for where, there, here in differences(first, own)]
    if not found:
        return ""
    code = [(there, here) for where, there, here in found if where == CODE]
    if code:
        there, here = (str(digest)[:12] for digest in code[0])
        return f"process {rank} runs other code than process 0 (digest {here}, there {there}); start the same commit everywhere"
    words = "; ".join(f"{where} is {here!r}, there {there!r}" for where, there, here in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"process {rank} runs with other parameters than process 0: {words}{more}; give all the same"
