"""For every feature the K contexts of the highest rank, each with a window of activations around its strongest token.

The rank is the activation (the top contexts) or a random number that depends on feature and context only (a uniform sample
of the contexts). Contexts are offered batch by batch, each once; what is kept does not depend on how they were cut. Where keys
are compared, of contexts with equal rank and key only the earliest is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.analysis.active import ActiveFeatures

N_SOURCES = 4
EMPTY: dict[str, float] = {"rank": -torch.inf, "context": -1, "position": -1, "source_position": -1}  # of a slot; others: 0


def slot_bytes(window: int) -> int:
    """Bytes of one slot of one feature, at least: rank, context, position, value, and a window of so many tokens."""
    return torch.float64.itemsize + 2 * torch.int32.itemsize + (1 + window) * torch.float32.itemsize


class Offer(NamedTuple):
    """A batch of contexts.

    Attributes:
        active: the active features of kept tokens.
        contexts: int64 [b], their numbers, ascending over all batches.
        rank: float64 [b, F], -inf: not offered.
        position: int64 [b, F], the token that the window is around.
        key: int64 [b, F], what is compared with `distinct`; None: nothing is.
        sources: (context in the batch [n], position [n], feature [n]) -> positions int64 [n, N_SOURCES] (-1: none) and their
            values, what the activation comes from; None: not asked.
    """

    active: ActiveFeatures
    contexts: Tensor
    rank: Tensor
    position: Tensor
    key: Tensor | None = None
    sources: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


class ContextSlots:
    """K slots for each of F features.

    Args:
        n_features, n_slots: F, K.
        before, after: tokens of the window before and after the strongest one.
        sources: whether sources are kept.
        distinct: whether of contexts with equal rank and key only the earliest is kept.
        device: of the state.

    Attributes:
        rank: float64 [F, K], -inf: empty. context, position: int32 [F, K]. value: float32 [F, K]. key: int64 [F, K or 0].
        window: float32 [F, K, before + 1 + after], 0 beyond the context.
        source_position: int32 [F, K, N_SOURCES], -1: none. source_value: float32 of that shape.
    """

    def __init__(
        self,
        n_features: int,
        n_slots: int,
        before: int,
        after: int,
        *,
        sources: bool = False,
        distinct: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        shape, self.n_slots, self._before = (n_features, n_slots), n_slots, before
        self.rank = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self.context, self.position = (torch.full(shape, -1, dtype=torch.int32, device=device) for _ in range(2))
        self.value = torch.zeros(shape, device=device)
        self.key = torch.zeros(n_features, n_slots if distinct else 0, dtype=torch.int64, device=device)
        self.window = torch.zeros(*shape, before + 1 + after, device=device)
        kept = N_SOURCES if sources else 0
        self.source_position = torch.full((*shape, kept), -1, dtype=torch.int32, device=device)
        self.source_value = torch.zeros(*shape, kept, device=device)

    def update(self, offer: Offer) -> None:
        """Take over the contexts whose rank is above that of a kept one; of equal ranks the earlier context stays."""
        if self.n_slots == 0:
            return
        feature, chosen = (self.rank.amin(1)[:, None] < offer.rank.T).nonzero(as_tuple=True)
        if len(feature) == 0:
            return
        # The first context of every feature, then the second, ...: no feature is there twice.
        number = torch.bincount(feature, minlength=len(self.rank))
        turn = torch.arange(len(feature), device=feature.device) - (number.cumsum(0) - number)[feature]
        for some in turn.argsort(stable=True).split(torch.bincount(turn).tolist()):
            self._take(offer, feature[some], chosen[some])
        self._fill(offer)

    def _take(self, offer: Offer, feature: Tensor, chosen: Tensor) -> None:
        """Offer each of n features one context of the batch, later than all that it has."""
        rank, ranks = offer.rank[chosen, feature], self.rank[feature]
        lowest = ranks.amin(1)
        taken = rank > lowest
        key = offer.key[chosen, feature] if self.key.shape[1] and offer.key is not None else None
        if key is not None:
            taken &= ~((ranks == rank[:, None]) & (self.key[feature] == key[:, None])).any(1)
        latest = torch.where(ranks == lowest[:, None], self.context[feature], -2).argmax(1)
        place = (feature[taken], latest[taken])
        self.rank[place] = rank[taken]
        self.context[place] = offer.contexts[chosen[taken]].int()
        self.position[place] = offer.position[chosen[taken], place[0]].int()
        if key is not None:
            self.key[place] = key[taken]

    def _fill(self, offer: Offer) -> None:
        """Write windows, values and sources of the slots that hold contexts of this batch."""
        active, width = offer.active, self.window.shape[-1]
        feature, slot = (self.context >= offer.contexts[0]).nonzero(as_tuple=True)
        chosen = torch.searchsorted(offer.contexts, self.context[feature, slot].long())
        slot_of = torch.full_like(offer.rank, -1, dtype=torch.int64)
        slot_of[chosen, feature] = feature * self.n_slots + slot
        self.window[feature, slot] = 0.0
        place = slot_of.view(-1)[active.pair]
        entry = (place >= 0).nonzero()[:, 0]
        place = place[entry]
        offset = active.position[entry] - self.position.view(-1)[place] + self._before
        inside = (offset >= 0) & (offset < width)
        self.window.view(-1)[(place * width + offset)[inside]] = active.values[entry][inside].float()
        self.value[feature, slot] = self.window[feature, slot, self._before]
        if self.source_position.shape[-1] and offer.sources is not None:
            for some in torch.arange(len(feature), device=feature.device).split(2**16):
                at = (feature[some], slot[some])
                positions, contributions = offer.sources(chosen[some], self.position[at].long(), at[0])
                self.source_position[at], self.source_value[at] = positions.int(), contributions.float()

    def ordered(self, features: slice) -> dict[str, Tensor]:
        """The slots of some features on the CPU, highest rank first (equal ranks: earlier context first)."""
        names = ("rank", "context", "position", "value", "window", "source_position", "source_value")
        return _ordered({name: getattr(self, name)[features].cpu() for name in names})

    def take_over(self, state: dict[str, Tensor], features: slice) -> None:
        """Keep of some features the contexts that would be kept had those of another one been offered here too.

        Args:
            state: of the other one, of these features alone; its contexts are others.
            features: which.
        """
        if self.n_slots == 0:
            return
        own = self.state()
        both = _ordered({name: torch.cat([own[name][features], part.to(own[name])], dim=1) for name, part in state.items()})
        if self.key.shape[1]:
            later = _later_twins(both["rank"], both["key"])
            for name, part in both.items():
                part[later] = EMPTY.get(name, 0)
            both = _ordered(both)
        for name, part in both.items():
            own[name][features] = part[:, : self.n_slots]

    def state(self) -> dict[str, Tensor]:
        """Tensors that `load` takes."""
        return {
            name: getattr(self, name)
            for name in ("rank", "context", "position", "value", "key", "window", "source_position", "source_value")
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def _ordered(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Slots [F, K, ...] by name, rank and context among them: the highest rank first, of equal ones the earlier context."""
    first = parts["context"].long().argsort(dim=1, stable=True)
    order = first.gather(1, parts["rank"].gather(1, first).argsort(dim=1, descending=True, stable=True))
    row = torch.arange(len(order), device=order.device)[:, None]
    return {name: part[row, order] if part.shape[1] else part for name, part in parts.items()}


def _later_twins(rank: Tensor, key: Tensor) -> Tensor:
    """bool [F, K]: True where an earlier slot of a feature has the same rank and key; an empty slot has no twin."""
    order = key.argsort(dim=1, stable=True)
    order = order.gather(1, rank.gather(1, order).argsort(dim=1, stable=True))
    rank, key = rank.gather(1, order), key.gather(1, order)
    twins = torch.zeros_like(rank, dtype=torch.bool)
    twins[:, 1:] = (rank[:, 1:] == rank[:, :-1]) & (key[:, 1:] == key[:, :-1]) & (rank[:, 1:] > -torch.inf)
    return torch.zeros_like(twins).scatter(1, order, twins)
