"""Things found by name: dictionary kinds, activation functions, sparsity losses.

A thing is one file of a package and one registration inside it; the file has the thing's name, with '_' for each '-',
and is imported when the name is first asked for. Listing the names imports nothing, so parameters are checked without
torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from pipeline.errors import ParamsError, unknown_name

T = TypeVar("T")


def module_name(name: str) -> str:
    """The module that holds the thing called `name`: tanh-quad -> tanh_quad."""
    return name.replace("-", "_")


def thing_name(module: str) -> str:
    """The name of the thing that a module holds: tanh_quad -> tanh-quad."""
    return module.replace("_", "-")


class Registry(Generic[T]):
    """The things of one package.

    Args:
        what: what a thing is called in messages, for example "activation function".
        package: dotted name of the package whose files register the things.
        helpers: module names of the package that register nothing.
    """

    def __init__(self, what: str, package: str, helpers: tuple[str, ...] = ()) -> None:
        self.what, self.package = what, package
        self._helpers = {"registry", *helpers}
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator (or plain call) that files a thing under `name`; a name that is taken is refused."""

        def add(thing: T) -> T:
            if name in self._things:
                raise ParamsError(f"{self.what} '{name}' is registered twice")
            self._things[name] = thing
            return thing

        return add

    def names(self) -> tuple[str, ...]:
        """All names, sorted, without importing their files."""
        path = importlib.import_module(self.package).__path__
        modules = {m.name for m in pkgutil.iter_modules(path)} - self._helpers
        return tuple(sorted({thing_name(module) for module in modules} | set(self._things)))

    def get(self, name: str) -> T:
        """The thing called `name`.

        Raises:
            ParamsError: there is none; the message lists all and the nearest.
        """
        if name not in self._things and name in self.names():
            importlib.import_module(f"{self.package}.{module_name(name)}")
        if name not in self._things:
            raise ParamsError(unknown_name(self.what, name, self.names()))
        return self._things[name]
