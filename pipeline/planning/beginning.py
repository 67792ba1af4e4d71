"""What a stage says at its start: what it will do, in what time and memory; what cannot end well is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.errors import PipelineError
from pipeline.params.rules.said import said_of_training
from pipeline.planning.rates import Rates, record, recorded
from pipeline.planning.refusals import MACHINE, PARAMETERS, refuse, refuse_by_tokens
from pipeline.planning.report import needs_lines, short_lines, stage_lines
from pipeline.planning.run import Run
from pipeline.planning.stages import BY_NAME, peak_bytes
from pipeline.planning.weights import n_parameters
from pipeline.planning.words import bytes_in_words, seconds_in_words

if TYPE_CHECKING:
    from pipeline.params.schema import Params

TOKENS = "data/tokens.zarr"
SLOW = 3e10  # operations in a second: a rough count of a run tells whether it is worth ten seconds to measure
LONG = 600.0  # seconds of a run from which on it is
MEASURE = "`python -m stages.plan` measures how long"


def begin(stage: str, params: Params, tokens: str | Path = TOKENS) -> None:
    """Say in a line what a stage will do; refuse what the token store, if it is there, does not allow.

    Args:
        stage: of dvc.yaml.
        params: all parameters.
        tokens: the token store.

    Raises:
        DataError: a stage after this one would refuse it.
    """
    refuse_by_tokens(params, tokens)
    try:
        run = Run.of(params, tokens)
        line = beginning_line(run, stage, recorded(params))
    except PipelineError:  # the stage itself says what is wrong, if it needs what is missing
        return
    _say(stage, line)


def beginning_line(run: Run, stage: str, rates: Rates | None) -> str:
    """`<what it does>; about <how long>, at most about <memory>`."""
    declared = BY_NAME[stage]
    took = "the progress lines tell how long"
    if rates is not None:
        took = f"about {seconds_in_words(declared.seconds(run, rates))}"
    return f"{declared.does(run)}; {took}, at most about {bytes_in_words(peak_bytes(run, declared, rates))} of memory"


def begin_training(params: Params) -> None:
    """The same of a training, and what of its parameters will act otherwise than one may expect."""
    for member, own in params.members.items():
        for line in said_of_training(own):
            _say("train", f"{member}: {line}" if member else line)
    begin("train", params)


def begin_tokenize(params: Params) -> None:
    """Refuse what cannot end well, and say what the whole run needs; rates are measured where it looks long and none are kept.

    Raises:
        PipelineError: every fault that is known before the text is read.
    """
    refuse(params, PARAMETERS, MACHINE)
    run = Run.of(params)
    rates = recorded(params)
    if rates is None and rough_seconds(run) > LONG:
        rates = _measured(run)
    for line in (*needs_lines(run, None), *stage_lines(run, rates), *short_lines(run, None)):
        _say("tokenize", line)
    if rates is None:
        _say("tokenize", MEASURE)


def _measured(run: Run) -> Rates | None:
    """Rates, measured and kept; None where that fails, which is no reason to stop."""
    from pipeline.planning.measuring import beginning, measure
    from pipeline.planning.text import sample_text

    _say("tokenize", "this run is long: measuring for about ten seconds how long")
    try:
        before = beginning()
        rates = measure(run, sample_text(run.params, run.sources.main, seconds=1.0), before)
    except PipelineError as error:
        _say("tokenize", f"not measured ({error.faults[0]})")
        return None
    record(run.params, rates)
    return rates


def rough_seconds(run: Run) -> float:
    """Seconds of a run by a count of its multiplications, to within a factor of ten or so."""
    tokens = run.train_contexts * run.context_size + run.evaluated_tokens * run.evaluation_runs + run.analysed_tokens
    through_model = 2.0 * tokens * sum(n_parameters(source) for source in run.sources.models.values())
    weights = sum(parameter.numel() for each in run.dictionaries.values() for parameter in each.parameters())
    return (through_model + 3.0 * run.trained_tokens * weights) / SLOW


def _say(stage: str, line: str) -> None:
    click.echo(f"{stage}: {line}", err=True)
