"""The loss through the language model, trainer.model_loss: whole contexts with the reconstruction in the activation's place.

The last model_loss_steps steps of a run on live activations take whole contexts of its training text in the place of shuffled
rows, model_loss_batches times as many tokens (the gradient of one batch is mostly noise, docs/fine-tuning.md), in an order of
(seed, pass): the contexts of a step follow from its number. On each the language model is
run as it is, and again from the block of the written hook point on with the reconstruction there, in raw activations; masked
and excluded tokens keep their own. Its loss has a gradient in the reconstruction, which goes the way of that of the
reconstruction error (Karvonen 2025, arXiv 2503.17272).

Of several processes each reads the contexts that are its rows. Those with the same rows and features of their own share out
what runs through the language model with the reconstruction, and tell one another the gradients: all go on with the same bits.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.activations.live import LiveActivations
from pipeline.errors import DataError, NumericsError
from pipeline.hooks import stacked
from pipeline.lm.language_model import LanguageModel, Start
from pipeline.lm.not_finite import advice
from pipeline.losses.through_model import cross_entropy, divergence
from pipeline.memory import Need, require_memory
from pipeline.norms.exclusion import NormLimits
from pipeline.params.sections.trainer import TrainerParams
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.seeding import generator
from pipeline.shares import contexts_in_step, resolve_steps
from pipeline.training.dealt import own_rows
from pipeline.training.source import Source, StoreSource, TrainingBatch

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass(frozen=True)
class SplicedContexts:
    """Whole contexts of the language model, to be run with a reconstruction in the place of an activation.

    Attributes:
        model: the language model.
        kind: of the loss: kl or ce.
        hook: the written hook point.
        tokens: int64 [n, T]; kept: bool [n, T], True for a token that counts.
        residual: [n, T, d], the input of the hook point's block, and original: [n, T, d_out], what is replaced; on the model's
            device, as the other tensors are.
        at_once: contexts in one run.
        step: of the training; context_ids: [n], numbers in the training split; both for messages.
    """

    model: LanguageModel
    kind: str
    hook: str
    tokens: Tensor
    kept: Tensor
    residual: Tensor
    original: Tensor
    at_once: int
    step: int = 0
    context_ids: tuple[int, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds."""
        return self.tokens, self.kept, self.residual, self.original

    def loss(
        self,
        r: Tensor,
        factor: float | Tensor,
        replaced: Tensor | None,
        rows: Reductions = ONE_PROCESS,
        feature_group: Reductions = ONE_PROCESS,
    ) -> tuple[Tensor, Tensor]:
        """The loss of a reconstruction, mean over the counted predictions of the step, and its gradient in r.

        Args:
            r: normalised, [n, T, d_out], without gradient.
            factor: that the hook point's activations were multiplied by; broadcasts over r.
            replaced: bool [n, T], the tokens whose activation is replaced; None: all.
            rows: over the processes that have the step's other contexts.
            feature_group: over those that have these too: each runs the model on a part of them.

        Returns: scalar and [n, T, d_out], on the device of r, float32 (float64 for float64).

        Raises:
            NumericsError: a finite reconstruction has a loss or a gradient that is not finite; says of which context, and
                where in the language model.
        """
        wide = r if r.dtype == torch.float64 else r.float()
        raw = (wide / factor).to(self.original.device)
        x_hat = raw.to(self.original.dtype)
        where = torch.ones_like(self.kept) if replaced is None else replaced.to(self.kept.device)
        total, gradients = torch.zeros((), dtype=torch.float64, device=x_hat.device), [x_hat[:0]]
        own = own_rows(len(x_hat), feature_group.rank, feature_group.size)
        for start in range(own.start, own.stop, self.at_once):
            part = slice(start, min(start + self.at_once, own.stop))
            value, gradient = self._part(part, x_hat[part], where[part])
            if not bool(torch.isfinite(value)) or not bool(torch.isfinite(gradient).all()):
                self._explain(part, raw[part], where[part])
            total += value
            gradients.append(gradient)
        (total,), gradients = feature_group.sum([total]), feature_group.gathered(torch.cat(gradients))
        total, n = rows.sum([total, self.kept[:, 1:].sum()])
        n = n.clamp_min(1)
        gradient = torch.cat(gradients).to(wide.device, wide.dtype) / n.to(wide.device) / factor
        return (total / n).to(wide.device, wide.dtype), gradient

    def check_finite(self, activations: Mapping[str, Tensor]) -> None:
        """Refuse activations {hook point: [n, T, d]} that the step is about to train on.

        Raises:
            NumericsError: one of a token that counts is not finite; says where the language model went wrong.
        """
        for hook, values in activations.items():
            bad = ~torch.isfinite(values).all(-1) & self.kept.to(values.device)
            if bool(bad.any()):
                row = int(bad.nonzero()[0, 0])
                first = self.model.first_not_finite(self.tokens[row : row + 1])
                why = advice(self.model.dtype) if first is None else str(first)
                raise NumericsError(f"{self._at(row)}: the activation at {hook} is not finite: {why}")

    def _explain(self, part: slice, x_hat: Tensor, where: Tensor) -> None:
        """Say where the language model went wrong; nothing where the reconstruction did, which the trainer's guard names.

        x_hat: [b, T, d_out], before it is rounded to the model's dtype.
        """
        if not bool(torch.isfinite(x_hat).all()):
            return
        tokens, model = self.tokens[part], self.model
        rounded = x_hat.to(model.dtype)
        if bool((beyond := ~torch.isfinite(rounded).all(-1)).any()):
            row, position = (int(i) for i in beyond.nonzero()[0])
            size = float(x_hat[row, position].abs().max())
            raise NumericsError(
                f"{self._at(part.start + row)}, position {position}: the reconstruction at {self.hook} is up to {size:,.0f}: "
                f"{advice(model.dtype)}"
            )
        own = model.first_not_finite(tokens)
        if own is not None:
            raise NumericsError(f"{self._at(part.start + own.row)}: the language model as it is: {own}")
        spliced = model.first_not_finite(
            tokens, {self.hook: lambda captured, original: torch.where(where[..., None], rounded, original)}
        )
        half = model.dtype != torch.float32
        far = "the reconstruction is too far from the activation; lower trainer.lr, or set trainer.clip_grad_norm"
        why = advice(model.dtype) if half else far
        if spliced is not None:
            at = self._at(part.start + spliced.row)
            raise NumericsError(f"{at}: with the reconstruction at {self.hook}: {spliced.place}: {why}")
        raise NumericsError(
            f"{self._at(part.start)} or after it: the gradient at {self.hook} is not finite, the logits are: {why}"
        )

    def _at(self, row: int) -> str:
        number = f"context {self.context_ids[row]} of the training split" if self.context_ids else f"context {row}"
        return f"trainer.model_loss {self.kind}, step {self.step}, {number}"

    def _part(self, part: slice, x_hat: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over a part's predictions, and its gradient in x_hat."""
        tokens, kept, x = self.tokens[part], self.kept[part], x_hat.clone().requires_grad_()
        start = Start(self.model.first_block(self.hook), self.residual[part], {self.hook: self.original[part]})
        splice = {self.hook: lambda captured, original: torch.where(where[..., None], x, original)}
        spliced = self.model.logits(tokens, splice, capture=(), start=start, gradient=True)
        if self.kind == "ce":
            value, gradient = cross_entropy(tokens, spliced.detach(), kept)
        else:
            clean = self.model.logits(tokens, {self.hook: lambda captured, original: original}, capture=(), start=start)
            value, gradient = divergence(clean, spliced.detach(), kept)
        return value, torch.autograd.grad(spliced, x, gradient)[0]


class ContextSource:
    """Batches of a source, and from a step on whole contexts of its training rows.

    Args:
        source: of the other steps; its store is live.
        kind: of the loss.
        n_batches: tokens of a step of whole contexts, in batches.
        first: number of the first step of whole contexts.
        total_steps: T.
        processes: those that the contexts of a step are dealt to.

    Attributes:
        batch_size, batch_tokens: of the source.
        n_contexts: in a step, of all processes: as many tokens as so many batches have, at least one context.

    Raises:
        DataError: the model has no logits, or there are fewer contexts than a step takes.
        ParamsError: the logits cannot be held.
    """

    def __init__(
        self,
        source: StoreSource,
        kind: str,
        n_batches: int,
        first: int,
        total_steps: int,
        processes: Reductions = ONE_PROCESS,
    ) -> None:
        assert isinstance(source.store, LiveActivations)  # a rule of parameters (pipeline/params/rules/model_loss.py)
        self.source, self.live, self.kind, self.first, self.total_steps = source, source.store, kind, first, total_steps
        self.batch_size, self.batch_tokens = source.batch_size, source.batch_tokens
        self.n_contexts = _contexts_in_step(source, n_batches)
        self.own = own_rows(self.n_contexts, processes.rank, processes.size)
        self.at_once = int(self.live.config["model_batch_size"])
        self.contexts = self.live.contexts_within(source.rows)
        require_contexts(str(self.live.path), kind, self.n_contexts, len(self.contexts))
        model = self.live.whole_model()
        assert isinstance(model, LanguageModel)
        model.check_whole()
        self.model = model
        entries = min(self.own.stop - self.own.start, self.at_once) * self.live.context_size * model.vocab_size
        keys = {"activations.model_batch_size": self.at_once, "activations.batch_size": source.batch_size}
        n_bytes = (3 if kind == "kl" else 2) * entries * model.dtype.itemsize
        require_memory(Need("the logits of trainer.model_loss and their gradient", n_bytes, keys), device=model.device)

    def batches(self, start: int) -> Iterator[TrainingBatch]:
        """Batches from `start` on; of whole contexts this process's."""
        if start < self.first:
            rows = self.source.batches(start)
            yield from itertools.islice(rows, self.first - start)
            del rows  # threads that read ahead end, before the model is run in this one
        for index in itertools.count(max(start, self.first)):
            yield self._batch(index)

    def position(self, index: int) -> str:
        """Where batch `index` is, in words."""
        if index < self.first:
            return self.source.position(index)
        ids = self.context_ids(index).tolist()
        return f"contexts {', '.join(str(i) for i in ids[:4])}{' ...' if len(ids) > 4 else ''} of the training split, whole"

    def context_ids(self, index: int) -> np.ndarray:
        """The contexts of a step: the next ones of an order of all, drawn anew for every pass over them."""
        per_pass = len(self.contexts) // self.n_contexts
        number, within = divmod(index - self.first, per_pass)
        order = torch.randperm(len(self.contexts), generator=generator(self.source.seed, "model loss", number)).numpy()
        return self.contexts[order[within * self.n_contexts : (within + 1) * self.n_contexts]]

    def _batch(self, index: int) -> TrainingBatch:
        hooks_in, (written,) = self.source.hooks_in, self.source.hooks_out
        residual, ids = f"blocks.{self.model.first_block(written)}.hook_resid_pre", self.context_ids(index)[self.own]
        tokens, kept = self.live.context_tokens(ids)
        wanted = list(dict.fromkeys((*hooks_in, written, residual)))
        parts = [self.model.activations(part, wanted) for part in tokens.split(self.at_once)]
        found = {hook: torch.cat([part[hook] for part in parts]) for hook in wanted}
        tokens, kept = tokens.to(self.model.device), kept.to(self.model.device)
        inputs = stacked(found, hooks_in)
        labels = inputs if hooks_in == self.source.hooks_out else found[written]
        limits: NormLimits = self.source.limits
        mask = limits.kept({hook: found[hook] for hook in (*hooks_in, written)}, kept)
        contexts = SplicedContexts(
            self.model,
            self.kind,
            written,
            tokens,
            kept,
            found[residual],
            found[written],
            self.at_once,
            index,
            tuple(ids.tolist()),
        )
        contexts.check_finite(found)
        return TrainingBatch(index, inputs, labels, mask, contexts)

    def cost(self) -> str:
        """In which steps the loss acts and what it costs, in a line."""
        layer, n_steps = self.model.first_block(self.source.hooks_out[0]), self.total_steps - self.first
        tokens = n_steps * self.n_contexts * self.live.context_size
        return (
            f"trainer.model_loss {self.kind}: the last {n_steps:,} of {self.total_steps:,} steps, from {self.first:,} on, take "
            f"{self.n_contexts:,} whole contexts each; on their {tokens:,} tokens the language model runs once as it is, and "
            f"from block {layer} on once more, with the reconstruction in its place, and back"
        )


def require_contexts(where: str, kind: str, wanted: int, there: int) -> None:
    """Refuse a step of more whole contexts than there are.

    Args:
        where: the activations, for the message.
        kind: of the loss.
        wanted: contexts of a step.
        there: contexts without a row that is kept back.

    Raises:
        DataError: with both numbers, and which keys to change.
    """
    if there < wanted:
        raise DataError(
            f"{where}: trainer.model_loss {kind}: a step takes {wanted:,} whole contexts, and {there:,} have no row kept back "
            "by fold.calibration_tokens; raise activations.total_tokens, or lower trainer.model_loss_batches or "
            "activations.batch_size"
        )


def _contexts_in_step(source: StoreSource, n_batches: int) -> int:
    return contexts_in_step(n_batches, source.batch_tokens, source.store.context_size)


def run_tokens(source: StoreSource, params: TrainerParams, total_steps: int) -> int:
    """Tokens of all T steps of a run, masked ones too."""
    last = resolve_steps(params.model_loss_steps, total_steps) if params.model_loss is not None else 0
    whole = _contexts_in_step(source, params.model_loss_batches) * source.store.context_size
    return (total_steps - last) * source.batch_tokens + last * whole


def with_model_loss(
    source: StoreSource, params: TrainerParams, total_steps: int, processes: Reductions = ONE_PROCESS
) -> Source:
    """The source of a run of T steps, with whole contexts in its last model_loss_steps; itself where model_loss is null.

    Args:
        source, params, total_steps: of the run.
        processes: those that the rows of its batches are dealt to.

    Raises:
        DataError, ParamsError: as :class:`ContextSource`.
    """
    if params.model_loss is None:
        return source
    first = total_steps - resolve_steps(params.model_loss_steps, total_steps)
    return ContextSource(source, params.model_loss, params.model_loss_batches, first, total_steps, processes)
