"""Kill a stage with SIGKILL again and again under DVC and compare the weights with an unbroken run's.

Run it in a clean clone after `dvc repro` has gone to its end: that run is the reference. What the stage made is deleted, the
stage is started, its whole process group is killed at a random time, and it is started again, until the wanted number of kills
is reached; whenever a run comes to its end the hashes are compared. The first kill of a chain is drawn uniformly from
(0, 2 D / m), the later ones half of D / m later; D is the time of the unbroken stage, measured first, and m the number of
kills aimed at in a chain: together they cover the stage.

    python -m benchmarks.kills --stage train --kills 20
    python -m benchmarks.kills --stage generate --kills 5 --mode exp
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import click

DATA = Path("data")
RUN_CACHE = Path(".dvc/cache/runs")
MADE = {
    "generate": [DATA / "store", DATA / "activations.json"],
    "train": [DATA / "checkpoints", DATA / "trained", DATA / "run.json", Path("metrics/train_history.jsonl")],
}


def hashes() -> dict[str, str]:
    """sha256 of the trained and of the inference weights, of the train history and of every chunk of the store."""
    found = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(DATA.glob("*/main/weights.safetensors"))}
    history = Path("metrics/train_history.jsonl")
    found[str(history)] = hashlib.sha256(history.read_bytes()).hexdigest()
    store = hashlib.sha256()
    for path in sorted(p for p in (DATA / "store").rglob("c.*") if p.is_file()):
        store.update(path.relative_to(DATA / "store").as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    found["store chunks"] = store.hexdigest()
    return found


def leftovers() -> list[str]:
    """Temporary files that a whole run should not leave behind."""
    return sorted(str(p) for p in DATA.rglob("*") if "partial" in p.name or p.name.endswith(".tmp"))


def command(stage: str, mode: str) -> list[str]:
    """The DVC command under which the stage is killed."""
    if mode == "exp":
        return ["dvc", "exp", "run", "-f", "-s", stage]
    return ["dvc", "repro", "--no-run-cache", "-s", "-f", stage]


def run(line: list[str], kill_after: float | None, log: Path) -> tuple[bool, float]:
    """Run a command in a process group of its own; (whether it was killed, seconds)."""
    began = time.monotonic()
    with open(log, "ab") as stream:
        process = subprocess.Popen(line, start_new_session=True, stdout=stream, stderr=stream)
        try:
            code = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True, time.monotonic() - began
    if code != 0:
        raise click.ClickException(f"{' '.join(line)} exited {code}; its output is in {log}")
    return False, time.monotonic() - began


def clean(stage: str) -> None:
    """Delete what the stage made, its resume points, and DVC's memory of runs (`dvc exp run` cannot be told to forget)."""
    for path in [*MADE[stage], RUN_CACHE]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def finish(stage: str, log: Path, whole: bool) -> None:
    """After the killed stage is whole, run what stands behind it, so that the inference weights are compared too.

    Behind generate that is a training run: only where `whole` asks for it; else the store's chunks are what is compared.
    """
    behind = ["fold"] if stage == "train" else ["norm", "initialize", "train", "fold"] if whole else []
    for name in behind:
        run(["dvc", "repro", "--no-run-cache", "-s", "-f", name], None, log)


@click.command()
@click.option("--stage", type=click.Choice(sorted(MADE)), required=True)
@click.option("--kills", default=20, show_default=True)
@click.option("--chain", default=5, show_default=True, help="Kills aimed at in one run of the stage.")
@click.option("--mode", type=click.Choice(["repro", "exp"]), default="repro", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the kill times.")
@click.option("--log", default="kills.log", show_default=True, type=click.Path(dir_okay=False), help="Output of the commands.")
def main(stage: str, kills: int, chain: int, mode: str, seed: int, log: str) -> None:
    """Kill STAGE so many times and compare."""
    draw = random.Random(f"{stage} {mode} {seed}")
    reference = hashes()
    click.echo(f"reference {json.dumps(reference, indent=1)}")
    line = command(stage, mode)
    clean(stage)
    _, unbroken = run(line, None, Path(log))
    click.echo(f"{' '.join(line)}: unbroken {unbroken:.1f} s")
    done = wrong = runs = 0
    while done < kills:
        clean(stage)
        in_chain: list[float] = []
        while True:
            after = draw.uniform(0, 2 * unbroken / chain) + (0 if not in_chain else unbroken / (2 * chain))
            last = done >= kills or len(in_chain) >= 2 * chain
            killed, seconds = run(line, None if last else after, Path(log))
            if not killed:
                break
            in_chain.append(round(seconds, 1))
            done += 1
        runs += 1
        finish(stage, Path(log), whole=done >= kills)
        found, left = hashes(), leftovers()
        same = found == reference and not left
        wrong += not same
        click.echo(
            f"run {runs}: killed at {in_chain} s ({done}/{kills}); {'same bits' if same else 'DIFFERENT'}; leftovers {left}"
        )
        for name, value in found.items():
            click.echo(f"  {name} {value[:16]}{'' if value == reference.get(name) else '  differs'}")
    click.echo(f"{done} kills of {stage} under dvc {mode}, {runs} whole runs, {wrong} different")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
