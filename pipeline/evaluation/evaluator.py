"""The whole evaluation of one or several dictionaries in their language model, on held-out tokens.

Three passes over the held-out contexts:
 1. the mean of the labels, and which tokens are massive (the model stops after the last hook point);
 2. reconstruction and sparsity metrics, then the rest of the model's run as it is, and its runs with the reconstruction, with
    zeros and with the mean activation in its place: cross entropies and KL;
 3. with PCA in its place, whose rank, the rounded mean L0 (or all directions that are kept), is known only now.
What the first pass finds at the hook points, and before the first block that has one, is kept while it fits in KEPT_BYTES: no
later run begins below it.
Of several hook points of one model all are replaced at once, and each alone. An excluded token keeps its activation in every
run, and its prediction counts; a massive one that no rule excludes is replaced.
Of several dictionaries the run as it is is made once, and those with zeros, the mean and PCA (of one rank) once for the same
hook points and the same excluded tokens. The figures of each are bit for bit those that it has alone.
Every figure is a sum over tokens in float64, divided once at the end. Several processes deal the batches; all are told what is
counted of each and add it in order, so that the sums are those of one process. Those that hold features of their own add up
their reconstructions; counts of features are put together after the second pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from pipeline.allocation import FreedMemory
from pipeline.dealing import in_turns
from pipeline.errors import of_member
from pipeline.evaluation.baselines import PrincipalDirections, checked_rank, pca_replacements
from pipeline.evaluation.kept_activations import KEPT_BYTES, KeptActivations, RememberingModels
from pipeline.evaluation.labels import Found, LabelSums
from pipeline.evaluation.language_model import (
    Replacement,
    constant_replacements,
    prediction_divergence,
    prediction_loss,
    splice_replacements,
)
from pipeline.evaluation.measured import Counts, Evaluation, Measured, Replaced
from pipeline.evaluation.models import LanguageModels
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.memory import Need, require_memory
from pipeline.processes import ONE_PROCESS, Reductions

if TYPE_CHECKING:
    from pipeline.evaluation.baselines import Energies
    from pipeline.evaluation.language_model import PredictionMetrics
    from pipeline.evaluation.massive import Limits
    from pipeline.evaluation.split_tokens import SplitBatch, SplitTokens
    from pipeline.lm.language_model import LanguageModel
    from pipeline.progress import Progress

R = TypeVar("R")


def batch_needs(
    batch_contexts: int, n_contexts: int, context_size: int, logit_bytes: int, feature_bytes: int
) -> tuple[Need, Need]:
    """What a batch takes at least: the logits of two runs at once, and what a dictionary makes of it.

    Args:
        batch_contexts: evaluation.batch_contexts.
        n_contexts: that are evaluated.
        context_size: tokens of each.
        logit_bytes, feature_bytes: of one token, of the model and the dictionary that take most.
    """
    n = min(batch_contexts, n_contexts)
    key = {"evaluation.batch_contexts": batch_contexts}
    return (
        Need(f"the logits of {n:,} contexts", 2 * n * context_size * logit_bytes, key),
        Need(f"the features of {n:,} contexts", n * context_size * feature_bytes, key),
    )


class Evaluator:
    """Evaluates one dictionary, or several, in its language model, or in each of its language models.

    Args:
        model: the language model, or {alias: model} of dictionaries with hook points of several; all on one device.
        raw: the dictionary, taking raw activations, on the model's device; or {name: dictionary}.
        principal: {written hook point: mean and leading directions} of the norm pass, for mean ablation and PCA.
        held_out: the contexts.
        progress: counts tokens times runs.
        processes: that deal the contexts, each with models of its own. Those that the features are dealt to, which is the
            dictionaries' own matter, work on the same contexts.

    Attributes:
        measured: {name: dictionary with its sums}; of one by itself the name is empty.

    Raises:
        DataError: a hook point does not exist or has another width than the dictionary's.
    """

    def __init__(
        self,
        model: LanguageModel | Mapping[str, LanguageModel],
        raw: RawDictionary | Mapping[str, RawDictionary],
        principal: Mapping[str, PrincipalDirections],
        held_out: SplitTokens,
        progress: Progress | None = None,
        processes: Reductions = ONE_PROCESS,
    ) -> None:
        self.models, self.held_out, self.progress, self.processes = LanguageModels(model), held_out, progress, processes
        self.measured: dict[str, Measured] = {}
        self.feature_group: Reductions = ONE_PROCESS
        for name, dictionary in (raw if isinstance(raw, Mapping) else {"": raw}).items():
            with of_member(name):
                self.measured[name] = Measured(dictionary, principal, self.models)
                self.feature_group = dictionary.dictionary.feature_group
        self.aliases = list(dict.fromkeys(alias for one in self.measured.values() for alias in one.written))

    @property
    def n_runs(self) -> int:
        """Model runs per context.

        Of each model label means and original; then, for all hook points of a dictionary at once and of several also for each
        alone, spliced and PCA of each dictionary, zero and mean of each set of hook points.
        """
        spliced = [
            (one.limits, replaced.keys)
            for one in self.measured.values()
            for alias in one.written
            for replaced in one.replaced(alias)
        ]
        return 2 * len(self.aliases) + 2 * len(spliced) + 2 * len(set(spliced))

    def evaluate(self, pca_rank: int | None = None) -> Evaluation:
        """:meth:`evaluate_each` of the only dictionary."""
        (found,) = self.evaluate_each(pca_rank).values()
        return found

    def evaluate_each(self, pca_rank: int | None = None) -> dict[str, Evaluation]:
        """Run the three passes; {name: what they give of each dictionary}, of other processes than the first nothing.

        Args:
            pca_rank: rank of the PCA baseline; None: the rounded mean L0 of tokens that are not massive, of each dictionary.

        Raises:
            ParamsError: a batch cannot be held.
            NumericsError: a non-finite value (with hook point and contexts); FVU or loss recovered is undefined on this data; a
                stated rank that is above what the norm pass keeps. What is of one of several dictionaries begins with its name.
        """
        for name, one in self.measured.items():
            with of_member(name):
                checked_rank(pca_rank, one.principal)
        room = KEPT_BYTES // (self.processes.size * self.feature_group.size)
        self._running = RememberingModels(self.models, KeptActivations(room))
        self._freed = FreedMemory()
        self._check_memory()
        self.labels = LabelSums(self.measured.values(), self.models.device)
        self._each(self._look, self.labels.add)
        for name, one in self.measured.items():
            with of_member(name):
                one.begin(self.labels.means(one))
        self._each(self._count_batch, self._add)
        for one in self.measured.values():
            one.put_together()
        ranks = {name: one.rank(pca_rank) for name, one in self.measured.items()}
        self._each(lambda batch: self._run_pca(batch, ranks), self._add_predictions)
        found = {}
        for name, one in self.measured.items() if self.processes.rank == 0 else ():
            with of_member(name):
                massive, pca = self.labels.massive(one), self.labels.pca(one)
                found[name] = one.evaluation(ranks[name], self.held_out, massive, pca)
        return found if self.feature_group.rank == 0 else {}

    def _each(self, work: Callable[[SplitBatch], R], add: Callable[[R], None]) -> None:
        """Work on every batch in one of the processes; add what has come of it in all of them, in order."""

        def done(number: int) -> tuple[int, int, R]:
            self._counted = 0
            found = work(self.held_out.batch(number))
            return self.processes.rank, self._counted, found

        for turn in in_turns(self.held_out.n_batches, done, self.processes):
            for rank, tokens, found in turn:
                add(found)
                if self.progress is not None and rank != self.processes.rank:
                    self.progress.update(tokens)

    def _check_memory(self) -> None:
        """Refuse batches that cannot be held: the logits of two runs at once, and what a dictionary makes of them."""
        held_out = self.held_out
        models = {hook: self.models.owner(hook) for one in self.measured.values() for hook in one.raw.hooks_out}
        logits = max(model.vocab_size * model.dtype.itemsize for model in models.values())
        dictionaries = [one.raw.dictionary for one in self.measured.values()]
        sizes = [math.prod(each.feature_shape) * next(each.parameters()).dtype.itemsize for each in dictionaries]
        context_size = held_out.n_tokens // held_out.n_contexts
        needs = batch_needs(held_out.batch_contexts, held_out.n_contexts, context_size, logits, max(sizes))
        require_memory(*needs, device=self.models.device)

    def _look(self, batch: SplitBatch) -> dict[Limits, Found]:
        with self.models.explaining(batch):
            found = self.labels.find(batch, self._found(batch))
        self._count(batch, len(self.aliases))
        return found

    def _count_batch(self, batch: SplitBatch) -> tuple[dict[Limits, dict[str, Energies]], dict[str, Counts]]:
        with self.models.explaining(batch):
            return self._evaluate_batch(batch)

    def _add(self, counted: tuple[Mapping[Limits, Mapping[str, Energies]], Mapping[str, Counts]]) -> None:
        energies, counts = counted
        self.labels.add_energies(energies)
        for name, one in self.measured.items():
            one.counts.add_all(counts[name])

    def _add_predictions(self, every: Mapping[str, Mapping[str, PredictionMetrics]]) -> None:
        for name, one in self.measured.items():
            for alias, predictions in one.counts.predictions.items():
                predictions.add_all(every[name][alias])

    @torch.no_grad()
    def _evaluate_batch(self, batch: SplitBatch) -> tuple[dict[Limits, dict[str, Energies]], dict[str, Counts]]:
        originals = self._found(batch)
        energies = self.labels.energies(batch, originals)
        counts = {name: one.nothing() for name, one in self.measured.items()}
        x_hats = {}
        for name, one in self.measured.items():
            with of_member(name):
                x_hats[name] = one.reconstruct(batch, originals, self.labels.massive(one), counts[name])
        for alias in self.aliases:
            self._intervene(alias, batch, originals, x_hats, counts)
        return energies, counts

    def _intervene(
        self,
        alias: str,
        batch: SplitBatch,
        originals: Mapping[str, Tensor],
        x_hats: Mapping[str, Mapping[str, Tensor]],
        counts: Mapping[str, Counts],
    ) -> None:
        """The run of one model as it is, and its runs with the hook points of each dictionary replaced."""
        documents = batch.documents[:, 1:][batch.mask[:, 1:]]
        logits = self._unchanged(alias, batch, originals)
        ablated: dict[tuple[Limits, tuple[str, ...]], dict[str, Tensor]] = {}
        for name, one in self.measured.items():
            tokens = self.labels.massive(one).masks(batch)
            for replaced in one.replaced(alias):
                with of_member(name):
                    predictions, end = counts[name].predictions[alias], replaced.end
                    splice = splice_replacements(one.raw, originals, x_hats[name], tokens, replaced.keys)
                    start = self.models.start(one.hooks[alias], originals)
                    spliced = self.models.logits(alias, batch.tokens, splice, one.raw.hooks_in, start)
                    ce_original, ce_spliced, kl = prediction_divergence(logits, spliced, batch.tokens, tokens.kept)
                    del spliced
                    self._count(batch)
                    if not end:
                        predictions.update("original", ce_original, batch.label, documents)
                    predictions.update(f"spliced{end}", ce_spliced, batch.label, documents)
                    predictions.update(f"kl{end}", kl, batch.label)
                    if (place := (one.limits, replaced.keys)) not in ablated:
                        ablated[place] = self._ablated(alias, batch, originals, one, replaced, logits)
                    for what, values in ablated[place].items():
                        predictions.update(f"{what}{end}", values, batch.label)

    def _unchanged(self, alias: str, batch: SplitBatch, originals: Mapping[str, Tensor]) -> Tensor:
        """Logits of the model as it is, from where the last dictionary begins."""
        writers = [one for one in self.measured.values() if alias in one.written]
        one = max(writers, key=lambda one: self.models.first_block(one.hooks[alias]))
        unchanged: dict[str, Replacement] = dict.fromkeys(one.written[alias], lambda captured, original: original)
        start = self.models.start(one.hooks[alias], originals)
        logits = self.models.logits(alias, batch.tokens, unchanged, start=start)
        self._count(batch)
        return logits

    def _ablated(
        self,
        alias: str,
        batch: SplitBatch,
        originals: Mapping[str, Tensor],
        one: Measured,
        replaced: Replaced,
        logits: Tensor,
    ) -> dict[str, Tensor]:
        """Cross entropies of the runs with zeros and with the mean in the place of some hook points, and the former's KL."""
        tokens = self.labels.massive(one).masks(batch)
        start = self.models.start(one.hooks[alias], originals)
        means = {hook: one.principal[hook].mean for hook in replaced.keys}
        zeros = {hook: torch.zeros_like(mean) for hook, mean in means.items()}
        run = self.models.logits(alias, batch.tokens, constant_replacements(zeros, tokens.replaced), start=start)
        _, ce_zero, kl_zero = prediction_divergence(logits, run, batch.tokens, tokens.kept)
        del run
        run = self.models.logits(alias, batch.tokens, constant_replacements(means, tokens.replaced), start=start)
        ce_mean = prediction_loss(run, batch.tokens, tokens.kept)
        self._count(batch, 2)
        return {"zero": ce_zero, "kl_zero": kl_zero, "mean": ce_mean}

    def _run_pca(self, batch: SplitBatch, ranks: Mapping[str, int]) -> dict[str, dict[str, PredictionMetrics]]:
        """Runs with PCA in the place of what each dictionary writes: {name: {alias: their cross entropies}}."""
        found = self._found(batch)
        losses: dict[tuple[Limits, tuple[str, ...], int], Tensor] = {}
        every = {name: one.nothing().predictions for name, one in self.measured.items()}
        for name, one in self.measured.items():
            tokens = self.labels.massive(one).masks(batch)
            for alias in one.written:
                for replaced in one.replaced(alias):
                    place = (one.limits, replaced.keys, ranks[name])
                    if place not in losses:
                        own = {hook: one.principal[hook] for hook in replaced.keys}
                        replace = pca_replacements(own, ranks[name], tokens.replaced)
                        start = self.models.start(one.hooks[alias], found)
                        logits = self.models.logits(alias, batch.tokens, replace, start=start)
                        losses[place] = prediction_loss(logits, batch.tokens, tokens.kept)
                        del logits
                    with of_member(name):
                        every[name][alias].update(f"pca{replaced.end}", losses[place], batch.label)
                    self._count(batch)
        return every

    def _found(self, batch: SplitBatch) -> dict[str, Tensor]:
        """{key: [b, T, D]} of the models as they are: hook points, and of each dictionary the input of each model's first block
        that has one."""
        keys = [
            key
            for one in self.measured.values()
            for hooks in one.hooks.values()
            for key in (*hooks, self.models.block_input(hooks))
        ]
        return self._running.activations(batch.tokens, keys)

    def _count(self, batch: SplitBatch, runs: int = 1) -> None:
        """So many runs of the model have ended, and their logits are no longer needed."""
        self._freed.look()
        self._counted += batch.tokens.numel() * runs
        if self.progress is not None:
            self.progress.update(batch.tokens.numel() * runs)
