"""What an activation function is, and finding one by name.

An activation function decides which gating values z are active: y = z * support(z). Adding one is a subclass and a row in
pipeline/params/gates.py (or an entry point of another package).
"""

from __future__ import annotations

import abc
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.kernels.dispatch import entry_kernels
from pipeline.kernels.entries import EntryKernels
from pipeline.params.gates import GATES, GateDeclaration
from pipeline.processes import ONE_PROCESS, Reductions


class GateSettings(NamedTuple):
    """What a gate may need beside z.

    Attributes:
        k: features kept per token (budgeted functions).
        mask: bool [...], True for a kept token; None when every token is kept.
        log_threshold: t = log theta, [F] (functions with a threshold).
        window: full width w of the straight-through window (JumpReLU).
        layered: z is [..., L, F]; a mask has the dimensions before L.
        k_of_token: k counts the features of all layers of a token; only where its layers compete.
        kernels: what looks for the chosen entries; None: those of the device.
        reductions: over the processes that hold the rest of the batch.
        feature_group: over the processes that hold the other features, as many each; z has this process's.
        row_layers: layers of features in a row of z.
    """

    k: int = 0
    mask: Tensor | None = None
    log_threshold: Tensor | None = None
    window: float = 2.0
    layered: bool = False
    k_of_token: bool = False
    kernels: EntryKernels | None = None
    reductions: Reductions = ONE_PROCESS
    feature_group: Reductions = ONE_PROCESS
    row_layers: int = 1

    def kernels_of(self, z: Tensor) -> EntryKernels:
        """What looks for the chosen entries of z."""
        return self.kernels or entry_kernels(z.device.type)

    def joint(self, n_layers: int) -> GateSettings:
        """For the layers of a token as one row of features: a k of each layer becomes k L."""
        k = self.k if self.k_of_token else self.k * n_layers
        return self._replace(k=k, layered=False, row_layers=n_layers)

    def place_in_row(self, columns: Tensor, n_columns: int) -> Tensor:
        """Where columns of this process's rows of z are in the rows of all features.

        Args:
            columns: int64.
            n_columns: of this process.
        """
        n_features = n_columns // self.row_layers
        layer, feature = columns // n_features, columns % n_features
        return (layer * self.feature_group.size + self.feature_group.rank) * n_features + feature


class Selection(NamedTuple):
    """Chosen entries of gating values [..., F].

    Attributes:
        flat: int64 [N], where they are in the flattened tensor, ascending.
        values: [N], the gating values there.
        active: bool [N], False for a place of the budget that nothing positive (or only a masked token) fills.
    """

    flat: Tensor
    values: Tensor
    active: Tensor


class ActivationFunction(abc.ABC):
    """One activation function; holds no state.

    What it is declared as (see GateDeclaration) is read off `declaration`, which :func:`activation_function` sets.
    """

    declaration: GateDeclaration

    @property
    def budgeted(self) -> bool:
        """The number of active features is bounded by k."""
        return self.declaration.budgeted

    @property
    def batch_dependent(self) -> bool:
        """Whether a feature is active depends on the other tokens of the batch."""
        return self.declaration.batch_dependent

    @property
    def has_threshold(self) -> bool:
        """A learned threshold for each feature."""
        return self.declaration.has_threshold

    @property
    def joint_layers(self) -> bool:
        """The layers of a token compete with one another."""
        return self.declaration.joint_layers

    @abc.abstractmethod
    def support(self, z: Tensor, settings: GateSettings) -> Tensor:
        """Which entries are active. z: [..., F] gating values. Returns bool [..., F]; masked tokens have none.

        An entry that is not a number counts as active, so that it reaches the loss and is noticed there.
        """

    def features(self, h: Tensor, z: Tensor, scale: Tensor | None, settings: GateSettings) -> Tensor:
        """Feature activations f = act(z) / scale, where z = h * scale: h where active, else 0. Shapes [..., F].

        The scale cancels in the value and in the gradient of an active entry, so neither is computed.
        """
        return torch.where(self.support(z.detach(), settings), h, 0.0)

    @abc.abstractmethod
    def threshold(self, smallest: Tensor, settings: GateSettings) -> Tensor:
        """What z had to exceed to be active.

        Args:
            smallest: the smallest active z of each token (and layer), [..., 1]; infinite where none is active.
            settings: of the gate.

        Returns: broadcastable to z; infinite where nothing can be (a masked token of a gate with a threshold per token).
        """

    def selection(self, z: Tensor, settings: GateSettings) -> Selection | None:
        """The same as `support`, as a list of entries; None where the function has no such form."""
        return None


class BudgetedActivation(ActivationFunction):
    """An activation function with a given number of active entries at most."""

    @abc.abstractmethod
    def selection(self, z: Tensor, settings: GateSettings) -> Selection:
        """The entries that fill the budget. z: [..., F] gating values."""

    def threshold(self, smallest: Tensor, settings: GateSettings) -> Tensor:
        """The smallest active z of each token (and layer)."""
        return smallest

    def support(self, z: Tensor, settings: GateSettings) -> Tensor:
        chosen = self.selection(z, settings)
        support = torch.zeros(z.numel(), dtype=torch.bool, device=z.device)
        return support.scatter_(0, chosen.flat, chosen.active).reshape(z.shape)


@functools.cache
def activation_function(name: str) -> ActivationFunction:
    """The activation function called `name`.

    Raises:
        ParamsError: there is none; the message lists all and the nearest.
    """
    made: ActivationFunction = GATES.load(name)()
    made.declaration = GATES.get(name)
    return made


def activation_function_names() -> tuple[str, ...]:
    """All names, without importing their files."""
    return GATES.names()


def selection_above(z: Tensor, bounds: Tensor, settings: GateSettings) -> Selection:
    """What exceeds a bound for each feature, as a list, whose length is waited for.

    Args:
        z: [..., *features].
        bounds: of the shape of a token's features.
        settings: whose mask counts.
    """
    rows, mask = z.reshape(-1, bounds.numel()), settings.mask
    kept = None if mask is None else mask.reshape(-1)
    flat = settings.kernels_of(z).above(rows, bounds.detach().reshape(-1), kept)
    active = torch.ones(len(flat), dtype=torch.bool, device=z.device)
    return Selection(flat, rows.reshape(-1).index_select(0, flat), active)


def mask_features(support: Tensor, mask: Tensor | None) -> Tensor:
    """`support` [..., F] without the features of masked tokens; mask [...] or None."""
    if mask is None:
        return support
    return support & mask.reshape(*mask.shape, *(1,) * (support.ndim - mask.ndim))
