"""Export of what the analysis of a run has left on the disk, in a format of features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.analysis.feature_columns import FEATURES
from pipeline.dictionaries.formats.interface import members_at
from pipeline.dictionaries.places import chosen
from pipeline.errors import ParamsError
from pipeline.interop.feature_format import FeatureInputs
from pipeline.interop.interface import feature_format
from pipeline.params.interchange import FEATURE_FORMATS

if TYPE_CHECKING:
    from pipeline.params.schema import Params


def export_features(
    params: Params,
    format: str,
    to: str | None = None,
    *,
    features: str | Path = "data/features",
    member: str | None = None,
    settings: Sequence[str] = (),
    dry_run: bool = False,
) -> list[str]:
    """Export a feature store; interpretations are those beside it, the evaluation is metrics/evaluation.json.

    Args:
        params: of the run.
        format: name of a format of features.
        to: see FeatureFormat.export.
        features: data/features.
        member: of a sweep.
        settings: NAME=VALUE each, of the format.
        dry_run: only check and count.

    Returns: lines for a terminal.

    Raises:
        ParamsError: no such format or member, or a setting that is wrong.
        DataError: see FeatureFormat.export.
    """
    form, folder = feature_format(format), Path(features)
    part = chosen(member, members_at(folder, FEATURES), str(folder))
    inputs = FeatureInputs(
        params, part, folder / part, folder.parent / "interpretations" / part, Path("metrics") / "evaluation.json"
    )
    return form.export(inputs, to, settings, dry_run=dry_run)


def refuse_settings(format: str, settings: Sequence[str]) -> None:
    """Refuse what a format of weights has not.

    Raises:
        ParamsError: there are settings.
    """
    if settings:
        raise ParamsError(f"--set: the format {format} has none; those of features do ({', '.join(FEATURE_FORMATS)})")
