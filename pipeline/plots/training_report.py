"""Charts into a directory: a PNG each, and one HTML page of all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import metric_names as names
from pipeline.files import write_bytes
from pipeline.plots.charts import Chart
from pipeline.plots.page import Table, page
from pipeline.plots.png import png
from pipeline.plots.training import sweep_charts, training_charts
from pipeline.provenance import section

PAGE = "index.html"
FIRST = 3  # loss, L0, explained variance: the ones that get a PNG of their own
_KINDS = {"sae": "SAE", "clt": "CLT", "lorsa": "Lorsa"}


def write_report(
    folder: str | Path,
    title: str,
    about: str,
    charts: Sequence[Chart],
    figures: Mapping[str, float | str] | None = None,
    *,
    pictures: int | None = None,
    tables: Sequence[Table] = (),
    more: Sequence[Table] = (),
) -> None:
    """Write PNG files of the charts and index.html of all into a directory.

    Args:
        folder: made if it is not there; other files in it stay.
        pictures: how many charts, the first ones, are in PNG files as well; None: all.
        title: heading of the page.
        about: what is shown, see :func:`describe`.
        charts, figures, tables, more: see :func:`pipeline.plots.page.page`.
    """
    folder = Path(folder)
    files: dict[str, list[Chart]] = {}
    for chart in charts[:pictures]:
        files.setdefault(chart.name.split(".")[0], []).append(chart)
    for name, panels in files.items():
        write_bytes(folder / f"{name}.png", png(panels, about))
    text = page(title, about, charts, figures, tables=tables, more=more)
    write_bytes(folder / PAGE, text.encode("ascii", "xmlcharrefreplace"))


def write_training_report(
    folder: str | Path, history: Sequence[Mapping[str, float]], about: str, figures: Mapping[str, float | str] | None = None
) -> None:
    """Write the report of a training run: loss.png, l0.png, explained_variance.png, index.html, and history.json, which is the
    history in a form that DVC plots (it reads no JSON lines).

    Args:
        folder: made if it is not there.
        history: rows of metrics/train_history.jsonl, in order.
        about: what was trained.
        figures: shown as a table.
    """
    folder = Path(folder)
    _write_history(folder, history)
    write_report(folder, "Training", about, training_charts(history), figures, pictures=FIRST)


def write_sweep_report(folder: str | Path, histories: Mapping[str, Sequence[Mapping[str, float]]], about: str) -> None:
    """Write the report of the members of a sweep, a line each, under the names of :func:`write_training_report`.

    Args:
        folder: made if it is not there; the members' own reports may be in it.
        histories: {member: rows}.
        about: what was trained.
    """
    folder, charts = Path(folder), sweep_charts(histories)
    _write_history(folder, [{**row, names.MEMBER: member} for member, rows in histories.items() for row in rows])
    write_report(folder, "Training", about, charts)


def _write_history(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    rows = ",\n".join(json.dumps(dict(row), sort_keys=True) for row in history)
    write_bytes(folder / "history.json", f"[{rows}]\n".encode())


def describe(config: Mapping[str, Any], model: str | None = None, *, layers: int = 1) -> str:
    """What a dictionary is, in a line: `SAE main, topk 24, 2,048 features, blocks.2.hook_resid_post of demo`.

    Args:
        config: config.json of a dictionary directory, or as much of it as there is.
        model: the language model; None: the one in the configuration's provenance.
        layers: of features, each of d_sae.
    """
    model = model or section(section(config, "provenance"), "model").get("name")
    kind = str(config.get("kind", "dictionary"))
    act = config.get("act_fn")
    source, target = (_hook_points(config, side) for side in ("in", "out"))
    where = source if not target or target == source else f"{source} to {target}"
    parts = [
        " ".join(part for part in (_KINDS.get(kind, kind), config.get("name")) if part),
        f"{act} {config['top_k']}" if act and "topk" in act and config.get("top_k") else act,
        _width(config, layers),
        f"{where} of {model}" if where and model else where or model,
    ]
    return ", ".join(str(part) for part in parts if part)


def _hook_points(config: Mapping[str, Any], side: str) -> str | None:
    """One hook point, or several: the first and the last of more than two."""
    several = config.get(f"hook_points_{side}")
    if not several:
        one = config.get(f"hook_point_{side}")
        return None if one is None else str(one)
    return f"{several[0]} ... {several[-1]} ({len(several)})" if len(several) > 2 else " and ".join(several)


def _width(config: Mapping[str, Any], layers: int) -> str | None:
    """Number of features, of each layer where there are several."""
    if not config.get("d_sae"):
        return None
    return f"{layers} x {config['d_sae']:,} features" if layers > 1 else f"{config['d_sae']:,} features"
