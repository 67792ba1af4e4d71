"""A crosscoder over two checkpoints of the embedded default's language model, offline.

The second checkpoint is the first one trained a little further on one package's documentation (train split only). Then the
stages run with the preset demo-crosscoder, its hook points being the residual stream after block 2 of both. Everything but
the activation store is made in --place; the working tree stays as it is.

    dvc repro generate && python -m benchmarks.checkpoints         # writes benchmarks/results/checkpoints.md; about 6 minutes

Exit status 1 if a goal is missed: at each checkpoint FVU below PCA's of the same rank, and cross entropy below that of mean
ablation and of PCA.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import yaml

from benchmarks.quality import machine
from pipeline.corpus.tokens import TokenStore, open_tokens
from pipeline.params.presets import apply_preset
from pipeline.seeding import generator

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("benchmarks/results/checkpoints.md")
STAGES = ("generate_activations", "compute_norm", "initialize", "train", "fold_norm", "evaluate")
HOOK, ALIAS = "blocks.2.hook_resid_post", "tuned"
OTHER = f"{ALIAS}:{HOOK}"
PACKAGE, STEPS, BATCH, LR = "sympy", 300, 32, 2e-3


def contexts_of(store: TokenStore, package: str) -> torch.Tensor:
    """int64 [n, T]: contexts of the train split whose every token is of the package's documents."""
    split = store.train
    documents = split.read(0, split.n_contexts, "document_ids")
    inside = np.array([str(split.document(i)["key"]).startswith(f"{package}/") for i in range(int(documents.max()) + 1)])
    return torch.from_numpy(split.read()[inside[documents].all(1)].astype(np.int64))


def train_further(model_path: Path, contexts: torch.Tensor, path: Path, steps: int) -> None:
    """Write the model after `steps` steps of AdamW on random batches of the contexts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.lm.quiet import quiet

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        AutoTokenizer.from_pretrained(model_path).save_pretrained(path)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
        draw = generator(0, "benchmarks", "second checkpoint")
        for step in range(steps):
            ids = contexts[torch.randint(len(contexts), (BATCH,), generator=draw)]
            optimizer.param_groups[0]["lr"] = LR * (1 - step / steps)
            loss = model(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0:
                click.echo(f"second checkpoint: step {step}, loss {float(loss.detach()):.3f}", err=True)
        model.save_pretrained(path)


def run_stages(place: Path, tokens: int | None) -> dict[str, Any]:
    """The metrics of the crosscoder over both checkpoints."""
    params = apply_preset("demo-crosscoder").to_dict()
    params["models"] = {ALIAS: {"model_name": str(place / ALIAS), "revision": None}}
    params["dictionary"]["hook_points_in"] = [HOOK, OTHER]
    params["tracking"]["enabled"] = False
    if tokens is not None:
        params["trainer"]["total_training_tokens"] = tokens
    (place / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    here = Path.cwd()
    (place / "data").mkdir(exist_ok=True)
    for name in ("tokens.zarr", "demo"):
        link = place / "data" / name
        if not link.exists():
            link.symlink_to(here / "data" / name)
    store = os.environ.get("SCOPELINE_STORE") or str(here / "data" / "store")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(place), "SCOPELINE_STORE": store}
    for stage in STAGES:
        outcome = subprocess.run(
            [sys.executable, "-m", f"stages.{stage}", "--params", "params.yaml"], cwd=place, env=environment
        )
        if outcome.returncode:
            raise click.ClickException(f"stages.{stage} exited {outcome.returncode}")
    found: dict[str, Any] = json.loads((place / "metrics" / "evaluation.json").read_text())
    return found


def faults(found: dict[str, Any]) -> list[str]:
    """What misses its goal."""
    missed = []
    for key, suffix in ((HOOK, ""), (OTHER, f".{ALIAS}")):
        if found[f"fvu.{key}"] >= found[f"pca_fvu.{key}"]:
            missed.append(f"{key}: FVU {found[f'fvu.{key}']:.4f}, PCA {found[f'pca_fvu.{key}']:.4f}")
        for name in ("ce_mean", "pca"):
            limit = (
                found[f"pca_delta_ce{suffix}"] if name == "pca" else found[f"ce_mean{suffix}"] - found[f"ce_original{suffix}"]
            )
            if found[f"delta_ce{suffix}"] >= limit:
                missed.append(f"{key}: delta CE {found[f'delta_ce{suffix}']:.4f}, {name} {limit:.4f}")
    return missed


def table(found: dict[str, Any]) -> list[str]:
    """Lines of the two tables."""
    lines = [
        f"| checkpoint | FVU | PCA of rank {found['pca_rank']:.0f} | CE | delta CE | PCA's | mean ablation's | recovered |",
        "|---|" + "---:|" * 7,
    ]
    for name, key, suffix in (("first", HOOK, ""), ("trained further", OTHER, f".{ALIAS}")):
        values = [found[f"fvu.{key}"], found[f"pca_fvu.{key}"], found[f"ce_original{suffix}"], found[f"delta_ce{suffix}"]]
        values += [found[f"pca_delta_ce{suffix}"], found[f"ce_mean{suffix}"] - found[f"ce_original{suffix}"]]
        lines.append(f"| {name} | {' | '.join(f'{v:.3f}' for v in (*values, found[f'loss_recovered_mean{suffix}']))} |")
    quantiles = ("q05", "q25", "q50", "q75", "q95")
    lines += ["", f"| over features | {' | '.join(quantiles)} |", "|---|" + "---:|" * len(quantiles)]
    rows = {
        "share of the decoder norm at the second checkpoint": (f"written_share_{{}}.{OTHER}",),
        "cosine similarity of the two decoder rows": (f"written_cosine_{{}}.{HOOK}.{OTHER}",),
    }
    for title, (form,) in rows.items():
        lines.append(f"| {title} | {' | '.join(f'{found[form.format(q)]:.3f}' for q in quantiles)} |")
    return lines


@click.command()
@click.option("--place", type=click.Path(path_type=Path), help="Directory of the run; default: a temporary one.")
@click.option("--steps", default=STEPS, show_default=True, help="Steps of the further training.")
@click.option("--tokens", type=int, help="Train the crosscoder on so many tokens instead (a check, not a result).")
def main(place: Path | None, steps: int, tokens: int | None) -> None:
    """Make the second checkpoint, run the stages, compare."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) if place is None else place.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        contexts = contexts_of(open_tokens("data/tokens.zarr"), PACKAGE)
        train_further(Path("data/demo/model"), contexts, directory / ALIAS, steps)
        found = run_stages(directory, tokens)
    lines, missed = table(found), faults(found)
    click.echo("\n".join([*lines, *missed]))
    if tokens is None and steps == STEPS:
        write(lines, found, missed, len(contexts))
    if missed:
        sys.exit(1)


def write(lines: Sequence[str], found: dict[str, Any], missed: Sequence[str], n_contexts: int) -> None:
    """benchmarks/results/checkpoints.md."""
    text = [
        "# A crosscoder over two checkpoints of the embedded default's language model",
        "",
        f"`{' '.join(['python -m benchmarks.checkpoints', *sys.argv[1:]])}` on {machine()}.",
        f"BatchTopK with k = 24 and 2,048 features over {HOOK} of both; 2M tokens; the second checkpoint is the first after "
        f"{STEPS} further steps of {BATCH} contexts out of {n_contexts:,} of {PACKAGE}'s documentation.",
        f"{found['evaluated_tokens']:,.0f} held-out tokens of all packages, through the inference form: mean L0 "
        f"{found['l0_mean']:.1f}, FVU of both together {found['fvu']:.4f}, dead {found['dead_fraction']:.2%}; features "
        f"exclusive to the first {found[f'exclusive_fraction.{HOOK}']:.2%}, to the second "
        f"{found[f'exclusive_fraction.{OTHER}']:.2%} (share of the decoder norm above 0.9).",
        "",
        *lines,
        "",
        *(["Goals missed:", "", *(f"- {line}" for line in missed)] if missed else ["All goals are met."]),
        "",
    ]
    RESULTS.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
