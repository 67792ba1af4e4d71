"""For every feature the K contexts of the highest rank, each with a window of activations around its strongest token.

The rank is the activation (the top contexts) or a random number that depends on feature and context only (a uniform sample
of the contexts). Contexts are offered batch by batch, each once; what is kept does not depend on how they were cut. Where keys
are compared, of contexts with equal rank and key only the earliest is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

N_SOURCES = 4


def slot_bytes(window: int) -> int:
    """Bytes of one slot of one feature, at least: rank, context, position, value, and a window of so many tokens."""
    return torch.float64.itemsize + 2 * torch.int32.itemsize + (1 + window) * torch.float32.itemsize


class Offer(NamedTuple):
    """A batch of contexts.

    Attributes:
        f: [b, T, F] feature activations, zero at masked tokens.
        contexts: int64 [b], their numbers, ascending over all batches.
        rank: float64 [b, F], -inf: not offered.
        position: int64 [b, F], the token that the window is around.
        key: int64 [b, F], what is compared with `distinct`; None: nothing is.
        sources: (context in the batch [n], position [n], feature [n]) -> positions int64 [n, N_SOURCES] (-1: none) and their
            values, what the activation comes from; None: not asked.
    """

    f: Tensor
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
        shape, self.n_slots = (n_features, n_slots), n_slots
        self.offsets = torch.arange(-before, after + 1, device=device)
        self.rank = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self.context, self.position = (torch.full(shape, -1, dtype=torch.int32, device=device) for _ in range(2))
        self.value = torch.zeros(shape, device=device)
        self.key = torch.zeros(n_features, n_slots if distinct else 0, dtype=torch.int64, device=device)
        self.window = torch.zeros(*shape, len(self.offsets), device=device)
        kept = N_SOURCES if sources else 0
        self.source_position = torch.full((*shape, kept), -1, dtype=torch.int32, device=device)
        self.source_value = torch.zeros(*shape, kept, device=device)

    def update(self, offer: Offer) -> None:
        """Take over the contexts whose rank is above that of a kept one; of equal ranks the earlier context stays."""
        if self.n_slots == 0:
            return
        features = (offer.rank > self.rank.amin(1)).any(0).nonzero()[:, 0]
        for some in features.split(max(1, 2**22 // (self.n_slots + len(offer.contexts)))):
            self._update(offer, some)

    def _update(self, offer: Offer, features: Tensor) -> None:
        oldest = self.context[features].argsort(dim=1)  # so that of equal ranks the earlier context is before the later
        ranks = torch.cat([self.rank[features].gather(1, oldest), offer.rank[:, features].T], 1)
        if self.key.shape[1] and offer.key is not None:
            ranks = _first_of_equals(ranks, torch.cat([self.key[features].gather(1, oldest), offer.key[:, features].T], 1))
        kept = ranks.sort(dim=1, descending=True, stable=True).indices[:, : self.n_slots]
        is_new = kept >= self.n_slots
        chosen = torch.zeros_like(ranks, dtype=torch.bool).scatter_(1, kept, True)[:, : self.n_slots]
        stays = torch.zeros_like(chosen).scatter_(1, oldest, chosen)
        free = stays.to(torch.int8).argsort(dim=1, stable=True)  # the slots that are given up come first
        row, place = is_new.nonzero(as_tuple=True)
        slot = free[row, (is_new.cumsum(1) - 1)[row, place]]
        for part in torch.arange(len(row), device=row.device).split(2**16):
            context = kept[row[part], place[part]] - self.n_slots
            self._place(offer, features[row[part]], slot[part], context)

    def _place(self, offer: Offer, feature: Tensor, slot: Tensor, chosen: Tensor) -> None:
        """Write context `chosen` of the batch into a slot, for n features."""
        position = offer.position[chosen, feature]
        self.rank[feature, slot] = offer.rank[chosen, feature]
        self.context[feature, slot] = offer.contexts[chosen].int()
        self.position[feature, slot] = position.int()
        if self.key.shape[1] and offer.key is not None:
            self.key[feature, slot] = offer.key[chosen, feature]
        self.value[feature, slot] = offer.f[chosen, position, feature].float()
        where = position[:, None] + self.offsets
        inside = (where >= 0) & (where < offer.f.shape[1])
        values = offer.f[chosen[:, None], where.clamp(0, offer.f.shape[1] - 1), feature[:, None]].float()
        self.window[feature, slot] = torch.where(inside, values, 0.0)
        if self.source_position.shape[-1] and offer.sources is not None:
            positions, contributions = offer.sources(chosen, position, feature)
            self.source_position[feature, slot], self.source_value[feature, slot] = positions.int(), contributions.float()

    def ordered(self, features: slice) -> dict[str, Tensor]:
        """The slots of some features on the CPU, highest rank first (equal ranks: earlier context first)."""
        names = ("rank", "context", "position", "value", "window", "source_position", "source_value")
        parts = {name: getattr(self, name)[features].cpu() for name in names}
        first = parts["context"].long().argsort(dim=1, stable=True)
        order = first.gather(1, parts["rank"].gather(1, first).argsort(dim=1, descending=True, stable=True))
        row = torch.arange(len(order))[:, None]
        return {name: part[row, order] for name, part in parts.items()}

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


def _first_of_equals(ranks: Tensor, keys: Tensor) -> Tensor:
    """Ranks [n, contexts], -inf where an earlier context has the same rank and key."""
    by_key = keys.argsort(dim=1, stable=True)
    order = by_key.gather(1, ranks.gather(1, by_key).argsort(dim=1, descending=True, stable=True))
    sorted_ranks, sorted_keys = ranks.gather(1, order), keys.gather(1, order)
    again = torch.zeros_like(ranks, dtype=torch.bool)
    again[:, 1:] = (sorted_ranks[:, 1:] == sorted_ranks[:, :-1]) & (sorted_keys[:, 1:] == sorted_keys[:, :-1])
    return ranks.masked_fill(torch.zeros_like(again).scatter_(1, order, again), -torch.inf)
