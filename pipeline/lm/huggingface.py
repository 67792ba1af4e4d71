"""The back end on plain transformers modules: forward hooks on the few modules that a run wants, and an early stop.

:data:`_AT` says of each site which module is hooked, and how. The norms' hook_normalized is computed from the norm's input:

    LayerNorm  (x - mean) / sqrt(var + eps)          RMSNorm  x / sqrt(mean(x^2) + eps)

in float32, given in the model's dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import DataError, nearest
from pipeline.lm.architectures import Architecture
from pipeline.lm.hook_points import HookPoint
from pipeline.lm.language_model import LanguageModel, Start
from pipeline.lm.mlp import BlockMLP
from pipeline.lm.placement import compute_dtype, main_device, weights_there
from pipeline.lm.projections import Cut, of_attention, of_mlp
from pipeline.lm.source import ModelSource
from pipeline.lm.splicing import Run
from pipeline.lm.unembedding import Unembedding, part_of, read_unembedding


def normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """What a norm computes before gain and bias, [..., d] -> [..., d]."""
    wide = x.float() if x.dtype != torch.float64 else x
    if isinstance(norm, nn.LayerNorm):
        return nn.functional.layer_norm(wide, (x.shape[-1],), None, None, norm.eps).to(x.dtype)
    eps: Any = getattr(norm, "variance_epsilon", None)
    if eps is None:
        eps = norm.eps
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def affine(norm: nn.Module | None, architecture: Architecture) -> tuple[Tensor | None, Tensor | None]:
    """Gain and bias [d] that a norm applies after normalising; None where it has none, or there is no norm."""
    with weights_there(norm):
        weight: Tensor | None = getattr(norm, "weight", None)
        bias: Tensor | None = getattr(norm, "bias", None)
    if weight is not None and architecture.gain_offset:
        weight = weight + architecture.gain_offset
    return weight, bias


class HuggingFaceModel(LanguageModel):
    """A transformers model read and written through forward hooks.

    Args:
        source: where it came from.
        model: the loaded model, on its device or devices, in evaluation mode.
        whole: whether it has all blocks and the unembedding.
    """

    backend = "huggingface"
    starts_midway = True
    keeps_cache = True

    def __init__(self, source: ModelSource, model: nn.Module, whole: bool = True) -> None:
        self._model = model
        self._architecture = source.declared
        self._blocks = self._architecture.block_list(model)
        super().__init__(source, main_device(model), compute_dtype(model), len(self._blocks), whole)

    def _forward(self, token_ids: Tensor, run: Run, start: Start | None = None) -> Tensor:
        run.batch, run.device = token_ids.shape, self.device
        with self._skipped(start), self._hooks(run):
            return self._model(input_ids=token_ids, use_cache=False).logits

    def _extend(self, token_ids: Tensor, run: Run, cache: Any) -> tuple[Tensor, Any]:
        run.batch, run.device = token_ids.shape, self.device
        with self._hooks(run):
            out = self._model(input_ids=token_ids, past_key_values=cache, use_cache=True)
        return out.logits, getattr(out, "past_key_values", None)

    @contextmanager
    def _skipped(self, start: Start | None) -> Iterator[None]:
        """In the block, the model's blocks before the start pass on what they are given, the last of them the residual."""
        skipped = [] if start is None else list(self._blocks)[: start.layer]
        before = [block.__dict__.get("forward") for block in skipped]  # accelerate's, in a block that a device map has placed
        try:
            for block, n_outputs in zip(skipped, self._n_outputs if skipped else (), strict=False):
                assert start is not None
                value = start.residual if block is skipped[-1] else None
                block.forward = _passing_on(value, n_outputs)
            yield
        finally:
            for block, forward in zip(skipped, before, strict=True):
                if forward is None:
                    block.__dict__.pop("forward", None)
                else:
                    block.forward = forward

    @functools.cached_property
    def _n_outputs(self) -> list[int]:
        """For each block 0 if it gives a tensor, else how many things it gives: seen in a run of one token."""
        found: list[int] = []

        def note(module: nn.Module, args: Any, output: Any) -> None:
            found.append(len(output) if isinstance(output, tuple) else 0)

        handles = [block.register_forward_hook(note) for block in self._blocks]
        try:
            self._model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _mlp(self, layer: int) -> BlockMLP:
        return BlockMLP(self._blocks[layer], self._source.blocks[layer])

    def _attention(self, layer: int) -> tuple[nn.Module, Any]:
        return self._blocks[layer].get_submodule(self._source.blocks[layer].attention), self._model.config

    def _affine(self, layer: int, norm: str) -> tuple[Tensor | None, Tensor | None]:
        names = self._source.blocks[layer]
        return affine(self._blocks[layer].get_submodule(getattr(names, norm)), names)

    def unembedding(self) -> Unembedding:
        self.check_whole()
        gain = affine(part_of(self._model, self._architecture.final_norm), self._architecture)[0]
        return read_unembedding(self._model, self._architecture, self.name, gain, self.device)

    @contextmanager
    def _hooks(self, run: Run) -> Iterator[None]:
        with ExitStack() as stack:
            for point in sorted(self._source.points.parse_all(run.wanted).values()):
                module, register = self._at(point, run)
                stack.callback(register(module).remove)
            yield

    def _at(self, point: HookPoint, run: Run) -> tuple[nn.Module, _Registers]:
        """The module of a hook point, and what puts the hook on it.

        Raises:
            DataError: there is no module of this path.
        """
        if point.path:
            hook = _at_input if point.side == "input" else _at_output
            return self._module(point), hook(run, point.name, self._architecture)
        at = _AT[point.site]
        in_block = 0 <= point.layer < len(self._blocks)
        names = self._source.blocks[point.layer] if in_block else self._architecture
        path, cut = at.module(names, self._model.config)
        register = at.hook(run, point.name, names) if cut is None else _at_part(run, point.name, cut)
        if path is None:
            whole: Any = self._model
            return whole.get_input_embeddings(), register
        return (self._blocks[point.layer] if in_block else self._model).get_submodule(path), register

    def _module(self, point: HookPoint) -> nn.Module:
        try:
            return self._model.get_submodule(point.path)
        except AttributeError:
            paths = [path for path, _ in self._model.named_modules() if path]
            near = nearest(point.path, paths)
            hint = f"did you mean 'module:{near}:{point.side}'?" if near else f"it begins with {', '.join(paths[:3])}, ..."
            unloaded = "" if self.whole else " (loaded in part)"
            raise DataError(f"hook point '{point.name}': {self.name}{unloaded} has no module '{point.path}'; {hint}") from None


def _passing_on(value: Tensor | None, n_outputs: int) -> Callable[..., Any]:
    """A block's forward that gives `value`, or its own input, in the form of its output."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        out = given if value is None else value
        return (out, *[None] * (n_outputs - 1)) if n_outputs else out

    return forward


# What puts a hook on a module; the handle removes it.
_Registers = Callable[[nn.Module], Any]


def _at_input(run: Run, name: str, names: Architecture) -> _Registers:
    """The first thing that the module is given."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        key, given = _given(args, kwargs)
        value = _visited(run, name, given)
        return ((value, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: value})

    return lambda module: module.register_forward_pre_hook(hook, with_kwargs=True)


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, Any]:
    """What a module is given first: (its keyword, or None; the value)."""
    if args:
        return None, args[0]
    return next(((key, value) for key, value in kwargs.items() if isinstance(value, Tensor)), ("nothing", None))


def _activation(name: str, value: Any) -> Tensor:
    """The activation [b, T, d] that `value` is.

    Raises:
        DataError: it is another thing.
    """
    if not isinstance(value, Tensor) or value.ndim != 3 or not value.is_floating_point():
        got = f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise DataError(f"hook point '{name}': wanted an activation [batch, token, width], got {got}; name another module")
    return value


def _visited(run: Run, name: str, value: Any) -> Tensor:
    """What goes on after :meth:`Run.visit`, in the shape of `value`: a block may work on rows [b T, d]."""
    new = run.visit(name, _activation(name, run.by_context(value)))
    assert isinstance(new, Tensor)
    return new.reshape(value.shape)


def _at_output(run: Run, name: str, names: Architecture) -> _Registers:
    """The first thing that the module gives."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) and output else output
        value = _visited(run, name, first)
        value = value.clone() if names.overwrites else value
        return (value, *output[1:]) if isinstance(output, tuple) else value

    return lambda module: module.register_forward_hook(hook)


def _at_part(run: Run, name: str, cut: Cut) -> _Registers:
    """A part of what a projection gives."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        part = cut.take(output)
        new = run.visit(name, part)
        assert isinstance(new, Tensor)
        return output if new is part else cut.put(output, new)

    return lambda module: module.register_forward_hook(hook)


def _at_middle(run: Run, name: str, names: Architecture) -> _Registers:
    """The residual stream that the module reads, and that is added to what comes of it: another one is put in its place."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        visit_in_place(run, name, _activation(name, run.by_context(_given(args, kwargs)[1])))

    return lambda module: module.register_forward_pre_hook(hook, with_kwargs=True)


def visit_in_place(run: Run, name: str, value: Tensor) -> None:
    """:meth:`Run.visit` of a tensor that is read again later: what is replaced in it is written into it."""
    if name in run.replace:
        new = run.visit(name, value.clone())
        assert isinstance(new, Tensor)
        value.copy_(new)
    else:
        run.visit(name, value)


def _at_normalized(run: Run, name: str, names: Architecture) -> _Registers:
    """What a norm computes before gain and bias."""

    def hook(norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        gain, _ = affine(norm, names)
        x = run.by_context(args[0])
        return run.visit_normalized(name, lambda: normalized(norm, x), run.by_context(output), gain).reshape(output.shape)

    return lambda module: module.register_forward_hook(hook)


class _At(NamedTuple):
    """How a site is hooked.

    Attributes:
        module: (names, the model's configuration) -> the path of the module inside the block ("": the block; None, before
            the blocks: the input embeddings), and the part of what it gives, if it gives more.
        hook: (run, the hook point's name, names) -> what puts the hook on the module, unless it is a part.
    """

    module: Callable[[Architecture, Any], tuple[str | None, Cut | None]]
    hook: Callable[[Run, str, Architecture], _Registers]


def _whole(path: Callable[[Architecture], str | None]) -> Callable[[Architecture, Any], tuple[str | None, Cut | None]]:
    return lambda names, config: (path(names), None)


# Hooks of one module run in the order of this table, which is that of the sites.
_AT: Mapping[str, _At] = {
    "hook_embed": _At(_whole(lambda names: names.embedding), _at_output),
    "hook_resid_pre": _At(_whole(lambda block: ""), _at_input),
    "ln1.hook_normalized": _At(_whole(lambda block: block.ln1), _at_normalized),
    "ln1.hook_out": _At(_whole(lambda block: block.ln1), _at_output),
    "attn.hook_q": _At(of_attention(0), _at_output),
    "attn.hook_k": _At(of_attention(1), _at_output),
    "attn.hook_v": _At(of_attention(2), _at_output),
    "attn.hook_z": _At(_whole(lambda block: block.attention_out), _at_input),
    "attn.hook_out": _At(_whole(lambda block: block.attention_gives), _at_output),
    "ln1_post.hook_normalized": _At(_whole(lambda block: block.ln1_post), _at_normalized),
    "ln1_post.hook_out": _At(_whole(lambda block: block.ln1_post), _at_output),
    "hook_attn_out": _At(_whole(lambda block: block.adds_attention), _at_output),
    "hook_resid_mid": _At(_whole(lambda block: block.reads_middle), _at_middle),
    "ln2.hook_normalized": _At(_whole(lambda block: block.ln2), _at_normalized),
    "ln2.hook_out": _At(_whole(lambda block: block.ln2), _at_output),
    "mlp.hook_in": _At(_whole(lambda block: block.mlp_reads), _at_input),
    "mlp.hook_pre": _At(of_mlp(0), _at_output),
    "mlp.hook_pre_linear": _At(of_mlp(1), _at_output),
    "mlp.hook_post": _At(_whole(lambda block: block.mlp_out), _at_input),
    "mlp.hook_out": _At(_whole(lambda block: block.mlp_gives), _at_output),
    "ln2_post.hook_normalized": _At(_whole(lambda block: block.ln2_post), _at_normalized),
    "ln2_post.hook_out": _At(_whole(lambda block: block.ln2_post), _at_output),
    "hook_mlp_out": _At(_whole(lambda block: block.adds_mlp), _at_output),
    "hook_resid_post": _At(_whole(lambda block: ""), _at_output),
    "ln_final.hook_normalized": _At(_whole(lambda names: names.final_norm), _at_normalized),
    "ln_final.hook_out": _At(_whole(lambda names: names.final_norm), _at_output),
}
