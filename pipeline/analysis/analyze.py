"""The analysis of a dictionary's features: one pass over contexts, then the feature store. A killed pass goes on, and a
finished one is kept until all that follows from it is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pipeline.allocation import FreedMemory
from pipeline.analysis.collection import BANDS, RESERVOIR_PER_CONTEXT, Collection
from pipeline.analysis.context_slots import slot_bytes
from pipeline.analysis.loading import load_for_analysis
from pipeline.analysis.texts import ReadableTexts
from pipeline.analysis.tracing import AnalysedContexts
from pipeline.analysis.writing import about_store, write_store
from pipeline.corpus.tokenization import tokenizer_info
from pipeline.corpus.tokens import open_tokens
from pipeline.dealing import by_the_first, in_turns
from pipeline.dictionaries.formats.scopeline import CONFIG_FILE
from pipeline.errors import DataError, Interrupted
from pipeline.evaluation.kept_activations import KeptActivations, RememberingModels
from pipeline.evaluation.models import LanguageModels
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.evaluation.split_tokens import SplitTokens
from pipeline.files import atomic_directory, atomic_file, ensure_writable, fingerprint, root
from pipeline.interrupts import stop_on_signals
from pipeline.memory import Need, require_memory
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.progress import Progress, tell
from pipeline.stage_code import code_digest

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.analysis.feature_counts import Sums
    from pipeline.analysis.loading import Loaded
    from pipeline.corpus.tokens import TokenSplit, TokenStore
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.params.schema import AnalysisParams, Params

# Code of the stage that comes after the pass: what draws, and the command line.
NOT_THE_PASS = ("pipeline/dashboard", "pipeline/plots", "stages")
RUN_KEYS = ("backend", "dtype", "attention", "device")  # of the section model: how a model is run
SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Inputs:
    """Where the stages before left what is read.

    Attributes:
        dictionary: directory of the inference dictionary.
        tokens: the token store.
        norms: norms.json, for a dictionary that is not folded.
    """

    dictionary: Path
    tokens: str | Path
    norms: str | Path


class SavedState:
    """The state of a pass in one file, whole or absent, named after what the pass depends on.

    Args:
        about: all that changes the outcome but the code, as plain values.
        code: digest of the code that makes it.
        folder: where.
    """

    def __init__(self, about: Mapping[str, Any], code: str, folder: Path) -> None:
        self._pass = f"analysis-{fingerprint(about)}"
        self.path = folder / f"{self._pass}-{code[:16]}.safetensors"

    def of_other_code(self) -> Path | None:
        """Where other code has left a state of this very pass; None: nowhere."""
        return min((path for path in self.path.parent.glob(f"{self._pass}-*") if path != self.path), default=None)

    def load(self) -> dict[str, Tensor] | None:
        """The tensors; None: nothing is there, or it is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.path)
        except (FileNotFoundError, SafetensorError):
            return None

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace what is there."""
        from safetensors.torch import save_file

        with atomic_file(self.path) as partial:
            save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, partial)

    def remove(self) -> None:
        """Nothing is left to go on from."""
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise Interrupted where they find the program, so that half-written folders go.

    A second signal acts as before the block. Outside the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def end(number: int, frame: FrameType | None) -> None:
        restore()
        raise Interrupted(f"analysis: stopped by {signal.Signals(number).name}; run the same command again to go on")

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def analyzed(
    params: Params,
    inputs: Inputs,
    folder: str | Path,
    *,
    save_seconds: float = SAVE_SECONDS,
    models: dict[str, LanguageModel] | None = None,
    kept: KeptActivations | None = None,
) -> Iterator[dict[str, Any]]:
    """Write the feature store of a dictionary, whole or not at all; its metadata.

    The block is for what is made from the store. Only when it has ended well is the state of the pass removed: whatever is
    stopped or fails before, the next call does not run the models again. A signal ends the block too.

    Args:
        params: the dictionary's name, the models and the section `analysis`.
        inputs: what the stages before wrote.
        folder: the feature store; what is there is replaced.
        save_seconds: time between two saved states.
        models: {alias: language model} that are loaded already; others are added. None: none.
        kept: activations of these models, for other dictionaries too. None: none are kept.

    Raises:
        DataError: something of these is missing, damaged, or does not fit the rest.
        Interrupted: a signal asked to stop; the state is saved.
    """
    with ended_by_signals():
        one = _Pass.prepared(params, inputs, models, kept=kept)
        run_pass(one.collection, one.tokens, one.saved, save_seconds)
        contexts = AnalysedContexts(one.split, one.tokens.contexts, ReadableTexts(one.found.main))
        about = about_store(one.found, one.collection, one.params)
        with atomic_directory(folder) as place:
            write_store(place, one.found, one.collection, contexts, one.params, about)
        saved = one.saved
        del one, contexts
        yield about
        saved.remove()


def collect(
    params: Params,
    inputs: Inputs,
    processes: Reductions,
    feature_group: Reductions = ONE_PROCESS,
    *,
    save_seconds: float = SAVE_SECONDS,
    models: dict[str, LanguageModel] | None = None,
    kept: KeptActivations | None = None,
) -> None:
    """Run the models over the contexts in several processes; :func:`analyzed` in the first one goes on from there.

    Args:
        params, inputs, save_seconds, models, kept: as of :func:`analyzed`.
        processes: that the contexts are dealt to.
        feature_group: over those that the features are dealt to, which have the same contexts.

    Raises:
        DataError, Interrupted: as :func:`analyzed`.
    """
    with ended_by_signals():
        one = _Pass.prepared(params, inputs, models, feature_group, kept)
        run_pass(one.collection, one.tokens, one.saved, save_seconds, processes, feature_group)


@dataclass(frozen=True)
class _Pass:
    """What a pass needs.

    Attributes:
        params: with the section `analysis` within what there is.
        found: the dictionary and its models.
        split, tokens: what is looked at.
        collection: empty.
        saved: where its state is kept.
    """

    params: Params
    found: Loaded
    split: TokenSplit
    tokens: SplitTokens
    collection: Collection
    saved: SavedState

    @classmethod
    def prepared(
        cls,
        params: Params,
        inputs: Inputs,
        models: dict[str, LanguageModel] | None,
        feature_group: Reductions = ONE_PROCESS,
        kept: KeptActivations | None = None,
    ) -> _Pass:
        checkpoints = root() / "data" / "checkpoints"
        ensure_writable(checkpoints, "the state of the analysis")
        store = open_tokens(inputs.tokens)
        split = store.train if params.analysis.split == "train" else store.eval
        wanted = params.analysis.tokens
        most = split.n_contexts * split.context_size
        tokens = SplitTokens(
            split,
            split.mask,
            most if wanted is None else min(wanted, most),
            params.analysis.batch_contexts,
            params.analysis.split,
        )
        found = load_for_analysis(
            params,
            inputs.dictionary,
            norms=inputs.norms,
            known=models,
            feature_group=feature_group,
            tokens=store.digest,
        )
        store.check_tokenizer(tokenizer_info(found.main.tokenizer, found.main.name).digest, found.main.name)
        params = dataclasses.replace(params, analysis=within(params.analysis, tokens, found.dictionary))
        running = LanguageModels(found.models)
        if kept is not None:
            running = RememberingModels(running, kept)
        collection = Collection(running, RawDictionary(found.dictionary, found.norms), params.analysis, tokens.n_tokens)
        code = code_digest("analyze", NOT_THE_PASS)
        saved = SavedState(_depends_on(params, inputs, store, found), code, checkpoints)
        return cls(params, found, split, tokens, collection, saved)


def within(analysis: AnalysisParams, tokens: SplitTokens, dictionary: Dictionary) -> AnalysisParams:
    """The section without what there is not: no more contexts of a feature than are looked at, tokens beside one than a context
    has, neighbours than features. What is collected stays the same; what it takes is checked.

    Raises:
        ParamsError: it cannot be held.
    """
    context_size = tokens.n_tokens // tokens.n_contexts
    n_features = math.prod(dictionary.feature_shape) * dictionary.feature_group.size
    kept = at_most(analysis, tokens.n_contexts, context_size, n_features)
    contexts, *others = needs(analysis, kept, tokens.n_contexts, context_size, dictionary)
    require_memory(contexts, device=next(dictionary.parameters()).device)
    for other in others:
        require_memory(other)
    return dataclasses.replace(analysis, **kept)


def at_most(analysis: AnalysisParams, n_contexts: int, context_size: int, n_features: int) -> dict[str, Any]:
    """{key of the section: what is kept of what it asks for, a number}."""
    kept: dict[str, Any] = {name: min(getattr(analysis, name), n_contexts) for name in ("top_contexts", "inactive_contexts")}
    kept |= {name: min(getattr(analysis, name), context_size - 1) for name in ("window_before", "window_after")}
    kept["band_contexts"] = min(analysis.band_contexts, math.ceil(n_contexts / BANDS))
    kept["neighbours"] = min(analysis.neighbours, n_features)
    return kept


def needs(
    analysis: AnalysisParams, kept: Mapping[str, int], n_contexts: int, context_size: int, dictionary: Dictionary
) -> tuple[Need, Need, Need]:
    """What the pass takes at least: contexts kept of the features, a batch of activations, neighbours.

    Args:
        analysis: the section.
        kept: see :func:`at_most`.
        n_contexts, context_size: that are looked at.
        dictionary: its shapes are looked at, not its weights.
    """
    n_features, config = math.prod(dictionary.feature_shape), dictionary.config
    drawn = BANDS * RESERVOIR_PER_CONTEXT * kept["band_contexts"]
    window = 1 + kept["window_before"] + kept["window_after"]
    contexts = n_features * (kept["top_contexts"] + drawn) * slot_bytes(window)
    near = 2 * n_features * kept["neighbours"] * (torch.int64.itemsize + torch.float32.itemsize)
    n = min(analysis.batch_contexts, n_contexts)
    read = n * context_size * config.d_in * len(dictionary.hooks_in) * torch.float16.itemsize
    return (
        Need(f"the contexts kept of {n_features:,} features", contexts, _stated(analysis, kept, "context", "window")),
        Need(f"the activations of {n:,} contexts", read, _stated(analysis, ["batch_contexts"], "")),
        Need(f"the neighbours of {n_features:,} features", near, _stated(analysis, kept, "neighbours")),
    )


def _stated(analysis: AnalysisParams, names: Iterable[str], *parts: str) -> dict[str, int]:
    """{dotted key: value} of those whose names have one of these parts."""
    return {f"analysis.{name}": getattr(analysis, name) for name in names if any(part in name for part in parts)}


def analyze(params: Params, inputs: Inputs, folder: str | Path, *, save_seconds: float = SAVE_SECONDS) -> dict[str, Any]:
    """:func:`analyzed` where nothing is made from the store."""
    with analyzed(params, inputs, folder, save_seconds=save_seconds) as about:
        return about


def _depends_on(params: Params, inputs: Inputs, store: TokenStore, found: Loaded) -> dict[str, Any]:
    """All that changes the outcome of the pass but the code; the dictionary's configuration says which tokens are excluded."""
    return {
        "dictionary": hashlib.sha256((inputs.dictionary / CONFIG_FILE).read_bytes()).hexdigest(),
        "tokens": store.digest,
        "models": {alias: model.digest for alias, model in found.models.items()},
        "run": {key: value for key, value in params.to_dict()["model"].items() if key in RUN_KEYS},
        "norms": {hook: [n.mean_norm, n.mean_square, n.d] for hook, n in (found.norms or {}).items()},
        "analysis": params.to_dict()["analysis"],
    }


class _Batch(NamedTuple):
    """What a process tells of a batch.

    Attributes:
        rank: of the process.
        tokens: of the batch.
        sums: of its features.
        stop, due: whether the process was asked to stop, and whether the state is to be saved.
    """

    rank: int
    tokens: int
    sums: list[Sums]
    stop: str | None
    due: bool


def run_pass(
    collection: Collection,
    tokens: SplitTokens,
    saved: SavedState,
    save_seconds: float,
    processes: Reductions = ONE_PROCESS,
    feature_group: Reductions = ONE_PROCESS,
) -> None:
    """Go through the contexts, from the saved state on if there is one; the state of the whole pass is saved.

    Args:
        collection: empty. Of several processes that of the first one is filled, and its state saved.
        tokens: the contexts.
        saved: where the state is kept, which is of no number of processes.
        save_seconds: time between two saved states.
        processes: that deal the batches.
        feature_group: over those that have the same batches, and features of their own.

    Raises:
        Interrupted: a signal asked to stop; the state is saved.
        DataError: not all that should go on from a saved state have it.
    """
    first = processes.rank == 0 and feature_group.rank == 0
    if processes.rank == 0 and (state := saved.load()) is not None:
        collection.load(state)
    elif first and (other := saved.of_other_code()) is not None:
        tell(f"analyze: starting anew: the state of this pass in {other} was saved by other code")
    before = collection.batches = by_the_first(lambda: collection.batches, processes)
    _check_alike(before, saved, feature_group)
    per_batch = tokens.n_tokens // tokens.n_contexts * tokens.batch_contexts
    progress = Progress("analyze", tokens.n_tokens, done=min(before * per_batch, tokens.n_tokens))
    latest = time.monotonic()

    def save() -> None:
        collection.gather(processes)
        if processes.rank == 0 and (state := collection.state()) is not None:
            saved.save(state)

    with stop_on_signals() as stop:

        def done(number: int) -> _Batch:
            batch = tokens.batch(number)
            sums = collection.collect(batch)
            due = first and time.monotonic() - latest >= save_seconds
            return _Batch(processes.rank, batch.tokens.numel(), sums, stop.received, due)

        freed = FreedMemory()
        for turn in in_turns(tokens.n_batches, done, processes, before):
            freed.look()
            for each in turn:
                collection.add_sums(each.sums)
                progress.update(each.tokens)
            asked = next((each.stop for each in turn if each.stop is not None), None)
            due = any(each.due for each in turn)
            if feature_group.size > 1:
                stopped, due = feature_group.any(torch.tensor([asked is not None, due])).tolist()
                asked = asked or ("another process's signal" if stopped else None)
            if asked is not None or due:
                save()
                latest = time.monotonic()
            if asked is not None:
                raise _stopped(asked, progress)
        if collection.batches > before:
            save()
        if stop.received is not None:
            raise _stopped(stop.received, progress)
    progress.close()


def _check_alike(batches: int, saved: SavedState, feature_group: Reductions) -> None:
    """Refuse to go on where processes that have features of their own have found states of other numbers of batches."""
    found = [int(each) for each in feature_group.gathered(torch.tensor([batches]))]
    if len(set(found)) > 1:
        raise DataError(
            f"{saved.path}: the processes of distributed.model_parallel_size have found it after {', '.join(map(str, found))} "
            "batches; put data/ on a disk that all of them see, or remove the file"
        )


def _stopped(by: str, progress: Progress) -> Interrupted:
    return Interrupted(
        f"analysis: stopped by {by} after {progress.done:,} of {progress.total:,} tokens; the state is saved, run the same "
        "command again to go on"
    )
