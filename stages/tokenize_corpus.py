"""tokenize: the data set -> data/tokens.zarr, packed contexts of both splits, every token traceable to its text.

Reads the data set (the demo: text of installed packages) and the model's tokenizer. Writes data/tokens.zarr and
metrics/tokenize.json. Says what the whole run needs, and refuses what a later stage would (docs/refusals.md). Cost: about 10 s
for the demo's million tokens.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import Output, stage_command, threads_sleep_while_waiting


@stage_command
@click.option("--out", type=Output(directory=True), default="data/tokens.zarr", help="Token store to write.")
@click.option("--metrics", type=Output(), default="metrics/tokenize.json", help="Figures to write.")
def main(params: str, out: str, metrics: str) -> None:
    """Tokenize, split by document and pack the data set."""
    threads_sleep_while_waiting()  # a long run is measured
    from pipeline.corpus.for_params import tokenize_for
    from pipeline.files import write_json
    from pipeline.lm.loading import stated_widths
    from pipeline.params.loader import load_params
    from pipeline.planning.beginning import begin_tokenize, end_tokenize

    loaded = load_params(params)
    begin_tokenize(loaded)
    model = stated_widths(loaded.model)
    figures = tokenize_for(loaded, model, Path(out), lambda line: click.echo(f"tokenize: {line}", err=True))
    write_json(metrics, figures)
    end_tokenize(loaded, out)


if __name__ == "__main__":
    main()
