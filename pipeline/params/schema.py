"""All parameters: the sections together, and what follows from several of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pipeline.errors import ParamsError
from pipeline.params.dictionary_config import DictionaryConfig
from pipeline.params.fields import param
from pipeline.params.members import members_of
from pipeline.params.rules.collected import OF_FILES, OF_TRAINING, about
from pipeline.params.rules.hook_points import used_by
from pipeline.params.rules.schedule import total_steps
from pipeline.params.section import Rule, Section, section_from_dict
from pipeline.params.sections.activations import ActivationsParams, BufferShuffleParams
from pipeline.params.sections.analysis import AnalysisParams
from pipeline.params.sections.dataset import DatasetParams
from pipeline.params.sections.demo import DemoParams
from pipeline.params.sections.dictionary import DictionaryParams, params_class
from pipeline.params.sections.distributed import DistributedParams
from pipeline.params.sections.evaluation import EvaluationParams
from pipeline.params.sections.fold import FoldParams
from pipeline.params.sections.initializer import InitializerParams
from pipeline.params.sections.model import ALIAS_FORM, ModelParams, NamedModelParams
from pipeline.params.sections.norm import NormParams
from pipeline.params.sections.tracking import TrackingParams
from pipeline.params.sections.trainer import TrainerParams
from pipeline.shares import resolve_steps

__all__ = [
    "ActivationsParams",
    "AnalysisParams",
    "BufferShuffleParams",
    "DatasetParams",
    "DemoParams",
    "DictionaryParams",
    "DistributedParams",
    "EvaluationParams",
    "FitParams",
    "FoldParams",
    "InitializerParams",
    "LossParams",
    "ModelParams",
    "NamedModelParams",
    "NormParams",
    "Params",
    "SAEParams",
    "TrackingParams",
    "TrainerParams",
    "flatten",
    "resolve_steps",
    "section_from_dict",
]


SAEParams = params_class("sae")
MEMBER_FORM = (
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
    "at most 64 letters, digits, '.', '_' and '-', the first a letter or a digit,",
)


@dataclass(frozen=True)
class Params(Section):
    """Every parameter of a run. The dataclass defaults are the declaration's; params.yaml states the embedded default's."""

    seed: int = param(0, at_least=0, about="every random number of initialize and train follows from it")
    determinism: bool = param(
        True, about="true: same lock, same kind of CPU, same bytes; false: faster kernels where there are any"
    )
    model: ModelParams = field(default_factory=ModelParams)
    models: Mapping[str, NamedModelParams] | None = param(
        None,
        form=ALIAS_FORM,
        about="further models whose hook points are named alias:blocks.L.name: {alias: {model_name, revision, tokenizer_name}}",
    )
    dataset: DatasetParams = field(default_factory=DatasetParams)
    activations: ActivationsParams = field(default_factory=ActivationsParams)
    norm: NormParams = field(default_factory=NormParams)
    dictionary: DictionaryParams = field(default_factory=SAEParams)
    sweep: Mapping[str, Mapping[str, Any]] | None = param(
        None,
        form=MEMBER_FORM,
        also_called=("members", "grid"),
        about="several dictionaries from one pass: {member: {dotted key of dictionary, initializer, trainer or fold: value}}",
    )
    initializer: InitializerParams = field(default_factory=InitializerParams)
    trainer: TrainerParams = field(default_factory=TrainerParams)
    distributed: DistributedParams = field(default_factory=DistributedParams)
    fold: FoldParams = field(default_factory=FoldParams)
    evaluation: EvaluationParams = field(default_factory=EvaluationParams)
    analysis: AnalysisParams = field(default_factory=AnalysisParams)
    tracking: TrackingParams = field(default_factory=TrackingParams)
    demo: DemoParams = field(default_factory=DemoParams)

    @classmethod
    def rules(cls) -> list[Rule]:
        """The checks between sections."""
        return [*OF_FILES, *OF_TRAINING]

    @functools.cached_property
    def members(self) -> Mapping[str, Params]:
        """{name: the parameters of that member of the sweep alone}; {"": self} without a sweep.

        Raises:
            ParamsError: every fault of every member.
        """
        return members_of(self)

    @property
    def dictionary_hook_points(self) -> tuple[str, ...]:
        """The hook points that the dictionary reads or writes, each once; of a sweep those of all members."""
        return tuple(dict.fromkeys(hook for member in self.members.values() for hook in used_by(member.dictionary)))

    @property
    def hook_points(self) -> tuple[str, ...]:
        """The hook points to store: activations.hook_points, or the dictionary's (the members') when that is null."""
        return self.activations.hook_points or self.dictionary_hook_points

    def language_model(self, alias: str) -> ModelParams:
        """The section model (alias ""), or the same with name, revision and tokenizer of `models.<alias>`."""
        if not alias:
            return self.model
        other = (self.models or {})[alias]
        return replace(self.model, model_name=other.model_name, revision=other.revision, tokenizer_name=other.tokenizer_name)

    def with_widths(self, widths: Mapping[str, int]) -> Params:
        """The same, with d_model known: what depends on the number of features is checked.

        Args:
            widths: {hook point: width} of those that the dictionary reads or writes.

        Raises:
            ParamsError: hook points of several widths for a kind with one, dictionary.d_model states another, or there are
                too few features for what is asked of them.
        """
        stated, hook = self.dictionary.d_model, self.dictionary.hooks_in[0]
        found = widths[hook]
        others = [key for key in self.dictionary_hook_points if widths[key] != found]
        if others and self.dictionary.ONE_WIDTH:
            raise ParamsError(
                f"dictionary.hook_points_in: kind {self.dictionary.kind} has one width for all its hook points, but {hook} is "
                f"{found} wide and {', '.join(f'{key} {widths[key]}' for key in others)}; take hook points of one width"
            )
        if stated not in (None, found):
            raise ParamsError(
                f"dictionary.d_model: {stated}, but activations at {hook} are {found} wide; write {found} or null"
            )
        return replace(self, dictionary=replace(self.dictionary, d_model=found))

    @property
    def total_steps(self) -> int:
        """T = total_training_tokens // tokens of a batch (2-D targets: batch_size * context_size)."""
        return total_steps(self.trainer, self.activations)


@dataclass(frozen=True)
class LossParams(Section):
    """A dictionary in memory and the losses that it has."""

    dictionary: DictionaryConfig
    trainer: TrainerParams

    @classmethod
    def rules(cls) -> list[Rule]:
        """Those of a training that are about these sections."""
        return [*about(OF_TRAINING, [each.name for each in fields(cls)])]


@dataclass(frozen=True)
class FitParams(LossParams):
    """A dictionary in memory and its training on tensors."""

    initializer: InitializerParams
    activations: ActivationsParams

    @property
    def total_steps(self) -> int:
        """T."""
        return total_steps(self.trainer, self.activations)


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested plain values, as `dict(flatten(params.to_dict()))` for MLflow; lists stay whole."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
