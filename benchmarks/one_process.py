"""The stages from generate to analyze in one process, on the token store that is there: a run without DVC, for checks.

    python -m benchmarks.one_process my_params.json

DVC starts a process for each stage, which takes half of the time of a small run.
"""

from __future__ import annotations

import importlib

import click
import torch

STAGES = ("generate_activations", "compute_norm", "initialize", "train", "fold_norm", "evaluate", "analyze")


@click.command()
@click.argument("params", type=click.Path(exists=True, dir_okay=False))
def main(params: str) -> None:
    """Run the stages with a parameter file; the outputs lie where DVC expects them."""
    for stage in STAGES:
        click.echo(f"{stage}", err=True)
        importlib.import_module(f"stages.{stage}").main.main(["--params", params], standalone_mode=False)
        torch.use_deterministic_algorithms(False)


if __name__ == "__main__":
    main()
