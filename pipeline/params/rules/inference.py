"""What folding and evaluating ask of a parameter file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.params.choices import NORMS_OF_THE_DATA
from pipeline.params.rules.losses import steers_thresholds
from pipeline.params.section import across

if TYPE_CHECKING:
    from pipeline.params.kinds.fields import DictionaryFields
    from pipeline.params.sections.activations import ActivationsParams
    from pipeline.params.sections.evaluation import EvaluationParams
    from pipeline.params.sections.fold import FoldParams
    from pipeline.params.sections.trainer import TrainerParams


@across("fold.mode")
def norm_can_be_folded(dictionary: DictionaryFields, fold: FoldParams) -> str | None:
    """A norm that changes with the token or the batch is no constant to fold."""
    norm = dictionary.norm_activation
    if fold.mode == "fold" and norm in NORMS_OF_THE_DATA:
        return (
            f"norm_activation {norm} cannot be folded into weights; set fold.mode to keep (the inference "
            "dictionary then carries its run-time norm), or dictionary.norm_activation to dataset-wise"
        )
    return None


@across("fold.convert_topk_to_jumprelu")
def only_topk_is_converted(dictionary: DictionaryFields, fold: FoldParams) -> str | None:
    """relu and jumprelu have no k."""
    if fold.convert_topk_to_jumprelu and not dictionary.is_topk_family:
        return f"there is no top-k gate to convert; dictionary.act_fn is {dictionary.act_fn}; write false"
    return None


@across("fold.calibration_tokens")
def calibration_leaves_training_rows(
    dictionary: DictionaryFields, trainer: TrainerParams, activations: ActivationsParams, fold: FoldParams
) -> str | None:
    """Calibration rows are the last of the store; at least one batch must remain before them."""
    if activations.tokens_per_batch > activations.total_tokens:
        return None  # the fault is the batch size
    needed = dictionary.is_batch_dependent or fold.convert_topk_to_jumprelu or steers_thresholds(dictionary, trainer)
    if needed and fold.calibration_tokens < activations.tokens_per_batch:
        return (
            f"the threshold of the inference form is measured on whole batches: {fold.calibration_tokens} is less "
            f"than one of {activations.tokens_per_batch} tokens; raise it"
        )
    rest = activations.total_tokens - fold.calibration_tokens
    if rest < activations.tokens_per_batch:
        return (
            f"{fold.calibration_tokens} of activations.total_tokens {activations.total_tokens} leave "
            f"{max(rest, 0)} tokens to train on, less than a batch of {activations.tokens_per_batch}"
        )
    return None


@across("evaluation.pca_rank")
def pca_fits_the_model(dictionary: DictionaryFields, evaluation: EvaluationParams) -> str | None:
    """No more principal directions than dimensions."""
    rank, width = evaluation.pca_rank, dictionary.d_model
    if rank is not None and width is not None and rank > width:
        return f"{rank} is more than dictionary.d_model {width}; lower it"
    return None
