"""Files of contracts, changed by a test and sealed again, as if they had been written so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.contracts.sealing import DIGEST, sealed


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the values of a sealed file."""
    values = json.loads(path.read_text())
    values.pop(DIGEST, None)
    change(values)
    path.write_text(json.dumps(sealed(values)))
