"""The dashboard as files.

index.html        the page: style, program and overview; opened by double click, it asks the network for nothing
data/table.js     the columns of the table
data/chunk-N.js   the pages of CHUNK features, loaded when one of them is looked at
single.html       the same with the features of the largest energy, all in one file (MLflow shows no siblings)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.dashboard.chunks import CHUNK, Table, chunk, packed, part, short
from pipeline.files import atomic_directory, write_json
from pipeline.garbage import uncollected
from pipeline.plots.page import STYLE
from pipeline.plots.training_report import PAGE
from pipeline.progress import Progress

SINGLE_PAGE = "single.html"
OVERVIEW = "overview.json"
EXPLANATIONS = "shown.html"  # which the page of a dashboard takes explanations from
_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("theme.js", "data.js", "draw.js", "overview.js", "table.js", "kept.js", "feature.js", "main.js")
_DARK = re.compile(r"@media \(prefers-color-scheme: dark\) \{ :root \{(.*?)\} \}", re.DOTALL)

Block = tuple[Sequence[Mapping[str, Any]], Mapping[int, Sequence[Mapping[str, Any]]]]


def write_dashboard(
    folder: str | Path,
    store: FeatureStore,
    overview: Mapping[str, Any],
    *,
    single: int = 2000,
    explanations: Mapping[str, Mapping[str, Any]] | None = None,
    up: str = "",
    interpretations: str = "",
) -> None:
    """Write the dashboard of a feature store, whole or not at all.

    Args:
        folder: what is there is replaced.
        store: the feature store.
        overview: see :func:`pipeline.dashboard.overview.overview`.
        single: features in the page that is one file: the ones with the largest `energy`; 0: no such page.
        explanations: {name of a feature: {"explanation", "detection", "fuzzing"}}.
        up: a page beside the folder that index.html leads back to, as `../index.html`; "": none.
        interpretations: where stages.interpret may have written explanations of this store, from the folder; "": nowhere.
    """
    overview = {**overview, "store": store.digest()}
    ranked = store.features(["feature", "density", "energy"])
    chosen = largest_energy(ranked, single)
    table, single_table = Table(explanations), Table(explanations)
    singles: dict[str, str] = {}
    progress = Progress("dashboard", store.n_features, unit="features")
    with atomic_directory(folder) as place, uncollected():
        (place / "data").mkdir()
        for number, (rows, contexts) in enumerate(blocks(store)):
            whole = chunk(rows, contexts)
            name, text = f"chunk-{number}", packed(whole)
            _write(place / "data" / f"{name}.js", f'scopeline.put("{name}","{text}")')
            for row in rows:
                table.add(row, contexts[row["feature"]])
            some = [row for row in rows if row["feature"] in chosen]
            if some:
                singles[name] = text if len(some) == len(rows) else packed(part(whole, chosen))
                for row in some:
                    single_table.add(row, contexts[row["feature"]])
            progress.update(len(rows))
        _write(place / "data" / "table.js", f'scopeline.put("table","{packed(table.packed())}")')
        write_json(place / "data" / OVERVIEW, dict(overview))
        _write(place / PAGE, page({**overview, "explanations": interpretations}, {}, up))
        if single:
            data = {"table": packed(single_table.packed()), **singles}
            _write(place / SINGLE_PAGE, page({**overview, **_part(ranked, chosen)}, data))
    progress.close()


def write_explanations(path: Path, store: FeatureStore, explanations: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the page from which a dashboard takes explanations, {name: {"explanation", "detection", "fuzzing"}}."""
    keys = ("explanation", "detection", "fuzzing")
    features = {name: {key: one.get(key) for key in keys} for name, one in explanations.items()}
    said = json.dumps({"store": store.digest(), "features": features}, ensure_ascii=True).replace("<", "\\u003c")
    _write(
        path,
        f'<!DOCTYPE html><meta charset="utf-8"><title>Explanations</title><script>parent.postMessage({said}, "*")</script>\n',
    )


def largest_energy(rows: Sequence[Mapping[str, Any]], n: int) -> set[int]:
    """The n features of the largest energy, which is the share of what is written that is theirs; inactive ones never."""
    alive = [row for row in rows if row["density"] > 0]
    ordered = sorted(alive, key=lambda row: (-row["energy"], row["feature"]))
    return {row["feature"] for row in ordered[:n]}


def _part(rows: Sequence[Mapping[str, Any]], chosen: set[int]) -> dict[str, Any]:
    """What the page that is one file says of its choice: nothing where it has all features."""
    if len(chosen) == len(rows):
        return {}
    share = sum(row["energy"] for row in rows if row["feature"] in chosen)
    return {"part": f"{len(chosen):,} of {len(rows):,} features", "part_energy": short(share, 3)}


def blocks(store: FeatureStore) -> Iterator[Block]:
    """CHUNK features at a time, with their contexts."""
    for rows, contexts in store.blocks():
        for start in range(0, len(rows), CHUNK):
            yield rows[start : start + CHUNK], contexts


def page(overview: Mapping[str, Any], data: Mapping[str, str], up: str = "") -> str:
    """The HTML page; `data` is put inside, what is missing there is loaded from data/. `up`: where its "Members" leads, if it
    has one."""
    body = (_ASSETS / "body.html").read_text(encoding="utf-8")
    if up:
        body = body.replace("<nav>", f'<nav><a href="{escape(up)}">Members</a>', 1)
    inside = "".join(f'<script type="text/plain" id="data-{name}">{text}</script>\n' for name, text in data.items())
    scripts = "\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    about = json.dumps({**overview, "chunk": CHUNK}, ensure_ascii=False).replace("<", "\\u003c")
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(str(overview['about']))}</title>",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<style>{style()}</style></head><body>",
            body,
            inside + f'<script type="application/json" id="overview">{about}</script>',
            f"<script>{scripts}</script>",
            "</body></html>\n",
        ]
    )


def style() -> str:
    """Of all pages of a dashboard: dark where the system is, or where the page is told so, and light where it is told that."""
    both = STYLE + (_ASSETS / "dashboard.css").read_text(encoding="utf-8")
    told = ':root[data-theme="light"] { color-scheme: light; } :root[data-theme="dark"] { color-scheme: dark; }'
    dark = '@media (prefers-color-scheme: dark) { :root:not([data-theme="light"]) {\\1} }\n:root[data-theme="dark"] {\\1}'
    return f"{_DARK.sub(dark, both)}{told}\n"


def theme_script() -> str:
    """The program of the button that chooses light or dark, for a page of its own."""
    return (_ASSETS / "theme.js").read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
