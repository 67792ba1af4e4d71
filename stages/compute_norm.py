"""norm: the activation store -> data/norms.json and data/norm_statistics.safetensors.

Reads the first norm.tokens tokens of the store (its rows are shuffled). Writes mean norm, mean square, quantiles and effective
rank of every hook point, and beside them mean, spectrum, leading eigenvectors and norm histogram; metrics/norm.json and
metrics/plots/norm. Says where massive tokens are, and whether they are excluded. Cost: a few seconds for a million tokens of
width 128; it grows with the square of the width.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import Output, stage_command


@stage_command
@click.option("--activations", default="data/activations.json", help="Manifest of the activation store, or a store.")
@click.option("--out", type=Output(), default="data/norms.json", help="Norms to write.")
@click.option("--statistics", type=Output(), default="data/norm_statistics.safetensors", help="Arrays to write.")
@click.option("--metrics", type=Output(), default="metrics/norm.json", help="Figures to write.")
@click.option("--plots", type=Output(directory=True), default="metrics/plots/norm", help="Directory of plots to write.")
def main(params: str, activations: str, out: str, statistics: str, metrics: str, plots: str) -> None:
    """Measure the activation norms."""
    from pipeline.files import write_json
    from pipeline.norms.hook_norm import load_norms, write_norms
    from pipeline.norms.massive import MassiveTokens, ModelTexts
    from pipeline.norms.measure import compute_norms
    from pipeline.norms.report import NormReport
    from pipeline.opening import open_activations
    from pipeline.params.loader import load_params
    from pipeline.planning.beginning import begin
    from pipeline.progress import Progress

    loaded = load_params(params)
    begin("norm", loaded)
    tokens, factor = loaded.norm.tokens, loaded.activations.max_norm_factor
    store = open_activations(activations, device=loaded.model.device, device_map=loaded.model.device_map)
    total = store.n_tokens if tokens is None else min(tokens, store.n_tokens)
    n_hooks = len(store.hook_points)
    progress = Progress("norm", total, unit=f"tokens at {n_hooks} hook point{'' if n_hooks == 1 else 's'}")
    massive = MassiveTokens(store)
    found = compute_norms(store, tokens, max_norm_factor=factor, done=progress.update, massive=massive.add)
    progress.close()
    write_norms(found, Path(out), Path(statistics), {"activations": store.fingerprint})
    report = NormReport(load_norms(out), massive, ModelTexts(loaded))
    for line in report.lines():
        click.echo(f"norm: {line}", err=True)
    models = [store.model, *store.model.get("models", {}).values()]
    report.write_plots(plots, " and ".join(str(model["name"]) for model in models), norms=out, statistics=statistics)
    write_json(metrics, report.metrics())


if __name__ == "__main__":
    main()
