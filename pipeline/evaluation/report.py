"""The whole evaluation of a dictionary in its language model, on held-out tokens.

Three passes over the held-out contexts:
 1. the mean of the labels (the model stops after the last written hook point);
 2. the model as it is, which gives activations and logits in one run: reconstruction and sparsity metrics, then the runs
    with the reconstruction (of several hook points: all at once, and each alone), with zeros and with the mean activation in
    its place: cross entropies and KL;
 3. with PCA in its place, whose rank, the rounded mean L0, is known only now.
Every figure is a sum over tokens in float64, divided once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.evaluation.baselines import PcaMetrics, PrincipalDirections, checked_rank, pca_replacements
from pipeline.evaluation.decoder import decoder_metrics
from pipeline.evaluation.language_model import (
    PredictionMetrics,
    Replacement,
    constant_replacements,
    prediction_divergence,
    prediction_loss,
    splice_replacements,
)
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.evaluation.reconstruction import LabelMean, ReconstructionMetrics
from pipeline.evaluation.sparsity import DensityHistogram, SparsityMetrics

if TYPE_CHECKING:
    from pipeline.evaluation.held_out import HeldOutBatch, HeldOutTokens
    from pipeline.lm.language_model import LanguageModel
    from pipeline.progress import Progress


def runs(n_written: int) -> int:
    """Model runs per context: label means, original, spliced, zero, mean, PCA; with several hook points each alone too."""
    return 6 + (n_written if n_written > 1 else 0)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gives.

    Attributes:
        metrics: flat, {name: value}.
        density: share of tokens on which each feature is active, float64, feature_shape.
        mean_when_active: mean activation of each feature where it is active, float64, feature_shape.
        histogram: features by log10 density.
    """

    metrics: dict[str, float]
    density: Tensor
    mean_when_active: Tensor
    histogram: DensityHistogram


class Evaluator:
    """Evaluates one dictionary in one language model.

    Args:
        model: the language model.
        raw: the dictionary, taking raw activations, on the model's device.
        principal: {written hook point: mean and leading directions} of the norm pass, for mean ablation and PCA.
        held_out: the contexts.
        progress: counts tokens times runs.

    Raises:
        DataError: a hook point does not exist or has another width than the dictionary's.
    """

    def __init__(
        self,
        model: LanguageModel,
        raw: RawDictionary,
        principal: Mapping[str, PrincipalDirections],
        held_out: HeldOutTokens,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.raw, self.held_out, self.progress = model, raw, held_out, progress
        self.principal = {hook: principal[hook] for hook in raw.hooks_out}
        self.hooks = tuple(dict.fromkeys((*raw.hooks_in, *raw.hooks_out)))
        config = raw.dictionary.config
        widths = [(h, config.d_in, "reads") for h in raw.hooks_in] + [(h, config.width_out, "writes") for h in raw.hooks_out]
        for hook, width, verb in widths:
            found = model.hook_width(hook)
            if found != width:
                raise DataError(
                    f"{hook} of model '{model.name}' has width {found}, the dictionary {verb} width {width}; evaluate it with "
                    "the model that it was trained on"
                )

    def evaluate(self, pca_rank: int | None = None) -> Evaluation:
        """Run the three passes.

        Args:
            pca_rank: rank of the PCA baseline; None: the rounded mean L0.

        Raises:
            NumericsError: a non-finite value (with hook point and contexts), or a metric that is undefined on this data.
        """
        means = self._label_means()
        self.reconstruction = ReconstructionMetrics(means)
        shape = self.raw.dictionary.feature_shape
        self.sparsity = SparsityMetrics(shape, self.raw.hooks_in)
        self.predictions = PredictionMetrics(self.raw.hooks_out)
        self.pca = PcaMetrics(self.principal)
        for batch in self.held_out:
            self._evaluate_batch(batch)
        rank = checked_rank(pca_rank, self.sparsity.l0_mean() / math.prod(shape[:-1]), self.principal)
        for batch in self.held_out:
            mask = batch.mask.to(self.model.device)
            self._ablate("pca", pca_replacements(self.principal, rank, mask), batch, mask)
        variances = {hook: part.sums["variance"] for hook, part in self.reconstruction.parts.items()}
        spliced = self.predictions.results()
        return Evaluation(
            metrics={
                "evaluated_contexts": float(self.held_out.n_contexts),
                "evaluated_tokens": float(self.reconstruction.tokens),
                "predicted_tokens": float(self.predictions.counts["original"]),
                **self.reconstruction.results(),
                **self.sparsity.results(),
                **decoder_metrics(self.raw.dictionary),
                **spliced,
                **self.pca.fvu(rank, variances),
                "pca_delta_ce": self.predictions.mean("pca") - spliced["ce_original"],
                "pca_rank": float(rank),
            },
            density=self.sparsity.density(),
            mean_when_active=self.sparsity.mean_when_active(),
            histogram=self.sparsity.histogram(),
        )

    def _label_means(self) -> dict[str, Tensor]:
        means = {hook: LabelMean() for hook in self.raw.hooks_out}
        for batch in self.held_out:
            labels = self.model.activations(batch.tokens, self.raw.hooks_out)
            mask = batch.mask.to(self.model.device)
            for hook, mean in means.items():
                mean.update(labels[hook], mask, where=f"{hook}, {batch.label}")
            self._count(batch)
        return {hook: mean.value(hook) for hook, mean in means.items()}

    @torch.no_grad()
    def _evaluate_batch(self, batch: HeldOutBatch) -> None:
        mask = batch.mask.to(self.model.device)
        originals: dict[str, Tensor] = {}
        logits = self.model.logits(batch.tokens, self._recorders(originals), capture=())
        self._count(batch)
        labels = {hook: originals[hook] for hook in self.raw.hooks_out}
        known = self.raw(originals, labels, mask)
        self.reconstruction.update(known.x_hats, labels, mask, batch.label)
        self.sparsity.update(known.features, mask)
        self.pca.update(labels, mask)

        replace = splice_replacements(self.raw, originals, known, mask)
        spliced = self.model.logits(batch.tokens, replace, capture=self.raw.hooks_in)
        self._count(batch)
        ce_original, ce_spliced, kl = prediction_divergence(logits, spliced, batch.tokens, mask)
        del logits, spliced
        self.predictions.update("original", ce_original, batch.label)
        self.predictions.update("spliced", ce_spliced, batch.label)
        self.predictions.update("kl", kl, batch.label)

        zeros = {hook: torch.zeros_like(principal.mean) for hook, principal in self.principal.items()}
        means = {hook: principal.mean for hook, principal in self.principal.items()}
        if len(self.raw.hooks_out) > 1:
            for hook in self.raw.hooks_out:
                alone = splice_replacements(self.raw, originals, known, mask)
                self._ablate(f"spliced.{hook}", {hook: alone[hook]}, batch, mask, capture=self.raw.hooks_in)
        self._ablate("zero", constant_replacements(zeros, mask), batch, mask)
        self._ablate("mean", constant_replacements(means, mask), batch, mask)

    def _recorders(self, originals: dict[str, Tensor]) -> dict[str, Replacement]:
        def recorder(hook: str) -> Replacement:
            def record(captured: Mapping[str, Tensor], original: Tensor) -> Tensor:
                originals[hook] = original
                return original

            return record

        return {hook: recorder(hook) for hook in self.hooks}

    def _ablate(
        self,
        name: str,
        replace: Mapping[str, Replacement],
        batch: HeldOutBatch,
        mask: Tensor,
        capture: tuple[str, ...] = (),
    ) -> None:
        logits = self.model.logits(batch.tokens, replace, capture=capture)
        self.predictions.update(name, prediction_loss(logits, batch.tokens, mask), batch.label)
        self._count(batch)

    def _count(self, batch: HeldOutBatch) -> None:
        if self.progress is not None:
            self.progress.update(batch.tokens.numel())
