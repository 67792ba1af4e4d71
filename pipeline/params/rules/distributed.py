"""What several processes ask of a training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.params.losses import SPARSITY_LOSSES
from pipeline.params.section import across
from pipeline.shares import contexts_in_step

if TYPE_CHECKING:
    from pipeline.params.kinds.fields import DictionaryFields
    from pipeline.params.sections.activations import ActivationsParams
    from pipeline.params.sections.distributed import DistributedParams
    from pipeline.params.sections.trainer import TrainerParams

KEY = "distributed.model_parallel_size"
NAMED = 8  # sizes that a message names


@across("distributed.data_parallel_size")
def processes_have_rows(distributed: DistributedParams, activations: ActivationsParams) -> str | None:
    """Each has a part of every batch."""
    size, rows = distributed.data_parallel_size, activations.batch_size
    return f"{size} processes are more than the {rows} rows of activations.batch_size" if size > rows else None


@across("trainer.model_loss_batches")
def processes_have_contexts(
    trainer: TrainerParams, distributed: DistributedParams, activations: ActivationsParams
) -> str | None:
    """Each has some of a step's."""
    if trainer.model_loss is None:
        return None
    size, batches = distributed.data_parallel_size, trainer.model_loss_batches
    contexts = contexts_in_step(batches, activations.tokens_per_batch, activations.context_size)
    if size <= contexts:
        return None
    wanted = math.ceil(size * activations.context_size / activations.tokens_per_batch)
    return (
        f"{batches}, and the {size} processes of distributed.data_parallel_size are more than the {contexts} whole contexts of "
        f"a step with model_loss {trainer.model_loss}; write {wanted} or more, or fewer processes"
    )


@across(KEY)
def processes_have_features(distributed: DistributedParams, dictionary: DictionaryFields) -> str | None:
    """As many each."""
    return indivisible(dictionary, distributed.model_parallel_size)


@across(KEY)
def parts_are_of_all_features(
    distributed: DistributedParams, dictionary: DictionaryFields, trainer: TrainerParams
) -> str | None:
    """What another package has brought says so, or would be right for the features of one process only."""
    size, loss = distributed.model_parallel_size, trainer.sparsity_loss_type
    if size == 1:
        return None
    faults = [] if dictionary.gate.dealable else [f"dictionary.act_fn {dictionary.act_fn}"]
    if loss is not None and not SPARSITY_LOSSES.get(loss).dealable:
        faults.append(f"trainer.sparsity_loss_type {loss}")
    if not faults:
        return None
    return f"{size}, and {' and '.join(faults)} {'is' if len(faults) == 1 else 'are'} not declared dealable; write 1"


def indivisible(dictionary: DictionaryFields, size: int) -> str | None:
    """What of a dictionary so many processes cannot hold as many each of; None: they can, or a file does not say how many."""
    what, n = dictionary.dealt
    if n is None or n % size == 0:
        return None
    possible = [other for other in range(1, min(n, 4096) + 1) if n % other == 0]
    nearest = sorted(sorted(possible, key=lambda other: abs(math.log(other / size)))[:NAMED])
    return f"{size} does not divide the {n:,} {what} of dictionary '{dictionary.name}'; write {', '.join(map(str, nearest))}"
