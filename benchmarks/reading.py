"""Shuffled batches from an activation store against a uniform random row gather from one memory-mapped file.

    python -m benchmarks.reading            # 600 MB of 768-wide bf16 rows, batches of 4,096, page cache warm
    python -m benchmarks.reading --small    # seconds; what the tests run

Both sides deliver the same rows, which is checked first, batch by batch, over one epoch (each chunk is verified by its
digest there). Then, after a warm-up, three epochs of each are timed in turn; rates are medians over the rounds.

- Windows of 32 chunks: every epoch reads every chunk from its file again. This is what a store larger than the buffer costs.
- One window (the default activations.buffer_size holds all rows): read once, reshuffled every epoch.
- The gather is torch.index_select from the mapped file into one preallocated batch; the store's batches are new tensors.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from pipeline.activations.batches import ActivationBatch
from pipeline.activations.reader import ActivationStore, open_store
from pipeline.activations.schema import BLOCK_ROWS, FORMAT_VERSION, chunk_rows, hook_layouts, row_layouts
from pipeline.activations.writer import StoreWriter
from pipeline.files import fingerprint
from pipeline.seeding import generator

HOOK_POINT = "blocks.6.hook_resid_post"
WINDOW_CHUNKS = 32
EPOCHS = 3
GOAL = 0.6


@dataclass(frozen=True)
class Result:
    """Medians over rounds in rows/s: batches from windows, from one window, and the random gather; ratios of each round."""

    windows: float
    one_window: float
    gather: float
    ratios: list[float]
    one_window_ratios: list[float]


def write_case(place: Path, n_rows: int, width: int) -> ActivationStore:
    """A store of random bf16 rows in `place`/store and the same rows in one file, `place`/rows.bin."""
    rows = chunk_rows(width, "bfloat16")
    layouts = [*row_layouts(n_rows, None, rows), *hook_layouts(HOOK_POINT, n_rows, width, None, rows, "bfloat16")]
    config = {"target": "activations-1d", "context_size": 128, "storage_dtype": "bfloat16"}
    attributes = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(config),
        "config": config,
        "model": {"name": "none", "revision": None},
        "n_rows": n_rows,
        "chunk_rows": rows,
    }
    writer = StoreWriter(place / "store", attributes, layouts)
    with open(place / "rows.bin", "wb") as stream:
        for start in range(0, n_rows, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, n_rows)
            values = torch.randn((stop - start, width), generator=generator(0, "rows", start)).to(torch.bfloat16)
            stream.write(values.view(torch.int16).numpy().tobytes())
            writer.write_rows(HOOK_POINT, start, values, None)
            count = torch.arange(start, stop, dtype=torch.int32)
            for name in ("tokens", "positions", "context_ids"):
                writer.write_rows(name, start, count, None)
            writer.write_rows("mask", start, torch.ones(stop - start, dtype=torch.bool), None)
    writer.finish()
    return open_store(place / "store")


def _mapped(place: Path, store: ActivationStore) -> torch.Tensor:
    rows = np.memmap(place / "rows.bin", dtype=np.int16, mode="r+", shape=store.shape(HOOK_POINT))
    return torch.from_numpy(rows).view(torch.bfloat16)


def _time_store(batches: Iterator[ActivationBatch], n_batches: int) -> float:
    started = time.perf_counter()
    rows = sum(len(batch.activations[HOOK_POINT]) for batch in itertools.islice(batches, n_batches))
    return rows / (time.perf_counter() - started)


def _time_gather(source: torch.Tensor, batch_size: int, n_batches: int) -> float:
    order = torch.randperm(len(source), generator=generator(0, "gather"))
    out = torch.empty((batch_size, source.shape[1]), dtype=source.dtype)
    per_epoch = len(source) // batch_size
    started = time.perf_counter()
    for batch in range(n_batches):
        start = batch % per_epoch * batch_size
        torch.index_select(source, 0, order[start : start + batch_size], out=out)
    return n_batches * batch_size / (time.perf_counter() - started)


def check(store: ActivationStore, source: torch.Tensor, batch_size: int) -> None:
    """Every row of an epoch is the source's, and occurs once."""
    seen = torch.zeros(store.n_rows, dtype=torch.int32)
    batches = store.batches(batch_size, epochs=1, drop_last=False, buffer_rows=WINDOW_CHUNKS * store.chunk_rows)
    for batch in batches:
        if not torch.equal(batch.activations[HOOK_POINT], source[batch.rows]) or not torch.equal(
            batch.tokens.long(), batch.rows
        ):
            raise SystemExit("benchmark: the store's rows are not the source's")
        seen[batch.rows] += 1
    if not bool((seen == 1).all()):
        raise SystemExit("benchmark: an epoch does not hold every row once")


def measure(place: Path, n_rows: int, width: int, batch_size: int, rounds: int) -> Result:
    """Write the case in `place`, check it, and time both sides in turn."""
    store = write_case(place, n_rows, width)
    source = _mapped(place, store)
    check(store, source, batch_size)
    n = EPOCHS * store.batches_per_epoch(batch_size)
    windows = store.batches(batch_size, seed=1, buffer_rows=WINDOW_CHUNKS * store.chunk_rows)
    one_window = store.batches(batch_size, seed=1, buffer_rows=n_rows + store.chunk_rows)
    rates = []
    for _ in range(rounds + 1):
        rates.append((_time_store(windows, n), _time_store(one_window, n), _time_gather(source, batch_size, n)))
    rates = rates[1:]
    ours, resident, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
    return Result(ours, resident, theirs, [a / c for a, _, c in rates], [b / c for _, b, c in rates])


@click.command()
@click.option("--small", is_flag=True, help="A few MB: checks that the benchmark works; its figures mean little.")
@click.option("--directory", default=None, help="Where the files go; default: a temporary directory.")
def main(small: bool, directory: str | None) -> None:
    """Time shuffled store batches against a random row gather from a memmap."""
    n_rows, width, batch_size, rounds = (20_000, 64, 256, 2) if small else (390_625, 768, 4096, 7)
    with tempfile.TemporaryDirectory(dir=directory) as place:
        result = measure(Path(place), n_rows, width, batch_size, rounds)
    gigabytes = width * 2 / 1e9
    click.echo(
        f"{n_rows:,} rows of {width} bf16 ({n_rows * gigabytes * 1e3:.0f} MB), batches of {batch_size:,}, {rounds} rounds"
    )
    for name, rate, ratios in (
        ("shuffled batches, windows of 32 chunks", result.windows, result.ratios),
        ("shuffled batches, one window", result.one_window, result.one_window_ratios),
        ("random gather from a memmap", result.gather, [1.0]),
    ):
        click.echo(
            f"{name:40s} {rate:12,.0f} rows/s {rate * gigabytes:6.2f} GB/s  "
            f"ratio: {statistics.median(ratios):.2f} (least {min(ratios):.2f})"
        )
    click.echo(f"goal for both: median ratio >= {GOAL}")
    click.echo(f"torch {torch.__version__}, numpy {np.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
