"""What a training holds in memory at once: refused where it cannot be held, and told where it could not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import ParamsError
from pipeline.foreign import full_memory
from pipeline.memory import Need, in_bytes, require_memory
from pipeline.params.sections.trainer import TrainerParams
from pipeline.training.source import Source


def needs(dictionary: Dictionary, source: Source, params: TrainerParams) -> tuple[Need, Need, Need]:
    """Weights; gradients and the optimiser's moments; the pre-activations of a part of a batch."""
    first = next(dictionary.parameters())
    n_bytes = sum(parameter.nbytes for parameter in dictionary.parameters())
    itemsize = min(getattr(torch, params.amp_dtype).itemsize, first.dtype.itemsize)
    n_batches = params.model_loss_batches if params.model_loss is not None else 1
    tokens = n_batches * source.batch_tokens // params.gradient_accumulation_steps
    batch = dictionary.need(tokens, source.batch_size, encoded=False, itemsize=itemsize)
    return (
        Need("the weights", n_bytes, batch.keys),
        Need("gradients and moments of the weights", 3 * n_bytes, batch.keys),
        batch,
    )


def check_memory(dictionary: Dictionary, source: Source, params: TrainerParams) -> None:
    """Refuse a training that cannot be held; its weights are there already.

    Raises:
        ParamsError: which key to lower.
    """
    _, trained, batch = needs(dictionary, source, params)
    require_memory(trained, batch, device=next(dictionary.parameters()).device)


@contextlib.contextmanager
def told_of_memory(dictionary: Dictionary, source: Source, params: TrainerParams, step: Callable[[], int]) -> Iterator[None]:
    """Within the block memory that runs out is told with what it was needed for.

    Args:
        dictionary, source, params: of the run.
        step: gives the number of the present step.

    Raises:
        ParamsError: memory of the machine or of the device ran out.
    """
    try:
        yield
    except Exception as error:
        if not full_memory(error):
            raise
        found = needs(dictionary, source, params)
        keys = ", ".join(f"{key} {value:g}" for key, value in found[-1].keys.items())
        takes = ", ".join(f"{need.what} {in_bytes(need.n_bytes)}" for need in found)
        device, parts = next(dictionary.parameters()).device, params.gradient_accumulation_steps
        raise ParamsError(
            f"trainer.gradient_accumulation_steps: {parts}, {keys}: out of memory at step {step():,} on {device}, where "
            f"{takes} are held at least; raise the first or lower one of the others"
        ) from error
