"""What an activation function is, and finding one by name.

An activation function decides which gating values z open: y = z * support(z). Adding one is a file of this package with
a subclass and one `@register`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.registry import Registry


class GateSettings(NamedTuple):
    """What a gate may need beside z.

    Attributes:
        k: features kept per token (budgeted functions).
        mask: bool [...], True for a kept token; None when every token is kept.
        log_threshold: t = log theta, [F] (functions with a threshold).
        window: full width w of the straight-through window (JumpReLU).
        layered: z is [..., L, F]; a mask has the dimensions before L.
    """

    k: int = 0
    mask: Tensor | None = None
    log_threshold: Tensor | None = None
    window: float = 2.0
    layered: bool = False


class Selection(NamedTuple):
    """Chosen entries of a tensor [..., F], ordered by token.

    Attributes:
        flat: int64 [N], where they are in the flattened tensor; each at most once.
        open: bool [N], False for a place of the budget that nothing positive (or only a masked token) fills.
        offsets: int64, where the entries of each token (or of each token and layer) begin in `flat`.
    """

    flat: Tensor
    open: Tensor
    offsets: Tensor


class ActivationFunction(abc.ABC):
    """One activation function; holds no state.

    Attributes:
        budgeted: the number of open features is bounded by k; the topk family, for which AuxK makes sense.
        batch_dependent: whether a feature opens depends on the other tokens of the batch: not an inference form.
        has_threshold: a learned threshold per feature, log_jumprelu_threshold.
        joint_layers: the layers of a token compete with one another; only for kinds with features per layer.
    """

    budgeted: bool = False
    batch_dependent: bool = False
    has_threshold: bool = False
    joint_layers: bool = False

    @abc.abstractmethod
    def support(self, z: Tensor, settings: GateSettings) -> Tensor:
        """Which entries are open. z: [..., F] gating values. Returns bool [..., F]; masked tokens have none.

        An entry that is not a number counts as open, so that it reaches the loss and is noticed there.
        """

    def features(self, h: Tensor, z: Tensor, scale: Tensor | None, settings: GateSettings) -> Tensor:
        """Feature activations f = act(z) / scale, where z = h * scale: h where open, else 0. Shapes [..., F].

        The scale cancels in the value and in the gradient of an open entry, so neither is computed.
        """
        return torch.where(self.support(z.detach(), settings), h, 0.0)

    @abc.abstractmethod
    def edge(self, z: Tensor, support: Tensor, settings: GateSettings) -> Tensor:
        """What z had to exceed to open, given the support [..., F] that z [..., F] has.

        Returns: broadcastable to z; infinite where nothing can open (a masked token of a gate with its own edge per token).
        """

    def selection(self, z: Tensor, settings: GateSettings) -> Selection | None:
        """The same as `support`, as a list of entries; None where their number has no bound."""
        return None


class BudgetedActivation(ActivationFunction):
    """An activation function that opens at most a given number of entries."""

    budgeted = True

    @abc.abstractmethod
    def selection(self, z: Tensor, settings: GateSettings) -> Selection:
        """The open entries, by token. z: [..., F] gating values."""

    def edge(self, z: Tensor, support: Tensor, settings: GateSettings) -> Tensor:
        """The smallest open z of each token (and layer)."""
        return torch.where(support, z, torch.inf).amin(-1, keepdim=True)

    def support(self, z: Tensor, settings: GateSettings) -> Tensor:
        chosen = self.selection(z, settings)
        support = torch.zeros(z.numel(), dtype=torch.bool, device=z.device)
        return support.scatter_(0, chosen.flat, chosen.open).reshape(z.shape)


_REGISTRY: Registry[ActivationFunction] = Registry("activation function", __package__, helpers=("calibration",))


def register(name: str) -> Callable[[type[ActivationFunction]], type[ActivationFunction]]:
    """Class decorator: file the activation function under `name`."""

    def add(cls: type[ActivationFunction]) -> type[ActivationFunction]:
        _REGISTRY.register(name)(cls())
        return cls

    return add


def activation_function(name: str) -> ActivationFunction:
    """The activation function called `name`.

    Raises:
        ParamsError: there is none; the message lists all and the nearest.
    """
    return _REGISTRY.get(name)


def activation_function_names() -> tuple[str, ...]:
    """All names, without importing their files."""
    return _REGISTRY.names()


def mask_features(support: Tensor, mask: Tensor | None) -> Tensor:
    """`support` [..., F] without the features of masked tokens; mask [...] or None."""
    if mask is None:
        return support
    return support & mask.reshape(*mask.shape, *(1,) * (support.ndim - mask.ndim))
