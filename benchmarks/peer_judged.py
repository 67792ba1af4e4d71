"""What runs in another tool's environment for peer_dictionaries.py: its own trainer trains, it saves, its own loader judges.

    PYTHON benchmarks/peer_judged.py PEER FOLDER '{"batch": 1024, "features": 1024, "l0": 24, "layer": 2, "jobs": {"topk": TO}}'

FOLDER holds float32 arrays [N, D]: resid.npy (what an autoencoder reads and writes), read.npy and written.npy (what an MLP
reads and writes), the same three with held_out_ before the name, which nothing is trained on. Each job is a kind of TRAINERS
and a directory: what the tool saves lies in <directory>/saved, result.json has FVU and L0 of the held-out rows by the tool's
own forward in float32, summed in float64, and sample.npz features and reconstructions of its first rows. A directory with a
result.json is left as it is.

Each tool trains with its own trainer, once through the rows in their order, at batches of one size:

- saelens: SAETrainer, Adam with its default betas, activations scaled by expected_average_only_in. It has no trainer for
  transcoders: a loop of Adam over its own class, error over variance plus L1 by decoder norm.
- sparsify: Trainer with TrainConfig's defaults (signum, schedule-free), on a model that looks its modules' outputs up.
- dictionary_learning: trainSAE with normalize_activations.

Learning rates are the tools' own, but 1e-3 where theirs (3e-4 of SAELens, 7e-5 and 5e-5 of two trainers of
dictionary_learning) is for runs of a hundred times the length; warm-ups are a twentieth of the run, those of sparsity a fifth.
Only TopK has the L0 that was asked for. What is steered by a coefficient comes to another one in so short a run (of 512
features after 128 steps: 89 to 498), and is compared at that. Imports nothing of this project.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PACKAGES = {"saelens": "sae-lens", "sparsify": "eai-sparsify", "dictionary_learning": "dictionary-learning"}
L1 = {"standard": 0.6, "gated": 0.6, "skip_transcoder": 0.1, "StandardTrainer": 0.06, "GatedSAETrainer": 0.06}
L0_COEFFICIENT = 0.5  # of SAELens' jumprelu
LR, SEED = 1e-3, 0
SEQUENCES = 32  # sparsify's batch, in sequences
SAMPLE, ROWS_AT_A_TIME = 4096, 2048
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Job:
    """What is trained, and on what.

    Attributes:
        kind: of TRAINERS.
        x, y: rows [N, D] that are read and written, one tensor of an autoencoder.
        batch, features, l0, layer: of the run.
        saved: directory for what the tool saves.
    """

    kind: str
    x: Tensor
    y: Tensor
    batch: int
    features: int
    l0: int
    layer: int
    saved: Path

    @property
    def steps(self) -> int:
        """Batches of the run."""
        return len(self.x) // self.batch

    @property
    def hooks(self) -> tuple[str, str]:
        """TransformerLens's names."""
        block = f"blocks.{self.layer}"
        if self.x is self.y:
            return f"{block}.hook_resid_post", f"{block}.hook_resid_post"
        return f"{block}.mlp.hook_in", f"{block}.hook_mlp_out"


class Batches:
    """Batches [batch, D] in order, from the start again where they end; copies, since a trainer may write to them."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            for step in range(self.job.steps):
                yield self.job.x[step * self.job.batch : (step + 1) * self.job.batch].clone()


def saelens(job: Job) -> Forward:
    """An autoencoder by SAETrainer."""
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    name = {"standard": "Standard", "topk": "TopK", "jumprelu": "JumpReLU", "gated": "Gated"}[job.kind]
    fifth = job.steps // 5
    own: dict[str, Any] = {
        "topk": {"k": job.l0},
        "jumprelu": {"l0_coefficient": L0_COEFFICIENT, "l0_warm_up_steps": fifth},
    }.get(job.kind) or {"l1_coefficient": L1[job.kind], "l1_warm_up_steps": fifth}
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(
        d_in=job.x.shape[1], d_sae=job.features, normalize_activations="expected_average_only_in",
        metadata=SAEMetadata(model_name="demo", hook_name=job.hooks[0]), **own,
    )  # fmt: skip
    runner = sae_lens.LanguageModelSAERunnerConfig(
        sae=config, training_tokens=job.steps * job.batch, train_batch_size_tokens=job.batch, lr=LR,
        lr_warm_up_steps=job.steps // 20, n_batches_for_norm_estimate=10, checkpoint_path=None, verbose=False,
        logger=sae_lens.LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    SAETrainer(runner.to_sae_trainer_config(), sae, iter(Batches(job))).fit().save_inference_model(str(job.saved))
    return _saelens_loaded(job)


def saelens_transcoder(job: Job) -> Forward:
    """A skip transcoder of SAELens by a loop of ours, since it has no trainer for one."""
    from sae_lens import SkipTranscoder, SkipTranscoderConfig
    from sae_lens.saes.sae import SAEMetadata

    d = job.x.shape[1]
    metadata = SAEMetadata(model_name="demo", hook_name=job.hooks[0], hook_name_out=job.hooks[1])
    coder = SkipTranscoder(
        SkipTranscoderConfig(d_in=d, d_sae=job.features, d_out=d, apply_b_dec_to_input=False, metadata=metadata)
    )
    variance = (job.y - job.y.mean(0)).square().sum(-1).mean()
    with torch.no_grad():
        coder.b_dec.copy_(job.y.mean(0))
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR)
    for step in range(job.steps):
        x, y = (rows[step * job.batch : (step + 1) * job.batch] for rows in (job.x, job.y))
        error = (y - coder(x)).square().sum(-1).mean() / variance
        sizes = (coder.encode(x) * coder.W_dec.norm(dim=-1)).sum(-1).mean() / variance.sqrt()
        loss = error + L1[job.kind] * min(1.0, 5 * (step + 1) / job.steps) * sizes
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    coder.save_model(str(job.saved))
    return _saelens_loaded(job)


def _saelens_loaded(job: Job) -> Forward:
    from sae_lens import SAE

    sae = SAE.load_from_disk(str(job.saved))
    return lambda x: (sae.encode(x), sae(x))


def sparsify(job: Job) -> Forward:
    """A TopK autoencoder of what a block writes, or a transcoder of its MLP."""
    from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer

    transcode = job.kind == "transcoder"

    class Mlp(torch.nn.Module):
        """Looks up what it writes."""

        def forward(self, read: Tensor, numbers: Tensor) -> Tensor:
            return job.y[numbers]

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = Mlp()

        def forward(self, numbers: Tensor) -> Tensor:
            return self.mlp(job.x[numbers], numbers)

    class Lookup(torch.nn.Module):
        """A language model whose modules write the rows that the token numbers name."""

        device, dummy_inputs = torch.device("cpu"), {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(Block() for _ in range(job.layer + 1))

        @property
        def base_model(self) -> torch.nn.Module:
            return self

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.layers[job.layer](input_ids)

    class Sequences:
        """The batches' row numbers, a batch in SEQUENCES sequences."""

        def __len__(self) -> int:
            return job.steps * SEQUENCES

        def __getitem__(self, number: int) -> dict[str, Tensor]:
            size = job.batch // SEQUENCES
            return {"input_ids": torch.arange(number * size, (number + 1) * size)}

    point = f"layers.{job.layer}" + (".mlp" if transcode else "")
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            SparseCoderConfig(num_latents=job.features, k=job.l0, transcode=transcode),
            hookpoints=[point], log_to_wandb=False, save_dir=folder,
        )  # fmt: skip
        Trainer(config, Sequences(), Lookup()).fit()
        job.saved.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(folder) / "unnamed", job.saved)
    coder = SparseCoder.load_from_disk(job.saved / point)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        out = coder(x)
        return torch.zeros(len(x), job.features).scatter_(-1, out.latent_indices, out.latent_acts), out.sae_out

    return forward


def dictionary_learning(job: Job) -> Forward:
    """An autoencoder by trainSAE."""
    from dictionary_learning import trainers
    from dictionary_learning.dictionary import AutoEncoder
    from dictionary_learning.training import trainSAE
    from dictionary_learning.utils import load_dictionary

    top_k = "TopK" in job.kind
    own: dict[str, Any] = {"k": job.l0} if top_k else {"sparsity_warmup_steps": job.steps // 5, "lr": LR}
    own |= {"l1_penalty": L1[job.kind]} if job.kind in L1 else {}
    own |= {"threshold_start_step": job.steps // 10} if top_k else {}
    own |= {"target_l0": float(job.l0)} if job.kind == "JumpReluTrainer" else {}
    trainer = {
        "trainer": getattr(trainers, job.kind), "steps": job.steps, "activation_dim": job.x.shape[1],
        "dict_size": job.features, "layer": job.layer, "lm_name": "demo", "seed": SEED, "device": "cpu",
        "submodule_name": f"resid_post_layer_{job.layer}", "warmup_steps": job.steps // 20, **own,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainSAE(Batches(job), [trainer], steps=job.steps, save_dir=folder, normalize_activations=True, device="cpu")
        job.saved.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(folder) / "trainer_0", job.saved)
    if job.kind == "StandardTrainer":  # load_dictionary would put its features into other units
        ae = AutoEncoder.from_pretrained(job.saved / "ae.pt", normalize_decoder=False)
    else:
        ae = load_dictionary(str(job.saved), device="cpu")[0]

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f = ae.encode(x)
        return f, ae.decode(f)

    return forward


TRAINERS: dict[str, dict[str, Callable[[Job], Forward]]] = {
    "saelens": {
        **dict.fromkeys(("standard", "topk", "jumprelu", "gated"), saelens),
        "skip_transcoder": saelens_transcoder,
    },
    "sparsify": dict.fromkeys(("topk", "transcoder"), sparsify),
    "dictionary_learning": dict.fromkeys(
        ("StandardTrainer", "TopKTrainer", "BatchTopKTrainer", "JumpReluTrainer", "GatedSAETrainer"), dictionary_learning
    ),
}


@torch.no_grad()
def judged(forward: Forward, x: Tensor, y: Tensor) -> dict[str, float]:
    """FVU of y and L0, by a tool's own forward on rows [M, D]."""
    error = active = 0.0
    for read, written in zip(x.split(ROWS_AT_A_TIME), y.split(ROWS_AT_A_TIME), strict=True):
        f, y_hat = forward(read.clone())
        error += float((written.double() - y_hat.double()).square().sum())
        active += float((f != 0).sum())
    wide = y.double()
    return {"fvu": error / float((wide - wide.mean(0)).square().sum()), "l0": active / len(x), "rows": len(x)}


def main(peer: str, folder: str, asked: str) -> None:
    """Do the jobs that are not done yet."""
    about = json.loads(asked)
    jobs = about.pop("jobs")
    rows = {file.stem: torch.from_numpy(np.load(file)) for file in Path(folder).glob("*.npy")}
    torch.set_num_threads(1)
    for kind, place in jobs.items():
        to = Path(place)
        if (to / "result.json").exists():
            continue
        names = ("read", "written") if "transcoder" in kind else ("resid", "resid")
        x, y = (rows[name] for name in names)
        fresh = [rows[f"held_out_{name}"] for name in names]
        torch.manual_seed(SEED)
        began = time.monotonic()
        with contextlib.redirect_stdout(sys.stderr):
            forward = TRAINERS[peer][kind](Job(kind, x, y, **about, saved=to / "saved"))
        found: dict[str, Any] = {"seconds": time.monotonic() - began, **judged(forward, *fresh)}
        with torch.no_grad():
            f, y_hat = (part.detach().float().numpy() for part in forward(fresh[0][:SAMPLE].clone()))
        np.savez(to / "sample.npz", f=f, y=y_hat)
        found["version"] = f"{PACKAGES[peer]} {importlib.metadata.version(PACKAGES[peer])}"
        (to / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
