"""A run that diverges ends with an error instead of weights that say nothing.

The reconstruction error of every step, as a share of the variance of the labels (FVU of the step's batch), is looked at in
windows of steps; a window counts as its median, so that a dip shorter than half a window does not matter. With f_i the median
of window i and f_0 the first step's figure, before any update, the run has diverged if

    blown up     f_i > BLOWN max(1, f_0) in two windows running, the second at least half of the first
    stuck        from half of the run on: f > WORSE in every window of a quarter of the run, the last no better than the first
    at the end   worse than predicting the mean: f > WORSE, and no longer falling: f at least FALLING times that of a quarter
                 of the run before
    at the end   far worse than at the start: f > max(FAR f_0, 1 / 2), of a gate whose L0 is the same all along

A run that ends above WORSE while its error still falls was too short, which is said and is no error. The variance is that of
the labels of the first VARIANCE_STEPS steps. Windows end at the same steps however often a run is stopped and resumed. All is
kept on the device, which is waited for once a window.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.losses.reductions import aligned, widened
from pipeline.processes import ONE_PROCESS, Reductions

BLOWN, WORSE, FAR, FALLING = 10.0, 1.05, 2.0, 0.97
WINDOWS = 20  # of a run; fewer where they would be shorter than SHORTEST
SHORTEST, LONGEST = 4, 200  # steps of a window
VARIANCE_STEPS = 16


class Verdict(NamedTuple):
    """How a run stands: whether it has diverged, or ended too early to be better than the mean, and its figures in words."""

    diverged: bool
    too_short: bool
    figures: str


class DivergenceGuard:
    """Watches a run.

    Args:
        total_steps: T.
        width: of the labels: [D], or [L, D] of several hook points.
        device: where the figures are.
        same_l0: whether the gate keeps the L0 of its start, so that the error has no reason to grow.
        reductions: over the processes that the labels are dealt to.
    """

    def __init__(
        self,
        total_steps: int,
        width: tuple[int, ...],
        device: torch.device,
        *,
        same_l0: bool,
        reductions: Reductions = ONE_PROCESS,
    ) -> None:
        self.total_steps, self.same_l0, self.reductions = total_steps, same_l0, reductions
        self.window = min(max(total_steps // WINDOWS, SHORTEST), LONGEST)
        self.errors = torch.zeros(self.window, dtype=torch.float64, device=device)
        self.first = torch.zeros((), dtype=torch.float64, device=device)
        self.medians = torch.full((-(-total_steps // self.window),), -1.0, dtype=torch.float64)
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.squares = torch.zeros(width[:-1], dtype=torch.float64, device=device)
        self.n = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, step: int, l_rec: Tensor, label: Tensor, mask: Tensor | None) -> None:
        """Take in a step.

        Args:
            step: its number.
            l_rec: reconstruction error before the update, scalar.
            label: normalised, [..., D] or [..., L, D]; mask: bool [...], True for a kept token; None: all.
        """
        self.errors[step % self.window] = l_rec.detach()
        if step == 0:
            self.first.copy_(l_rec.detach())
        if step < VARIANCE_STEPS:
            y = widened(label.detach())
            if mask is not None:
                y = torch.where(aligned(mask, y), y, 0.0)
            n_dims = self.total.ndim
            rows = y.reshape(-1, *self.total.shape)
            n = y.shape[: y.ndim - n_dims].numel() if mask is None else mask.sum()
            own = [rows.sum(0, dtype=torch.float64), rows.double().square().sum((0, -1)), n]
            total, squares, n = self.reductions.sum(own)
            self.total += total
            self.squares += squares
            self.n += n

    def due(self, step: int) -> bool:
        """Whether there may be a verdict after `step` steps: a window is at its end."""
        return step > 0 and (step % self.window == 0 or step == self.total_steps)

    @torch.no_grad()
    def verdict(self, step: int) -> Verdict | None:
        """How the run stands after `step` steps; None: a window is not at its end, or the labels do not vary."""
        if not self.due(step):
            return None
        variance = self._variance()
        if not variance > 0:
            return None
        index = (step - 1) // self.window
        self.medians[index] = (self.errors if index else self.errors[:step]).median()
        return self._judged(step, (self.medians[: index + 1] / variance).tolist(), float(self.first) / variance)

    def _variance(self) -> float:
        n = self.n.clamp_min(1)
        return float((self.squares / n - (self.total / n).square().sum(-1)).mean())

    def _judged(self, step: int, found: list[float], first: float) -> Verdict:
        last, bound, quarter = found[-1], BLOWN * max(1.0, first), max(len(self.medians) // 4, 1)
        before, recent = [*[first] * quarter, *found][-1 - quarter], found[-quarter:]
        blown = len(found) > 1 and min(found[-2:]) > bound and last >= found[-2] / 2
        stuck = len(recent) > 1 and 2 * step >= self.total_steps and min(recent) > WORSE and last >= recent[0]
        ends, worse = step == self.total_steps, last > WORSE
        falling = last < FALLING * before
        far = self.same_l0 and last > max(FAR * first, 0.5)
        worse_than = "predicting the mean" if worse else "at the start"
        return Verdict(
            diverged=blown or stuck or (ends and ((worse and not falling) or far)),
            too_short=ends and worse and falling,
            figures=f"explained variance is {1 - last:.3g} (first step: {1 - first:.3g}), worse than {worse_than}",
        )

    def state(self) -> dict[str, Tensor]:
        """What a resume needs."""
        names = ("errors", "first", "medians", "total", "squares", "n")
        return {name: getattr(self, name) for name in names}
