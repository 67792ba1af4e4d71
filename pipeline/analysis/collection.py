"""One pass over contexts that collects what is shown of every feature.

Memory: the model, its activations of one batch, a few copies of at most MAX_VALUES feature activations (or of one context's, if
those are more), and per feature about 4 B x (slots x (window + 12) + histogram bins): 16,384 features with the default windows
take about 230 MB, 50,000 about 700 MB. The pass may be cut anywhere: `state` and `load` continue it.

Excluded tokens (massive ones, pipeline/norms/exclusion.py) take no part, as masked ones do not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pipeline.analysis.active import ActiveFeatures
from pipeline.analysis.coactivation import CoactivationSample
from pipeline.analysis.context_slots import N_SOURCES, ContextSlots, Offer
from pipeline.analysis.feature_counts import FeatureCounts
from pipeline.analysis.hashing import hashed

if TYPE_CHECKING:
    from pipeline.dictionaries.base import TokenSources
    from pipeline.evaluation.models import LanguageModels
    from pipeline.evaluation.raw_space import RawDictionary
    from pipeline.evaluation.split_tokens import SplitBatch
    from pipeline.params.sections.analysis import AnalysisParams

BANDS = 4
RESERVOIR_PER_CONTEXT = 4  # contexts drawn for each one that is shown of a band
MAX_VALUES = 2**24  # feature activations at a time: 64 MiB
_ACTIVE_SEED, _INACTIVE_SEED, _POSITION_SEED, _HISTORY_SEED = 0x5EED, 0x1D1E, 0x9051, 0x4157


class Resumable(Protocol):
    """Something that is filled batch by batch."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that `load` takes."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        ...


class Collection:
    """What is collected, and how far the pass has come.

    Args:
        models: of the dictionary's hook points.
        raw: the dictionary.
        params: section `analysis`.
        tokens: tokens of the whole pass.

    Attributes:
        batches: done.
        excluded: tokens that were left out because they are massive; they are no special ones.
        counts, top, drawn, inactive, coactivation: see their classes; `drawn` is the uniform sample of each feature's contexts.
    """

    def __init__(self, models: LanguageModels, raw: RawDictionary, params: AnalysisParams, tokens: int) -> None:
        self.models, self.raw = models, raw
        self.batches = self.excluded = 0
        n, device = math.prod(raw.dictionary.feature_shape), raw.device
        window = (params.window_before, params.window_after)
        reads = raw.dictionary.reads_sequences
        drawn = BANDS * params.band_contexts * RESERVOIR_PER_CONTEXT
        self.counts = FeatureCounts(n, device)
        self.top = ContextSlots(n, params.top_contexts, *window, sources=reads, distinct=True, device=device)
        self.drawn = ContextSlots(n, drawn, *window, sources=reads, device=device)
        self.inactive = ContextSlots(n, params.inactive_contexts, 0, 0, device=device)
        self.coactivation = CoactivationSample(n, params.coactivation_tokens / tokens)
        self._n = n

    @torch.no_grad()
    def update(self, batch: SplitBatch) -> None:
        """Run the models over a batch and add it.

        Raises:
            NumericsError: an activation of a token that counts is not finite.
        """
        raw = self.raw
        captured = self.models.activations(batch.tokens, raw.hooks_to_look_at)
        self.models.require_finite(captured, batch.tokens, batch.mask, batch.contexts.tolist())
        kept = batch.mask.to(raw.device)
        above, massive = raw.excluded.above(captured), raw.massive.above(captured)
        mask = kept if above is None else kept & ~above
        self.excluded += int(kept.sum()) - int(mask.sum())
        size = max(1, MAX_VALUES // (self._n * mask.shape[1]))
        for start in range(0, len(mask), size):
            some = slice(start, start + size)
            inputs = {hook: captured[hook][some] for hook in raw.hooks_in}
            x, flat_mask = raw.encoder_input(inputs, mask[some], None if massive is None else massive[some])
            codes = raw.dictionary.step_codes(x, flat_mask, decoded_only=True)
            place = (batch.contexts[some].to(raw.device), batch.tokens[some].to(raw.device))
            self.add(ActiveFeatures.of_codes(codes, mask[some]), mask[some], *place, raw.dictionary.token_sources(x))
        self.batches += 1

    def add(
        self, active: ActiveFeatures, mask: Tensor, contexts: Tensor, tokens: Tensor, sources: TokenSources | None = None
    ) -> None:
        """Add contexts: what is active at kept tokens, mask bool [b, T], numbers int64 [b], tokens int64 [b, T].

        The top contexts are distinct ones: the same activation of the same token after the same tokens, as at the start of
        many contexts, counts once.
        """
        self.counts.update(active, int(mask.sum()))
        self.coactivation.update(active, contexts)
        largest, position = active.strongest()
        awake, features = largest > 0, torch.arange(self._n, device=mask.device)
        strongest = None if sources is None else lambda *at: _strongest(sources(*at), at[1])
        number, places = contexts[:, None], torch.arange(mask.shape[1], device=mask.device)
        history = hashed(tokens, places, _HISTORY_SEED).cumsum(1)  # of a token and all before

        def offer(chosen: Tensor, rank: Tensor, where: Tensor) -> Offer:
            wide = torch.where(chosen, rank.double(), -torch.inf)
            return Offer(active, contexts, wide, where, history.gather(1, where), strongest)

        self.top.update(offer(awake, largest, position))
        if self.drawn.n_slots:
            self.drawn.update(offer(awake, hashed(number, features, _ACTIVE_SEED), position))
        if self.inactive.n_slots:
            order = hashed(number, places, _POSITION_SEED)
            anywhere = torch.where(mask, order, -1).argmax(1, keepdim=True).expand_as(position)
            asleep = ~awake & mask.any(1, keepdim=True)
            self.inactive.update(offer(asleep, hashed(number, features, _INACTIVE_SEED), anywhere))

    def state(self) -> dict[str, Tensor]:
        """Tensors that `load` takes."""
        found = {f"{name}.{key}": t for name, part in self._parts().items() for key, t in part.state().items()}
        return {**found, "batches": torch.tensor(self.batches), "excluded": torch.tensor(self.excluded)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        for name, part in self._parts().items():
            part.load({k.split(".", 1)[1]: t for k, t in state.items() if k.startswith(f"{name}.")})
        self.batches, self.excluded = int(state["batches"]), int(state["excluded"])

    def _parts(self) -> dict[str, Resumable]:
        return {
            "counts": self.counts,
            "top": self.top,
            "drawn": self.drawn,
            "inactive": self.inactive,
            "coactivation": self.coactivation,
        }


def _strongest(contributions: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """The N_SOURCES tokens [n, S] that contribute most to a positive pre-activation; -1 where there are fewer."""
    values, positions = contributions.topk(min(N_SOURCES, contributions.shape[1]), dim=1)
    real = (values > 0) & (positions <= token[:, None])
    missing = N_SOURCES - values.shape[1]
    values, positions = torch.where(real, values, 0.0), torch.where(real, positions, -1)
    return torch.nn.functional.pad(positions, (0, missing), value=-1), torch.nn.functional.pad(values, (0, missing))
