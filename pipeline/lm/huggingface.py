"""The back end on plain transformers modules: forward hooks on the few modules that a run wants, and an early stop.

:data:`_AT` says of each site which module of a block is hooked, and how. ln*.hook_normalized is computed from the norm's
input:

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

from pipeline.lm.architectures import Architecture
from pipeline.lm.language_model import LanguageModel, Start
from pipeline.lm.mlp import BlockMLP
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
    weight: Tensor | None = getattr(norm, "weight", None)
    bias: Tensor | None = getattr(norm, "bias", None)
    if weight is not None and architecture.gain_offset:
        weight = weight + architecture.gain_offset
    return weight, bias


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _with_first(output: Any, value: Any) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


class HuggingFaceModel(LanguageModel):
    """A transformers model read and written through forward hooks.

    Args:
        source: where it came from.
        model: the loaded model, on its device, in evaluation mode.
        whole: whether it has all blocks and the unembedding.
    """

    backend = "huggingface"
    starts_midway = True

    def __init__(self, source: ModelSource, model: nn.Module, whole: bool = True) -> None:
        parameter = next(model.parameters())
        self._model = model
        self._architecture = source.declared
        self._blocks = self._architecture.block_list(model)
        super().__init__(source, parameter.device, parameter.dtype, len(self._blocks), whole)

    def _forward(self, token_ids: Tensor, run: Run, start: Start | None = None) -> Tensor:
        run.batch = token_ids.shape
        with self._skipped(start), self._hooks(run):
            return self._model(input_ids=token_ids, use_cache=False).logits

    @contextmanager
    def _skipped(self, start: Start | None) -> Iterator[None]:
        """In the block, the model's blocks before the start pass on what they are given, the last of them the residual."""
        skipped = [] if start is None else list(self._blocks)[: start.layer]
        try:
            for block, n_outputs in zip(skipped, self._n_outputs if skipped else (), strict=False):
                assert start is not None
                value = start.residual if block is skipped[-1] else None
                block.forward = _passing_on(value, n_outputs)
            yield
        finally:
            for block in skipped:
                block.__dict__.pop("forward", None)

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
        norm = part_of(self._model, self._architecture.final_norm)
        return read_unembedding(self._model, self._architecture, self.name, affine(norm, self._architecture)[0])

    @contextmanager
    def _hooks(self, run: Run) -> Iterator[None]:
        with ExitStack() as stack:
            for point in sorted(self._source.points.parse_all(run.wanted).values()):
                names = self._source.blocks[point.layer]
                at = _AT[point.site]
                path = at.module(names)
                assert path is not None
                hook = at.hook(run, point.name, names)
                stack.callback(hook(self._blocks[point.layer].get_submodule(path)).remove)
            yield


def _passing_on(value: Tensor | None, n_outputs: int) -> Callable[..., Any]:
    """A block's forward that gives `value`, or its own input, in the form of its output."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        out = given if value is None else value
        return (out, *[None] * (n_outputs - 1)) if n_outputs else out

    return forward


def _visited(run: Run, name: str, value: Tensor) -> Tensor:
    """What goes on after :meth:`Run.visit`, in the shape of `value`: a block may work on rows [b T, d]."""
    new = run.visit(name, run.by_context(value))
    assert isinstance(new, Tensor)
    return new.reshape(value.shape)


# What puts a hook on a module; the handle removes it.
_Registers = Callable[[nn.Module], Any]


def _at_input(run: Run, name: str, names: Architecture) -> _Registers:
    """The first thing that the module is given."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (_visited(run, name, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _visited(run, name, kwargs["hidden_states"])}

    return lambda module: module.register_forward_pre_hook(hook, with_kwargs=True)


def _at_output(run: Run, name: str, names: Architecture) -> _Registers:
    """The first thing that the module gives."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        value = _visited(run, name, _first(output))
        return _with_first(output, value.clone() if names.overwrites else value)

    return lambda module: module.register_forward_hook(hook)


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
        module: a block's names -> the path of the module inside the block ("": the block).
        hook: (run, the hook point's name, the block's names) -> what puts the hook on the module.
    """

    module: Callable[[Architecture], str | None]
    hook: Callable[[Run, str, Architecture], _Registers]


# Hooks of one module run in the order of this table, which is that of the sites.
_AT: Mapping[str, _At] = {
    "hook_resid_pre": _At(lambda block: "", _at_input),
    "ln1.hook_normalized": _At(lambda block: block.ln1, _at_normalized),
    "ln1.hook_out": _At(lambda block: block.ln1, _at_output),
    "attn.hook_out": _At(lambda block: block.attention_gives, _at_output),
    "ln1_post.hook_normalized": _At(lambda block: block.ln1_post, _at_normalized),
    "ln1_post.hook_out": _At(lambda block: block.ln1_post, _at_output),
    "hook_attn_out": _At(lambda block: block.adds_attention, _at_output),
    "ln2.hook_normalized": _At(lambda block: block.ln2, _at_normalized),
    "ln2.hook_out": _At(lambda block: block.ln2, _at_output),
    "mlp.hook_out": _At(lambda block: block.mlp_gives, _at_output),
    "ln2_post.hook_normalized": _At(lambda block: block.ln2_post, _at_normalized),
    "ln2_post.hook_out": _At(lambda block: block.ln2_post, _at_output),
    "hook_mlp_out": _At(lambda block: block.adds_mlp, _at_output),
    "hook_resid_post": _At(lambda block: "", _at_output),
}
