"""Numbers that may be stated as a share of a whole: steps of the run, tokens of it, features of the dictionary."""

from __future__ import annotations

import math


def resolve_steps(value: float, total: int) -> int:
    """Steps meant by a step count: an int is itself, a float x is the fraction floor(x * total + 1e-9) of the run.

    Args:
        value: steps (int) or a fraction in [0, 1] (float).
        total: T, the steps of the whole run.
    Source: SPEC 6.
    """
    return math.floor(value * total + 1e-9) if isinstance(value, float) else value


def resolve_share(value: float, whole: int) -> int:
    """A number of things: an int is itself, a float x is the share floor(x * whole + 1e-9), at least 1.

    Args:
        value: a number (int) or a share in (0, 1] (float).
        whole: what a share is a share of, >= 1: tokens of the run, features of the dictionary.
    """
    return max(1, math.floor(value * whole + 1e-9)) if isinstance(value, float) else value


def features_of(width: int, factor: float) -> int:
    """F = int(width * factor): the features of a dictionary that has `factor` per dimension of its input."""
    return int(width * factor)


def contexts_in_step(n_batches: int, batch_tokens: int, context_size: int) -> int:
    """Whole contexts in a step of trainer.model_loss: as many tokens as so many batches have, at least one context."""
    return max(1, n_batches * batch_tokens // context_size)
