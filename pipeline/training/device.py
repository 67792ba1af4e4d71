"""Where training runs."""

from __future__ import annotations

import torch

from pipeline.errors import ParamsError


def training_device(stated: str | torch.device | None, where: str = "device") -> torch.device:
    """The stated device; None: cuda if there is one, else cpu.

    Raises:
        ParamsError: it does not exist here.
    """
    if stated is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(stated)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ParamsError(f"{where}: device '{stated}' cannot be used here ({reason}); write cpu or null") from None
    return device
