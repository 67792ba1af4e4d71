"""Activation stores in an object store (S3, Google Cloud Storage, Azure): SCOPELINE_STORE is a URL.

    s3://bucket/prefix/<fingerprint>/zarr.json            the same objects as the files of a store on a disk,
                                    /<array>/zarr.json    under the same names; zarr reads them as they are
                                    /<array>/digests
                                    /<array>/c.<n>.0

Here a directory of bounded size stands for the root, with the files that are in use: $SCOPELINE_CACHE, or data/cache. A chunk
is put when it has been written, and its digest is recorded after that; it is got when it is read for the first time, and is
verified as one of a disk is. What has not been used for longest makes room. Credentials are the provider's own (environment,
profile, instance); requests that fail are tried again, a bounded number of times. The client is the package obstore.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, cast

from pipeline.errors import DataError
from pipeline.files import ensure_writable, root

AT_ONCE = 8  # requests
RETRIES, RETRY_SECONDS = 8, 120.0
FIRST_WAIT, LONGEST_WAIT = datetime.timedelta(milliseconds=100), datetime.timedelta(seconds=15)
SMALL = ("zarr.json", "digests")  # files that say what a store holds: they are got when it is opened
PARTIAL = ".partial"  # how the name of a file ends that is being written
FRESH = 60.0  # seconds for which what was used stays
CACHE_GIB = 50.0
# What more tries do not help against: the status of the answer, words of the error, and what is said of it.
FAULTS = (
    ("404", r"NotFound|NoSuchBucket|NoSuchKey", "no such bucket or object ({}); look at SCOPELINE_STORE"),
    (
        "401 403",
        r"PermissionDenied|Unauthenticated|[Cc]redential",
        "not allowed ({}); give credentials as the provider's own tools take them, for S3 AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or a profile",
    ),
)
_ADDRESS = re.compile(r"\w+://\S+")
_STATUS = re.compile(r"status code: (\d{3})\b")
# Where a machine in a cloud (AWS, Google, Azure) is asked for credentials, when none are given.
_METADATA = re.compile(r"/latest/api/token|/latest/meta-data|/computeMetadata/|/metadata/identity")
_SECRET = re.compile(r"(?i)(key|secret|token|password|signature|credential)[^=:\s]*\s*[=:]\s*\S+")


class RemoteStore:
    """One store in an object store, and the directory that stands for it.

    Args:
        url: of the store, for messages.
        objects: obstore's store, whose root is that of all stores.
        directory: of its files here.
        cache: what keeps them within bounds.
    """

    def __init__(self, url: str, objects: Any, directory: Path, cache: Cache) -> None:
        self.url, self._objects, self.directory, self._cache = url, objects, directory, cache
        self.sizes: dict[str, int] = {}
        self._getting: dict[str, Future[None]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(AT_ONCE, "object store")

    def pull(self) -> None:
        """Get what says what the store holds, and the sizes of all its objects."""
        with self._named("be listed"):
            for page in self._objects.list(prefix=self.directory.name):
                for entry in page:
                    self.sizes[str(entry["path"]).removeprefix(f"{self.directory.name}/")] = int(entry["size"])
        small = [name for name in self.sizes if name.rpartition("/")[2] in SMALL]
        getting = [self._pool.submit(self._get, name) for name in small]
        wait(getting)  # also where one fails: the others leave nothing half-written behind
        for future in getting:
            future.result()

    def fetch(self, name: str) -> Path:
        """The file of an object, got if it is not here; a missing one stays missing.

        Raises:
            DataError: the object store cannot be read.
        """
        place = self.directory / name
        with self._lock:
            future = self._getting.get(name)
            if future is None and not place.exists() and name in self.sizes:
                future = self._getting[name] = self._pool.submit(self._get, name)
        if future is not None:
            try:
                future.result()
            finally:
                with self._lock:
                    self._getting.pop(name, None)
        self._cache.used(place)
        return place

    def ahead(self, names: Sequence[str]) -> None:
        """Begin to get what will be read next."""
        for name in names:
            with self._lock:
                if name not in self._getting and name in self.sizes and not (self.directory / name).exists():
                    self._getting[name] = self._pool.submit(self._get, name)

    def forget(self, name: str) -> None:
        """Remove the file here, so that the object is got again."""
        (self.directory / name).unlink(missing_ok=True)

    def room_for(self, n_bytes: int) -> contextlib.AbstractContextManager[None]:
        """Room here for a file of so many bytes, which is written within the block."""
        return self._cache.room_for(n_bytes)

    def push(self, name: str) -> None:
        """Put a file that was written."""
        place = self.directory / name
        with self._named(f"take {name}"):
            self._objects.put(f"{self.directory.name}/{name}", place.read_bytes())
        self.sizes[name] = place.stat().st_size
        self._cache.used(place)

    def _get(self, name: str) -> None:
        place = self.directory / name
        with self._named(f"give {name}"):
            content = bytes(self._objects.get(f"{self.directory.name}/{name}").bytes())
        partial = place.with_name(f"{place.name}.{threading.get_ident()}{PARTIAL}")
        try:
            with self._cache.room_for(len(content)):
                place.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(content)
                partial.replace(place)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise DataError(
                f"{place}: an activation store's file cannot be kept here ({error.strerror}); free some space, lower "
                "SCOPELINE_CACHE_GIB, or set SCOPELINE_CACHE to a directory of another disk"
            ) from None

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Turn an object store's errors into one that says what to do; credentials are never part of it.

        Raises:
            DataError: the object store cannot do it.
        """
        from obstore.exceptions import BaseError

        try:
            yield
        except (OSError, BaseError) as error:
            why, fault = told(error), lasting_fault(error)
            if fault is not None:
                raise DataError(f"{self.url}: cannot {what}: {fault.format(why)}") from None
            raise DataError(
                f"{self.url}: cannot {what} ({why}), after {RETRIES} tries; run the same command again to go on"
            ) from None


class Cache:
    """Files of object stores in a directory of bounded size."""

    def __init__(self, directory: Path, most_bytes: float) -> None:
        self.directory, self.most_bytes = directory, most_bytes
        self._changed = threading.Condition()
        self._held, self._counted = 0, False  # bytes, and whether they have been counted
        self._coming: list[int] = []  # bytes of the files that are being written

    def used(self, place: Path) -> None:
        """Note that a file was used now."""
        with contextlib.suppress(OSError):
            os.utime(place)

    @contextlib.contextmanager
    def room_for(self, n_bytes: int) -> Iterator[None]:
        """Room for a file of so many bytes, which is written within the block.

        What has not been used for longest is removed for it; small files and what was used just now stay. Where that is not
        enough the block waits for the files that others are writing: they may be removed then.
        """
        with self._changed:
            while not self._make_room(n_bytes) and self._coming:
                self._changed.wait()
            self._coming.append(n_bytes)
            self._held += n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._coming.remove(n_bytes)
                self._changed.notify_all()

    def _make_room(self, n_bytes: int) -> bool:
        """Whether so many bytes more are within bounds, after what may be removed is."""
        if self._counted and self._held + n_bytes <= self.most_bytes:
            return True
        files = sorted(entry for entry in self._files() if entry[2].suffix != PARTIAL)
        self._held, self._counted = sum(size for _, size, _ in files) + sum(self._coming), True
        if self._held + n_bytes <= self.most_bytes:
            return True
        for at, size, place in files:
            if self._held + n_bytes <= self.most_bytes * 0.9 or at > time.time() - FRESH:
                break
            if place.name not in SMALL:
                place.unlink(missing_ok=True)
                self._held -= size
        return self._held + n_bytes <= self.most_bytes

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        for folder, _, names in os.walk(self.directory):
            for name in names:
                with contextlib.suppress(OSError):
                    about = os.stat(place := Path(folder, name))
                    yield about.st_mtime, about.st_size, place


class RemoteRoot:
    """A root of stores in an object store.

    Args:
        url: s3://, gs:// or az://, with a prefix or without.
        cache: the directory that stands for it.

    Raises:
        DataError: the package is missing, or the URL is of no kind that it knows.
    """

    def __init__(self, url: str, cache: Cache) -> None:
        try:
            from obstore.store import from_url
        except ImportError:
            raise DataError(f"SCOPELINE_STORE={url}: needs the package obstore; run `pip install obstore`") from None
        timeout = datetime.timedelta(seconds=RETRY_SECONDS)
        backoff = {"init_backoff": FIRST_WAIT, "max_backoff": LONGEST_WAIT, "base": 2}
        client: dict[str, Any] = {"timeout": timeout, "allow_http": True}
        try:
            self.objects = from_url(
                url,
                retry_config=cast(Any, {"max_retries": RETRIES, "retry_timeout": timeout, "backoff": backoff}),
                client_options=cast(Any, client),
            )
        except Exception as error:
            advice = "write s3://, gs:// or az://, a bucket and a prefix"
            if any(sign in str(error) for sign in ("AccessKey", "redential")):
                advice = "give credentials whole, as the provider's own tools take them"
            raise DataError(f"SCOPELINE_STORE={url}: {told(error)}; {advice}") from None
        self.url, self.cache = url.rstrip("/"), cache
        self._stores: dict[str, RemoteStore] = {}

    def store(self, directory: Path) -> RemoteStore:
        """The store that a directory of the cache stands for."""
        if directory.name not in self._stores:
            self._stores[directory.name] = RemoteStore(f"{self.url}/{directory.name}", self.objects, directory, self.cache)
        return self._stores[directory.name]


_ROOTS: dict[tuple[str, str], RemoteRoot] = {}


def stated_url() -> str | None:
    """SCOPELINE_STORE where it is a URL."""
    stated = os.environ.get("SCOPELINE_STORE")
    return stated if stated and "://" in stated else None


def cache_directory() -> Path:
    """Where files of object stores are kept: $SCOPELINE_CACHE, or data/cache under the checkout.

    Raises:
        DataError: it cannot be written.
    """
    stated = os.environ.get("SCOPELINE_CACHE")
    place = root() / Path(stated).expanduser() if stated else root() / "data" / "cache"
    if not os.path.isdir(place):
        ensure_writable(place, "files of the object store", "set SCOPELINE_CACHE to a directory that can be written")
    return place


def remote_of(directory: Path) -> RemoteStore | None:
    """The store in an object store that a directory stands for; None: it is the store itself."""
    url = stated_url()
    if url is None or directory.parent != (place := cache_directory()):
        return None
    if (url, str(place)) not in _ROOTS:
        _ROOTS[url, str(place)] = RemoteRoot(url, Cache(place, _most_bytes()))
    return _ROOTS[url, str(place)].store(directory)


def check_root() -> None:
    """See that the object store can be reached and may be listed.

    Raises:
        DataError: it cannot.
    """
    store = remote_of(cache_directory() / "any")
    assert store is not None
    store.pull()


def _most_bytes() -> float:
    stated = os.environ.get("SCOPELINE_CACHE_GIB", str(CACHE_GIB))
    try:
        found = float(stated)
    except ValueError:
        found = -1.0
    if not 0 < found < float("inf"):
        raise DataError(f"SCOPELINE_CACHE_GIB={stated}: expected the size of the cache in GiB, above 0")
    return found * 2**30


def lasting_fault(error: Exception) -> str | None:
    """What is said of an error that stays however often one tries; None: it may pass.

    Its numbers are not looked at but for the status: an address, a port or a duration may hold any digits.
    """
    said = f"{type(error).__name__} {error}"
    status, words = _STATUS.search(said), _ADDRESS.sub("", said)
    if _METADATA.search(said):
        return FAULTS[1][2]
    for statuses, signs, fault in FAULTS:
        if (status is not None and status[1] in statuses.split()) or (status is None and re.search(signs, words)):
            return fault
    return None


def told(error: Exception) -> str:
    """The first line of what an object store says, without anything that looks like a secret."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _SECRET.sub(r"\1=...", lines[0] if lines else type(error).__name__)[:300]
