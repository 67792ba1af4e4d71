"""What is measured of one dictionary, alone or among several: its sums over the held-out tokens, and the metrics of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.documents import Documents
from pipeline.errors import DataError
from pipeline.evaluation.baselines import PcaMetrics, PrincipalDirections, used_rank
from pipeline.evaluation.decoder import decoder_metrics, share_histogram, written_shares
from pipeline.evaluation.language_model import PredictionMetrics, main_of, prediction_results
from pipeline.evaluation.massive import MassiveTokens, limits_of
from pipeline.evaluation.reconstruction import LabelMean, ReconstructionMetrics
from pipeline.evaluation.saebench import saebench_core
from pipeline.evaluation.sparsity import DensityHistogram, SparsityMetrics
from pipeline.hook_keys import by_model, join_key

if TYPE_CHECKING:
    from pipeline.evaluation.models import LanguageModels
    from pipeline.evaluation.raw_space import RawDictionary
    from pipeline.evaluation.split_tokens import SplitBatch, SplitTokens


def keys_by_model(keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{alias: keys of that model's hook points, each once}."""
    grouped = by_model(dict.fromkeys(keys))
    return {alias: tuple(join_key(alias, hook) for hook in hooks) for alias, hooks in grouped.items()}


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gives.

    Attributes:
        metrics: flat, {name: value}.
        density: share of tokens on which each feature is active, float64, feature_shape.
        mean_when_active: mean activation of each feature where it is active, float64, feature_shape.
        histogram: features by log10 of their density over the tokens that are not massive.
        shares: {written hook point: features by share of what they write that is there} (decoder.share_histogram), where
            there are several.
        said: what was not measured and why; "": nothing.
        documents: sums of each document, by which it is compared with other evaluations of the same ones.
    """

    metrics: dict[str, float]
    density: Tensor
    mean_when_active: Tensor
    histogram: DensityHistogram
    shares: dict[str, list[int]] = field(default_factory=dict)
    said: str = ""
    documents: Documents | None = None


@dataclass(frozen=True)
class Replaced:
    """Hook points of one model that are replaced at once.

    Attributes:
        keys: of the hook points.
        end: of the metrics' names: nothing where these are all that the dictionary writes of the model, else `.<key>`.
    """

    keys: tuple[str, ...]
    end: str


class Counts:
    """What is counted of one dictionary, of a batch or of all.

    Attributes:
        reconstruction, sparsity: of its own run.
        predictions: {alias: of the model}.
        documents: numbers of those that have a kept token.
    """

    def __init__(
        self, means: Mapping[str, LabelMean], sparsity: SparsityMetrics, written: Mapping[str, tuple[str, ...]]
    ) -> None:
        self.reconstruction, self.sparsity = ReconstructionMetrics.of(means), sparsity
        self.predictions = {alias: PredictionMetrics(keys) for alias, keys in written.items()}
        self.documents: set[int] = set()

    def add_all(self, other: Counts) -> None:
        """Add what was counted of other contexts."""
        self.reconstruction.add_all(other.reconstruction)
        self.sparsity.add_all(other.sparsity)
        self.documents |= other.documents
        for alias, predictions in self.predictions.items():
            predictions.add_all(other.predictions[alias])


class Measured:
    """One dictionary and its sums.

    Args:
        raw: the dictionary, taking raw activations, on the models' device.
        principal: {written hook point: mean and leading directions} of the norm pass; of others too.
        models: where the hook points are.

    Attributes:
        hooks, written: {alias: keys of that model's hook points} that are read or written, and that are written.
        limits: which tokens are massive and which are excluded; dictionaries with the same ones have the same tokens.

    Raises:
        DataError: a hook point does not exist or has another width than the dictionary's.
    """

    def __init__(self, raw: RawDictionary, principal: Mapping[str, PrincipalDirections], models: LanguageModels) -> None:
        self.raw, self.limits = raw, limits_of(raw)
        self.principal = {hook: principal[hook] for hook in raw.hooks_out}
        self.hooks = keys_by_model((*raw.hooks_in, *raw.hooks_out))
        self.written = keys_by_model(raw.hooks_out)
        config = raw.dictionary.config
        widths = [(h, config.d_in, "reads") for h in raw.hooks_in] + [(h, config.d_out, "writes") for h in raw.hooks_out]
        for hook, width, verb in widths:
            found = models.hook_width(hook)
            if found != width:
                name = models.owner(hook).name
                raise DataError(
                    f"{hook} of model '{name}' has width {found}, the dictionary {verb} width {width}; evaluate it with "
                    "the model that it was trained on"
                )

    def replaced(self, alias: str) -> list[Replaced]:
        """What is replaced of a model: all that is written there at once; of several hook points also each alone."""
        keys = self.written.get(alias, ())
        alone = [Replaced((key,), f".{key}") for key in keys] if len(keys) > 1 else []
        return [Replaced(keys, ""), *alone] if keys else []

    def begin(self, means: Mapping[str, LabelMean]) -> None:
        """Nothing is counted yet; {written hook point: mean label} is known."""
        self._means = means
        self.counts = self.nothing()

    def nothing(self) -> Counts:
        """Counts of a batch that begins."""
        return Counts(self._means, SparsityMetrics(self.raw.dictionary.feature_shape, self.raw.hooks_in), self.written)

    @torch.no_grad()
    def reconstruct(
        self, batch: SplitBatch, originals: Mapping[str, Tensor], massive: MassiveTokens, counts: Counts
    ) -> dict[str, Tensor]:
        """Count a batch; {written hook point: its reconstruction [b, T, D]}. Features, which are wide, are not kept.

        Args:
            originals: {hook point: raw [b, T, D]} of the run as it is; of others too.
            massive: tokens, by this dictionary's limits.
            counts: of the batch, added to.
        """
        tokens = massive.masks(batch)
        labels = {hook: originals[hook] for hook in self.raw.hooks_out}
        known = self.raw(originals, labels, tokens.kept, tokens.massive)
        counts.reconstruction.update(known.x_hats, labels, tokens.kept, batch.label, batch.documents, tokens.massive)
        counts.sparsity.update(known.features, tokens.kept, tokens.massive, self.raw.dictionary.feature_group)
        counts.documents.update(batch.documents[batch.mask].unique().tolist())
        return known.x_hats

    def put_together(self) -> None:
        """All batches are counted: each process of those that share the features knows the counts of all of them."""
        self.counts.sparsity.put_together(self.raw.dictionary.feature_group)

    def rank(self, asked: int | None) -> int:
        """Of its PCA: the one asked for, else the rounded mean L0 (of a layer) of tokens that are not massive."""
        layers = math.prod(self.raw.dictionary.feature_shape[:-1])
        return used_rank(asked, self.counts.sparsity.l0_mean_ordinary() / layers, self.principal)

    def evaluation(self, rank: int, held_out: SplitTokens, massive: MassiveTokens, pca: PcaMetrics) -> Evaluation:
        """The metrics of what was counted.

        Args:
            rank: of the PCA.
            held_out: contexts that were evaluated.
            massive: tokens, by this dictionary's limits.
            pca: of the written hook points, by these limits.

        Raises:
            NumericsError: a metric is undefined on this data.
        """
        parts, n_tokens = self.counts.reconstruction.parts, self.counts.reconstruction.tokens
        variances = {hook: part.sums["variance"] for hook, part in parts.items()}
        ordinary = {hook: part.ordinary_variance for hook, part in parts.items()}
        extent = held_out.extent(self.counts.documents)
        metrics = {
            "evaluated_contexts": float(held_out.n_contexts),
            "evaluated_tokens": float(n_tokens),
            "evaluated_documents": float(extent.documents),
            "evaluated_files": float(extent.files),
            **massive.results(n_tokens),
            "predicted_tokens": float(next(iter(self.counts.predictions.values())).counts["original"]),
            **self.counts.reconstruction.results(),
            **self.counts.sparsity.results(),
            **decoder_metrics(self.raw.dictionary),
            **prediction_results(self.counts.predictions),
            **pca.fvu(rank, variances, ordinary),
            "pca_rank": float(rank),
        }
        return Evaluation(
            metrics={**metrics, **saebench_core(metrics, self.counts.sparsity.density())},
            density=self.counts.sparsity.density(),
            mean_when_active=self.counts.sparsity.mean_when_active(),
            histogram=self.counts.sparsity.histogram(),
            shares=self._shares(),
            documents=self._documents(held_out),
        )

    def _documents(self, held_out: SplitTokens) -> Documents:
        documents = torch.tensor(sorted(self.counts.documents))
        predictions = self.counts.predictions[main_of(self.counts.predictions)]
        sums = {**self.counts.reconstruction.of_documents(documents), **predictions.of_documents(documents)}
        pairs = {name: (over.tolist(), under.tolist()) for name, (over, under) in sums.items()}
        return Documents(held_out.digest, pairs)

    def _shares(self) -> dict[str, list[int]]:
        hooks = self.raw.hooks_out
        if len(hooks) < 2:
            return {}
        return dict(zip(hooks, share_histogram(written_shares(self.raw.dictionary)), strict=True))
