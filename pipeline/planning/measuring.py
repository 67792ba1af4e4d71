"""Rates of this machine, from some of the run's own work in a folder that goes again.

The language model runs over a few contexts, up to its deepest hook point and, spliced, to its end. All that does not run it is
measured on a small store of what was found there, repeated with noise: the store is written, norms, first weights, steps and
the fold are made of it, as the stages make them, at the sizes of the run's own batches and dictionaries. A part that can be cut
works for about SECONDS; loading a model, and one batch of everything, take what they take.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pipeline.allocation import resident
from pipeline.corpus.document import Document
from pipeline.corpus.for_params import settings_of
from pipeline.corpus.tokenization import tokenize_corpus
from pipeline.corpus.tokens import TokenStore, open_tokens
from pipeline.files import local_path
from pipeline.hook_keys import by_model
from pipeline.lm.loading import load_stated, model_widths
from pipeline.lm.source import DEMO
from pipeline.params.choices import STORE
from pipeline.params.schema import Params
from pipeline.planning.rates import Rates
from pipeline.planning.run import Run
from pipeline.planning.timing import BUSY, REPEATS, SECONDS, OtherWork, Stopwatch, fastest, silent, slope, timed
from pipeline.seeding import generator

if TYPE_CHECKING:
    from pipeline.evaluation.raw_space import RawDictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.norms.hook_norm import HookNorm
    from pipeline.planning.text import TextSample
    from pipeline.training.member import Member

STORE_BYTES = 2**28  # of the small store, at most
NOISE = 0.3  # of a hook point's standard deviation, so that repeated rows are not equal
TRACKED = 3  # what a stage spends on MLflow, over importing it: 2.8 in fold on the embedded default
MOST_STEPS = 50
CONTEXTS = 256  # in the token store that is measured on, at least
SEED = 20


_STAGE = """
import json, sys, time, torch
from pipeline.params.loader import params_from_dict
from pipeline.planning.run import Run
Run.of(params_from_dict(json.load(sys.stdin)))
print(time.process_time())
"""


class Beginning(NamedTuple):
    """What there is before anything is done.

    Attributes:
        tokenizers: of importing what reads tokenizers; models: of importing what runs language models, after that.
        memory: bytes that the process has without what runs language models.
    """

    tokenizers: float
    models: float
    memory: int


def beginning() -> Beginning:
    """Import what stages import, and see how long that takes; to be called before anything else is done."""

    def for_tokenizers() -> None:
        import pyarrow.parquet  # noqa: F401
        import zarr  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    def for_models() -> None:
        import transformers.modeling_utils  # noqa: F401

    tokenizers, memory = timed(for_tokenizers)[0], resident()
    return Beginning(tokenizers, timed(for_models)[0], memory)


def _start(params: Params) -> float:
    """Seconds of the processor until a stage begins to work: of a process that reads the parameters and sees what is to do."""
    values, found_at = json.dumps(params.to_dict()), {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _STAGE]
    done = subprocess.run(command, input=values, capture_output=True, text=True, check=True, env={**os.environ, **found_at})
    return float(done.stdout)


def measure(run: Run, text: TextSample, before: Beginning) -> Rates:
    """Measure; nothing is left behind.

    Args:
        run: what is planned.
        text: some of its text.
        before: what :func:`beginning` gave.

    Raises:
        DataError, ParamsError: what the run's own stages would say.
    """
    params = _small(run)
    known = {
        "start": _start(run.params),
        "tokenizers": before.tokenizers,
        "models": before.models,
        "memory": float(before.memory),
    }
    with tempfile.TemporaryDirectory(prefix="scopeline-plan-") as folder, _as_project(Path(folder)):
        return _Measurement(run, params, text, Path(folder), known).rates()


@contextlib.contextmanager
def _as_project(folder: Path) -> Iterator[None]:
    """Within the block `folder` is the checkout: stores and checkpoints would be written there."""
    before = {key: os.environ.get(key) for key in ("DVC_ROOT", "SCOPELINE_STORE")}
    os.environ["DVC_ROOT"], os.environ["SCOPELINE_STORE"] = str(folder), str(folder / "store")
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


class Replayed:
    """A language model that gives again, with noise, what another has found on some contexts.

    Args:
        found: {hook point: [n, T, D]}.
    """

    device = torch.device("cpu")

    def __init__(self, found: Mapping[str, Tensor]) -> None:
        self.found = {hook: x.float().cpu() for hook, x in found.items()}
        self.scales = {hook: NOISE * x.std() for hook, x in self.found.items()}
        self.draw = generator(SEED, "planning", "replayed")

    def activations(self, token_ids: Tensor, hook_points: Sequence[str]) -> dict[str, Tensor]:
        """{hook point: [b, T, D]}."""
        given = {}
        for hook in hook_points:
            x = self.found[hook]
            rows = torch.arange(len(token_ids)) % len(x)
            noise = torch.randn((len(rows), *x.shape[1:]), generator=self.draw)
            given[hook] = x[rows] + self.scales[hook] * noise
        return given

    def first_not_finite(self, token_ids: Tensor) -> None:
        """What was found is finite."""


class _Measurement:
    """One measurement, in the order in which the stages work."""

    def __init__(self, run: Run, params: Params, text: TextSample, folder: Path, known: dict[str, float]) -> None:
        self.run, self.params, self.text, self.folder, self.known = run, params, text, folder, known

    def rates(self) -> Rates:
        """All of them."""
        self.known |= {
            "tokenizer": self.text.tokenizer_seconds,
            "text": self.text.first,
        }
        self.known["tracking"] = self._tracking()
        tokens = self._tokens()
        models = self._models()
        found = self._through(models, tokens)
        self._store(found)
        norms = self._norms()
        members = self._members()
        folded = self._folded(members, norms)
        raws = {name: _raw(dictionary, norms, models) for name, dictionary in folded.items()}
        self._evaluate(models, raws, tokens)
        self._analyze(norms, models, raws, found, tokens)
        return Rates(**self.known)

    def _tracking(self) -> float:
        if not self.run.params.tracking.enabled:
            return 0.0

        def imported() -> None:
            import mlflow  # noqa: F401

        return TRACKED * timed(imported)[0]

    def _tokens(self) -> TokenStore:
        """A token store of the sample, its documents repeated until there are enough of them."""
        rows = self.params.activations.total_tokens
        wanted = max(rows, CONTEXTS * self.params.activations.context_size)
        settings = dataclasses.replace(settings_of(self.params), total_tokens=wanted, eval_fraction=0.2)
        place = self.folder / "tokens.zarr"
        with silent():
            seconds, _ = timed(lambda: tokenize_corpus(_repeated(self.text.documents), self.text.info, settings, place))
        store = open_tokens(place)
        written = store.context_size * (store.train.n_contexts + store.eval.n_contexts)
        self.known["tokenize"] = seconds / written + self.text.per_token
        return store

    def _models(self) -> dict[str, LanguageModel]:
        """The language models, whole."""
        self.known["load"], models = timed(
            lambda: {alias: load_stated(self.params.language_model(alias)) for alias in self.run.sources.models}
        )
        from pipeline.planning.stages import part_of_models

        self.known["part"] = self.known["load"] * part_of_models(self.run)
        return models

    def _through(self, models: Mapping[str, LanguageModel], tokens: TokenStore) -> dict[str, dict[str, Tensor]]:
        """{alias: {hook point: what is found there}} of some contexts."""
        hooks = by_model(dict.fromkeys((*self.params.hook_points, *self.params.dictionary_hook_points)))
        acts = self.params.activations
        found: dict[str, dict[str, Tensor]] = {}

        def work(n: int) -> None:
            ids = torch.from_numpy(tokens.train.read(0, n)).long()
            found.update({alias: models[alias].activations(ids, own) for alias, own in hooks.items()})

        each, beside = slope(work, min(acts.model_batch_size, tokens.train.n_contexts))
        self.known["model"] = (each + beside / acts.model_batch_size) / acts.context_size
        return found

    def _store(self, found: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The small store and its manifest."""
        from pipeline.activations.for_params import generate_for

        replayed = {alias: Replayed(own) for alias, own in found.items()}
        by_name = {_name(self.params.language_model(alias)): own for alias, own in replayed.items()}
        sources = {_name(self.params.language_model(alias)): source for alias, source in self.run.sources.models.items()}

        def work() -> None:
            with silent():
                generate_for(
                    self.params,
                    lambda model: sources[_name(model)],
                    lambda model, hooks: by_name[_name(model)],
                    self.folder / "tokens.zarr",
                    self.folder / "activations.json",
                )

        seconds, _ = timed(work)
        made = timed(lambda: [own.activations(torch.zeros(8, 1), list(own.found)) for own in replayed.values()])[0]
        n_contexts = self.params.activations.total_tokens / self.params.activations.context_size
        self.known["write"] = max(seconds - made * n_contexts / 8, seconds / 10) / self.params.activations.total_tokens

    def _norms(self) -> dict[str, HookNorm]:
        """The norms of the small store, and their statistics."""
        from pipeline.norms.hook_norm import load_norms, write_norms
        from pipeline.norms.massive import MassiveTokens
        from pipeline.norms.measure import compute_norms
        from pipeline.opening import open_activations

        store, factor = open_activations(self.folder / "activations.json"), self.params.activations.max_norm_factor
        seconds, found = fastest(lambda: compute_norms(store, None, max_norm_factor=factor, massive=MassiveTokens(store).add))
        self.known["norm"] = seconds / (store.n_tokens * len(store.hook_points))
        places = self.folder / "norms.json", self.folder / "norm_statistics.safetensors"
        self.known["norm_end"], _ = timed(lambda: write_norms(found, *places, store.made_from()))
        return load_norms(places[0])

    def _members(self) -> dict[str, Member]:
        """The dictionaries at their start, after some steps."""
        from pipeline.initialization.from_store import Places, initialize_dictionary
        from pipeline.training.outputs import Places as TrainingPlaces
        from pipeline.training.session import open_members

        manifest, norms, initial = (self.folder / name for name in ("activations.json", "norms.json", "initial"))
        self.known["initialize"], _ = timed(
            lambda: [
                initialize_dictionary(own, Places(manifest, norms, initial / name)) for name, own in self.params.members.items()
            ]
        )
        nowhere = self.folder / "nowhere"
        places = TrainingPlaces(manifest, norms, initial, nowhere, nowhere, nowhere, nowhere, nowhere)
        _, members = open_members(self.params, places)
        self.known["step"] = sum(self._step(member) for member in members.values())
        return members

    def _step(self, member: Member) -> float:
        """Seconds of a step of one dictionary: of the processor, or by the clock, if that is more.

        A step also waits for threads of its own, which the processor's time does not tell; the clock tells it where other
        processes take little. The steps are cut into REPEATS runs, of which the fastest counts.
        """
        from pipeline.training.run import TrainingRun
        from pipeline.training.source import on_device

        training = TrainingRun(
            member.dictionary, member.source, params=member.trainer, norms=member.norms, total_steps=self.params.total_steps
        )
        batches = on_device(member.source.batches(0), member.device, training.trainer.dtype)
        try:
            training.step(next(batches))  # with what is made at the first call alone
            most, watch, others = min(MOST_STEPS, self.params.total_steps - 1), Stopwatch(), OtherWork()
            processor, clock = list[float](), list[float]()
            while len(clock) < most and (len(clock) < 2 or watch.seconds() < SECONDS):
                step = Stopwatch()
                training.step(next(batches))
                processor.append(step.seconds())
                clock.append(step.wall())
            busy = (others.share() or 0.0) >= BUSY
            return fastest_run(processor) if busy else max(fastest_run(processor), fastest_run(clock))
        finally:
            batches.close()

    def _folded(self, members: Mapping[str, Member], norms: Mapping[str, HookNorm]) -> dict[str, Any]:
        from pipeline.activations.schema import calibration_rows
        from pipeline.folding import StoredBatches, fold_dictionary
        from pipeline.opening import open_activations

        store = open_activations(self.folder / "activations.json")
        rows = calibration_rows(store, self.params.fold.calibration_tokens)
        found, total = {}, 0.0
        for name, member in members.items():
            own, dictionary = member.params, member.dictionary.cpu()
            seconds, report = fastest(
                lambda own=own, dictionary=dictionary: fold_dictionary(  # type: ignore[misc]
                    dictionary,
                    norms,
                    mode=own.fold.mode,
                    feature_units=own.fold.feature_units,
                    calibration_batches=StoredBatches.of(store, dictionary, norms, rows, own.activations.batch_size),
                    convert_topk=own.fold.convert_topk_to_jumprelu,
                    target_l0=own.trainer.steered_l0,
                )
            )
            found[name], total = report.dictionary, total + seconds
        self.known["fold"] = total * self.run.params.fold.calibration_tokens / max(self.params.fold.calibration_tokens, 1)
        return found

    def _evaluate(self, models: Mapping[str, Any], raws: Mapping[str, RawDictionary], tokens: TokenStore) -> None:
        from pipeline.errors import NumericsError
        from pipeline.evaluation.baselines import load_principal_directions
        from pipeline.evaluation.evaluator import Evaluator
        from pipeline.evaluation.split_tokens import SplitTokens

        written = tuple(dict.fromkeys(hook for raw in raws.values() for hook in raw.hooks_out))
        principal = load_principal_directions(self.folder / "norm_statistics.safetensors", written)
        evaluation, size = self.params.evaluation, self.params.activations.context_size

        def work(n: int) -> None:
            split = SplitTokens(tokens.train, tokens.train.mask, n * size, evaluation.batch_contexts)
            with contextlib.suppress(NumericsError):  # of so few tokens a metric may be undefined: all is computed by then
                Evaluator(models, raws, principal, split).evaluate_each(None)

        each, beside = slope(work, min(evaluation.batch_contexts, tokens.train.n_contexts))
        self.known |= {"evaluate": each / size, "evaluate_end": beside}

    def _analyze(
        self,
        norms: Mapping[str, HookNorm],
        models: Mapping[str, LanguageModel],
        raws: Mapping[str, RawDictionary],
        found: Mapping[str, Mapping[str, Tensor]],
        tokens: TokenStore,
    ) -> None:
        from pipeline.evaluation.kept_activations import KEPT_BYTES
        from pipeline.planning.features import measure_features
        from pipeline.planning.stages import analysed_bytes

        replayed, several = {alias: Replayed(own) for alias, own in found.items()}, len(raws) > 1
        share = min(1.0, KEPT_BYTES / max(analysed_bytes(self.run), 1))  # of the tokens whose activations are kept
        parts, token, had = [], 0.0, set[str]()
        for raw in raws.values():
            given = (self.params, raw, norms, models, replayed, tokens, self.run.analysed_tokens, self.folder)
            part = measure_features(*given, is_one_of_several=several)
            kept = share if had.issuperset(raw.hooks_to_look_at) else 0.0
            token += kept * part.kept + (1.0 - kept) * part.token
            had.update(raw.hooks_to_look_at)
            parts.append(part)
        self.known["analyze"] = token
        self.known["neighbours"] = sum(part.neighbours for part in parts)
        self.known["feature"] = sum(part.feature for part in parts) / len(parts)


def fastest_run(seconds: Sequence[float]) -> float:
    """The mean of the fastest of REPEATS equal runs of steps, each with what only some of the steps do; 0 of none."""
    length = max(1, len(seconds) // REPEATS)
    runs = [seconds[at : at + length] for at in range(0, len(seconds) - length + 1, length)]
    return min((sum(run) / len(run) for run in runs), default=0.0)


def _raw(dictionary: Any, norms: Mapping[str, HookNorm], models: Mapping[str, LanguageModel]) -> RawDictionary:
    from pipeline.evaluation.raw_space import RawDictionary

    return RawDictionary(dictionary.to(next(iter(models.values())).device), norms)


def _name(model: Any) -> tuple[str, str | None]:
    return model.model_name, model.revision


def _repeated(documents: Sequence[Document]) -> Iterator[Document]:
    """The documents again and again, each time another text, so that each goes to a side of its own."""
    number = 0
    while documents:
        for document in documents:
            yield dataclasses.replace(document, key=f"{document.key}#{number}", text=f"{document.text} {number}")
            number += 1


def _small(run: Run) -> Params:
    """The parameters of the small store: as few rows as batches, start and calibration take."""
    params = run.params
    acts, per_row = params.activations, params.activations.tokens_per_row
    wanted = max(params.initializer.tokens, 3 * acts.tokens_per_batch) + params.fold.calibration_tokens + acts.tokens_per_batch
    row_bytes = 4 * sum(run.sources.widths.values())
    least = 2 * acts.tokens_per_batch + per_row
    rows = min(acts.total_tokens, max(least, min(wanted, STORE_BYTES // row_bytes)))
    calibration = min(params.fold.calibration_tokens, max(rows - acts.tokens_per_batch - per_row, 0) // 2)

    def absolute(model: Any) -> Any:
        name = model.model_name
        place = model_widths(name).directory if name == DEMO else local_path(name)
        return model if place is None else dataclasses.replace(model, model_name=str(Path(place).resolve()))

    others = None if params.models is None else {alias: absolute(model) for alias, model in params.models.items()}
    started = params.initializer.from_dictionary
    sections: dict[str, Any] = {
        "model": absolute(params.model),
        "models": others,
        "activations": dataclasses.replace(acts, total_tokens=rows, source=STORE, path=None),
        "fold": dataclasses.replace(params.fold, calibration_tokens=calibration),
        "trainer": dataclasses.replace(params.trainer, model_loss=None),
        "initializer": dataclasses.replace(
            params.initializer, from_dictionary=None if started is None else str(Path(started).resolve())
        ),
    }
    return dataclasses.replace(params, **sections)
