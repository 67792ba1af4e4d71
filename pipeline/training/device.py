"""Where training runs."""

from __future__ import annotations

import torch

from pipeline.errors import ParamsError
from pipeline.foreign import reading


def training_device(stated: str | torch.device | None, where: str = "device") -> torch.device:
    """The stated device; None: cuda if there is one, else cpu.

    Raises:
        ParamsError: it does not exist here.
    """
    if stated is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with reading(f"{where}: device '{stated}' cannot be used here", "write cpu or null", ParamsError):
        device = torch.device(stated)
        torch.empty(0, device=device)
    return device
