"""What a step's batch must be, of the store or in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.params.section import across

if TYPE_CHECKING:
    from pipeline.params.kinds.fields import DictionaryFields
    from pipeline.params.sections.activations import ActivationsParams
    from pipeline.params.sections.trainer import TrainerParams


@across("activations.target")
def contexts_stay_whole_for_attention(dictionary: DictionaryFields, activations: ActivationsParams) -> str | None:
    """Attention needs the tokens before a token."""
    if dictionary.READS_SEQUENCES and activations.target != "activations-2d":
        return f"kind {dictionary.kind} reads whole contexts; write activations-2d"
    return None


@across("activations.context_size")
def contexts_fit_the_attention(dictionary: DictionaryFields, activations: ActivationsParams) -> str | None:
    """No context is longer than the dictionary takes."""
    most, size = dictionary.max_context, activations.context_size
    if most is not None and most < size:
        return f"{size} tokens are more than the {most} that the dictionary takes (dictionary.n_ctx); raise that or lower this"
    return None


@across("trainer.gradient_accumulation_steps")
def batch_splits_evenly(trainer: TrainerParams, activations: ActivationsParams) -> str | None:
    """A step's batch is split in equal parts."""
    parts, size = trainer.gradient_accumulation_steps, activations.batch_size
    return f"activations.batch_size {size} does not split into {parts} equal parts" if size % parts else None


@across("trainer.amp_dtype")
def amp_computes_in_less(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None:
    """Autocast leaves float64 as it is."""
    amp, dtype = trainer.amp_dtype, dictionary.dtype
    if dtype != "float64" or amp == "float32":
        return None
    return f"{amp} has no effect on weights of dictionary.dtype float64, which compute in float64; write float32"
