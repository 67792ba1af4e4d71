"""Where a tokenizer comes from: beside the model, inside a GGUF file, or what model.tokenizer_name names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import local_path, looked_in, near
from pipeline.foreign import reading
from pipeline.lm.gguf_file import SUFFIX, is_gguf, read_header
from pipeline.lm.hub import hub_snapshot
from pipeline.lm.place import Place, load_from

KEY = "model.tokenizer_name"
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_CONFIG = "tokenizer_config.json"


def holds_tokenizer(path: Path) -> bool:
    """Whether a tokenizer may be taken from a path, by the names of its files."""
    return path.suffix == SUFFIX if path.is_file() else any((path / name).is_file() for name in _FILES)


@dataclass(frozen=True)
class TokenizerPlace(Place):
    """A place that may hold a tokenizer."""

    @property
    def has_tokenizer(self) -> bool:
        """Whether it holds one; of the hub it is not known before it is asked for."""
        if self.gguf is not None:
            return self.gguf.has_tokenizer
        return not self.is_local or any((self.directory / name).is_file() for name in _FILES)

    @property
    def states_tokenizer(self) -> bool:
        """Whether it says what its tokenizer is; else transformers takes what is usual in the model's family."""
        return self.gguf is not None or not self.is_local or (self.directory / _CONFIG).is_file()

    def load(self) -> Any:
        """The tokenizer (of transformers).

        Raises:
            DataError: it is missing or damaged.
        """
        from pipeline.lm.quiet import quiet

        if not self.has_tokenizer:
            looked = "no vocabulary in its metadata" if self.gguf is not None else f"looked for {', '.join(_FILES)}"
            raise DataError(
                f"{self.directory}: '{self.name}' has no tokenizer ({looked}); name one in {KEY}, or write one into the "
                "model's directory with tokenizer.save_pretrained"
            )
        from transformers import AutoTokenizer

        fault = f"{self.directory}: the tokenizer of '{self.name}' is damaged"
        with quiet(), reading(fault, f"restore its files, or name another one in {KEY}"):
            return load_from(self, AutoTokenizer.from_pretrained, "tokenizer")


def resolve_tokenizer(name: str) -> TokenizerPlace:
    """Find what model.tokenizer_name names: a local directory, a GGUF file, or a hub id.

    Raises:
        DataError: there is nothing of that name.
    """
    found = local_path(name)
    if found is not None and os.path.isdir(found):
        return TokenizerPlace(name, found, None, None)
    if found is not None and is_gguf(found):
        return TokenizerPlace(name, found, None, read_header(found))
    if found is not None:
        raise DataError(f"{KEY}: {name}: should be a directory with tokenizer files, or a GGUF file; this is another file")
    if name.startswith((".", "/", "~")) or not 0 <= name.count("/") <= 1 or name.endswith(SUFFIX):
        beside = near(name, holds_tokenizer)
        raise DataError(f"{KEY}: {name}: there is no such place ({looked_in(name)}){beside}; give an existing one or a hub id")
    directory, commit = hub_snapshot(name, None, (_CONFIG, *_FILES), "tokenizer")
    return TokenizerPlace(name, Path(directory), commit, None)
