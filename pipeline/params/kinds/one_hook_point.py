"""The fields of the kinds that read one hook point and write one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.hook_keys import written_before_read
from pipeline.params.fields import param
from pipeline.params.kinds.fields import DictionaryFields
from pipeline.params.section import rule
from pipeline.params.sections.activations import HOOK_POINT


@dataclass(frozen=True)
class OneHookPointFields(DictionaryFields):
    """One hook point is read and one is written.

    Attributes:
        EXAMPLE: what a kind that writes elsewhere may write.
    """

    EXAMPLE: ClassVar[str] = "blocks.L.hook_mlp_out"

    hook_point_in: str | None = param(
        None, form=HOOK_POINT, also_called=("hook_point", "hook_name"), about="hook point that is read (docs/hook-points.md)"
    )
    hook_point_out: str | None = param(
        None, form=HOOK_POINT, about="hook point that is reconstructed; null: hook_point_in (another one: a transcoder)"
    )

    @property
    def hooks_in(self) -> tuple[str, ...]:
        """The hook point that is read."""
        return () if self.hook_point_in is None else (self.hook_point_in,)

    @property
    def hooks_out(self) -> tuple[str, ...]:
        """The hook point that is written."""
        return self.hooks_in if self.hook_point_out is None else (self.hook_point_out,)

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes another hook point than it reads."""
        return self.hooks_out != self.hooks_in

    @classmethod
    def named(cls, stated: Mapping[str, Any]) -> dict[str, Any]:
        """`input`, and `output` where another one than that is written."""
        read, written = stated.get("hook_point_in") or "input", stated.get("hook_point_out")
        elsewhere = cls.WRITES_ELSEWHERE and read == "input"
        return {"hook_point_in": read, "hook_point_out": written or ("output" if elsewhere else read)}

    @rule("hook_point_out")
    def _written_after_it_is_read(self) -> str | None:
        if self.WRITES_ELSEWHERE and self.hooks_in and not self.is_transcoder:
            return (
                f"a {self.kind} must write another hook point than the one it reads ('{self.hook_point_in}'); write a later "
                f"one, as {self.EXAMPLE}, or take kind sae"
            )
        return written_before_read(self.hooks_in, self.hooks_out)
