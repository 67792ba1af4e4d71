"""Compressors of the activation store: bytes, and rates of writing and reading, on real activations.

    dvc repro tokenize
    python -m benchmarks.compressors           # a few minutes on one thread; prints the tables of docs/object-stores.md
    python -m benchmarks.compressors --small   # seconds, random rows: every row is read back; what the tests run

The residual stream of the embedded default after layer 2, its rows in a random order as a store has them, is written in each
dtype with each compressor and without. Every row is compared with what was written. Then all are read in turn, batches of 2,048
in windows of 16 chunks, the page cache warm, so that every epoch reads and unpacks every chunk again; medians of the rounds.
Rates are MiB of the rows as they are without a compressor, so that they can be compared, by CPU seconds of one thread, which
other work on the machine changes least. "Pays below": from a disk or a network that is slower, fetching the compressed bytes
and then reading them takes less time than the plain ones do.
"""

from __future__ import annotations

import collections
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor

from benchmarks.quality import machine
from benchmarks.short_runs import RESIDUAL, read_rows
from benchmarks.store import HOOK_POINT, write_store
from pipeline.activations.reader import ActivationStore
from pipeline.params.choices import COMPRESSORS
from pipeline.seeding import generator

DTYPES = ("bfloat16", "float16", "float32", "int8")
BATCH, ROUNDS, ROWS, SMALL_ROWS = 2048, 5, 196_608, 32_768  # rows of whole chunks: what fills one up is packed to nothing


class Case(NamedTuple):
    """One store: its bytes at the hook point, CPU seconds of writing and of reading them once."""

    bytes: int
    writing: float
    reading: float


def check(store: ActivationStore, plain: ActivationStore) -> None:
    """Every row is that of the store without a compressor.

    Raises:
        SystemExit: it is not.
    """
    for array in (HOOK_POINT, "tokens"):
        if not torch.equal(store.read(array, 0, store.n_rows), plain.read(array, 0, plain.n_rows)):
            raise SystemExit(f"benchmark: rows of {store.path.name} are not those that were written")


def read_once(store: ActivationStore) -> float:
    """CPU seconds of an epoch after one that takes the memory."""
    batches = store.batches(BATCH, epochs=2, buffer_rows=16 * store.chunk_rows, encoded=True, prefetch=False)
    per_epoch = store.n_rows // BATCH
    for _ in range(per_epoch):
        next(batches)
    start = time.process_time()
    collections.deque(batches, maxlen=0)
    return time.process_time() - start


def measure(place: Path, rows: Tensor, dtype: str, rounds: int) -> dict[str | None, Case]:
    """Of each compressor, None first, written and read in turn."""
    names = (None, *COMPRESSORS)
    made = {name: write_store(place / f"{dtype} {name}", rows, dtype, name) for name in names}
    stores = {name: store for name, (store, _) in made.items()}
    for store in stores.values():
        check(store, stores[None])
    taken = [{name: read_once(store) for name, store in stores.items()} for _ in range(rounds)]
    return {
        name: Case(
            sum(array.stored_bytes for array in store.parts(HOOK_POINT).values()),
            len(rows) / made[name][1].cpu,
            statistics.median(each[name] for each in taken),
        )
        for name, store in stores.items()
    }


def break_even(plain: Case, packed: Case) -> float | None:
    """Bytes a second from a disk or a network at which both take as long, each byte being fetched and then read.

    plain.bytes / R + plain.reading = packed.bytes / R + packed.reading; a slower one pays. None: none does.
    """
    saved, more = plain.bytes - packed.bytes, packed.reading - plain.reading
    return None if saved <= 0 else saved / more if more > 0 else float("inf")


def table(found: dict[str, dict[str | None, Case]]) -> list[str]:
    """Lines of Markdown."""
    head = "| dtype | compressor | bytes | of those without | writing, MiB a CPU second | reading | pays below |"
    lines = [head, "|---|---|" + "---:|" * 5]
    for dtype, cases in found.items():
        plain = cases[None]
        for name, case in cases.items():
            even = None if name is None else break_even(plain, case)
            below = "" if name is None else "never" if even is None else f"{even / 2**20:,.0f} MiB/s"
            rates = [f"{plain.bytes / seconds / 2**20:,.0f}" for seconds in (case.writing, case.reading)]
            share = f"{case.bytes / plain.bytes:.3f}"
            lines.append(f"| {dtype} | {name or 'none'} | {case.bytes:,} | {share} | {' | '.join(rates)} | {below} |")
    return lines


@click.command()
@click.option("--small", is_flag=True, help="Random rows, a few MB: only whether what is read is right.")
@click.option("--tokens", type=click.Path(path_type=Path), default="data/tokens.zarr", show_default=True, help="Token store.")
def main(small: bool, tokens: Path) -> None:
    """Write, compare, read in turn, print."""
    torch.set_num_threads(1)
    if small:
        rows = torch.randn(SMALL_ROWS, 32, generator=generator(0, "rows"))
    else:
        rows = read_rows(RESIDUAL, tokens).training[:ROWS]
    with tempfile.TemporaryDirectory() as place:
        write_store(Path(place) / "first", rows, DTYPES[0])  # takes the memory, and imports
        found = {dtype: measure(Path(place), rows, dtype, 1 if small else ROUNDS) for dtype in DTYPES}
    click.echo(f"{len(rows):,} rows of width {rows.shape[1]} on {machine()}; one thread.\n")
    click.echo("\n".join(table(found)))


if __name__ == "__main__":
    main()
