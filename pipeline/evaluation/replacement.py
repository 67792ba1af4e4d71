"""The replacement model: a full set of transcoders, or a cross-layer transcoder, in the place of all MLPs (SPEC 7).

Three runs of some held-out contexts beside the model's own: every MLP's output replaced at once, each reconstruction computed
from the replaced run itself; the same with attention patterns and norms' denominators held (`_frozen`); and, as baselines,
zeros and the mean activation in the place of all MLPs' outputs. Then, of the first tokens of each context, the attribution
graph of the next token. With the errors added the replacement model computes what the model computes, so that it is not run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pipeline.dealing import in_turns
from pipeline.evaluation.attribution_graph import AttributionGraph, LinearRun, Nodes, active_nodes
from pipeline.evaluation.frozen import Frozen, agreement
from pipeline.evaluation.graph_scores import graph_scores
from pipeline.evaluation.language_model import constant_replacements, prediction_divergence, splice_replacements
from pipeline.evaluation.massive import MassiveTokens, TokenMasks
from pipeline.processes import ONE_PROCESS, Reductions

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.evaluation.baselines import PrincipalDirections
    from pipeline.evaluation.full_set import FullSet
    from pipeline.evaluation.raw_space import RawDictionary
    from pipeline.evaluation.split_tokens import SplitBatch, SplitTokens
    from pipeline.lm.splicing import Replacement

OF_RUNS = ("ce", "kl", "top1")


class _Added(NamedTuple):
    """What is added to a figure: the sum of some values, and how many they are."""

    name: str
    total: float
    n: int


class ReplacementModel:
    """A set on held-out contexts.

    Args:
        full: the set.
        principal: {written hook point: mean and directions} of the norm pass.
        graph_tokens: first tokens of each context whose attribution graph is made.
        counted: is told of the number of contexts that are finished.
        processes: that deal the batches of contexts.

    Raises:
        DataError: the language model cannot be frozen, when it is first tried.
    """

    def __init__(
        self,
        full: FullSet,
        principal: Mapping[str, PrincipalDirections],
        graph_tokens: int,
        counted: Callable[[int], None] = lambda n: None,
        processes: Reductions = ONE_PROCESS,
    ) -> None:
        self.full, self.graph_tokens, self._counted, self.processes = full, graph_tokens, counted, processes
        self.means = {hook: principal[hook].mean for hook in full.hooks_out}
        self._added: list[_Added] = []

    def metrics(self, held_out: SplitTokens) -> dict[str, float]:
        """The figures over these contexts.

        replacement_ce, _kl, _top1: cross entropy, KL(model || replacement model) and how often both name the same likeliest
        token, means over predictions; with _frozen, _mean and _zero of those runs, replacement_ce_original of the model.
        replacement_score, completeness_score: means over the contexts' graphs; with _mean and _zero of graphs without
        features, in which the MLPs' outputs (less their mean, or whole) are errors. graph_features: active features of a graph.
        replacement_contexts, replacement_predictions: how many there were.
        """
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for turn in in_turns(held_out.n_batches, lambda number: self._batch(held_out, number), self.processes):
            for rank, n_contexts, every in turn:
                for name, total, n in every:
                    sums[name] = sums.get(name, 0.0) + total
                    counts[name] = counts.get(name, 0) + n
                if rank != self.processes.rank:
                    self._counted(n_contexts)
        found = {name: sums[name] / counts[name] for name in sums}
        number = {"replacement_contexts": held_out.n_contexts, "replacement_predictions": counts["replacement_kl"]}
        return {**found, **{name: float(value) for name, value in number.items()}}

    def _batch(self, held_out: SplitTokens, number: int) -> tuple[int, int, list[_Added]]:
        """What one batch adds, with the process and the number of contexts."""
        batch, self._added = held_out.batch(number), []
        self._runs(batch)
        for row in range(len(batch.tokens)):
            self._graph(batch, row, held_out.batch_contexts)
            self._counted(1)
        return self.processes.rank, len(batch.tokens), self._added

    @torch.no_grad()
    def _runs(self, batch: SplitBatch) -> None:
        model, full = self.full.model, self.full
        originals = model.activations(batch.tokens, list(full.hooks))
        masks = self._masks(batch, originals)
        known = {raw: raw(originals, originals, tokens.kept, tokens.massive).x_hats for raw, tokens in masks.items()}

        def splice() -> dict[str, Replacement]:
            """Of one run: it remembers what has occurred."""
            parts = [splice_replacements(raw, originals, known[raw], tokens) for raw, tokens in masks.items()]
            return {hook: replace for part in parts for hook, replace in part.items()}

        frozen = Frozen(model, batch.tokens)
        replaced = next(iter(masks.values())).replaced
        zeros = {hook: torch.zeros_like(mean) for hook, mean in self.means.items()}
        runs: dict[str, Mapping[str, Replacement]] = {
            "": splice(),
            "_frozen": {**frozen.replacements(), **splice()},
            "_mean": constant_replacements(self.means, replaced),
            "_zero": constant_replacements(zeros, replaced),
        }
        logits, kept = model.logits(batch.tokens), next(iter(masks.values())).kept
        for name, replace in runs.items():
            other = model.logits(batch.tokens, replace, capture=dict.fromkeys((*full.hooks_in, *frozen.reads)))
            original, ce, kl = prediction_divergence(logits, other, batch.tokens, kept)
            for figure, values in zip(OF_RUNS, (ce, kl, agreement(logits, other, kept)), strict=True):
                self._add(f"replacement_{figure}{name}", values)
        self._add("replacement_ce_original", original)

    def _graph(self, batch: SplitBatch, row: int, copies: int) -> None:
        """Of the first tokens of a context; so many copies of it are run at once."""
        n, full = min(self.graph_tokens, batch.tokens.shape[1]), self.full
        one = dataclasses.replace(
            batch,
            contexts=batch.contexts[row : row + 1],
            **{field: getattr(batch, field)[row : row + 1, :n] for field in ("tokens", "mask", "documents")},
        )
        tokens = one.tokens.to(full.model.device)
        run = LinearRun(full, tokens, copies)
        with torch.no_grad():
            originals = full.model.activations(tokens, list(full.hooks))
            masks = self._masks(one, originals)
            features: dict[int, Tensor] = {}
            x_hats: dict[str, Tensor] = {}
            for raw, own in masks.items():
                made = raw(originals, originals, own.kept, own.massive)
                features |= full.features(raw, made.features)
                x_hats |= made.x_hats
            outputs = torch.stack([originals[hook][0] for hook in full.hooks_out])
            errors = outputs - torch.stack([x_hats[hook][0] for hook in full.hooks_out]).to(outputs)
            means = torch.stack([self.means[hook] for hook in full.hooks_out]).to(outputs)[:, None]
            replaced = next(iter(masks.values())).replaced[0]
            nodes = active_nodes(full, run, features, errors, replaced)
        shown = replaced[None, :, None]
        without = {"_mean": (outputs - means) * shown, "_zero": outputs * shown}
        for end, own_nodes in {"": nodes, **{end: Nodes.errors_alone(errors) for end, errors in without.items()}}.items():
            scores = graph_scores(AttributionGraph(full, run, own_nodes))
            self._add(f"replacement_score{end}", torch.tensor([scores.replacement], dtype=torch.float64))
            self._add(f"completeness_score{end}", torch.tensor([scores.completeness], dtype=torch.float64))
        self._add("graph_features", torch.tensor([nodes.n_features], dtype=torch.float64))

    def _masks(self, batch: SplitBatch, originals: Mapping[str, Tensor]) -> dict[RawDictionary, TokenMasks]:
        """Of each dictionary, which tokens are massive to it; replaced are those that none excludes."""
        found = {raw: MassiveTokens(raw, self.full.model.device).find(batch, originals) for raw in self.full.raws}
        replaced = torch.stack([masks.replaced for masks in found.values()]).all(0)
        return {raw: dataclasses.replace(masks, replaced=replaced) for raw, masks in found.items()}

    def _add(self, name: str, values: Tensor) -> None:
        self._added.append(_Added(name, float(values.sum(dtype=torch.float64)), len(values)))
