"""The interface of every dictionary, and the gating that all kinds share.

    h = pre_activations(x)                       the kind's own encoder
    n = decoder_norms()                          recomputed at every call, differentiable
    z = h * n   if sparsity_include_decoder_norm (else h), times gate_scale in some folded and fine-tuned dictionaries
    f = act(z) / n  (or act(z))                  magnitudes stay those of h
    x_hat = decode(f)  (+ what passes by the features, for example a skip connection)

A kind gives the encoder, the linear decoder, its norms, its base initialisation and its folding algebra (`_folded`).
The trainer, the evaluation and the fold stage use what is public here and nothing else. Nothing inside normalises: an
unfolded dictionary takes and returns normalised activations, a folded one raw ones.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from pipeline.activation_functions.budget import within_budget
from pipeline.activation_functions.calibration import Calibration
from pipeline.activation_functions.interface import ActivationFunction, GateSettings, activation_function
from pipeline.arguments import shown
from pipeline.dictionaries.by_entries import decoded, step_codes
from pipeline.dictionaries.codes import Codes
from pipeline.dictionaries.fold import EPS_NORM, folded
from pipeline.dictionaries.inference_thresholds import inference_thresholds, threshold_factors
from pipeline.dictionaries.initial import DEFAULT_LOG_THRESHOLD, BaseInitialization
from pipeline.dictionaries.masks import excluded_tokens, exclusion, kept_tokens
from pipeline.dictionaries.parts import LinearPart
from pipeline.dictionaries.saving import save_dictionary
from pipeline.errors import DataError, ParamsError
from pipeline.kernels.dispatch import entry_kernels
from pipeline.kernels.entries import EntryKernels, Places
from pipeline.memory import Need, require_memory
from pipeline.params.dictionary_config import DictionaryConfig
from pipeline.processes import ONE_PROCESS, Reductions


class Gate(NamedTuple):
    """What a training step uses in place of the configured gate; None: as configured.

    Attributes:
        top_k: k of the topk family.
        window: width of JumpReLU's straight-through window.
        activation: another activation function.
        share: measured share of active features of a gate without budget, for the choice of the way; None: not known.
        reductions: over the processes that hold the rest of the batch.
    """

    top_k: int | None = None
    window: float | None = None
    activation: ActivationFunction | None = None
    share: float | None = None
    reductions: Reductions = ONE_PROCESS


class LinearBranch(NamedTuple):
    """x W + b, of all tokens.

    Attributes:
        x: [n_tokens, D], with layers [n_tokens L, D]; the centre is subtracted already, without gradient to it.
        W, b: [D, F] and [F]; with layers [D, L F] and [L F], of which a row of x has its own layer's features only.
        centre: [D], what is subtracted from the input; None: nothing.
    """

    x: Tensor
    W: Tensor
    b: Tensor
    centre: Tensor | None = None

    def output(self) -> Tensor:
        """x W + b, differentiable in the centre too; not of layers."""
        x = self.x if self.centre is None else self.x + (self.centre.detach() - self.centre)
        return nn.functional.linear(x, self.W.T, self.b)


CONFIGURED = Gate()
TokenSources = Callable[[Tensor, Tensor, Tensor], Tensor]


class Dictionary(nn.Module, abc.ABC):
    """A sparse dictionary. state_dict keys are the tensor names of SPEC 1.

    Args:
        config: of this kind; weights start at zero, `initialize_` draws them.

    Attributes:
        feature_group: over the processes that the features are dealt to while it is trained (sharding.py): what is of features
            is of this process's, what is of tokens of all. The identity unless they are.
    """

    feature_group: Reductions = ONE_PROCESS

    drawn_as_transpose: ClassVar[bool] = False  # the base draw makes the encoder of the decoder where that is asked for
    # {parameter: its dimensions, slowest first in memory}, where that is not their order: encoders keep each feature's weights
    # together, as the sums over chosen entries read and write them.
    MEMORY_ORDER: ClassVar[Mapping[str, Sequence[int]]] = {}
    # {parameter: its dimension of features}, of those that have one; a part of the features takes a part of these. None: the
    # kind does not say, and its features cannot be dealt to several processes.
    FEATURE_DIMS: ClassVar[Mapping[str, int] | None] = None
    log_jumprelu_threshold: nn.Parameter
    gate_scale: Tensor | None

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__()
        self.config = config
        self.activation = activation_function(config.act_fn)
        dtype, shapes = getattr(torch, config.dtype), self._parameter_shapes()
        n_bytes = dtype.itemsize * sum(math.prod(shape) for shape in (*shapes.values(), *self._listed_shapes()))
        require_memory(Need(f"weights of {config.d_sae:,} features", n_bytes, self._stated_width()))
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(_zeros(shape, self.MEMORY_ORDER.get(name, range(len(shape))), dtype)))
        if self.activation.has_threshold:
            threshold = torch.full(self.feature_shape, DEFAULT_LOG_THRESHOLD, dtype=dtype)
            self.register_parameter("log_jumprelu_threshold", nn.Parameter(threshold))
        self.register_buffer("gate_scale", None)

    # What a kind defines ---------------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one token's features: (F,) or (L, F), F = n_features."""

    @abc.abstractmethod
    def _parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every parameter but the threshold."""

    def _stated_width(self) -> dict[str, float]:
        """The parameter that the number of features follows from, for what takes memory."""
        return {"dictionary.expansion_factor": self.config.d_sae / self.config.d_in}

    def need(self, tokens: int, batch_size: int, *, encoded: bool = True, itemsize: int | None = None) -> Need:
        """What encoding so many tokens at once takes at least: h, z where it is another tensor, and all of f.

        Args:
            tokens: of the batch, or of a part of it.
            batch_size: activations.batch_size, from which they follow.
            encoded: whether f is wanted with its zeros.
            itemsize: bytes of a number; None: of a weight.
        """
        first = next(self.parameters())
        tensors = 1 + self.config.sparsity_include_decoder_norm + encoded
        n_bytes = tensors * tokens * math.prod(self.feature_shape) * (itemsize or first.dtype.itemsize)
        keys = {"activations.batch_size": batch_size, **self._stated_width()}
        return Need(f"the features of {tokens:,} tokens", n_bytes, keys)

    def _listed_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shapes of the parameters that a kind makes itself, of no name of their own."""
        return []

    @abc.abstractmethod
    def _draw(self, seed: int, initialization: BaseInitialization) -> None:
        """Draw the base initialisation in place (called without gradients; the threshold is set already)."""

    @abc.abstractmethod
    def pre_activations(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """h of the batch. x: [..., d_in] (several hook points: [..., L, d_in]); padding as in `codes`.

        Returns [..., F] (or [..., L, F]).
        """

    @abc.abstractmethod
    def decoder_norms(self) -> Tensor:
        """n: norm of each feature's (concatenated) decoder row, [F] or [L, F], differentiable; with rows times a it is a n."""

    def decoder_lengths(self) -> Tensor:
        """Length of all that each feature writes, as one vector, of `feature_shape`: n, of a kind whose n is no other norm."""
        return self.decoder_norms()

    @abc.abstractmethod
    def decode_linear(self, f: Tensor) -> Tensor:
        """The features' part of the reconstruction, without decoder bias. f: [..., F]. Returns [..., d_out]."""

    @abc.abstractmethod
    def scale_activations_(self, a: Sequence[float], b: Sequence[float]) -> None:
        """Take activations that are unscaled: what reads times `a` (one for each of hooks_in), what writes over `b`."""

    def decode_between(self, f: Tensor, first: int, end: int) -> Tensor:
        """`decode_linear` of the features first to end - 1 (of each layer) only. f: [..., F]. Returns [..., d_out]."""
        index = torch.arange(f.shape[-1], device=f.device)
        return self.decode_linear(torch.where((index >= first) & (index < end), f, 0.0))

    def decode_chosen(self, values: Tensor, places: Places) -> Tensor:
        """`decode_linear` of features that are given as entries, differentiable.

        Args:
            values: [N].
            places: in [n_tokens, F] ([n_tokens, L F]).

        Returns: [n_tokens, ..., d_out].
        """
        f = values.new_zeros(places.n_rows * places.n_columns)
        f = f.index_add(0, places.rows * places.n_columns + places.columns, values)
        return self.decode_linear(f.reshape(places.n_rows, *self.feature_shape))

    def decode(self, f: Tensor) -> Tensor:
        """Reconstruction from features, with decoder bias, without skip. f: [..., F]. Returns [..., d_out].

        Raises:
            DataError: features of another shape.
        """
        shape = tuple(self.feature_shape)
        if not isinstance(f, Tensor) or f.shape[-len(shape) :] != shape:
            wanted = f"features [..., {', '.join(map(str, shape))}]"
            raise DataError(f"dictionary '{self.config.name}' ({self.config.kind}): wanted {wanted}, got {shown(f)}")
        return self._with_bias(self._decoded(f))

    def _decoded(self, f: Tensor) -> Tensor:
        """`decode_linear` of all features, whichever process holds them."""
        return self.feature_group.summed(self.decode_linear(f))

    def _with_bias(self, x_hat: Tensor) -> Tensor:
        bias = self._parameters.get("b_D")
        return x_hat if bias is None else x_hat + bias

    def finished(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Decoder bias, and what does not pass through features, added to what the features add up to, [..., d_out]."""
        return self._with_bias(x_hat)

    def reconstruct(self, f: Tensor, x: Tensor) -> Tensor:
        """decode(f) plus what does not pass through features. f: [..., F], x: the input it was encoded from."""
        return self.finished(self._decoded(f), x)

    def reconstructions(self, codes: Codes, x: Tensor, widths: Sequence[int] = ()) -> list[Tensor]:
        """The reconstructions of a batch from the first w features only (of each layer), for each w (Matryoshka).

        Args:
            codes: of the batch.
            x: the input they were encoded from.
            widths: rising; none: that of all features.

        Returns: each [..., d_out]; every prefix adds its own features to the one before.
        """
        found: list[Tensor] = []
        x_hat: Tensor | None = None
        before = self.feature_group.rank * self.n_features  # features of the processes before this one
        own = [min(max(width - before, 0), self.n_features) for width in widths] or [self.n_features]
        for first, end in itertools.pairwise((0, *own)):
            part = self.feature_group.summed(decoded(self, codes, first, end))
            x_hat = part if x_hat is None else x_hat + part
            found.append(self.finished(x_hat, x))
        return found

    def linear_branches(self, x: Tensor) -> list[LinearBranch] | None:
        """The linear maps that h is made of, one after the other (GLU: two); None: h is no function of the token alone."""
        return None

    def branch_product(self, branch: LinearBranch, scale: Tensor | None) -> Tensor:
        """A branch's output for all features, times `scale` of feature_shape: [n_tokens, F] ([n_tokens, L, F])."""
        if scale is None:
            return nn.functional.linear(branch.x, branch.W.T, branch.b)
        return nn.functional.linear(branch.x, (branch.W * scale).T, branch.b * scale)

    def combined(self, branches: Sequence[Tensor]) -> Tensor:
        """h, or entries of it, of the branches' outputs."""
        (h,) = branches
        return h

    def encoder_bias(self) -> nn.Parameter:
        """The bias of the pre-activations, of `feature_shape`."""
        return self.get_parameter("b_E")

    def encoder_norms(self) -> Tensor:
        """L2 norm of each feature's encoder weights, of `feature_shape`."""
        return torch.linalg.vector_norm(self.get_parameter("W_E"), dim=-2)

    def encoder_gate(self, x: Tensor) -> Tensor | None:
        """What multiplies x W_E + b_E in h, [..., F] (GLU); None for 1."""
        return None

    @torch.no_grad()
    def scale_encoder_(self, factor: Tensor) -> None:
        """Multiply each feature's encoder weights, without the bias, by `factor` of `feature_shape`."""
        self.get_parameter("W_E").mul_(factor.unsqueeze(-2))

    @torch.no_grad()
    def scale_decoder_(self, factor: Tensor) -> None:
        """Multiply each feature's decoder weights by `factor` of `feature_shape`."""
        self.get_parameter("W_D").mul_(factor.unsqueeze(-1))

    def parts(self) -> list[LinearPart]:
        """Encoder and decoder as plain matrices, for the initialisation's strategies; none where they are not."""
        return []

    def token_sources(self, x: Tensor, padding: Tensor | None = None) -> TokenSources | None:
        """How much each token of a context contributes to pre-activations; None: features read their own token only.

        Args:
            x: [b, S, d_in]; padding: bool [b, S], as in `codes`.

        Returns: (context [n], token [n], feature [n]) -> contributions [n, S], whose sum is that pre-activation.
        """
        return None

    def written_rows(self, hook: int) -> Tensor:
        """What each feature writes at the written hook point of this index: [F, d_out] ([L, F, d_out] with layers)."""
        return self.get_parameter("W_D")

    def decoder_matrix(self) -> Tensor | None:
        """[F, d_out], of a kind whose features are decoded by f times one matrix; else None."""
        return None

    def decoder_rows(self) -> nn.Parameter:
        """W_D [F, d_out], whose rows `decoder_constraint: unit_norm` keeps at unit length.

        Raises:
            ParamsError: a feature of this kind has more than one row.
        """
        raise ParamsError(f"trainer.decoder_constraint: unit_norm is not for dictionary.kind '{self.config.kind}'; write none")

    # Shared ----------------------------------------------------------------------------------------------------------

    @property
    def reads_sequences(self) -> bool:
        """Whether the input is [b, S, d_in]: features of a token depend on those before it."""
        return self.config.READS_SEQUENCES

    @property
    def hooks_in(self) -> tuple[str, ...]:
        """The hook points read, in the order of the input."""
        return self.config.hooks_in

    @property
    def hooks_out(self) -> tuple[str, ...]:
        """The hook points written, in the order of the output."""
        return self.config.hooks_out

    @property
    def d_in(self) -> int:
        """Width of what is read at a hook point."""
        return self.config.d_in

    @property
    def d_out(self) -> int:
        """Width of what is written at a hook point."""
        return self.config.d_out

    @property
    def d_sae(self) -> int:
        """Number of features F (with layers: of each)."""
        return self.config.d_sae

    @property
    def n_features(self) -> int:
        """Features (of each layer) that this process holds: all d_sae, unless they are dealt to several."""
        return self.config.d_sae // self.feature_group.size

    @property
    def k(self) -> int | None:
        """Active features of a token that the gate lets through (BatchTopK: on average); None: the gate has no such number."""
        return self.config.top_k if self.activation.budgeted else None

    def __repr__(self) -> str:
        config = self.config
        gate = config.act_fn if self.k is None else f"{config.act_fn} k={self.k}"
        reads, writes = ", ".join(self.hooks_in), ", ".join(self.hooks_out)
        where = reads if reads == writes else f"{reads} -> {writes}"
        widths = f"d_in={self.d_in}" if self.d_in == self.d_out else f"d_in={self.d_in}, d_out={self.d_out}"
        first, units = next(self.parameters()), "raw" if config.folded else f"normalised ({config.norm_activation})"
        limits = ", ".join(f"{limit:.4g} at {hook}" for hook, limit in exclusion(config).limits.items())
        without = f", trained without massive tokens (norm above {limits})" if limits else ""
        return (
            f"{config.kind}('{config.name}', {widths}, features={list(self.feature_shape)}, {gate}, {where}, {units} "
            f"activations{without}, {str(first.dtype).removeprefix('torch.')}, {first.device})"
        )

    def feature_directions(self, hook_point: str | None = None) -> Tensor:
        """What each feature of activation 1 adds to the reconstruction at a written hook point.

        Args:
            hook_point: one of `hooks_out`; None: the only one.

        Returns: [F, d_out], with layers [L, F, d_out] (zero where a feature writes nothing there), in the units of the
            reconstruction: of a folded dictionary the model's own. Differentiable.

        Raises:
            DataError: no such hook point is written, or several are and none is named.
        """
        known = ", ".join(self.hooks_out)
        if hook_point is None and len(self.hooks_out) > 1:
            raise DataError(
                f"feature_directions: dictionary '{self.config.name}' writes several hook points; name one of {known}"
            )
        wanted = self.hooks_out[0] if hook_point is None else hook_point
        if wanted not in self.hooks_out:
            raise DataError(f"feature_directions: dictionary '{self.config.name}' does not write '{wanted}', it writes {known}")
        return self.written_rows(self.hooks_out.index(wanted))

    # The field's names: SAELens, Gemma Scope, Neuronpedia.

    @property
    def W_enc(self) -> Tensor:
        """Encoder weights [d_in, d_sae]; of a crosscoder [P, d_in, d_sae], of a cross-layer transcoder [L, d_in, d_sae]."""
        return self._tensor("W_enc", "W_E")

    @property
    def b_enc(self) -> Tensor:
        """Encoder bias [d_sae], with layers [L, d_sae]."""
        return self.encoder_bias()

    @property
    def W_dec(self) -> Tensor:
        """Decoder weights [d_sae, d_out]; of a crosscoder [P, d_sae, d_out].

        Raises:
            DataError: the decoder is no one tensor, as of a cross-layer transcoder; use `feature_directions`.
        """
        return self._tensor("W_dec", "W_D")

    @property
    def b_dec(self) -> Tensor:
        """Decoder bias [d_out] ([P, d_out] of several hook points); zeros where there is none."""
        bias = self._parameters.get("b_D")
        if bias is not None:
            return bias
        shape = (self.d_out,) if len(self.hooks_out) == 1 else (len(self.hooks_out), self.d_out)
        return next(self.parameters()).new_zeros(shape)

    def _tensor(self, alias: str, name: str) -> Tensor:
        found = self._parameters.get(name)
        if found is None:
            raise DataError(
                f"{alias}: dictionary '{self.config.name}' of kind {self.config.kind} has no such tensor; it has "
                f"{', '.join(name for name, _ in self.named_parameters())}, and `feature_directions(hook point)`"
            )
        return found

    def _check_input(self, x: Tensor) -> None:
        """Refuse activations of another width, or that are no numbers of the kind that a matrix product takes.

        Raises:
            DataError: what was given, and what is wanted.
        """
        self._check_width(x, self.hooks_in, self.d_in)

    def _check_written(self, target: Tensor) -> None:
        """The same of what it writes."""
        self._check_width(target, self.hooks_out, self.d_out)

    def _check_width(self, x: Tensor, hooks: Sequence[str], width: int) -> None:
        wanted = (width,) if len(hooks) == 1 else (len(hooks), width)
        if not isinstance(x, Tensor):
            raise DataError(f"dictionary '{self.config.name}': wanted activations as a tensor, got {shown(x)}")
        if x.is_floating_point() and x.shape[-len(wanted) :] == wanted:
            return
        got = f"shape {list(x.shape)}" if x.is_floating_point() else f"{str(x.dtype).removeprefix('torch.')} numbers"
        raise DataError(
            f"dictionary '{self.config.name}' ({self.config.kind}): wanted activations [..., {', '.join(map(str, wanted))}] of "
            f"{', '.join(hooks)}, got {got}; give what a language model has there"
        )

    @property
    def input_dims(self) -> int:
        """Dimensions of a token's input: [d_in] or [L, d_in]."""
        return 1 if len(self.hooks_in) == 1 else 2

    @property
    def max_context(self) -> int | None:
        """Most tokens of a context, of kinds that read other tokens; None: any number."""
        return self.config.max_context

    @property
    def is_batch_dependent(self) -> bool:
        """Whether a token's features depend on the rest of its batch (BatchTopK): not an inference form."""
        return self.activation.batch_dependent

    def gate_settings(
        self, mask: Tensor | None = None, gate: Gate = CONFIGURED, device: torch.device | None = None
    ) -> GateSettings:
        """What the activation function needs beside z, which is on this device (None: that of the weights)."""
        k = self.config.top_k if gate.top_k is None else gate.top_k
        window = self.config.jumprelu_threshold_window if gate.window is None else gate.window
        log_threshold = self.log_jumprelu_threshold if self.activation.has_threshold else None
        layered, of_token = len(self.feature_shape) > 1, self.config.k_layers > 1
        kernels = self.kernels(device or next(self.parameters()).device)
        return GateSettings(k, mask, log_threshold, window, layered, of_token, kernels, gate.reductions, self.feature_group)

    def kernels(self, device: torch.device) -> EntryKernels:
        """What works on entries there, in the dtype that autocast computes in, or that of the weights."""
        kind, config = device.type, self.config
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else next(self.parameters()).dtype
        return entry_kernels(kind, config.use_triton_kernel, config.sparsity_threshold_for_triton_spmm_kernel, dtype)

    def gating_scale(self, norms: Tensor) -> Tensor | None:
        """The s of z = h * s, at least 1e-12: n, gate_scale, their product, or None for 1."""
        if not self.config.sparsity_include_decoder_norm:
            return self.gate_scale
        return norms if self.gate_scale is None else norms * self.gate_scale

    def codes(self, x: Tensor, mask: Tensor | None = None, gate: Gate = CONFIGURED, padding: Tensor | None = None) -> Codes:
        """Encode a batch and keep every stage of it.

        Args:
            x: [..., d_in], normalised (raw if folded).
            mask: bool [...], True for a kept token; masked tokens never compete and their f is 0, but kinds that read other
                tokens read them, as the model does. None: all kept.
            gate: what is used in place of the configured gate (schedules of the training).
            padding: bool [...], True for a position that holds no token: masked, and read by none. None: there are none.

        Returns: h, z, f [..., F] and the decoder norms.

        Raises:
            DataError: activations of another width.
        """
        self._check_input(x)
        mask = kept_tokens(mask, padding)
        h, norms = self.pre_activations(x, padding), self.decoder_norms()
        scale = self.gating_scale(norms)
        z = h if scale is None else h * scale
        divisor = None if scale is None else scale.clamp_min(EPS_NORM)
        f = (gate.activation or self.activation).features(h, z, divisor, self.gate_settings(mask, gate))
        return Codes(h, z, f, norms)

    def step_codes(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        gate: Gate = CONFIGURED,
        padding: Tensor | None = None,
        *,
        decoded_only: bool = False,
    ) -> Codes:
        """`codes` up to rounding, for a training step: the active entries only, where that pays.

        Args:
            x, mask, gate, padding: as in `codes`.
            decoded_only: nothing is differentiated but the reconstruction of all features. Then a gate without budget works
                on its entries too, and thresholds get their gradient by way of `reconstructions`.
        """
        return step_codes(self, x, mask, gate, padding, decoded_only=decoded_only)

    def encode(self, x: Tensor, mask: Tensor | None = None, gate: Gate = CONFIGURED, padding: Tensor | None = None) -> Tensor:
        """Feature activations f [..., F] of x [..., d_in], differentiable; arguments and errors as in `codes`.

        Every token is encoded, also a massive one that the dictionary was trained without (`excluded`), whose features say
        nothing.
        """
        self._check_input(x)
        own = next(self.parameters()).dtype
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            got, wanted = (str(dtype).removeprefix("torch.") for dtype in (x.dtype, own))
            raise DataError(
                f"dictionary '{self.config.name}': its weights are {wanted}, got activations in {got}; give "
                f"x.to(torch.{wanted}), or load it with dtype='{got}'"
            )
        return self.codes(x, mask, gate, padding).f

    def excluded(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """Which tokens the dictionary was trained without because they are massive: their features say nothing.

        A token is, if its norm is above `activations.max_norm_factor` medians at any hook point that is read or written; the
        limits are in `config.norms`. Special tokens (beginning of text) are told by their ids, not here.

        Args:
            x: raw activations as a language model has them, [..., d_in], of several hook points [..., L, d_in]; raw also of a
                dictionary that is not folded.
            target: raw activations where it writes something else than it reads, [..., d_out]; None: only what it reads is
                looked at.

        Returns: bool [...], True for an excluded token; all False of a dictionary without the rule.

        Example:
            >>> features = sae.encode(x)[~sae.excluded(x)]

        Raises:
            DataError: activations of another width.
        """
        self._check_input(x)
        if target is not None:
            self._check_written(target)
        return excluded_tokens(self.config, x, target)

    def forward(self, x: Tensor, mask: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Reconstruction [..., d_out] of x [..., d_in]."""
        return self.reconstruct(self.encode(x, mask, padding=padding), x)

    def run(
        self, x: Tensor, mask: Tensor | None = None, gate: Gate = CONFIGURED, padding: Tensor | None = None
    ) -> tuple[Codes, Tensor]:
        """Encode and reconstruct as a training step does: codes() followed by reconstruct(), up to rounding.

        Returns: the codes and the reconstruction [..., d_out].
        """
        codes = self.step_codes(x, mask, gate, padding)
        return codes, self.reconstructions(codes, x)[-1]

    def thresholds(self) -> Tensor | None:
        """theta of each feature, of `feature_shape`, in gating units, differentiable; None without thresholds."""
        return self.log_jumprelu_threshold.exp() if self.activation.has_threshold else None

    def threshold_parameters(self) -> list[nn.Parameter]:
        """The parameters that take the threshold's learning rate and stay out of gradient clipping."""
        return [self.log_jumprelu_threshold] if self.activation.has_threshold else []

    def decode_dead(self, z: Tensor, h: Tensor, dead_mask: Tensor, k_aux: int) -> Tensor:
        """AuxK's reconstruction: the top min(k_aux, #dead) dead features per token (and layer), without decoder bias.

        Chosen by z before any ReLU and decoded with their unrectified h, so that negative ones get a gradient.

        Args:
            z, h: [..., F] as in Codes.
            dead_mask: bool of `feature_shape`, True for a dead feature.
            k_aux: most features per token.

        Returns: e_hat [..., d_out]; zero where no feature is dead; nan, without gradient, of tokens with a chosen h that is not
            finite. Source: Gao et al. 2024, appendix A.2.
        """
        with torch.no_grad():
            chosen = dead_mask
            if int(self.feature_group.sum([dead_mask.sum()])[0]) > k_aux:  # else there is nothing to rank
                chosen = self._largest(z.detach().masked_fill(~dead_mask, -torch.inf), k_aux) & dead_mask
            finite = h.isfinite()
            broken = self.feature_group.any((chosen & ~finite).flatten(h.ndim - len(self.feature_shape)).any(-1))
        e_hat = self._decoded(torch.where(chosen & finite, h, 0.0))  # an infinite h times a gradient of 0 is nan
        return torch.where(broken.reshape(*broken.shape, *(1,) * (e_hat.ndim - broken.ndim)), torch.nan, e_hat)

    def _largest(self, z: Tensor, k: int) -> Tensor:
        """Which are the k largest of each token (and layer) over all features, of equal ones the first: bool [..., F]."""
        group, n_features = self.feature_group, z.shape[-1]
        rows = z.reshape(-1, n_features)
        flat = self.kernels(z.device).largest(rows, min(k, n_features))
        if group.size > 1:
            own = flat.reshape(len(rows), -1)
            values, wanted = rows.reshape(-1)[flat].reshape(own.shape), min(k, n_features * group.size)
            flat = own[within_budget(values, lambda: own % n_features + group.rank * n_features, wanted, [group])]
        return torch.zeros(z.numel(), dtype=torch.bool, device=z.device).index_fill_(0, flat, True).reshape(z.shape)

    @torch.no_grad()
    def initialize_(self, seed: int, initialization: BaseInitialization | None = None) -> Self:
        """Draw the base initialisation in place; the same seed gives the same weights on every device."""
        initialization = initialization or BaseInitialization()
        largest = max(parameter.numel() for parameter in self.parameters())
        require_memory(Need("drawing the weights", largest * torch.float32.itemsize, self._stated_width()))
        for parameter in self.threshold_parameters():
            parameter.fill_(initialization.log_threshold)
        self._draw(seed, initialization)
        return self

    def save(self, path: str | Path) -> None:
        """Write config.json and weights.safetensors to the directory `path`, both or neither."""
        save_dictionary(self, path)

    def rebuilt(self, weights: Mapping[str, Tensor], **changes: Any) -> Self:
        """A dictionary of the same kind with these weights (state_dict names, copied) and changed config fields."""
        copy = type(self)(dataclasses.replace(self.config, **changes))
        copy.load_weights_(weights)
        return copy.to(next(iter(weights.values())).device)

    @torch.no_grad()
    def load_weights_(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights by name; a gate_scale appears or goes with them. Names and shapes must fit exactly."""
        self.gate_scale = weights["gate_scale"].clone() if "gate_scale" in weights else None
        dtype = next(iter(weights.values())).dtype
        self.to(dtype).load_state_dict(dict(weights), strict=True)

    def to_jumprelu(self, batches: Iterable[Any]) -> Self:
        """The JumpReLU form of a topk or batchtopk dictionary (SPEC 2.2).

        One threshold in gating units is set for all features (for those of each layer, where the layers do not compete),
        from batches that were not trained on: of the mean over batches of the smallest positive kept z and of the quantile
        of z that gives the dictionary's own L0 on these batches, the one whose L0 is nearer to it.

        Args:
            batches: inputs [..., d_in] as the dictionary takes them (normalised, or raw if folded), of the training
                batch size; or pairs (input, mask).

        Raises:
            ParamsError: the activation function is not of the topk family.
            NumericsError: no positive gating value was kept; the message has L0 before and after.
        """
        return self.calibrated(batches)[0]

    @torch.no_grad()
    def calibrated(self, batches: Iterable[Any]) -> tuple[Self, Calibration]:
        """`to_jumprelu` with the calibration's figures."""
        if not self.activation.budgeted:
            raise ParamsError(f"dictionary.act_fn: only the topk family becomes jumprelu, got '{self.config.act_fn}'")
        theta, calibration = inference_thresholds(self, batches)
        weights = dict(self.state_dict())
        theta = theta.to(next(iter(weights.values())).device)
        if self.gate_scale is not None:
            theta = theta / weights.pop("gate_scale").double()
        weights["log_jumprelu_threshold"] = theta.log().to(next(self.parameters()).dtype)
        return self.rebuilt(weights, act_fn="jumprelu"), calibration

    @torch.no_grad()
    def with_l0(self, batches: Iterable[Any], target_l0: float) -> tuple[Self, Calibration]:
        """The same dictionary with all thresholds (of a layer) times one factor, that which gives `target_l0` on these batches.

        Args:
            batches: as for `to_jumprelu`.
            target_l0: wanted mean number of active features a token (and layer).

        Returns: the dictionary, and the calibration, whose `threshold` is the factor.

        Raises:
            ParamsError: the dictionary has no thresholds.
            NumericsError: no feature is active.
        """
        if not self.activation.has_threshold:
            raise ParamsError(f"trainer.target_l0: act_fn '{self.config.act_fn}' has no thresholds to set it with")
        factors, calibration = threshold_factors(self, batches, target_l0)
        weights = dict(self.state_dict())
        t = weights["log_jumprelu_threshold"]
        weights["log_jumprelu_threshold"] = t + factors.log().to(t)
        return self.rebuilt(weights), calibration

    def rebuilt_as(self, dtype: torch.dtype) -> Self:
        """The same dictionary in another dtype."""
        weights = {name: tensor.to(dtype, copy=True) for name, tensor in self.state_dict().items()}
        return self.rebuilt(weights, dtype=str(dtype).removeprefix("torch."))

    def absorbed(self) -> Self:
        """The same function, options of the kind that are no scale written into the weights: what is folded first."""
        return self

    def release_(self) -> None:
        """Take weights of an `absorbed` dictionary, as they stand here, to this one's options: the same function again."""

    @torch.no_grad()
    def fold(self, norms: Any, *, feature_units: str = "raw") -> Self:
        """Inference weights that take raw activations and need no norms (SPEC 4): exact, or refused.

        Args:
            norms: {hook point: {mean_norm, mean_square, d}}, a bare number in place of the inner dict being mean_norm;
                a bare number alone is taken for every hook point.
            feature_units: `raw`: decoder rows get unit norm, an activation is the length of what its feature adds in
                the model's units; `normalized`: activations stay as trained, times the decoder norm.

        Returns: a folded dictionary; computed in float64, in float32 unless this one is in float64.

        Raises:
            ParamsError: folded already, token-wise or batch-wise norm, unknown units.
            DataError: a hook point without a norm.
        """
        return folded(self, norms, feature_units)  # type: ignore[return-value]


def _zeros(shape: Sequence[int], order: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros of this shape whose memory has the dimensions in this order, slowest first."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return torch.zeros([shape[dim] for dim in order], dtype=dtype).permute(back)


def in_memory_order(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """A copy whose memory has the dimensions in this order, slowest first."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return tensor.permute(*order).clone(memory_format=torch.contiguous_format).permute(back)
