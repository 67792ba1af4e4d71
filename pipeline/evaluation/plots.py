"""Feature densities of an evaluation as files: per feature, as a histogram, and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import atomic_directory, write_bytes, write_json

if TYPE_CHECKING:
    from pipeline.evaluation.report import Evaluation


def write_densities(folder: str | Path, evaluation: Evaluation) -> None:
    """Write the directory `folder`, whole or not at all.

    feature_density.safetensors: "density" and "mean_when_active", float64 of the dictionary's feature shape.
    feature_density.json: the histogram, one {"log10_density": lower edge, "features": count} a bin, and before them the
    features that were never active, with log10_density null.
    feature_density.png, .html: its plot.
    """
    from safetensors.torch import save

    histogram = evaluation.histogram
    bins = [
        {"log10_density": edge, "features": count} for edge, count in zip(histogram.edges[:-1], histogram.counts, strict=True)
    ]
    with atomic_directory(folder) as place:
        tensors = {"density": evaluation.density, "mean_when_active": evaluation.mean_when_active}
        write_bytes(place / "feature_density.safetensors", save({name: t.contiguous() for name, t in tensors.items()}))
        write_json(place / "feature_density.json", [{"log10_density": None, "features": histogram.never}, *bins])
