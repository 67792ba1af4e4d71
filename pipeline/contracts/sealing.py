"""What every data contract says of itself: the stage that made it, the digests of what it was made from, and its own digest.

A JSON file of a contract is sealed: `digest` is the sha256 of all the rest, so that an altered byte is found when it is
opened. A stage then checks that what it reads was made by the stage before it, from the very inputs that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import fingerprint

DIGEST, MADE_BY, MADE_FROM = "digest", "made_by", "made_from"
PYTHON = "python"  # made by no stage


@dataclass(frozen=True)
class Origin:
    """Where a contract comes from.

    Attributes:
        made_by: the stage; `python` for what was made by no stage.
        made_from: {input: its digest}, inputs by the names that stages give them (`tokens`, `activations`, `norms`, ...).
        digest: of the contract itself; None: it was written by an earlier version, without one.
    """

    made_by: str = PYTHON
    made_from: Mapping[str, str] = field(default_factory=dict)
    digest: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As files state it: made_by, made_from."""
        return {MADE_BY: self.made_by, MADE_FROM: dict(self.made_from)}

    @classmethod
    def of(cls, values: Mapping[str, Any], digest: str | None = None) -> Origin:
        """What `values` state, among others."""
        return cls(values.get(MADE_BY, PYTHON), values.get(MADE_FROM, {}), digest)

    def check(self, path: Path, stage: str, inputs: Mapping[str, str | None]) -> Origin:
        """Refuse a contract of another stage, or made from other inputs than those that are there.

        Args:
            path: of the contract, for the message.
            stage: that should have made it; what was made in Python, or by an earlier version, is taken as it is.
            inputs: {input: digest of what is there}; one that the contract does not name, or of no digest, is not compared.

        Returns: itself.

        Raises:
            DataError: names what it was made by, or the first input that differs.
        """
        known = isinstance(self.made_by, str) and isinstance(self.made_from, Mapping)
        if not (known and all(isinstance(digest, str) for digest in self.made_from.values())):
            raise DataError(f"{path}: {MADE_BY} should be a stage and {MADE_FROM} digests by input; {remake(stage)}")
        if self.made_by not in (stage, PYTHON):
            raise DataError(f"{path}: made by the stage {self.made_by}, wanted the output of {stage}; {remake(stage)}")
        for name, digest in inputs.items():
            made_from = self.made_from.get(name)
            if None not in (made_from, digest) and made_from != digest:
                raise DataError(
                    f"{path}: made from other {name} than are there (digest {made_from[:12]}, found {digest[:12]}); "  # type: ignore[index]
                    f"{remake(stage)}"
                )
        return self


def remake(stage: str) -> str:
    """What to do about an output of a stage that is lost, altered or of other inputs, which DVC notices."""
    return f"run `dvc repro {stage}`"


def sealed(values: Mapping[str, Any], origin: Origin | None = None) -> dict[str, Any]:
    """`values` with their origin (where given) and the digest of all of it."""
    about = dict(values)
    if origin is not None:
        about |= origin.to_dict()
    return {**about, DIGEST: fingerprint(about)}


def unsealed(values: Any, path: Path, what: str, *, next_action: str) -> tuple[dict[str, Any], Origin]:
    """The values of a sealed file, and its origin.

    Args:
        values: as read.
        path: of the file.
        what: it should be.
        next_action: what to do where it is not.

    Raises:
        DataError: not a mapping with a digest, or altered since it was written.
    """
    if not isinstance(values, dict) or not isinstance(values.get(DIGEST), str):
        raise DataError(f"{path}: not {what}, or damaged (its digest is missing); {next_action}")
    about = {key: value for key, value in values.items() if key != DIGEST}
    if fingerprint(about) != values[DIGEST]:
        raise DataError(f"{path}: altered since it was written (not the content of its digest); {next_action}")
    origin = Origin.of(about, values[DIGEST])
    return {key: value for key, value in about.items() if key not in (MADE_BY, MADE_FROM)}, origin
