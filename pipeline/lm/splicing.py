"""What one forward pass keeps, replaces, and where it may stop.

A back end calls :meth:`Run.visit` at each hook point that the run wants, in the order in which they occur, and goes on
with the value that it returns. A replacement function sees everything kept so far in this run, after replacement, so
that features are computed from the spliced run itself (SPEC 7).

A replaced `hook_normalized` value r changes the norm's output y by (r - n) * gain, where n is the original value: with
r = n the output is the original bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.lm.language_model import LanguageModel

Replacement: TypeAlias = "Callable[[Mapping[str, Tensor], Tensor], Tensor]"
# {hook point: replacement}, or what makes it of a model and the token ids int64 [b, T] of one of its runs.
Replacements: TypeAlias = "Mapping[str, Replacement] | Callable[[LanguageModel, Tensor], Mapping[str, Replacement]]"


class StopRun(Exception):
    """Raised inside the model once the last wanted hook point is reached; never leaves :mod:`pipeline.lm`."""


class Captured(Mapping[str, Tensor]):
    """The activations of a run so far, {hook point: [b, T, d]}; a value may be computed when it is first asked for."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor | Callable[[], Tensor]] = {}

    def put(self, name: str, value: Tensor | Callable[[], Tensor]) -> None:
        """Keep a value, or a function that gives it."""
        self._values[name] = value

    def __getitem__(self, name: str) -> Tensor:
        value = self._values[name]
        if not isinstance(value, Tensor):
            value = self._values[name] = value()
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Run:
    """One forward pass.

    Args:
        capture: hook points to keep.
        replace: {hook point: function(captured, original) -> new value of the same shape}.
        stop: nothing is needed once every hook point in `capture` has occurred; else the run goes to the logits.
    """

    def __init__(
        self,
        capture: frozenset[str] = frozenset(),
        replace: Mapping[str, Replacement] | None = None,
        stop: bool = False,
    ) -> None:
        self.capture = capture
        self.replace = dict(replace or {})
        self.wanted = capture | frozenset(self.replace)
        self.captured = Captured()
        self.batch: tuple[int, ...] = ()  # [b, T] of the tokens, which a back end states
        self.device: torch.device | None = None  # that all activations come to, of blocks on several; None: where they are
        self._stop = stop
        self._replacing = False

    def visit(self, name: str, value: Tensor | Callable[[], Tensor]) -> Tensor | Callable[[], Tensor]:
        """Keep and replace at hook point `name`; returns the value to go on with, the same object if not replaced.

        Args:
            name: hook point.
            value: its activation [b, T, d], or a function that gives it.

        Raises:
            StopRun: nothing after this hook point is needed.
            ValueError: a replacement is not a tensor of the activation's shape.
        """
        if self._replacing:  # a replacement runs a part of the model by itself
            return value
        function = self.replace.get(name)
        if function is not None:
            value = self._replaced(name, function, value if isinstance(value, Tensor) else value())
        if name in self.capture:
            self.captured.put(name, self._come(value))
            if self._stop and len(self.captured) == len(self.capture):
                raise StopRun
        return value

    def _come(self, value: Tensor | Callable[[], Tensor]) -> Tensor | Callable[[], Tensor]:
        device = self.device
        if device is None:
            return value
        return value.to(device) if isinstance(value, Tensor) else lambda: value().to(device)

    def by_context(self, value: Tensor) -> Tensor:
        """An activation [b, T, d], also of a part of the model that works on rows [b T, d]."""
        rows = isinstance(value, Tensor) and value.ndim == 2 and len(value) == math.prod(self.batch)
        return value.view(*self.batch, -1) if rows else value

    def _replaced(self, name: str, function: Replacement, original: Tensor) -> Tensor:
        self._replacing = True
        try:
            new = function(self.captured, original if self.device is None else original.to(self.device))
        finally:
            self._replacing = False
        if not isinstance(new, Tensor) or new.shape != original.shape:
            got = f"shape {tuple(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(f"the replacement at {name} should give a tensor of shape {tuple(original.shape)}, it gave {got}")
        return _laid_out(new.to(device=original.device, dtype=original.dtype), original)

    def visit_normalized(
        self, name: str, normalized: Tensor | Callable[[], Tensor], output: Tensor, gain: Tensor | None
    ) -> Tensor:
        """:meth:`visit` at a norm's `hook_normalized`; returns the norm's output to go on with.

        Args:
            name: e.g. `blocks.2.ln1.hook_normalized`.
            normalized: value before gain and bias [b, T, d], or a function that gives it.
            output: the norm's own output [b, T, d].
            gain: [d], or None for a norm without one.
        """
        if name not in self.replace:
            self.visit(name, normalized)
            return output
        original = normalized if isinstance(normalized, Tensor) else normalized()
        new = self.visit(name, original)
        assert isinstance(new, Tensor)
        change = new - original
        return output + (change if gain is None else change * gain.to(change.device)).to(output.dtype)


def _laid_out(new: Tensor, original: Tensor) -> Tensor:
    """`new` with the strides of what it replaces: what comes after would else round otherwise (vectors of a processor begin
    elsewhere), and the true activation would change the logits in their last bit."""
    if new.stride() == original.stride():
        return new
    return torch.empty_strided(original.shape, original.stride(), dtype=new.dtype, device=new.device).copy_(new)


def token_loss(logits: Tensor, token_ids: Tensor, *, max_elements: int = 1 << 24) -> Tensor:
    """Cross entropy of every next token, in float32 (float64 of float64) whatever the model's dtype.

    loss[b, t] = -log softmax(logits[b, t])[token_ids[b, t + 1]]

    Args:
        logits: [b, T, V].
        token_ids: int64 [b, T].
        max_elements: how many logits are held in float32 at once.

    Returns:
        float32 (float64 of float64) [b, T - 1], nats.
    """
    width = logits.shape[-1]
    predictions = logits[:, :-1]
    labels = token_ids[:, 1:].to(logits.device)
    step = max(1, max_elements // max(1, predictions.shape[1] * width))
    parts = [
        torch.nn.functional.cross_entropy(
            _wide(predictions[i : i + step].reshape(-1, width)), labels[i : i + step].reshape(-1), reduction="none"
        ).view(labels[i : i + step].shape)
        for i in range(0, len(predictions), step)
    ]
    return torch.cat(parts)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
