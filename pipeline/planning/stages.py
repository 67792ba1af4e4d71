"""The stages that take long: what each does, what it holds, and how long it takes by measured rates. One row a stage.

Bytes are lower bounds, the sizes of the large tensors that are held at once, from the functions by which the stages
themselves refuse what they cannot hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from pipeline.hook_keys import by_model
from pipeline.memory import Need
from pipeline.planning.disk import store_bytes, token_store_bytes
from pipeline.planning.weights import n_parameters
from pipeline.words import bytes_in_words, number

if TYPE_CHECKING:
    from pipeline.planning.rates import Rates
    from pipeline.planning.run import Run

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
FLOAT32, FLOAT64 = 4, 8
TOKENIZED_BYTES = 30  # of a character on its way to tokens, over TEMPORARIES
SAMPLE_COPIES = 3  # of the sample of a start: raw and normalised, and one of them without massive tokens where there are any
BATCHES_TAKEN = 5  # that are made ahead or in use
TEMPORARIES = 3  # copies of a batch at the peak, with what is computed of it and what the C library keeps
TOKEN_FIELDS = 4  # int32 arrays of a context that are in memory where contexts are taken in any order
BLOCKS_HELD = 2  # of rows: one is written while the next is computed
MODEL_LOSS_RUNS = 4  # forward as it is, forward with the reconstruction, and back, which is two forward
LANGUAGE_MODEL_COPIES = 5  # of a batch's residual stream, inside a block: its own, and what an MLP holds
PAGE_BYTES = 300_000_000  # of a block of features on the way to the dashboard
MEMBERS_SHOWN = 12  # names of a sweep's members in a line
MAX_VALUES_BYTES = 2**26  # of the features that are looked at at once (pipeline.analysis.collection)


class Stage(NamedTuple):
    """One stage.

    Attributes:
        name: in dvc.yaml.
        does: what it will do, in a phrase.
        holds: what it holds all the time, at least.
        works_on: what it holds of a batch, at least; with what is computed of it there is about TEMPORARIES times as much.
        seconds: how long it takes.
        tracks: whether it writes figures to MLflow.
        models: whether it makes language models, also where activations are stored; tokenize does, to see that they can be.
        tokenizer: whether it loads the tokenizer.
        beside: bytes of what does not depend on the run, as they were found on the embedded default.
    """

    name: str
    does: Callable[[Run], str]
    holds: Callable[[Run], tuple[Need, ...]]
    works_on: Callable[[Run], tuple[Need, ...]]
    seconds: Callable[[Run, Rates], float]
    tracks: bool = False
    models: bool = False
    tokenizer: bool = False
    beside: int = 0

    def held(self, run: Run) -> tuple[Need, ...]:
        """All that it holds at once, at least."""
        return (*self.holds(run), *self.works_on(run))


# What is held ------------------------------------------------------------------------------------------------------------


def _model(run: Run, *, whole: bool) -> Need:
    """The weights of the language models; where not whole, up to the deepest hook point. At least: what a device map cannot
    hold lies on the disk, and of quantised weights the embedding and the unembedding are not."""
    model = run.params.model
    total = sum(_parameters(run, whole=whole).values())
    bits = 8 * ITEMSIZE[model.dtype] if model.quantization is None else {"8bit": 8, "4bit": 4}[model.quantization]
    n_bytes = 0 if model.device_map is not None else total * bits // 8
    return Need("the weights of the language model", n_bytes, {"model.dtype": 1})


def _parameters(run: Run, *, whole: bool) -> dict[str, int]:
    """{alias: parameters} of the language models; where not whole, up to the deepest hook point."""
    hooks, found = by_model(run.params.hook_points), {}
    for alias, source in run.sources.models.items():
        found[alias] = n_parameters(source, None if whole or alias not in hooks else source.needed_blocks(hooks[alias]))
    return found


def part_of_models(run: Run) -> float:
    """The share of the language models' parameters up to the deepest hook points."""
    return sum(_parameters(run, whole=False).values()) / sum(_parameters(run, whole=True).values())


def _through_model(run: Run, n_contexts: int, key: str) -> Need:
    """What a batch of contexts takes inside the language model."""
    width = max(source.d_model for source in run.sources.models.values())
    n_bytes = LANGUAGE_MODEL_COPIES * n_contexts * run.context_size * width * ITEMSIZE[run.params.model.dtype]
    return Need(f"{n_contexts:,} contexts in the language model", n_bytes, {key: n_contexts})


def _row_bytes(run: Run, hooks: Iterable[str]) -> int:
    """Bytes of a row of the store at some hook points."""
    from pipeline.activations.schema import hook_layouts

    acts = run.params.activations
    inner = None if acts.target == "activations-1d" else acts.context_size
    widths = [run.sources.widths[hook] for hook in dict.fromkeys(hooks)]
    layouts = [each for width in widths for each in hook_layouts("", 1, width, inner, 1, acts.storage_dtype)]
    return sum(layout.row_bytes for layout in layouts if not layout.shared)


def _batch_rows(run: Run) -> Need:
    """The activations of a batch of contexts, as they are stored."""
    n_contexts = min(run.params.activations.model_batch_size, run.train_contexts)
    per_context = 1 if run.params.activations.tokens_per_row > 1 else run.context_size - run.params.activations.ignore_positions
    rows = min(n_contexts * per_context, run.least_rows)
    key = {"activations.model_batch_size": run.params.activations.model_batch_size}
    return Need(f"the activations of {n_contexts:,} contexts", rows * _row_bytes(run, run.params.hook_points), key)


def _windows(run: Run) -> tuple[Need, ...]:
    """The rows that are mixed at once; the next window, of the next epoch where there is one alone, is read meanwhile."""
    from pipeline.activations.order import BatchPlan
    from pipeline.activations.schema import BLOCK_ROWS

    acts = run.params.activations
    chunk = BLOCK_ROWS if run.live and acts.tokens_per_row == 1 else run.rows.chunk_rows
    buffer = acts.buffer_size // acts.tokens_per_row
    plan = BatchPlan(0, run.training_rows, chunk, acts.batch_size, buffer, runs=run.live)
    rows = min(plan.window_rows, run.rows.n_rows)
    n_bytes = rows * _row_bytes(run, run.params.dictionary_hook_points)
    window = Need(f"a window of {rows:,} rows", n_bytes, {"activations.buffer_size": acts.buffer_size})
    taken = BATCHES_TAKEN * min(acts.batch_size, rows) * acts.tokens_per_row * FLOAT32
    widths = sum(run.sources.widths[hook] for hook in dict.fromkeys(run.params.dictionary_hook_points))
    batches = Need("batches that are made ahead", taken * widths, {"activations.batch_size": acts.batch_size})
    if plan.n_windows == 1 and run.epochs <= 1.0:
        return window, batches
    return window, window._replace(what="the next window"), batches


def _block(run: Run) -> Need:
    from pipeline.activations.schema import BLOCK_ROWS

    rows = min(BLOCK_ROWS if run.params.activations.tokens_per_row == 1 else run.rows.chunk_rows, run.rows.n_rows)
    n_bytes = BLOCKS_HELD * rows * _row_bytes(run, run.params.hook_points)
    return Need(f"blocks of {rows:,} rows", n_bytes, {"activations.context_size": run.context_size})


def _contexts(run: Run) -> Need:
    n_bytes = TOKEN_FIELDS * run.train_contexts * run.context_size
    return Need("the tokens", min(n_bytes, 2**30), {"activations.total_tokens": run.stored_tokens})


def _live_model(run: Run) -> tuple[Need, ...]:
    """Where activations are computed while they are read, the language model is held beside."""
    return (_model(run, whole=False), _contexts(run)) if run.live else ()


def _live_batch(run: Run) -> tuple[Need, ...]:
    key = "activations.model_batch_size"
    return (_through_model(run, run.params.activations.model_batch_size, key),) if run.live else ()


def _batches_of_features(run: Run, *, encoded: bool) -> list[Need]:
    """The features of one training batch, of each dictionary, the largest first."""
    acts = run.params.activations
    found = [each.need(acts.tokens_per_batch, acts.batch_size, encoded=encoded) for each in run.dictionaries.values()]
    return sorted(found, key=lambda need: need.n_bytes, reverse=True)


def _weights(run: Run, copies: int, what: str = "the weights") -> Need:
    """So many copies of all members' weights."""
    wide = max(each.config.d_sae / each.config.d_in for each in run.dictionaries.values())
    return Need(what, copies * run.weight_bytes, {"dictionary.expansion_factor": wide})


def _largest(run: Run, copies: int, what: str) -> Need:
    """So many copies of the largest member's weights."""
    largest = max(sum(parameter.nbytes for parameter in each.parameters()) for each in run.dictionaries.values())
    return _weights(run, 1, what)._replace(n_bytes=copies * largest)


def _nothing(run: Run) -> tuple[Need, ...]:
    return ()


def _tokenize_works_on(run: Run) -> tuple[Need, ...]:
    """A batch of documents, with what the tokenizer library keeps of every character and token."""
    from pipeline.corpus.tokenization import BATCH_CHARACTERS

    return (Need("documents being tokenized", TOKENIZED_BYTES * BATCH_CHARACTERS, {"activations.total_tokens": 1}),)


def _generate_holds(run: Run) -> tuple[Need, ...]:
    return (_model(run, whole=False), _contexts(run), *(() if run.live else (_block(run),)))


def _generate_works_on(run: Run) -> tuple[Need, ...]:
    n_contexts = min(run.params.activations.model_batch_size, run.train_contexts)
    return (_through_model(run, n_contexts, "activations.model_batch_size"), _batch_rows(run))


def _norm_holds(run: Run) -> tuple[Need, ...]:
    squares = sum(run.sources.widths[hook] ** 2 for hook in run.params.hook_points)
    covariances = Need("covariances", 2 * squares * FLOAT64, {"norm.tokens": run.norm_tokens})
    return (covariances, _median_rows(run), *_live_model(run))


def _median_rows(run: Run) -> Need:
    """The rows whose median norm is taken: as they are stored, and decoded."""
    from pipeline.norms.exclusion import MEDIAN_TOKENS

    per_row = run.params.activations.tokens_per_row
    n_rows = -(-min(MEDIAN_TOKENS, run.stored_tokens) // per_row)
    each = max(_row_bytes(run, (hook,)) + FLOAT32 * per_row * run.sources.widths[hook] for hook in run.params.hook_points)
    return Need(f"the {n_rows:,} rows of the median norm", n_rows * each, {"activations.context_size": run.context_size})


def _initialize_holds(run: Run) -> tuple[Need, ...]:
    tokens = run.initializer_tokens
    widths = sum(run.sources.widths[hook] for hook in run.params.dictionary_hook_points)
    sample = Need(
        "the sample", SAMPLE_COPIES * tokens * widths * FLOAT32, {"initializer.tokens": run.params.initializer.tokens}
    )
    return (_largest(run, 3, "the weights and their file"), sample, *_live_model(run))


def _train_holds(run: Run) -> tuple[Need, ...]:
    trained = _weights(run, 3, "gradients and moments of the weights")
    return (_weights(run, 1), trained, *_windows(run), *_live_model(run))


def _train_works_on(run: Run) -> tuple[Need, ...]:
    import torch

    from pipeline.training.held import steps_at_once

    at_once = steps_at_once(len(run.dictionaries), torch.device("cpu"))
    return (*_batches_of_features(run, encoded=False)[:at_once], *_live_batch(run))


def _fold_holds(run: Run) -> tuple[Need, ...]:
    return (_largest(run, 6, "the weights, in float64 too"), *_live_model(run))


def _fold_works_on(run: Run) -> tuple[Need, ...]:
    return (_batches_of_features(run, encoded=True)[0], *_live_batch(run))


def _evaluate_holds(run: Run) -> tuple[Need, ...]:
    from pipeline.evaluation.kept_activations import KEPT_BYTES

    widths = sum(run.sources.widths[hook] for hook in run.params.dictionary_hook_points) + run.sources.main.d_model
    kept = min(run.evaluated_tokens * widths * ITEMSIZE[run.params.model.dtype], KEPT_BYTES)
    activations = Need("activations that are kept", kept, {"evaluation.tokens": run.evaluated_tokens})
    return (_model(run, whole=True), _weights(run, 1), activations)


def _evaluate_works_on(run: Run) -> tuple[Need, ...]:
    from pipeline.evaluation.evaluator import batch_needs

    asked, n_contexts = run.params.evaluation.batch_contexts, run.evaluated_tokens // run.context_size
    logits = max(source.vocab_size for source in run.sources.models.values()) * ITEMSIZE[run.params.model.dtype]
    features = max(math.prod(each.feature_shape) * FLOAT32 for each in run.dictionaries.values())
    through = _through_model(run, min(asked, n_contexts), "evaluation.batch_contexts")
    return (*batch_needs(asked, n_contexts, run.context_size, logits, features), through)


def _analyze_needs(run: Run) -> tuple[Need, Need, Need]:
    from pipeline.analysis.analyze import at_most, needs

    dictionary = max(run.dictionaries.values(), key=lambda each: math.prod(each.feature_shape))
    n_contexts = run.analysed_tokens // run.context_size
    kept = at_most(run.params.analysis, n_contexts, run.context_size, math.prod(dictionary.feature_shape))
    return needs(run.params.analysis, kept, n_contexts, run.context_size, dictionary)


def _analyze_holds(run: Run) -> tuple[Need, ...]:
    from pipeline.evaluation.kept_activations import KEPT_BYTES

    contexts, _, near = _analyze_needs(run)
    held = (_model(run, whole=True), _largest(run, 1, "the weights"), contexts, near)
    if len(run.dictionaries) == 1:
        return held
    kept = min(analysed_bytes(run), KEPT_BYTES)
    return (*held, Need("activations that are kept", kept, {"analysis.tokens": run.analysed_tokens}))


def analysed_bytes(run: Run) -> int:
    """Of the activations that the members of a sweep are looked at on."""
    widths = sum(run.sources.widths[hook] for hook in run.params.dictionary_hook_points)
    return run.analysed_tokens * widths * ITEMSIZE[run.params.model.dtype]


def _analyze_works_on(run: Run) -> tuple[Need, ...]:
    n_contexts = min(run.params.analysis.batch_contexts, run.analysed_tokens // run.context_size)
    tokens = n_contexts * run.context_size
    features = tokens * max(math.prod(each.feature_shape) for each in run.dictionaries.values()) * FLOAT32
    return (
        _through_model(run, n_contexts, "analysis.batch_contexts"),
        _analyze_needs(run)[1],
        Need(
            f"the features of {n_contexts:,} contexts", min(features, MAX_VALUES_BYTES), {"analysis.batch_contexts": n_contexts}
        ),
    )


# What is done ------------------------------------------------------------------------------------------------------------


def _does_tokenize(run: Run) -> str:
    return (
        f"{number(run.stored_tokens)} training tokens and about {number(run.held_out_contexts * run.context_size)} held out, "
        f"in contexts of {run.context_size:,}; {bytes_in_words(token_store_bytes(run))}"
    )


def _does_generate(run: Run) -> str:
    hooks = f"{number(run.stored_tokens)} tokens at {_count(len(run.params.hook_points), 'hook point')}"
    if run.params.activations.path is not None:
        return f"verifies the store {run.params.activations.path}"
    if run.live:
        return f"plans {hooks}, which are computed while they are read; nothing is stored"
    if run.stored:
        return f"the store is there: verifies {hooks}"
    stored = f"{bytes_in_words(store_bytes(run))} in {run.params.activations.storage_dtype}"
    return f"{hooks} through {run.params.model.model_name}, {stored}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _of_members(run: Run) -> str:
    """`, of 2 members: k8, k16`; "" without a sweep."""
    names = [name for name in run.params.members if name]
    if not names:
        return ""
    shown = ", ".join(names[:MEMBERS_SHOWN]) + (f" and {len(names) - MEMBERS_SHOWN} more" if len(names) > MEMBERS_SHOWN else "")
    return f", of {_count(len(names), 'member')}: {shown}"


def _does_norm(run: Run) -> str:
    return f"{number(run.norm_tokens)} tokens at {_count(len(run.params.hook_points), 'hook point')}"


def _does_initialize(run: Run) -> str:
    start = run.params.initializer.from_dictionary
    what = "a drawn start" if start is None else f"a start from {start}"
    n = len(run.dictionaries)
    made = "one dictionary" if n == 1 else f"{n} dictionaries"
    return f"{what} of {made}, {run.n_features:,} features, on {number(run.initializer_tokens)} tokens"


def _does_train(run: Run) -> str:
    total, per_step = run.params.total_steps, run.params.activations.tokens_per_batch
    left = total if run.steps_left is None else max(run.steps_left)
    if left == 0:
        return f"all {total:,} steps of {per_step:,} tokens are done, their outputs are written{_of_members(run)}"
    if left < total:
        tokens = f"{number(left * per_step)} of {number(run.trained_tokens)}"
        return f"the last {left:,} of {total:,} steps of {per_step:,} tokens, {tokens}{_of_members(run)}"
    return (
        f"{total:,} steps of {per_step:,} tokens, {number(run.trained_tokens)} in all, "
        f"{run.epochs:.2f} times those of the training rows{_of_members(run)}"
    )


def _does_fold(run: Run) -> str:
    kept = f"{number(run.params.fold.calibration_tokens)} tokens kept from training"
    return f"the norms into the weights, checked on {kept}{_of_members(run)}"


def _does_evaluate(run: Run) -> str:
    tokens = f"{number(run.evaluated_tokens)} held-out tokens"
    return f"{tokens} in {run.evaluation_runs} runs of the language model{_of_members(run)}"


def _does_analyze(run: Run) -> str:
    return (
        f"{number(run.analysed_tokens)} tokens through the language model, then {run.n_features:,} features into the "
        f"dashboard{_of_members(run)}"
    )


# How long it takes -------------------------------------------------------------------------------------------------------


def _live_seconds(run: Run, rates: Rates, tokens: float) -> float:
    """What the language model takes for tokens that are read live."""
    return rates.tokenizers + rates.models + rates.part + tokens * rates.model if run.live else 0.0


def _seconds_tokenize(run: Run, rates: Rates) -> float:
    tokens = run.context_size * (run.train_contexts + run.held_out_contexts)
    from pipeline.planning.text import is_counted_first

    times = 2 if is_counted_first(run) else 1
    return rates.start + rates.tokenizers + rates.models + times * (rates.tokenizer + rates.text + tokens * rates.tokenize)


def _seconds_generate(run: Run, rates: Rates) -> float:
    if run.live:
        batch = run.params.activations.model_batch_size * run.context_size
        seen = min(batch, run.stored_tokens) * rates.model
        return rates.start + rates.tokenizers + rates.models + rates.tokenizer + rates.part + seen
    if run.params.activations.path is not None:
        return rates.start + run.stored_tokens * rates.write
    if run.stored:
        return rates.start + rates.tokenizers + rates.models + rates.tokenizer
    return (
        rates.start
        + rates.tokenizers
        + rates.models
        + rates.tokenizer
        + rates.part
        + run.train_contexts * run.context_size * rates.model
        + run.stored_tokens * rates.write
    )


def _seconds_norm(run: Run, rates: Rates) -> float:
    measured = run.norm_tokens * len(run.params.hook_points) * rates.norm
    before = rates.start + rates.tokenizers + rates.tokenizer  # of which it shows the massive tokens
    return before + measured + rates.norm_end + _live_seconds(run, rates, run.norm_tokens)


def _seconds_initialize(run: Run, rates: Rates) -> float:
    tokens = run.initializer_tokens * len(run.dictionaries)
    return rates.start + rates.initialize + _live_seconds(run, rates, tokens)


def _seconds_train(run: Run, rates: Rates) -> float:
    left = run.share_left
    # One window that holds all rows is computed again by a training that goes on.
    passes = max(1.0, run.epochs) * left if run.params.activations.buffer_size < run.stored_tokens else float(left > 0.0)
    read = _live_seconds(run, rates, run.stored_tokens * passes)
    steps = left * (run.params.total_steps * rates.step + _model_loss_seconds(run, rates))
    return rates.start + rates.tracking + steps + read


def _model_loss_seconds(run: Run, rates: Rates) -> float:
    """What the loss through the language model takes: a run as it is, one with the reconstruction, and that one back."""
    from pipeline.shares import contexts_in_step, resolve_steps

    trainer, acts = run.params.trainer, run.params.activations
    if trainer.model_loss is None:
        return 0.0
    contexts = contexts_in_step(trainer.model_loss_batches, acts.tokens_per_batch, acts.context_size)
    tokens = resolve_steps(trainer.model_loss_steps, run.params.total_steps) * contexts * acts.context_size
    return tokens * MODEL_LOSS_RUNS * rates.evaluate / run.evaluation_runs


def _seconds_fold(run: Run, rates: Rates) -> float:
    return rates.start + rates.tracking + rates.fold + _live_seconds(run, rates, run.params.fold.calibration_tokens)


def _seconds_evaluate(run: Run, rates: Rates) -> float:
    before = rates.start + rates.tokenizers + rates.models + rates.tracking + rates.load
    return before + run.evaluated_tokens * rates.evaluate + rates.evaluate_end


def _seconds_analyze(run: Run, rates: Rates) -> float:
    seen = rates.load + run.analysed_tokens * rates.analyze
    before = rates.start + rates.tokenizers + rates.models + rates.tokenizer + rates.tracking
    return before + seen + rates.neighbours + run.n_features * rates.feature


STAGES = (
    Stage("tokenize", _does_tokenize, _nothing, _tokenize_works_on, _seconds_tokenize, models=True, tokenizer=True),
    Stage("generate", _does_generate, _generate_holds, _generate_works_on, _seconds_generate, models=True, tokenizer=True),
    Stage("norm", _does_norm, _norm_holds, _live_batch, _seconds_norm, tokenizer=True),
    Stage("initialize", _does_initialize, _initialize_holds, _live_batch, _seconds_initialize),
    Stage("train", _does_train, _train_holds, _train_works_on, _seconds_train, tracks=True),
    Stage("fold", _does_fold, _fold_holds, _fold_works_on, _seconds_fold, tracks=True),
    Stage("evaluate", _does_evaluate, _evaluate_holds, _evaluate_works_on, _seconds_evaluate, tracks=True, models=True),
    Stage(
        "analyze",
        _does_analyze,
        _analyze_holds,
        _analyze_works_on,
        _seconds_analyze,
        tracks=True,
        models=True,
        tokenizer=True,
        beside=PAGE_BYTES,
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}
DVC = 1.0  # seconds of a stage that are DVC's own, and of the end of its process
# Bytes of a process with torch and transformers, if not measured; of what transformers imports to run a model, and of MLflow;
# of a tokenizer for each entry, from files of its own and from a GGUF file, whose merges are read in Python.
BEFORE, MODELS, TRACKING = 310_000_000, 200_000_000, 130_000_000
ENTRY, GGUF_ENTRY = 1_500, 4_000


def peak_bytes(run: Run, stage: Stage, rates: Rates | None = None) -> int:
    """About what a stage takes at its peak: libraries, what it holds, and batches with their temporaries."""
    main = run.sources.main
    before = BEFORE if rates is None else int(rates.memory)
    before += main.vocab_size * (ENTRY if main.gguf is None else GGUF_ENTRY) if stage.tokenizer else 0
    runs = run.live or (stage.models and not (stage.name == "generate" and run.params.activations.path is not None))
    before += MODELS if runs else 0
    batches = TEMPORARIES * sum(need.n_bytes for need in stage.works_on(run))
    tracks = stage.tracks and run.params.tracking.enabled
    return before + stage.beside + (TRACKING if tracks else 0) + sum(need.n_bytes for need in stage.holds(run)) + batches


def clock_seconds(run: Run, stage: Stage, rates: Rates) -> float:
    """How long a stage takes under DVC, on a machine that does nothing else."""
    return DVC + stage.seconds(run, rates)
