"""A plan in lines: what the run needs, what each stage takes, and what will be too little or refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.planning.disk import dictionary_bytes, store_bytes, token_store_bytes
from pipeline.planning.stages import STAGES, clock_seconds, peak_bytes
from pipeline.planning.words import bytes_in_words, number, seconds_in_words

if TYPE_CHECKING:
    from pipeline.planning.rates import Rates
    from pipeline.planning.run import Run
    from pipeline.planning.text import TextSample

LEAST_HELD_OUT = 10_000  # evaluated tokens below which intervals are wide
LEAST_CALIBRATION = 10_000  # tokens for an L0 within 1 %
MANY_EPOCHS = 10
SLOWED = 1.3  # by others, from which on it is said
FEW_DOCUMENTS = 50  # held out, on which every interval rests


def needs_lines(run: Run, text: TextSample | None) -> Iterator[str]:
    """Tokens, documents, disk."""
    acts = run.params.activations
    if text is not None:
        yield f"text        {_text_there(text)}"
    wanted = run.context_size * (run.train_contexts + run.held_out_contexts)
    yield (
        f"tokens      {number(wanted)} are read: {number(run.stored_tokens)} of them to train on (activations.total_tokens), "
        f"{_held_out(run)}"
    )
    yield (
        f"training    {run.params.total_steps:,} steps of {acts.tokens_per_batch:,} tokens = {number(run.trained_tokens)} "
        f"(trainer.total_training_tokens), {run.epochs:.2f} times the rows; norms of {number(run.norm_tokens)}"
    )
    yield (
        f"evaluation  {number(run.evaluated_tokens)} held-out tokens, each in {run.evaluation_runs} runs of the language "
        f"model; analysis of {number(run.analysed_tokens)}"
    )
    store = "none, activations are live" if run.live else f"{bytes_in_words(store_bytes(run))} ({acts.storage_dtype})"
    if acts.path is not None:
        store = f"that of {acts.path}"
    yield (
        f"disk        tokens {bytes_in_words(token_store_bytes(run))}, activations {store}, dictionaries and checkpoints "
        f"{bytes_in_words(dictionary_bytes(run))}"
    )


def _held_out(run: Run) -> str:
    """`about 13,824 held out, 9,000 to 19,000, in about 20 documents`."""
    found = run.held_out
    if run.counts is not None:
        return f"{number(run.held_out_contexts * run.context_size)} held out, in {_documents(run.counts.held_out_documents)}"
    if found is None:
        return f"about {number(run.held_out_contexts * run.context_size)} held out"
    if found.deviation == 0.0:
        return f"{number(found.tokens)} held out, in {_documents(found.documents)}"
    least, most = max(found.tokens - found.deviation, 0.0), found.tokens + found.deviation
    return (
        f"about {number(found.tokens)} held out, {_round(least)} to {_round(most)} as documents fall, in about "
        f"{_documents(found.documents)}"
    )


def _round(value: float) -> str:
    """To two digits."""
    return number(float(f"{value:.2g}"))


def _documents(n: float) -> str:
    return f"{number(n)} document{'' if round(n) == 1 else 's'}"


def held_out_line(run: Run) -> str | None:
    """What is said of few held-out documents; None where they are many, or not known."""
    known = run.held_out if run.counts is None else None
    n = run.counts.held_out_documents if run.counts is not None else None if known is None else known.documents
    if n is None or n >= FEW_DOCUMENTS:
        return None
    return (
        f"dataset.eval_fraction: {'' if known is None or known.deviation == 0.0 else 'about '}{_documents(n)} held out, and "
        f"intervals are over documents: of fewer than {FEW_DOCUMENTS} they are wide and uncertain; raise it, or give more text"
    )


def _text_there(text: TextSample) -> str:
    documents = sum(source.documents for source in text.sources.values())
    if text.there is None:
        return f"more than {number(text.tokens)} tokens, which were read; its size does not tell how many there are"
    if text.whole:
        return f"{number(text.there)} tokens in {documents:,} documents, {text.held_out_share:.1%} of them held out"
    return f"about {number(text.there)} tokens, estimated from the first {number(text.tokens)}"


def stage_lines(run: Run, rates: Rates | None) -> Iterator[str]:
    """A line for each stage, and one for all."""
    total = 0.0
    for stage in STAGES:
        seconds = None if rates is None else clock_seconds(run, stage, rates)
        total += seconds or 0.0
        took = "" if seconds is None else f"{seconds_in_words(seconds):>12}"
        yield f"{stage.name:<11}{took}  {bytes_in_words(peak_bytes(run, stage, rates)):>7}  {stage.does(run)}"
    if rates is not None:
        yield (f"{'all':<11}{seconds_in_words(total):>12}  {'':>7}  on this machine with nothing else at work")


def slowed_line(slowed: float) -> str | None:
    """What other programs do to these times now; None: little.

    Args:
        slowed: the clock's seconds of the measurement over those with the processors to itself.
    """
    if slowed < SLOWED:
        return None
    said = f"other programs were at work while this was measured, and made it {slowed:.1f} times as long"
    return f"{'now':<11}{'':>12}  {'':>7}  {said}"


def short_lines(run: Run, text: TextSample | None) -> Iterator[str]:
    """What will be too little, though nothing refuses it; each with the key to change."""
    params = run.params
    if text is not None and text.there is not None:
        wanted = run.context_size * (run.train_contexts + run.held_out_contexts)
        if text.there < wanted:
            yield (
                f"activations.total_tokens: {number(run.stored_tokens)} need about {number(wanted)} tokens of text, and it "
                f"holds {'' if text.whole else 'about '}{number(text.there)}; lower it or give more text"
            )
    evaluated = params.evaluation.tokens
    there = run.held_out_contexts * run.context_size
    if run.counts is None and evaluated is not None and evaluated > there:
        yield (
            f"evaluation.tokens: {number(evaluated)}, and about {number(there)} tokens will be held out; lower it, or raise "
            "dataset.eval_fraction"
        )
    elif run.evaluated_tokens < LEAST_HELD_OUT:
        yield (
            f"evaluation.tokens, dataset.eval_fraction: {number(run.evaluated_tokens)} held-out tokens give wide intervals; "
            f"{number(LEAST_HELD_OUT)} or more are better"
        )
    if (few := held_out_line(run)) is not None:
        yield few
    calibrated = [own for own in params.members.values() if own.dictionary.is_topk_family and "batch" in own.dictionary.act_fn]
    if calibrated and params.fold.calibration_tokens < LEAST_CALIBRATION:
        yield (
            f"fold.calibration_tokens: {number(params.fold.calibration_tokens)} set the inference threshold; "
            f"{number(LEAST_CALIBRATION)} or more for an L0 within 1 %"
        )
    if run.epochs > MANY_EPOCHS:
        yield (
            f"trainer.total_training_tokens: {run.epochs:.0f} times the {number(run.stored_tokens)} of "
            "activations.total_tokens; raise the latter, or lower the former"
        )
    if not params.analysis.inactive_contexts:
        yield "analysis.inactive_contexts: 0, so that stages.interpret can score no explanation; raise it"
