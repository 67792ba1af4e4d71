"""What the stage export was asked for: dictionaries in a format of weights, or their features in one of features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ParamsError
from pipeline.files import ensure_writable
from pipeline.interop.features import export_features, refuse_settings
from pipeline.interop.hub_paths import PREFIX
from pipeline.interop.publishing import Publishing, chosen_dictionaries, export_run
from pipeline.params.interchange import FEATURE_FORMATS

if TYPE_CHECKING:
    from pipeline.params.schema import Params


def export_chosen(
    params: Params,
    params_file: str,
    *,
    name: str,
    to: str | None,
    places: Sequence[str],
    member: str | None,
    inference: str,
    activations: str,
    tokens: int,
    drawn: bool,
    with_features: bool,
    features: Sequence[str],
    settings: Sequence[str],
    dry_run: bool,
    **publishing: Any,
) -> list[str]:
    """Export; lines for a terminal. The arguments are the stage's options (options.py).

    Raises:
        ParamsError, DataError, NumericsError: as :func:`export_run` and :func:`export_features`.
    """
    if to is not None and "://" not in to and not to.startswith(PREFIX):
        ensure_writable(to, "the export", "give another directory with --to")
    if name in FEATURE_FORMATS:
        if len(features) > 1:
            raise ParamsError(f"--features: {len(features)} feature stores, and {name} takes one")
        store = Path(features[0]) if features else Path("data") / "features"
        return export_features(params, name, to, features=store, member=member, settings=settings, dry_run=dry_run)
    refuse_settings(name, settings)
    found = chosen_dictionaries(params, places, member, inference)
    options = Publishing(dry_run=dry_run, **publishing)
    rows, pages = None if drawn else activations, features if with_features or features else None
    return export_run(params, params_file, found, name, to, options, activations=rows, n_tokens=tokens, features=pages)
