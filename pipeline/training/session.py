"""The train stage's work: open what it reads, train or go on, write what it leaves.

    data/trained/<name>/           config.json + weights.safetensors
    metrics/train.json             figures of the last step, and what the run was
    metrics/train_history.jsonl    figures of the log steps
    metrics/plots/training/        their curves
    data/run.json                  id of the tracked run (written by the tracker)

Checkpoints are in $DVC_ROOT/data/checkpoints/<fingerprint>/. A run whose end is kept there writes its outputs again
without training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline import metric_names as names
from pipeline.activations.interface import Activations
from pipeline.activations.schema import training_rows
from pipeline.contracts.sealing import Origin, remake
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import config_from_dict
from pipeline.dictionaries.saving import save_dictionary
from pipeline.dictionaries.store import load_dictionary
from pipeline.errors import DataError
from pipeline.files import atomic_directory, ensure_writable, fingerprint, is_number, root, write_bytes, write_json
from pipeline.metric_files import read_history, read_metrics
from pipeline.norms.exclusion import NormLimits
from pipeline.norms.hook_norm import read_norms
from pipeline.norms.normalizer import Normalizer
from pipeline.opening import open_for
from pipeline.params.choices import LIVE
from pipeline.params.schema import Params, TrainerParams
from pipeline.plots.training_report import describe, write_training_report
from pipeline.tracking.opening import open_tracker, read_run_id
from pipeline.tracking.tracker import Tracker
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.device import training_device
from pipeline.training.fingerprint import describe_run
from pipeline.training.loop import deterministic, say, train
from pipeline.training.model_loss import ContextSource, run_tokens, with_model_loss
from pipeline.training.schedules import with_rate
from pipeline.training.source import StoreSource

EARLIER = ("generate", "norm", "pretrain", "tokenize")  # stages whose figures are there before a run is
INITIALIZE = "run `dvc repro -s -f initialize`"


@dataclasses.dataclass(frozen=True)
class Places:
    """What the stage reads (manifest of the store, norms, initial dictionary) and writes."""

    activations: Path
    norms: Path
    initial: Path
    trained: Path
    metrics: Path
    history: Path
    plots: Path
    run: Path


def train_dictionary(params: Params, places: Places) -> dict[str, Any]:
    """Train `places.initial` on the store, from its checkpoint if it has one, and write the outputs.

    Returns: the figures of metrics/train.json.

    Raises:
        DataError, CheckpointError, NumericsError, ParamsError: as the message says.
        Interrupted: stopped by a signal; the state is saved.
    """
    ensure_writable(checkpoint_root := root() / "data" / "checkpoints", "checkpoints")
    device = training_device(params.activations.device or params.model.device, "activations.device")
    dictionary = load_dictionary(places.initial, device=device)
    check_matches(dictionary, params, places.initial)
    store = open_for(params, places.activations)
    norms, origin = read_norms(places.norms)
    inputs = {**store.made_from(), "norms": origin.digest}
    origin.check(places.norms, "norm", inputs)
    Origin.of(dictionary.config.provenance).check(places.initial, "initialize", inputs)
    normalizer = Normalizer(dictionary.config, norms)
    source = make_source(params, dictionary, normalizer.excluded, store, device)
    fine_tuning = params.initializer.from_dictionary is not None
    trainer = with_rate(params.trainer, dictionary.config, params.total_steps, fine_tuning=fine_tuning)
    about = describe_run(
        dictionary,
        normalizer,
        source,
        trainer.to_dict(),
        total_steps=params.total_steps,
        determinism=params.determinism,
        device=device,
    )
    directory = checkpoint_root / fingerprint(about)
    if store.source == LIVE:
        for line in _live_lines(params, source):
            say("train", line)
    with (
        Checkpoints(directory, about).opened() as checkpoints,
        deterministic(params.determinism, device),
        _tracked(params, places, checkpoints, store) as tracker,
    ):
        last = _train(params, trainer, dictionary, source, norms, checkpoints, tracker)
        figures = _figures(params, trainer, dictionary, source, last)
        _write(dictionary, normalizer, figures, checkpoints, store, params, places)
        tracker.log_metrics({key: value for key, value in figures.items() if isinstance(value, (int, float))})
        for path in (places.metrics, places.history):
            tracker.log_artifact(path, "metrics")
        tracker.log_artifact(places.plots, "plots/training")
    return figures


def _live_lines(params: Params, source: StoreSource) -> list[str]:
    """What a training on live activations costs: how often the language model runs over the text."""
    per_epoch = source.store.batches_per_epoch(source.batch_size, source.rows)
    n_rows = source.rows[1] - source.rows[0]
    epochs = params.total_steps / max(per_epoch, 1)
    tokens = n_rows * source.store.n_tokens // source.store.n_rows
    lines = [f"live activations of {tokens:,} tokens; the first batch comes when a window of activations.buffer_size is filled"]
    if epochs > 1:
        kept = params.activations.buffer_size >= tokens
        once = "they are kept in one window, and the language model runs once" if kept else "the language model runs in each"
        lines.append(f"trainer.total_training_tokens is {epochs:.2f} epochs of them; {once}")
    return lines


def check_matches(dictionary: Dictionary, params: Params, place: Path) -> None:
    """Refuse an initial dictionary that was made for other parameters (a stage run alone can meet one).

    Raises:
        DataError: names the fields.
    """
    config = dictionary.config
    wanted = config_from_dict(params.dictionary.of_widths(config.d_in, config.d_out)).to_dict()
    found = {key: value for key, value in config.to_dict().items() if key not in ("norms", "provenance")}
    different = [f"{key} is {value!r}, wanted {wanted.get(key)!r}" for key, value in found.items() if wanted.get(key) != value]
    if different:
        reason = "; ".join(different)
        raise DataError(f"{place}: the initial dictionary was made for other parameters ({reason}); {INITIALIZE}")


def make_source(
    params: Params, dictionary: Dictionary, limits: NormLimits, store: Activations, device: torch.device
) -> StoreSource:
    """The store's training rows as the parameters want them, without the tokens above `limits`.

    Raises:
        DataError: a width does not fit, or there is nothing to train on.
    """
    widths = dict.fromkeys(dictionary.hooks_in, dictionary.config.d_in)
    widths |= dict.fromkeys(dictionary.hooks_out, dictionary.config.d_out)
    for hook, width in widths.items():
        if store.width(hook) != width:
            raise DataError(
                f"{store.path}: activations at {hook} are {store.width(hook)} wide, the initial dictionary wants {width}; "
                f"{INITIALIZE}"
            )
    stated = None if params.activations.dtype is None else getattr(torch, params.activations.dtype)
    return StoreSource(
        store=store,
        hooks_in=dictionary.hooks_in,
        hooks_out=dictionary.hooks_out,
        batch_size=params.activations.batch_size,
        rows=training_rows(store, params.fold.calibration_tokens),
        limits=limits,
        buffer_rows=params.activations.buffer_size,
        seed=params.seed,
        # The CPU decodes in the reader's thread; to a GPU go the stored bytes, which are fewer.
        dtype=stated or (torch.float32 if device.type == "cpu" else None),
        device=device if device.type == "cuda" else None,
    )


def _tracked(params: Params, places: Places, checkpoints: Checkpoints, store: Activations) -> Tracker:
    """The run's tracker: the one that the checkpoints belong to, or a new one."""
    run_file = checkpoints.directory / "run.json"
    run_id = read_run_id(run_file)
    point = checkpoints.finished() or checkpoints.latest()[0]
    tracker = open_tracker(
        params.tracking,
        stage="train",
        run_file=places.run,
        run_id=run_id,
        resume_step=None if point is None else point.extra.get("last", {}).get(names.STEP),
        past=checkpoints.history.file,
        name=params.dictionary.name,
    )
    write_json(run_file, {"run_id": tracker.run_id or run_id})
    tracker.log_params(params.to_dict())
    shape = (store.n_rows, *store.shape(store.hook_points[0])[1:])
    about = {"store": str(store.path), "model": store.model}
    tracker.log_dataset("activations", store.fingerprint, source=about, shape=shape, dtype=store.storage_dtype)
    dictionary = params.dictionary
    tags = {"kind": dictionary.kind, "name": dictionary.name, "checkpoints": checkpoints.directory.name}
    tags |= {"sae_name": dictionary.sae_name or "", "sae_series": dictionary.sae_series or ""}
    tracker.set_tags({key: value for key, value in tags.items() if value})
    _log_earlier(tracker, places.metrics.parent)
    return tracker


def _log_earlier(tracker: Tracker, metrics: Path) -> None:
    """Figures of the stages that ran before there was a run to log to."""
    for stage in EARLIER:
        file = metrics / f"{stage}.json"
        if not file.exists():
            continue
        found = read_metrics(file, f"metrics of {stage}", remake(stage))
        tracker.log_metrics({f"{stage}/{key}": value for key, value in names.flatten(found) if is_number(value)})


def _train(
    params: Params,
    trainer: TrainerParams,
    dictionary: Dictionary,
    source: StoreSource,
    norms: Mapping[str, Any],
    checkpoints: Checkpoints,
    tracker: Tracker,
) -> dict[str, Any]:
    """Bring the dictionary to the end of its run; figures of the last step."""
    done = checkpoints.finished()
    if done is not None:
        dictionary.load_weights_(
            {name: tensor.to(next(dictionary.parameters()).device) for name, tensor in done.tensors.items()}
        )
        return done.extra["last"]
    batches = with_model_loss(source, trainer, params.total_steps)
    if isinstance(batches, ContextSource):
        say("train", batches.cost())
    run = train(
        dictionary,
        batches,
        params=trainer,
        norms=norms,
        total_steps=params.total_steps,
        checkpoints=checkpoints,
        on_metrics=lambda step, figures: tracker.log_metrics(figures, step),
        label="train",
    )
    if source.store.source == LIVE:
        say("train", run.timing.limit())
    checkpoints.finish(params.total_steps, dictionary.state_dict(), {"last": run.last})
    return run.last


def _figures(
    params: Params, trainer: TrainerParams, dictionary: Dictionary, source: StoreSource, last: Mapping[str, Any]
) -> dict[str, Any]:
    """metrics/train.json: nothing in it depends on time."""
    config = dictionary.config
    final = {f"final_{key}": value for key, value in sorted(last.items()) if key not in (names.STEP, names.TOKENS)}
    return {
        **final,
        "steps": params.total_steps,
        "tokens": int(last[names.TOKENS]),
        # Tokens of the batches that were not trained on: excluded ones, in contexts also ignored ids and positions.
        "left_out_tokens": run_tokens(source, trainer, params.total_steps) - int(last[names.TOKENS]),
        "epochs": params.total_steps / source.store.batches_per_epoch(source.batch_size, source.rows),
        "learning_rate": trainer.lr,
        "d_sae": config.d_sae,
    }


def _write(
    dictionary: Dictionary,
    normalizer: Normalizer,
    figures: Mapping[str, Any],
    checkpoints: Checkpoints,
    store: Activations,
    params: Params,
    places: Places,
) -> None:
    """The stage's outputs."""
    norms = {hook: norm.to_dict() for hook, norm in normalizer.norms.items()}
    training = {
        "trainer": params.trainer.to_dict() | {"lr": figures["learning_rate"]},
        "steps": figures["steps"],
        "tokens": figures["tokens"],
        "batch_size": params.activations.batch_size,
        "seed": params.seed,
        "store": store.fingerprint,
    }
    # Made from what the initial dictionary was, which has been compared with what is there.
    made = Origin("train", Origin.of(dictionary.config.provenance).made_from)
    save_dictionary(dictionary, places.trained, {"norms": norms, "model": store.model, "training": training, **made.to_dict()})
    assert checkpoints.history.file is not None
    write_bytes(places.history, checkpoints.history.file.read_bytes())
    write_json(places.metrics, dict(figures))
    rows = read_history(places.history, f"remove {checkpoints.directory} and run again from the start")
    about = describe(dictionary.config.to_dict(), store.model.get("name"), layers=dictionary.config.layers)
    with atomic_directory(places.plots) as folder:
        write_training_report(folder, rows, about, {k: v for k, v in figures.items() if isinstance(v, (int, float))})
