"""The interface of a language model: activations at hook points, logits, loss, with or without splicing.

    model = load_language_model("demo")
    model.loss("Once upon a time").mean()                                         # a text, or token ids
    acts = model.activations(token_ids, ["blocks.2.hook_resid_post"])            # stops after block 2
    loss = model.loss(token_ids, replace={"blocks.2.hook_mlp_out": lambda captured, original: 0.5 * original})

Two back ends implement it, :mod:`pipeline.lm.huggingface` and :mod:`pipeline.lm.transformer_lens`; they agree to 2e-6
relative in float32. Nothing here knows dictionaries. Runs have no gradients, unless `logits` or `run` is asked for them.
Whatever takes token ids takes a text as well: it is what `to_tokens` makes of it.
"""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.arguments import A_TEXT, checked, number, shown, whole
from pipeline.errors import DataError, NumericsError
from pipeline.lm.attention import AttentionWeights, attention_weights
from pipeline.lm.mlp import BlockMLP
from pipeline.lm.not_finite import NotFinite, advice, first_not_finite
from pipeline.lm.source import ModelSource
from pipeline.lm.splicing import Replacement, Replacements, Run, StopRun, token_loss
from pipeline.lm.text_input import Tokens, as_token_ids, bos_token
from pipeline.lm.token_texts import TokenTexts
from pipeline.lm.unembedding import Unembedding
from pipeline.seeding import generator


@dataclass(frozen=True)
class Trace:
    """One run, every hook point kept.

    Attributes:
        tokens: text of each token, [b][T].
        activations: {hook point: [b, T, d]} in the order of the run.
        logits: [b, T, V].
        loss: float32 [b, T - 1], cross entropy of token t + 1 in nats.
    """

    tokens: list[list[str]]
    activations: dict[str, Tensor]
    logits: Tensor
    loss: Tensor


@dataclass(frozen=True, repr=False)
class Output:
    """What one run has computed.

    Attributes:
        tokens: int64 [b, T].
        logits: [b, T, V], in the model's dtype.
        activations: {hook point: [b, T, d]} of those that were asked for, after replacement.
    """

    tokens: Tensor
    logits: Tensor
    activations: dict[str, Tensor]

    @functools.cached_property
    def loss(self) -> Tensor:
        """Cross entropy of every next token, in nats, float32 (float64 of a model in float64) [b, T - 1]."""
        return token_loss(self.logits, self.tokens)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(tokens {list(self.tokens.shape)}, logits {list(self.logits.shape)}, "
            f"{self._loss_in_words()}, {len(self.activations)} hook points)"
        )

    def _loss_in_words(self) -> str:
        if self.loss.numel() == 0:
            return "no loss: nothing is predicted"
        return f"loss {float(self.loss.detach().mean()):.4f} nats a token"


@dataclass(frozen=True)
class Start:
    """Where a run may begin: with what a run of the same tokens has computed already.

    Attributes:
        layer: the first block to run; 0 to n_layers.
        residual: [b, T, d], its input.
        known: {hook point of that run: [b, T, d]}, unreplaced, at or after the start.
    """

    layer: int
    residual: Tensor
    known: Mapping[str, Tensor] = field(default_factory=dict)


class LayerMLP(nn.Module):
    """The MLP of one layer as a function of the activation at one hook point.

    Args:
        mlp: the model's own.
        gain, bias: [d], what the norm does after `hook_normalized`; None if the input is already what the MLP reads.
        at: the model's device and dtype, for weights that are kept elsewhere or are quantised.
    """

    def __init__(
        self, mlp: BlockMLP, at: tuple[torch.device, torch.dtype], gain: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self._mlp, self._at, self._gain, self._bias = mlp, at, gain, bias

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> what the MLP adds to the residual stream, [..., d], in the dtype of `x`."""
        parameter = next(self._mlp.parameters())
        device = self._at[0] if parameter.is_meta else parameter.device
        hidden = x.to(device=device, dtype=parameter.dtype if parameter.is_floating_point() else self._at[1])
        if self._gain is not None:
            hidden = hidden * self._gain.to(device)
        if self._bias is not None:
            hidden = hidden + self._bias.to(device)
        out = self._mlp.forward(hidden.reshape(1, -1, hidden.shape[-1])).reshape(hidden.shape)
        return out.to(device=x.device, dtype=x.dtype)


class LanguageModel(abc.ABC):
    """A causal language model with hook points named as in TransformerLens.

    Attributes:
        backend: "huggingface" or "transformer_lens".
        device, dtype: where and in what its weights are; of a model on several devices the one that tokens go to and
            activations come back to.
        n_loaded: blocks that it has: all, or those that the wanted hook points need.
        whole: whether it has all blocks and the unembedding, so that there are logits.
    """

    backend: str
    starts_midway = False  # whether _forward can begin at a block
    keeps_cache = False  # whether _extend can go on from the keys and values of the tokens before

    def __init__(
        self, source: ModelSource, device: torch.device, dtype: torch.dtype, n_loaded: int, whole: bool = True
    ) -> None:
        self._source = source
        self.device = device
        self.dtype = dtype
        self.n_loaded = n_loaded
        self.whole = whole

    def __repr__(self) -> str:
        layers = f"layers={self.n_layers}" if self.whole else f"layers={self.n_layers} (the first {self.n_loaded} loaded)"
        context = "context length not stated" if self.max_context is None else f"context length={self.max_context}"
        return (
            f"LanguageModel('{self.name}', {self.backend}, {layers}, d_model={self.d_model}, vocabulary={self.vocab_size}, "
            f"{context}, {str(self.dtype).removeprefix('torch.')}, {self.device})"
        )

    # What it is.

    @property
    def name(self) -> str:
        """The name that it was loaded by."""
        return self._source.name

    @property
    def revision(self) -> str | None:
        """Commit of a hub model; None for a local one."""
        return self._source.revision

    @property
    def tokenizer_name(self) -> str | None:
        """Where its tokenizer is said to be (model.tokenizer_name); None: beside the model."""
        return self._source.tokenizer_name

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of configuration and weights, wherever the files lie; the same for both back ends and every dtype."""
        return self._source.digest()

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self._source.d_model

    @property
    def n_layers(self) -> int:
        """Number of the model's blocks, loaded or not."""
        return self._source.n_layers

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self._source.vocab_size

    @property
    def max_context(self) -> int | None:
        """Most tokens in one context, or None if the configuration does not say."""
        return self._source.max_context

    def hook_points(self) -> list[str]:
        """Names of all hook points, in the order of a run."""
        return self._source.hook_points()

    def hook_width(self, hook_point: str) -> int:
        """Width of the activation at a hook point.

        Raises:
            DataError: no such hook point.
        """
        return self._source.hook_width(hook_point)

    def first_block(self, hook_point: str) -> int:
        """The block before which a run may begin that differs from another one at this hook point alone.

        0 where it is not known to be later, the last block for what comes after it.

        Raises:
            DataError: no such hook point.
        """
        return max(0, min(self._source.points.parse(hook_point).earliest, self.n_layers - 1))

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded when first asked for."""
        return self._source.load_tokenizer()

    @functools.cached_property
    def token_text(self) -> TokenTexts:
        """token id -> its text, spaces included."""
        return TokenTexts(self.tokenizer)

    @property
    def bos_token_id(self) -> int | None:
        """The tokenizer's beginning-of-text token."""
        return self.tokenizer.bos_token_id

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's end-of-text token."""
        return self.tokenizer.eos_token_id

    @property
    def pad_token_id(self) -> int | None:
        """The tokenizer's padding token."""
        return self.tokenizer.pad_token_id

    def bos_token(self, prepend_bos: bool | str = "auto") -> int | None:
        """The token that a context starts with; `auto`: if the tokenizer puts it before a text by itself. None: none.

        Raises:
            DataError: it is asked for, and the tokenizer has none.
        """
        return bos_token(self.tokenizer, prepend_bos, self.name)

    def to_tokens(self, text: Tokens, prepend_bos: bool | str = "auto") -> Tensor:
        """Token ids int64 [b, T], on the model's device.

        Args:
            text: a text; texts that have equally many tokens; ids of one context; or an integer tensor [T] or [b, T], which
                is taken as it is.
            prepend_bos: whether a text starts with the beginning-of-text token; "auto": if the tokenizer puts it there by
                itself.

        Raises:
            DataError: a text without a token, texts of unequal length, or ids that the model does not have.
        """
        return self._check_tokens(text, prepend_bos)

    def to_str_tokens(self, text: Tokens, prepend_bos: bool | str = "auto") -> list[str]:
        """The text of each token of one context, spaces included; arguments and errors as :meth:`to_tokens`.

        Raises:
            DataError: several contexts.
        """
        ids = self._check_tokens(text, prepend_bos)
        if len(ids) != 1:
            raise DataError(f"to_str_tokens: wanted one context, got {len(ids)}; give them one at a time")
        return self._token_texts(ids)[0]

    @checked(text=A_TEXT)
    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token, such as " cat".

        Raises:
            DataError: it is none, or several.
        """
        ids = self.to_tokens(text, prepend_bos=False)[0].tolist()
        if len(ids) != 1:
            parts = ", ".join(repr(self.token_text(i)) for i in ids)
            raise DataError(f"{text!r}: wanted a text of one token, got {len(ids)}: {parts}; mind the space before a word")
        return int(ids[0])

    # What a back end does.

    @abc.abstractmethod
    def _forward(self, token_ids: Tensor, run: Run, start: Start | None = None) -> Tensor:
        """Run on int64 [b, T] on the model's device, visiting `run` at its wanted hook points; the logits [b, T, V].

        A start is given where `starts_midway`: blocks before it are not run.
        """

    def _extend(self, token_ids: Tensor, run: Run, cache: Any) -> tuple[Tensor, Any]:
        """As _forward, behind the tokens that `cache` has seen (None: none): the new tokens' logits, and the cache with them.

        Called where `keeps_cache`. A model whose family keeps none gives None.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def _mlp(self, layer: int) -> BlockMLP:
        """The MLP of a layer: what it reads -> `hook_mlp_out`."""

    @abc.abstractmethod
    def _attention(self, layer: int) -> tuple[nn.Module, Any]:
        """The attention module of a layer, and the model's configuration."""

    @abc.abstractmethod
    def _affine(self, layer: int, norm: str) -> tuple[Tensor | None, Tensor | None]:
        """Gain and bias [d] of a layer's norm, "ln1" or another that its block has; None where it has none."""

    @abc.abstractmethod
    def unembedding(self) -> Unembedding:
        """Final norm and unembedding, for what directions of the residual stream add to the logits."""

    @torch.no_grad()
    def activations(self, token_ids: Tokens, hook_points: Sequence[str]) -> dict[str, Tensor]:
        """Activations at `hook_points`; the model stops after the last of them.

        Every position attends to all before it: padding, if any, belongs on the right, and which positions count is the
        caller's business.

        Args:
            token_ids: integer [b, T], or a text.
            hook_points: names, any order.

        Returns:
            {hook point: [b, T, d]} in the given order, the model's dtype and device.

        Raises:
            DataError: no such hook point, or token ids that the model does not have.
        """
        self._check_hook_points(hook_points)
        ids = self._check_tokens(token_ids)
        if not hook_points:
            return {}
        run = Run(capture=frozenset(hook_points), stop=True)
        with contextlib.suppress(StopRun):
            self._forward(ids, run)
        absent = [name for name in hook_points if name not in run.captured]
        if absent:
            raise DataError(f"hook point '{absent[0]}': its module does not run in a forward pass of {self.name}; name another")
        return {name: run.captured[name] for name in hook_points}

    @torch.no_grad()
    def first_not_finite(self, token_ids: Tensor, replace: Replacements | None = None) -> NotFinite | None:
        """Where a run of these tokens first gives a value that is not finite; None: it gives none.

        Args:
            token_ids: integer [b, T]; every hook point is kept, so they should be few.
            replace: as :meth:`logits`; the functions see every hook point before.

        Raises:
            DataError: token ids that the model does not have.
        """
        ids = self._check_tokens(token_ids)
        points = self._source.points.parse_all(self.hook_points())
        names = [name for name, point in points.items() if self.whole or point.layer < self.n_loaded]
        run = Run(capture=frozenset(names), replace=self._replacements(replace, ids), stop=not self.whole)
        logits = None
        with contextlib.suppress(StopRun):
            logits = self._forward(ids, run)
        return first_not_finite(
            {name: run.captured[name] for name in names if name in run.captured}, self.dtype, logits if self.whole else None
        )

    def run(
        self,
        text: Tokens,
        *,
        replace: Replacements | None = None,
        hook_points: Iterable[str] = (),
        capture: Iterable[str] | None = (),
        gradient: bool = False,
        prepend_bos: bool | str = "auto",
    ) -> Output:
        """One run: logits, loss and the activations at some hook points.

        Args:
            text: a text, texts of equally many tokens, or token ids [b, T].
            replace: {hook point: function(captured, original) -> tensor like original}, or what makes it, see :meth:`logits`.
            hook_points: whose activations are kept, after replacement.
            capture: which hook points the functions find in `captured` beside those; None: all up to the last replaced one.
            gradient: everything is differentiable in what the functions return; the model's own weights are frozen.
            prepend_bos: see :meth:`to_tokens`.

        Example:
            >>> out = model.run("Once upon a time", hook_points=["blocks.0.hook_resid_post"])
            >>> out.loss.mean(), out.activations["blocks.0.hook_resid_post"].shape

        Raises:
            DataError: no such hook point, token ids that the model does not have, or the model is not whole.
            ValueError: a replacement of another shape.
        """
        self.check_whole()
        ids, kept = self._check_tokens(text, prepend_bos), list(hook_points)
        run = self._splicing_run(self._replacements(replace, ids), capture)
        self._check_hook_points(kept)
        run = Run(capture=run.capture | frozenset(kept), replace=run.replace)
        with torch.set_grad_enabled(gradient):
            logits = self._forward(ids, run)
            absent = [name for name in kept if name not in run.captured]
            if absent:
                raise DataError(
                    f"hook point '{absent[0]}': its module does not run in a forward pass of {self.name}; name another"
                )
            return Output(ids, logits, {name: run.captured[name] for name in kept})

    @checked(n_tokens=whole(0), temperature=number(0))
    @torch.no_grad()
    def generate(
        self,
        text: Tokens,
        n_tokens: int,
        *,
        replace: Replacements | None = None,
        capture: Iterable[str] | None = (),
        temperature: float = 0.0,
        seed: int = 0,
        cached: bool = True,
        prepend_bos: bool | str = "auto",
    ) -> list[int]:
        """The tokens that the model writes after one context, up to the end of the text.

        Args:
            text: a text, or token ids of one context.
            n_tokens: at most so many.
            replace: activations to replace, see :meth:`logits`.
            capture: which hook points the functions find in `captured`; None: all up to the last replaced one.
            temperature: 0: always the likeliest token; else logits are divided by it and a token is drawn.
            seed: of the draws.
            cached: keys and values of the tokens before are kept, so that a step runs one token. The functions of `replace`
                then get the new tokens alone: false where they look at several. Beyond the model's longest context, behind a
                back end without such a cache, and where `replace` is made of the tokens (`pipeline.api.spliced`), each step
                runs all tokens whatever is asked for.
            prepend_bos: see :meth:`to_tokens`.

        Returns: ids of the new tokens, without the end-of-text token.

        Raises:
            DataError: as :meth:`logits`; or several contexts.
        """
        ids = self._check_tokens(text, prepend_bos)
        if len(ids) != 1:
            raise DataError(f"generate: wanted one context, got {len(ids)}; give them one at a time")
        self.check_whole()
        context, written = ids[0].tolist(), list[int]()
        draw = generator(seed, "analysis", "continuation")
        longest = self.max_context or len(context) + n_tokens
        cached, cache, n_known = cached and self.keeps_cache and not callable(replace), None, 0
        for _ in range(n_tokens):
            if cached and len(context) <= longest:
                new = self._check_tokens(context[n_known:])
                logits, cache = self._extend(new, self._splicing_run(self._replacements(replace, new), capture), cache)
                n_known, cached = len(context), cache is not None
            else:
                logits = self.logits(context[-longest:], replace, capture=capture)
            last = logits[0, -1].float().cpu()
            if not bool(last.isfinite().all()):
                first = self.first_not_finite(torch.tensor([context[-longest:]]), replace)
                where = "its logits are not finite" if first is None else f"not finite, {first.place}"
                what = f"model '{self.name}', token {len(written)} of a continuation"
                raise NumericsError(f"{what}: {where}: {advice(self.dtype)}")
            if temperature > 0:
                token = int(torch.multinomial(torch.softmax(last / temperature, -1), 1, generator=draw))
            else:
                token = int(last.argmax())
            if token == self.eos_token_id:
                break
            written.append(token)
            context.append(token)
        return written

    def logits(
        self,
        token_ids: Tokens,
        replace: Replacements | None = None,
        *,
        capture: Iterable[str] | None = None,
        start: Start | None = None,
        gradient: bool = False,
    ) -> Tensor:
        """Logits of the run, with activations replaced.

        Args:
            token_ids: integer [b, T], or a text.
            replace: {hook point: function(captured, original) -> tensor like original}. `captured` maps the hook points
                that occurred so far in this run to their values [b, T, d] after replacement. Or what gives such functions
                for the tokens of a run, called with the model and token ids int64 [b, T]: `pipeline.api.spliced`.
            capture: which hook points `captured` keeps; None: all up to the last replaced one. Naming those that the
                functions read saves memory with large models.
            start: what is known of the run before the first replacement, which is then not computed again; None: nothing.
            gradient: the logits are differentiable in what the functions return; the model's own weights are frozen.

        Returns:
            [b, T, V] in the model's dtype.

        Raises:
            DataError: no such hook point, token ids that the model does not have, or the model is not whole.
            ValueError: a replacement of another shape.
        """
        self.check_whole()
        ids = self._check_tokens(token_ids)
        run = self._splicing_run(self._replacements(replace, ids), capture)
        with torch.set_grad_enabled(gradient):
            points = self._source.points.parse_all(run.wanted).values()
            if start is None or not self.starts_midway or any(point.earliest < start.layer for point in points):
                return self._forward(ids, run)
            return self._forward(ids, run, self._after_replaced_block(run, start))

    def _after_replaced_block(self, run: Run, start: Start) -> Start:
        """A later start where the one thing replaced is the known output of a block: that block is not needed."""
        (name, *others) = run.replace or ("",)
        if others or not name.endswith(".hook_resid_post") or name not in start.known:
            return start
        value = run.visit(name, start.known[name])
        assert isinstance(value, Tensor)
        run.wanted = frozenset()
        return Start(self._source.points.parse(name).layer + 1, value)

    def loss(
        self,
        token_ids: Tokens,
        replace: Replacements | None = None,
        *,
        capture: Iterable[str] | None = None,
    ) -> Tensor:
        """Cross entropy of every next token in nats, float32 [b, T - 1] (float64 of a model in float64).

        Arguments and errors as :meth:`logits`.

        Example:
            >>> model.loss("Once upon a time").mean()
            >>> model.loss("Once upon a time", replace={"blocks.0.hook_resid_post": lambda captured, x: 0.5 * x}).mean()
            >>> model.loss("Once upon a time", replace=spliced(sae)).mean()  # a dictionary: pipeline.api.spliced
        """
        ids = self._check_tokens(token_ids)
        return token_loss(self.logits(ids, replace, capture=capture), ids)

    @torch.no_grad()
    def trace(self, token_ids: Tokens) -> Trace:
        """One run with the text of its tokens, every hook point, logits and loss.

        Args:
            token_ids: integer [b, T], or a text.

        Raises:
            DataError: token ids that the model does not have, or the model is not whole.
        """
        self.check_whole()
        ids = self._check_tokens(token_ids)
        run = Run(capture=frozenset(self.hook_points()))
        logits = self._forward(ids, run)
        activations = {name: run.captured[name] for name in self.hook_points()}
        return Trace(self._token_texts(ids), activations, logits, token_loss(logits, ids))

    def layer_mlp(self, layer: int, hook_point_in: str | None = None) -> LayerMLP:
        """The MLP of one layer as a function of the activation at the hook point that a transcoder reads.

        Args:
            layer: block, from 0.
            hook_point_in: what the MLP reads, `blocks.{layer}.ln2.hook_out` in most families (the default), or
                `blocks.{layer}.ln2.hook_normalized`, after which the norm's gain and bias are applied.

        Raises:
            DataError: no such layer, or a hook point that the MLP is no function of.
        """
        self._check_layer(layer)
        accepted = self._source.mlp_reads(layer)
        if hook_point_in is None or accepted.get(hook_point_in, "") is None:
            return LayerMLP(self._mlp(layer), (self.device, self.dtype))
        norm = accepted.get(hook_point_in)
        if norm is None:
            raise DataError(
                f"the MLP of layer {layer} is no function of the activation at '{hook_point_in}'; "
                f"hook points that it can be computed from: {', '.join(accepted)}"
            )
        return LayerMLP(self._mlp(layer), (self.device, self.dtype), *self._affine(layer, norm))

    def layer_attention(self, layer: int, hook_point_in: str, hook_point_out: str | None = None) -> AttentionWeights:
        """The attention of one layer as a function of one activation.

        Args:
            layer: block, from 0.
            hook_point_in: `blocks.{layer}.ln1.hook_out` or `blocks.{layer}.ln1.hook_normalized`.
            hook_point_out: what it gives: `blocks.{layer}.hook_attn_out` (None), or, in families that norm that before it is
                added, `blocks.{layer}.attn.hook_out`.

        Raises:
            DataError: no such layer, a hook point that it is no function of, or a form that cannot be read.
        """
        self._check_layer(layer)
        block = self._source.blocks[layer]
        own = hook_point_out == f"blocks.{layer}.attn.hook_out"
        weights = attention_weights(*self._attention(layer), block, self.name, own)
        if hook_point_in == f"blocks.{layer}.ln1.hook_out":
            return weights
        if hook_point_in != f"blocks.{layer}.ln1.hook_normalized" or block.ln1 is None:
            reads = f"blocks.{layer}.ln1.hook_out or blocks.{layer}.ln1.hook_normalized"
            raise DataError(
                f"the attention of layer {layer} is no function of the activation at '{hook_point_in}'; read {reads}"
            )
        return weights.from_normalized(*self._affine(layer, "ln1"))

    def _check_hook_points(self, names: Iterable[str]) -> None:
        for point in self._source.points.parse_all(names).values():
            if point.layer >= 0:
                self._check_layer(min(point.layer, self.n_layers - 1))

    def _check_layer(self, layer: int) -> None:
        if whole()(layer):
            raise DataError(f"layer: wanted a whole number from 0 to {self.n_layers - 1}, got {shown(layer)}")
        if not 0 <= layer < self.n_layers:
            raise DataError(f"layer {layer} does not exist: {self.name} has layers 0 to {self.n_layers - 1}")
        if layer >= self.n_loaded:
            raise DataError(
                f"layer {layer} of {self.name} was not loaded, only layers 0 to {self.n_loaded - 1}; name its hook points when "
                "you load the model, or none for all of it"
            )

    def check_whole(self) -> None:
        """Refuse a model that has no logits.

        Raises:
            DataError: it was loaded for hook points alone.
        """
        if not self.whole:
            raise DataError(f"{self.name} was loaded for hook points alone and has no logits; load it without naming them")

    def _replacements(self, replace: Replacements | None, ids: Tensor) -> Mapping[str, Replacement]:
        """{hook point: replacement} of a run of these tokens."""
        if isinstance(replace, nn.Module) or not (replace is None or callable(replace) or isinstance(replace, Mapping)):
            raise DataError(f"replace: wanted {{hook point: function}}, or spliced(dictionary), got {shown(replace)}")
        found = replace(self, ids) if callable(replace) else replace or {}
        wrong = [hook for hook, function in found.items() if not callable(function)]
        if wrong:
            wanted = "a function (captured, original) -> tensor like original"
            raise DataError(f"replace: {wrong[0]}: wanted {wanted}, got {shown(found[wrong[0]])}")
        return found

    def _splicing_run(self, replace: Mapping[str, Replacement], capture: Iterable[str] | None) -> Run:
        self._check_hook_points(replace)
        if not replace:
            return Run()
        if capture is None:
            capture = self._source.points.up_to(list(replace))
        self._check_hook_points(capture)
        return Run(capture=frozenset(capture), replace=replace)

    def _check_tokens(self, token_ids: Tokens, prepend_bos: bool | str = "auto") -> Tensor:
        """`token_ids`, or those of a text, as int64 on the model's device.

        The range is checked where that costs no synchronisation.
        """
        if isinstance(token_ids, (bytes, Mapping)) or not isinstance(token_ids, Iterable):
            raise DataError(f"wanted a text, texts, token ids or a tensor of them, got {shown(token_ids)}")
        if not isinstance(token_ids, Tensor) or token_ids.ndim == 1:
            tokenizer = self.tokenizer if _has_text(token_ids) else None
            token_ids = as_token_ids(token_ids, tokenizer, prepend_bos, self.name)
        if token_ids.ndim != 2 or token_ids.is_floating_point() or token_ids.is_complex():
            raise DataError(f"token ids should be integers [b, T], got {token_ids.dtype} of shape {tuple(token_ids.shape)}")
        if self.max_context is not None and token_ids.shape[1] > self.max_context:
            raise DataError(
                f"contexts of {token_ids.shape[1]} tokens are longer than the {self.max_context} positions of "
                f"{self.name}; set activations.context_size to at most {self.max_context}"
            )
        if token_ids.device.type == "cpu" and token_ids.numel():
            low, high = int(token_ids.min()), int(token_ids.max())
            if low < 0 or high >= self.vocab_size:
                raise DataError(
                    f"token id {low if low < 0 else high} is outside the vocabulary of {self.name} (0 to "
                    f"{self.vocab_size - 1}); the tokens were made with another tokenizer: run tokenize for this model"
                )
        return token_ids.to(device=self.device, dtype=torch.int64)

    def _token_texts(self, ids: Tensor) -> list[list[str]]:
        texts = {i: self.token_text(i) for i in sorted({int(i) for i in ids.flatten().tolist()})}
        return [[texts[i] for i in row] for row in ids.tolist()]


def _has_text(given: Tokens) -> bool:
    return isinstance(given, str) or (not isinstance(given, Tensor) and any(isinstance(item, str) for item in given))
