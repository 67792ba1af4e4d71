"""report: compare all experiments: L0 against FVU and delta cross entropy, as a table, PNG files and a page.

Reads the metrics and parameters of the experiments (`dvc exp run`), of the last commit and of the working tree. Writes
metrics/plots/pareto.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import stage_command


@stage_command
@click.option("--output", type=click.Path(path_type=Path), default="metrics/plots/pareto", help="Directory of the plots.")
@click.option("--commits", type=int, default=1, help="Experiments of so many commits back; -1: of all.")
def main(params: str, output: Path, commits: int) -> None:
    """Compare all experiments of this project."""
    import dvc.api

    from pipeline.errors import DataError
    from pipeline.plots.pareto import distinct, pareto_charts, read_experiment, table
    from pipeline.plots.report import write_report

    rows = dvc.api.exp_show(num=commits)
    experiments = distinct(found for row in rows if (found := read_experiment(row)) is not None)
    if not experiments:
        raise DataError("no experiment has been evaluated; run `dvc repro`, or `dvc exp run`")
    for line in table(experiments):
        click.echo(line)
    write_report(output, "Experiments", f"{len(experiments)} evaluated on held-out text", pareto_charts(experiments))
    click.echo(f"\n{output / 'index.html'}", err=True)


if __name__ == "__main__":
    main()
