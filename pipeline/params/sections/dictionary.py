"""The fields that every kind of dictionary has; each kind's own ones are in pipeline/params/kinds/<kind>.py."""

from __future__ import annotations

import abc
import functools
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.errors import unknown_name
from pipeline.params.choices import NORM_ACTIVATIONS, WEIGHT_DTYPES
from pipeline.params.dictionary_kinds import KINDS
from pipeline.params.fields import Refused, as_written, describe, limits_of, param
from pipeline.params.gates import GATES, GateDeclaration
from pipeline.params.section import Section, rule
from pipeline.params.sections.activations import HOOK_KEY, HOOK_POINT

NAME_FORM = (r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, '.', '_' and '-'")


def kind_class(kind: Any) -> type[DictionaryParams]:
    """The parameter class of a kind, loaded on demand.

    Raises:
        Refused: no such kind; the message lists them all and the nearest.
    """
    if not isinstance(kind, str):
        raise Refused(f"expected a string, got {describe(kind)}")
    if kind not in KINDS:
        raise Refused(unknown_name("kind", kind, KINDS))
    return _imported(KINDS.get(kind).fields)


@functools.cache
def _imported(place: str) -> type[DictionaryParams]:
    module, _, name = place.partition(":")
    found: type[DictionaryParams] = getattr(importlib.import_module(module), name)
    return found


@dataclass(frozen=True)
class DictionaryParams(Section, abc.ABC):
    """What is trained.

    These fields are shared by every kind; `kind` chooses the subclass that is read.

    Attributes:
        HAS_LAYERS: features of several layers, which may compete for one budget.
        ONE_DECODER: a feature has one decoder row, so that unit_norm and Matryoshka prefixes make sense.
        READS_SEQUENCES: contexts stay whole (activations.target activations-2d).
        WRITES_ELSEWHERE: it never writes what it reads.
        DRAWN_BY_BOUNDS: the base draw takes the initializer's uniform bounds and its transpose factor.
        ONE_WIDTH: all its hook points must be equally wide.
    """

    NAME: ClassVar[str] = "dictionary"
    RETIRED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "use_triton_kernel": (False,),
        "sparsity_threshold_for_triton_spmm_kernel": (0.996,),
    }
    HAS_LAYERS: ClassVar[bool] = False
    ONE_DECODER: ClassVar[bool] = False
    READS_SEQUENCES: ClassVar[bool] = False
    WRITES_ELSEWHERE: ClassVar[bool] = False
    DRAWN_BY_BOUNDS: ClassVar[bool] = True
    ONE_WIDTH: ClassVar[bool] = False

    name: str = param("main", form=NAME_FORM, about="directory name under data/initial, data/trained and data/inference")
    kind: str = param("sae", choices=KINDS, about="kind of dictionary")
    d_model: int | None = param(
        None, at_least=1, about="width of hook_point_in, checked against the model; null: read from the model"
    )
    expansion_factor: float = param(
        16.0, more_than=0, about="features per input dimension: d_sae = int(d_model * expansion_factor)"
    )
    act_fn: str = param(
        "relu",
        choices=GATES,
        also_called=("activation", "activation_fn"),
        about="activation function (those with layer: clt only)",
    )
    top_k: int = param(50, at_least=1, also_called=("k",), about="active features per token (topk family)")
    use_decoder_bias: bool = param(True, about="true: reconstructions have a bias b_D")
    sparsity_include_decoder_norm: bool = param(True, about="true: features are selected by activation times decoder norm")
    norm_activation: str = param(
        "dataset-wise",
        choices=NORM_ACTIVATIONS,
        also_called=("norm",),
        about="factor on activations",
    )
    jumprelu_threshold_window: float = param(
        2.0, more_than=0, about="full width of the window in which a JumpReLU threshold gets a gradient"
    )
    dtype: str = param("float32", choices=WEIGHT_DTYPES, about="dtype of the weights")
    sae_name: str | None = param(None, about="name recorded in config.json and as a tag; null: none")
    sae_series: str | None = param(None, about="series recorded in config.json and as a tag; null: none")

    @classmethod
    def chosen_by(cls, raw: Mapping[str, Any]) -> type[DictionaryParams]:
        """The class of `raw['kind']` (default sae); the class of a kind reads itself."""
        return kind_class(raw.get("kind", "sae")) if inspect.isabstract(cls) else cls

    @classmethod
    def foreign(cls, key: str, value: Any) -> str | None:
        """A key of another kind is at rest as null or at its default (a hook point: as null), and refused otherwise."""
        fields = {kind: kind_class(kind).__dataclass_fields__.get(key) for kind in KINDS}
        owners = [kind for kind, field in fields.items() if field is not None]
        if not owners:
            return None
        field = kind_class(owners[0]).__dataclass_fields__[key]
        default = None if limits_of(field).form in (HOOK_POINT, HOOK_KEY) else field.default
        if value is None or (default is not None and value == default):
            return ""
        own, of = cls.__dataclass_fields__["kind"].default, f"kind{'s' if len(owners) > 1 else ''} {', '.join(owners)}"
        return f"is a field of {of}, not of {own}, where it must be {as_written(default)}; got {value!r}"

    @property
    @abc.abstractmethod
    def hooks_in(self) -> tuple[str, ...]:
        """The hook points that are read."""

    @property
    @abc.abstractmethod
    def hooks_out(self) -> tuple[str, ...]:
        """The hook points that are written."""

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes another hook point than the one it reads (kind clt: of each layer)."""
        return False

    @property
    def head_width(self) -> int | None:
        """Width of a query-key head, of kinds that have some."""
        return None

    @property
    def max_context(self) -> int | None:
        """Most tokens of a context, of kinds that read whole contexts."""
        return None

    @property
    def gate(self) -> GateDeclaration:
        """What act_fn is declared as."""
        return GATES.get(self.act_fn)

    @property
    def is_topk_family(self) -> bool:
        """Whether the gate keeps a number of features (topk, batchtopk), not those above a threshold."""
        return self.gate.budgeted

    @property
    def is_batch_dependent(self) -> bool:
        """Whether the gate looks at a whole batch, so that the fold stage replaces it."""
        return self.gate.batch_dependent

    @property
    def d_sae(self) -> int | None:
        """F = int(d_model * expansion_factor), or None while d_model is unknown."""
        return None if self.d_model is None else int(self.d_model * self.expansion_factor)

    @rule("act_fn")
    def _layers_compete_where_there_are_some(self) -> str | None:
        if not self.gate.joint_layers or self.HAS_LAYERS:
            return None
        plain = f"; take {self.gate.of_one_layer}" if self.gate.of_one_layer else ""
        return f"{self.act_fn} lets the layers of a token compete, and kind {self.kind} has one{plain}"

    @rule("expansion_factor")
    def _at_least_one_feature(self) -> str | None:
        if self.d_sae == 0:
            return f"{self.expansion_factor} times d_model {self.d_model} leaves no feature"
        return None

    @rule("top_k")
    def _top_k_fits(self) -> str | None:
        if self.d_sae and self.is_topk_family and self.top_k > self.d_sae:
            return f"{self.top_k} is more than the dictionary's {self.d_sae} features; lower it or raise expansion_factor"
        return None
