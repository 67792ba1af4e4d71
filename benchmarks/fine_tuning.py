"""Fine-tuning from a folded dictionary, on the text that it was trained on and on other text: initializer.from_dictionary.

A TopK autoencoder of 2,048 features on the embedded default's model (blocks.2.hook_resid_post) is trained on 1,000,000 tokens
of the default's text, documentation prose, and folded. Runs start from it on 200,000 tokens of the same prose, or of source
code of two packages, which neither the dictionary nor (but for its documentation) the language model has seen. FVU on 20,000
tokens that no run was trained on, through the inference form. Batches of 2,048.

    python -m benchmarks.fine_tuning --folder captured               # activations and the dictionary are made there once
    python -m benchmarks.fine_tuning --folder captured --part gates  # rates, lengths or gates alone, a few minutes each

The figures are in docs/fine-tuning.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks.quality import machine
from pipeline.corpus.demo import demo_documents, source_files
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.store import load_dictionary
from pipeline.evaluation.in_memory import evaluate_reconstruction
from pipeline.lm.loading import load_language_model
from pipeline.training.fit import FitResult, fit
from pipeline.training.schedules import resolve_learning_rate

HOOK = "blocks.2.hook_resid_post"
PROSE, CODE = ("stdlib", "numpy", "sympy", "networkx"), ("scikit-learn", "pandas")
CONTEXT, BATCH, HELD_OUT, TRAINING = 128, 2048, 20_000, 200_000
TOKENS = {"prose": 1_000_000, "code": 260_000}
PARTS = ("rates", "lengths", "gates")
ACT_FNS = ("topk", "batchtopk", "jumprelu")


def texts(name: str) -> Iterator[str]:
    """Documentation prose, or whole source files."""
    if name == "prose":
        yield from (document.text for document in demo_documents(PROSE, lambda key: False))
        return
    for package in CODE:
        for _, path in source_files(package):
            yield path.read_text(encoding="utf-8")


def captured(folder: Path, name: str) -> Tensor:
    """Shuffled activations [N, 128], made if they are not there."""
    file = folder / f"{name}.pt"
    if not file.exists():
        model = load_language_model("data/demo/model", hook_points=[HOOK])
        ids: list[int] = []
        for text in texts(name):
            ids += [*model.tokenizer(text)["input_ids"], model.eos_token_id]
            if len(ids) >= TOKENS[name]:
                break
        contexts = torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).reshape(-1, CONTEXT)
        rows = torch.cat([model.activations(part, [HOOK])[HOOK] for part in contexts.split(64)]).reshape(-1, model.d_model)
        torch.save(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))], file)
    found: Tensor = torch.load(file)
    return found


def base(folder: Path, prose: Tensor) -> Dictionary:
    """The folded dictionary, trained if it is not there."""
    if not (folder / "folded").exists():
        shape = {"d_sae": 2048, "top_k": 24}
        made = fit(prose[60_000:], dictionary=shape, trainer={"total_training_tokens": 1_000_000}, batch_size=BATCH)
        made.inference.save(folder / "folded")
    return load_dictionary(folder / "folded")


def run(start: Dictionary | None, rows: Tensor, steps: int, act_fn: str = "topk", lr: float | str = "auto") -> FitResult:
    """A training of so many steps, from the dictionary or from activations."""
    return fit(
        rows,
        dictionary={"d_sae": 2048, "top_k": 24, "act_fn": act_fn},
        trainer={"total_training_tokens": steps * BATCH, "lr": lr},
        initializer={} if start is None else {"from_dictionary": start},
        batch_size=BATCH,
    )


def fvu(dictionary: Dictionary, rows: Tensor) -> str:
    """On held-out rows."""
    found = evaluate_reconstruction(dictionary, rows)
    return f"{found['fvu']:.4f}"


def rates(start: Dictionary, data: dict[str, tuple[Tensor, Tensor]], steps: int, shares: Iterable[float]) -> Iterator[str]:
    """FVU after runs at shares of the rate that `auto` takes from a drawn start."""
    for share in shares:
        lr = share * resolve_learning_rate("auto", start.config, steps)
        on_prose, on_code = (run(start, data[name][0], steps, lr=lr).inference for name in ("prose", "code"))
        found = (fvu(on_prose, data["prose"][1]), fvu(on_code, data["code"][1]), fvu(on_code, data["prose"][1]))
        yield f"| {steps} | {share:g} | {lr:.2g} | {' | '.join(found)} |"


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Where activations and the dictionary are kept.")
@click.option("--part", type=click.Choice(PARTS), help="One part alone.")
def main(folder: Path, part: str | None) -> None:
    """Print the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    prose, code = captured(folder, "prose"), captured(folder, "code")
    start = base(folder, prose)
    data = {name: (rows[60_000 : 60_000 + TRAINING], rows[:HELD_OUT]) for name, rows in (("prose", prose), ("code", code))}
    click.echo(f"{machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs")
    click.echo(f"start: prose {fvu(start, data['prose'][1])}, code {fvu(start, data['code'][1])}")
    tables = {"rates": (49, (0.01, 0.05, 0.1, 0.2, 0.4, 1.0)), "lengths": (12, (0.1, 0.2, 0.4)), "gates": (0, ())}
    for name in PARTS if part is None else (part,):
        steps, shares = tables[name]
        for line in rates(start, data, steps, shares):
            click.echo(line)
        if name == "lengths":
            for line in rates(start, data, 196, (0.1, 0.2, 0.4)):
                click.echo(line)
        for act_fn in ACT_FNS if name == "gates" else ():
            for text in ("prose", "code"):
                tuned, drawn = (run(first, data[text][0], 49, act_fn).inference for first in (start, None))
                click.echo(f"| {act_fn} | {text} | {fvu(tuned, data[text][1])} | {fvu(drawn, data[text][1])} |")


if __name__ == "__main__":
    main()
