"""Numbers as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def number(value: float) -> str:
    """1,234,567."""
    return f"{value:,.0f}"


def bytes_in_words(n_bytes: float) -> str:
    """`1.2 GB`, in units of 1,000; about."""
    size, units = float(n_bytes), iter(("kB", "MB", "GB", "TB", "PB"))
    unit = "bytes"
    while size >= 1000 and (larger := next(units, None)):
        size, unit = size / 1000, larger
    if n_bytes == 1:
        return "1 byte"
    return (
        f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.2g} {unit}" if size < 10 else f"{size:.0f} {unit}"
    )


def seconds_in_words(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`: to the accuracy of an estimate."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 100:
        return f"{5 * round(seconds / 5)} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes >= 600:
        return f"{round(minutes / 60)} h"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {10 * (rest // 10)} min"


def duration(seconds: float) -> str:
    """`4.2 s`, `92 s`, `12 min 20 s`, `3 h 20 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if round(seconds) < 100:
        return f"{round(seconds)} s"
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def of_members(lines: Mapping[str, Iterable[str]]) -> list[str]:
    """Lines on the members of a sweep, each once: as it is where it is of all, else behind the names of those that it is of.

    Args:
        lines: of each member, of those without any too; of one dictionary its name is "".
    """
    of: dict[str, list[str]] = {}
    for name, own in lines.items():
        for line in own:
            of.setdefault(line, []).append(name)
    return [line if len(names) == len(lines) else f"{', '.join(names)}: {line}" for line, names in of.items()]
