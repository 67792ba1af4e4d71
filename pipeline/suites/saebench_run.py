"""What `stages.saebench` does: write the dictionary as SAEBench takes it, run its evaluations there, and log what they say."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.corpus.bos import adds_bos
from pipeline.corpus.tokens import open_tokens
from pipeline.dictionaries.store import load_dictionary
from pipeline.errors import DataError, ParamsError
from pipeline.files import local_path, locked, write_json
from pipeline.interop.plain import plain_of, unit_rows
from pipeline.interop.saebench import saebench_object, write_object
from pipeline.interop.verification import check, difference
from pipeline.lm.loading import load_stated, load_tokenizer
from pipeline.lm.source import resolve_model
from pipeline.suites import saebench_runner
from pipeline.suites.saebench_environment import child_environment, environment_versions
from pipeline.suites.saebench_evaluations import EVALUATIONS
from pipeline.suites.saebench_results import logged, read_result, table
from pipeline.tracking.opening import open_tracker

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.corpus.tokens import TokenStore
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.source import ModelSource
    from pipeline.params.schema import Params

STAGE = "saebench"
HELD_OUT, MODEL, OBJECT = "scopeline_held_out", "model", "object"  # of the folder of a run
HEADS = ("hook_q", "hook_k", "hook_v", "hook_z")
CHECKED_CONTEXTS = 8
EVERY_SECONDS = 15.0
TOKENIZED_AGAIN = 0.75  # share of the tokens that SAEBench gets of a text for sure, with tokens of its own
SHOWN_LINES = 3  # of a log, where its evaluation fails


@dataclass(frozen=True)
class Settings:
    """How SAEBench is run.

    Attributes:
        python: of its environment.
        work: folder for the object, logs and results; its cache of data sets lies elsewhere.
        text: data set of the evaluations that read plain text; None: the held-out contexts of the run.
        model: name or directory, where it is not the run's own; None: that.
        device: of the evaluations; None: cuda if there is one, else cpu.
        dtype: of model and dictionary there.
        reconstruction_batches, sparsity_batches, batch_prompts: of core, with SAEBench's own defaults.
        llm_batch_size: contexts in one pass, of the others.
        endpoint, key_variable: of the chat model that autointerp asks.
        n_latents, total_tokens: of autointerp; None: SAEBench's own.
    """

    python: Path
    work: Path
    text: str | None = None
    model: str | None = None
    device: str | None = None
    dtype: str = "float32"
    reconstruction_batches: int = 200
    sparsity_batches: int = 2000
    batch_prompts: int = 16
    llm_batch_size: int = 32
    endpoint: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    n_latents: int | None = None
    total_tokens: int | None = None


def prepare(params: Params, dictionary: Path, tokens: str | Path, settings: Settings, evaluations: Sequence[str]) -> list[str]:
    """Write the folder of a run: the object, the model, held-out contexts and job.json. Lines on what was done.

    Raises:
        ParamsError: SAEBench has no form for this dictionary.
        DataError: the dictionary, the model or the tokens are missing.
        NumericsError: the object computes something else than the dictionary.
    """
    work = settings.work
    work.mkdir(parents=True, exist_ok=True)
    loaded, store = load_dictionary(dictionary), open_tokens(tokens)
    lines = [_write_object(params, loaded, store, work)]
    shutil.rmtree(work / "eval_results", ignore_errors=True)
    limited = dataclasses.replace(settings, text=settings.text or HELD_OUT)
    if settings.text is None:
        n, limited = _write_contexts(params, store, limited, work)
        lines.append(
            f"text: {n:,} held-out contexts of {store.eval.context_size} tokens (core: {limited.reconstruction_batches} and "
            f"{limited.sparsity_batches} batches of {limited.batch_prompts})"
        )
    job = {
        **{key: value for key, value in dataclasses.asdict(limited).items() if key not in ("python", "work")},
        "name": f"scopeline_{params.dictionary.name}",
        "model": settings.model or _model(params, work),
        "device": settings.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "context_size": params.activations.context_size,
        "needs": {name: dataclasses.asdict(EVALUATIONS[name]) for name in evaluations},
    }
    write_json(work / "job.json", job)
    return lines


def _write_object(params: Params, loaded: Dictionary, store: TokenStore, work: Path) -> str:
    """The object, checked on activations of held-out contexts."""
    plain = plain_of(loaded)
    bos = params.model.prepend_bos
    if bos == "auto":
        bos = adds_bos(load_tokenizer(params.model.model_name, params.model.revision, params.model.tokenizer_name))
    about = {
        "model_name": params.model.model_name,
        "context_size": params.activations.context_size,
        "prepend_bos": bos,
        "dataset_path": params.dataset.dataset_name_or_path,
    }
    unit = unit_rows(dataclasses.replace(plain, about={**plain.about, **about}))
    made, wide = saebench_object(unit), saebench_object(unit).double()
    folded = loaded if loaded.config.folded else loaded.fold(loaded.config.norms)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f = wide.encode(x)
        return f, wide.decode(f)

    x = _activations(params, loaded, store)
    found = check(difference(folded, forward, x, unit.units), f"{work / OBJECT}: saebench")
    write_object(made, work / OBJECT)
    return f"{work / OBJECT}: {found.words()}"


def _activations(params: Params, loaded: Dictionary, store: TokenStore) -> Tensor:
    """Raw rows of a few held-out contexts, [N, d]."""
    (hook,) = loaded.hooks_in
    ids = store.eval.read(0, CHECKED_CONTEXTS)
    kept = torch.from_numpy(store.mask(ids))
    model = load_stated(params.model, [hook])
    found = model.activations(torch.from_numpy(ids).long(), [hook])[hook].cpu()
    return found[kept].float()


def _write_contexts(params: Params, store: TokenStore, settings: Settings, work: Path) -> tuple[int, Settings]:
    """All held-out contexts as a data set of token ids and text; how many, and no more batches and tokens than they give."""
    split, size = store.eval, settings.batch_prompts
    most = split.n_contexts // size
    if not most:
        raise DataError(
            f"the held-out split has {split.n_contexts} contexts, fewer than a batch of {size}; give --batch-prompts, or "
            "--text a data set"
        )
    available = int(TOKENIZED_AGAIN * split.n_contexts * split.context_size)
    limited = dataclasses.replace(
        settings,
        reconstruction_batches=min(settings.reconstruction_batches, most),
        sparsity_batches=min(settings.sparsity_batches, most),
        total_tokens=available if settings.total_tokens is None else min(settings.total_tokens, available),
    )
    tokenizer = load_tokenizer(params.model.model_name, params.model.revision, params.model.tokenizer_name)
    folder = work / HELD_OUT
    folder.mkdir(exist_ok=True)
    with open(folder / "train.jsonl", "w", encoding="utf-8") as stream:
        for row in split.read().tolist():
            text = tokenizer.decode(row, skip_special_tokens=True)
            stream.write(json.dumps({"tokens": row, "text": text}) + "\n")
    return split.n_contexts, limited


def _model(params: Params, work: Path) -> str:
    """What SAEBench calls the model: a local one is linked in the folder, one of the hub keeps its name."""
    name = params.model.model_name
    source: ModelSource = resolve_model(name, params.model.revision)
    if name != "demo" and local_path(name) is None:
        return name
    link = work / MODEL
    link.unlink(missing_ok=True)
    link.symlink_to(Path(source.directory).absolute(), target_is_directory=True)
    return MODEL


def run_evaluation(name: str, settings: Settings) -> dict[str, float]:
    """Run one evaluation in its environment, with a log and a line of progress, and read its result.

    Raises:
        DataError: something that it needs is not to be had, it failed, or it left no result; the message says why.
    """
    log = settings.work / f"{name}.log"
    command = [str(settings.python.absolute()), str(Path(saebench_runner.__file__).absolute()), "job.json", name]
    with open(log, "wb") as stream, _process(command, settings, stream) as process:
        began = shown = time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - shown >= EVERY_SECONDS:
                shown = time.monotonic()
                sys.stderr.write(f"saebench: {name}: {shown - began:,.0f} s  {_last_line(log)}\n")
                sys.stderr.flush()
    lines = _lines(log)
    if process.returncode == saebench_runner.REFUSED:
        reason = next((line for line in reversed(lines) if line.startswith("refused: ")), "refused: ?")
        raise DataError(f"saebench {name}: {reason.removeprefix('refused: ')}")
    if process.returncode:
        raise DataError(f"saebench {name}: ended with exit code {process.returncode}; {log} ends: {_end(lines)}")
    try:
        return read_result(settings.work / "eval_results", name)
    except DataError as error:
        raise DataError([f"saebench {name}: {fault}; {log} ends: {_end(lines)}" for fault in error.faults]) from None


@contextlib.contextmanager
def _process(command: Sequence[str], settings: Settings, stream: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The other Python in a process group of its own, which ends with the block."""
    process = subprocess.Popen(
        command,
        cwd=settings.work,
        env=child_environment(settings.python),
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _lines(log: Path) -> list[str]:
    """Of a log the lines as a terminal shows them: of a bar that is written anew its last state."""
    text = log.read_bytes().decode("utf-8", errors="replace")
    return [line.rstrip("\r").rpartition("\r")[2].strip() for line in text.split("\n") if line.strip()]


def _last_line(log: Path) -> str:
    return next(iter(reversed(_lines(log))), "")[:100]


def _end(lines: Sequence[str]) -> str:
    return " | ".join(line[:300] for line in lines[-SHOWN_LINES:]) or "(empty)"


def run(
    params: Params,
    dictionary: Path,
    member: str,
    evaluations: Sequence[str],
    settings: Settings,
    **files: str | Path,
) -> Iterator[str]:
    """Run evaluations one after another; those that end well are written and logged whatever becomes of the others.

    Args:
        params: of the run.
        dictionary: directory.
        member: of the sweep; "" without one.
        evaluations: names.
        settings: see there.
        files: `tokens`, `out` and `run`: the token store, the metrics to write, and the run file.

    Yields lines for a terminal.

    Raises:
        DataError: a line for each evaluation that was refused or that failed.
    """
    versions = environment_versions(settings.python)
    yield f"sae-bench {versions['sae-bench']} in {settings.python}"
    settings.work.mkdir(parents=True, exist_ok=True)
    with locked(settings.work / ".lock", "the folder of SAEBench's runs"):
        yield from prepare(params, dictionary, files["tokens"], settings, evaluations)
        results: dict[str, dict[str, float]] = {}
        faults: list[str] = []
        for name in evaluations:
            try:
                results[name] = run_evaluation(name, settings)
            except DataError as error:
                faults += error.faults
        if results:
            write_json(files["out"], {**results, "versions": versions})
            _log(params, member, results, settings, files)
            yield from table(results)
    if faults:
        raise DataError(faults)


def _log(
    params: Params, member: str, results: Mapping[str, Mapping[str, float]], settings: Settings, files: Mapping[str, str | Path]
) -> None:
    with open_tracker(params.tracking, stage=STAGE, run_file=files["run"], member=member) as tracker:
        tracker.log_metrics(logged(results))
        tracker.log_artifact(files["out"], "metrics")
        for name in results:
            for place in (settings.work / "eval_results" / name, settings.work / f"{name}.log"):
                tracker.log_artifact(place, f"saebench/{name}")


def check_own(params: Params, model: str | None) -> None:
    """Refuse what SAEBench cannot see of a model.

    Args:
        params: of the run.
        model: that --model names; None: the run's own.

    Raises:
        ParamsError: a GGUF file, or a hook point that its evaluations take from SAELens's own class alone.
    """
    faults = []
    if model is None and str(params.model.model_name).endswith(".gguf"):
        faults.append(
            f"model.model_name: {params.model.model_name}: SAEBench loads models by TransformerLens, which reads no GGUF file; "
            "name the model that it was made of by --model"
        )
    for hook in params.dictionary.hooks_in:
        if hook.rpartition(".")[2] in HEADS:
            faults.append(
                f"dictionary.hook_point_in: {hook}: SAEBench takes activations of single heads from classes of SAELens alone; "
                "it evaluates what is read at hook_resid_pre, hook_resid_mid, hook_resid_post, hook_attn_out or hook_mlp_out"
            )
    if faults:
        raise ParamsError(faults)
