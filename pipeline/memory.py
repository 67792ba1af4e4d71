"""Memory that a run will need, known before it works, beside the memory that is there.

A stage says what its largest tensors take, as lower bounds, and which parameters make them large: what cannot fit is refused
at once, with the keys to lower, instead of failing (or being killed by the system) in the middle.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.errors import ParamsError

_shapes_alone: ContextVar[bool] = ContextVar("shapes alone", default=False)
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class Need(NamedTuple):
    """Something large.

    Attributes:
        what: it is, in words.
        n_bytes: that it takes at least.
        keys: {dotted key: value} of the parameters that make it large.
    """

    what: str
    n_bytes: int
    keys: Mapping[str, float]


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Within the block nothing is refused: what is made has shapes and no values."""
    before = _shapes_alone.set(True)
    try:
        yield
    finally:
        _shapes_alone.reset(before)


def require_memory(*needs: Need, device: torch.device | str = "cpu") -> None:
    """Refuse what cannot be held at once.

    Args:
        needs: held at the same time.
        device: where.

    Raises:
        ParamsError: names the largest need, its keys, and the bytes wanted and there.
    """
    if _shapes_alone.get():
        return
    there = available_memory(torch.device(device))
    wanted = sum(need.n_bytes for need in needs)
    if there is None or wanted <= there:
        return
    largest = max(needs, key=lambda need: need.n_bytes)
    first, *others = sorted(largest.keys.items(), key=lambda item: -item[1])
    beside = "".join(f", {key} {_number(value)}" for key, value in others)
    part = "" if len(needs) == 1 else f", {in_bytes(largest.n_bytes)} of it {largest.what}"
    what = largest.what if len(needs) == 1 else "what is held at once"
    place = "memory" if torch.device(device).type == "cpu" else f"memory of device {device}"
    raise ParamsError(
        f"{first[0]}: {_number(first[1])}{beside}: {what} would take at least {in_bytes(wanted)} of {place}{part}, and "
        f"{in_bytes(there)} are free; lower {'it' if not others else 'one of them'}"
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) or value < 1e15 else f"{value:g}"


def in_bytes(n_bytes: int) -> str:
    """`1,234 bytes (1.2 kB)`, in units of 1,000."""
    size, units = float(n_bytes), iter(("kB", "MB", "GB", "TB", "PB", "EB"))
    unit = ""
    while size >= 1000 and (larger := next(units, None)):
        size, unit = size / 1000, larger
    return f"{n_bytes:,} bytes ({size:,.1f} {unit})" if unit else f"{n_bytes:,} bytes"


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None: the system does not say.

    Of the CPU the least of what the limits of the process leave (RLIMIT_AS, RLIMIT_DATA), the control group, and the machine
    with its swap. What the system would give back for the asking (cached files) counts as free.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    return min((found for found in (*_limits(), *_control_groups(), _machine()) if found is not None), default=None)


def _limits() -> Iterator[int]:
    """What the limits of this process leave."""
    used = _sizes(_PROC / "self/status")
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield max(most - used.get(name, 0), 0)


def _machine() -> int | None:
    """What the machine has left."""
    found = _sizes(_PROC / "meminfo")
    return found["MemAvailable"] + found.get("SwapFree", 0) if "MemAvailable" in found else None


def _control_groups() -> Iterator[int]:
    """What the control groups that this process is in leave, of version 2 and 1."""
    for line in _lines(_PROC / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, most, used = _CGROUPS, "memory.max", "anon"
        elif "memory" in controllers.split(","):
            root, most, used = _CGROUPS / "memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            if not group.is_relative_to(root):
                break
            stated = next(_lines(group / most), "max")
            if stated.isdecimal():
                held = dict(line.split() for line in _lines(group / "memory.stat"))
                yield max(int(stated) - int(held.get(used, 0)), 0)


def _sizes(path: Path) -> dict[str, int]:
    """{name: bytes} of the lines `name: 123 kB`."""
    parts = (line.split() for line in _lines(path))
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in parts if len(words) == 3 and words[2] == "kB"}


def _lines(path: Path) -> Iterator[str]:
    """Lines of a file of the system; none where there is no such file."""
    try:
        yield from path.read_text().splitlines()
    except OSError:
        return
