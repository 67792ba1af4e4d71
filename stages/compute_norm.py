"""norm: the activation store -> data/norms.json and data/norm_statistics.safetensors.

Reads the first norm.tokens tokens of the store (its rows are shuffled). Writes mean norm, mean square, quantiles and effective
rank of every hook point, and beside them mean, spectrum, leading eigenvectors and norm histogram. Cost: a few seconds for a
million tokens of width 128; it grows with the square of the width.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import stage_command


@stage_command
@click.option("--activations", default="data/activations.json", help="Manifest of the activation store, or a store.")
@click.option("--out", default="data/norms.json", help="Norms to write.")
@click.option("--statistics", default="data/norm_statistics.safetensors", help="Arrays to write.")
def main(params: str, activations: str, out: str, statistics: str) -> None:
    """Measure the activation norms."""
    from pipeline.activations.reader import open_activations
    from pipeline.norms import compute_norms, write_norms
    from pipeline.params.loader import load_params
    from pipeline.progress import Progress

    loaded = load_params(params)
    tokens = loaded.norm.tokens
    store = open_activations(activations)
    total = store.n_tokens if tokens is None else min(tokens, store.n_tokens)
    progress = Progress("norm", total * len(store.hook_points))
    found = compute_norms(store, tokens, max_norm_factor=loaded.activations.max_norm_factor, done=progress.update)
    progress.close()
    write_norms(found, Path(out), Path(statistics))


if __name__ == "__main__":
    main()
