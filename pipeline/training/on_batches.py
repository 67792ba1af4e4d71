"""Train on batches that somebody's own iterator gives: the code of `fit`, with rows that come as they are needed.

The first tokens are gathered, and norms, first weights and inference thresholds made of them; then they are trained on (but for
those that set the thresholds), and what the iterator gives after them. Rows are trained on in the order in which they come,
each once: whoever gives them has mixed them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError, ParamsError, unknown_name
from pipeline.norms.exclusion import MASSIVE_FACTOR
from pipeline.norms.normalizer import Normalizer
from pipeline.params.dictionary_kinds import kind_fields
from pipeline.params.kinds.several_hook_points import SeveralHookPointsFields
from pipeline.params.sections.initializer import InitializerParams
from pipeline.training import recipe
from pipeline.training.device import training_device
from pipeline.training.first_weights import read_stated, untrained
from pipeline.training.fit import FitResult, config_of, fitted
from pipeline.training.fit_params import fit_params
from pipeline.training.source import TrainingBatch
from pipeline.training.tensors import TensorData, joined, read_tensors

Given = Tensor | Mapping[str, Tensor] | tuple[Tensor, Tensor]


def train_on_batches(
    batches: Iterable[Given],
    *,
    dictionary: Mapping[str, Any],
    trainer: Mapping[str, Any],
    initializer: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    max_norm_factor: float | None = MASSIVE_FACTOR,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a dictionary on what an iterator gives, and fold it.

    Args:
        batches: raw activations in random order, any number of rows at a time: [n, D] tokens or [n, T, D] contexts; pairs of
            such (activations, targets); or {hook point: such a tensor}, of which the dictionary's hook points are taken.
        dictionary, trainer, initializer, max_norm_factor, seed, device, progress: as of :func:`pipeline.training.fit.fit`.
        batch_size: rows of a training batch; None: 4,096 tokens, and as many whole contexts as they hold.

    Returns: as of `fit`. Norms are of the first tokens: initializer.tokens and 16,384 more.

    Raises:
        DataError: the iterator ends before trainer.total_training_tokens, or gives rows of another shape.
        ParamsError, NumericsError: as `fit`.
    """
    given = dict(dictionary)
    pieces = _read(iter(batches), given)
    first = _first(pieces, int((initializer or {}).get("tokens", InitializerParams.tokens)) + recipe.CALIBRATION_TOKENS)
    given.pop("kind", None)
    batch_size = batch_size or max(4096 // first.tokens_per_row, 1)
    stated, start = read_stated(initializer or {})
    params = fit_params(config_of(given, first), trainer, stated, first.shape, batch_size, max_norm_factor, stacklevel=6)
    drawn_by = params.initializer.drawn_by(seed)
    made = untrained(params.dictionary.to_dict(), params, start, drawn_by).to(training_device(device))

    def source(rows: TensorData, normalizer: Normalizer) -> GivenSource:
        return GivenSource(itertools.chain([rows], _kept(pieces, normalizer)), batch_size, rows.tokens_per_row)

    return fitted(made, first, params, source, start=start, seed=drawn_by, label="train" if progress else None)


class GivenSource:
    """Batches of a size, cut from rows as they come.

    Args:
        rows: inputs and labels, of any length, all of one form.
        batch_size: rows per batch.
        tokens_per_row: 1, or the length of a context.
    """

    def __init__(self, rows: Iterator[TensorData], batch_size: int, tokens_per_row: int) -> None:
        self.rows, self.batch_size = rows, batch_size
        self.batch_tokens = batch_size * tokens_per_row

    def batches(self, start: int) -> Iterator[TrainingBatch]:
        """All batches, once.

        Raises:
            DataError: the rows end.
        """
        assert start == 0, "rows that an iterator has given do not come again"
        waiting: list[TensorData] = []
        for index in itertools.count():
            while sum(map(len, waiting)) < self.batch_size:
                more = next(self.rows, None)
                if more is None:
                    tokens = index * self.batch_tokens
                    raise DataError(
                        f"train_dictionary: the batches ended after {tokens:,} tokens that were trained on; give more or lower "
                        "trainer.total_training_tokens"
                    )
                waiting.append(more)
            whole = joined(waiting)
            batch, rest = whole.rows(0, self.batch_size), whole.rows(self.batch_size, len(whole))
            waiting = [rest] if len(rest) else []
            yield TrainingBatch(index, batch.inputs, batch.labels, batch.mask)

    def position(self, index: int) -> str:
        """The batch, and the tokens of the run so far."""
        first = index * self.batch_tokens
        return f"batch {index}, tokens {first:,} to {first + self.batch_tokens - 1:,} of those that were given"


def _first(pieces: Iterator[TensorData], tokens: int) -> TensorData:
    """The first pieces that hold so many tokens, or all there are."""
    found, n = [], 0
    for piece in pieces:
        found.append(piece)
        n += len(piece) * piece.tokens_per_row
        if n >= tokens:
            break
    if n == 0:
        raise DataError("train_dictionary: the iterator gives no rows; give [n, D] tokens or [n, T, D] contexts")
    return joined(found)


def _kept(pieces: Iterator[TensorData], normalizer: Normalizer) -> Iterator[TensorData]:
    """Pieces without the excluded tokens: rows are left out, tokens of contexts masked."""
    for piece in pieces:
        kept = piece.without(normalizer.excluded.above(normalizer.by_hook(piece.inputs, piece.labels)))
        if len(kept):
            yield kept


def _read(batches: Iterator[Given], given: dict[str, Any]) -> Iterator[TensorData]:
    """What is given, checked, each of the form of the first; the dictionary's hook points are completed by the first one."""
    take: Callable[[Given], tuple[Any, Any]] | None = None
    shape: tuple[Any, ...] | None = None
    for number, batch in enumerate(batches):
        take = take or _taker(batch, given)
        data = read_tensors(*take(batch), given.get("kind"))
        if not len(data):
            continue
        found = (*data.inputs.shape[1:], *data.labels.shape[1:])
        shape = shape or found
        if found != shape:
            raise DataError(f"train_dictionary: batch {number} of the iterator has rows of {found}, the first had {shape}")
        yield data


def _taker(first: Given, given: dict[str, Any]) -> Callable[[Given], tuple[Any, Any]]:
    """How activations and targets are taken from what is given."""
    if isinstance(first, tuple):
        return lambda batch: (batch[0], batch[1])  # type: ignore[index]
    if not isinstance(first, Mapping):
        return lambda batch: (batch, None)
    several = issubclass(kind_fields(given.get("kind", "sae")), SeveralHookPointsFields)
    read, written = ("hook_points_in", "hook_points_out") if several else ("hook_point_in", "hook_point_out")
    if read not in given and not several and len(first) > 1:
        raise ParamsError(f"dictionary.{read}: missing; the batches have {', '.join(first)}: name one")
    stated = given.pop(read, None) or (tuple(first) if several else next(iter(first)))
    target = given.pop(written, None) or stated
    unknown = [hook for hook in ((*stated, *target) if several else (stated, target)) if hook not in first]
    if unknown:
        raise DataError(f"train_dictionary: {unknown_name('hook point', unknown[0], first)}")
    if not several:
        given |= {read: stated} | ({} if target == stated else {written: target})
        return lambda batch: (batch[stated], None if target == stated else batch[target])  # type: ignore[index,call-overload]

    def take(batch: Given) -> tuple[Any, Any]:
        assert isinstance(batch, Mapping)
        return {hook: batch[hook] for hook in stated}, None if target == stated else {hook: batch[hook] for hook in target}

    return take
