"""All checks between sections: those of every training, of tensors in memory too, and those of a parameter file."""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType

from pipeline.params.rules import (
    batches,
    distributed,
    hook_points,
    inference,
    language_model,
    losses,
    model_loss,
    places,
    schedule,
    start,
)
from pipeline.params.section import Across


def _of(*modules: ModuleType) -> tuple[Across, ...]:
    return tuple(check for module in modules for check in vars(module).values() if isinstance(check, Across))


OF_FILES = _of(hook_points, language_model, inference, places, distributed)
OF_TRAINING = _of(schedule, batches, start, losses, model_loss)


def about(rules: Collection[Across], sections: Collection[str]) -> list[Across]:
    """Those that are about some of these sections and no others."""
    return [check for check in rules if set(check.sections) <= set(sections)]
