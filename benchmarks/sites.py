"""The default recipe at three sites of the embedded default's language model: dead features and served L0.

Residual stream, MLP output and attention output of the layer that the default reads, each with TopK, BatchTopK and JumpReLU
(steered to the same L0): fit() with nothing stated, on the activations of the train split, measured on the held-out one
through the inference form. Not one parameter differs between sites or activation functions.

    dvc repro tokenize && python -m benchmarks.sites         # writes benchmarks/results/sites.md

Exit status 1 if a goal is missed: dead < 1 % of the features, L0 within 1 % of the target (JumpReLU: 2 %).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.quality import ACT_FNS, MOST_L0_ERROR, machine
from pipeline.corpus.tokens import TokenSplit, TokenStore, open_tokens
from pipeline.evaluation.in_memory import evaluate_reconstruction
from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_language_model
from pipeline.seeding import generator
from pipeline.training.fit import fit

RESULTS = Path("benchmarks/results/sites.md")
LAYER = 2
SITES = {"residual stream": "hook_resid_post", "MLP output": "hook_mlp_out", "attention output": "hook_attn_out"}
L0, BATCH, DEAD = 24, 2048, 0.01
CONTEXTS_AT_A_TIME = 64


def activations(model: LanguageModel, store: TokenStore, split: TokenSplit, hook: str) -> Tensor:
    """float32 [N, D] of the split's tokens that are not ignored, shuffled as the rows of an activation store are."""
    found = []
    for start in range(0, split.n_contexts, CONTEXTS_AT_A_TIME):
        ids = split.read(start, start + CONTEXTS_AT_A_TIME)
        captured = model.activations(torch.from_numpy(ids).long(), [hook])[hook]
        found.append(captured[torch.from_numpy(store.mask(ids))].float())
    rows = torch.cat(found)
    return rows[torch.randperm(len(rows), generator=generator(0, "sites", hook, split.name))]


def measure(training: Tensor, held_out: Tensor, act_fn: str, seed: int) -> dict[str, float]:
    """FVU, L0 and dead features of the default with this activation function, and the seconds of fit()."""
    began = time.monotonic()
    given = {"act_fn": act_fn, "top_k": L0}
    result = fit(training, dictionary=given, trainer={}, batch_size=BATCH, seed=seed, device="cpu", progress=True)
    seconds = time.monotonic() - began
    metrics = evaluate_reconstruction(result.inference, held_out)
    return {**{key: metrics[key] for key in ("fvu", "l0_mean", "dead_fraction")}, "seconds": seconds}


def faults(act_fn: str, found: dict[str, Any]) -> list[str]:
    """What misses its goal. TopK's L0 is at most k by construction."""
    missed = []
    if found["dead_fraction"] >= DEAD:
        missed.append(f"dead {found['dead_fraction']:.2%}, wanted < {DEAD:.0%}")
    off = abs(found["l0_mean"] / L0 - 1)
    if off > MOST_L0_ERROR.get(act_fn, MOST_L0_ERROR["batchtopk"]):
        missed.append(f"L0 off by {off:.2%}")
    return missed


@click.command()
@click.option("--tokens", type=click.Path(path_type=Path), default="data/tokens.zarr", show_default=True, help="Token store.")
@click.option("--seed", default=0, show_default=True, help="Of the draw and the order of the rows.")
def main(tokens: Path, seed: int) -> None:
    """Train, measure, compare."""
    store, model = open_tokens(tokens), load_language_model("demo")
    lines = ["| site | act_fn | FVU | L0 | dead | seconds |", "|---|---|---:|---:|---:|---:|"]
    missed = []
    n_held_out = 0
    for site, name in SITES.items():
        hook = f"blocks.{LAYER}.{name}"
        training, held_out = (activations(model, store, split, hook) for split in (store.train, store.eval))
        n_held_out = len(held_out)
        for act_fn in ACT_FNS:
            found = measure(training, held_out, act_fn, seed)
            missed += [f"{site}, {act_fn}: {fault}" for fault in faults(act_fn, found)]
            lines.append(
                f"| {site} | {act_fn} | {found['fvu']:.4f} | {found['l0_mean']:.2f} | {found['dead_fraction']:.2%} "
                f"| {found['seconds']:.0f} |"
            )
            click.echo(lines[-1])
    text = "\n".join(
        [
            "# The default recipe at three sites of the embedded default",
            "",
            f"`{' '.join(['python -m benchmarks.sites', *sys.argv[1:]])}` on {machine()}.",
            f"L0 {L0}, 2,048 features, 2M tokens; layer {LAYER}; measured on {n_held_out:,} held-out tokens (dead: never "
            "active on them) through the inference form.",
            "",
            *lines,
            "",
            *(["Goals missed:", "", *(f"- {line}" for line in missed)] if missed else ["All goals are met."]),
            "",
        ]
    )
    RESULTS.write_text(text, encoding="utf-8")
    if missed:
        click.echo("\n".join(missed))
        sys.exit(1)


if __name__ == "__main__":
    main()
