"""A cross-layer transcoder beside per-layer transcoders of the same total width, L0, tokens, start and batches.

Per-layer transcoders are the cross-layer one whose blocks to later layers stay at zero: the same code trains both. Run it in a
working tree after `dvc exp run $(python -m stages.preset demo-clt)`, whose store, norms and initial dictionary it uses and
whose metrics/evaluation.json is the other column.

    python -m benchmarks.per_layer          # writes benchmarks/results/per_layer.md
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks.quality import machine
from pipeline.dictionaries.saving import save_dictionary
from pipeline.dictionaries.store import load_dictionary
from pipeline.evaluation.saved import evaluate_saved
from pipeline.folding import fold_dictionary
from pipeline.norms.hook_norm import load_norms
from pipeline.norms.normalizer import Normalizer
from pipeline.opening import open_for
from pipeline.params.loader import load_params
from pipeline.training.loop import train
from pipeline.training.member import make_source

RESULTS = Path("benchmarks/results/per_layer.md")


def hold_cross_layer_blocks(dictionary: torch.nn.Module) -> None:
    """Zero the blocks from a layer to later ones, and their gradients."""
    for name, parameter in dictionary.named_parameters():
        if name.startswith("W_D."):
            target = int(name.removeprefix("W_D."))

            def keep_own(grad: Tensor, target: int = target) -> Tensor:
                own = torch.zeros_like(grad)
                own[target] = grad[target]
                return own

            with torch.no_grad():
                parameter[:target] = 0.0
            parameter.register_hook(keep_own)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Table to write.")
def main(output: Path) -> None:
    """Train, fold and evaluate the per-layer transcoders; compare."""
    params = load_params("params.yaml")
    if params.dictionary.kind != "clt":
        raise click.ClickException("params.yaml is not of a clt; run `dvc exp run $(python -m stages.preset demo-clt)` first")
    store = open_for(params, Path("data/activations.json"))
    dictionary = load_dictionary("data/initial/main")
    hold_cross_layer_blocks(dictionary)
    norms = load_norms("data/norms.json")
    limits = Normalizer(dictionary.config, norms).excluded
    source = make_source(params, dictionary, limits, store, torch.device("cpu"))
    began = time.monotonic()
    train(dictionary, source, params=params.trainer, norms=norms, total_steps=params.total_steps, label="per-layer")
    seconds = time.monotonic() - began
    inference = fold_dictionary(dictionary, norms).dictionary
    place = Path("data/per_layer/main")
    save_dictionary(inference, place)
    found = evaluate_saved(
        params, place, tokens="data/tokens.zarr", norms="data/norms.json", statistics="data/norm_statistics.safetensors"
    ).metrics
    across = json.loads(Path("metrics/evaluation.json").read_text())
    hooks = dictionary.hooks_out
    rows = [("explained variance", "explained_variance"), ("L0 of all layers", "l0_mean"), ("dead features", "dead_fraction")]
    rows += [(f"explained variance, {hook}", f"explained_variance.{hook}") for hook in hooks]
    rows += [("delta CE, every MLP output replaced", "delta_ce")]
    rows += [(f"delta CE, {hook} alone", f"delta_ce.{hook}") for hook in hooks]
    rows += [
        ("PCA of the same rank: FVU", "pca_fvu"),
        ("PCA: delta CE", "pca_delta_ce"),
        ("mean ablation: cross entropy", "ce_mean"),
    ]
    lines = ["| held out | cross-layer transcoder | per-layer transcoders |", "|---|---:|---:|"]
    lines += [f"| {name} | {across[key]:.4f} | {found[key]:.4f} |" for name, key in rows]
    n_features = torch.Size(dictionary.feature_shape).numel()
    text = "\n".join(
        [
            "# Cross-layer and per-layer transcoders",
            "",
            f"`dvc exp run $(python -m stages.preset demo-clt)` and `python -m benchmarks.per_layer` on {machine()}. "
            f"{n_features:,} features in all, k {params.dictionary.top_k} a layer, {params.trainer.total_training_tokens:,} "
            f"tokens, the same start and batches; the per-layer run took {seconds:.0f} s.",
            "",
            *lines,
            "",
        ]
    )
    output.write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
