"""A place that transformers loads from: a directory, a GGUF file, or a hub repository at a commit."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.lm.gguf_file import GGUFHeader
from pipeline.lm.hub import check_hub

_ALONE = "model.gguf"


@dataclass(frozen=True)
class Place:
    """Something that exists.

    Attributes:
        name: as it was asked for.
        directory: local directory, or the GGUF file; of a hub repository the cached snapshot.
        revision: commit of a hub repository, None for what is local.
        gguf: header of a GGUF file, else None.
    """

    name: str
    directory: Path
    revision: str | None
    gguf: GGUFHeader | None

    @property
    def is_local(self) -> bool:
        """Whether it is a directory or a file rather than a hub repository."""
        return self.revision is None


def load_from(place: Place, load: Any, what: str = "model", **options: Any) -> Any:
    """`load(...)` from the directory, the GGUF file, or the hub at the pinned commit: the cache first, then over the network.

    Code that lies beside a model is never run, nor does transformers ask whether it may be.

    Args:
        place: where it is.
        load: a from_pretrained of transformers.
        what: is loaded, for messages: a model or a tokenizer.
        options: of `load`.

    Raises:
        DataError: it is not whole in the cache and the hub cannot be reached.
    """
    options["trust_remote_code"] = False
    if place.gguf is not None:
        # Its progress bar heeds no setting of transformers.
        with _alone(place.directory) as folder, contextlib.redirect_stderr(io.StringIO()):
            return load(folder, gguf_file=_ALONE, local_files_only=True, **options)
    if place.is_local:
        return load(str(place.directory), local_files_only=True, **options)
    try:
        return load(place.name, revision=place.revision, local_files_only=True, **options)
    except OSError:
        check_hub(place.name, place.revision, what)
        return load(place.name, revision=place.revision, **options)


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[str]:
    """A directory with the GGUF file in it and nothing else: transformers prefers a tokenizer.json that lies beside it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _ALONE).symlink_to(file.absolute())
        yield folder
