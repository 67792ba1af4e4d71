"""Sparsity losses by name: what `trainer.sparsity_loss_type` may be.

A sparsity loss is one file of this package with a pure function of :class:`SparsityInputs` and one `@register`, which
says the trainer fields that the function takes by keyword. It returns the unweighted term; the trainer multiplies it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.registry import Registry


class SparsityInputs(NamedTuple):
    """What a sparsity loss may use.

    Attributes:
        f: feature activations [..., F] (CLT: [..., L, F]).
        z: gating values, same shape.
        norms: decoder norms n [F] (or [L, F]), differentiable.
        thresholds: theta of the same shape, differentiable; None without thresholds.
        mask: bool [...] over tokens, None: all kept.
    """

    f: Tensor
    z: Tensor
    norms: Tensor
    thresholds: Tensor | None = None
    mask: Tensor | None = None


class SparsityLoss(NamedTuple):
    """A sparsity loss.

    Attributes:
        function: (inputs, **fields) -> scalar, unweighted.
        fields: trainer fields that it takes by keyword.
    """

    function: Callable[..., Tensor]
    fields: tuple[str, ...]

    def __call__(self, inputs: SparsityInputs, settings: Any) -> Tensor:
        """The term; the fields are read off `settings`, the trainer's parameters."""
        return self.function(inputs, **{name: getattr(settings, name) for name in self.fields})


_REGISTRY: Registry[SparsityLoss] = Registry("sparsity loss", __package__, helpers=("auxk", "reconstruction", "reductions"))


def register(name: str, *fields: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator: file a sparsity loss under `name`; it takes the trainer fields `fields` by keyword."""

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _REGISTRY.register(name)(SparsityLoss(function, fields))
        return function

    return add


def sparsity_loss(name: str) -> SparsityLoss:
    """The sparsity loss called `name`.

    Raises:
        ParamsError: there is none; the message lists all and the nearest.
    """
    return _REGISTRY.get(name)


def sparsity_loss_names() -> tuple[str, ...]:
    """All names, without importing their files."""
    return _REGISTRY.names()
