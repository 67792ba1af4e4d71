"""A non-finite loss stops a run before it reaches the weights (SPEC 6), without waiting for the device at every step.

On the CPU every step is looked at. Elsewhere the look is folded into the update: the first bad step raises a flag on the
device, which makes that update and all later ones change nothing and keeps the step's terms; the flag is read at log
steps, before checkpoints and at the end, and the error then names the step at which it happened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.errors import NumericsError


class LossGuard:
    """Watches the figures of every step.

    Args:
        device: where the figures are.
        position: words for the position of a step's batch.
    """

    def __init__(self, device: torch.device, position: Callable[[int], str]) -> None:
        self.immediate = device.type == "cpu"
        self._position = position
        self._names: list[str] = []
        self._tripped = torch.zeros((), dtype=torch.bool, device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._values: Tensor | None = None

    @torch.no_grad()
    def check(self, step: int | Tensor, figures: dict[str, Tensor]) -> Tensor | None:
        """Look at a step's figures before its update.

        Args:
            step: number of the step; on the device where a graph of the step is to read it.
            figures: {name: scalar on the device}: total, each term, the gradient's norm.

        Returns: None on the CPU; elsewhere float32 scalar, 1 if the update must change nothing.

        Raises:
            NumericsError: on the CPU, a figure is not finite.
        """
        values = torch.stack([value.detach().float() for value in figures.values()])
        self._names = list(figures)
        if self.immediate:
            if not bool(torch.isfinite(values).all()):
                self._raise(int(step), values.tolist())
            return None
        bad = ~torch.isfinite(values).all()
        first = bad & ~self._tripped
        if self._values is None:
            self._values = values.clone()
        # In place: a graph of the step goes on from what the last one has left there.
        self._values.copy_(torch.where(first, values, self._values))
        self._step.copy_(torch.where(first, step, self._step))
        self._tripped.logical_or_(bad)
        return self._tripped.float()

    def read(self) -> None:
        """Wait for the device and look at the flag; before anything is saved or reported.

        Raises:
            NumericsError: a step since the last look was bad.
        """
        if self._values is not None and bool(self._tripped):
            self._raise(int(self._step), self._values.tolist())

    def _raise(self, step: int, values: Sequence[float]) -> None:
        terms = ", ".join(f"{name} {value:.6g}" for name, value in zip(self._names, values, strict=True))
        raise NumericsError(
            f"training: the loss is not finite at step {step} ({self._position(step)}): {terms}; nothing was updated with it. "
            "Lower trainer.lr, set trainer.clip_grad_norm or trainer.amp_dtype float32, and check the activations"
        )
