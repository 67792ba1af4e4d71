"""One pass over contexts that collects what is shown of every feature.

Memory: the model, its activations of one batch, a few copies of at most MAX_VALUES feature activations (or of one context's, if
those are more), and per feature about 4 B x (slots x (window + 12) + histogram bins): 16,384 features with the default windows
take about 230 MB, 50,000 about 700 MB. The pass may be cut anywhere: `state` and `load` continue it.

Excluded tokens (massive ones, pipeline/norms/exclusion.py) take no part, as masked ones do not.

Of several processes each has a collection of the batches that are dealt to it; the first one takes over what the others have,
and then has what one process has. Sums of activations, whose order changes their last bit, it is told batch by batch. Where the
features are dealt too, each has those of its own; the first one has those of all while the state is saved.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from pipeline.analysis.active import ActiveFeatures
from pipeline.analysis.coactivation import CoactivationSample
from pipeline.analysis.context_slots import N_SOURCES, ContextSlots, Offer
from pipeline.analysis.feature_counts import FeatureCounts, Sums
from pipeline.analysis.hashing import hashed
from pipeline.dealing import in_turns
from pipeline.dictionaries.sharding import numbers_of_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pipeline.dictionaries.base import TokenSources
    from pipeline.evaluation.models import LanguageModels
    from pipeline.evaluation.raw_space import RawDictionary
    from pipeline.evaluation.split_tokens import SplitBatch
    from pipeline.params.sections.analysis import AnalysisParams
    from pipeline.processes import Reductions

BANDS = 4
RESERVOIR_PER_CONTEXT = 4  # contexts drawn for each one that is shown of a band
MAX_VALUES = 2**24  # feature activations at a time: 64 MiB
MOVED, MOVED_PAIRS = 1024, 2**20  # features, and pairs of the sample, that go from one process to another at a time
_ACTIVE_SEED, _INACTIVE_SEED, _POSITION_SEED, _HISTORY_SEED = 0x5EED, 0x1D1E, 0x9051, 0x4157

COACTIVATION = "coactivation"  # in the names of the state

T = TypeVar("T")


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
        self.models, self.raw, self._n = models, raw, math.prod(raw.dictionary.feature_shape)
        self._group = group = raw.dictionary.feature_group
        self._numbers = numbers_of_part(raw.dictionary.feature_shape, group.rank, group.size)
        self._params, self._tokens = params, tokens
        self.batches = 0
        self._clear()

    def _clear(self) -> None:
        """Nothing is collected; how far the pass has come stays."""
        params, raw, n = self._params, self.raw, self._n
        self.excluded, device = 0, raw.device
        window = (params.window_before, params.window_after)
        reads = raw.dictionary.reads_sequences
        drawn = BANDS * params.band_contexts * RESERVOIR_PER_CONTEXT
        self.counts = FeatureCounts(n, device)
        self.top = ContextSlots(n, params.top_contexts, *window, sources=reads, distinct=True, device=device)
        self.drawn = ContextSlots(n, drawn, *window, sources=reads, device=device)
        self.inactive = ContextSlots(n, params.inactive_contexts, 0, 0, device=device)
        self.coactivation = self._sample(self._numbers if self._group.size > 1 else None)

    def _sample(self, numbers: Tensor | None = None) -> CoactivationSample:
        share = self._params.coactivation_tokens / self._tokens
        return CoactivationSample(self._n * self._group.size, share, numbers=numbers)

    def update(self, batch: SplitBatch) -> None:
        """Run the models over a batch and add it.

        Raises:
            NumericsError: an activation of a token that counts is not finite.
        """
        self.add_sums(self.collect(batch))

    def add_sums(self, found: Iterable[Sums]) -> None:
        """Add the sums of a batch; it is done."""
        for sums in found:
            self.counts.add_sums(sums)
        self.batches += 1

    @torch.no_grad()
    def collect(self, batch: SplitBatch) -> list[Sums]:
        """Run the models over a batch and take of it all but its sums, which are for :meth:`add_sums`.

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
        size = max(1, MAX_VALUES // (self._n * self._group.size * mask.shape[1]))
        found = []
        for start in range(0, len(mask), size):
            some = slice(start, start + size)
            inputs = {hook: captured[hook][some] for hook in raw.hooks_in}
            x, flat_mask = raw.encoder_input(inputs, mask[some], None if massive is None else massive[some])
            codes = raw.dictionary.step_codes(x, flat_mask, decoded_only=True)
            place = (batch.contexts[some].to(raw.device), batch.tokens[some].to(raw.device))
            active = ActiveFeatures.of_codes(codes, mask[some])
            found.append(self.add(active, mask[some], *place, raw.dictionary.token_sources(x)))
        return found

    def add(
        self, active: ActiveFeatures, mask: Tensor, contexts: Tensor, tokens: Tensor, sources: TokenSources | None = None
    ) -> Sums:
        """Add contexts, all but their sums: what is active at kept tokens, mask bool [b, T], numbers int64 [b], tokens int64
        [b, T].

        The top contexts are distinct ones: the same activation of the same token after the same tokens, as at the start of
        many contexts, counts once.
        """
        sums = self.counts.update(active, int(mask.sum()))
        self.coactivation.update(active, contexts)
        largest, position = active.strongest()
        awake, features = largest > 0, self._numbers.to(mask.device)
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
        return sums

    def gather(self, processes: Reductions) -> None:
        """The first process has then what all have collected, the others nothing; a part of it is on the way at a time.

        All processes have added the sums of the same batches.
        """
        if processes.size == 1:
            return
        for some in _slices(self._n, MOVED):
            for state in _of_others(functools.partial(self._part, some), processes):
                self.counts.take_over(state["counts"], some)
                for name, slots in self._slots().items():
                    slots.take_over(state[name], some)
        (sizes,) = in_turns(processes.size, lambda _: len(self.coactivation), processes)
        for some in _slices(max(sizes), MOVED_PAIRS):
            for pairs in _of_others(functools.partial(self.coactivation.pairs, some), processes):
                self.coactivation.take_over(*pairs)
        for excluded in _of_others(lambda: self.excluded, processes):
            self.excluded += excluded
        if processes.rank != 0:
            self._clear()

    def _part(self, some: slice) -> dict[str, dict[str, Tensor]]:
        """What was collected of some features, on the CPU; no sums, which the first process has."""
        counts = self.counts.state()
        own = {key: counts[key][some] for key in ("active", "largest", "histogram")} | {"tokens": counts["tokens"]}
        slots = {name: {key: part[some] for key, part in slots.state().items()} for name, slots in self._slots().items()}
        return {name: {key: t.cpu().clone() for key, t in part.items()} for name, part in {"counts": own, **slots}.items()}

    def _slots(self) -> dict[str, ContextSlots]:
        return {"top": self.top, "drawn": self.drawn, "inactive": self.inactive}

    def state(self) -> dict[str, Tensor] | None:
        """Tensors that `load` takes, of all features. Processes that have some each call this together: the first one is given
        them, on the CPU, the others None."""
        state, group = self._own_state(), self._group
        if group.size == 1:
            return state
        sample = self._sample()
        sample.load(self.coactivation.state())
        (sizes,) = in_turns(group.size, lambda _: len(self.coactivation), group)
        for some in _slices(max(sizes), MOVED_PAIRS):
            for pairs in _of_others(functools.partial(self.coactivation.pairs, some), group):
                sample.take_over(*pairs)
        state |= {f"{COACTIVATION}.{key}": tensor for key, tensor in sample.state().items()}
        for key, tensor in state.items():
            if self._of_features(key):
                state[key] = self._of_all(tensor)
        return state if group.rank == 0 else None

    def _of_features(self, key: str) -> bool:
        """Whether a tensor of the state has a row for each feature."""
        part, _, name = key.partition(".")
        return part in ("counts", *self._slots()) and name != "tokens"

    def _of_all(self, own: Tensor) -> Tensor:
        """The rows of all features in the first process, on the CPU; in the others nothing of use."""
        group, shape = self._group, self.raw.dictionary.feature_shape
        first = group.rank == 0
        whole = torch.empty((self._n * group.size if first else 0, *own.shape[1:]), dtype=own.dtype)
        for some in _slices(self._n, MOVED) if own.numel() else ():
            for rank, part in enumerate(group.gathered(own[some])):
                if first:
                    whole[numbers_of_part(shape, rank, group.size)[some]] = part.cpu()
        return whole

    def _own_state(self) -> dict[str, Tensor]:
        found = {f"{name}.{key}": t for name, part in self._parts().items() for key, t in part.state().items()}
        return {**found, "batches": torch.tensor(self.batches), "excluded": torch.tensor(self.excluded)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a state of all features."""
        if self._group.size > 1:
            state = {key: tensor[self._numbers] if self._of_features(key) else tensor for key, tensor in state.items()}
        for name, part in self._parts().items():
            part.load({k.split(".", 1)[1]: t for k, t in state.items() if k.startswith(f"{name}.")})
        self.batches, self.excluded = int(state["batches"]), int(state["excluded"])

    def _parts(self) -> dict[str, Resumable]:
        return {
            "counts": self.counts,
            **self._slots(),
            COACTIVATION: self.coactivation,
        }


def _of_others(make: Callable[[], T], processes: Reductions) -> list[T]:
    """What the other processes make, told to the first one."""
    (turn,) = in_turns(processes.size, lambda rank: make() if rank else None, processes)
    return [found for found in turn[1:] if found is not None] if processes.rank == 0 else []


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _strongest(contributions: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """The N_SOURCES tokens [n, S] that contribute most to a positive pre-activation; -1 where there are fewer."""
    values, positions = contributions.topk(min(N_SOURCES, contributions.shape[1]), dim=1)
    real = (values > 0) & (positions <= token[:, None])
    missing = N_SOURCES - values.shape[1]
    values, positions = torch.where(real, values, 0.0), torch.where(real, positions, -1)
    return torch.nn.functional.pad(positions, (0, missing), value=-1), torch.nn.functional.pad(values, (0, missing))
