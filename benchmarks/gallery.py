"""Run the small presets (presets/demo-*.yaml) one after another on one activation store and make a table of their metrics.

Each is `dvc exp run $(python -m stages.preset NAME)` in this working tree, so run it in a clean clone after `dvc repro`: the
store is there already, and each preset adds the hook points that it needs. Afterwards params.yaml, dvc.lock and metrics/
are as before (whatever they were: another processor's `dvc repro` leaves another dvc.lock). The table is written for whole runs
of all only. `--tokens` is a check that they work: short runs on a small store of their own, evaluated and analysed on little
text, all stages in one process.

    python -m benchmarks.gallery
    python -m benchmarks.gallery --tokens 200000 demo-gemma-scope
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from pipeline.params.preset_flags import flags_over
from pipeline.params.presets import header, overlay, preset_names, read_preset
from pipeline.params.reading import read_mapping

RESULTS = Path("benchmarks/results/gallery.md")
RESTORED = ("params.yaml", "dvc.lock", "metrics")
SHORT = 8_192  # tokens of text in a check
STORE = 131_072  # tokens in its store, at least
COLUMNS = {
    "L0": ("l0_mean", "{:.1f}"),
    "FVU": ("fvu", "{:.3f}"),
    "PCA's FVU": ("pca_fvu", "{:.3f}"),
    "delta CE": ("delta_ce", "{:.3f}"),
    "PCA's": ("pca_delta_ce", "{:.3f}"),
    "recovered (mean)": ("loss_recovered_mean", "{:.3f}"),
    "dead": ("dead_fraction", "{:.2%}"),
    "minutes": ("minutes", "{:.1f}"),
}


def demo_presets() -> list[str]:
    """The small presets."""
    return [name for name in preset_names() if name.startswith("demo-")]


def run(name: str, tokens: int | None) -> dict[str, dict[str, float]]:
    """Run a preset to its end; {its name: evaluation}, of a sweep that of each member, and in the first one the minutes.

    Raises:
        ClickException: it did not end well.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        line = ["dvc", "exp", "run", "-n", name, "-f", *flags_over(name)]
        if tokens is not None:
            line = [sys.executable, "-m", "benchmarks.one_process", str(shortened(name, tokens, Path(folder)))]
        outcome = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if outcome.returncode:
        raise click.ClickException(f"{name}: exited {outcome.returncode}\n{outcome.stdout[-4000:]}")
    found = json.loads(Path("metrics/evaluation.json").read_text())
    sweep = all(isinstance(own, dict) for own in found.values())
    rows: dict[str, dict[str, float]] = {f"{name}/{member}": own for member, own in found.items()} if sweep else {name: found}
    next(iter(rows.values()))["minutes"] = (time.monotonic() - begin) / 60
    return rows


def shortened(name: str, tokens: int, folder: Path) -> Path:
    """A file with the parameters of a preset for a short run."""
    values = overlay(read_mapping("params.yaml"), read_preset(name))
    values["trainer"]["total_training_tokens"] = tokens
    values["activations"]["total_tokens"] = min(values["activations"]["total_tokens"], max(tokens, STORE))
    values["norm"]["tokens"] = None
    values["analysis"]["tokens"] = values["evaluation"]["tokens"] = min(tokens, SHORT)
    values["tracking"]["enabled"] = False
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def row(name: str, found: dict[str, float]) -> str:
    """A line of the table."""
    title = header(name.split("/")[0])[0].partition(":")[2].strip()
    cells = [form.format(found[key]) if key in found else "" for key, form in COLUMNS.values()]
    return f"| `{name}` | {title} | {' | '.join(cells)} |"


@contextmanager
def restored() -> Iterator[None]:
    """Put params.yaml, dvc.lock and metrics/ back as they were, and the data that belongs to them."""
    with tempfile.TemporaryDirectory() as folder:
        for name in RESTORED:
            copy = shutil.copytree if Path(name).is_dir() else shutil.copy2
            copy(name, Path(folder, name))
        try:
            yield
        finally:
            for name in RESTORED:
                if Path(name).is_dir():
                    shutil.rmtree(name)
                    shutil.copytree(Path(folder, name), name)
                else:
                    shutil.copy2(Path(folder, name), name)
            subprocess.run(["dvc", "checkout", "-q", "--force"], check=False)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--tokens", type=int, help="Train on so many tokens instead (a check, not a result).")
def main(names: tuple[str, ...], tokens: int | None) -> None:
    """Run the small presets and print their metrics."""
    unknown = set(names) - set(preset_names())
    if unknown:
        raise click.ClickException(f"no such preset: {', '.join(sorted(unknown))} (known: {', '.join(preset_names())})")
    head = ["preset", "what it is", *COLUMNS]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    with restored():
        for name in names or demo_presets():
            for place, found in run(name, tokens).items():
                lines.append(row(place, found))
                click.echo(lines[-1])
    if names or tokens is not None:
        return
    text = "\n".join(
        [
            "# The small presets on the embedded default",
            "",
            "Held-out text. `python -m benchmarks.gallery` in a clean clone after `dvc repro`; Python "
            f"{sys.version.split()[0]}, two shared cores without a GPU.",
            "",
            *lines,
            "",
            "Dictionaries that SAELens, sparsify and dictionary_learning trained on the same activations, judged by the same "
            "stages and beside ours at the same L0: peer_dictionaries.md.",
            "",
        ]
    )
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
