"""What a stage says at its start: what it will do, in about what time and memory; what cannot end well is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.ending import aside, expect
from pipeline.errors import PipelineError
from pipeline.params.rules.said import said_of_training
from pipeline.planning.rates import Recorded, record, recorded
from pipeline.planning.refusals import MACHINE, PARAMETERS, TOKENS, refuse, refuse_by_text, refuse_by_tokens
from pipeline.planning.report import few_documents_line, needs_lines, short_lines, stage_lines
from pipeline.planning.run import Run
from pipeline.planning.stages import BY_NAME, clock_seconds, peak_bytes
from pipeline.planning.weights import n_parameters
from pipeline.words import bytes_in_words, of_members, seconds_in_words

if TYPE_CHECKING:
    from pipeline.params.schema import Params
    from pipeline.planning.measuring import Beginning
    from pipeline.planning.text import TextSample

STORE = "data/tokens.zarr"
SLOW = 3e10  # operations in a second: a rough count of a run tells whether it is worth measuring
LONG = 600.0  # seconds of a run from which on it is
HOW_LONG = "half a minute on a small model, one to four on one of 100M parameters or of a sweep, longer beside other jobs"
OF_OTHERS = "as measured with other parameters on this language model"
MEASURE = "`python -m stages.plan` measures how long"


def begin(stage: str, params: Params, tokens: str | Path = STORE, steps_left: tuple[int, ...] | None = None) -> None:
    """Say in a line what a stage will do; refuse what the token store, if it is there, does not allow.

    Args:
        stage: of dvc.yaml.
        params: all parameters.
        tokens: the token store.
        steps_left: of the trainings; see :class:`pipeline.planning.run.Run`.

    Raises:
        DataError: a stage after this one would refuse it.
    """
    refuse_by_tokens(params, tokens)
    try:
        run = dataclasses.replace(Run.of(params, tokens), steps_left=steps_left)
        kept = recorded(run)
        line = beginning_line(run, stage, kept)
        _expect(run, stage, kept)
    except PipelineError:  # the stage itself says what is wrong, if it needs what is missing
        return
    _say(stage, line)


def beginning_line(run: Run, stage: str, kept: Recorded | None) -> str:
    """`<what it does>; about <how long> (<assumed>), about <memory>`."""
    declared, rates = BY_NAME[stage], None if kept is None else kept.rates
    took = "the progress lines tell how long"
    if kept is not None:
        assumed = "with nothing else at work" if kept.exact else f"{OF_OTHERS}, with nothing else at work"
        took = f"about {seconds_in_words(clock_seconds(run, declared, kept.rates))} ({assumed})"
    return f"{declared.does(run)}; {took}, about {bytes_in_words(peak_bytes(run, declared, rates))} of memory"


def _expect(run: Run, stage: str, kept: Recorded | None) -> None:
    """Note what is said of a stage, for what it says at its end."""
    declared, rates = BY_NAME[stage], None if kept is None else kept.rates
    seconds = None if kept is None else seconds_in_words(clock_seconds(run, declared, kept.rates))
    expect(seconds, peak_bytes(run, declared, rates))


def begin_training(params: Params, steps_left: tuple[int, ...]) -> None:
    """The same of trainings, which may go on, and what of their parameters will act otherwise than one may expect."""
    for line in of_members({member: said_of_training(own) for member, own in params.members.items()}):
        _say("train", line)
    begin("train", params, steps_left=steps_left)


def begin_tokenize(params: Params) -> None:
    """Refuse what cannot end well, too little text too; say what the whole run needs.

    Rates are measured where it looks long and none are kept.

    Raises:
        PipelineError: every fault that is known before the text is read.
    """
    from pipeline.planning.measuring import beginning
    from pipeline.planning.text import is_counted_first, sample_text

    before = beginning()
    refuse(params, PARAMETERS, MACHINE)
    run, text = Run.of(params), None
    kept = recorded(run)
    measures = kept is None and rough_seconds(run) > LONG
    if measures or is_counted_first(run):
        text = sample_text(params, run.sources.main, no_further=True)
        refuse_by_text(run, text)
        run = run.with_text(text)
        if measures:
            kept = _measured(run, text, before)
    _expect(run, "tokenize", kept)
    for line in (
        *needs_lines(run, text),
        *stage_lines(run, None if kept is None else kept.rates),
        *short_lines(run, text),
    ):
        _say("tokenize", line)
    if kept is None:
        _say("tokenize", MEASURE)


def end_tokenize(params: Params, tokens: str | Path) -> None:
    """Refuse what the tokens do not allow; say whether the documents that will be evaluated are few, which is known now.

    Raises:
        PipelineError: what a later stage would refuse, every fault a line.
    """
    refuse(params, TOKENS, tokens=tokens)
    if (few := few_documents_line(Run.of(params, tokens))) is not None:
        _say("tokenize", few)


def _measured(run: Run, text: TextSample, before: Beginning) -> Recorded | None:
    """Rates, measured and kept; None where that fails, which is no reason to stop."""
    from pipeline.planning.measuring import measure

    _say("tokenize", f"this run is long: measuring how long, {HOW_LONG}")
    try:
        with aside("measuring how long the run takes"):
            rates = measure(run, text, before)
    except PipelineError as error:
        _say("tokenize", f"not measured ({error.faults[0]})")
        return None
    record(run, rates)
    return Recorded(rates, True)


def rough_seconds(run: Run) -> float:
    """Seconds of a run by a count of its multiplications, to within a factor of ten or so."""
    tokens = run.train_contexts * run.context_size + run.evaluated_tokens * run.evaluation_runs + run.analysed_tokens
    through_model = 2.0 * tokens * sum(n_parameters(source) for source in run.sources.models.values())
    weights = sum(parameter.numel() for each in run.dictionaries.values() for parameter in each.parameters())
    return (through_model + 3.0 * run.trained_tokens * weights) / SLOW


def _say(stage: str, line: str) -> None:
    click.echo(f"{stage}: {line}", err=True)
