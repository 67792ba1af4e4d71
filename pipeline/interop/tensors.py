"""Tensors of other tools' files, read without running anything that lies in them, and checked by name, shape and value.

A pickle is read by torch.load with weights_only, an npz without objects. What does not fit is said in one line: missing,
unexpected and transposed tensors, shapes that contradict the configuration, values that are no numbers.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import is_number
from pipeline.foreign import reading

Shape = Sequence[tuple[str, int]]  # of each dimension what it is called and its size
AGAIN = "fetch the file again, or export it anew"


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        DataError: it is missing or damaged.
    """
    _must_be_file(file)
    with reading(f"{file}: not a safetensors file, or truncated", AGAIN):
        found = load_file(file)
    return _real(found, file)


def read_npz(file: Path) -> dict[str, Tensor]:
    """The arrays of an npz file; one that holds Python objects is refused, since reading them may run code.

    Raises:
        DataError: it is missing, damaged, or holds objects.
    """
    _must_be_file(file)
    found: dict[str, Any] = {}
    fault = f"{file}: not an npz file of plain arrays (objects in it are never read)"
    # Opened here: numpy leaves a damaged file open.
    with reading(fault, AGAIN), file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    wrong = sorted(name for name, array in found.items() if array.dtype.kind not in "fiub")
    if wrong:
        raise DataError(f"{file}: {', '.join(wrong)}: not an array of numbers (dtype {found[wrong[0]].dtype}); {AGAIN}")
    return {name: torch.from_numpy(array) for name, array in found.items()}


def read_pickle(file: Path) -> dict[str, Any]:
    """A torch file that holds a plain dictionary by names; nothing in it is run (weights_only).

    Raises:
        DataError: it is missing, damaged, or holds more than tensors and plain values.
    """
    _must_be_file(file)
    save = "save the state dict (torch.save(model.state_dict(), file))"
    advice = f"such a file may run code and is never loaded: {save}"
    with reading(f"{file}: not a file of torch, or truncated", f"fetch the file again, or {save}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the version in which the file was pickled
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            held = f" (it names {named[1]})" if named else ""
            raise DataError(f"{file}: not a pickle of tensors alone{held}; {advice}") from None
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{file}: should hold tensors by name (a state dict), got {type(found).__name__}; {advice}")
    return _real(found, file)


def _real(found: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The same, without complex numbers, which no dictionary has."""
    wrong = [name for name, value in found.items() if isinstance(value, Tensor) and value.is_complex()]
    if wrong:
        raise DataError(f"{file}: {', '.join(wrong)}: complex numbers; {AGAIN}")
    return dict(found)


def _must_be_file(file: Path) -> None:
    if not file.is_file():
        raise DataError(f"{file}: the weights are missing; {AGAIN}")


def checked(
    tensors: Mapping[str, Any],
    wanted: Mapping[str, Shape],
    file: Path,
    *,
    optional: Collection[str] = (),
    unused: Collection[str] = (),
) -> dict[str, Tensor]:
    """The wanted tensors in float32 (float64 stays), if they are there, alone, of these shapes, and finite.

    Args:
        tensors: as read.
        wanted: shape of each, dimensions by name.
        file: for the message.
        optional: those of `wanted` that may be missing.
        unused: further names that may be there; they are not returned.

    Raises:
        DataError: all faults in one line; a tensor that lies transposed is told by its shape.
    """
    faults = [f"{name} is missing" for name in wanted if name not in tensors and name not in optional]
    extra = sorted(name for name in tensors if name not in wanted and name not in unused)
    faults += [f"{name} is unexpected" for name in extra]
    taken: dict[str, Tensor] = {}
    for name, shape in wanted.items():
        if name not in tensors:
            continue
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = str(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__
            faults.append(f"{name} should be a tensor of floating-point numbers, got {kind}")
            continue
        sizes = tuple(size for _, size in shape)
        if tuple(tensor.shape) != sizes:
            faults.append(_wrong_shape(name, tensor, shape))
            continue
        wide = tensor if tensor.dtype == torch.float64 else tensor.float()
        bad = int((~wide.float().isfinite()).sum())  # what float64 holds and float32 does not is none either
        if bad:
            faults.append(f"{name} has {bad:,} of {wide.numel():,} values that are not finite")
        taken[name] = wide
    if faults:
        raise DataError(f"{file}: the tensors do not fit: {', '.join(faults)}; {AGAIN}")
    return taken


def _wrong_shape(name: str, tensor: Tensor, shape: Shape) -> str:
    sizes = tuple(size for _, size in shape)
    stated = ", ".join(f"{what} {size}" for what, size in shape)
    if tensor.ndim >= 2 and (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2]) == sizes:
        return f"{name} is transposed: {list(tensor.shape)}, wanted [{stated}]"
    return f"{name} is {list(tensor.shape)}, wanted [{stated}]"


def write_safetensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors in float32, contiguous (whole numbers as they are)."""
    save_file({n: (t.float() if t.is_floating_point() else t).contiguous().clone() for n, t in tensors.items()}, file)


def integer(values: Mapping[str, Any], key: str, file: Path, at_least: int = 1) -> int:
    """A whole number that a configuration states.

    Raises:
        DataError: it is missing or another thing.
    """
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        got = "is missing" if key not in values else f"got {value!r}"
        raise DataError(f"{file}: {key} should be a whole number of at least {at_least}, {got}; {AGAIN}")
    return value


def number(values: Mapping[str, Any], key: str, file: Path) -> float:
    """A positive number that a configuration states.

    Raises:
        DataError: it is missing or another thing.
    """
    value = values.get(key)
    if not is_number(value) or value <= 0:  # type: ignore[operator]
        got = "is missing" if key not in values else f"got {value!r}"
        raise DataError(f"{file}: {key} should be a positive number, {got}; {AGAIN}")
    return float(value)  # type: ignore[arg-type]


def flag(values: Mapping[str, Any], key: str, file: Path, default: bool) -> bool:
    """A boolean that a configuration states, or its default.

    Raises:
        DataError: it is another thing.
    """
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise DataError(f"{file}: {key} should be true or false, got {value!r}; {AGAIN}")
    return value


def text(values: Mapping[str, Any], key: str, file: Path, default: str | None = None) -> str | None:
    """A string that a configuration states, or its default.

    Raises:
        DataError: it is another thing.
    """
    value = values.get(key, default)
    if value is None:
        return default
    if not isinstance(value, str):
        raise DataError(f"{file}: {key} should be a string, got {value!r}; {AGAIN}")
    return value
