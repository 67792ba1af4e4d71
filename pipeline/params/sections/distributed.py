"""Several processes for one stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section


@dataclass(frozen=True)
class DistributedParams(Section):
    """Several processes for train, generate, evaluate and analyze (docs/scale.md)."""

    NAME: ClassVar[str] = "distributed"

    data_parallel_size: int = param(
        1, at_least=1, at_most=4096, about="processes of each, that share its batches; 1: one process"
    )
    model_parallel_size: int = param(
        1,
        at_least=1,
        at_most=4096,
        about="processes that share a dictionary's features; times data_parallel_size are started",
    )
    max_restarts: int = param(
        3, at_least=0, at_most=1000, about="how often the processes are started again when one was killed"
    )
    timeout_minutes: float = param(10.0, more_than=0, about="minutes that processes wait for one another")

    @property
    def n_processes(self) -> int:
        """Those of a stage; generate deals its blocks to all of them."""
        return self.data_parallel_size * self.model_parallel_size
