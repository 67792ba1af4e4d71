"""What the checks of a whole run cost: seconds of every digest, seal, manifest and origin, beside the CPU seconds of the run.

    python -m benchmarks.faults.cost                   # params.yaml, in a clean clone after `dvc repro`; writes nothing else
    python -m benchmarks.faults.cost my_params.json

The stages from inputs to analyze run in this process, in the working tree, as DVC would run them; a training is gone on with,
so remove data/checkpoints and data/store first to have all the work. The seconds are of the threads that check.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import click

# Module and function, or class and method: what checks, and what makes the digests that are checked.
CHECKS = (
    ("hashlib", "sha256"),
    ("hashlib", "file_digest"),
    ("xxhash", "xxh3_128_hexdigest"),
    ("pipeline.files", "fingerprint"),
    ("pipeline.contracts.sealing", "sealed"),
    ("pipeline.contracts.sealing", "unsealed"),
    ("pipeline.contracts.sealing", "Origin.check"),
    ("pipeline.contracts.manifests", "digest_of_file"),
    ("pipeline.contracts.manifests", "write_manifest"),
    ("pipeline.contracts.manifests", "CheckedFiles.__init__"),
    ("pipeline.contracts.manifests", "CheckedFiles.check"),
    ("pipeline.digests", "FileDigests.of_all"),
    ("pipeline.activations.arrays", "array_digest"),
    ("pipeline.lm.source", "ModelSource.digest"),
    ("pipeline.stage_code", "code_digest"),
)
STAGES = (
    "inputs",
    "tokenize_corpus",
    "generate_activations",
    "compute_norm",
    "initialize",
    "train",
    "fold_norm",
    "evaluate",
    "analyze",
)


class Seconds:
    """CPU seconds of threads in functions, the outermost one of each thread being counted."""

    def __init__(self) -> None:
        self.of: dict[str, float] = defaultdict(float)
        self._inside = threading.local()
        self._lock = threading.Lock()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "yes", False):
                return function(*args, **kwargs)
            self._inside.yes, began = True, time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside.yes = False
                with self._lock:
                    self.of[name] += time.thread_time() - began

        return call

    def watch(self, module: str, name: str) -> None:
        """Time a function of a module, or a method `Class.method`, for whoever imports it from now on."""
        place: Any = importlib.import_module(module)
        *inside, last = name.split(".")
        for each in inside:
            place = getattr(place, each)
        setattr(place, last, self.timed(f"{module}.{name}", getattr(place, last)))


@click.command()
@click.argument("params", default="params.yaml", type=click.Path(exists=True, dir_okay=False))
def main(params: str) -> None:
    """Run the stages and print the seconds of the checks."""
    sha256 = hashlib.sha256
    seconds = Seconds()
    for module, name in CHECKS:
        seconds.watch(module, name)
    assert hashlib.sha256 is not sha256
    before = time.process_time()
    for stage in STAGES:
        importlib.import_module(f"stages.{stage}").main.main(["--params", params], standalone_mode=False)
        importlib.import_module("torch").use_deterministic_algorithms(False)
    whole = time.process_time() - before
    for name, spent in sorted(seconds.of.items(), key=lambda item: -item[1]):
        click.echo(f"{spent:8.3f} s  {name}")
    checks = sum(seconds.of.values())
    click.echo(f"{checks:8.3f} s  of {whole:.1f} CPU s in all: {checks / whole:.2%}")


if __name__ == "__main__":
    main()
