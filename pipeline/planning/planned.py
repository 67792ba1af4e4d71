"""The whole plan of a run, as stages.plan prints it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.planning.beginning import HOW_LONG, OF_OTHERS
from pipeline.planning.rates import Recorded, here, record, recorded
from pipeline.planning.refusals import MACHINE, PARAMETERS, refuse, refuse_by_text, refuse_by_tokens
from pipeline.planning.report import busy_line, few_documents_line, needs_lines, short_lines, stage_lines
from pipeline.planning.run import Run
from pipeline.planning.timing import OtherWork, Stopwatch

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
    from pipeline.planning.text import sample_text

    run = Run.of(params, tokens)
    say("counting the text, a few seconds")
    text = sample_text(params, run.sources.main)
    if run.counts is None:
        refuse_by_text(run, text)
        run = run.with_text(text)
    else:
        refuse_by_tokens(params, tokens)
    kept, others = recorded(run), 0.0
    if measure:
        from pipeline.planning.measuring import measure as measured

        say(f"measuring, {HOW_LONG}")
        watch, work = Stopwatch(), OtherWork()
        kept = Recorded(measured(run, text, before), True)
        share = work.share()
        others = 1.0 - watch.seconds() / max(watch.wall(), 1e-6) if share is None else share
        record(run, kept.rates)
    rates = None if kept is None else kept.rates
    yield from needs_lines(run, text)
    yield ""
    yield from stage_lines(run, rates)
    if (line := busy_line(others)) is not None:
        yield line
    if kept is not None and not kept.exact:
        yield f"times {OF_OTHERS}: `python -m stages.plan` measures with these"
    if rates is None:
        yield f"no time was measured {here()}: run `python -m stages.plan`"
    found = [*short_lines(run, text), *([few] if (few := few_documents_line(run, text)) else [])]
    if found:
        yield ""
        yield from (f"too little: {line}" for line in found)
