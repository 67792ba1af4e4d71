"""inputs: which text and which models lie under the names of the parameters now, for DVC to compare.

Runs at every `dvc repro`, since DVC cannot depend on a path that may be a hub id as well. Reads the local text and models;
their digests are remembered in data/input_digests.json, so that only what has changed is read. Writes data/inputs/text.json and
data/inputs/models.json, on which the stages that read them depend. Cost: a second.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from pipeline.command import Output, stage_command


@stage_command
@click.option("--out", type=Output(directory=True), default="data/inputs", help="Directory of the two files to write.")
def main(params: str, out: str) -> None:
    """Write what the text and the models are told by: digests of local files, commits of hub models."""
    from pipeline.corpus.contents import text_contents
    from pipeline.digests import FileDigests
    from pipeline.files import root, write_json
    from pipeline.lm.contents import model_contents
    from pipeline.params.loader import load_params
    from pipeline.uncached import uncached_plots

    loaded = load_params(params)
    if "DVC_EXP_NAME" in os.environ and (lacking := uncached_plots()):
        click.echo(
            f"warning: DVC's cache here lacks {', '.join(lacking)} (in dvc.lock), without which `dvc exp run STAGE` fails when "
            "its stages have run: run `dvc exp run` without a stage, or `dvc repro STAGE`",
            err=True,
        )
    digests = FileDigests(root() / "data" / "input_digests.json")
    models = {"model": model_contents(loaded.model.model_name, loaded.model.revision, digests)}
    for alias, model in (loaded.models or {}).items():
        models[f"models.{alias}"] = model_contents(model.model_name, model.revision, digests)
    write_json(Path(out) / "text.json", text_contents(loaded.dataset, digests))
    write_json(Path(out) / "models.json", models)
    digests.remember()


if __name__ == "__main__":
    main()
