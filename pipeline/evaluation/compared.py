"""The metrics that have baselines, with these beside them: PCA of as many directions as the L0, the mean, zeros.

FVU is that of the tokens that are not massive, with all its baselines, where the evaluation has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.metric_names import ordinary


class Compared(NamedTuple):
    """One metric and its baselines.

    Attributes:
        name, about: what it is.
        value: of the dictionary.
        interval: 95 %, over documents; None: not known.
        pca, mean, zero: the same with PCA, the mean or zeros in the reconstruction's place; None: not measured.
    """

    name: str
    about: str
    value: float
    interval: tuple[float, float] | None
    pca: float | None
    mean: float | None
    zero: float | None


def interval_of(metrics: Mapping[str, float], name: str) -> tuple[float, float] | None:
    """`<name>_low` and `<name>_high`, if they are there."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return None if low is None or high is None else (low, high)


def compared(metrics: Mapping[str, float]) -> list[Compared]:
    """The rows, of the dictionary as a whole (in the main model)."""
    original, mean, zero = (metrics[name] for name in ("ce_original", "ce_mean", "ce_zero"))
    pca = original + metrics["pca_delta_ce"]

    def recovered(ce: float, ablated: float) -> float | None:
        return (ablated - ce) / (ablated - original) if ablated != original else None

    fvu, pca_fvu, zero_fvu = (ordinary(metrics, name) for name in ("fvu", "pca_fvu", "zero_fvu"))
    perfect = "1 is perfect, below 0 is worse than the ablation"
    return [
        Compared(
            "FVU", "squared error / variance of what is reconstructed; 0 is perfect",
            metrics[fvu], interval_of(metrics, fvu), metrics[pca_fvu], 1.0, metrics[zero_fvu],
        ),
        Compared(
            "delta cross entropy, nats", "what the model loses a token with the reconstruction in its place; 0 is perfect",
            metrics["delta_ce"], interval_of(metrics, "delta_ce"), metrics["pca_delta_ce"], mean - original, zero - original,
        ),
        Compared(
            "loss recovered against the mean", f"share of the loss of mean ablation that is not lost; {perfect}",
            metrics["loss_recovered_mean"], None, recovered(pca, mean), 0.0, recovered(zero, mean),
        ),
        Compared(
            "loss recovered against zero", f"the same for zeros; {perfect}",
            metrics["loss_recovered_zero"], None, recovered(pca, zero), recovered(mean, zero), 0.0,
        ),
        Compared(
            "KL divergence, nats", "of the spliced model's predictions from the model's own; 0 is perfect",
            metrics["kl"], None, None, None, metrics["kl_zero"],
        ),
    ]  # fmt: skip
