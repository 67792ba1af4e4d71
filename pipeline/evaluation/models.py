"""The language models that a dictionary's hook points are of, run on the same tokens.

Most dictionaries have one model. A crosscoder over checkpoints has hook points `alias:blocks.L.name` of several: each model
is run by itself, and what it captures is known by the full keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import DataError, NumericsError
from pipeline.evaluation.language_model import Replacement
from pipeline.hook_keys import MAIN, by_model, join_key, split_key
from pipeline.lm.language_model import Start

if TYPE_CHECKING:
    from pipeline.evaluation.split_tokens import SplitBatch
    from pipeline.lm.language_model import LanguageModel


class _Keyed(Mapping[str, Tensor]):
    """What a run has captured, by the keys of its model."""

    def __init__(self, captured: Mapping[str, Tensor], alias: str) -> None:
        self._captured, self._alias = captured, alias

    def __getitem__(self, key: str) -> Tensor:
        alias, hook = split_key(key)
        if alias != self._alias:
            raise KeyError(key)
        return self._captured[hook]

    def __iter__(self) -> Iterator[str]:
        return (join_key(self._alias, hook) for hook in self._captured)

    def __len__(self) -> int:
        return len(self._captured)


class LanguageModels:
    """Models by alias.

    Args:
        models: one model, or {alias: model} with "" for the main one; all on one device.
    """

    def __init__(self, models: LanguageModel | Mapping[str, LanguageModel]) -> None:
        self._models = dict(models) if isinstance(models, Mapping) else {MAIN: models}

    @property
    def by_alias(self) -> Mapping[str, LanguageModel]:
        """{alias: model}."""
        return self._models

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(iter(self._models.values())).device

    def owner(self, key: str) -> LanguageModel:
        """The model of a hook point."""
        return self._model(split_key(key)[0])

    def _model(self, alias: str) -> LanguageModel:
        if alias not in self._models:
            known = ", ".join(repr(each) for each in self._models)
            raise DataError(f"models: the dictionary has hook points of the model {alias!r}, got {known} ('' is the main one)")
        return self._models[alias]

    def hook_width(self, key: str) -> int:
        """Width of the activation at a hook point.

        Raises:
            DataError: its model has no such hook point.
        """
        return self.owner(key).hook_width(split_key(key)[1])

    def activations(self, tokens: Tensor, keys: Iterable[str]) -> dict[str, Tensor]:
        """{key: [b, T, D]} of the models as they are; each stops after the last hook point."""
        found = {}
        for alias, hooks in by_model(keys).items():
            captured = self._model(alias).activations(tokens, hooks)
            found.update({join_key(alias, hook): captured[hook] for hook in hooks})
        return found

    def logits(
        self,
        alias: str,
        tokens: Tensor,
        replace: Mapping[str, Replacement],
        capture: Sequence[str] = (),
        start: Start | None = None,
    ) -> Tensor:
        """Logits [b, T, V] of one model's run with activations replaced.

        Args:
            alias: of the model.
            tokens: int64 [b, T].
            replace: {key of this model: function(captured so far, by key, original)}.
            capture: keys that the functions may look up; those of other models are left out.
            start: of a run of this model on these tokens (:meth:`start`); None: from the tokens.
        """
        inside = {split_key(key)[1]: self._with_keys(alias, function) for key, function in replace.items()}
        own = by_model(capture).get(alias, [])
        return self._models[alias].logits(tokens, inside, capture=own, start=start)

    @contextlib.contextmanager
    def explaining(self, batch: SplitBatch) -> Iterator[None]:
        """In the block, a NumericsError says where a model's own run of the batch first goes wrong, if it is that one."""
        try:
            yield
        except NumericsError as error:
            firsts = ((alias, model.first_not_finite(batch.tokens)) for alias, model in self._models.items())
            found = next(((alias, first) for alias, first in firsts if first is not None), None)
            if found is None:
                raise
            alias, first = found
            whose = f"model {alias}, " if alias else ""
            why = f"{whose}context {int(batch.contexts[first.row])} of the split, {first}"
            raise NumericsError([f"{fault}; {why}" for fault in error.faults]) from None

    def require_finite(self, activations: Mapping[str, Tensor], tokens: Tensor, kept: Tensor, contexts: Sequence[int]) -> None:
        """Refuse activations that are not finite.

        Args:
            activations: {key: [b, T, D]} of a run of the models as they are.
            tokens: int64 [b, T], of that run.
            kept: bool [b, T], the tokens that count.
            contexts: [b], their numbers, for the message.

        Raises:
            NumericsError: hook point, context and position, and where the run of that context first goes wrong.
        """
        for key, values in activations.items():
            bad = ~torch.isfinite(values).all(-1) & kept.to(values.device)
            if not bool(bad.any()):
                continue
            row, position = (int(i) for i in bad.nonzero()[0])
            value = values[row, position].float()
            # Alone the context may come out finite: kernels differ with the size of a batch.
            first = self.owner(key).first_not_finite(tokens[row : row + 1])
            why = "try model.dtype float32, or another model" if first is None else str(first)
            raise NumericsError(
                f"hook point {key}: context {contexts[row]}, position {position}: non-finite activation "
                f"({float(value[~torch.isfinite(value)][0])}); {why}"
            )

    def block_input(self, keys: Iterable[str]) -> str:
        """The key of the residual stream before :meth:`first_block` of these keys of a model."""
        keys = list(keys)
        return join_key(split_key(keys[0])[0], f"blocks.{self.first_block(keys)}.hook_resid_pre")

    def first_block(self, keys: Iterable[str]) -> int:
        """The block before which a run may begin that differs at these keys of a model alone."""
        return min(self.owner(key).first_block(split_key(key)[1]) for key in keys)

    def start(self, keys: Sequence[str], found: Mapping[str, Tensor]) -> Start:
        """Where runs of a model may begin that replace nothing but these keys, of what a run has found at `block_input(keys)`
        and at the keys."""
        return Start(self.first_block(keys), found[self.block_input(keys)], {split_key(key)[1]: found[key] for key in keys})

    @staticmethod
    def _with_keys(alias: str, function: Replacement) -> Replacement:
        return lambda captured, original: function(_Keyed(captured, alias), original)
