"""Crosscoder: one set of features that several hook points are read into and written from."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.params.fields import param
from pipeline.params.kinds.several_hook_points import SeveralHookPointsFields
from pipeline.params.section import rule
from pipeline.params.sections.activations import HOOK_KEY


@dataclass(frozen=True)
class CrosscoderFields(SeveralHookPointsFields):
    """Fields: those of SeveralHookPointsFields; it writes what it reads. Hook points may be of several models (`models`)."""

    hook_points_in: tuple[str, ...] | None = param(None, form=HOOK_KEY)
    hook_points_out: tuple[str, ...] | None = param(None, form=HOOK_KEY)
    crosscoder_norm: str = param(
        "joint",
        choices=("joint", "sum"),
        about="decoder norm in gate and losses: joint (the length of all that a feature adds) | sum (of its lengths at the "
        "hook points, as Lindsey et al. 2024)",
    )

    @rule("hook_points_out")
    def _writes_what_it_reads(self) -> str | None:
        if self.hooks_out != self.hooks_in:
            return "a crosscoder writes the hook points that it reads; write null"
        return None
