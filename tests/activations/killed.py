"""Generate with a tiny random language model, be killed with SIGKILL again and again, go on; prints what came of it.

    python -m tests.activations.killed PLACE SEED

Run by test_kills.py in a process of its own: each attempt is a fork of it, so that a kill costs no start of torch. Prints a
line of JSON for each trial: {"kills", "equal", "leftovers"}.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from pipeline.activations import plan, schema, writer
from pipeline.activations.generation import ModelFacts, generate_store
from pipeline.corpus.tokens import open_tokens
from pipeline.lm.loading import load_language_model
from tests.activations.cases import HOOK, OTHER, contents, make_tokens, settings
from tests.evaluation.tiny import CONTEXT, D_MODEL, write_tiny_model

TRIALS, KILLS = 10, 4


def _kill_at_write(count: int) -> None:
    """Die at the `count`-th step of writing: before a rename, after it, or in the middle of a file."""
    left = [count]

    def step() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    replace, write_bytes = os.replace, writer.write_bytes

    def stepping_replace(source: str, target: str) -> None:
        step()
        replace(source, target)
        step()

    def stepping_write_bytes(path: Path, content: bytes) -> None:
        step()
        write_bytes(path, content)

    os.replace, writer.write_bytes = stepping_replace, stepping_write_bytes


def _fork(work: Callable[[], None], kill_after: float | None = None) -> bool:
    """Run `work` in a fork; whether it came to its end. `kill_after` seconds it gets SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit("generation failed")
    return True


def main(place: Path, seed: int) -> None:
    """Write an unbroken store, then the trials."""
    schema.BLOCK_ROWS = plan.BLOCK_ROWS = 512
    schema.CHUNK_BYTES = 128 * D_MODEL * 2
    tokens = place / "tokens.zarr"
    make_tokens(tokens, n_contexts=500, context_size=CONTEXT)
    model = load_language_model(write_tiny_model(place / "model"), device="cpu")
    facts = ModelFacts("tiny", None, model.digest, D_MODEL, {HOOK: D_MODEL, OTHER: D_MODEL})

    def generate(root: Path) -> None:
        generate_store(open_tokens(tokens), facts, lambda hook_points: model, settings(context_size=CONTEXT), root)

    started = time.perf_counter()
    _fork(lambda: generate(place / "unbroken"))
    seconds = time.perf_counter() - started
    wanted = contents(place / "unbroken")

    for trial in range(TRIALS):
        draw = random.Random(seed + trial)  # its own, so that those at a write do not depend on the speed of those before
        root = place / f"trial{trial}"
        kills, done = 0, False
        while not done and kills < KILLS:
            if trial % 2:
                count = draw.randrange(160)
                done = _fork(lambda root=root, count=count: (_kill_at_write(count), generate(root)))  # type: ignore[misc]
            else:
                done = _fork(lambda root=root: generate(root), draw.uniform(0.0, seconds))  # type: ignore[misc]
            kills += not done
        if not done:
            _fork(lambda root=root: generate(root))  # type: ignore[misc]
        found = contents(root)
        equal = {k: v for k, v in found.items() if not k.endswith(".lock")} == {
            k: v for k, v in wanted.items() if not k.endswith(".lock")
        }
        leftovers = [name for name in found if "partial" in name]
        print(json.dumps({"kills": kills, "equal": equal, "leftovers": leftovers}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
