"""One budget for what several processes hold: which of a process's largest values one process would choose of all of them.

Nothing that a process does not choose of its own values is chosen of all, so each sends its candidates' values:

    cut = the k-th largest of all that was sent        what is above it is chosen
    of values equal to the cut those of the smallest places fill the budget

Only where more are equal than the budget has room for do the places of these travel too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.processes import Reductions


@torch.no_grad()
def within_budget(values: Tensor, places: Callable[[], Tensor], k: int, groups: Sequence[Reductions]) -> Tensor:
    """Which of this process's candidates are among the k largest of each row, whichever process holds them.

    Args:
        values: [R, n], the k largest of each row here, or all where there are fewer; n may differ between processes. What is
            not a number counts as largest.
        places: gives int64 [R, n], where they are in the row that one process would have; of no two processes the same.
        k: at most the number of values in a whole row.
        groups: those of rows or features; values travel over one after the other.

    Returns: bool [R, n].
    """
    values = torch.where(values.isnan(), torch.inf, values.detach())
    sent = _gathered(values, groups)
    if sent.shape[1] <= k:
        return torch.ones_like(values, dtype=torch.bool)
    cut = sent.kthvalue(sent.shape[1] - k + 1, dim=1, keepdim=True).values
    above, equal = values > cut, values == cut
    room = k - (sent > cut).sum(1, keepdim=True)  # at least 1
    crowded = (sent == cut).sum(1, keepdim=True) > room
    if not bool(crowded.any()):
        return above | equal
    rows = crowded.squeeze(1)
    own = torch.where(equal[rows], places()[rows], torch.iinfo(torch.int64).max)
    last = _gathered(own, groups).sort(1).values.gather(1, room[rows] - 1)
    equal[rows] &= own <= last
    return above | equal


def _gathered(values: Tensor, groups: Sequence[Reductions]) -> Tensor:
    """The columns of all processes."""
    for group in groups:
        values = torch.cat(group.gathered(values.T.contiguous())).T
    return values
