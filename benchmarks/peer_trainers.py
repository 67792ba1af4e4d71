"""Train another package's TopK autoencoder on rows from a file: the part of short_runs.py that runs in that package's Python.

    python benchmarks/peer_trainers.py sparsify FOLDER '{"batch": 1024, "k": 32, "runs": [[2048, 5], [2048, 10]]}'

FOLDER holds training.npy [N, D] and held_out.npy [M, D], float32. A run is (features, steps): steps * batch rows in the file's
order, from the start again where they end. One line of JSON on standard output as a run ends: features, steps, FVU of the
held-out rows as the file has them, the seconds that training took and the package's version; where `threads` is given, also the
median seconds between two batches. Everything else goes to standard error.

Imports nothing of this project. Each package trains with its own trainer and its own defaults:

- sparsify: SparseCoder with Trainer on a language model that looks its residual stream up among the rows; TrainConfig's
  defaults: signum with a schedule-free average, lr 5e-3 / sqrt(features / 16384), no warm-up, loss FVU, no AuxK; b_dec at the
  first batch's mean, unit decoder rows. What is measured is what it saves: the average.
- saelens: TopKTrainingSAE with SAETrainer; the language-model runner's defaults: Adam, lr 3e-4 constant, no warm-up,
  activations as they are, b_dec 0 and decoder rows of norm 0.1 at the start, auxiliary loss for features that are not active
  in 1000 steps.
- dictionary_learning: TopKTrainer with trainSAE, normalize_activations as its README advises; Adam, lr
  2e-4 / sqrt(features / 16384), warm-up of 1000 steps, no decay, AuxK. The trainer refuses runs that are not longer than the
  warm-up, so shorter ones are stated as a step longer than that: without decay the length changes nothing else.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Reconstruct = Callable[[Tensor], Tensor]
ROWS_AT_A_TIME = 2048
SEED = 0
SEQUENCES = 32  # sparsify's default batch, in sequences


class Batches:
    """The batches [batch, D] of a run, as often as they are iterated over.

    Args:
        rows: [N, D].
        batch: rows of a batch.
        steps: batches. Rows that fill no batch at the end of `rows` are left out.
    """

    def __init__(self, rows: Tensor, batch: int, steps: int) -> None:
        self.rows, self.batch, self.steps = rows, batch, steps
        self.stamps: list[float] = []  # when each batch was asked for

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        """Copies: a trainer may write to them."""
        for step in range(self.steps):
            yield self.rows[self.numbers(step)].clone()

    def numbers(self, step: int) -> Tensor:
        """Which rows the batch of a step has, int64 [batch]."""
        if step == 0 and len(self.stamps) > 1:  # gone through again: what counts is the last time, which trains
            self.stamps = []
        if step >= len(self.stamps):
            self.stamps.append(time.perf_counter())
        first = step % (len(self.rows) // self.batch) * self.batch
        return torch.arange(first, first + self.batch)


def sparsify(batches: Batches, features: int, k: int) -> Reconstruct:
    """eai-sparsify."""
    from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer

    class Lookup(torch.nn.Module):
        """A language model whose hook point `rows` writes the rows that the token numbers name."""

        device, dummy_inputs = torch.device("cpu"), {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

        def __init__(self) -> None:
            super().__init__()
            self.rows = torch.nn.Embedding.from_pretrained(batches.rows)

        @property
        def base_model(self) -> torch.nn.Module:
            return self

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.rows(input_ids)

    class Sequences:
        """The batches' row numbers, a batch in SEQUENCES sequences."""

        def __len__(self) -> int:
            return batches.steps * SEQUENCES

        def __getitem__(self, number: int) -> dict[str, Tensor]:
            step, part = divmod(number, SEQUENCES)
            return {"input_ids": batches.numbers(step).view(SEQUENCES, -1)[part]}

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            SparseCoderConfig(num_latents=features, k=k), hookpoints=["rows"], log_to_wandb=False, save_dir=folder
        )
        Trainer(config, Sequences(), Lookup()).fit()
        coder = SparseCoder.load_from_disk(Path(folder) / "unnamed" / "rows")
    return lambda rows: coder(rows).sae_out


def saelens(batches: Batches, features: int, k: int) -> Reconstruct:
    """sae-lens."""
    from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(SEED)
    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=batches.rows.shape[1], d_sae=features, k=k),
        training_tokens=batches.steps * batches.batch,
        train_batch_size_tokens=batches.batch,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        verbose=False,
    )
    return SAETrainer(config.to_sae_trainer_config(), TopKTrainingSAE(config.sae), iter(batches)).fit()


def dictionary_learning(batches: Batches, features: int, k: int) -> Reconstruct:
    """dictionary-learning."""
    from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
    from dictionary_learning.training import trainSAE

    warm_up = 1000  # TopKTrainer's default
    with tempfile.TemporaryDirectory() as folder:
        trainer = {
            "trainer": TopKTrainer,
            "steps": max(batches.steps, warm_up + 1),
            "activation_dim": batches.rows.shape[1],
            "dict_size": features,
            "k": k,
            "layer": 0,
            "lm_name": "rows",
            "seed": SEED,
            "device": "cpu",
        }
        trainSAE(batches, [trainer], steps=batches.steps, save_dir=folder, normalize_activations=True, device="cpu")
        return AutoEncoderTopK.from_pretrained(Path(folder) / "trainer_0" / "ae.pt")


PEERS = {"sparsify": sparsify, "saelens": saelens, "dictionary_learning": dictionary_learning}
PACKAGES = {"sparsify": "eai-sparsify", "saelens": "sae-lens", "dictionary_learning": "dictionary-learning"}


@torch.no_grad()
def fvu(reconstruct: Reconstruct, rows: Tensor) -> float:
    """Squared error over squared distance from the mean, both summed over rows [M, D] in float64."""
    missed = sum(float((part - reconstruct(part)).double().square().sum()) for part in rows.split(ROWS_AT_A_TIME))
    return missed / float((rows.double() - rows.double().mean(0)).square().sum())


def main(peer: str, folder: str, jobs: str) -> None:
    """Run all of `jobs`."""
    asked, output = json.loads(jobs), sys.stdout
    torch.set_num_threads(asked.get("threads", 1))
    training, held_out = (torch.from_numpy(np.load(Path(folder) / f"{name}.npy")) for name in ("training", "held_out"))
    version = f"{PACKAGES[peer]} {importlib.metadata.version(PACKAGES[peer])}"
    with contextlib.redirect_stdout(sys.stderr):
        for features, steps in asked["runs"]:
            began = time.monotonic()
            batches = Batches(training, asked["batch"], steps)
            trained = PEERS[peer](batches, features, asked["k"])
            seconds = time.monotonic() - began
            between = [after - before for before, after in zip(batches.stamps[3:], batches.stamps[4:], strict=False)]
            run = {"features": features, "steps": steps}
            found = {"fvu": fvu(trained, held_out), "seconds": round(seconds, 2), "version": version}
            if asked.get("threads"):
                found["step"] = statistics.median(between)
            output.write(json.dumps({**run, **found}) + "\n")
            output.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
