"""One training step (SPEC 6): loss, gradient, clipping, update, counters.

    for each micro-batch:  total += weight * loss;  backward
    guard against a non-finite loss; clip; optimiser step with the step's learning rate; decoder constraint
    count dead features; revive them; steer L0

Weights stay in their own precision; autocast covers encoding and decoding only. A mean over a step of several
micro-batches is the mean over all its kept tokens: each part weighs as many as it keeps. A GPU is waited for where a look
saves much work: once for dead features (AuxK) and once for silent ones (revival).
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline import metric_names as names
from pipeline.activation_functions.interface import activation_function
from pipeline.dictionaries.base import Dictionary, Gate
from pipeline.dictionaries.codes import Codes
from pipeline.dictionaries.inference_thresholds import n_layers_of
from pipeline.dictionaries.sharding import feature_dim
from pipeline.losses.reductions import aligned
from pipeline.norms.normalizer import Normalizer
from pipeline.params.sections.trainer import TrainerParams
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.shares import resolve_share, resolve_steps
from pipeline.training.active_share import ActiveShare
from pipeline.training.checkpoints import check_fit
from pipeline.training.constraints import normalize_rows_, remove_parallel_gradient_
from pipeline.training.dead_features import DeadFeatures
from pipeline.training.dealt_state import own_tensor
from pipeline.training.divergence import DivergenceGuard
from pipeline.training.finiteness import LossGuard
from pipeline.training.objective import LossReport, ModelLoss, autocast, compute_loss, step_statistic
from pipeline.training.observation import Observation
from pipeline.training.optimizers import GradientScaler, build_optimizer, clip_gradients_, global_norm, gradient_norms
from pipeline.training.revival import revive_, silence
from pipeline.training.schedules import CoefficientSchedule, KSchedule, LearningRateSchedule, resolve_learning_rate
from pipeline.training.source import TrainingBatch
from pipeline.training.step_graph import Capture, StepGraph, cuda_capture
from pipeline.training.target_l0 import L0Control

WEIGHTED = "_weighted"  # end of the name of a term that its coefficient has multiplied


DeadOf = Callable[[Codes], Tensor]  # codes of a batch -> which ones are dead once it is counted


class _Part(NamedTuple):
    x: Tensor
    y: Tensor
    mask: Tensor | None
    weight: float | Tensor
    ordinary: Tensor | None  # the mask without massive tokens, which may be trained on
    model_loss: ModelLoss | None = None


class _Scalars(NamedTuple):
    """What changes from step to step: numbers, or on a GPU scalars that keep their place, so that a graph reads them."""

    step: int | Tensor
    lr: float | Tensor
    l1: float | Tensor


class _Done(NamedTuple):
    """What a step's work has left: the terms of its loss, its counts, gradient norms, kept tokens, labels and their mask."""

    sums: dict[str, Tensor]
    tally: _Tally
    norm: Tensor
    norms: dict[str, Tensor]
    n_tokens: int | Tensor
    label: Tensor
    mask: Tensor | None


class _Tally:
    """What a step counts of its features, over its micro-batches; on the device."""

    def __init__(self, dead: DeadFeatures, n_layers: int) -> None:
        self._dead, self._n_layers = dead, n_layers
        self.fired: Tensor | None = None
        self.n_active: Tensor | int = 0
        self.codes: Codes | None = None
        self.n_ordinary: Tensor | int = 0
        self.n_auxk_dropped: Tensor | int = 0
        self.mask: Tensor | None = None
        self.ordinary: Tensor | None = None
        self.x: Tensor | None = None

    @torch.no_grad()
    def add(self, report: LossReport, part: _Part, counted: bool) -> None:
        """Add a micro-batch; `counted`: also how many features are active. The last one's input and codes are kept."""
        self.codes, self.mask, self.ordinary, self.x = report.codes, part.mask, part.ordinary, part.x
        fired = report.codes.fired(self._dead.feature_shape)
        self.fired = fired if self.fired is None else self.fired | fired
        self.n_auxk_dropped = self.n_auxk_dropped + report.n_auxk_dropped
        if counted:
            active = report.codes.n_active()  # [...], with layers [..., L]
            if part.ordinary is not None:
                active = active * aligned(part.ordinary, active)
            self.n_active = self.n_active + active.reshape(-1, self._n_layers).sum(0)
            n_tokens = active.numel() // self._n_layers if part.ordinary is None else part.ordinary.sum()
            self.n_ordinary = self.n_ordinary + n_tokens

    def fresh(self) -> _Tally:
        """The same, its codes without what has been made of them later: before a graph fills its tensors anew."""
        other = copy.copy(self)
        other.codes = copy.copy(self.codes)
        return other


class Trainer:
    """A dictionary in training: everything that a step reads or changes.

    Args:
        dictionary: on its device, with its initial weights.
        params: trainer's parameters.
        total_steps: T.
        norms: {hook point: norm} for the normalisation.
        position: words for the position of a step's batch, for errors.
        reductions: over the processes that the rows of each batch are dealt to. Those that the features are dealt to are the
            dictionary's.

    Attributes:
        asked: the last step's flags, set where they are in any process.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        params: TrainerParams,
        *,
        total_steps: int,
        norms: Mapping[str, Any],
        position: Callable[[int], str] = "batch {}".format,
        reductions: Reductions = ONE_PROCESS,
    ) -> None:
        self.reductions, self.feature_group = reductions, dictionary.feature_group
        self.dictionary, self.params, self.total_steps = dictionary, params, total_steps
        self.parameters = dict(dictionary.named_parameters())
        self._dealt = {name: dim for name in self.parameters if (dim := feature_dim(dictionary, name)) is not None}
        first = next(iter(self.parameters.values()))
        self.device, self.dtype = first.device, first.dtype
        self.normalizer = Normalizer(dictionary.config, norms, reductions)
        thresholds = {id(parameter) for parameter in dictionary.threshold_parameters()}
        self._thresholds = frozenset(name for name, p in self.parameters.items() if id(p) in thresholds)
        self.optimizer = build_optimizer(
            params.optimizer,
            self.parameters,
            lr_factors=dict.fromkeys(self._thresholds, params.jumprelu_lr_factor),
            betas=params.betas,
            eps=params.eps,
        )
        self._schedules()
        self._rows = dictionary.decoder_rows() if params.decoder_constraint == "unit_norm" else None
        if self._rows is not None:
            normalize_rows_(self._rows)
        self.l0 = L0Control(dictionary, params, self.device)
        self.scaler = GradientScaler(params.amp_dtype == "float16", self.device, group=self.feature_group)
        dead_threshold = resolve_share(params.dead_threshold, params.total_training_tokens)
        self.dead = DeadFeatures(dictionary.feature_shape, dead_threshold, self.device)
        self._silence = silence(dictionary, params)
        kernels = dictionary.gate_settings().kernels
        measured = not (dictionary.activation.budgeted or kernels is None or kernels.counts_freely)
        self.share = ActiveShare(measured, math.prod(dictionary.feature_shape) * self.feature_group.size)
        self.guard = LossGuard(self.device, position)
        n_hooks, d_out = len(dictionary.hooks_out), dictionary.config.d_out
        width = (d_out,) if n_hooks == 1 else (n_hooks, d_out)
        self.divergence = DivergenceGuard(total_steps, width, self.device, same_l0=self._same_l0, reductions=reductions)
        self.step_number = 0
        self.asked: Tensor | None = None
        self._scalars = _Scalars(0, 0.0, 0.0)
        self.graph: StepGraph[Gate, _Done] | None = None
        if self.device.type == "cuda" and self.n_processes == 1:
            self.capture(cuda_capture)
        self.tokens = torch.zeros((), dtype=torch.int64, device=self.device)
        self.n_auxk_dropped = torch.zeros((), dtype=torch.int64, device=self.device)

    @property
    def n_processes(self) -> int:
        """That train together."""
        return self.reductions.size * self.feature_group.size

    def _schedules(self) -> None:
        params, total = self.params, self.total_steps
        self.lr = resolve_learning_rate(params.lr, self.dictionary.config, total)
        self._lr_factor = LearningRateSchedule(
            params.lr_scheduler_name,
            total,
            warm_up=params.lr_warm_up_steps,
            cool_down=params.lr_cool_down_steps,
            start_ratio=params.lr_start_ratio,
            warm_up_shape=params.lr_warm_up_shape,
            end_ratio=params.lr_end_ratio,
        )
        self._l1 = CoefficientSchedule(params.l1_coefficient, total, params.l1_coefficient_warmup_steps)
        self._k = KSchedule(
            self.dictionary.config.top_k,
            total,
            initial_k=params.initial_k,
            warm_up=params.k_warmup_steps,
            cold_booting=params.k_cold_booting_steps,
            schedule_type=params.k_schedule_type,
            exponential_factor=params.k_exponential_factor,
        )
        self.topk_start_steps = resolve_steps(params.topk_start_steps, total)

    def capture(self, capture: Capture[_Done]) -> None:
        """From now on do the work of a step by its graph, where that can be and nothing is observed."""
        kinds = (torch.int64, torch.float32, torch.float32)
        self._scalars = _Scalars(*(torch.zeros((), dtype=kind, device=self.device) for kind in kinds))
        self.graph = StepGraph(lambda batch, gate: self._work(batch, self.step_number, gate), capture)

    @property
    def _same_l0(self) -> bool:
        """Whether the L0 of the first step is that of all: nothing that makes the dictionary sparser comes in later."""
        if self.dictionary.activation.budgeted:
            return self.params.initial_k is None
        return self.l0.thresholds and self.params.sparsity_loss_type is None

    def scheduled(self, s: int) -> dict[str, float]:
        """Learning rate, k (topk family) and sparsity coefficient (with a sparsity loss) of step s, as far as scheduled."""
        values: dict[str, float] = {names.LR: self.lr * self._lr_factor(s)}
        if (k := self.gate(s).top_k) is not None:
            values[names.TOP_K] = k
        if self.params.sparsity_loss_type is not None and not self.l0.coefficient:
            values[names.L1_COEFFICIENT] = self._l1(s)
        return values

    def gate(self, s: int) -> Gate:
        """The gate of step s: the scheduled k, and TopK before topk_start_steps (k = target_l0 where that is steered to)."""
        k = self._k(s) if self.dictionary.activation.budgeted else None
        if s >= self.topk_start_steps:
            return Gate(top_k=k, share=self.share.known, reductions=self.reductions)
        target = self.params.steered_l0
        return Gate(k if target is None else max(1, round(target)), activation=activation_function("topk"))

    def step(self, batch: TrainingBatch, observe: bool = False, asks: Tensor | None = None) -> Observation | None:
        """Train on a batch of raw activations, on the trainer's device.

        Args:
            batch: its index is the number of this step.
            observe: gather what :meth:`Observation.figures` reports; costs a little.
            asks: flags of this process, on the CPU; `asked` will be those that are set in any.

        Raises:
            NumericsError: the loss is not finite (on a GPU: raised later, by `guard.read`).
        """
        s = self.step_number
        observation = None
        if observe:
            dims = self._token_dims(batch.inputs)
            observation = Observation(s, self.scheduled(s), dims, self.reductions, self.feature_group)
        self._set_scalars_(s)
        gate = self.gate(s)
        done = self._by_graph(batch, s, gate) if observation is None else None
        self.asked = asks
        if done is None:
            done = self._work(batch, s, gate, observation)
        self.n_auxk_dropped.add_(done.tally.n_auxk_dropped)
        self.divergence.add(s, done.sums[names.L_REC], done.label, done.mask)
        self._count(s, done.tally, done.n_tokens)
        self.tokens.add_(done.n_tokens)
        self.step_number = s + 1
        if observation is not None:
            if self.params.auxk_coefficient is not None:
                done.sums[names.AUXK_DROPPED] = self.n_auxk_dropped
            observation.finish(
                done.sums, done.norm, done.norms, self.feature_group.sum([self.dead.mask().sum()])[0], self.tokens
            )
        return observation

    def _set_scalars_(self, s: int) -> None:
        lr, l1 = self.lr * self._lr_factor(s), self._l1(s)
        if self.graph is None:
            self._scalars = _Scalars(s, lr, l1)
            return
        for scalar, value in zip(self._scalars, (s, lr, l1), strict=True):
            torch.as_tensor(scalar).fill_(value)

    def _by_graph(self, batch: TrainingBatch, s: int, gate: Gate) -> _Done | None:
        """The step's work by a CUDA graph; None: it is not done, since there is none for it."""
        if self.graph is None or s == self.topk_start_steps or self.share.due(s) or self.params.auxk_coefficient is not None:
            return None
        if batch.contexts is not None or self._waits(gate):
            return None
        done = self.graph.run(batch, gate._replace(share=None))
        return None if done is None else done._replace(sums=dict(done.sums), tally=done.tally.fresh())

    def _gathered(self, part: _Part) -> tuple[Tensor, Tensor | None]:
        """Input and mask of a micro-batch, with those of the other processes."""
        x, mask = part.x, part.ordinary
        if self.reductions.size == 1:
            return x, mask
        kept = torch.ones(x.shape[: self._token_dims(x)], dtype=torch.bool, device=x.device) if mask is None else mask
        return torch.cat(self.reductions.gathered(x)), torch.cat(self.reductions.gathered(kept))

    def _waits(self, gate: Gate) -> bool:
        """Whether a step by entries would have to ask how many there are."""
        kernels = self.dictionary.kernels(self.device)
        activation = gate.activation or self.dictionary.activation
        return not activation.budgeted and gate.share is not None and kernels.entries_pay(self.dtype, gate.share)

    def _work(self, batch: TrainingBatch, s: int, gate: Gate, observation: Observation | None = None) -> _Done:
        """Loss, gradient and update."""
        parts, n_tokens = self._parts(batch)
        if s == self.topk_start_steps and s > 0:
            any(self.l0.start_(*self._gathered(part)) for part in parts)  # the first that has an ordinary token
        dead = self._dead(parts, n_tokens, gate) if self.params.auxk_coefficient is not None else None
        sums: dict[str, Tensor] = {}
        tally = _Tally(self.dead, n_layers_of(self.dictionary))
        statistic = self._statistic(parts, gate)
        self.optimizer.zero_grad()
        for part in parts:
            report = self._accumulate(part, gate, dead, sums, statistic)
            tally.add(report, part, self.l0.steers or self.share.due(s))
            if observation is not None:
                observation.add(report, part.y, part.mask)
        self._reduce_(sums, tally)
        if self.l0.coefficient and self.params.sparsity_loss_type is not None:
            sums[names.L1_COEFFICIENT] = torch.as_tensor(self._scalars.l1 * self.l0.coefficient_factor())
        norm, norms = self._update(sums)
        return _Done(sums, tally, norm, norms, n_tokens, parts[0].y, parts[0].mask)

    @torch.no_grad()
    def _reduce_(self, sums: dict[str, Tensor], tally: _Tally) -> None:
        """Gradients, loss terms and counts, of this process's micro-batches until here, become those of the whole step."""
        assert tally.fired is not None
        trained = {parameter: parameter.grad for parameter in self.parameters.values() if parameter.grad is not None}
        asks = [] if self.asked is None else [self.asked]
        told: list[Any] = [*trained.values(), *sums.values(), tally.n_active, tally.n_ordinary, tally.n_auxk_dropped]
        found, (tally.fired, *asks) = self.reductions.together(told, [tally.fired, *asks])
        for parameter, gradient in zip(trained, found, strict=False):
            parameter.grad = gradient
        sums.update(zip(sums, found[len(trained) :], strict=False))
        n_active, tally.n_ordinary, tally.n_auxk_dropped = found[-3:]
        (tally.n_active,), asks = self.feature_group.together([n_active], asks)
        self.asked = asks[0] if asks else None

    @torch.no_grad()
    def _dead(self, parts: list[_Part], n_tokens: int | Tensor, gate: Gate) -> Tensor | DeadOf:
        """The features that AuxK trains: those still dead after this step's own activations are counted, as Gao et al. count.

        Of a step in several parts the features are computed once more first, where a feature could be dead: each part must
        know of the others' activations.
        """
        if len(parts) == 1:
            return lambda codes: self.dead.after(self.reductions.any(codes.fired(self.dead.feature_shape)), n_tokens)
        never = torch.zeros_like(self.dead.tokens_since, dtype=torch.bool)
        dead = self.dead.after(never, n_tokens)
        if not bool(self.feature_group.any(dead.any())):
            return dead
        fired = never
        for part in parts:
            with autocast(part.x.device, self.params.amp_dtype):
                codes = self.dictionary.step_codes(part.x, part.mask, gate)
                fired = fired | codes.fired(self.dead.feature_shape)
        return dead & ~self.reductions.any(fired)

    def _statistic(self, parts: list[_Part], gate: Gate) -> Tensor | None:
        """For a step in several parts: the whole step's value of what the sparsity loss is not linear in."""
        if len(parts) == 1 and self.reductions.size == 1:
            return None
        found = [step_statistic(self.dictionary, part.x, part.mask, self.params, gate) for part in parts]
        weighted = [value * part.weight for value, part in zip(found, parts, strict=True) if value is not None]
        return self.reductions.sum([torch.stack(weighted).sum(0)])[0] if weighted else None

    def _count(self, s: int, tally: _Tally, n_tokens: int | Tensor) -> None:
        """After the update: dead features, their revival, the steering of L0."""
        assert tally.fired is not None
        self.dead.update(tally.fired, n_tokens)
        dead = self.dead.mask()
        lost = self.dead.tokens_since >= self._silence
        if self.params.revive_dead_features and bool(self.feature_group.any(lost.any())):
            self._revive(s, tally, lost)
        if self.share.due(s):
            self.share.measure_(torch.as_tensor(tally.n_active), tally.n_ordinary)
        if self.l0.steers and s >= self.topk_start_steps:
            self.l0.update_(torch.as_tensor(tally.n_active), tally.n_ordinary, dead)

    def diverged(self) -> str | None:
        """What is wrong with the run as it stands, its likely cause and the keys to change; None: nothing."""
        verdict = self.divergence.verdict(self.step_number)
        if verdict is None or not verdict.diverged:
            return None
        return f"at step {self.step_number:,} of {self.total_steps:,} {verdict.figures}; {self._likely_cause()}"

    def too_short(self) -> str | None:
        """What a run lacks that has ended before it was better than the mean, though its error still fell; None: nothing."""
        verdict = self.divergence.verdict(self.step_number)
        if verdict is None or not verdict.too_short:
            return None
        return (
            f"the run ended too early: {verdict.figures}, though the error still fell; raise trainer.total_training_tokens, or "
            "start from activations (initializer.initialize_W_D_with_activations)"
        )

    def _likely_cause(self) -> str:
        auto = resolve_learning_rate("auto", self.dictionary.config, self.total_steps)
        if self.normalizer.massive.limits and not self.normalizer.excluded.limits:
            return "massive tokens are trained on: set activations.max_norm_factor to 10.0, or lower trainer.lr"
        if self.lr > 2 * auto:
            return f"trainer.lr {self.lr:.3g} is high: auto would be {auto:.3g}"
        advice = ["lower trainer.lr", "set trainer.clip_grad_norm to 1.0", "take a larger activations.batch_size"]
        if self.params.revive_dead_features:
            advice.insert(2, "switch trainer.revive_dead_features off")
        return f"the steps are too large for this data: {', '.join(advice[:-1])}, or {advice[-1]}"

    def _token_dims(self, x: Tensor) -> int:
        return x.ndim - self.dictionary.input_dims

    def _parts(self, batch: TrainingBatch) -> tuple[list[_Part], int | Tensor]:
        """This process's micro-batches, normalised with its whole batch in view, and the step's number of kept tokens."""
        inputs, labels, ordinary = self.normalizer.shortened(batch.inputs, batch.labels, batch.mask)
        x, y = self.normalizer(inputs, labels, batch.mask)
        n_tokens = self._n_tokens(batch, x)
        n_parts = min(self.params.gradient_accumulation_steps, len(x))
        if n_parts == 1 and self.reductions.size == 1:
            return [_Part(x, y, batch.mask, 1.0, ordinary, self._model_loss(batch, labels, ordinary, 1.0))], n_tokens
        masks, ordinary_masks = (
            [None] * n_parts if mask is None else mask.tensor_split(n_parts) for mask in (batch.mask, ordinary)
        )
        total = max(n_tokens, 1) if isinstance(n_tokens, int) else n_tokens.clamp_min(1)
        parts = []
        for x_i, y_i, mask, plain in zip(x.tensor_split(n_parts), y.tensor_split(n_parts), masks, ordinary_masks, strict=True):
            weight = (x_i.shape[: self._token_dims(x)].numel() if mask is None else _counted(mask, x_i.dtype)) / total
            parts.append(_Part(x_i, y_i, mask, weight, plain, self._model_loss(batch, labels, plain, weight)))
        return parts, n_tokens

    def _n_tokens(self, batch: TrainingBatch, x: Tensor) -> int | Tensor:
        """Kept tokens of the step, in all processes."""
        dims = self._token_dims(x)
        if batch.whole is not None:
            rows, n_kept = batch.whole
            return rows * x.shape[1:dims].numel() if n_kept is None else n_kept
        own: int | Tensor = x.shape[:dims].numel() if batch.mask is None else batch.mask.sum()
        return self.reductions.sum([own])[0]

    def _model_loss(
        self, batch: TrainingBatch, labels: Tensor, ordinary: Tensor | None, weight: float | Tensor
    ) -> ModelLoss | None:
        """The loss through the language model of a step that has it; massive tokens keep their own activation."""
        if batch.contexts is None:
            return None
        factor = self.normalizer.factor(self.dictionary.hooks_out[0], labels, batch.mask)
        of = functools.partial(
            batch.contexts.loss, factor=factor, replaced=ordinary, rows=self.reductions, feature_group=self.feature_group
        )
        return ModelLoss(of, weight, self.reductions)

    def _revive(self, s: int, tally: _Tally, dead: Tensor) -> None:
        """Move dead features to the threshold of the gate, as the step's last micro-batch has it."""
        assert tally.codes is not None
        assert tally.x is not None
        gate = self.gate(s)
        activation = gate.activation or self.dictionary.activation
        settings = self.dictionary.gate_settings(tally.mask, gate)
        smallest = torch.stack(self.feature_group.gathered(tally.codes.smallest_active(), alike=True)).amin(0)
        threshold = activation.threshold(smallest, settings)
        encoder_gate = self.dictionary.encoder_gate(tally.x)
        revive_(
            self.dictionary,
            tally.codes,
            threshold,
            dead,
            tally.ordinary,
            encoder_gate=encoder_gate,
            reductions=self.reductions,
        )

    def _accumulate(
        self, part: _Part, gate: Gate, dead: Tensor | DeadOf | None, sums: dict[str, Tensor], statistic: Tensor | None
    ) -> LossReport:
        """Loss and gradient of a micro-batch; its terms are added to `sums`."""
        report = compute_loss(
            self.dictionary,
            part.x,
            part.y,
            part.mask,
            self.params,
            l1_coefficient=self._scalars.l1 * self.l0.coefficient_factor(),
            gate=gate,
            dead=dead,
            step_statistic=statistic,
            model_loss=part.model_loss,
        )
        total = report.total * part.weight
        self.scaler.scaled(total).backward()
        figures = {names.LOSS: report.total}
        figures |= report.unweighted
        figures |= {f"{name}{WEIGHTED}": term for name, term in report.terms.items()}
        for name, value in figures.items():
            value = value.detach() * part.weight
            sums[name] = sums[name] + value if name in sums else value
        return report

    def _update(self, sums: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Guard, clip and update; the gradient's norm before clipping (thresholds excluded), and that of each parameter."""
        overflow = self.scaler.unscale_(self.parameters)
        norms = gradient_norms(self.parameters, self._dealt, self.feature_group)
        norm = global_norm(norms, self._thresholds)
        watched = {name: value for name, value in sums.items() if not name.endswith(WEIGHTED)}
        if overflow is None:
            watched[names.GRAD_NORM] = norm
        skip = self.guard.check(self._scalars.step, watched)
        if self.params.clip_grad_norm > 0:
            clip_gradients_(self.parameters, norm, self.params.clip_grad_norm, self._thresholds)
        if self._rows is not None:
            remove_parallel_gradient_(self._rows)
        if overflow is not None:
            skip = overflow if skip is None else torch.maximum(skip, overflow)
        self.optimizer.step(self._scalars.lr, skip)
        self.scaler.update(overflow)
        if self._rows is not None:
            normalize_rows_(self._rows)
        return norm, norms

    def state(self) -> dict[str, Tensor]:
        """All that a resume needs, by name; on the device, not copied. The loop itself draws no random number.

        What is of features that are dealt to processes is a DTensor of those of all.
        """
        state = self._own_state()
        for name, tensor in state.items():
            if (dim := self._feature_dim(name)) is not None:
                state[name] = self.feature_group.placed(tensor, dim)
        return state

    def _feature_dim(self, name: str) -> int | None:
        """The dimension of features of a tensor of the state; None: it has none."""
        section, _, of_section = name.partition("/")
        if section == "dictionary":
            return feature_dim(self.dictionary, of_section)
        if section == "optimizer":
            parameter, _, slot = of_section.rpartition("/")
            return None if slot == "step" else self._dealt.get(parameter)
        return len(self.dead.feature_shape) - 1 if section == "dead" else None

    def _own_state(self) -> dict[str, Tensor]:
        """The same, of this process's features."""
        state = {f"dictionary/{name}": tensor.detach() for name, tensor in self.dictionary.state_dict().items()}
        state |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.state().items()}
        state |= {f"scaler/{name}": tensor for name, tensor in self.scaler.state().items()}
        state |= {f"target_l0/{name}": tensor for name, tensor in self.l0.state().items()}
        state |= {f"divergence/{name}": tensor for name, tensor in self.divergence.state().items()}
        state |= {f"active/{name}": tensor for name, tensor in self.share.state().items()}
        state["dead/tokens_since"] = self.dead.tokens_since
        state["tokens"], state["n_auxk_dropped"] = self.tokens, self.n_auxk_dropped
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], step_number: int) -> None:
        """Take over what :meth:`state` gave after `step_number` steps, or the same as plain tensors of all features.

        Raises:
            CheckpointError: names or shapes do not fit.
        """
        check_fit(self.state(), state)
        own, group = self._own_state(), self.feature_group
        state = {name: own_tensor(tensor, self._feature_dim(name), group) for name, tensor in state.items()}

        def below(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}

        self.optimizer.load(below("optimizer/"))
        self.scaler.load(below("scaler/"))
        for name, tensor in own.items():
            if not name.startswith(("optimizer/", "scaler/")):
                tensor.copy_(state[name])
        self.step_number = step_number


def _counted(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """How many tokens are kept, as a number that loses nothing in steps of that dtype."""
    return mask.sum(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
