"""Five language-model families through the whole pipeline, as a user runs it: `dvc exp run` to the dashboard, in a fresh clone.

Of each family a tiny random model and its tokenizer are saved to a directory, and each row is one `dvc exp run -S
model.model_name=DIRECTORY ...` on the project's documentation. Afterwards the hook points that the dictionary writes are
replaced by their own activations on held-out contexts: the loss must not change by a bit. A row that names a refusal must end
with exit code 2 and a line with its parts. What stands in git is what runs: commit first.

    python -m benchmarks.families                              # all rows; writes benchmarks/results/families.md
    python -m benchmarks.families gemma2/sae olmo2/lorsa       # these; the table is printed only
    python -m benchmarks.families --runs runs.jsonl            # keeps every row there; started again, goes on after the last

Exit status 1: a row did not end as it should.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.quality import machine
from pipeline.foreign import shortened
from pipeline.params.preset_flags import flags_of
from tests.lm.families import FURTHER, LAYERS, write_model

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("benchmarks/results/families.md")
CONTEXT, FEATURES, K = 64, 256, 8
FAMILIES = ("gemma2", "gemma3", "qwen3_moe", "gpt_oss", "olmo2")
# What the MLP of a layer reads, in a family without a norm before it; in the others ln2.hook_out.
READS = {"olmo2": "mlp.hook_in"}
COMMON: dict[str, Any] = {
    "dataset": {"eval_fraction": 0.1},
    "activations": {
        "context_size": CONTEXT,
        "total_tokens": 65_536,
        "batch_size": 1024,
        "buffer_size": 65_536,
    },
    "norm": {"tokens": 16_384},
    "dictionary": {"expansion_factor": FEATURES // 32, "top_k": K},
    "initializer": {"tokens": 16_384},
    "trainer": {"total_training_tokens": 262_144},
    "evaluation": {"tokens": 4096},
    "analysis": {"tokens": 16_384},
    "tracking": {"enabled": False},
}
DRAWN = {"initialize_W_D_with_activations": False}
# The attention of the second layer of the models that have one that can be taken over.
NORMED = {"use_post_qk_ln": True, "normalization_type": "RMS", "eps": 1e-3}
FULL_GEMMA3 = {**NORMED, "attn_scale": math.sqrt(12), "rotary_base": 200.0, "rotary_scale": 4.0}


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        family: of the model.
        kind: of the dictionary, with what is special about it.
        values: what it changes of the parameters.
        refused: parts of the line that it must be refused with; empty: it must run to its end.
    """

    family: str
    kind: str
    values: Mapping[str, Any]
    refused: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As it is asked for."""
        return f"{self.family}/{self.kind}"


def _mlp_input(family: str, layer: int) -> str:
    return f"blocks.{layer}.{READS.get(family, 'ln2.hook_out')}"


def _transcoder(family: str) -> Row:
    dictionary = {
        "kind": "transcoder",
        "apply_b_dec_to_input": False,
        "hook_point_in": _mlp_input(family, 1),
        "hook_point_out": "blocks.1.hook_mlp_out",
    }
    return Row(family, "transcoder", {"dictionary": dictionary, "initializer": {**DRAWN, "initialize_tc_with_mlp": True}})


def _clt(family: str) -> Row:
    dictionary = {
        "kind": "clt",
        "apply_b_dec_to_input": False,
        "hook_point_in": None,
        "hook_points_in": [_mlp_input(family, layer) for layer in range(LAYERS)],
        "hook_points_out": [f"blocks.{layer}.hook_mlp_out" for layer in range(LAYERS)],
    }
    initializer = {**DRAWN, "initialize_tc_with_mlp": True, "cross_layer_decoders": "zero"}
    return Row(family, "clt", {"dictionary": dictionary, "initializer": initializer})


def _lorsa(family: str, kind: str, refused: Sequence[str] = (), *, started: bool = True, **fields: Any) -> Row:
    dictionary = {
        "kind": "lorsa",
        "apply_b_dec_to_input": False,
        "hook_point_in": "blocks.1.ln1.hook_out",
        "hook_point_out": "blocks.1.hook_attn_out",
        "n_qk_heads": 4,
        "d_qk_head": 8,
        "n_ctx": CONTEXT,
        "rotary_dim": 8,
        "rotary_adjacent_pairs": False,
        **fields,
    }
    values = {
        "activations": {"target": "activations-2d", "batch_size": 1024 // CONTEXT},
        "dictionary": dictionary,
        "initializer": {**DRAWN, "initialize_lorsa_with_mhsa": True} if started else {},
    }
    return Row(family, kind, values, tuple(refused))


def rows() -> list[Row]:
    """All of them, of one family after another."""
    attention = {
        "gemma2": (
            _lorsa("gemma2", "lorsa", ("gemma2", "a norm stands between", "attn.hook_out")),
            _lorsa(
                "gemma2",
                "lorsa-before-norm",
                ("softcapping",),
                hook_point_out="blocks.1.attn.hook_out",
                **{"attn_scale": math.sqrt(12)},
            ),
            _lorsa("gemma2", "lorsa-drawn", started=False),
        ),
        "gemma3": (
            _lorsa("gemma3", "lorsa", ("gemma3_text", "a norm stands between", "attn.hook_out")),
            _lorsa("gemma3", "lorsa-before-norm", hook_point_out="blocks.1.attn.hook_out", **FULL_GEMMA3),
        ),
        "qwen3_moe": (_lorsa("qwen3_moe", "lorsa", **NORMED),),
        "gpt_oss": (_lorsa("gpt_oss", "lorsa", ("gpt_oss", "sinks")), _lorsa("gpt_oss", "lorsa-drawn", started=False)),
        "olmo2": (_lorsa("olmo2", "lorsa", ("olmo2", "no ln1.hook_out")),),
    }
    sae = {"dictionary": {"hook_point_in": "blocks.1.hook_resid_post"}}
    found = []
    for family in FAMILIES:
        found += [Row(family, "sae", sae), _transcoder(family), *([_clt(family)] if family == "gemma2" else ())]
        found += attention[family]
    return found


def make_clone(place: Path) -> Path:
    """A clone of what is committed, and beside it the text: sections of the documentation, one a line."""
    clone = place / "clone"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    with open(place / "text.jsonl", "w", encoding="utf-8") as stream:
        for file in sorted((clone / "docs").glob("*.md")):
            for section in re.split(r"\n(?=#)", file.read_text(encoding="utf-8")):
                stream.write(json.dumps({"text": section}) + "\n")
    return clone


def flags(row: Row, place: Path) -> list[str]:
    """What `dvc exp run` is told of a row; the model is made where it is not there yet."""
    model = place / row.family
    if not model.exists():
        model_type, options = FURTHER[row.family]
        write_model(model, model_type, {**options, "max_position_embeddings": CONTEXT})
    values: dict[str, Any] = {key: dict(section) for key, section in COMMON.items()}
    named = {"model": {"model_name": str(model)}, "dataset": {"dataset_name_or_path": str(place / "text.jsonl")}}
    for section, own in (*named.items(), *row.values.items()):
        values[section] = {**values.get(section, {}), **own}
    with chdir(place / "clone"):
        return flags_of(values, "params.yaml", row.name)


def splice_difference(row: Row, place: Path) -> float:
    """The largest change of a token's loss where the written hook points are replaced by their own activations."""
    import torch

    from pipeline.corpus.tokens import open_tokens
    from pipeline.lm.loading import load_language_model
    from pipeline.params.loader import load_params

    clone = place / "clone"
    hooks = load_params(clone / "params.yaml").dictionary.hooks_out
    ids = torch.from_numpy(open_tokens(clone / "data" / "tokens.zarr").eval.read(0, 32).astype("int64"))
    model = load_language_model(place / row.family, device="cpu")
    same = {hook: lambda captured, original: original.clone() for hook in hooks}
    return float((model.loss(ids, same) - model.loss(ids)).abs().max())


def dashboard_rows(clone: Path) -> int:
    """Features in the table of the dashboard."""
    folder = clone / "data" / "dashboard"
    if not (folder / "index.html").is_file():
        return 0
    found = re.search(r'"table","([^"]+)"', (folder / "data" / "table.js").read_text(encoding="utf-8"))
    table = json.loads(gzip.decompress(base64.b64decode(found[1]))) if found else {"feature": []}
    return len(table["feature"])


def run(row: Row, place: Path) -> tuple[dict[str, float], str]:
    """(its figures, how it ended in words: "ran", "refused: ...", or what is wrong, beginning with "FAULT").

    Raises:
        OSError: dvc or git could not be started.
    """
    clone = place / "clone"
    subprocess.run(["git", "checkout", "-q", "--", "params.yaml"], cwd=clone, check=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    name = row.name.replace("/", "-")
    command = ["dvc", "exp", "run", "-n", name, "-f", *flags(row, place)]
    outcome = subprocess.run(command, cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {"seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}
    errors = [line.removeprefix("error: ") for line in outcome.stdout.splitlines() if line.startswith("error: ")]
    if row.refused:
        said = "; ".join(errors)
        as_wanted = outcome.returncode and errors and all(part in said for part in row.refused)
        return figures, f"refused: {shortened(said)}" if as_wanted else f"FAULT: not refused: {outcome.stdout[-2000:]}"
    if outcome.returncode:
        return figures, f"FAULT: exited {outcome.returncode}: {'; '.join(errors) or outcome.stdout[-2000:]}"
    metrics = json.loads((clone / "metrics" / "evaluation.json").read_text(encoding="utf-8"))
    figures |= {key: metrics[key] for key in ("l0_mean", "fvu", "pca_fvu", "ce_original", "delta_ce", "dead_fraction")}
    figures |= {"splice": splice_difference(row, place), "rows": dashboard_rows(clone)}
    return figures, _judged(row, figures)


def _judged(row: Row, figures: Mapping[str, float]) -> str:
    """ "ran", or what is wrong with the figures."""
    wanted = FEATURES * (LAYERS if row.kind == "clt" else 1)
    faults = [f"{key} is {value}" for key, value in figures.items() if not math.isfinite(value)]
    if figures["splice"] != 0.0:
        faults.append(f"splicing the true activation changes the loss by {figures['splice']}")
    if figures["rows"] != wanted:
        faults.append(f"{figures['rows']} rows in the dashboard, not {wanted}")
    if not 0.0 < figures["fvu"] < 1.0:
        faults.append(f"FVU {figures['fvu']}")
    return f"FAULT: {'; '.join(faults)}" if faults else "ran"


HEAD = ("family", "kind", "outcome", "CPU seconds", "rows", "L0", "FVU", "PCA's", "CE", "delta CE", "true activation")
FIGURES = {
    "seconds": "{:.0f}",
    "rows": "{:.0f}",
    "l0_mean": "{:.1f}",
    "fvu": "{:.3f}",
    "pca_fvu": "{:.3f}",
    "ce_original": "{:.3f}",
    "delta_ce": "{:+.4f}",
    "splice": "{:g}",
}


def line(row: Row, figures: Mapping[str, float], ended: str) -> str:
    """Of the table."""
    cells = [form.format(figures[key]) if key in figures else "" for key, form in FIGURES.items()]
    return f"| {' | '.join([row.family, row.kind, ended.partition(':')[0], *cells])} |"


def write(found: Mapping[str, tuple[dict[str, float], str]]) -> None:
    """The results file."""
    text = [
        "# Families of language models to the dashboard",
        "",
        f"`python -m benchmarks.families` on {machine()}.",
        f"Each row is one `dvc exp run` of all stages in a fresh clone, on a tiny random model of {LAYERS} layers",
        f"(tests/lm/families.py) and sections of docs/ as text; {FEATURES} features, k = {K}, tracking off. What a random",
        "model computes means nothing: the figures show that every stage did its work. rows: features in the dashboard (of a",
        "CLT those of all layers); true activation: the largest change of a held-out token's loss when what the dictionary",
        "writes is replaced by itself. Seconds are those of all processes together; a later row of a family may find its",
        "tokens in DVC's run cache. A row that says refused is one that must be.",
        "",
        *_table(found),
        "",
        "What was said where a run was refused:",
        "",
        *(f"- {name}: {ended.partition(': ')[2]}" for name, (_, ended) in found.items() if ended.startswith("refused")),
        "",
    ]
    RESULTS.write_text("\n".join(text), encoding="utf-8")


def _table(found: Mapping[str, tuple[dict[str, float], str]]) -> list[str]:
    known = {row.name: row for row in rows()}
    head = [f"| {' | '.join(HEAD)} |", "|---|---|---|" + "---:|" * (len(HEAD) - 3)]
    return [*head, *(line(known[name], *ended) for name, ended in found.items())]


@click.command()
@click.argument("names", nargs=-1)
@click.option("--place", type=click.Path(path_type=Path), help="Directory of clone and models; default: a temporary one.")
@click.option("--runs", type=click.Path(path_type=Path), help="File that keeps each row that ended as it should.")
def main(names: tuple[str, ...], place: Path | None, runs: Path | None) -> None:
    """Run the rows and print their table."""
    known = {row.name: row for row in rows()}
    if unknown := set(names) - set(known):
        raise click.ClickException(f"no such row: {', '.join(sorted(unknown))} (known: {', '.join(known)})")
    kept = (
        {}
        if runs is None or not runs.is_file()
        else {row[0]: row[1:] for row in map(json.loads, runs.read_text().splitlines())}
    )
    found: dict[str, tuple[dict[str, float], str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if place is None else place.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "clone").exists():
            make_clone(folder)
        for name in names or known:
            if name not in kept:
                figures, ended = run(known[name], folder)
                kept[name] = [figures, ended.replace(f"{folder}/", "")]
                if runs is not None and not ended.startswith("FAULT"):
                    with open(runs, "a", encoding="utf-8") as stream:
                        stream.write(json.dumps([name, *kept[name]]) + "\n")
            found[name] = (kept[name][0], kept[name][1])
            click.echo(line(known[name], *found[name]) + ("" if found[name][1] == "ran" else f" {found[name][1]}"))
    if any(ended.startswith("FAULT") for _, ended in found.values()):
        sys.exit(1)
    if not names:
        write(found)


if __name__ == "__main__":
    main()
