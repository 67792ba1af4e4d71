"""The licence under which exported weights are published: declared, never guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import ParamsError

OTHER = "other"
_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Licence:
    """A licence as the hub names it.

    Attributes:
        id: mit, apache-2.0, cc-by-4.0, ...; `other`: one that the hub has no identifier for.
        name, link: of another one.
    """

    id: str
    name: str | None = None
    link: str | None = None

    def metadata(self) -> dict[str, str]:
        """For a model card."""
        found = {"license": self.id, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in found.items() if value}

    def sentence(self) -> str:
        """For a reader."""
        named = f"[{self.name}]({self.link})" if self.link else self.name or self.id
        return f"The weights are published under: {named}."


def declared_licence(id: str | None, name: str | None, link: str | None, *, required: bool) -> Licence | None:
    """The licence that the options declare.

    Args:
        id, name, link: --license, --license-name, --license-link; None: not given.
        required: it is to be published.

    Raises:
        ParamsError: none where one is required, no identifier, or `other` without a name.
    """
    if id is None:
        if name or link:
            raise ParamsError(f"--license: is not given, but its name or link; give --license {OTHER} with them")
        if required:
            raise ParamsError(
                "--license: say under which licence the weights are published, by the hub's identifier (mit, apache-2.0, "
                f"cc-by-4.0, gemma, ...; {OTHER} with --license-name); it is not guessed"
            )
        return None
    if _ID.fullmatch(id) is None:
        raise ParamsError(f"--license '{id}': no identifier of the hub; write mit, apache-2.0, cc-by-4.0, ... or {OTHER}")
    if id == OTHER and not name:
        raise ParamsError(f"--license {OTHER}: name it by --license-name (and --license-link, where its text is)")
    if id != OTHER and (name or link):
        raise ParamsError(f"--license {id}: has its name and text on the hub; leave --license-name and --license-link out")
    return Licence(id, name, link)
