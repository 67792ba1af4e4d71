"""Sparsity losses by name: what `trainer.sparsity_loss_type` may be.

A sparsity loss is a pure function of :class:`SparsityInputs` and a row in pipeline/params/losses.py (or an entry point of
another package), which says the trainer fields that the function takes by keyword. It returns the unweighted term; the
trainer multiplies it.

Most are means over tokens, so that a step in micro-batches only averages them. One that is not (a square of a mean) names
its linear part, the statistic u: the step first averages u over all of its tokens, and every micro-batch then uses

    U + (u - stop_gradient(u))        U: the whole step's u, u: the micro-batch's own

in place of u. That has the value U and the gradient of u, so the weighted sum over the micro-batches has the value and the
gradient of the whole batch, whatever the loss does with u.

The features of a dictionary may be dealt to several processes, so that a sum over features goes through
:meth:`SparsityInputs.over_features`, before anything that is not linear is made of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.params.losses import SPARSITY_LOSSES
from pipeline.processes import ONE_PROCESS, Reductions


class SparsityInputs(NamedTuple):
    """What a sparsity loss may use.

    Attributes:
        f: feature activations [..., F] (CLT: [..., L, F]).
        z: gating values, same shape.
        norms: decoder norms n [F] (or [L, F]), differentiable.
        thresholds: theta of the same shape, differentiable; None without thresholds.
        mask: bool [...] over tokens, None: all kept.
        step_statistic: of a micro-batch: the loss's statistic over the whole step's kept tokens, without gradient; None
            where the batch is the whole step.
        feature_group: over the processes that hold the other features; all of the above are of this process's.
    """

    f: Tensor
    z: Tensor
    norms: Tensor
    thresholds: Tensor | None = None
    mask: Tensor | None = None
    step_statistic: Tensor | None = None
    feature_group: Reductions = ONE_PROCESS

    def over_features(self, part: Tensor) -> Tensor:
        """A sum over all features, whose part over this process's is given, differentiable."""
        return self.feature_group.summed(part)

    def over_step(self, own: Tensor) -> Tensor:
        """The statistic to go on with: `own`, of this batch, or the whole step's with the gradient of `own`."""
        return own if self.step_statistic is None else self.step_statistic + (own - own.detach())


class SparsityLoss(NamedTuple):
    """A sparsity loss.

    Attributes:
        function: (inputs, **fields) -> scalar, unweighted.
        statistic: (inputs, **fields) -> the means over tokens that the loss is not linear in, or None if these fields make
            it linear; None for a loss that always is.
        fields: trainer fields that it takes by keyword, as declared.
    """

    function: Callable[..., Tensor]
    statistic: Callable[..., Tensor | None] | None = None
    fields: tuple[str, ...] = ()

    def __call__(self, inputs: SparsityInputs, settings: Any) -> Tensor:
        """The term; the fields are read off `settings`, the trainer's parameters."""
        return self.function(inputs, **self._chosen(settings))

    def step_statistic(self, inputs: SparsityInputs, settings: Any) -> Tensor | None:
        """The statistic of a micro-batch, without gradient; None where the loss is linear in means over tokens.

        The whole step's value is the mean of its micro-batches' values, each weighted by its kept tokens.
        """
        found = None if self.statistic is None else self.statistic(inputs, **self._chosen(settings))
        return None if found is None else found.detach()

    def _chosen(self, settings: Any) -> dict[str, Any]:
        return {name: getattr(settings, name) for name in self.fields}


@functools.cache
def sparsity_loss(name: str) -> SparsityLoss:
    """The sparsity loss called `name`.

    Raises:
        ParamsError: there is none; the message lists all and the nearest.
    """
    found, declared = SPARSITY_LOSSES.load(name), SPARSITY_LOSSES.get(name)
    loss = found if isinstance(found, SparsityLoss) else SparsityLoss(found)
    return loss._replace(fields=(*declared.uses, *declared.fields))


def sparsity_loss_names() -> tuple[str, ...]:
    """All names, without importing their files."""
    return SPARSITY_LOSSES.names()
