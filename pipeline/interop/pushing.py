"""Push of a directory that was read back and compared, to a repository of the Hugging Face hub, in one commit."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.interop.card import NAME
from pipeline.interop.hub_client import Listing, NoRepository, NoRevision, asked, asking, offline
from pipeline.interop.hub_paths import HubPath
from pipeline.interop.layouts import dictionaries_in

CANNOT = "cannot be pushed"
TRY = "run the same command again, or write the files by --to DIRECTORY"


@dataclass(frozen=True)
class Target:
    """Where to push to.

    Attributes:
        path: with the branch as its revision.
        private: a repository that is made is private, and one that is there must be.
        message: of the commit; None: one that names the files.
    """

    path: HubPath
    private: bool = False
    message: str | None = None


@dataclass(frozen=True)
class Remote:
    """What is at the target before the push.

    Attributes:
        listing: of its branch, or of the default one where the branch is to be made; None: there is no repository.
        branch: to be made; None: it is there.
    """

    listing: Listing | None
    branch: str | None = None

    @property
    def files(self) -> Sequence[str]:
        """All files there."""
        return [] if self.listing is None else sorted(self.listing.sizes)


def look(target: Target) -> Remote:
    """Ask the hub what is there; nothing is changed.

    Raises:
        DataError: there is no token, the hub cannot be reached, or the repository is public and should be private.
    """
    from huggingface_hub import get_token

    path = target.path
    if offline():
        raise DataError(f"{path}: {CANNOT}: HF_HUB_OFFLINE is set; unset it, or look by --dry-run or --to DIRECTORY")
    if get_token() is None:
        raise DataError(f"{path}: {CANNOT} without a token; log in with `hf auth login`, or set HF_TOKEN")
    try:
        found = asked(HubPath(path.repository), CANNOT, TRY)
    except NoRepository:
        return Remote(None, path.revision)
    if target.private and found.private is False:
        raise DataError(
            f"{path}: --private, and {path.repository} is there and public; make it private in its settings on the hub, or "
            "name another repository"
        )
    if path.revision is None:
        return Remote(found)
    try:
        return Remote(asked(path, CANNOT, TRY))
    except NoRevision:
        return Remote(found, path.revision)


def additions(folder: Path, path: HubPath, remote: Sequence[str] = ()) -> dict[str, Path]:
    """{path in the repository: file} of all files of a directory; with its card at the root too, where there is none.

    Args:
        folder: what is pushed, without what begins with a dot.
        path: of the target.
        remote: files that are there.
    """
    files = {}
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts):
            files[posixpath.join(path.folder, inside.as_posix())] = file
    if path.folder and NAME not in remote and (folder / NAME).is_file():
        files[NAME] = folder / NAME
    return files


def stale(files: Mapping[str, Path], remote: Sequence[str], format: str, path: HubPath) -> list[str]:
    """Files of an earlier dictionary of this format in the directories that are pushed, which are no longer a part of it.

    Raises:
        DataError: a dictionary of another format lies in one of these directories.
    """
    new = dictionaries_in(files)
    both = dictionaries_in([*files, *(name for name in remote if name not in files)])
    for place, found in new.items():
        others = both[place].formats - found.formats
        if others:
            raise DataError(
                f"{path}: the files of a dictionary in the format {', '.join(sorted(others))} are in "
                f"'{place or path.repository}'; push to another folder"
            )
    places = {posixpath.dirname(name) for found in new.values() for name in found.files}
    there = dictionaries_in(remote, format)
    return sorted(
        {name for found in there.values() for name in found.files if posixpath.dirname(name) in places and name not in files}
    )


def listed_files(files: Mapping[str, Path]) -> list[str]:
    """A line for each file, with its size."""
    return [f"  {name}  {file.stat().st_size:,} bytes" for name, file in files.items()]


def push(folder: Path, target: Target, remote: Remote, format: str) -> list[str]:
    """Push a directory in one commit, and compare what the hub then says of every file.

    Args:
        folder: checked, with its card.
        target: where.
        remote: of `look`.
        format: of the dictionaries.

    Returns: what was done, for a terminal.

    Raises:
        DataError: the hub refuses, or has other files than were sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    path, api = target.path, HfApi()
    files = additions(folder, path, remote.files)
    old = stale(files, remote.files, format, path)
    lines = []
    with asking(path, CANNOT, TRY):
        if remote.listing is None:
            api.create_repo(path.repository, private=target.private or None, exist_ok=True)
            lines.append(f"{path}: made the repository {path.repository}" + (", private" if target.private else ""))
        if remote.branch is not None:
            api.create_branch(path.repository, branch=remote.branch, exist_ok=True)
        operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
        done = api.create_commit(
            path.repository,
            [*operations, *(CommitOperationDelete(name) for name in old)],
            commit_message=target.message or f"{path.folder or 'Dictionary'}: {format}, by Scopeline",
            revision=path.revision,
            parent_commit=remote.listing.commit if remote.listing and remote.branch is None else None,
        )
    commit = str(done.oid)
    _compare(path, files, asked(HubPath(path.repository, path.folder, commit), "was pushed and cannot be compared", TRY))
    total = sum(file.stat().st_size for file in files.values())
    lines += [f"{path}: {name} was of the earlier dictionary and is deleted" for name in old]
    lines.append(f"{path}: pushed {len(files)} files, {total:,} bytes, commit {commit}; the hub has each of them as it is here")
    return lines


def _compare(path: HubPath, files: Mapping[str, Path], found: Listing) -> None:
    """Sizes and digests of what was sent, against what the hub has."""
    wrong = []
    for name, file in files.items():
        content = file.read_bytes()
        same = found.sizes.get(name) == len(content)
        if name in found.sha256:
            same = same and found.sha256[name] == hashlib.sha256(content).hexdigest()
        elif name in found.blobs:
            same = same and found.blobs[name] == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if not same:
            wrong.append(name)
    if wrong:
        raise DataError(
            f"{path}: commit {found.commit} has other content than was sent of {', '.join(wrong)}; push again, and look at it "
            "before anybody uses it"
        )
