"""The whole evaluation of a dictionary in its language model, on held-out tokens.

Three passes over the held-out contexts:
 1. the mean of the labels, and which tokens are massive (the model stops after the last hook point);
 2. reconstruction and sparsity metrics, then the rest of the model's run as it is, and its runs with the reconstruction, with
    zeros and with the mean activation in its place: cross entropies and KL;
 3. with PCA in its place, whose rank, the rounded mean L0 (or all directions that are kept), is known only now.
What the first pass finds at the hook points, and before the first block that has one, is kept while it fits in KEPT_BYTES: no
later run begins below it.
Of several hook points of one model all are replaced at once, and each alone. An excluded token keeps its activation in every
run, and its prediction counts; a massive one that no rule excludes is replaced.
Every figure is a sum over tokens in float64, divided once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.evaluation.baselines import PcaMetrics, PrincipalDirections, checked_rank, pca_replacements, used_rank
from pipeline.evaluation.decoder import decoder_metrics, share_histogram, written_shares
from pipeline.evaluation.language_model import (
    PredictionMetrics,
    Replacement,
    constant_replacements,
    prediction_divergence,
    prediction_loss,
    prediction_results,
    splice_replacements,
)
from pipeline.evaluation.massive import MassiveTokens, TokenMasks
from pipeline.evaluation.models import LanguageModels
from pipeline.evaluation.raw_space import RawDictionary, RawReconstruction
from pipeline.evaluation.reconstruction import LabelMean, ReconstructionMetrics
from pipeline.evaluation.saebench import saebench_core
from pipeline.evaluation.sparsity import DensityHistogram, SparsityMetrics
from pipeline.hook_keys import by_model, join_key
from pipeline.memory import Need, require_memory

if TYPE_CHECKING:
    from pipeline.evaluation.split_tokens import SplitBatch, SplitTokens
    from pipeline.lm.language_model import LanguageModel, Start
    from pipeline.progress import Progress


KEPT_BYTES = 2**30


def runs(hooks_out: Sequence[str]) -> int:
    """Model runs per context.

    Of each model label means and original; spliced, zero, mean and PCA, of several hook points also for each alone.
    """
    return sum(2 + 4 * len(_together_and_alone(keys)) for keys in keys_by_model(hooks_out).values())


def keys_by_model(keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{alias: keys of that model's hook points, each once}."""
    grouped = by_model(dict.fromkeys(keys))
    return {alias: tuple(join_key(alias, hook) for hook in hooks) for alias, hooks in grouped.items()}


def _together_and_alone(keys: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """What is replaced, and the end of its metrics' names: all hook points of a model; of several also each."""
    return [("", keys), *((f".{hook}", [hook]) for hook in (keys if len(keys) > 1 else ()))]


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
    """

    metrics: dict[str, float]
    density: Tensor
    mean_when_active: Tensor
    histogram: DensityHistogram
    shares: dict[str, list[int]] = field(default_factory=dict)


class Evaluator:
    """Evaluates one dictionary in its language model, or in each of its language models.

    Args:
        model: the language model, or {alias: model} of a dictionary with hook points of several; all on one device.
        raw: the dictionary, taking raw activations, on the model's device.
        principal: {written hook point: mean and leading directions} of the norm pass, for mean ablation and PCA.
        held_out: the contexts.
        progress: counts tokens times runs.

    Raises:
        DataError: a hook point does not exist or has another width than the dictionary's.
    """

    def __init__(
        self,
        model: LanguageModel | Mapping[str, LanguageModel],
        raw: RawDictionary,
        principal: Mapping[str, PrincipalDirections],
        held_out: SplitTokens,
        progress: Progress | None = None,
    ) -> None:
        self.models, self.raw, self.held_out, self.progress = LanguageModels(model), raw, held_out, progress
        self.principal = {hook: principal[hook] for hook in raw.hooks_out}
        self.hooks = keys_by_model((*raw.hooks_in, *raw.hooks_out))
        self.written = keys_by_model(raw.hooks_out)
        config = raw.dictionary.config
        widths = [(h, config.d_in, "reads") for h in raw.hooks_in] + [(h, config.d_out, "writes") for h in raw.hooks_out]
        for hook, width, verb in widths:
            found = self.models.hook_width(hook)
            if found != width:
                name = self.models.owner(hook).name
                raise DataError(
                    f"{hook} of model '{name}' has width {found}, the dictionary {verb} width {width}; evaluate it with "
                    "the model that it was trained on"
                )

    def evaluate(self, pca_rank: int | None = None) -> Evaluation:
        """Run the three passes.

        Args:
            pca_rank: rank of the PCA baseline; None: the rounded mean L0 of tokens that are not massive.

        Raises:
            ParamsError: a batch cannot be held.
            NumericsError: a non-finite value (with hook point and contexts); FVU or loss recovered is undefined on this data; a
                stated rank that is above what the norm pass keeps.
        """
        checked_rank(pca_rank, self.principal)
        self._kept: dict[int, dict[str, Tensor]] = {}
        self._room = KEPT_BYTES
        self._check_memory()
        self.massive = MassiveTokens(self.raw, self.models.device)
        means = self._label_means()
        self.massive.check(next(iter(means.values())).n)
        self.reconstruction = ReconstructionMetrics.of(means)
        shape = self.raw.dictionary.feature_shape
        self.sparsity = SparsityMetrics(shape, self.raw.hooks_in)
        self.predictions = {alias: PredictionMetrics(keys) for alias, keys in self.written.items()}
        self.pca = PcaMetrics(self.principal)
        for batch in self.held_out:
            self._evaluate_batch(batch)
        rank = used_rank(pca_rank, self.sparsity.l0_mean_ordinary() / math.prod(shape[:-1]), self.principal)
        for batch in self.held_out:
            tokens = self.massive.masks(batch)
            for alias, keys in self.written.items():
                own = {hook: self.principal[hook] for hook in keys}
                start = self.models.start(self.hooks[alias], self._found(batch))
                self._run(alias, "pca", pca_replacements(own, rank, tokens.replaced), batch, tokens, start)
        parts, n_tokens = self.reconstruction.parts, self.reconstruction.tokens
        variances = {hook: part.sums["variance"] for hook, part in parts.items()}
        ordinary = {hook: part.ordinary_variance for hook, part in parts.items()}
        metrics = {
            "evaluated_contexts": float(self.held_out.n_contexts),
            "evaluated_tokens": float(n_tokens),
            **self.massive.results(n_tokens),
            "predicted_tokens": float(next(iter(self.predictions.values())).counts["original"]),
            **self.reconstruction.results(),
            **self.sparsity.results(),
            **decoder_metrics(self.raw.dictionary),
            **prediction_results(self.predictions),
            **self.pca.fvu(rank, variances, ordinary),
            "pca_rank": float(rank),
        }
        return Evaluation(
            metrics={**metrics, **saebench_core(metrics, self.sparsity.density())},
            density=self.sparsity.density(),
            mean_when_active=self.sparsity.mean_when_active(),
            histogram=self.sparsity.histogram(),
            shares=self._shares(),
        )

    def _check_memory(self) -> None:
        """Refuse batches that cannot be held: the logits of two runs at once, and what the dictionary makes of them."""
        held_out, dictionary = self.held_out, self.raw.dictionary
        n_contexts = min(held_out.batch_contexts, held_out.n_contexts)
        tokens = n_contexts * held_out.n_tokens // held_out.n_contexts
        models = {hook: self.models.owner(hook) for hook in self.raw.hooks_out}
        logits = 2 * tokens * max(model.vocab_size * model.dtype.itemsize for model in models.values())
        features = tokens * math.prod(dictionary.feature_shape) * next(dictionary.parameters()).dtype.itemsize
        key = {"evaluation.batch_contexts": held_out.batch_contexts}
        require_memory(
            Need(f"the logits of {n_contexts:,} contexts", logits, key),
            Need(f"the features of {n_contexts:,} contexts", features, key),
            device=self.models.device,
        )

    def _shares(self) -> dict[str, list[int]]:
        hooks = self.raw.hooks_out
        if len(hooks) < 2:
            return {}
        return dict(zip(hooks, share_histogram(written_shares(self.raw.dictionary)), strict=True))

    def _label_means(self) -> dict[str, LabelMean]:
        means = {hook: LabelMean() for hook in self.raw.hooks_out}
        for batch in self.held_out:
            found = self._found(batch)
            tokens = self.massive.find(batch, found)
            for hook, mean in means.items():
                mean.update(found[hook], tokens.kept, where=f"{hook}, {batch.label}", massive=tokens.massive)
            self._count(batch, len(self.written))
        return means

    @torch.no_grad()
    def _evaluate_batch(self, batch: SplitBatch) -> None:
        tokens = self.massive.masks(batch)
        originals = self._found(batch)
        labels = {hook: originals[hook] for hook in self.raw.hooks_out}
        known = self.raw(originals, labels, tokens.kept, tokens.massive)
        self.reconstruction.update(known.x_hats, labels, tokens.kept, batch.label, batch.documents, tokens.massive)
        self.sparsity.update(known.features, tokens.kept, tokens.massive)
        self.pca.update(labels, tokens.kept, tokens.massive)
        for alias in self.written:
            self._intervene(alias, originals, known, batch, tokens)

    def _intervene(
        self,
        alias: str,
        originals: Mapping[str, Tensor],
        known: RawReconstruction,
        batch: SplitBatch,
        tokens: TokenMasks,
    ) -> None:
        """The run of one model as it is, and its runs with its hook points replaced."""
        keys, predictions, mask = self.written[alias], self.predictions[alias], tokens.kept
        documents = batch.documents[:, 1:][batch.mask[:, 1:]]
        start = self.models.start(self.hooks[alias], originals)
        unchanged: dict[str, Replacement] = dict.fromkeys(keys, lambda captured, original: original)
        logits = self.models.logits(alias, batch.tokens, unchanged, start=start)
        self._count(batch)
        means = {hook: self.principal[hook].mean for hook in keys}
        zeros = constant_replacements({hook: torch.zeros_like(mean) for hook, mean in means.items()}, tokens.replaced)
        for end, hooks in _together_and_alone(keys):
            splice = splice_replacements(self.raw, originals, known, tokens, hooks)
            replaced = self.models.logits(alias, batch.tokens, splice, self.raw.hooks_in, start)
            ce_original, ce_spliced, kl = prediction_divergence(logits, replaced, batch.tokens, mask)
            if not end:
                predictions.update("original", ce_original, batch.label, documents)
            predictions.update(f"spliced{end}", ce_spliced, batch.label, documents)
            predictions.update(f"kl{end}", kl, batch.label)
            del replaced
            replaced = self.models.logits(alias, batch.tokens, {hook: zeros[hook] for hook in hooks}, start=start)
            _, ce_zero, kl_zero = prediction_divergence(logits, replaced, batch.tokens, mask)
            predictions.update(f"zero{end}", ce_zero, batch.label)
            predictions.update(f"kl_zero{end}", kl_zero, batch.label)
            del replaced
            self._count(batch, 2)
        del logits
        self._run(alias, "mean", constant_replacements(means, tokens.replaced), batch, tokens, start)

    def _found(self, batch: SplitBatch) -> dict[str, Tensor]:
        """{key: [b, T, D]} of the models as they are: hook points, and the input of each model's first block that has one."""
        number = int(batch.contexts[0])
        found = self._kept.get(number)
        if found is None:
            keys = [key for hooks in self.hooks.values() for key in (*hooks, self.models.block_input(hooks))]
            found = self.models.activations(batch.tokens, dict.fromkeys(keys))
            self._room -= sum(x.nbytes for x in found.values())
            if self._room >= 0:
                self._kept[number] = found
        return found

    def _run(
        self,
        alias: str,
        name: str,
        replace: Mapping[str, Replacement],
        batch: SplitBatch,
        tokens: TokenMasks,
        start: Start,
    ) -> None:
        """Runs of a model with activations replaced, their cross entropies kept by `name`."""
        for end, hooks in _together_and_alone(self.written[alias]):
            logits = self.models.logits(alias, batch.tokens, {hook: replace[hook] for hook in hooks}, start=start)
            self.predictions[alias].update(f"{name}{end}", prediction_loss(logits, batch.tokens, tokens.kept), batch.label)
            self._count(batch)

    def _count(self, batch: SplitBatch, runs: int = 1) -> None:
        if self.progress is not None:
            self.progress.update(batch.tokens.numel() * runs)
