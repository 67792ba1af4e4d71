"""The embedded corpus: documentation prose of the running Python and of installed packages. Nothing is downloaded.

File lists come from the standard library's directory and from each distribution's RECORD, sorted; tests and vendored code
are left out. A document is a source file with at least 200 characters of prose. Equal blocks are kept once, and a block
that occurs in a held-out document never occurs in a training document; so its documents are split by key, since what is
left of a text depends on which others are held out.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.corpus.document import Document
from pipeline.corpus.prose import blocks_of_source, blocks_of_topics
from pipeline.errors import DataError

MIN_DOCUMENT_CHARACTERS = 200
_LEFT_OUT = frozenset(
    [
        "test",
        "tests",
        "testing",
        "_vendor",
        "vendor",
        "vendored",
        "_vendored",
        "extern",
        "externals",
        "third_party",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "ensurepip",
        "bin",
        "include",
        "lib2to3",
        "turtledemo",
        "_testing",
    ]
)


def _standard_library() -> list[tuple[str, Path]]:
    base = Path(sysconfig.get_path("stdlib"))
    return [(f"stdlib/{path.relative_to(base).as_posix()}", path) for path in base.rglob("*.py")]


def _distribution(name: str) -> list[tuple[str, Path]]:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"demo corpus: package '{name}' is not installed; install the project's pinned dependencies (README, set-up)"
        ) from None
    if distribution.files is None:
        raise DataError(f"demo corpus: package '{name}' has no RECORD of its files; install it as a wheel with pip")
    return [
        (file.as_posix(), Path(str(distribution.locate_file(file))))
        for file in distribution.files
        if file.suffix == ".py" and ".." not in file.parts
    ]


def source_files(package: str) -> list[tuple[str, Path]]:
    """(key, path) of the source files of one package ("stdlib" or a distribution), sorted by key."""
    found = _standard_library() if package == "stdlib" else _distribution(package)
    kept = []
    for key, path in found:
        parts = key.split("/")
        if not _LEFT_OUT.intersection(parts[:-1]) and not parts[-1].startswith(("test_", "conftest")):
            kept.append((key, path))
    return sorted(kept)


def _blocks(key: str, path: Path) -> list[str]:
    try:
        source = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    if key == "stdlib/pydoc_data/topics.py":
        return list(blocks_of_topics(source))
    return list(blocks_of_source(source))


def demo_documents(packages: Iterable[str], is_held_out: Callable[[str], bool]) -> Iterator[Document]:
    """The documents of `packages`, in the order of a hash of their keys (so that a prefix is a fair sample).

    Args:
        packages: "stdlib" and names of installed distributions.
        is_held_out: says from its key whether a document belongs to the held-out split.

    Raises:
        DataError: a package is not installed.
    """
    files = {key: path for package in packages for key, path in source_files(package)}
    order = sorted(files, key=lambda key: hashlib.sha256(key.encode()).digest())
    # Held-out documents first, so that a block in both splits leaves the training side.
    order.sort(key=is_held_out, reverse=True)
    seen: set[bytes] = set()
    documents: list[Document] = []
    for key in order:
        fresh = []
        for block in _blocks(key, files[key]):
            digest = hashlib.blake2b(block.lower().encode(), digest_size=12).digest()
            if digest not in seen:
                seen.add(digest)
                fresh.append(block)
        text = "\n".join(fresh)
        if len(text) >= MIN_DOCUMENT_CHARACTERS:
            documents.append(Document(key, text, {"file": key}, split_by_key=True))
    yield from sorted(documents, key=lambda document: hashlib.sha256(document.key.encode()).digest())


def corpus_digest(documents: Iterable[Document]) -> str:
    """sha256 over keys and texts, in order."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.key, document.text):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
