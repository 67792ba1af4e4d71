"""Kill a stage at named system calls and at random times, run it again, and compare all that lies in the project afterwards.

A case is a stage that is killed once or several times (SIGKILL, so that nothing is cleaned up) and then run to its end. Every
file of the project is compared with an unbroken run's: outputs, metrics, plots, checkpoints, and that nothing else is there.
The calls are Python's audit events on files of the project (open for writing, rename, remove, mkdir, rmdir, chmod, flock) and
fsync; the process dies just before the call.

    harmless   every file is the same
    refused    the stage that is run again ends with exit code 2
    SILENT     a file differs, is missing, or is left over
    TRACEBACK  the stage that is run again fails otherwise
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults.cases import HARMLESS, REFUSED, SILENT, TRACEBACK, Case, is_refused, said
from benchmarks.faults.corruptions import WRITES, finished_project
from benchmarks.faults.forked import run_stage
from pipeline.progress import Progress
from tests.project import STAGES, Project

TITLE = "Killed processes"
ABOUT = """Each case kills a stage, once or several times, at named system calls on files of the project or at a random time,
runs it to its end and compares every file of the project with an unbroken run's. Harmless: all are equal."""
VERDICTS = (REFUSED, HARMLESS, SILENT, TRACEBACK)
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "fcntl.flock", "fsync")
MOST_KILLS = 3  # of one case
# Beside what a stage writes (corruptions.WRITES), what it makes that must go before it has all its work to do again.
MAKES = {
    "tokenize_corpus": ("metrics/tokenize.json",),
    "generate_activations": ("metrics/generate.json",),
    "compute_norm": ("metrics/norm.json", "metrics/plots/norm"),
    "initialize": ("metrics/initialize.json",),
    "train": ("data/checkpoints", "metrics/plots/training", "data/run.json"),
    "fold_norm": (),
    "evaluate": ("metrics/plots/evaluation",),
    "analyze": ("metrics/dashboard", "metrics/analysis.json", "data/checkpoints"),
}
LOCKS = ("lock", ".lock")  # hold the number of the process that held them


def on_calls(project: Path, do: Callable[[str], None]) -> None:
    """Call `do` with the name of each event on a file of the project, from now on in this process."""
    here = str(project)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        place = arguments[0]
        if isinstance(place, int) or (isinstance(place, str | os.PathLike) and _is_in(here, os.fspath(place))):
            do(event)

    fsync = os.fsync

    def watched(handle: int) -> None:
        do("fsync")
        fsync(handle)

    os.fsync = watched
    sys.addaudithook(hook)


def _is_in(project: str, place: str | bytes) -> bool:
    path = os.path.abspath(os.fsdecode(place))
    return path.startswith(project) and "__pycache__" not in path


def counting(project: Path, into: Path) -> Callable[[], None]:
    """What makes a process write a line for each event to `into`, in an order that is that of the run."""

    def start() -> None:
        handle = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        on_calls(project, lambda event: os.write(handle, f"{event}\n".encode()) and None)

    return start


def killing(project: Path, wanted: str, number: int) -> Callable[[], None]:
    """What makes a process end itself before its `number`-th event (from 0) of the name `wanted`."""

    def start() -> None:
        seen = 0

        def do(event: str) -> None:
            nonlocal seen
            if event == wanted:
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        on_calls(project, do)

    return start


def killing_after(seconds: float) -> Callable[[], None]:
    """What makes a process be killed after a time, by its child."""

    def start() -> None:
        victim = os.getpid()
        if os.fork() == 0:
            time.sleep(seconds)
            if os.getppid() == victim:
                os.kill(victim, signal.SIGKILL)
            os._exit(0)

    return start


def tree(project: Path) -> dict[str, str]:
    """{file: sha256} of every file of the project; of a lock its name only."""
    found = {}
    for path in project.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            content = b"" if path.name.endswith(LOCKS) else path.read_bytes()
            found[path.relative_to(project).as_posix()] = hashlib.sha256(content).hexdigest()
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{path.relative_to(project).as_posix()}/"] = ""
    return found


def without_outputs(project: Project, stage: str, place: Path) -> Path:
    """A copy of the project in which the stage has never run."""
    copy = project.copy(place).path
    for name in (*WRITES[stage], *MAKES[stage]):
        path = copy / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return copy


class Stage:
    """A stage of the finished project, run unbroken: the tree that it leaves, its events, its seconds."""

    def __init__(self, project: Project, name: str, work: Path) -> None:
        self.project, self.name, self.work = project, name, work
        copy = without_outputs(project, name, work / "copy")
        began = time.monotonic()
        code, stderr = run_stage(copy, name)
        self.seconds = time.monotonic() - began
        assert code == 0, stderr
        self.tree = tree(copy)
        shutil.rmtree(copy)
        copy = without_outputs(project, name, work / "copy")
        code, stderr = run_stage(copy, name, before=counting(copy, work / "events"))
        assert code == 0, stderr
        self.events = Counter((work / "events").read_text().split())
        (work / "events").unlink()
        unbroken = tree(copy)
        shutil.rmtree(copy)
        assert unbroken == self.tree, f"{name}: two unbroken runs differ: {difference(self.tree, unbroken)}"

    def case(self, draw: random.Random, most: int) -> tuple[Case, int]:
        """Kill the stage, at most so many times, and run it to its end; the case, and how often it was killed."""
        copy = without_outputs(self.project, self.name, self.work / "copy")
        deaths = []
        try:
            for _ in range(draw.randint(1, most)):
                if draw.random() < 0.3:
                    after = draw.uniform(0, self.seconds)
                    code, stderr = run_stage(copy, self.name, before=killing_after(after))
                    how = f"after {after:.2f} s"
                else:
                    event = draw.choice(sorted(self.events))
                    number = draw.randrange(self.events[event])
                    code, stderr = run_stage(copy, self.name, before=killing(copy, event, number))
                    how = f"at {event} {number}"
                if code != -signal.SIGKILL:
                    break  # it came to its end before; the comparison is of what it left
                deaths.append(how)
            code, stderr = run_stage(copy, self.name)
            differs = difference(self.tree, tree(copy)) if code == 0 else ""
            verdict = REFUSED if is_refused(code, stderr) else TRACEBACK if code else SILENT if differs else HARMLESS
            return Case(self.name, ", ".join(deaths), verdict, differs or said(stderr, copy)), len(deaths)
        finally:
            shutil.rmtree(copy)


def difference(wanted: dict[str, str], found: dict[str, str]) -> str:
    """The files that are missing, left over, or other ones."""
    missing = [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
    more = [f"left over {name}" for name in sorted(found.keys() - wanted.keys())]
    other = [f"other {name}" for name in sorted(wanted.keys() & found.keys()) if wanted[name] != found[name]]
    return ", ".join(missing + more + other)


def campaign(count: int, seed: int, work: Path) -> list[Case]:
    """So many kills, in turn of all stages of a project in `work`."""
    work.mkdir()
    project = finished_project(work / "project")
    stages = [Stage(project, name, work) for name in STAGES]
    progress = Progress("kills", count, unit="kills")
    cases: list[Case] = []
    done = 0
    while done < count:
        number = len(cases)
        case, times = stages[number % len(stages)].case(random.Random(f"{seed} {number}"), min(MOST_KILLS, count - done))
        cases.append(case)
        done += times
        progress.update(times)
    progress.close()
    return cases
