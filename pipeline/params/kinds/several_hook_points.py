"""The fields of the kinds that read and write lists of hook points: cross-layer transcoder and crosscoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.params.fields import param
from pipeline.params.kinds.fields import DictionaryFields
from pipeline.params.section import rule
from pipeline.params.sections.activations import HOOK_POINT


@dataclass(frozen=True)
class SeveralHookPointsFields(DictionaryFields):
    """Lists of hook points that are read and written."""

    ONE_WIDTH: ClassVar[bool] = True

    hook_points_in: tuple[str, ...] | None = param(
        None, form=HOOK_POINT, about="list of hook points that are read (crosscoder: also alias:blocks.L.name)"
    )
    hook_points_out: tuple[str, ...] | None = param(
        None, form=HOOK_POINT, about="list of those written, one for each read; null: hook_points_in (crosscoder: null)"
    )

    @property
    def hooks_in(self) -> tuple[str, ...]:
        """The hook points that are read."""
        return self.hook_points_in or ()

    @property
    def hooks_out(self) -> tuple[str, ...]:
        """The hook points that are written: those that are read where hook_points_out is null."""
        return self.hooks_in if self.hook_points_out is None else self.hook_points_out

    @classmethod
    def named(cls, stated: Mapping[str, Any]) -> dict[str, Any]:
        """What is written is what is read, where it is not stated."""
        return {"hook_points_out": stated.get("hook_points_out") or stated.get("hook_points_in")}

    @rule("hook_points_in")
    def _several_different_ones(self) -> str | None:
        if len(self.hooks_in) < 2:
            return (
                f"kind {self.kind} reads at least two hook points, got {list(self.hooks_in) or 'null'}; write a list of them, "
                "as [blocks.L.name, blocks.M.name], or take a kind that reads one (sae, transcoder)"
            )
        twice = sorted({hook for hook in self.hooks_in if self.hooks_in.count(hook) > 1})
        return f"these are there twice: {', '.join(twice)}; write each once" if twice else None
