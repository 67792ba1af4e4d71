"""tokenize: the data set -> data/tokens.zarr, packed contexts of both splits, every token traceable to its text.

Reads the data set (the demo: text of installed packages) and the model's tokenizer. Writes data/tokens.zarr and
metrics/tokenize.json. Cost: about 10 s for the demo's million tokens.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import Output, stage_command


@stage_command
@click.option("--out", type=Output(directory=True), default="data/tokens.zarr", help="Token store to write.")
@click.option("--metrics", type=Output(), default="metrics/tokenize.json", help="Figures to write.")
def main(params: str, out: str, metrics: str) -> None:
    """Tokenize, split by document and pack the data set."""
    from pipeline.corpus.sources import documents
    from pipeline.corpus.tokenization import TokenizeSettings, bos_choice, tokenize_corpus, tokenizer_info
    from pipeline.files import write_json
    from pipeline.lm.loading import model_widths
    from pipeline.params.loader import load_params

    loaded = load_params(params)
    settings = TokenizeSettings(
        context_size=loaded.activations.context_size,
        total_tokens=loaded.activations.total_tokens,
        prepend_bos=loaded.model.prepend_bos,
        ignore_token_ids=loaded.activations.ignore_token_ids,
        ignore_positions=loaded.activations.ignore_positions,
        eval_fraction=loaded.dataset.eval_fraction,
        split_seed=loaded.dataset.split_seed,
        near_duplicate_similarity=loaded.dataset.near_duplicate_similarity,
    )
    model = model_widths(loaded.model.model_name, loaded.model.revision)
    tokenizer = tokenizer_info(model.load_tokenizer(), model.name, model.vocab_size)
    if settings.prepend_bos == "auto":
        click.echo(f"tokenize: model.prepend_bos auto: {bos_choice(tokenizer, model.name)}", err=True)
    if not model.states_tokenizer:
        click.echo(f"tokenize: {model.directory} has no tokenizer_config.json; the tokenizer is the family's", err=True)
    if tokenizer.eos is None:
        click.echo(f"tokenize: nothing marks the end of a document; the tokenizer of {model.name} has no eos token", err=True)
    corpus = documents(loaded.dataset, loaded.demo.text_packages)
    for line in corpus.lines:
        click.echo(f"tokenize: {line}", err=True)
    figures = tokenize_corpus(corpus, tokenizer, settings, Path(out))
    nulls = corpus.skipped.null_rows
    if nulls:
        click.echo(f"tokenize: {nulls:,} rows skipped that hold null instead of text (dataset.text_field)", err=True)
    write_json(metrics, {**figures, "null_rows": nulls})


if __name__ == "__main__":
    main()
