"""train: the store + data/initial/<name>/ -> data/trained/<name>/, from the last checkpoint if there is one.

Of a sweep all members at once, each batch being read once (docs/sweep.md).

Reads the activation store, data/norms.json and data/initial/<name>/. Writes data/trained/<name>/, data/run.json (the tracked
run), metrics/train.json and metrics/train_history.jsonl. Cost: about a minute and a half a million tokens of the embedded
default on two cores. Stopped or killed, the same command goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.command import Output, stage_command
from pipeline.distributed.stage import in_processes

if TYPE_CHECKING:
    from pipeline.params.schema import Params
    from pipeline.processes import Reductions


@stage_command
@click.option("--activations", default="data/activations.json", help="Manifest of the activation store, or a store.")
@click.option("--norms", default="data/norms.json", help="Activation norms.")
@click.option("--initial", default="data/initial", help="Directory of the initial dictionaries.")
@click.option("--out", type=Output(directory=True), default="data/trained", help="Directory of the trained dictionaries.")
@click.option("--run", type=Output(), default="data/run.json", help="Id of the tracked run to write.")
@click.option("--metrics", type=Output(), default="metrics/train.json", help="Figures to write.")
@click.option("--history", type=Output(), default="metrics/train_history.jsonl", help="Figures of the log steps to write.")
@click.option("--plots", type=Output(directory=True), default="metrics/plots/training", help="Directory of plots to write.")
@in_processes("train")
def main(params: Params, processes: Reductions, out: str, initial: str, **options: str) -> None:
    """Train the dictionary, or those of the sweep."""
    from functools import partial
    from pathlib import Path

    from pipeline.planning.beginning import begin_training
    from pipeline.training.outputs import Places
    from pipeline.training.session import train_dictionaries

    name = params.dictionary.name
    paths = {key: Path(path) for key, path in options.items()}
    places = Places(initial=Path(initial) / name, trained=Path(out) / name, **paths)
    train_dictionaries(params, places, processes, partial(begin_training, params))


if __name__ == "__main__":
    main()
