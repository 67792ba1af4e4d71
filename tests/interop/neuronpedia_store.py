"""A planted feature store whose texts and numbers are such that an export could get them wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.seeding import numpy_generator
from tests.interpretation.conftest import BANDS, context_row, feature_row, write_store

PER_LAYER, DEAD = 10, 3
EDGES = [0.5, 1.0, 2.0, 4.0, 8.0]
WORDS = [" the", " cat", "\n", "<0xE2>", "<0x82>", "<|endoftext|>", "", "\0", "\U0001f600", ' "q"\\', " caf\u00e9", "<<"]
SHOWN = {"top": 4, "inactive": 2}  # and two of each quarter
DENSE = dict.fromkeys(BANDS, 2) | SHOWN


def _number(draw: np.random.Generator, low: float, high: float) -> float:
    return float(np.float32(draw.uniform(low, high)))


def _feature(index: int, name: str, layer: int | None, total: int) -> dict[str, Any]:
    draw = numpy_generator(0, "tests", "neuronpedia feature", index)
    dead = index % PER_LAYER == DEAD
    words = [WORDS[int(i)] for i in draw.integers(len(WORDS), size=24)]

    def logits(sign: float) -> list[dict[str, Any]]:
        values = sorted((_number(draw, 0.1, 3.0) for _ in words), reverse=True)
        return [
            {"token": i, "text": text, "logit": sign * value} for i, (text, value) in enumerate(zip(words, values, strict=True))
        ]

    return feature_row(
        index,
        name=name,
        layer=layer,
        active_tokens=0 if dead else 100 + index,
        density=0.0 if dead else (100 + index) / 10_000,
        max_activation=0.0 if dead else 7.3,
        histogram=[0, 0, 0, 0] if dead else [0, 60 + index, 0, 40],
        promoted=logits(1.0),
        suppressed=logits(-1.0),
        decoder_neighbours=[{"feature": (index + step) % total, "cosine": _number(draw, -1, 1)} for step in (1, PER_LAYER, 2)],
    )


def _contexts(index: int, attention: bool, counts: dict[str, int]) -> list[dict[str, Any]]:
    draw = numpy_generator(0, "tests", "neuronpedia contexts", index)
    rows = []
    for number, band in enumerate(BANDS):
        for place in range(counts[band]):
            texts = [WORDS[int(i)] for i in draw.integers(len(WORDS), size=6)]
            values = [0.0] * 6
            if band != "inactive":
                peak = int(draw.integers(1, 6))
                values[peak] = (
                    float(np.float32(7.3)) if (number, place) == (0, 0) else float(np.float32(7.1 - number - 0.1 * place))
                )
                values[peak - 1] = _number(draw, 0.0, 1.0)
            row = context_row(index, band, place, 1000 * index + 50 * number + place, texts, values)
            row["position"] += 20  # where the window begins in its context
            if attention and band != "inactive":
                at = int(row["position"])
                row["sources"] = [
                    {"position": at - back, "text": " x", "value": _number(draw, 0.1, 2.0)} for back in (0, 1, 12)
                ]
            elif attention:
                row["sources"] = []
            rows.append(row)
    return rows


def planted_store(
    folder: Path, *, layers: int = 1, attention: bool = False, counts: dict[str, int] | None = None, **about: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write a store of ten features a layer, of which one is dead; its rows of both files.

    Args:
        folder: of the store.
        layers: of the dictionary.
        attention: contexts state what activations come from.
        counts: {band: contexts}.
        about: of its metadata.
    """
    total = PER_LAYER * layers
    names = [f"{i // PER_LAYER}/{i % PER_LAYER}" if layers > 1 else str(i) for i in range(total)]
    features = [_feature(i, names[i], i // PER_LAYER if layers > 1 else None, total) for i in range(total)]
    contexts = [row for i in range(total) if i % PER_LAYER != DEAD for row in _contexts(i, attention, counts or DENSE)]
    shape = [layers, PER_LAYER] if layers > 1 else [PER_LAYER]
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in range(layers)] if layers > 1 else ["blocks.2.hook_resid_post"]
    stated: dict[str, Any] = {"model": "demo", "name": "main", "feature_shape": shape, "hook_points_in": hooks}
    stated["hook_points_out"] = hooks
    stated = {**stated, "histogram_edges": EDGES, **about}
    written = len(stated["hook_points_out"])
    for row in features:
        row["written_norms"] = [1.0] * written
        row["written_cosines"] = [0.5] * (written * (written - 1) // 2) if written > 1 else None
    write_store(folder, features, contexts, **stated)
    return features, contexts
