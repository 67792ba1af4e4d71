"""Activations for every kind with massive tokens at one hook point, and short runs of fit() on them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline import api
from pipeline.seeding import generator
from pipeline.training.fit import FitResult

D, DIRECTIONS, ACTIVE = 16, 32, 3
CONTEXT, EVERY = 8, 37  # every 37th token is massive: in contexts of 8 at changing positions
HOOKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sae": (("input",), ("input",)),
    "transcoder": (("input",), ("output",)),
    "lorsa": (("input",), ("output",)),
    "crosscoder": (("early", "middle", "late"), ("early", "middle", "late")),
    "clt": (("x0", "x1"), ("y0", "y1")),
}
# (kind, the one hook point that has massive tokens)
PLACES = [
    ("sae", "input"),
    ("transcoder", "input"),
    ("transcoder", "output"),
    ("lorsa", "output"),
    ("crosscoder", "middle"),
    ("clt", "x1"),
    ("clt", "y0"),
]
FIELDS: dict[str, dict[str, Any]] = {
    "lorsa": {"n_qk_heads": 4, "d_qk_head": 4, "n_ctx": CONTEXT, "rotary_dim": 2, "rotary_adjacent_pairs": False},
}
LOSSES: dict[str, dict[str, Any]] = {"relu": {"sparsity_loss_type": "power", "l1_coefficient": 0.3}}


class Given(NamedTuple):
    """Activations of the same tokens.

    Attributes:
        kind: of the dictionary.
        tensors: {hook point: [n, T, D]}.
    """

    kind: str
    tensors: dict[str, Tensor]

    def with_massive(self, hook: str, factor: float = 300.0, axis: int = 2) -> Given:
        """Every EVERY-th token at `hook` is `factor` times the mean length longer along an axis."""
        x = self.tensors[hook].clone()
        x.view(-1, D)[::EVERY, axis] += factor * float(x.norm(dim=-1).mean())
        return Given(self.kind, {**self.tensors, hook: x})

    def flat(self) -> Given:
        """Tokens [N, D]."""
        return Given(self.kind, {hook: x.reshape(-1, D) for hook, x in self.tensors.items()})

    def ordinary(self) -> Given:
        """The tokens [N, D] that `with_massive` leaves as they are."""
        kept = [i for i in range(len(self.flat().tensors[HOOKS[self.kind][0][0]])) if i % EVERY]
        return Given(self.kind, {hook: x[kept] for hook, x in self.flat().tensors.items()})

    def fit(self, max_norm_factor: float | None = 10.0, steps: int = 50, **fields: Any) -> FitResult:
        """A short run on batches of 96 tokens; `fields` of the dictionary."""
        activations, targets = self._arguments()
        return api.fit(
            activations,
            targets=targets,
            dictionary={"kind": self.kind, "d_sae": 48, "top_k": 4, **FIELDS.get(self.kind, {}), **fields},
            trainer={
                "total_training_tokens": 96 * steps,
                "log_frequency": 10,
                **LOSSES.get(fields.get("act_fn", ""), {}),
            },
            batch_size=96 // (1 if next(iter(self.tensors.values())).ndim == 2 else CONTEXT),
            max_norm_factor=max_norm_factor,
            seed=3,
            device="cpu",
        )

    def fvu(self, result: FitResult, mask: Tensor | None = None) -> float:
        """Of the inference form, on the tokens of `mask`."""
        activations, targets = self._arguments()
        return api.evaluate_reconstruction(result.inference, activations, targets, mask=mask)["fvu"]

    def _arguments(self) -> tuple[Any, Any]:
        read, written = HOOKS[self.kind]
        x, y = ({hook: self.tensors[hook] for hook in hooks} for hooks in (read, written))
        several = len(read) > 1
        return x if several else x[read[0]], None if read == written else y if several else y[written[0]]


def drawn(kind: str, n: int = 200, seed: int = 0, one_length: bool = False) -> Given:
    """n contexts: sparse mixtures of fixed directions at what is read, rectified linear functions of them at what is written.

    Args:
        one_length: float64, and all tokens of a hook point have one length: leaving some out does not change the mean.
    """
    fixed, random = generator(5, "tests", "massive directions"), generator(seed, "tests", "massive rows")
    directions = torch.nn.functional.normalize(torch.randn(DIRECTIONS, D, generator=fixed), dim=-1)
    used = torch.rand(n, CONTEXT, DIRECTIONS, generator=random) < ACTIVE / DIRECTIONS
    x = (used * (0.5 + torch.empty(used.shape).exponential_(generator=random))) @ directions
    x = x + 0.05 * torch.randn(x.shape, generator=random)
    tensors: dict[str, Tensor] = {}
    for hook in dict.fromkeys((*HOOKS[kind][0], *HOOKS[kind][1])):
        tensors[hook] = x * (1 + len(tensors))
        past = x.cumsum(1) / torch.arange(1, CONTEXT + 1)[:, None] if kind == "lorsa" else x
        x = past @ torch.randn(D, D, generator=fixed) / D**0.5
        x = x if kind in ("lorsa", "crosscoder") else torch.relu(x)
    if one_length:
        tensors = {hook: 4 * torch.nn.functional.normalize(tensors[hook].double(), dim=-1) for hook in tensors}
    return Given(kind, tensors)


def ordinary(n: int) -> Tensor:
    """True for a token that `with_massive` leaves as it is, bool [n, CONTEXT]."""
    return (torch.arange(n * CONTEXT) % EVERY > 0).view(n, CONTEXT)
