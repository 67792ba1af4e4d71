"""What every dictionary's configuration has: fields, strict reading, checks.

A kind subclasses :class:`DictionaryConfig` in its own file with its own fields and checks.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Self

from pipeline.errors import ParamsError, nearest, unknown_name
from pipeline.params.choices import INFERENCE, NORM_ACTIVATIONS, STORED_DTYPES
from pipeline.params.gates import GATES


@dataclasses.dataclass(frozen=True)
class DictionaryConfig:
    """The fields that all kinds share; names and meanings as in params.yaml's section `dictionary`.

    Attributes:
        d_in: width of what is read.
        d_sae: number of features F.
        d_out: width of what is written; null: d_in.
        norm_activation: how activations are scaled before they come here; `inference` in a folded dictionary.
        folded: the dictionary takes and gives raw activations.
        norms: {hook point: {mean_norm, mean_square, d}} that go with the weights, null if not known.
        provenance: where the weights come from (model, data, training), without times; never changes what is computed.
    """

    has_layers: typing.ClassVar[bool] = False  # features [L, F] of each token, whose layers may compete

    kind: str
    d_in: int
    d_sae: int
    d_out: int | None = None
    name: str = "main"
    act_fn: str = "relu"
    top_k: int = 50
    use_decoder_bias: bool = True
    sparsity_include_decoder_norm: bool = True
    norm_activation: str = "dataset-wise"
    jumprelu_threshold_window: float = 2.0
    dtype: str = "float32"
    use_triton_kernel: bool = False
    sparsity_threshold_for_triton_spmm_kernel: float = 0.996
    sae_name: str | None = None
    sae_series: str | None = None
    folded: bool = False
    norms: dict | None = dataclasses.field(default=None, hash=False)
    provenance: dict = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.d_out is None:
            object.__setattr__(self, "d_out", self.d_in)
        faults = self.faults()
        if faults:
            raise ParamsError([f"dictionary.{fault}" for fault in faults])

    @property
    def hooks_in(self) -> tuple[str, ...]:
        """The hook points that the dictionary reads, in the order of its input."""
        raise ParamsError(f"dictionary.kind: '{self.kind}' names no hook points")

    @property
    def hooks_out(self) -> tuple[str, ...]:
        """The hook points that the dictionary writes, in the order of its output."""
        raise ParamsError(f"dictionary.kind: '{self.kind}' names no hook points")

    @property
    def layers(self) -> int:
        """L: how many layers of d_sae features a token has, one for each hook point read, or 1."""
        return len(self.hooks_in) if self.has_layers else 1

    @property
    def width_out(self) -> int:
        """Width of what is written (d_out, which is never null after construction)."""
        return self.d_in if self.d_out is None else self.d_out

    def faults(self) -> list[str]:
        """What is wrong, one sentence for each, starting with the field's name; a kind adds its own."""
        found = []
        for field in ("d_in", "d_out", "d_sae", "top_k"):
            if getattr(self, field) < 1:
                found.append(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.act_fn not in GATES:
            found.append(f"act_fn: {unknown_name('activation function', self.act_fn, GATES)}")
        elif GATES.get(self.act_fn).joint_layers and not self.has_layers:
            found.append(f"act_fn: {self.act_fn} lets the layers of a token compete, and kind '{self.kind}' has one")
        norms = (*NORM_ACTIVATIONS, INFERENCE)
        if self.norm_activation not in norms:
            found.append(f"norm_activation: {unknown_name('norm', self.norm_activation, norms)}")
        if self.dtype not in STORED_DTYPES:
            found.append(f"dtype: {unknown_name('dtype', self.dtype, STORED_DTYPES)}")
        if not (self.jumprelu_threshold_window > 0 and math.isfinite(self.jumprelu_threshold_window)):
            found.append(f"jumprelu_threshold_window: must be positive, got {self.jumprelu_threshold_window}")
        if self.use_triton_kernel:
            found.append("use_triton_kernel: only false is available")
        if self.folded != (self.norm_activation == "inference"):
            found.append(f"norm_activation: 'inference' and folded go together, got '{self.norm_activation}', {self.folded}")
        if self.folded and self.sparsity_include_decoder_norm:
            found.append("sparsity_include_decoder_norm: must be false in a folded dictionary")
        return found

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read strictly: `d_model` is d_in, `expansion_factor` gives d_sae = int(d_in * expansion_factor).

        Raises:
            ParamsError: unknown, missing, mistyped or contradicting fields, all at once.
        """
        given, faults = _resolve_widths(dict(values))
        types_of = typing.get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in list(given):
            if key not in fields:
                close = nearest(key, [*fields, "expansion_factor", "d_model"])
                faults.append(f"{key}: unknown key" + (f"; did you mean '{close}'?" if close else ""))
            elif not _fits(given[key], types_of[key]):
                faults.append(f"{key}: expected {_spelled(types_of[key])}, got {given[key]!r}")
            elif types_of[key] is float:
                given[key] = float(given[key])
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and name not in given:
                also = {"d_sae": " (or expansion_factor)", "d_in": " (or d_model)"}.get(name, "")
                faults.append(f"{name}{also}: missing")
        if faults:
            raise ParamsError([f"dictionary.{fault}" for fault in faults])
        return cls(**given)


@dataclasses.dataclass(frozen=True)
class SeveralHookPoints(DictionaryConfig):
    """Fields of the kinds that read and write lists of hook points.

    Attributes:
        hook_points_in: what is read, in the order of the input.
        hook_points_out: what is written; null: hook_points_in.
    """

    hook_points_in: tuple[str, ...] = ()
    hook_points_out: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hook_points_in", tuple(self.hook_points_in))
        out = self.hook_points_in if self.hook_points_out is None else self.hook_points_out
        object.__setattr__(self, "hook_points_out", tuple(out))
        super().__post_init__()

    @property
    def hooks_in(self) -> tuple[str, ...]:
        return self.hook_points_in

    @property
    def hooks_out(self) -> tuple[str, ...]:
        return self.hook_points_out or ()

    def faults(self) -> list[str]:
        found = super().faults()
        for name, hooks in (("hook_points_in", self.hooks_in), ("hook_points_out", self.hooks_out)):
            if len(hooks) < 2:
                found.append(f"{name}: kind '{self.kind}' takes at least two hook points, got {list(hooks)}")
            if len(set(hooks)) < len(hooks):
                found.append(f"{name}: a hook point is there twice: {', '.join(hooks)}")
        if self.d_out != self.d_in:
            found.append(f"d_out: {self.d_out} differs from d_in {self.d_in}; kind '{self.kind}' has one width")
        return found


def _resolve_widths(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    faults = []
    d_model = given.pop("d_model", None)
    if d_model is not None and given.setdefault("d_in", d_model) != d_model:
        faults.append(f"d_model: {d_model} contradicts d_in {given['d_in']}")
    factor = given.pop("expansion_factor", None)
    d_in = given.get("d_in")
    if factor is not None and not (_fits(factor, float) and factor > 0 and math.isfinite(factor)):
        faults.append(f"expansion_factor: expected a positive number, got {factor!r}")
    elif factor is not None and _fits(d_in, int):
        d_sae = int(d_in * factor)  # type: ignore[operator]
        if given.get("d_sae") is None:
            given["d_sae"] = d_sae
        elif given["d_sae"] != d_sae:
            faults.append(f"d_sae: {given['d_sae']} contradicts expansion_factor {factor}, which gives {d_sae}")
    elif factor is not None:
        given.setdefault("d_sae", 1)
    return given, faults


def _fits(value: Any, expected: Any) -> bool:
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(expected))
    if expected is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected is type(None):
        return value is None
    origin = typing.get_origin(expected) or expected
    if origin is dict:
        return isinstance(value, Mapping)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(item, typing.get_args(expected)[0]) for item in value)
    return isinstance(value, origin)


def _spelled(expected: Any) -> str:
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return " or ".join(_spelled(option) for option in typing.get_args(expected))
    if typing.get_origin(expected) is tuple:
        return f"a list, each {_spelled(typing.get_args(expected)[0])}"
    names = {type(None): "null", bool: "true or false", float: "a number", int: "a whole number", str: "text"}
    return names.get(expected, getattr(expected, "__name__", str(expected)))
