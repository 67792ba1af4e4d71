"""generate: data/tokens.zarr and the language model -> the activation store and its manifest, data/activations.json.

Reads the training split of data/tokens.zarr and the model, or several models one after the other. Writes a store of each
under data/store (or $SCOPELINE_STORE), the manifest and metrics/generate.json. Killed and run again, it goes on from the chunks
that are whole; run on a whole store, it verifies every chunk and repairs what is damaged. Cost: one pass of each model over
the contexts, about 20 s for the demo.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.command import Output, stage_command
from pipeline.distributed.stage import in_processes

if TYPE_CHECKING:
    from pipeline.params.schema import ModelParams, Params
    from pipeline.processes import Reductions


@stage_command
@click.option("--tokens", default="data/tokens.zarr", help="Token store to read.")
@click.option("--out", type=Output(), default="data/activations.json", help="Manifest to write.")
@click.option("--metrics", type=Output(), default="metrics/generate.json", help="Figures to write.")
@in_processes("generate")
def main(params: Params, processes: Reductions, tokens: str, out: str, metrics: str) -> None:
    """Generate the activation store."""
    from pipeline.activations.for_params import generate_for
    from pipeline.files import write_json
    from pipeline.lm.loading import load_stated, stated_widths
    from pipeline.models_fit import check_models_fit
    from pipeline.planning.beginning import begin

    if params.activations.path is None:  # a dictionary that does not fit the model shows before hours of generating
        check_models_fit(params)
    if processes.rank == 0:
        begin("generate", params, tokens)
    figures = generate_for(params, stated_widths, load_stated, Path(tokens), Path(out), tokenizer_digest, processes)
    if processes.rank == 0:
        write_json(metrics, figures)


def tokenizer_digest(model: ModelParams) -> str | None:
    """Of a model's tokenizer; None where a main model has lost it, which generation does not need."""
    from pipeline.corpus.tokenization import tokenizer_info
    from pipeline.lm.loading import stated_widths

    source = stated_widths(model)
    return tokenizer_info(source.load_tokenizer(), model.model_name).digest if source.has_tokenizer else None


if __name__ == "__main__":
    main()
