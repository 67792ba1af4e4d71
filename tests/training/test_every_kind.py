"""Every registered kind with every gate trains: what is reported, and a run that is broken off and taken up ends the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.loop import TrainingRun, train
from pipeline.training.source import TensorSource, TrainingBatch
from tests.dictionaries.make import read_by
from tests.dictionaries.test_contract import KIND_CONFIGS, every_case
from tests.training.cases import params, same

STEPS = 12
LOSSES: dict[str, dict[str, Any]] = {
    "relu": {"sparsity_loss_type": "tanh-quad", "l1_coefficient": 1e-3},
    "jumprelu": {"target_l0": 3.0, "lp_coefficient": 1e-4},
}


def make(kind: str, act_fn: str) -> Dictionary:
    config = {"kind": kind, "d_in": 6, "d_sae": 20, "act_fn": act_fn, "top_k": 3, "decoder_uniform_bound": 0.3}
    return build_dictionary({**config, **KIND_CONFIGS[kind]}, seed=1)


class Source(TensorSource):
    """Batches of 16 tokens (or contexts of 4) that end with a KeyboardInterrupt before batch `stop`."""

    def __init__(self, made: Dictionary, stop: int | None = None) -> None:
        contexts = made.reads_sequences
        x, y = (read_by(made, 400 if contexts else 100, seed, torch.float32) for seed in (0, 1))
        if contexts:
            x, y = x.reshape(-1, 4, x.shape[-1]), y.reshape(-1, 4, y.shape[-1])
        labels = None if made.hooks_in == made.hooks_out else y[..., : made.config.d_out]
        super().__init__(x, labels, batch_size=16, seed=0, token_dims=2 if contexts else 1)
        self.stop = stop

    def batches(self, start: int) -> Iterator[TrainingBatch]:
        for batch in super().batches(start):
            if batch.index == self.stop:
                raise KeyboardInterrupt
            yield batch


def run(made: Dictionary, directory: Path | None = None, stop: int | None = None) -> TrainingRun:
    family = {"auxk_coefficient": 1 / 32, "initial_k": 6} if made.activation.budgeted else LOSSES[made.config.act_fn]
    settings = params(**family, dead_threshold=60, checkpoint_minutes=1e-9)
    norms = dict.fromkeys((*made.hooks_in, *made.hooks_out), 2.0)
    about: dict[str, Any] = {"params": settings, "norms": norms, "total_steps": STEPS}
    if directory is None:
        return train(made, Source(made), **about)
    with Checkpoints(directory, {}).opened() as checkpoints:
        return train(made, Source(made, stop), **about, checkpoints=checkpoints)


@every_case
def test_a_broken_run_ends_with_the_same_bits(kind: str, act_fn: str, tmp_path: Path) -> None:
    unbroken, broken = make(kind, act_fn), make(kind, act_fn)
    before = {name: tensor.clone() for name, tensor in unbroken.state_dict().items()}
    ended = run(unbroken)
    for stop in (4, 9):
        with pytest.raises(KeyboardInterrupt):
            run(make(kind, act_fn), tmp_path, stop)
    again = run(broken, tmp_path)
    assert same(unbroken.state_dict(), broken.state_dict())
    assert same(ended.trainer.state(), again.trainer.state())
    assert all(tensor.isfinite().all() for tensor in unbroken.state_dict().values())
    assert not any(torch.equal(before[name], tensor) for name, tensor in unbroken.state_dict().items())
    assert ended.last["loss"] < ended.history.rows[0]["loss"]
    assert ended.last["l0"] > 0
