"""What `stages.inspect` says at its start: what it loads, and in about what time the first answer is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.errors import PipelineError
from pipeline.planning.beginning import MEASURE
from pipeline.planning.rates import Recorded, recorded
from pipeline.planning.run import Run
from pipeline.planning.weights import n_parameters
from pipeline.words import number, seconds_in_words

if TYPE_CHECKING:
    from pipeline.params.schema import Params


def begin_inspection(params: Params, features: Path) -> None:
    """Say in a line what is loaded before the first answer, and about how long that takes; nothing where something is missing,
    which the stage itself says.

    Args:
        params: of the dictionary.
        features: the feature store, which need not be there.
    """
    try:
        run = Run.of(params)
        line = inspection_line(run, features, recorded(run))
    except PipelineError:
        return
    click.echo(f"inspect: {line}", err=True)


def inspection_line(run: Run, features: Path, kept: Recorded | None) -> str:
    """`loads <models>, <dictionary> and <labels>; about <how long> to the first answer`."""
    sizes = {source.name: n_parameters(source, None) / 1e6 for source in run.sources.models.values()}
    models = ", ".join(f"{name} ({number(millions)} million parameters)" for name, millions in sizes.items())
    labels = f" and what {features} says of its features" if features.is_dir() else ""
    took = f"nearly all of the time is this loading; {MEASURE}"
    if kept is not None:
        rates = kept.rates
        seconds = rates.start + rates.tokenizers + rates.models + rates.tokenizer + rates.load
        took = f"about {seconds_in_words(seconds)} to the first answer (with nothing else at work)"
    return f"loads the language model {models}, the dictionary '{run.params.dictionary.name}'{labels}; {took}"
