"""From loaded params to the token store: the text and the tokenizer that they name, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pipeline.corpus.chat import ChatTemplate
from pipeline.corpus.mixture import Mixture, Source
from pipeline.corpus.sources import corpora
from pipeline.corpus.tokenization import TokenizeSettings, bos_choice, tokenize_corpus, tokenizer_info
from pipeline.params.schema import ActivationsParams, DatasetParams, DemoParams, ModelParams


class Model(Protocol):
    """What is asked of a language model (pipeline.lm.loading.model_widths)."""

    @property
    def name(self) -> str: ...
    @property
    def directory(self) -> Path: ...
    @property
    def vocab_size(self) -> int | None: ...
    @property
    def states_tokenizer(self) -> bool: ...
    def load_tokenizer(self) -> Any: ...


class TextParams(Protocol):
    """The sections that are read, of all parameters."""

    @property
    def activations(self) -> ActivationsParams: ...
    @property
    def dataset(self) -> DatasetParams: ...
    @property
    def demo(self) -> DemoParams: ...
    @property
    def model(self) -> ModelParams: ...


def settings_of(params: TextParams) -> TokenizeSettings:
    """What decides the content of the token store besides text and tokenizer."""
    acts, dataset = params.activations, params.dataset
    return TokenizeSettings(
        context_size=acts.context_size,
        total_tokens=acts.total_tokens,
        prepend_bos=params.model.prepend_bos,
        ignore_token_ids=acts.ignore_token_ids,
        ignore_positions=acts.ignore_positions,
        eval_fraction=dataset.eval_fraction,
        split_seed=dataset.split_seed,
        near_duplicate_similarity=dataset.near_duplicate_similarity,
        counted=any(part.assistant_tokens_only for part in dataset.each().values()),
    )


def tokenize_for(params: TextParams, model: Model, out: Path, say: Callable[[str], None]) -> dict[str, int | float | str]:
    """Write the token store that `params` ask for.

    Args:
        params: loaded params.
        model: whose tokenizer is used.
        out: the token store to write.
        say: takes a line on what is read, chosen, left out or lacking.

    Returns: figures for metrics/tokenize.json.

    Raises:
        DataError: text or tokenizer cannot be read, or there is too little text.
    """
    settings = settings_of(params)
    loaded = model.load_tokenizer()
    info = tokenizer_info(loaded, model.name, model.vocab_size)
    chats = [part.messages_field is not None for part in params.dataset.each().values()]
    if settings.prepend_bos == "auto":
        say(f"model.prepend_bos auto: {bos_choice(info, model.name)}")
    if not model.states_tokenizer:
        say(f"{model.directory} has no tokenizer_config.json; the tokenizer is the family's")
    if info.eos is None and not all(chats):
        say(f"nothing marks the end of a document; the tokenizer of {model.name} has no eos token")
    chat = ChatTemplate(loaded, model.name) if any(chats) else None
    found = corpora(params.dataset, params.demo.text_packages, chat)
    for line in (line for corpus in found.values() for line in corpus.lines):
        say(line)
    sources = params.dataset.sources or {}
    # By name: to DVC the same sources in another order are the same parameters.
    mixture = Mixture({name: Source(found[name], sources[name].weight) for name in sorted(sources)})
    figures = tokenize_corpus(mixture if sources else found[""], info, settings, out)
    for line in mixture.lines():
        say(line)
    for name in (name for name in sources if not figures[f"eval_contexts.{name}"]):
        say(f"dataset.sources.{name} has no held-out context; a larger dataset.eval_fraction gives it some")
    for name, corpus in found.items():
        if cut := len(corpus.skipped.cut_files):
            say(_of_pieces(f"dataset.sources.{name}" if name else "dataset", cut))
    nulls = sum(corpus.skipped.null_rows for corpus in found.values())
    if nulls:
        keys = "dataset.text_field, dataset.messages_field" if any(chats) else "dataset.text_field"
        say(f"{nulls:,} rows skipped that hold null instead of text ({keys})")
    why = bos_choice(info, model.name) if settings.prepend_bos == "auto" else f"{str(settings.prepend_bos).lower()}; as stated"
    return {**figures, "null_rows": nulls, "prepend_bos": why}


def _of_pieces(section: str, n: int) -> str:
    files = "the one text file is" if n == 1 else f"{n} text files are"
    return (
        f"{section}: {files} too few, or too long, to hold whole files out: their pieces are split, so both splits have text "
        "of one file; give more files, or a larger dataset.eval_fraction"
    )
