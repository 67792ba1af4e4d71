"""The section `dictionary` of a parameter file: the fields of the kind that it chooses, and widths in its own terms."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.errors import unknown_name
from pipeline.params.dictionary_kinds import KINDS, kind_fields
from pipeline.params.fields import Refused, as_written, describe, limits_of, param
from pipeline.params.kinds.fields import DictionaryFields
from pipeline.params.section import Section, rule, section_from_dict
from pipeline.params.sections.activations import HOOK_KEY, HOOK_POINT
from pipeline.shares import features_of

if TYPE_CHECKING:
    _Fields = DictionaryFields  # what a kind's section is besides
else:
    _Fields = Section


@dataclass(frozen=True)
class DictionaryParams(_Fields):
    """What is trained.

    `kind` chooses the fields that are read: those of that kind (pipeline/params/kinds) and the ones here.
    """

    NAME: ClassVar[str] = "dictionary"

    kind: str = param("sae", choices=KINDS, about="kind of dictionary")
    d_model: int | None = param(
        None, at_least=1, at_most=2**20, about="width of hook_point_in, checked against the model; null: read from the model"
    )
    expansion_factor: float = param(
        16.0, more_than=0, at_most=2**20, about="features per input dimension: d_sae = int(d_model * expansion_factor)"
    )

    def __reduce__(self) -> tuple[Any, ...]:
        return section_from_dict, (DictionaryParams, self.to_dict())

    @classmethod
    def chosen_by(cls, raw: Mapping[str, Any]) -> type[DictionaryParams]:
        """The section of `raw['kind']` (default sae); the section of a kind reads itself."""
        return params_class(raw.get("kind", "sae")) if cls is DictionaryParams else cls

    @classmethod
    def foreign(cls, key: str, value: Any) -> str | None:
        """A key of another kind is at rest as null or at its default (a hook point: as null), and refused otherwise."""
        fields = {kind: params_class(kind).__dataclass_fields__.get(key) for kind in KINDS}
        owners = [kind for kind, field in fields.items() if field is not None]
        if not owners:
            return None
        field = params_class(owners[0]).__dataclass_fields__[key]
        default = None if is_hook_point(field) else field.default
        if value is None or (default is not None and value == default):
            return ""
        own, of = cls.__dataclass_fields__["kind"].default, f"kind{'s' if len(owners) > 1 else ''} {', '.join(owners)}"
        return f"is a field of {of}, not of {own}, where it must be {as_written(default)}; got {value!r}"

    @property
    def d_sae(self) -> int | None:
        """F = int(d_model * expansion_factor), or None while d_model is unknown."""
        return None if self.d_model is None else features_of(self.d_model, self.expansion_factor)

    def of_widths(self, d_in: int, d_out: int) -> dict[str, Any]:
        """The configuration of a dictionary of these widths, as `build_dictionary` takes it; a stated d_model takes d_in's."""
        stated = self.to_dict()
        return {**stated, "d_model": stated["d_model"] or d_in, "d_out": d_out}

    @rule("expansion_factor")
    def _at_least_one_feature(self) -> str | None:
        if self.d_sae == 0:
            return f"{self.expansion_factor} times d_model {self.d_model} leaves no feature; raise it"
        return None


def is_hook_point(field: dataclasses.Field[Any]) -> bool:
    """Whether a field names hook points of a model."""
    return limits_of(field).form in (HOOK_POINT, HOOK_KEY)


def params_class(kind: Any) -> type[DictionaryParams]:
    """The section of a kind.

    Raises:
        Refused: no such kind; the message lists them all and the nearest.
    """
    if not isinstance(kind, str):
        raise Refused(f"expected a string, got {describe(kind)}")
    if kind not in KINDS:
        raise Refused(unknown_name("kind", kind, KINDS))
    return _params_class(kind)


@functools.cache
def _params_class(kind: str) -> type[DictionaryParams]:
    fields = kind_fields(kind)
    own = [("kind", str, param(kind, choices=(kind,)))]
    name = fields.__name__.replace("Fields", "Params")
    made: type = dataclasses.make_dataclass(
        name, own, bases=(DictionaryParams, fields), frozen=True, namespace={"__doc__": fields.__doc__, "__module__": __name__}
    )
    return made
