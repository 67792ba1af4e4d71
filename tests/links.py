"""Links in Markdown files and notebooks: which lead nowhere in this repository. Those to other hosts are not followed."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

_FENCE = re.compile(r"^(```|~~~|:::).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]*)>?[^)]*\)")
_HTML = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)=[\"']([^\"']*)", re.IGNORECASE)
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
_ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:|//", re.IGNORECASE)


def text_of(file: Path) -> str:
    """The Markdown of a file; of a notebook that of its cells of text."""
    content = file.read_text(encoding="utf-8")
    if file.suffix != ".ipynb":
        return content
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(content)["cells"] if cell["cell_type"] == "markdown")


def links(text: str) -> Iterator[str]:
    """The targets of all links and pictures that are not inside of code."""
    bare = _CODE.sub("", _FENCE.sub("", text))
    for pattern in (_LINK, _HTML):
        yield from (match[1] for match in pattern.finditer(bare))


@functools.cache
def anchors(file: Path) -> frozenset[str]:
    """What a link may name behind `#`: headings in small letters, without marks, hyphens for spaces, as GitHub makes them."""
    found: dict[str, int] = {}
    for match in _HEADING.finditer(_FENCE.sub("", text_of(file))):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", match[1]).lower()).replace(" ", "-")
        found[words] = found.get(words, -1) + 1
    return frozenset(f"{words}-{n}" if n else words for words, last in found.items() for n in range(last + 1))


def broken(file: Path, root: Path) -> list[str]:
    """A line for each link of a file that leads nowhere, or out of the repository `root`."""
    faults = []
    for target in links(text_of(file)):
        if _ELSEWHERE.match(target):
            continue
        path, _, anchor = unquote(target).partition("#")
        place = (file.parent / path).resolve() if path else file
        if not place.exists() or not place.is_relative_to(root):
            faults.append(f"{file.relative_to(root)}: {target}: no such file")
        elif anchor and place.suffix in (".md", ".ipynb") and anchor not in anchors(place):
            faults.append(f"{file.relative_to(root)}: {target}: no such heading")
    return faults
