"""What is on the Hugging Face hub: in the local cache if it is there, else fetched; pinned to a commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import near, relative_to
from pipeline.foreign import reading, shortened

_TIMEOUT = 10.0
_GIVE = "give a hub id while online, a local directory written by save_pretrained, a GGUF file, or 'demo'"


def hub_snapshot(name: str, revision: str | None, files: Sequence[str], what: str = "model") -> tuple[Path, str]:
    """(snapshot directory, commit) of a repository: of the first of these files that is in the cache, or can be fetched.

    Args:
        name: hub id.
        revision: branch, tag or commit; None: the default branch.
        files: any of them tells where the snapshot lies.
        what: is looked for, for messages: a model or a tokenizer.

    Raises:
        DataError: no such repository or revision, it may not be read, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    for file in files:
        try:
            found = Path(hf_hub_download(name, file, revision=revision, local_files_only=True))
        except HFValidationError:
            raise DataError(f"{_nothing_found(name, revision, what)} it is neither a directory nor a hub id; {_GIVE}") from None
        except LocalEntryNotFoundError:
            continue
        return found.parent, found.parent.name
    check_hub(name, revision, what)
    for file in files:
        with reading(f"{_nothing_found(name, revision, what)} the hub refused it", _GIVE):
            try:
                found = Path(hf_hub_download(name, file, revision=revision))
            except EntryNotFoundError:
                if file == files[-1]:
                    raise
                continue
        return found.parent, found.parent.name
    raise AssertionError("files is empty")


def check_hub(name: str, revision: str | None, what: str = "model") -> None:
    """Ask the hub for the repository once, so that a wrong name or a missing network is known in seconds.

    Raises:
        DataError: there is none of this name or revision, it may not be read, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.is_offline_mode():
        raise DataError(f"{_nothing_found(name, revision, what)} the hub was not asked (HF_HUB_OFFLINE is set); {_GIVE}")
    # No network: the client's own exceptions differ between versions.
    with reading(f"{_nothing_found(name, revision, what)} the hub cannot be reached", _GIVE):
        try:
            HfApi().model_info(name, revision=revision, timeout=_TIMEOUT)
        except GatedRepoError:
            raise DataError(
                f"{what} '{name}': access is restricted; accept its terms on the hub and log in with `hf auth login`"
            ) from None
        except RepositoryNotFoundError:
            raise DataError(f"{_nothing_found(name, revision, what)} the hub has nothing of this name; {_GIVE}") from None
        except RevisionNotFoundError:
            raise DataError(
                f"{_nothing_found(name, revision, what)} the hub has this name, but not this revision; {_GIVE}"
            ) from None
        except HfHubHTTPError as error:
            raise DataError(f"{_nothing_found(name, revision, what)} the hub said: {shortened(error)}; {_GIVE}") from None


def _nothing_found(name: str, revision: str | None, what: str) -> str:
    """How a message begins that goes on with what the hub says."""
    at = f" (revision '{revision}')" if revision else ""
    looked = f"no directory of this name in {relative_to()}{near(name, _holds_one)}, not in the Hugging Face cache"
    return f"{what} '{name}'{at} does not exist here: {looked}, and"


def _holds_one(path: Path) -> bool:
    """Whether a path is that of a model or a tokenizer, by the names of its files."""
    return path.suffix == ".gguf" or any((path / name).is_file() for name in ("config.json", "tokenizer.json"))
