"""inputs: which text, models and dictionary lie under the names of the parameters now, for DVC to compare.

Runs at every `dvc repro`, since DVC cannot depend on a path that may be a hub id, or null. Reads what is local as far as
data/input_digests.json has no digest of it; other stages depend on the three files that it writes. Cost: a second.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import Output, stage_command


@stage_command
@click.option("--out", type=Output(directory=True), default="data/inputs", help="Directory of the files to write.")
def main(params: str, out: str) -> None:
    """Write what text, models and dictionary are told by: digests of local files, commits of hub models."""
    from pipeline.corpus.contents import text_contents
    from pipeline.digests import FileDigests
    from pipeline.errors import DataError
    from pipeline.files import near, root, write_json
    from pipeline.lm.contents import model_contents
    from pipeline.params.loader import load_params
    from pipeline.planning.refusals import PARAMETERS, refuse
    from pipeline.uncached import lacking_line

    loaded = load_params(params)
    refuse(loaded, PARAMETERS)
    if (line := lacking_line()) is not None:
        click.echo(line, err=True)
    digests = FileDigests(root() / "data" / "input_digests.json")
    models = {}
    for alias in ("", *(loaded.models or {})):
        model, key = loaded.language_model(alias), f"models.{alias}" if alias else "model"
        models[key] = model_contents(model.model_name, model.revision, model.tokenizer_name, digests)
    starts = {}
    for member, own in loaded.members.items():
        start = own.initializer.from_dictionary
        if start is not None and not Path(start).exists():
            beside = near(start, lambda path: (path / "config.json").is_file())
            raise DataError(
                f"{f'sweep.{member}: ' if member else ''}initializer.from_dictionary: {start}: no such directory{beside}; give "
                "one with config.json and weights.safetensors, as data/inference/<name> of another run, or write null"
            )
        starts[member] = None if start is None else digests.of_place(Path(start))
    text = text_contents(loaded.dataset, digests)
    write_json(Path(out) / "dictionary.json", {"from": starts[""]} if loaded.sweep is None else {"members": starts})
    write_json(Path(out) / "text.json", text)
    write_json(Path(out) / "models.json", models)
    for line in digests.lines("", {"text": text, **models, "initializer.from_dictionary": starts}):
        click.echo(f"inputs: {line}", err=True)
    digests.remember()


if __name__ == "__main__":
    main()
