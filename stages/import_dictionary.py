"""import_dictionary: a dictionary of another tool as one of ours, in data/inference/<name>/.

Reads a directory or file in one of the known formats, or hf:user/repository/folder@revision, and the configuration of the
language model. Writes data/inference/<name>/, which evaluate, analyze, inspect and interpret take and a run can start from.
Cost: seconds.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import Output, stage_command


@stage_command
@click.argument("path")
@click.option("--format", "form", help="Of the files; without it they are looked at.")
@click.option(
    "--list", "only_list", is_flag=True, help="Of the hub: name the dictionaries of PATH and their sizes, fetch none."
)
@click.option("--name", default="imported", help="Name of the dictionary.")
@click.option("--hook-point-in", help="What it reads, where the files do not say it: blocks.L.name.")
@click.option("--hook-point-out", help="What it writes, likewise.")
@click.option("--any-model", is_flag=True, help="Do not ask whether the language model of the parameters has its hook points.")
@click.option("--out", type=Output(directory=True), default="data/inference", help="Directory of the inference dictionaries.")
def main(
    params: str,
    path: str,
    form: str | None,
    only_list: bool,
    name: str,
    hook_point_in: str | None,
    hook_point_out: str | None,
    any_model: bool,
    out: str,
) -> None:
    """Read the dictionary at PATH and write it as one of ours."""
    from pipeline.interop.hub import listed
    from pipeline.interop.importing import check_model, import_from, next_steps
    from pipeline.params.loader import load_params

    if only_list:
        return click.echo("\n".join(listed(path, form)))
    loaded = load_params(params)
    found = import_from(path, form, name=name, hook_point_in=hook_point_in, hook_point_out=hook_point_out)
    if not any_model:
        check_model(found.dictionary, loaded.model.model_name, loaded.model.revision, path=path)
    place = Path(out) / name
    found.dictionary.save(place)
    for line in [*(f"{path}: {sentence}" for sentence in found.said), *next_steps(found, place)]:
        click.echo(line)


if __name__ == "__main__":
    main()
