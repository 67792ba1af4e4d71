"""Kill a stage with SIGKILL again and again under DVC and compare the weights with an unbroken run's.

Run it in a clean clone after `dvc repro` has gone to its end: that run is the reference. What the stage made is deleted, the
stage is started, its whole process group is killed at a random time, and it is started again, until the wanted number of kills
is reached; whenever a run comes to its end the hashes are compared. The first kill of a chain is drawn uniformly from
(0, 2 D / m), the later ones half of D / m later; D is the time of the unbroken stage, measured first, and m the number of
kills aimed at in a chain: together they cover the stage.

    python -m benchmarks.kills --stage train --kills 20
    python -m benchmarks.kills --stage generate --kills 5 --mode exp
    python -m benchmarks.kills --stage train --kills 20 --processes 2

With several processes one of them is killed, drawn at random, and not the command: its launcher starts all of them again, from
the last checkpoint. The reference is then the unbroken run with as many processes, and params.yaml has their number while the
benchmark runs. The next kill is timed from the checkpoint that comes after the last one, since a start takes long.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click
import psutil

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


def ranks(command: psutil.Process) -> list[psutil.Process]:
    """The processes that a launcher below the command has started, in the order of their ranks."""
    found = {}
    for process in command.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if "stages.train" in process.cmdline() and "RANK" in environment:
                found[int(environment["RANK"])] = process
    return [found[rank] for rank in sorted(found)]


def newest_checkpoint() -> float:
    """When the newest resume point of a training was written, in seconds of the clock; 0: there is none."""
    times = [0.0]
    for path in DATA.glob("checkpoints/*/step-*"):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def run_with_kills(line: list[str], after: list[float], draw: random.Random, log: Path) -> list[str]:
    """Run a command to its end and kill one of the stage's processes again and again.

    Args:
        line: the command.
        after: seconds of each kill, counted from the first checkpoint since the one before it.
        draw: of the process.
        log: of the command's output.

    Returns: `<rank>@<seconds>` of each kill, seconds since the command began.
    """
    began, killed = time.monotonic(), []
    with open(log, "ab") as stream:
        process = subprocess.Popen(line, start_new_session=True, stdout=stream, stderr=stream)
        waiting, since = list(after), 0.0  # when the last process was killed, in seconds of the clock
        counted: float | None = None  # from when on the next kill is timed
        command = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(0.05)
            if counted is None and newest_checkpoint() > since:
                counted = time.monotonic()
            if not waiting or counted is None or time.monotonic() < counted + waiting[0]:
                continue
            found = ranks(command)
            if len(found) < 2:
                continue
            rank = draw.randrange(len(found))
            with contextlib.suppress(psutil.NoSuchProcess):
                found[rank].kill()
                killed.append(f"{rank}@{time.monotonic() - began:.0f}")
                waiting.pop(0)
                counted, since = None, time.time()
    if process.returncode != 0:
        raise click.ClickException(f"{' '.join(line)} exited {process.returncode}; its output is in {log}")
    return killed


@contextlib.contextmanager
def several(processes: int, minutes: float) -> Iterator[None]:
    """Within the block params.yaml asks for so many processes, restarts without end, and checkpoints so many minutes apart."""
    file = Path("params.yaml")
    before = file.read_text(encoding="utf-8")
    text = before
    values = {"data_parallel_size": processes, "max_restarts": 1000, "checkpoint_minutes": minutes}
    for key, value in values.items():
        text, n = re.subn(rf"(?m)^(  {key}: )\S+", rf"\g<1>{value}", text)
        if n != 1:
            raise click.ClickException(f"{file}: {key} is stated {n} times, wanted once")
    file.write_text(text, encoding="utf-8")
    try:
        yield
    finally:
        file.write_text(before, encoding="utf-8")


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
@click.option("--processes", default=1, show_default=True, help="Train with so many and kill one of them, not the command.")
@click.option("--minutes", default=0.02, show_default=True, help="Between checkpoints, of several processes.")
def main(stage: str, kills: int, chain: int, mode: str, seed: int, log: str, processes: int, minutes: float) -> None:
    """Kill STAGE so many times and compare."""
    draw = random.Random(f"{stage} {mode} {seed}")
    if processes > 1:
        if stage != "train":
            raise click.UsageError("--processes: only train runs in several")
        with several(processes, minutes):
            wrong = kill_processes(command(stage, mode), kills, chain, draw, Path(log))
    else:
        wrong = kill_command(stage, command(stage, mode), kills, chain, draw, Path(log))
    raise SystemExit(1 if wrong else 0)


def compared(title: str, reference: dict[str, str]) -> bool:
    """Print how what is there compares with the reference; whether it is other, or something was left over."""
    found, left = hashes(), leftovers()
    same = found == reference and not left
    click.echo(f"{title}; {'same bits' if same else 'DIFFERENT'}; leftovers {left}")
    for name, value in found.items():
        click.echo(f"  {name} {value[:16]}{'' if value == reference.get(name) else '  differs'}")
    return not same


def kill_command(stage: str, line: list[str], kills: int, chain: int, draw: random.Random, log: Path) -> int:
    """Kill the command and all that it has started; the number of runs that ended otherwise than the one before them."""
    reference = hashes()
    click.echo(f"reference {json.dumps(reference, indent=1)}")
    clean(stage)
    _, unbroken = run(line, None, log)
    click.echo(f"{' '.join(line)}: unbroken {unbroken:.1f} s")
    done = wrong = runs = 0
    while done < kills:
        clean(stage)
        in_chain: list[float] = []
        while True:
            after = draw.uniform(0, 2 * unbroken / chain) + (0 if not in_chain else unbroken / (2 * chain))
            last = done >= kills or len(in_chain) >= 2 * chain
            killed, seconds = run(line, None if last else after, log)
            if not killed:
                break
            in_chain.append(round(seconds, 1))
            done += 1
        runs += 1
        finish(stage, log, whole=done >= kills)
        wrong += compared(f"run {runs}: killed at {in_chain} s ({done}/{kills})", reference)
    click.echo(f"{done} kills of {' '.join(line)}, {runs} whole runs, {wrong} different")
    return wrong


def kill_processes(line: list[str], kills: int, chain: int, draw: random.Random, log: Path) -> int:
    """Kill single processes of the training; the number of runs that ended otherwise than the unbroken one."""
    clean("train")
    _, unbroken = run(line, None, log)
    finish("train", log, whole=False)
    reference = hashes()
    click.echo(f"{' '.join(line)}: unbroken {unbroken:.1f} s; reference {json.dumps(reference, indent=1)}")
    done = wrong = runs = 0
    while done < kills:
        clean("train")
        after = [draw.uniform(0, unbroken / chain) for _ in range(min(chain, kills - done))]
        killed = run_with_kills(line, after, draw, log)
        if not killed:
            raise click.ClickException("a run ended before a process was killed; lower --minutes")
        done, runs = done + len(killed), runs + 1
        finish("train", log, whole=False)
        wrong += compared(f"run {runs}: killed process@second {' '.join(killed)} ({done}/{kills})", reference)
    click.echo(f"{done} kills of single processes of {' '.join(line)}, {runs} whole runs, {wrong} different")
    return wrong


if __name__ == "__main__":
    main()
