"""What is asked of the Hugging Face hub, through huggingface_hub: what a repository holds, and files of it.

The hub is asked first, so that a branch means its newest commit; where it cannot be reached, or HF_HUB_OFFLINE is set, the
cache answers. The token is huggingface_hub's own (HF_TOKEN, `hf auth login`) and is in no message.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, PipelineError
from pipeline.foreign import full_disk, told
from pipeline.interop.hub_paths import ADVICE, HubPath

TIMEOUT = 10.0  # seconds until the hub counts as unreachable


class Unreachable(DataError):
    """The hub gives no answer."""


class NoRepository(DataError):
    """The hub has no repository of this name, or none that the token opens."""


class NoRevision(DataError):
    """The repository has no such branch, tag or commit."""


@dataclass(frozen=True)
class Listing:
    """What a repository holds at a commit.

    Attributes:
        path: as it was asked for.
        commit: to which its revision leads.
        sizes: {file: bytes}.
        sha256: {file: digest} of those whose digest the hub says (large ones).
        blobs: {file: git blob id}, where the hub says it.
        private: None where it is not known.
        said: that this is what the cache knows.
    """

    path: HubPath
    commit: str
    sizes: Mapping[str, int]
    sha256: Mapping[str, str] = field(default_factory=dict)
    blobs: Mapping[str, str] = field(default_factory=dict)
    private: bool | None = None
    said: tuple[str, ...] = ()


def offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextlib.contextmanager
def asking(path: HubPath, what: str, advice: str = ADVICE) -> Iterator[None]:
    """Ask the hub in the block; what it refuses becomes one line.

    Args:
        path: for the message.
        what: cannot be done if it fails: "cannot be fetched".
        advice: what to do where it does not answer, or says something else.

    Raises:
        DataError: it is not to be read, or something else that the hub says.
        NoRepository, NoRevision: no such repository or revision.
        Unreachable: it does not answer.
    """
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except PipelineError:
        raise
    except GatedRepoError:
        raise DataError(
            f"{path}: access to {path.repository} is restricted; accept its terms on its page of the hub and log in with "
            "`hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise NoRevision(
            f"{path}: {path.repository} has no revision '{path.revision}'; name a branch, tag or commit that it has"
        ) from None
    except RepositoryNotFoundError:
        raise NoRepository(
            f"{path}: the hub has no repository {path.repository}, or it is private and your token does not open it; look at "
            "the name, or log in with `hf auth login`"
        ) from None
    except DisabledRepoError:
        raise DataError(f"{path}: the hub has disabled access to {path.repository}; {ADVICE}") from None
    except HFValidationError as error:
        raise DataError(f"{path}: no name that the hub can have ({_told(error)}); {advice}") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        kind = Unreachable if status >= 500 or status == 429 else DataError
        raise kind(f"{path}: {what} (it answers {status}: {_told(error)}); {advice}") from None
    except Exception as error:  # the client's own exceptions differ between versions
        if full_disk(error) is not None:
            raise
        raise Unreachable(f"{path}: {what} ({_told(error)}); {advice}") from None


def _told(error: BaseException) -> str:
    """What it says and what that comes from, without the token."""
    from huggingface_hub import get_token

    token, cause = get_token(), error.__cause__
    text = told(error) if cause is None or isinstance(error, OSError) else f"{told(error)} {told(cause)}"
    return text.replace(token, "<token>") if token else text


def listing(path: HubPath) -> Listing:
    """What the repository holds; nothing of it is fetched.

    Raises:
        DataError: no such repository or revision, or neither the hub nor the cache answers.
    """
    if offline():
        return _cached(path, "HF_HUB_OFFLINE is set")
    try:
        return asked(path)
    except Unreachable as error:
        found = _in_cache(path)
        if found is None:
            raise
        return _cached(path, error.faults[0].removeprefix(f"{path}: ").rpartition(f"; {ADVICE}")[0])


def asked(path: HubPath, what: str = "cannot be fetched: the hub cannot be reached", advice: str = ADVICE) -> Listing:
    """The same, of the hub alone; `what` and `advice` as of `asking`."""
    from huggingface_hub import HfApi

    with asking(path, what, advice):
        info: Any = HfApi().model_info(path.repository, revision=path.revision, files_metadata=True, timeout=TIMEOUT)
        files = info.siblings or []
        return Listing(
            path,
            info.sha,
            {file.rfilename: file.size or 0 for file in files},
            {file.rfilename: file.lfs["sha256"] for file in files if file.lfs},
            {file.rfilename: file.blob_id for file in files if file.blob_id},
            info.private,
        )


def _in_cache(path: HubPath) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path.repository, revision=path.revision, allow_patterns=[], local_files_only=True))
    except Exception:  # whatever the reason: it is not there
        return None


def _cached(path: HubPath, why: str) -> Listing:
    root = _in_cache(path)
    if root is None:
        raise Unreachable(
            f"{path}: not in the cache, and the hub was not asked ({why}); fetch it once while online, or give a local "
            "directory in the same layout"
        )
    sizes = {}
    for folder, _, names in os.walk(root):
        for file in (Path(folder) / name for name in names):
            if file.is_file():
                sizes[file.relative_to(root).as_posix()] = file.stat().st_size
    said = f"read from the cache, commit {root.name}: {why}"
    return Listing(path, root.name, sizes, said=(said,))


def fetched(found: Listing, files: Collection[str]) -> Path:
    """The snapshot's directory, with these files in it.

    Args:
        found: of `listing`.
        files: paths in the repository.

    Raises:
        DataError: the hub refuses or does not answer.
    """
    from huggingface_hub import snapshot_download

    if found.said:
        root = _in_cache(HubPath(found.path.repository, revision=found.commit))
        assert root is not None  # it was listed
        return root
    patterns = [glob.escape(file) for file in sorted(files)]
    with asking(found.path, "cannot be fetched: the hub cannot be reached"):  # by its branch, which the cache then knows
        root = Path(snapshot_download(found.path.repository, revision=found.path.revision, allow_patterns=patterns))
    if root.name != found.commit:
        raise DataError(f"{found.path}: changed from commit {found.commit} to {root.name} while it was fetched; run again")
    return root
