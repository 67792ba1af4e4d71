"""ground_truth: how well the run's parameters find features that are known, in activations made of them.

Reads the parameters alone: a new dictionary is trained with the sections dictionary, initializer and trainer. Writes
metrics/ground_truth.json and logs to the run of data/run.json. Cost: a training on --tokens rows.
"""

from __future__ import annotations

from typing import Any

import click

from pipeline.command import Output, stage_command
from pipeline.interrupts import interruption


@stage_command
@click.option("--width", type=click.IntRange(2), default=128, help="Dimensions of the activations.")
@click.option("--features", type=click.IntRange(2), default=2048, help="Known features.")
@click.option("--active", type=click.FloatRange(0, min_open=True), default=16.0, help="Mean number of active ones a row.")
@click.option("--exponent", type=click.FloatRange(0), default=0.5, help="Probabilities fall as rank to this power.")
@click.option("--children", type=click.IntRange(0), default=3, help="Of each root, active only where it is; 0: no hierarchy.")
@click.option("--correlation", type=click.FloatRange(0, 0.99), default=0.3, help="Of the roots; 0: independent.")
@click.option("--rank", type=click.IntRange(1), default=16, help="Dimensions of what correlated roots share.")
@click.option("--mean-norm", type=click.FloatRange(0), default=2.0, help="Length of what all rows share.")
@click.option("--noise-norm", type=click.FloatRange(0), default=0.3, help="Root mean square length of the noise.")
@click.option("--seed", type=int, default=0, help="Of the known features and their rows; the dictionary has the run's.")
@click.option("--tokens", type=click.IntRange(1), default=1_000_000, help="Rows to train on.")
@click.option("--member", help="Of a sweep: the member whose parameters are meant.")
@click.option("--out", type=Output(), default="metrics/ground_truth.json", help="Metrics to write.")
@click.option("--run", "run_file", default="data/run.json", help="The tracking run to go on with.")
@interruption("interrupted; run the same command again, it starts anew")
def main(params: str, tokens: int, member: str | None, out: str, run_file: str, **drawn: Any) -> None:
    """Train on activations that are made of known features, and see which of them are found."""
    from pipeline.dictionaries.places import chosen
    from pipeline.params.loader import load_params
    from pipeline.suites.ground_truth import run
    from pipeline.suites.synthetic import SyntheticSet

    loaded = load_params(params)
    name = chosen(member, loaded.members, "the run")
    for line in run(loaded.members[name], SyntheticSet(**drawn), name, tokens, out, run_file):
        click.echo(line)


if __name__ == "__main__":
    main()
