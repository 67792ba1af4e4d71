"""report: compare experiments: L0 against FVU and delta cross entropy, as a table, PNG files and a page.

Reads the metrics and parameters of the experiments (`dvc exp run`) of the last commit (or of more), and of the working tree,
and of those that differ in L0 alone the sums of each evaluated document (metrics/plots/evaluation, in DVC's cache). Each
member of a sweep is compared as an experiment by itself. Those of another model, text, hook point or evaluation are in a
group of their own, each with its table and charts. `dvc exp show` has columns of each member, <member>.<metric>.
Writes metrics/plots/pareto.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import Output, stage_command

PICTURES = 12  # charts, two a group, that are in PNG files as well


@stage_command
@click.option(
    "--output", type=Output(directory=True, path_type=Path), default="metrics/plots/pareto", help="Directory of the plots."
)
@click.option("--commits", type=int, default=1, help="Experiments of so many commits back; -1: of all of them.")
def main(params: str, output: Path, commits: int) -> None:
    """Compare the experiments of this project, from the last commit or from more of them."""
    from pipeline.errors import DataError
    from pipeline.plots.comparison import table, tables
    from pipeline.plots.experiment import distinct, member_rows, read_experiment, told_apart, why_apart
    from pipeline.plots.experiments import experiment_rows, with_documents
    from pipeline.plots.pareto import pareto_charts
    from pipeline.plots.training_report import write_report

    rows, notes = experiment_rows(commits)
    single = [each for row in rows for each in member_rows(with_documents(row))]
    evaluated, repeated = distinct(found for row in single if (found := read_experiment(row)) is not None)
    experiments = told_apart(evaluated)
    for note in [*notes, *repeated]:
        click.echo(note, err=True)
    if not experiments:
        raise DataError("no experiment has been evaluated; run `dvc repro`, or `dvc exp run`")
    for line in [*why_apart(evaluated), *table(experiments)]:
        click.echo(line)
    charts, about = pareto_charts(experiments), f"{len(experiments)} evaluated on held-out text"
    write_report(output, "Experiments", about, charts, pictures=PICTURES, tables=tables(experiments))
    click.echo(f"\n{output / 'index.html'}", err=True)


if __name__ == "__main__":
    main()
