"""What several processes ask of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.params.section import across

if TYPE_CHECKING:
    from pipeline.params.sections.activations import ActivationsParams
    from pipeline.params.sections.distributed import DistributedParams
    from pipeline.params.sections.trainer import TrainerParams


@across("distributed.data_parallel_size")
def processes_have_rows(distributed: DistributedParams, activations: ActivationsParams) -> str | None:
    """Each has a part of every batch."""
    size, rows = distributed.data_parallel_size, activations.batch_size
    return f"{size} processes are more than the {rows} rows of activations.batch_size" if size > rows else None


@across("trainer.model_loss")
def model_loss_has_one_process(trainer: TrainerParams, distributed: DistributedParams) -> str | None:
    """Its weight is a quotient of two means over the whole step."""
    if trainer.model_loss is None or distributed.data_parallel_size == 1:
        return None
    return f"{trainer.model_loss} works in one process; set distributed.data_parallel_size to 1, or write null"
