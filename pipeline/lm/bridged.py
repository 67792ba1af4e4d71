"""Families without a declaration here, through TransformerLens: its adapter of the family, and its own names of hook points.

Which hook points there are, how wide they are and in which order they occur is seen in a run of the bridge without values
(shapes alone). Those are hook points whose activation is one of every token, [batch, token, width], or [batch, token, heads,
width], which is given with the heads beside each other. The model is loaded whole, and run once before and once behind the
bridge, so that a bridge that computes another model is refused.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.errors import DataError, nearest
from pipeline.foreign import reading
from pipeline.lm.architectures import Architecture
from pipeline.lm.families import MODEL_FAMILIES
from pipeline.lm.hook_points import HookPoint, HookPoints, no_such_layer
from pipeline.lm.language_model import LanguageModel, Start
from pipeline.lm.mlp import BlockMLP
from pipeline.lm.quiet import quiet
from pipeline.lm.source import ModelSource
from pipeline.lm.splicing import Run
from pipeline.lm.unembedding import Unembedding
from pipeline.lm.unsupported import what_it_is

_SHAPE = (2, 3)  # batch and tokens, told apart
_CHECKED = 12  # tokens of the run before and behind the bridge
_EQUAL = {torch.float32: 1e-4}
_HALF = 0.1


@dataclass(frozen=True)
class BridgedPoints(HookPoints):
    """The hook points that a bridge has.

    Attributes:
        widths: {hook point: width}, in the order of a run.
    """

    widths: tuple[tuple[str, int], ...] = ()

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return 1 + max((_layer(name) for name in self.names()), default=-1)

    def names(self) -> list[str]:
        """All, in the order of a run."""
        return [name for name, _ in self.widths]

    def describe(self) -> str:
        """All in one short phrase: those of the first block stand for all."""
        first = [name.removeprefix("blocks.0.") for name in self.names() if name.startswith("blocks.0.")]
        rest = [name for name in self.names() if not name.startswith("blocks.")]
        return f"blocks.L.{{{', '.join(first)}}}, {', '.join(rest)} (TransformerLens's)"

    def parse(self, name: str) -> HookPoint:
        """Check the name of a hook point.

        Raises:
            DataError: no such hook point; the message has the nearest one and all that exist.
        """
        names = self.names()
        if name not in names:
            layer = _layer(name)
            same = [known for known in names if known.split(".")[0] == "blocks" and known.split(".")[2:] == name.split(".")[2:]]
            if layer >= self.n_layers and same:
                raise no_such_layer(name, layer, self.n_layers, self.model, same[-1])
            near = nearest(name, names)
            hint = f"; did you mean '{near}'?" if near else ";"
            raise DataError(f"unknown hook point '{name}'{hint} {self.model} (family {self.family}) has {self.describe()}")
        layer = _layer(name)
        return HookPoint(layer, names.index(name), name, name, anywhere=layer < 0)


def _layer(name: str) -> int:
    start, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if start == "blocks" and number.isdecimal() else -1


class BridgedSource(ModelSource):
    """A model of a family that is not declared; its hook points are TransformerLens's."""

    @functools.cached_property
    def declared(self) -> Architecture:
        """Nothing but the family's name."""
        return Architecture(self.model_type, "", None, "", "", None, None)

    @functools.cached_property
    def text_config(self) -> dict[str, Any]:
        """The configuration."""
        return self.config

    @functools.cached_property
    def points(self) -> HookPoints:
        """All hook points, seen in a run without values; torch is imported.

        Raises:
            DataError: TransformerLens has no adapter for the family, or it cannot be run without values.
        """
        return BridgedPoints(self.name, (), self.model_type, widths=tuple(_see(self).items()))

    def hook_width(self, hook_point: str) -> int:
        """Width of the activation at a hook point.

        Raises:
            DataError: no such hook point.
        """
        self.points.parse(hook_point)
        assert isinstance(self.points, BridgedPoints)
        return dict(self.points.widths)[hook_point]

    def mlp_reads(self, layer: int) -> dict[str, str | None]:
        """Not known.

        Raises:
            DataError: always.
        """
        raise undeclared(self, "what its MLP reads")


def undeclared(source: ModelSource, what: str) -> DataError:
    """That something is not known of a model whose family is not declared."""
    return DataError(
        f"model '{source.name}': {what} is not known, since its family {source.model_type} is not declared; switch off "
        "what needs it, or declare the family (CONTRIBUTING.md)"
    )


class BridgedModel(LanguageModel):
    """A model of a family that is not declared, read and written through TransformerLens's hook points.

    Args:
        source: where it came from.
        model: the loaded transformers model, whole; the bridge takes it over.

    Raises:
        DataError: TransformerLens has no adapter for the family, or computes another model.
    """

    backend = "transformer_lens"

    def __init__(self, source: BridgedSource, model: nn.Module) -> None:
        parameter = next(model.parameters())
        self._config: Any = model.config
        ids = torch.arange(_CHECKED, device=parameter.device)[None] % source.vocab_size
        with torch.no_grad():
            before = model(input_ids=ids, use_cache=False).logits.float()
            head: Any = model.get_output_embeddings()  # type: ignore[operator]
            self._head = head.weight
            self._bridge = _boot(source, model, source.load_tokenizer())
            after = self._bridge(ids, return_type="logits").float()
        super().__init__(source, parameter.device, parameter.dtype, source.n_layers)
        difference = float((after - before).norm() / before.norm())
        if not difference <= _EQUAL.get(parameter.dtype, _HALF):
            raise DataError(
                f"model '{source.name}': behind TransformerLens's adapter of {source.model_type} its logits differ by "
                f"{difference:.2g} from transformers'; give a model of a declared family"
            )

    def _forward(self, token_ids: Tensor, run: Run, start: Start | None = None) -> Tensor:
        hooks = [(name, _visiting(run, name)) for name in self._source.points.names() if name in run.wanted]
        with self._bridge.hooks(fwd_hooks=hooks):
            return self._bridge(token_ids, return_type="logits")

    def _mlp(self, layer: int) -> BlockMLP:
        raise undeclared(self._source, "its MLP")

    def _attention(self, layer: int) -> tuple[nn.Module, Any]:
        raise undeclared(self._source, "its attention")

    def _affine(self, layer: int, norm: str) -> tuple[Tensor | None, Tensor | None]:
        raise undeclared(self._source, "its norms")

    def unembedding(self) -> Unembedding:
        norm = getattr(self._bridge, "ln_final", None)
        if norm is None:
            raise undeclared(self._source, "its final norm")
        weight: Tensor | None = getattr(norm.original_component, "weight", None)
        gain = weight if weight is None or not norm.uses_weight_offset else weight + 1.0
        scale = getattr(self._config, "logit_scale", None) or 1.0 / (getattr(self._config, "logits_scaling", None) or 1.0)
        return Unembedding(
            self._head * scale, gain, not norm.uses_rms_norm, getattr(self._config, "final_logit_softcapping", None)
        )


def _visiting(run: Run, name: str) -> Callable[..., Tensor]:
    def hook(value: Tensor, hook: Any) -> Tensor:
        beside = value if value.ndim == 3 else value.flatten(-2)
        new = run.visit(name, beside)
        assert isinstance(new, Tensor)
        return value if new is beside else new.reshape(value.shape)

    return hook


def _boot(source: ModelSource, model: nn.Module, tokenizer: Any) -> Any:
    """The bridge around a transformers model.

    Raises:
        DataError: TransformerLens has no adapter for the family.
    """
    parameter = next(model.parameters())
    with quiet():
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config

        try:
            determine_architecture_from_hf_config(model.config)
        except ValueError:
            why = what_it_is(source.config, MODEL_FAMILIES.names())
            raise DataError(
                f"model '{source.name}': family {source.model_type} is not declared here, nor has TransformerLens an "
                f"adapter for it{f'; {why}' if why else ''}; give another model, or declare the family (CONTRIBUTING.md)"
            ) from None
        fault = f"model '{source.name}': TransformerLens's adapter of family {source.model_type} cannot take it over"
        with reading(fault, "give a model of a declared family"):
            bridge: Any = TransformerBridge.boot_transformers(
                str(source.directory), hf_model=model, tokenizer=tokenizer, device=str(parameter.device), dtype=parameter.dtype
            )
        bridge.eval()
    return bridge


class _Unedited(TorchFunctionMode):
    """Tensors without values are equal: the bridge of a router asks whether a hook has changed its weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if func is torch.equal else func(*args, **(kwargs or {}))


def _see(source: BridgedSource) -> dict[str, int]:
    """{hook point: width} of a run without values, in the order in which they occur."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from pipeline.lm.weights import empty_model

    found: dict[str, list[tuple[int, ...]]] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(value: Any, hook: Any) -> None:
            if isinstance(value, Tensor) and value.is_floating_point():
                found.setdefault(name, []).append(tuple(value.shape))

        return note

    bridge = _boot(source, empty_model(source).to(torch.bfloat16).eval(), source.load_tokenizer())
    tokens = torch.zeros(_SHAPE, dtype=torch.int64, device="meta")
    fault = ""
    for name in bridge.hook_dict:
        with contextlib.suppress(ValueError, AssertionError):  # a hook point that a setting of the bridge would first switch on
            bridge.add_hook(name, noting(name))
    with quiet(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), _Unedited():
        try:
            bridge(tokens, return_type="logits")
        except Exception as error:  # what a model does with values cannot be done here; what was seen before is right
            fault = f" ({type(error).__name__}: {error})"
    wide = {name: shapes[0] for name, shapes in found.items() if len(shapes) == 1 and shapes[0][:2] == _SHAPE}
    widths = {name: shape[2] * (shape[3] if len(shape) == 4 else 1) for name, shape in wide.items() if len(shape) in (3, 4)}
    if not widths:
        what = f"TransformerLens's adapter of {source.model_type} shows no hook points without values{fault}"
        raise DataError(f"model '{source.name}': {what}; give a model of a declared family")
    return widths
