"""Files that are whole or absent: atomic JSON and directories, locks, free space, the project root."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

SHOWN, MOST_NEAR = 3, 100  # near paths in a message, and that are followed
CLOSE = 0.6  # of two names, by difflib, from which on one may be the other misspelt
CHECKOUT = Path(__file__).resolve().parents[1]  # that the package is imported from


def fingerprint(about: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of the sha256 of plain values as sorted JSON."""
    return hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()[:32]


def differences(first: Any, second: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(key, value of the first, value of the second) where two plain values differ; keys of keys with dots between."""
    if first == second:
        return []
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = sorted(set(first) | set(second))
        return [
            found
            for key in keys
            for found in differences(first.get(key), second.get(key), f"{where}.{key}" if where else str(key))
        ]
    return [(where, first, second)]


def root() -> Path:
    """The user's checkout: $DVC_ROOT under DVC (also in temporary experiment copies), else the current directory."""
    return Path(os.environ.get("DVC_ROOT") or os.getcwd())


def local_path(name: str | Path) -> Path | None:
    """The file or directory `name`, or None if there is none: a relative one in the working directory, then in the checkout.

    A queued or temporary experiment runs in a copy of what git knows; a text or a model that git does not know is then found
    in the checkout itself.
    """
    path = Path(name).expanduser()
    return next((place for place in (path, root() / path) if os.path.exists(place)), None)  # False of a name that is too long


def looked_in(name: str | Path) -> str:
    """Where :func:`local_path` has looked for `name` in vain, for a message: the directories of a relative path, and how far
    an absolute one leads.
    """
    path = Path(name).expanduser()
    if path.is_absolute():
        there = existing(path)
        return f"{there} is there, and in it no '{path.relative_to(there).parts[0]}'"
    return f"looked in {relative_to()}"


def relative_to() -> str:
    """The directories in which :func:`local_path` looks for a relative path, for a message."""
    here, checkout = Path().absolute(), root().absolute()
    if here == checkout:
        return str(here)
    return f"{here}, the experiment's copy of what git knows, and {checkout}, the checkout"


def near_paths(name: str | Path, wanted: Callable[[Path], bool]) -> list[str]:
    """What is there that `name` may be misspelt for, nearest first, at most SHOWN: paths of which each part is as it says or
    close in spelling; where the last one has no close one, what is beside it.

    Args:
        name: a path at which nothing is; a relative one is looked for where :func:`local_path` does.
        wanted: whether a path is of the kind that was meant.
    """
    path = Path(name).expanduser()
    found: dict[str, Path] = {}
    for start in dict.fromkeys((Path(), root())) if not path.is_absolute() else (Path(path.anchor),):
        parts = path.relative_to(path.anchor).parts
        places = [start]
        for n, part in enumerate(parts, 1):
            places = [
                entry for place in places for entry in _close(place, part, wanted if n == len(parts) else None, below=n > 1)
            ][:MOST_NEAR]
        said = places if path.is_absolute() else [place.relative_to(start) for place in places]
        found |= {str(own): place for own, place in zip(said, places, strict=True)}
    return sorted(found, key=lambda own: -difflib.SequenceMatcher(None, own, str(path)).ratio())[:SHOWN]


def _close(folder: Path, part: str, wanted: Callable[[Path], bool] | None, *, below: bool) -> list[Path]:
    """Entries of a folder of such a name, or one close to it; of the last part (`wanted`) those of the kind, all of them if
    none is close and the folder was named (`below`)."""
    if wanted is None and (folder / part).is_dir():
        return [folder / part]
    try:
        entries = {entry.name: entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")}
    except OSError:
        return []
    if wanted is None:
        return [entries[name] for name in difflib.get_close_matches(part, entries, n=SHOWN, cutoff=CLOSE)]
    kind = {name: entry for name, entry in entries.items() if wanted(entry)}
    return [kind[name] for name in difflib.get_close_matches(part, kind, n=SHOWN, cutoff=CLOSE) or (kind if below else ())]


def near(name: str | Path, wanted: Callable[[Path], bool]) -> str:
    """`; near it is data/demo/model`, for a message that `name` is not there; "" where nothing is near."""
    found = near_paths(name, wanted)
    return f"; near it {'is' if len(found) == 1 else 'are'} {', '.join(found)}" if found else ""


def existing(path: Path) -> Path:
    """The longest beginning of a path, not the whole, that exists; of a relative one at least the working directory."""
    return next((place for place in path.parents if os.path.exists(place)), path.parents[-1] if path.parents else path)


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


def read_bytes(path: str | Path, what: str, next_action: str = "") -> bytes:
    """The content of a file.

    Raises:
        DataError: as :func:`reading_file`.
    """
    with reading_file(path, what, next_action):
        return Path(path).read_bytes()


@contextlib.contextmanager
def reading_file(path: str | Path, what: str, next_action: str = "") -> Iterator[None]:
    """Within the block a file is opened and read.

    Raises:
        DataError: it is missing or cannot be read; the message names `what` it should have been and says what to do.
    """
    hint = f"; {next_action}" if next_action else ""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: {what} is missing{hint}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: {what} should be a file, got a directory{hint}") from None
    except OSError as error:
        raise DataError(f"{path}: {what} cannot be read ({error.strerror}){hint}") from None


def read_json(path: str | Path, what: str, next_action: str = "") -> Any:
    """Read JSON; see :func:`read_bytes`.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    return parse_json(read_bytes(path, what, next_action), f"{path}: {what}", next_action)


def parse_json(content: bytes, what: str, next_action: str = "") -> Any:
    """The value that UTF-8 JSON states.

    Raises:
        DataError: `content` is no JSON; the message begins with `what` it should have been.
    """
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is damaged ({error})" + (f"; {next_action}" if next_action else "")) from None


def read_object(path: str | Path, what: str, next_action: str = "") -> dict[str, Any]:
    """Read a JSON file that holds an object; see :func:`read_bytes`.

    Raises:
        DataError: the file is missing, is not JSON, or holds something else.
    """
    return json_object(read_json(path, what, next_action), f"{path}: {what}", next_action)


def json_object(value: Any, what: str, next_action: str = "") -> dict[str, Any]:
    """The value of a JSON file, if it is an object.

    Raises:
        DataError: it is none; the message begins with `what` it should have been.
    """
    if not isinstance(value, dict):
        kinds = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}
        hint = f"; {next_action}" if next_action else ""
        raise DataError(f"{what} should be an object, got {kinds.get(type(value), type(value).__name__)}{hint}")
    return value


def is_number(value: object) -> bool:
    """Whether a value of a file is a number, finite and not too large for a float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


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
def members_directory(path: str | Path, sweep: bool) -> Iterator[Path]:
    """Where what is made of each member of a run goes: of a sweep a directory that takes the place of `path`, so that what an
    earlier run has left there goes; of one dictionary `path` itself, which is to be replaced."""
    if not sweep:
        yield Path(path)
        return
    with atomic_directory(path) as folder:
        yield folder


def _holders(path: Path) -> list[int]:
    """The processes that have the file open, as far as one may see them; this one only if it has it open twice."""
    found = []
    for handles in Path("/proc").glob("[0-9]*/fd"):
        pid, times = int(handles.parent.name), 0
        with contextlib.suppress(OSError):  # the process is another user's, or gone
            times = sum(handle.exists() and handle.samefile(path) for handle in handles.iterdir())
        if times > (pid == os.getpid()):
            found.append(pid)
    return sorted(found)


@contextlib.contextmanager
def locked(path: str | Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock file for the block; the kernel releases it even after kill -9.

    Raises:
        DataError: another process holds it; the message has the processes that have the file open.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holders = ", ".join(f"pid {pid}" for pid in _holders(path)) or "not of this machine, or of another user"
            raise DataError(
                f"{path.parent}: {what} is in use by another process ({holders}); wait for it or stop it, then run again"
            ) from None
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
