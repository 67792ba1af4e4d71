"""Things found by name: activation functions, sparsity losses, dictionary kinds, language-model families.

A thing is declared once, without torch: its name, what must be known of it, and, if it has any, where its code is, which is
imported when it is first asked for. Another package declares things of its own by an entry point of the registry's group,
whose name is the thing's and whose object is the declaration:

    [project.entry-points."scopeline.activation_functions"]
    softk = "mypackage.gates:SOFTK"
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Protocol, TypeVar

from pipeline.errors import ParamsError, unknown_name


class Named(Protocol):
    """What is found by its name, which users write."""

    @property
    def name(self) -> str: ...


class Declaration(Named, Protocol):
    """What is found by its name and has code: its `implementation`, `module:attribute`."""

    @property
    def implementation(self) -> str: ...


N = TypeVar("N", bound=Named)
D = TypeVar("D", bound=Declaration)


class Declarations(Generic[N]):
    """Declarations by name.

    Args:
        what: what a thing is called in messages, for example "activation function".
        group: entry points of this group declare further ones.
        own: the declarations that are here.
    """

    def __init__(self, what: str, group: str, own: Iterable[N] = ()) -> None:
        self.what, self.group = what, group
        self._declared: dict[str, N] = {}
        for declaration in own:
            self.add(declaration)

    def add(self, declaration: N) -> N:
        """File a declaration; a name that is taken is refused."""
        if declaration.name in self._declared:
            raise ParamsError(f"{self.what} '{declaration.name}' is registered twice")
        self._declared[declaration.name] = declaration
        return declaration

    def names(self) -> tuple[str, ...]:
        """All names, ours first; no implementation is imported."""
        return tuple(dict.fromkeys((*self._declared, *_entry_points(self.group))))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._declared or name in _entry_points(self.group)

    def get(self, name: str) -> N:
        """The declaration of `name`.

        Raises:
            ParamsError: there is none (the message lists all and the nearest), or another package's cannot be imported.
        """
        if name not in self._declared and name in _entry_points(self.group):
            point = _entry_points(self.group)[name]
            found = self._imported(name, point.value, point.load)
            if getattr(found, "name", None) != name:
                other = getattr(found, "name", None)
                raise ParamsError(f"{self.what} '{name}': {point.value} is a declaration of '{other}'")
            self.add(found)
        if name not in self._declared:
            raise ParamsError(unknown_name(self.what, name, self.names()))
        return self._declared[name]

    def _imported(self, name: str, place: str, load: Any) -> Any:
        if name in self._declared and place.startswith("pipeline."):
            return load()  # a fault there is ours and keeps its traceback
        try:
            return load()
        except (ImportError, AttributeError) as error:
            raise ParamsError(f"{self.what} '{name}': {place} cannot be imported ({error})") from None


class Registry(Declarations[D]):
    """Declarations by name, and their code."""

    def __init__(self, what: str, group: str, own: Iterable[D] = ()) -> None:
        super().__init__(what, group, own)
        self._implementations: dict[str, Any] = {}

    def load(self, name: str) -> Any:
        """The implementation of `name`, imported once. Raises as :meth:`get`."""
        if name not in self._implementations:
            place = self.get(name).implementation
            module, _, attribute = place.partition(":")
            self._implementations[name] = self._imported(
                name, place, lambda: functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
            )
        return self._implementations[name]


@functools.cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
