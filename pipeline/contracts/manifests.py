"""The files of a directory with their digests, checked when each is first read.

Written last into the directory as `manifest.json`, sealed (sealing.py): {"files": {name: [bytes, xxh3_128]}}.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.contracts.sealing import Origin, remake, sealed, unsealed
from pipeline.errors import DataError
from pipeline.files import read_json, write_json

MANIFEST = "manifest.json"
_BLOCK = 2**22


def digest_of_file(path: Path) -> str:
    """xxh3_128 of a file's content."""
    import xxhash

    digest = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(directory: Path, origin: Origin) -> None:
    """List every file below `directory`."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    found = {path.relative_to(directory).as_posix(): [path.stat().st_size, digest_of_file(path)] for path in files}
    write_json(directory / MANIFEST, sealed({"files": found}, origin))


class CheckedFiles:
    """The files of a directory that has a manifest.

    Args:
        directory: where they are.
        what: the directory should be.
        stage: that makes it.

    Raises:
        DataError: the manifest is missing or altered, or a file that it lists is missing or has another size.
    """

    def __init__(self, directory: Path, what: str, stage: str) -> None:
        self.directory, self._next = directory, remake(stage)
        file = directory / MANIFEST
        values, self.origin = unsealed(
            read_json(file, f"the manifest of {what}", self._next), file, f"the manifest of {what}", next_action=self._next
        )
        try:
            self._waiting = {str(name): (int(size), str(digest)) for name, (size, digest) in values["files"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file}: the manifest of {what} is damaged ({error!r}); {self._next}") from None
        self._known = frozenset(self._waiting)
        for name, (size, _) in self._waiting.items():
            self._check_size(name, size)

    def _check_size(self, name: str, size: int) -> None:
        path = self.directory / name
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: missing ({error.strerror}); {self._next}") from None
        if found != size:
            raise DataError(f"{path}: {found:,} bytes, {size:,} were written; {self._next}")

    def check(self, name: str) -> None:
        """Compare a file with its digest; once.

        Raises:
            DataError: it is altered, or no file of the directory.
        """
        if name not in self._waiting:
            if name not in self._known:
                raise DataError(f"{self.directory / name}: not in the directory's {MANIFEST}; {self._next}")
            return
        try:
            found = digest_of_file(self.directory / name)
        except OSError as error:
            raise DataError(f"{self.directory / name}: cannot be read ({error.strerror}); {self._next}") from None
        if found != self._waiting[name][1]:
            raise DataError(f"{self.directory / name}: altered since it was written; {self._next}")
        del self._waiting[name]

    def check_all(self, ending: str) -> None:
        """Compare every file whose name ends so."""
        for name in [name for name in self._waiting if name.endswith(ending)]:
            self.check(name)
