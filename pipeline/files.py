"""Files that are whole or absent: atomic JSON and directories, locks, free space, the project root."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError


def fingerprint(about: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of the sha256 of plain values as sorted JSON."""
    return hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()[:32]


def root() -> Path:
    """The user's checkout: $DVC_ROOT under DVC (also in temporary experiment copies), else the current directory."""
    return Path(os.environ.get("DVC_ROOT") or os.getcwd())


def local_path(name: str | Path) -> Path | None:
    """The file or directory `name`, or None if there is none: a relative one in the working directory, then in the checkout.

    A queued or temporary experiment runs in a copy of what git knows; a text or a model that git does not know is then found
    in the checkout itself.
    """
    path = Path(name).expanduser()
    return next((place for place in (path, root() / path) if place.exists()), None)


def looked_in() -> str:
    """The directories in which :func:`local_path` looks for a relative path, for a message."""
    here, checkout = Path().absolute(), root().absolute()
    if here == checkout:
        return str(here)
    return f"{here}, the experiment's copy of what git knows, and {checkout}, the checkout"


def unwritable(directory: Path) -> str | None:
    """Why no file can be made in `directory`, which need not be there yet; None: one can.

    It is tried, since permissions alone tell little: root has all of them, a file system may be read-only. Nothing is left.
    """
    place = directory.absolute()
    while not os.path.lexists(place):
        place = place.parent
    try:
        if not place.is_dir():
            return f"{place} is a link that leads nowhere" if place.is_symlink() else f"{place} is a file"
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"{place} cannot be written to: {error.strerror}"


def ensure_writable(
    directory: str | Path, what: str, next_action: str = "make it writable, or remove what is in the way"
) -> None:
    """Refuse to begin work whose outcome could not be written to `directory`.

    Raises:
        DataError: says where it cannot, and why.
    """
    reason = unwritable(Path(directory))
    if reason is not None:
        raise DataError(f"{directory}: {what} cannot be written here ({reason}); {next_action}")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON to a temporary sibling, flush it to disk and rename it to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one, never a part."""
    with atomic_file(path) as partial, open(partial, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling to write; on success it takes the place of `path`, on failure it is removed.

    Its permissions are those of the user's umask, also where a library writes it that has others (safetensors: 0600). Partial
    files of earlier, killed calls are removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:  # begun before the file exists: Ctrl-C at any moment leaves nothing
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _remove_leftovers(path: Path) -> None:
    """What killed writes of this file have left: partial files of processes that are no more."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        pid = leftover.name.removeprefix(f".{path.name}.").partition("-")[0]
        if pid.isdecimal() and not _is_alive(int(pid)):
            leftover.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def read_json(path: str | Path, what: str, next_action: str = "") -> Any:
    """Read JSON; a missing or damaged file is a :class:`DataError` that names `what` it should have been.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    path = Path(path)
    hint = f"; {next_action}" if next_action else ""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: {what} is missing{hint}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: {what} should be a file, got a directory{hint}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {what} is damaged ({error}){hint}") from None
    except OSError as error:
        raise DataError(f"{path}: {what} cannot be read ({error.strerror}){hint}") from None


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling directory; on success it takes the place of `path`, on failure it is removed.

    A reader sees the old directory or the whole new one; killed between two renames, neither, but never a part. Permissions
    are those of the user's umask, also of files that a library writes with others. Leftover siblings of earlier, killed calls
    are removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.partial-"
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary, old = (path.with_name(f"{prefix}{secrets.token_hex(4)}") for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        mode = temporary.stat().st_mode & 0o666
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(mode)
        if path.is_dir() and not path.is_symlink():
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def locked(path: str | Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock file for the block; the kernel releases it even after kill -9.

    Raises:
        DataError: another process holds it; the message has its process id.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise DataError(
                f"{path.parent}: {what} is in use by another process (pid {holder}); wait for it or stop it, then run again"
            ) from None
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def ensure_free_space(path: str | Path, n_bytes: int, what: str) -> None:
    """Refuse to start writing `what` where the device has less than `n_bytes` left.

    Raises:
        DataError: too little space; the message has both numbers.
    """
    place = Path(path)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < n_bytes:
        raise DataError(
            f"{path}: no space left on the device for {what}: needs {n_bytes / 2**20:,.1f} MiB, "
            f"{free / 2**20:,.1f} MiB free; free some, or set SCOPELINE_STORE to a larger disk"
        )
