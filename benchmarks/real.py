"""The default recipe on a real language model: several layers, with and without BOS, with the rule for massive tokens.

fit() with nothing stated but width, L0 and length, with TopK, BatchTopK and JumpReLU (steered to the same L0), measured through
the inference form on documents that training has not seen. Massive tokens are told by the norms that fit() returns. Two cells
are also trained with max_norm_factor None. Tables of how long the longest tokens are, and which, go before.

    python -m benchmarks.real --model FILE.gguf --work DIR          # or a directory; writes benchmarks/results/real.md
    python -m benchmarks.real --model DIR --work DIR --only-train --runs DIR/again.jsonl

The activations are captured first (captured.py) and kept in --work; --only-train reads them and captures nothing. A row is
appended to --runs as it ends; what is there already is not run again, so give another file after a change of the training.
Without --text: the prose of the embedded corpus. Exit status 1 if a training failed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from benchmarks.captured import Part, Settings, arithmetic, capture, read_documents, read_loss, read_part
from benchmarks.massive_tokens import gap_table, massive_table, read_lengths, shares_table
from benchmarks.quality import ACT_FNS, machine
from pipeline.dictionaries.base import Dictionary
from pipeline.errors import DataError, PipelineError
from pipeline.evaluation.in_memory import evaluate_reconstruction
from pipeline.evaluation.language_model import keep_masked
from pipeline.files import read_json
from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_language_model
from pipeline.norms.exclusion import MASSIVE_FACTOR, NormLimits
from pipeline.norms.hook_norm import as_hook_norm
from pipeline.seeding import generator
from pipeline.training.fit import fit

RESULTS = Path("benchmarks/results/real.md")
LAYERS = (1, 9, 20, 28)
TOP_K, EXPANSION, BATCH, TRAINING_TOKENS = 32, 4.0, 2048, 200_000
WITHOUT_RULE = (20, ("topk", "jumprelu"))  # layer and activation functions trained with the rule off too, without BOS
CONTEXTS_AT_A_TIME = 16
COLUMNS = ("FVU", "FVU, all", "L0", "excluded", "delta CE", "delta CE, all", "dead", "lr", "seconds")


def hook_point(layer: int) -> str:
    """The hook point of a layer."""
    return f"blocks.{layer}.hook_resid_post"


class Cell(NamedTuple):
    """One training.

    Attributes:
        layer: whose residual stream.
        bos: whether contexts start with the BOS token.
        act_fn: activation function.
        rule: whether massive tokens are excluded.
        seed: of the order of the rows and of the dictionary.
    """

    layer: int
    bos: bool
    act_fn: str
    rule: bool
    seed: int


def cells(layers: Sequence[int], seed: int) -> list[Cell]:
    """The grid; a cell without the rule follows the same one with it."""
    found = []
    for bos in (False, True):
        for layer in layers:
            for act_fn in ACT_FNS:
                found.append(Cell(layer, bos, act_fn, True, seed))
                if not bos and layer == WITHOUT_RULE[0] and act_fn in WITHOUT_RULE[1]:
                    found.append(Cell(layer, bos, act_fn, False, seed))
    return found


def limits_of(norms: dict[str, dict[str, Any]], hook: str, width: int) -> NormLimits:
    """The limit beyond which a token is massive, from the norms of a :class:`FitResult`, also of a run without the rule."""
    (norm,) = (as_hook_norm(value, width) for value in norms.values())
    return NormLimits.massive({hook: norm})


@torch.no_grad()
def spliced_loss(model: LanguageModel, part: Part, hook: str, dictionary: Dictionary, limits: NormLimits, dtype: str) -> Tensor:
    """Cross entropies with the dictionary's reconstruction in the activation's place, float32 [n, T - 1], nats.

    Special tokens, and those above `limits` in the run itself, keep their own activation.
    """
    losses = []
    for start in range(0, len(part.tokens), CONTEXTS_AT_A_TIME):
        tokens, kept = (of[start : start + CONTEXTS_AT_A_TIME] for of in (part.tokens, part.kept))

        def replace(_: object, original: Tensor, kept: Tensor = kept) -> Tensor:
            with torch.autocast(original.device.type, enabled=False):
                ordinary = limits.kept({hook: original}, kept)
                assert ordinary is not None
                return keep_masked(ordinary, dictionary(original.float()), original)

        with arithmetic(model, dtype):
            losses.append(model.loss(tokens, {hook: replace}, capture=()).cpu())
    return torch.cat(losses)


def measure(model: LanguageModel, work: Path, cell: Cell, ce_tokens: int, dtype: str) -> dict[str, Any]:
    """Train a cell; the figures of its row.

    fvu, l0, dead: of the held-out tokens that are neither special nor massive. fvu_all: massive ones too. excluded: their
    share. delta_ce: what the reconstruction costs in cross entropy, massive tokens keeping their activation; delta_ce_all:
    theirs replaced too. seconds: of fit(). lr: the largest learning rate. error: instead of all these, why training failed.
    """
    hook = hook_point(cell.layer)
    part = read_part(work, cell.bos, "train", hook)
    rows = part.activations[part.kept]
    rows = rows[torch.randperm(len(rows), generator=generator(cell.seed, "real", "rows"))]
    began = time.monotonic()
    try:
        result = fit(
            rows,
            dictionary={"act_fn": cell.act_fn, "top_k": TOP_K, "expansion_factor": EXPANSION},
            trainer={"total_training_tokens": TRAINING_TOKENS},
            batch_size=BATCH,
            max_norm_factor=MASSIVE_FACTOR if cell.rule else None,
            seed=cell.seed,
            device="cpu",
        )
    except PipelineError as error:
        return {"error": str(error)}
    seconds = time.monotonic() - began
    limits, dictionary = limits_of(result.norms, hook, rows.shape[-1]), result.inference
    del part, rows
    held_out = read_part(work, cell.bos, "eval", hook)
    ordinary = limits.kept({hook: held_out.activations}, held_out.kept)
    assert ordinary is not None
    found = evaluate_reconstruction(dictionary, held_out.activations, mask=ordinary)
    of_all = evaluate_reconstruction(dictionary, held_out.activations, mask=held_out.kept)
    n = min(-(-ce_tokens // held_out.tokens.shape[1]), len(held_out.tokens))
    chosen = torch.arange(n) * len(held_out.tokens) // n
    spliced = Part(*(tensor[chosen] for tensor in held_out))
    counted = spliced.kept[:, 1:]
    before = read_loss(work, cell.bos)[chosen][counted].double().mean()
    excluded = 1.0 - int(ordinary.sum()) / int(held_out.kept.sum())
    costs = [
        float(spliced_loss(model, spliced, hook, dictionary, kept_out, dtype)[counted].double().mean() - before)
        for kept_out in ((limits, NormLimits()) if excluded else (limits,))
    ]
    return {
        "fvu": found["fvu"],
        "fvu_all": of_all["fvu"],
        "l0": found["l0_mean"],
        "dead": found["dead_fraction"],
        "excluded": excluded,
        "delta_ce": costs[0],
        "delta_ce_all": costs[-1],
        "seconds": seconds,
        "lr": max(row["lr"] for row in result.history),
    }


def runs_in(kept: Path) -> dict[Cell, dict[str, Any]]:
    """The finished runs of a file; none if there is no such file. A line that a kill cut short is left out."""
    found = {}
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.exists() else ():
        try:
            cell, figures = json.loads(line)
        except ValueError:
            continue
        found[Cell(**cell)] = figures
    return found


def keep(kept: Path, cell: Cell, figures: dict[str, Any]) -> None:
    """Append a run to the file, on a line of its own even after one that was cut short."""
    cut = kept.exists() and not kept.read_bytes().endswith(b"\n") and kept.stat().st_size > 0
    with kept.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut else "") + json.dumps([cell._asdict(), figures]) + "\n")


def table(results: Iterable[tuple[Cell, dict[str, Any]]]) -> list[str]:
    """Markdown, a line for each run."""
    lines = [
        f"| layer | BOS | act_fn | rule | {' | '.join(COLUMNS)} |",
        "|---:|---:|---|---|" + "---:|" * len(COLUMNS),
    ]
    for cell, found in results:
        where = f"| {cell.layer} | {'yes' if cell.bos else 'no'} | {cell.act_fn} | {'on' if cell.rule else 'off'} "
        if "error" in found:
            lines.append(f"{where}| training failed: {found['error']} |" + " |" * (len(COLUMNS) - 1))
            continue
        lines.append(
            f"{where}| {found['fvu']:.4f} | {found['fvu_all']:.4f} | {found['l0']:.2f} | {found['excluded']:.2%} "
            f"| {found['delta_ce']:.3f} | {found['delta_ce_all']:.3f} | {found['dead']:.2%} | {found['lr']:.4f} "
            f"| {found['seconds']:.0f} |"
        )
    return lines


def report(
    about: dict[str, Any],
    tables: Sequence[str],
    results: Sequence[tuple[Cell, dict[str, Any]]],
    before: Sequence[str],
    name: str,
) -> str:
    """The text of the results file.

    Args:
        about: what capture() gives.
        tables: of the lengths of tokens.
        results: the runs.
        before: a line on the cross entropy of each pass.
        name: of the model, in words.
    """
    passes = about["passes"]["no-bos"]
    command = " ".join(["python -m benchmarks.real", *(Path(word).name if "/" in word else word for word in sys.argv[1:])])
    return "\n".join(
        [
            "# The default recipe on a real language model",
            "",
            f"`{command}` on {machine()}.",
            f"{name}; matrix products in {about['dtype']}, residual stream in float32. Contexts of {about['context_size']} "
            f"tokens; {passes['train_tokens']:,} tokens of {passes['train_documents']} documents to train on, "
            f"{passes['eval_tokens']:,} of {passes['eval_documents']} held out ({passes['characters']:,} characters, digest "
            f"{passes['text_digest'][:12]}). Special tokens are not counted.",
            *before,
            "",
            "## How long the longest tokens are",
            "In medians of the norm at the hook point; training text. Variance: squared distances from the mean of the tokens "
            f"that are not longer than {MASSIVE_FACTOR:g} medians.",
            "",
            *tables,
            "",
            "## Dictionaries",
            f"`fit()`, top_k {TOP_K}, expansion factor {EXPANSION:g}, {TRAINING_TOKENS:,} tokens in batches of {BATCH:,}, all "
            "else default. FVU, L0 and dead features (never active) are of the held-out tokens that are neither special nor "
            f"massive (longer than {MASSIVE_FACTOR:g} medians); FVU, all: massive ones too; excluded: their share. Delta CE, "
            "in nats: what the reconstruction in the activation's place costs, massive tokens keeping their own activation; "
            "all: theirs replaced too. Rule off: trained with max_norm_factor None, measured alike.",
            "",
            *table(results),
            "",
        ]
    )


def cross_entropies(work: Path, hook: str) -> list[str]:
    """A line on the held-out cross entropy of the model as it is, of each pass."""
    lines = []
    for bos in (False, True):
        kept = read_part(work, bos, "eval", hook).kept
        loss = read_loss(work, bos)[kept[:, 1:]].double()
        lines.append(f"Held-out cross entropy {'with' if bos else 'without'} BOS: {float(loss.mean()):.4f} nats.")
    return lines


@click.command()
@click.option("--model", "place", type=click.Path(path_type=Path), required=True, help="Directory of the model, or GGUF file.")
@click.option(
    "--text", multiple=True, type=click.Path(path_type=Path, exists=True), help="Text; without it the embedded corpus."
)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Directory of what is captured.")
@click.option("--runs", type=click.Path(path_type=Path), help="File of finished runs, one JSON line each; WORK/runs.jsonl.")
@click.option("--layers", multiple=True, type=int, default=LAYERS, show_default=True, help="Whose residual stream.")
@click.option("--context", default=128, show_default=True, help="Tokens in a context.")
@click.option("--tokens", default=220_000, show_default=True, help="Training tokens captured.")
@click.option("--held-out", default=0.1, show_default=True, help="Share of the documents held out.")
@click.option("--ce-tokens", default=8192, show_default=True, help="Held-out tokens that delta CE is measured on.")
@click.option(
    "--dtype", type=click.Choice(("bfloat16", "float32")), default="bfloat16", show_default=True, help="Of matrix products."
)
@click.option("--seed", default=0, show_default=True, help="Of the order of the rows and of the dictionaries.")
@click.option("--only-train", is_flag=True, help="Capture nothing.")
@click.option("--only-capture", is_flag=True, help="Train nothing.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Where to write.")
def main(
    place: Path, text: tuple[Path, ...], work: Path, runs: Path | None, layers: tuple[int, ...],
    context: int, tokens: int, held_out: float, ce_tokens: int, dtype: str, seed: int, only_train: bool, only_capture: bool,
    output: Path,
) -> None:  # fmt: skip
    """Capture, train, measure."""
    model = load_language_model(place)
    if only_train:
        about = read_json(work / "capture.json", "the record of what was captured", "run without --only-train")
        if about["model_digest"] != model.digest:
            raise DataError(f"{work}: was captured of another model than {place}; give that, or another --work")
    else:
        settings = Settings(tuple(map(hook_point, layers)), context, tokens, held_out, dtype)
        about = capture(model, read_documents(text, held_out), work, settings)
    if only_capture:
        return
    captured = [int(hook.split(".")[1]) for hook in about["hook_points"]]
    layers = tuple(layer for layer in captured if layer in layers)
    found = list(read_lengths(work, layers, hook_point))
    tables = [*shares_table(found), "", *gap_table(found), "", *massive_table(found, model.token_text)]
    del found
    click.echo("\n".join(tables))
    kept = runs or work / "runs.jsonl"
    for cell in cells(layers, seed):
        if cell not in runs_in(kept):
            figures = measure(model, work, cell, ce_tokens, about["dtype"])
            keep(kept, cell, figures)
            click.echo(f"{cell}: {figures}")
    results = [(cell, runs_in(kept)[cell]) for cell in cells(layers, seed)]
    name = f"Model {place.name} ({model.n_layers} layers of width {model.d_model})"
    output.write_text(report(about, tables, results, cross_entropies(work, about["hook_points"][0]), name), encoding="utf-8")
    if any("error" in figures for _, figures in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
