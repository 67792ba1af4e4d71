"""Training to a wanted L0: `trainer.target_l0` (SPEC 5).

    threshold     every log-threshold shifts by gain log(L0 / target) after each step; the fold stage then sets one
                  common factor on rows that were not trained on
    coefficient   the sparsity coefficient lambda is multiplied by (L0 / target)^(gain / 3) after each step: it acts on L0
                  later than a threshold does, and at the full gain it swings
    quadratic     nothing is steered: the loss itself is lambda (L0 / target - 1)^2 (losses/sparsity/l0.py)

L0 is the step's, over all its kept tokens: of each layer, whose thresholds shift by themselves; lambda goes by the mean over
layers. L0 / target is bounded to [1/e, e], so that a start far off does not overshoot. All on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.inference_thresholds import first_thresholds
from pipeline.params.sections.trainer import TrainerParams

COEFFICIENT = "coefficient"
COEFFICIENT_GAIN = 1 / 3


class L0Control:
    """The controller of a run.

    Args:
        dictionary: in training.
        params: trainer's parameters.
        device: of the training.
    """

    def __init__(self, dictionary: Dictionary, params: TrainerParams, device: torch.device) -> None:
        self.dictionary = dictionary
        self.target = params.target_l0 or 0.0  # 0: nothing is steered
        self.thresholds = params.steered_l0 is not None
        self.coefficient = params.target_l0 is not None and params.target_l0_mode == COEFFICIENT
        self.gain = params.target_l0_gain * (COEFFICIENT_GAIN if self.coefficient else 1.0)
        self.log_factor = torch.zeros((), dtype=torch.float32, device=device)

    @property
    def steers(self) -> bool:
        """Whether `update_` does anything."""
        return self.thresholds or self.coefficient

    def coefficient_factor(self) -> Tensor | float:
        """What multiplies the scheduled lambda."""
        return self.log_factor.exp() if self.coefficient else 1.0

    @torch.no_grad()
    def start_(self, x: Tensor, mask: Tensor | None) -> bool:
        """Set all thresholds to the quantile of a batch's z that gives the target: the end of a TopK start.

        Returns: False where the batch has no kept token to set them by; they stay.
        """
        if mask is not None and not bool(mask.any()):
            return False
        if self.thresholds:
            theta = first_thresholds(self.dictionary, self.dictionary.codes(x, mask).z, self.target, mask)
            self.dictionary.log_jumprelu_threshold.copy_(theta.log())
        return True

    @torch.no_grad()
    def update_(self, n_active: Tensor, n_tokens: int | Tensor, dead: Tensor) -> None:
        """Steer after a step.

        Args:
            n_active: active features of the step, summed over tokens: [L], of a kind without layers [1].
            n_tokens: kept tokens of the step.
            dead: bool of `feature_shape`: these features' thresholds, which nothing else brings back down, become the
                median of the others (of the layer).
        """
        n_tokens = torch.as_tensor(n_tokens, device=n_active.device)
        l0 = n_active / n_tokens.clamp_min(1)
        l0 = torch.where(n_tokens > 0, l0.mean(0, keepdim=True) if self.coefficient else l0, self.target)
        shift = self.gain * (l0 / self.target).clamp_min(1e-12).log().clamp(-1.0, 1.0)
        if self.coefficient:
            self.log_factor.add_(shift[0])
            return
        log_threshold = self.dictionary.log_jumprelu_threshold
        log_threshold.add_(shift.reshape(-1, *(1,) * (log_threshold.ndim - 1)))
        group = self.dictionary.feature_group
        if group.size > 1 and not bool(group.any(dead.any())):
            return
        known = torch.where(dead, torch.nan, log_threshold).transpose(0, -1)
        living = torch.cat(group.gathered(known)).transpose(0, -1).nanmedian(-1, keepdim=True).values
        log_threshold.copy_(torch.where(dead & ~living.isnan(), living, log_threshold))

    def state(self) -> dict[str, Tensor]:
        """What a resume needs beside the weights."""
        return {"log_factor": self.log_factor} if self.coefficient else {}
