"""The whole plan of a run, as stages.plan prints it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.planning.rates import record, recorded
from pipeline.planning.refusals import MACHINE, PARAMETERS, refuse
from pipeline.planning.report import needs_lines, short_lines, stage_lines
from pipeline.planning.run import Run

if TYPE_CHECKING:
    from pipeline.params.schema import Params


def plan(params: Params, tokens: str | Path, *, measure: bool = True, say: Callable[[str], None]) -> Iterator[str]:
    """The lines of a plan.

    Args:
        params: all parameters.
        tokens: the token store, if it is there.
        measure: whether to measure rates; else those that are kept are used, if there are any.
        say: takes what is done meanwhile.

    Raises:
        PipelineError: what a stage would refuse, every fault a line.
    """
    if measure:
        from pipeline.planning.measuring import beginning

        before = beginning()
    refuse(params, PARAMETERS, MACHINE, tokens=tokens)
    run = Run.of(params)
    text, rates = None, recorded(params)
    if measure:
        from pipeline.planning.measuring import measure as measured
        from pipeline.planning.text import sample_text

        say("reading some of the text")
        text = sample_text(params, run.sources.main)
        say("measuring, about ten seconds")
        rates = measured(run, text, before)
        record(params, rates)
    yield from needs_lines(run, text)
    yield ""
    yield from stage_lines(run, rates)
    if rates is None:
        yield "no time was measured: run `python -m stages.plan`"
    found = list(short_lines(run, text))
    if found:
        yield ""
        yield from (f"too little: {line}" for line in found)
