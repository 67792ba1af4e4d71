"""The configuration of a dictionary, config.json: the fields of its kind, and what tensors add to them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.files import is_number
from pipeline.params.choices import INFERENCE, NORM_ACTIVATIONS, STORED_DTYPES
from pipeline.params.dictionary_kinds import KINDS, kind_fields
from pipeline.params.fields import Refused, param
from pipeline.params.kinds.fields import DictionaryFields
from pipeline.params.section import Fault, Rule, Section, hints, rule, section_from_dict
from pipeline.params.sections.dictionary import is_hook_point, params_class
from pipeline.shares import features_of

if TYPE_CHECKING:
    _Fields = DictionaryFields  # what a kind's configuration is besides
else:
    _Fields = Section


@dataclass(frozen=True)
class DictionaryConfig(_Fields):
    """A dictionary of tensors; its hook points may have any names.

    Attributes:
        d_in: width of what is read.
        d_sae: number of features F (of each layer).
        d_out: width of what is written; null: d_in.
        norm_activation: how activations are scaled before they come here; `inference` in a folded dictionary.
        folded: the dictionary takes and gives raw activations.
        norms: {hook point: {mean_norm, mean_square, d}} that go with the weights, null if not known.
        provenance: where the weights come from (model, data, training), without times; never changes what is computed.
    """

    NAME: ClassVar[str] = "dictionary"

    d_in: int = param(None, at_least=1)  # these three are there after `completed`, or a fault is
    d_sae: int = param(None, at_least=1)
    d_out: int = param(None, at_least=1)
    norm_activation: str = param("dataset-wise", choices=(*NORM_ACTIVATIONS, INFERENCE))
    dtype: str = param("float32", choices=STORED_DTYPES)
    folded: bool = False
    norms: dict | None = dataclasses.field(default=None, hash=False)
    provenance: dict = dataclasses.field(default_factory=dict, hash=False)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A field of the kind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return section_from_dict, (DictionaryConfig, self.to_dict())

    @classmethod
    def chosen_by(cls, raw: Mapping[str, Any]) -> type[DictionaryConfig]:
        """The configuration of `raw['kind']`; that of a kind reads itself."""
        if cls is not DictionaryConfig:
            return cls
        if "kind" not in raw:
            raise Refused(f"missing (known: {', '.join(KINDS)})")
        params_class(raw["kind"])
        return _config_class(raw["kind"])

    @classmethod
    def completed(cls, raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Fault]]:
        """d_model is d_in, expansion_factor gives d_sae, d_out is d_in where it is not stated; hook points get names."""
        given, faults = dict(raw), []
        d_model, factor = given.pop("d_model", None), given.pop("expansion_factor", None)
        if d_model is not None and given.setdefault("d_in", d_model) != d_model:
            faults.append(Fault("d_model", f"{d_model} contradicts d_in {given['d_in']}; state one of them"))
        d_in = given.get("d_in")
        if factor is not None and not (type(factor) in (int, float) and factor > 0 and math.isfinite(factor)):
            faults.append(Fault("expansion_factor", f"expected a positive number, got {factor!r}"))
        elif factor is not None and type(d_in) is int:
            d_sae = features_of(d_in, factor)
            if given.get("d_sae") is None:
                given["d_sae"] = d_sae
            elif given["d_sae"] != d_sae:
                faults.append(
                    Fault(
                        "d_sae",
                        f"{given['d_sae']} contradicts expansion_factor {factor}, which gives {d_sae}; state one of them",
                    )
                )
        for key, other in (("d_in", "d_model"), ("d_sae", "expansion_factor")):
            if key not in given and not (key == "d_sae" and factor is not None):
                faults.append(Fault(key, f"is missing; state it, or {other}"))
        if given.get("d_out") is None and "d_in" in given:
            given["d_out"] = given["d_in"]
        return {**given, **cls.named(given)}, faults

    @classmethod
    def rules(cls) -> list[Rule]:
        """Those of the kind; what is stated without an effect does no harm in a dictionary that exists."""
        return [check for check in super().rules() if not getattr(check, "of_files", False)]

    @property
    def d_model(self) -> int:
        """d_in, as a parameter file calls it."""
        return self.d_in

    @rule("norms")
    def _norms_are_numbers_by_name(self) -> str | None:
        for hook, norm in (self.norms or {}).items():
            wrong = not isinstance(norm, Mapping) or any(value is not None and not is_number(value) for value in norm.values())
            if wrong:
                return f"{hook}: expected numbers by name (mean_norm, mean_square, d, ...), got {norm!r}"
        return None

    @rule("d_out")
    def _one_hook_point_has_one_width(self) -> str | None:
        if self.d_out == self.d_in or not (self.ONE_WIDTH or self.hooks_out == self.hooks_in):
            return None
        why = f"kind '{self.kind}' has one width" if self.ONE_WIDTH else "what is written is what is read"
        return f"{self.d_out} differs from d_in {self.d_in}, but {why}; write {self.d_in}"

    @rule("norm_activation")
    def _folded_ones_have_no_norm(self) -> str | None:
        if self.folded == (self.norm_activation == INFERENCE):
            return None
        return f"'{INFERENCE}' and folded go together, got '{self.norm_activation}', {self.folded}"

    @rule("sparsity_include_decoder_norm")
    def _folded_ones_have_their_norm_inside(self) -> str | None:
        return "must be false in a folded dictionary" if self.folded and self.sparsity_include_decoder_norm else None


def config_class(fields: type[DictionaryFields], kind: str) -> type[DictionaryConfig]:
    """The configuration of a kind: its fields, in which a hook point may have any name, and those of DictionaryConfig."""
    free = [
        (field.name, hints(fields)[field.name], dataclasses.field(default=None))
        for field in dataclasses.fields(fields)
        if is_hook_point(field)
    ]
    own = [*free, ("kind", str, param(kind, choices=(kind,)))]
    name = fields.__name__.replace("Fields", "Config")
    namespace = {"__doc__": fields.__doc__, "__module__": __name__}
    made: type = dataclasses.make_dataclass(name, own, bases=(DictionaryConfig, fields), frozen=True, namespace=namespace)
    return made


@functools.cache
def _config_class(kind: str) -> type[DictionaryConfig]:
    return config_class(kind_fields(kind), kind)
