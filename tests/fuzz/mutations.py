"""Changes of whole documents: of keys and values where there are some, of bytes where there are none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any

DEEP: Any = None
for _ in range(200):
    DEEP = [DEEP]
ODD = (
    None, True, False, 0, 1, -1, 7, 2**31, -(2**31) - 1, 2**63, 2**64, 10**30, 10**400, 0.0, -0.5, 0.5, 1.5, 1e-300, 1e308,
    float("nan"), float("inf"), float("-inf"), "", " ", "x", "0", "-1", "1e9", "nan", "null", "true", "a\nb\u2028c", "\x1b[2J",
    "\ud800", "\x00", "../..", "/", "text" * 3000, [], {}, [None], [[]], ["a", 1], [1, 2, 3], [-1], {"": 1}, {"a": {"b": []}}, DEEP,
)  # fmt: skip
BYTES = (b"", b"\x00", b"\xff", b"\n", b"[", b"{", b'"', b"0", b"-", b"\x00" * 64, b"\xff" * 8, b"9" * 5000)


def odd_value(draw: Random) -> Any:
    """A value that is rarely right."""
    if draw.random() < 0.7:
        return copy.deepcopy(draw.choice(ODD))
    text = "".join(chr(draw.choice((draw.randrange(128), draw.randrange(0x2100), 0x1F600))) for _ in range(draw.randrange(8)))
    return draw.choice((draw.randrange(-100, 100), draw.gauss(0, 10.0 ** draw.randrange(-9, 9)), text, [text], {text: 1}))


def place(draw: Random, document: Any) -> tuple[Any, Any]:
    """(container, key) of a value in nested mappings and lists; each level is as likely to be the last."""
    container = document
    while True:
        key = draw.choice(list(container) if isinstance(container, dict) else range(len(container)))
        value = container[key]
        if not isinstance(value, dict | list) or not value or draw.random() < 0.3:
            return container, key
        container = value


def changed(draw: Random, document: Any, most: int = 4) -> Any:
    """A document with a few keys or values that are others, lost, doubled, moved or put into one another."""
    document = copy.deepcopy(document)
    for _ in range(draw.randint(1, most)):
        if not document:
            return document
        container, key = place(draw, document)
        action = draw.choice(("odd", "odd", "odd", "lose", "rename", "wrap", "move", "near"))
        if action == "odd":
            container[key] = odd_value(draw)
        elif action == "lose":
            del container[key]
        elif action == "rename" and isinstance(container, dict):
            container[draw.choice((f"{key}_", str(odd_value(draw))))] = container.pop(key)
        elif action == "wrap":
            container[key] = [container[key]]
        elif action == "near" and isinstance(container[key], int | float):
            container[key] = container[key] * draw.choice((-1, 2, 10**6, 0.5)) if abs(container[key]) < 1e300 else 0
        else:
            other, from_key = place(draw, document)
            container[key] = copy.deepcopy(other[from_key])
    return document


def corrupted(draw: Random, content: bytes, most: int = 3) -> bytes:
    """Bytes of which some are others, lost, doubled or new."""
    for _ in range(draw.randint(1, most)):
        start = draw.randint(0, len(content))
        stop = min(len(content), start + draw.choice((0, 1, 1, 2, 8, 64, 2**20)))
        action = draw.choice(("flip", "replace", "lose", "double", "random"))
        if action == "flip" and start < len(content):
            content = content[:start] + bytes([content[start] ^ 1 << draw.randrange(8)]) + content[start + 1 :]
        elif action == "lose":
            content = content[:start] + content[stop:]
        elif action == "double":
            content = content[:stop] + content[start:stop] + content[stop:]
        else:
            new = draw.choice(BYTES) if action == "replace" else draw.randbytes(draw.randrange(16))
            content = content[:start] + new + content[stop:]
    return content


def written(draw: Random, document: Any, text: Callable[[Any], str]) -> bytes:
    """A changed document as a file has it, in a third of the cases with changed bytes too; one that cannot be written is `{}`."""
    try:
        content = text(changed(draw, document)).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError):
        return b"{}"
    return content if draw.random() < 0.7 else corrupted(draw, content)
