"""Time and memory of a large feature store: 16,384 features over 2M tokens of the embedded default.

    python -m benchmarks.features           # in a clone after `dvc repro`; writes benchmarks/results/features.md
    python -m benchmarks.features --features 512 --tokens 20000

The dictionary is a random TopK autoencoder with k = 32 on the residual stream (what its features mean is beside the point),
the text is the training split as often as needed. The pass, the writing of the store and the dashboard run in one process,
whose largest resident set is what is reported.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import resource
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch

from pipeline.analysis.analyze import Inputs, analyze
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.corpus.document import Document
from pipeline.corpus.packing import PackedSplit
from pipeline.corpus.tokens import open_tokens
from pipeline.corpus.tokens_writer import write_tokens
from pipeline.dashboard.folder import write_dashboard
from pipeline.dictionaries.build import build_dictionary
from pipeline.norms.hook_norm import load_norms
from pipeline.params.loader import load_params

RESULTS = Path("benchmarks/results/features.md")
FEATURES, TOKENS, GOAL = 16_384, 2_000_000, 2.0
DENSE = {"title": "", "about": "benchmark", "seen": "", "metrics": [], "figures": [], "charts": [], "coactivation_tokens": 0}


def make_tokens(path: Path, tokens: int) -> None:
    """The training split as often as needed, as one document."""
    store = open_tokens("data/tokens.zarr")
    own = store.train.read()
    n = math.ceil(tokens / own.shape[1])
    rows = own[np.arange(n) % len(own)]
    starts = np.arange(rows.size, dtype=np.int32).reshape(rows.shape)
    split = PackedSplit(rows, np.zeros_like(rows), starts, starts + 1)
    write_tokens(
        path,
        train=split,
        eval=PackedSplit(*(part[:1] for part in (rows, np.zeros_like(rows), starts, starts + 1))),
        ignore_token_ids=store.ignore_token_ids,
        documents=[Document("document", "")],
        tokenizer_digest=store.tokenizer_digest,
    )


def gigabytes() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def megabytes(folder: Path) -> float:
    """Size of a directory's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


@click.command()
@click.option("--features", default=FEATURES, help="Number of features.")
@click.option("--tokens", default=TOKENS, help="Number of tokens.")
def main(features: int, tokens: int) -> None:
    """Measure the feature store."""
    params = load_params("params.yaml")
    hook = params.dictionary.hooks_in[0]
    norm = load_norms("data/norms.json")[hook]
    config = {"kind": "sae", "hook_point_in": hook, "d_in": norm.d, "d_sae": features, "act_fn": "topk", "top_k": 32}
    entry = {"mean_norm": norm.mean_norm, "mean_square": norm.mean_square, "d": norm.d}
    params = dataclasses.replace(params, analysis=dataclasses.replace(params.analysis, tokens=tokens))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        build_dictionary(config, seed=0).fold({hook: entry}).save(place / "dictionary")
        make_tokens(place / "tokens.zarr", tokens)
        before, begin = gigabytes(), time.monotonic()
        about = analyze(params, Inputs(place / "dictionary", place / "tokens.zarr", "data/norms.json"), place / "features")
        store_seconds, store_memory = time.monotonic() - begin, gigabytes()
        begin = time.monotonic()
        overview = {**DENSE, "hooks": [hook], "shape": [features], "edges": [1.0, 2.0]}
        write_dashboard(place / "dashboard", FeatureStore(place / "features"), overview)
        page_seconds, memory = time.monotonic() - begin, gigabytes()
        sizes = [megabytes(place / name) for name in ("features", "dashboard")]
    lines = [
        "# The feature store and the dashboard of a large dictionary",
        "",
        f"`python -m benchmarks.features` on Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s) of two shared cores, no GPU.",
        f"{features:,} features over {about['tokens']:,} tokens.",
        "",
        "| | seconds | largest resident set, GB | MB on disk |",
        "|---|---:|---:|---:|",
        f"| before | | {before:.2f} | |",
        f"| feature store | {store_seconds:.0f} | {store_memory:.2f} | {sizes[0]:.0f} |",
        f"| dashboard | {page_seconds:.0f} | {memory:.2f} | {sizes[1]:.0f} |",
        "",
        f"Goal: less than {GOAL} GB for the feature store: {'met' if store_memory < GOAL else 'missed'}.",
        "",
    ]
    click.echo("\n".join(lines))
    if (features, tokens) == (FEATURES, TOKENS):
        RESULTS.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
