"""plan: what a run of these parameters needs and how long it takes, from about ten seconds of its own work on this machine.

Reads the text (a part of it, where it is long) and the language model. Writes nothing that the pipeline reads; what was
measured is kept in data/rates.json, from which stages say how long they will take. Exit code 2 where a stage would refuse the
parameters, with a line for each fault.
"""

from __future__ import annotations

import click

from pipeline.command import stage_command


@stage_command
@click.option("--tokens", default="data/tokens.zarr", help="Token store; where it is not there, tokens are estimated.")
@click.option("--measure/--no-measure", default=True, help="Run the model and the dictionary for about ten seconds.")
def main(params: str, tokens: str, measure: bool) -> None:
    """Say what a run needs, what each stage takes, and what will be too little, before anything long starts."""
    from pipeline.params.loader import load_params
    from pipeline.planning.planned import plan

    for line in plan(load_params(params), tokens, measure=measure, say=lambda line: click.echo(f"plan: {line}", err=True)):
        click.echo(line)


if __name__ == "__main__":
    main()
