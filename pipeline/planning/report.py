"""A plan in lines: what the run needs, what each stage takes, and what will be too little or refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.extent import FEW_DOCUMENTS
from pipeline.planning.disk import dictionary_bytes, store_bytes, token_store_bytes
from pipeline.planning.stages import STAGES, clock_seconds, peak_bytes
from pipeline.planning.timing import BUSY
from pipeline.words import bytes_in_words, number, seconds_in_words

if TYPE_CHECKING:
    from pipeline.planning.rates import Rates
    from pipeline.planning.run import Run
    from pipeline.planning.text import TextSample

LEAST_HELD_OUT = 10_000  # evaluated tokens below which intervals are wide
LEAST_CALIBRATION = 10_000  # tokens for an L0 within 1 %
MANY_EPOCHS = 10
MOST_HELD_OUT = 0.5  # share of a text that may be said to be held out
ROOM = 0.95  # of the training tokens that a text is reckoned to have: documents are of uneven length


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
        f"(trainer.total_training_tokens), {run.epochs:.2f} times the {number(run.tokens_to_train_on)} to train on; "
        f"norms of {number(run.norm_tokens)}"
    )
    yield (
        f"evaluation  {number(run.evaluated_tokens)} held-out tokens{_evaluated(run)}, each in {run.evaluation_runs} runs of "
        f"the language model; analysis of {number(run.analysed_tokens)}"
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
    found, extent = run.held_out, run.held_out_extent
    if extent is None or (found is None and run.counts is None):
        return f"about {number(run.held_out_contexts * run.context_size)} held out"
    if found is None or run.counts is not None:
        return f"{number(run.held_out_contexts * run.context_size)} held out, in {extent.words()}"
    if found.deviation == 0.0:
        asked = f"{100 * run.params.dataset.eval_fraction:g}%"
        return (
            f"{number(found.tokens)} held out, in {extent.words()}: {found.share:.1%} of the tokens of the text that is read "
            f"(dataset.eval_fraction asks for about {asked})"
        )
    least, most = max(found.tokens - found.deviation, 0.0), found.tokens + found.deviation
    return (
        f"about {number(found.tokens)} held out, {_round(least)} to {_round(most)} as documents fall, in about {extent.words()}"
    )


def _evaluated(run: Run) -> str:
    """` of 5 text files`; "" where it is not known."""
    extent = run.evaluated_extent
    return "" if extent is None else f" of {_about(run)}{extent.words()}"


def _about(run: Run) -> str:
    """`about ` where documents were not counted."""
    return "about " if run.counts is None and run.held_out is not None and run.held_out.deviation else ""


def _round(value: float) -> str:
    """To two digits."""
    return number(float(f"{value:.2g}"))


def few_documents_line(run: Run, text: TextSample | None = None) -> str | None:
    """What is said of few evaluated documents, with what gives more of them; None where they are many, or not known."""
    extent = run.evaluated_extent
    if extent is None or not (warning := extent.warning()):
        return None
    return (
        f"dataset.eval_fraction, evaluation.tokens: the evaluated tokens will be of {_about(run)}{extent.words()}: {warning}; "
        f"{_for_enough_documents(run, text)}"
    )


def _for_enough_documents(run: Run, text: TextSample | None) -> str:
    """What holds out, and evaluates, FEW_DOCUMENTS documents."""
    held, asked = run.held_out_extent, run.params.dataset.eval_fraction
    if held is not None and round(held.documents) >= FEW_DOCUMENTS:
        held_out = number(run.held_out_contexts * run.context_size)
        return f"raise evaluation.tokens, or write null for all {held_out} that are held out"
    here = 0.0 if held is None else held.documents
    if text is not None and text.extent.documents:
        each, batch = text.tokens / text.extent.documents, text.batch_tokens
    else:
        each, batch = run.held_out_contexts * run.context_size / max(here, 1.0), 1.0
    there, wanted = None if text is None else text.there, run.stored_tokens

    def documents(share: float) -> float | None:
        """That are held out of what is read: batches, until there are training tokens enough; None: there are not."""
        read = batch * math.ceil(wanted / (1.0 - share) / batch)
        if there is None:
            return share * read / each
        return share * min(read, there) / each if wanted <= (1.0 - share) * there else None

    # Of a larger share those of a smaller one are held out too, so that as many are lacking as the draw has fewer of now.
    enough = FEW_DOCUMENTS + max(0.0, (documents(asked) or 0.0) - here)
    shares = [share / 100 for share in range(1, 100)]
    fraction = next((share for share in shares if share > asked and (documents(share) or 0.0) >= enough), None)
    if fraction is not None:
        many = f"about {FEW_DOCUMENTS}{', if there are as many' if there is None else ''}"
        return (
            f"dataset.eval_fraction={fraction:g} would hold out {many} (only as much text is read as activations.total_tokens "
            f"{number(wanted)} needs)"
        )
    every = math.inf if there is None else there / each
    fraction = next((share for share in shares if share >= asked and share * every >= enough), 1.0)
    if there is None or fraction > MOST_HELD_OUT:
        return f"give more documents{'' if there is None else f': the text has about {number(every)}'}"
    most = there * (1.0 - fraction) * ROOM
    return (
        f"dataset.eval_fraction={fraction:g} with activations.total_tokens of at most {_round(most)} would hold out about "
        f"{FEW_DOCUMENTS} of the text's {number(every)}"
    )


def _text_there(text: TextSample) -> str:
    if text.there is None:
        return f"more than {number(text.tokens)} tokens, which were read; its size does not tell how many there are"
    if text.whole:
        pieces = f" (cut into {text.pieces:,} pieces)" if text.pieces else ""
        return f"{number(text.there)} tokens in {text.extent.words()}{pieces}"
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


def busy_line(share: float) -> str | None:
    """That other processes were at work during the measurement; None: hardly.

    Args:
        share: of the processors, that they took.
    """
    if share < BUSY:
        return None
    said = f"other processes took {share:.0%} of the processor while this was measured; times are those of a quiet machine"
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
    calibrated = [own for own in params.members.values() if own.dictionary.is_topk_family and "batch" in own.dictionary.act_fn]
    if calibrated and params.fold.calibration_tokens < LEAST_CALIBRATION:
        yield (
            f"fold.calibration_tokens: {number(params.fold.calibration_tokens)} set the inference threshold; "
            f"{number(LEAST_CALIBRATION)} or more for an L0 within 1 %"
        )
    if run.epochs > MANY_EPOCHS:
        yield (
            f"trainer.total_training_tokens: {run.epochs:.0f} times the {number(run.tokens_to_train_on)} tokens to train on; "
            f"lower it, or raise activations.total_tokens: {number(run.stored_tokens)}, of which "
            f"{number(run.stored_tokens - run.tokens_to_train_on)} are kept from training "
            f"(fold.calibration_tokens {number(params.fold.calibration_tokens)}, to the end of a chunk)"
        )
    if not params.analysis.inactive_contexts:
        yield "analysis.inactive_contexts: 0, so that stages.interpret can score no explanation; raise it"
