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
    from pipeline.corpus.chat import ChatTemplate
    from pipeline.corpus.mixture import Mixture, Source
    from pipeline.corpus.sources import corpora
    from pipeline.corpus.tokenization import TokenizeSettings, bos_choice, tokenize_corpus, tokenizer_info
    from pipeline.files import write_json
    from pipeline.lm.loading import model_widths
    from pipeline.params.loader import load_params

    loaded = load_params(params)
    parts = loaded.dataset.each()
    settings = TokenizeSettings(
        context_size=loaded.activations.context_size,
        total_tokens=loaded.activations.total_tokens,
        prepend_bos=loaded.model.prepend_bos,
        ignore_token_ids=loaded.activations.ignore_token_ids,
        ignore_positions=loaded.activations.ignore_positions,
        eval_fraction=loaded.dataset.eval_fraction,
        split_seed=loaded.dataset.split_seed,
        near_duplicate_similarity=loaded.dataset.near_duplicate_similarity,
        counted=any(part.assistant_tokens_only for part in parts.values()),
    )
    model = model_widths(loaded.model.model_name, loaded.model.revision)
    loaded_tokenizer = model.load_tokenizer()
    tokenizer = tokenizer_info(loaded_tokenizer, model.name, model.vocab_size)
    if settings.prepend_bos == "auto":
        click.echo(f"tokenize: model.prepend_bos auto: {bos_choice(tokenizer, model.name)}", err=True)
    if not model.states_tokenizer:
        click.echo(f"tokenize: {model.directory} has no tokenizer_config.json; the tokenizer is the family's", err=True)
    chats = [name for name, part in parts.items() if part.messages_field is not None]
    if tokenizer.eos is None and len(chats) < len(parts):
        click.echo(f"tokenize: nothing marks the end of a document; the tokenizer of {model.name} has no eos token", err=True)
    chat = ChatTemplate(loaded_tokenizer, model.name) if chats else None
    found = corpora(loaded.dataset, loaded.demo.text_packages, chat)
    for line in (line for corpus in found.values() for line in corpus.lines):
        click.echo(f"tokenize: {line}", err=True)
    sources = loaded.dataset.sources or {}
    # By name: to DVC the same sources in another order are the same parameters.
    mixture = Mixture({name: Source(found[name], sources[name].weight) for name in sorted(sources)})
    figures = tokenize_corpus(mixture if sources else found[""], tokenizer, settings, Path(out))
    for line in mixture.lines():
        click.echo(f"tokenize: {line}", err=True)
    nulls = sum(corpus.skipped.null_rows for corpus in found.values())
    if nulls:
        keys = "dataset.text_field" if not chats else "dataset.text_field, dataset.messages_field"
        click.echo(f"tokenize: {nulls:,} rows skipped that hold null instead of text ({keys})", err=True)
    write_json(metrics, {**figures, "null_rows": nulls})


if __name__ == "__main__":
    main()
