"""Where a model's weights lie, and in how many bits: transformers' device_map (accelerate) and bitsandbytes' quantisation.

`device_map: auto` deals whole blocks to the GPUs, what does not fit to memory, and the rest to a directory that lives as long
as the model; accelerate's hooks then carry what a block reads to its device, and fetch weights that are elsewhere before a
module runs. Tokens go to one device and activations come back to it: the first that computes.

Quantised are the weights of linear layers, not the unembedding: `8bit` by LLM.int8 (products of 8-bit numbers, computed in
float16 where columns are outliers), `4bit` by NF4 (unpacked for each product, which is computed in the model's dtype).
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import DataError, unknown_name
from pipeline.params.choices import DEVICE_MAPS, QUANTIZATIONS, bridge_fault, device_map_fault

if TYPE_CHECKING:
    from torch import nn

    from pipeline.lm.source import ModelSource

INSTALL = "run `pip install {}`, or write null"


def check_placement(
    source: ModelSource,
    backend: str,
    device: str | torch.device | None,
    device_map: str | None,
    quantization: str | None,
) -> None:
    """Refuse a device map or a quantisation that this model, back end or machine has not; no weights are read.

    Args:
        source: the model.
        backend: that runs it.
        device: that is stated; None: cuda if there is one, else cpu.
        device_map, quantization: as in the section `model`.

    Raises:
        DataError: names the key and what is missing.
    """
    for key, value, known in (("device_map", device_map, DEVICE_MAPS), ("quantization", quantization, QUANTIZATIONS)):
        if value is not None and value not in known:
            raise DataError(unknown_name(f"model.{key}", value, known))
        if (fault := bridge_fault(backend, value)) is not None:
            raise DataError(f"model.{key}: {fault}")
    if (fault := device_map_fault(device_map, device)) is not None:
        raise DataError(f"model.device_map: {fault}")
    if device_map is not None:
        _check_device_map(device_map)
    if quantization is not None:
        _check_quantization(source, device, quantization)


def _check_device_map(device_map: str) -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise DataError(f"model.device_map: {device_map} needs the package accelerate; {INSTALL.format('accelerate')}")
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise DataError(
            f"model.device_map: {device_map} deals one model to all devices, and {processes} processes were started, each with "
            "a model of its own; start one process, or write null"
        )


def _check_quantization(source: ModelSource, device: str | torch.device | None, quantization: str) -> None:
    said = f"model.quantization: {quantization}"
    if source.gguf is not None:
        raise DataError(
            f"{said} of '{source.name}', a GGUF file, whose tensors are unpacked while they are read; write null, or give the "
            "model that it was made from"
        )
    if source.config.get("quantization_config"):
        raise DataError(f"{said} of '{source.name}', whose weights are quantised already (quantization_config); write null")
    for package in ("accelerate", "bitsandbytes"):
        if importlib.util.find_spec(package) is None:
            raise DataError(f"{said} needs the package {package}; {INSTALL.format(package)}")
    kind = torch.device(device).type if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    import bitsandbytes

    runs_on = sorted(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))  # up to 0.45: CUDA alone
    if kind not in runs_on:
        raise DataError(
            f"{said} on {kind}, but bitsandbytes {version('bitsandbytes')} computes on {', '.join(runs_on)}; install a newer "
            "one, or write null"
        )


class Scratch:
    """A temporary directory that goes with the object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="scopeline-weights-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def placement_options(
    dtype: torch.dtype, device: torch.device, device_map: str | None, quantization: str | None
) -> tuple[dict[str, Any], Scratch | None]:
    """Options of from_pretrained; and the directory of what is kept on the disk, which lives as long as its object.

    Args:
        dtype: of what is not quantised.
        device: of the whole model where there is no device map.
        device_map, quantization: that :func:`check_placement` has passed.
    """
    options: dict[str, Any] = {}
    folder = None
    if device_map is not None:
        folder = Scratch()
        options |= {"device_map": device_map, "offload_folder": str(folder.path)}
    elif quantization is not None:
        options["device_map"] = {"": device}
    if quantization is not None:
        from transformers import BitsAndBytesConfig

        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of each product what the documentation says once
        how: dict[str, Any] = {"load_in_8bit": True}
        if quantization == "4bit":
            how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        options["quantization_config"] = BitsAndBytesConfig(**how)
    return options, folder


def main_device(model: nn.Module) -> torch.device:
    """The device that tokens go to and activations come back to: that of a model on one, else the first that computes."""
    dealt = getattr(model, "hf_device_map", None)
    if dealt is None:
        return next(model.parameters()).device
    computing = [place for place in dealt.values() if place not in ("cpu", "disk")]
    return torch.device(computing[0] if computing else "cpu")


def compute_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the weights that are not quantised."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


@contextlib.contextmanager
def weights_there(*modules: nn.Module | None) -> Iterator[None]:
    """Within the block the modules' weights, and those of their parts, are numbers, also where they are kept elsewhere.

    A tensor that was taken in the block stays what it is after it.
    """
    dealt = [part for module in modules if module is not None for part in module.modules() if hasattr(part, "_hf_hook")]
    with contextlib.ExitStack() as stack:
        if dealt:
            from accelerate.utils import align_module_device

            for part in dealt:
                stack.enter_context(align_module_device(part))
        yield
