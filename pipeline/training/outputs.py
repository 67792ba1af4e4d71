"""What the train stage writes: dictionaries, figures, history and curves, of one dictionary or of the members of a sweep."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import metric_names as names
from pipeline.contracts.sealing import Origin
from pipeline.dictionaries.saving import save_dictionary
from pipeline.files import atomic_directory, members_directory, write_bytes, write_json
from pipeline.metric_files import read_history
from pipeline.plots.training_report import describe, write_sweep_report, write_training_report
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.member import Member
from pipeline.training.model_loss import run_tokens


@dataclasses.dataclass(frozen=True)
class Places:
    """What the stage reads (manifest of the store, norms, initial dictionary) and writes.

    Of a sweep `initial`, `trained` and `plots` have a directory for each member.
    """

    activations: Path
    norms: Path
    initial: Path
    trained: Path
    metrics: Path
    history: Path
    plots: Path
    run: Path


class Ended(NamedTuple):
    """A member whose dictionary has its last weights.

    Attributes:
        member: with them.
        checkpoints: of its run.
        last: figures of its last step.
    """

    member: Member
    checkpoints: Checkpoints
    last: Mapping[str, Any]


def write_outputs(ended: Sequence[Ended], places: Places, sweep: bool) -> dict[str, dict[str, Any]]:
    """Write the stage's outputs.

    Args:
        ended: the members, or the one dictionary.
        places: where to.
        sweep: whether they are members.

    Returns: {member: figures of metrics/train.json}, of one dictionary {"": figures}.
    """
    figures = {each.member.name: _figures(each) for each in ended}
    with members_directory(places.trained, sweep) as folder:
        for each in ended:
            _save(each, figures[each.member.name], folder / each.member.name)
    write_bytes(places.history, b"".join(_history(each) for each in ended))
    write_json(places.metrics, figures if sweep else figures[""])
    with atomic_directory(places.plots) as folder:
        histories = {}
        for each in ended:
            name = each.member.name
            again = f"remove {each.checkpoints.directory} and run again from the start"
            histories[name] = read_history(places.history, again, member=name)
            shown = {key: value for key, value in figures[name].items() if isinstance(value, (int, float))}
            write_training_report(folder / name, histories[name], _about(each.member), shown)
        if sweep:
            models = dict.fromkeys(str(each.member.source.store.model.get("name")) for each in ended)
            write_sweep_report(folder, histories, f"{len(ended)} members on activations of {' and '.join(models)}")
    return figures


def _about(member: Member) -> str:
    config = member.dictionary.config
    return describe(config.to_dict(), member.source.store.model.get("name"), layers=config.layers)


def _figures(ended: Ended) -> dict[str, Any]:
    """metrics/train.json: nothing in it depends on time."""
    member, last = ended.member, ended.last
    source, total = member.source, member.params.total_steps
    final = {f"final_{key}": value for key, value in sorted(last.items()) if key not in (names.STEP, names.TOKENS)}
    return {
        **final,
        "steps": total,
        "tokens": int(last[names.TOKENS]),
        # Tokens of the batches that were not trained on: excluded ones, in contexts also ignored ids and positions.
        "left_out_tokens": run_tokens(source, member.trainer, total) - int(last[names.TOKENS]),
        "epochs": total / source.store.batches_per_epoch(source.batch_size, source.rows),
        "learning_rate": member.trainer.lr,
        "d_sae": member.dictionary.config.d_sae,
    }


def _save(ended: Ended, figures: Mapping[str, Any], place: Path) -> None:
    """The trained dictionary."""
    member, params = ended.member, ended.member.params
    store = member.source.store
    training = {
        "trainer": params.trainer.to_dict() | {"lr": figures["learning_rate"]},
        "steps": figures["steps"],
        "tokens": figures["tokens"],
        "batch_size": params.activations.batch_size,
        "seed": params.seed,
        "store": store.fingerprint,
    }
    # Made from what the initial dictionary was, which has been compared with what is there.
    made = Origin("train", Origin.of(member.dictionary.config.provenance).made_from)
    about = {"norms": member.norms, "model": store.model, "training": training, **made.to_dict()}
    save_dictionary(member.dictionary, place, about)


def _history(ended: Ended) -> bytes:
    """The lines of its log steps; those of a member say whose they are."""
    assert ended.checkpoints.history.file is not None
    content, name = ended.checkpoints.history.file.read_bytes(), ended.member.name
    return b"".join(_rows_of(content, name)) if name else content


def _rows_of(content: bytes, name: str) -> Iterator[bytes]:
    for line in content.splitlines():
        yield (json.dumps({**json.loads(line), names.MEMBER: name}, sort_keys=True) + "\n").encode()
