"""What a language model is now: by its files' contents where it is local, by its commit where it is on the hub."""

from __future__ import annotations

from typing import Any

from pipeline.digests import FileDigests
from pipeline.lm.place import Place
from pipeline.lm.source import DEMO, resolve_model
from pipeline.lm.tokenizer_place import resolve_tokenizer

# What transformers reads beside the weights: configuration, tokenizer, chat template.
_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken")


def model_contents(name: str, revision: str | None, tokenizer_name: str | None, digests: FileDigests) -> dict[str, Any]:
    """What tells a model from another one under the same name, and its tokenizer; the embedded one is one of DVC already.

    Raises:
        DataError: there is no such model or tokenizer.
    """
    own = {"name": name} if name == DEMO else _contents(resolve_model(name, revision, any_family=True), digests)
    return own if tokenizer_name is None else {**own, "tokenizer": _contents(resolve_tokenizer(tokenizer_name), digests)}


def _contents(place: Place, digests: FileDigests) -> dict[str, Any]:
    if not place.is_local:
        return {"name": place.name, "commit": place.revision}
    if place.gguf is not None:  # by its content alone: the same file under another name is the same model
        return {"files": 1, "sha256": digests.of(place.directory)}
    names = [file.name for file in place.directory.iterdir() if file.suffix in _SUFFIXES and file.is_file()]
    return digests.of_all(place.directory, [name for name in names if not name.startswith(".")])
