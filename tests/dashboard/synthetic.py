"""Feature stores made up of random numbers, of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.analysis.feature_columns import CONTEXTS, FEATURES, INACTIVE, TOP
from pipeline.analysis.feature_counts import BINS, histogram_edges
from pipeline.analysis.feature_tables import FORMAT_VERSION, TableWriter, band_name, contexts_schema, features_schema

BLOCK = 256
WINDOW = 31
WORDS = [
    " cat",
    " dog",
    "\n",
    " the",
    "ing",
    " <b>",
    "&amp;",
    " \u732b",
    "'",
    '"',
    " of",
    " ]]>",
    "</script>",
    "\x0b",
    "<0xE2>",
]


def make_store(
    folder: Path,
    n: int,
    *,
    contexts: int = 10,
    shape: tuple[int, ...] | None = None,
    hooks: int = 1,
    sources: bool = False,
    whole: range | None = None,
    logits: bool = True,
) -> Path:
    """A feature store of n features: feature i is strongest on the token ` word-i`, promotes ` next-i-0` to ` next-i-9` and suppresses ` not-...`; every
    seventh is never active; every eleventh from 5 has another word in each of its strongest contexts.

    Args:
        contexts: strongest ones of each feature; outside `whole`, if that is given, what the table shows alone: one context of
            one token, and no neighbours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = shape or (n,)
    about: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "dictionary": f"SAE made up, {n:,} features",
        "name": "made-up",
        "kind": "sae",
        "folded": True,
        "hook_points_in": ["blocks.0.hook_resid_post"],
        "hook_points_out": [f"blocks.{i}.hook_resid_post" for i in range(hooks)],
        "feature_shape": list(shape),
        "model": "none",
        "split": "train",
        "tokens": 100_000,
        "coactivation_tokens": 1_000,
        "histogram_edges": histogram_edges(),
    }
    features = TableWriter(folder / FEATURES, features_schema(), about)
    shown = TableWriter(folder / CONTEXTS, contexts_schema(), about)
    rng = np.random.default_rng(0)
    for start in range(0, n, BLOCK):
        some = range(start, min(start + BLOCK, n))
        bare = whole is not None and start not in whole
        columns = _feature_columns(some, n, shape, hooks, rng)
        if bare:
            columns |= dict.fromkeys(("decoder_neighbours", "coactive_neighbours"), [[]] * len(some))
        if not logits:
            columns |= dict.fromkeys(("logit_kurtosis", "promoted", "suppressed"), [None] * len(some))
        features.write(columns)
        alive = [i for i in some if i % 7]
        rows = [_peak(i) for i in alive] if bare else _context_rows(alive, contexts, sources, rng)
        shown.write({name: [row[name] for row in rows] for name in contexts_schema().names})
    features.close()
    shown.close()
    return folder


def _feature_columns(some: range, n: int, shape: tuple[int, ...], hooks: int, rng: np.random.Generator) -> dict[str, Any]:
    alive = [i % 7 != 0 for i in some]
    density = [float(d) if a else 0.0 for d, a in zip(10 ** rng.uniform(-5, -0.5, len(some)), alive, strict=True)]
    histogram = np.zeros((len(some), BINS), dtype=np.int64)
    histogram[:, 90:110] = rng.integers(0, 50, (len(some), 20)) * np.array(alive)[:, None]
    name = [f"{i // shape[-1]}/{i % shape[-1]}" if len(shape) > 1 else str(i) for i in some]
    tokens = [
        [{"token": 10**6 + 10 * i + k, "text": f" next-{i}-{k}", "logit": 3.0 - 0.2 * k} for k in range(10)] for i in some
    ]
    lowered = [
        [
            {"token": 10**5 + (10 * i + k) % 10**4, "text": f" not-{(10 * i + k) % 10**4}", "logit": 0.2 * k - 3.0}
            for k in range(10)
        ]
        for i in some
    ]
    near = [[(i + k) % n for k in range(1, 9)] for i in some]
    return {
        "feature": list(some),
        "name": name,
        "layer": [i // shape[-1] if len(shape) > 1 else None for i in some],
        "active_tokens": histogram.sum(1).tolist(),
        "density": density,
        "max_activation": [2.0 if a else 0.0 for a in alive],
        "mean_activation": [0.7 if a else 0.0 for a in alive],
        "energy": [d / n for d in density],
        "decoder_norm": [1.0] * len(some),
        "written_norms": [[1.0 / (k + 1) for k in range(hooks)]] * len(some),
        "written_cosines": [[0.5] * (hooks * (hooks - 1) // 2)] * len(some),
        "threshold": [None] * len(some),
        "histogram": histogram.tolist(),
        "logit_kurtosis": [float(i % 50) for i in some],
        "promoted": tokens,
        "suppressed": lowered,
        "decoder_neighbours": [[{"feature": j, "cosine": 0.5} for j in row] for row in near],
        "coactive_neighbours": [[{"feature": j, "jaccard": 0.1} for j in row] for row in near],
    }


def _context_rows(some: list[int], contexts: int, sources: bool, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for i in some:
        bands = [(TOP, k) for k in range(contexts)] + [
            (band_name(b, 4), k) for b in (3, 2, 1, 0) for k in range(min(3, contexts))
        ]
        for band, place in [*bands, (INACTIVE, 0)]:
            tokens = rng.integers(0, len(WORDS), WINDOW).tolist()
            texts = [WORDS[k] for k in tokens]
            values = (rng.random(WINDOW) * (rng.random(WINDOW) < 0.15)).round(3)
            tokens[20], texts[20], values[20] = 1000 + i, f" word-{i}", 2.0
            if i % 11 == 5 and band == TOP and place:
                tokens[20], texts[20] = 200_000 + 100 * i + place, f" other-{i}-{place}"
            if band == INACTIVE:
                values[:] = 0.0
            rows.append(
                _peak(i) | {
                    "band": band, "place": place, "activation": float(values[20]), "context": place, "peak": 20, "tokens": tokens,
                    "texts": texts, "activations": values.tolist(),
                    "sources": [{"position": 35, "text": " reads", "value": 0.25}] if sources else [],
                }
            )  # fmt: skip
    return rows


def _peak(i: int) -> dict[str, Any]:
    """The strongest context of a feature, its token alone."""
    return {
        "feature": i, "band": TOP, "place": 0, "activation": 2.0, "context": 0, "position": 40, "document_id": 0,
        "document": "text/a & b.txt", "token_start": 100, "token_end": 105, "char_start": 7, "char_end": 160, "peak": 0,
        "tokens": [1000 + i], "texts": [f" word-{i}"], "activations": [2.0], "sources": [],
    }  # fmt: skip


def overview(shape: list[int] | None = None, hooks: list[str] | None = None) -> dict[str, Any]:
    """What pipeline.dashboard.overview gives, made up."""
    edges = histogram_edges()
    return {
        "title": "made-up",
        "about": "SAE made up <b>",
        "seen": "100,000 tokens of the train split",
        "metrics": [["FVU", "squared error / variance", 0.1, [0.09, 0.11], 0.4, 1.0, None]],
        "massive": "4 of 1,000 tokens <b> are massive",
        "pca_rank": 24.0,
        "figures": [["L0 (held out)", 24.0]],
        "hook_table": {"columns": ["FVU", "L0"], "rows": [[hook, 0.25, None] for hook in hooks]} if hooks else None,
        "training": [["steps", 976], ["data set", "made <up>"]],
        "charts": ["<section class='card'><h2>A chart</h2></section>"],
        "hooks": hooks or ["blocks.0.hook_resid_post"],
        "shape": shape or [64],
        "edges": [edges[0], edges[1] / edges[0]],
        "coactivation_tokens": 1000,
    }
