"""Changes of whole documents: of keys and values where there are some, of bytes where there are none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

DEEP: Any = None
for _ in range(200):
    DEEP = [DEEP]
ODD = (
    None, True, False, 0, 1, -1, 7, 2**31, -(2**31) - 1, 2**63, 2**64, 10**30, 10**400, 0.0, -0.5, 0.5, 1.5, 1e-300, 1e308,
    float("nan"), float("inf"), float("-inf"), "", " ", "x", "0", "-1", "1e9", "nan", "null", "true", "a\nb\u2028c", "\x1b[2J",
    "\ud800", "\x00", "../..", "/", "text" * 3000, [], {}, [None], [[]], ["a", 1], [1, 2, 3], [-1], {"": 1}, {"a": {"b": []}}, DEEP,
)  # fmt: skip
BYTES = (b"", b"\x00", b"\xff", b"\n", b"[", b"{", b'"', b"0", b"-", b"\x00" * 64, b"\xff" * 8, b"9" * 5000)


def odd_values() -> st.SearchStrategy[Any]:
    """A value that is rarely right."""
    small = st.one_of(st.integers(), st.floats(), st.text(max_size=8))
    return st.one_of(st.sampled_from(ODD), small, st.lists(small, max_size=3), st.dictionaries(st.text(max_size=4), small))


def places(document: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in nested mappings and lists."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        container = waiting.pop()
        keys = container if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                waiting.append(container[key])
    return found


@st.composite
def changed(draw: st.DrawFn, document: Any, most: int = 4) -> Any:
    """A document with a few keys or values that are others, lost, doubled, moved or put into one another."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        known = places(document)
        if not known:
            return document
        container, key = draw(st.sampled_from(known))
        action = draw(st.sampled_from(("odd", "odd", "odd", "lose", "rename", "wrap", "move", "near")))
        if action == "odd":
            container[key] = copy.deepcopy(draw(odd_values()))
        elif action == "lose":
            del container[key]
        elif action == "rename" and isinstance(container, dict):
            container[draw(st.one_of(st.just(f"{key}_"), st.text(max_size=6)))] = container.pop(key)
        elif action == "wrap":
            container[key] = [container[key]]
        elif action == "near" and isinstance(container[key], int | float):
            container[key] = container[key] * draw(st.sampled_from((-1, 2, 10**6, 0.5)))
        else:
            other, from_key = draw(st.sampled_from(known))
            container[key] = copy.deepcopy(other[from_key])
    return document


@st.composite
def corrupted(draw: st.DrawFn, content: bytes, most: int = 3) -> bytes:
    """Bytes of which some are others, lost, doubled or new."""
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.sampled_from((0, 1, 1, 2, 8, 64, 2**20))))
        action = draw(st.sampled_from(("flip", "replace", "lose", "double", "random")))
        if action == "flip" and start < len(content):
            content = content[:start] + bytes([content[start] ^ 1 << draw(st.integers(0, 7))]) + content[start + 1 :]
        elif action == "lose":
            content = content[:start] + content[stop:]
        elif action == "double":
            content = content[:stop] + content[start:stop] + content[stop:]
        else:
            new = draw(st.sampled_from(BYTES)) if action == "replace" else draw(st.binary(max_size=16))
            content = content[:start] + new + content[stop:]
    return content


def written(document: Any, text: Callable[[Any], str]) -> st.SearchStrategy[bytes]:
    """A changed document as a file has it, in a third of the cases with changed bytes too; one that cannot be written is `{}`."""

    def content(values: Any) -> bytes:
        try:
            return text(values).encode("utf-8", "surrogatepass")
        except (ValueError, TypeError):
            return b"{}"

    whole = changed(document).map(content)
    return st.one_of(whole, whole, whole.flatmap(corrupted))
