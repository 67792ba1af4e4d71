"""plan: what a run of these parameters needs and how long it takes, from some of its own work on this machine.

Reads the text (a part of it, where it is long) and the language model. Writes nothing that the pipeline reads; what was
measured is kept in data/rates.json, from which stages say how long they will take. Exit code 2 where a stage would refuse the
parameters, or the text is surely too little, with a line for each fault. Cost: half a minute
of the processors for a small model.
"""

from __future__ import annotations

import click

from pipeline.command import stage_command, threads_sleep_while_waiting


@stage_command
@click.option("--tokens", default="data/tokens.zarr", help="Token store; where it is not there, tokens are estimated.")
@click.option("--measure/--no-measure", default=True, help="Run the model and the dictionary for a while.")
@click.option("-S", "overrides", multiple=True, help="key=value, laid over the parameter file; may be repeated.")
def main(params: str, tokens: str, measure: bool, overrides: tuple[str, ...]) -> None:
    """Say what a run needs, what each stage takes, and what will be too little, before anything long starts."""
    threads_sleep_while_waiting()
    from pipeline.planning.planned import plan
    from pipeline.planning.recipe import params_with

    def say(line: str) -> None:
        click.echo(f"plan: {line}", err=True)

    for line in plan(params_with(params, overrides), tokens, measure=measure, say=say):
        click.echo(line)


if __name__ == "__main__":
    main()
