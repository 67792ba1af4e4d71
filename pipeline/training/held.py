"""What a training holds in memory at once: refused where it cannot be held, and told where it could not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import ParamsError
from pipeline.foreign import full_memory
from pipeline.memory import Need, in_bytes, require_memory
from pipeline.params.sections.trainer import TrainerParams
from pipeline.training.source import Source

AT_ONCE = 2  # steps on a CPU: in one alone half of the threads' time is idle, in what is done by one of them
Held = tuple[Dictionary, Source, TrainerParams, str]  # of a run, with the name of the member of a sweep ("": there is one)


def needs(dictionary: Dictionary, source: Source, params: TrainerParams, name: str = "") -> tuple[Need, Need, Need]:
    """Weights; gradients and the optimiser's moments; the pre-activations of a part of a batch."""
    first = next(dictionary.parameters())
    n_bytes = sum(parameter.nbytes for parameter in dictionary.parameters())
    itemsize = min(getattr(torch, params.amp_dtype).itemsize, first.dtype.itemsize)
    n_batches = params.model_loss_batches if params.model_loss is not None else 1
    tokens = n_batches * source.batch_tokens // params.gradient_accumulation_steps
    batch = dictionary.need(tokens, source.batch_size, encoded=False, itemsize=itemsize)
    of = f" of {name}" if name else ""
    return (
        Need(f"the weights{of}", n_bytes, batch.keys),
        Need(f"gradients and moments of the weights{of}", 3 * n_bytes, batch.keys),
        batch._replace(what=f"{batch.what}{of}"),
    )


def steps_at_once(n_runs: int, device: torch.device) -> int:
    """How many of the runs take a step at the same time, each with torch's number of threads, on which its bits depend.

    One where torch has one thread, which is how to ask for one core, and on a GPU, which a step fills by itself.
    """
    return min(AT_ONCE, n_runs) if device.type == "cpu" and torch.get_num_threads() > 1 else 1


def check_memory(runs: Sequence[Held]) -> None:
    """Refuse trainings that cannot be held at once; their weights are there already.

    Raises:
        ParamsError: which key to lower.
    """
    device = next(runs[0][0].parameters()).device
    found = [needs(*run) for run in runs]
    batches = sorted((batch for *_, batch in found), key=lambda need: need.n_bytes, reverse=True)
    trained = (gradients for _, gradients, _ in found)
    require_memory(*trained, *batches[: steps_at_once(len(runs), device)], device=device)


def held_lines(runs: Sequence[Held]) -> list[str]:
    """What each member of a sweep takes, and all of them."""
    sizes = {run[3]: 4 * sum(parameter.nbytes for parameter in run[0].parameters()) for run in runs}
    lines = [f"{name}: {in_bytes(size)} of weights, gradients and moments" for name, size in sizes.items()]
    return [*lines, f"{len(sizes)} members in one pass, together {in_bytes(sum(sizes.values()))}"]


@contextlib.contextmanager
def told_of_memory(working: Callable[[], Held], step: Callable[[], int]) -> Iterator[None]:
    """Within the block memory that runs out is told with what it was needed for.

    Args:
        working: gives the run whose turn it is.
        step: gives the number of the present step.

    Raises:
        ParamsError: memory of the machine or of the device ran out.
    """
    try:
        yield
    except Exception as error:
        if not full_memory(error):
            raise
        dictionary, source, params, name = working()
        found = needs(dictionary, source, params)
        keys = ", ".join(f"{key} {value:g}" for key, value in found[-1].keys.items())
        takes = ", ".join(f"{need.what} {in_bytes(need.n_bytes)}" for need in found)
        device, parts = next(dictionary.parameters()).device, params.gradient_accumulation_steps
        raise ParamsError(
            f"{f'sweep.{name}: ' if name else ''}trainer.gradient_accumulation_steps: {parts}, {keys}: out of memory at step "
            f"{step():,} on {device}, where {takes} are held at least; raise the first or lower one of the others"
        ) from error
