"""The activation store in 16 and in 8 bits: bytes, rates of writing and reading, and what a dictionary loses.

    dvc repro tokenize
    python -m benchmarks.store            # some ten minutes on two cores; writes benchmarks/results/store.md
    python -m benchmarks.store --small    # seconds; what the tests run: correctness alone, its figures mean little

Rates: random rows of width 768, page cache warm, batches of 4,096 in windows of 16 chunks, so that every epoch reads every
chunk from its file again. First every batch of an epoch is compared with the rows, and each row counted. Then, after a warm-up,
all ways are timed in turn, three epochs of each. Ratios are medians over the rounds, of the clock and of CPU
seconds, against torch.index_select of random rows from one memory-mapped bfloat16 file into one preallocated batch. A batch
arrives in float32, as a training on the CPU takes it (the gather's is converted), or as it is stored, as it goes to a GPU.

FVU: fit() with nothing stated but width, k and length, on rows that were written to a store and read back: the residual stream
of the embedded default, and a planted set (planted.py). The held-out rows are the same for all, in float32.

Error: of the stored numbers, as a share of the variance, of int8 and of what it might be instead: a scale of the row alone, or
of each 64 dimensions of a row; on the residual stream as it is, with three dimensions 50 times as wide, and with three that lie
50 deviations from zero.

Exit status 1 if int8 misses a goal: bytes at most 0.55 of float16's, FVU at most 0.5 % above bfloat16's, reading at least 0.7
of the gather.
"""

from __future__ import annotations

import collections
import functools
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.planted import MAIN, SETS
from benchmarks.quality import machine
from benchmarks.short_runs import RESIDUAL, SETTINGS, Rows, read_rows
from pipeline.activations.batches import ActivationBatch
from pipeline.activations.codecs.interface import storage_codec
from pipeline.activations.reader import ActivationStore, open_store
from pipeline.activations.schema import BLOCK_ROWS, FORMAT_VERSION, array_name, chunk_rows, hook_layouts, row_layouts
from pipeline.activations.writer import StoreWriter
from pipeline.evaluation.in_memory import evaluate_reconstruction
from pipeline.files import fingerprint
from pipeline.seeding import generator
from pipeline.training.fit import fit

RESULTS = Path("benchmarks/results/store.md")
HOOK_POINT = "blocks.6.hook_resid_post"
DTYPES = ("float16", "bfloat16", "int8")
WINDOW_CHUNKS, EPOCHS = 16, 3
MEASURED = 8192  # rows that a codec measures: the default's first model batch
BATCH = 1024
MOST_BYTES, MOST_FVU, LEAST_READING = 0.55, 0.005, 0.7


class Size(NamedTuple):
    """What is run."""

    rows: int
    width: int
    batch: int
    rounds: int
    sets: tuple[str, ...]
    training_rows: int
    features: int
    steps: int
    seeds: int


FULL = Size(131_072, 768, 4096, 3, (RESIDUAL, MAIN.name), 204_800, 2048, 300, 2)
SMALL = Size(32_768, 128, 256, 2, (MAIN.name,), 4096, 128, 3, 1)


class Rate(NamedTuple):
    """Rows a second of the clock and of CPU time."""

    clock: float
    cpu: float


def timed(rows: int, work: Callable[[], object]) -> Rate:
    """Rates of work on some rows."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return Rate(rows / (time.perf_counter() - clock), rows / (time.process_time() - cpu))


def write_store(place: Path, rows: Tensor, dtype: str, compressor: str | None = None) -> tuple[ActivationStore, Rate]:
    """A store of rows [n, d] in order, each token's id being its row; the rate is of encoding and writing the hook point."""
    n_rows, width = rows.shape
    per_chunk = chunk_rows(width, dtype)
    config: dict[str, Any] = {"target": "activations-1d", "context_size": 128, "storage_dtype": dtype}
    if compressor is not None:
        config["compressor"] = compressor
    attributes = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(config),
        "config": config,
        "model": {"name": "none", "revision": None},
        "n_rows": n_rows,
        "chunk_rows": per_chunk,
    }
    layouts = [*row_layouts(n_rows, None, per_chunk), *hook_layouts(HOOK_POINT, n_rows, width, None, per_chunk, dtype)]
    writer, codec = StoreWriter(place, attributes, layouts), storage_codec(dtype)
    shared = codec.measure(rows[:MEASURED])

    def write(first: int, parts: dict[str, Tensor]) -> None:
        for part, values in parts.items():
            writer.write_rows(array_name(HOOK_POINT, part), first, values, None)

    write(0, shared)
    rates = []
    for start in range(0, n_rows, BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS].float()
        rates.append(timed(len(block), lambda first=start, x=block: write(first, codec.encode(x, shared))))  # type: ignore[misc]
        count = torch.arange(start, start + len(block), dtype=torch.int32)
        for name in ("tokens", "positions", "context_ids"):
            writer.write_rows(name, start, count, None)
        writer.write_rows("mask", start, torch.ones(len(block), dtype=torch.bool), None)
    writer.finish()
    return open_store(place), Rate(*(statistics.median(column) for column in zip(*rates, strict=True)))


def stored_bytes(store: ActivationStore) -> int:
    """Bytes of all chunks."""
    layouts = [store.array(name).layout for name in store.digests]
    return sum(layout.n_chunks * layout.chunk_bytes for layout in layouts)


def random_rows(place: Path, n_rows: int, width: int) -> Tensor:
    """bfloat16 [n_rows, width], normal numbers in one memory-mapped file."""
    with open(place, "wb") as stream:
        for start in range(0, n_rows, BLOCK_ROWS):
            shape = (min(BLOCK_ROWS, n_rows - start), width)
            values = torch.randn(shape, generator=generator(0, "rows", start)).to(torch.bfloat16)
            stream.write(values.view(torch.int16).numpy().tobytes())
    mapped = np.memmap(place, dtype=np.int16, mode="r+", shape=(n_rows, width))
    return torch.from_numpy(mapped).view(torch.bfloat16)


def check(store: ActivationStore, rows: Tensor, batch_size: int) -> None:
    """Every row of an epoch is that of `rows`, rounded as its codec may, and occurs once; what is encoded decodes to it.

    Raises:
        SystemExit: it is not so.
    """
    seen = torch.zeros(store.n_rows, dtype=torch.int32)
    about = {"epochs": 1, "drop_last": False, "buffer_rows": WINDOW_CHUNKS * store.chunk_rows, "dtype": torch.float32}
    both = (store.batches(batch_size, encoded=encoded, **about) for encoded in (False, True))  # type: ignore[arg-type]
    for batch, encoded in zip(*both, strict=True):
        found, wanted = batch.activations[HOOK_POINT], rows[batch.rows]
        if store.storage_dtype == "int8":  # the rows are normal: centre 0 and spread 1, nearly
            right = bool(((found - wanted).abs() <= 1.2 / 254 * (0.1 + wanted.float().abs().amax(-1, keepdim=True))).all())
        else:
            right = torch.equal(found, wanted.to(getattr(torch, store.storage_dtype)).float())
        same = torch.equal(encoded.on(torch.device("cpu"))[HOOK_POINT], found) and torch.equal(encoded.rows, batch.rows)
        if not right or not same or not torch.equal(batch.tokens.long(), batch.rows):
            raise SystemExit(f"benchmark: the {store.storage_dtype} store's rows are not those that were written")
        seen[batch.rows] += 1
    if not bool((seen == 1).all()):
        raise SystemExit("benchmark: an epoch does not hold every row once")


def _epochs(make: Callable[[], Iterator[ActivationBatch]], per_epoch: int) -> Rate:
    """The rate of EPOCHS epochs after a first one, which takes the memory that is used again."""
    batches = make()
    rows = sum(len(batch.rows) for batch in itertools.islice(batches, per_epoch)) * EPOCHS
    return timed(rows, lambda: collections.deque(batches, maxlen=0))


def _gather(source: Tensor, batch_size: int, n: int, dtype: torch.dtype) -> None:
    order = torch.randperm(len(source), generator=generator(0, "gather"))
    found = torch.empty((batch_size, source.shape[1]), dtype=source.dtype)
    out = found if dtype == source.dtype else torch.empty(found.shape, dtype=dtype)
    for batch in range(n):
        start = batch % (len(source) // batch_size) * batch_size
        torch.index_select(source, 0, order[start : start + batch_size], out=found)
        if out is not found:
            out.copy_(found)


class Case(NamedTuple):
    """What was measured of one storage dtype: bytes, rate of writing, rates of reading and their ratios in each round."""

    bytes: int
    writing: Rate
    reading: dict[str, Rate]
    ratios: dict[str, Rate]


DELIVERIES = ("float32", "as stored")


def measure_rates(place: Path, size: Size) -> dict[str, Case]:
    """Write, check, and time all in turn; the key "gather" has the gather's own rates."""
    rows = random_rows(place / "rows.bin", size.rows, size.width)
    written = {dtype: write_store(place / dtype, rows, dtype) for dtype in DTYPES}
    ways: dict[tuple[str, str], Callable[[], Rate]] = {}
    per_epoch = size.rows // size.batch
    n = EPOCHS * per_epoch
    for dtype, (store, _) in written.items():
        check(store, rows, size.batch)
        # Anew each time, so that at most one window has been read before the clock starts, and none for later.
        make = functools.partial(
            store.batches, size.batch, seed=1, epochs=EPOCHS + 1, buffer_rows=WINDOW_CHUNKS * store.chunk_rows
        )
        ways[dtype, "float32"] = lambda make=make: _epochs(lambda: make(dtype=torch.float32), per_epoch)  # type: ignore[misc]
        ways[dtype, "as stored"] = lambda make=make: _epochs(lambda: make(encoded=True), per_epoch)  # type: ignore[misc]
    ways["gather", "float32"] = lambda: timed(n * size.batch, lambda: _gather(rows, size.batch, n, torch.float32))
    ways["gather", "as stored"] = lambda: timed(n * size.batch, lambda: _gather(rows, size.batch, n, rows.dtype))
    rounds = [{way: rate() for way, rate in ways.items()} for _ in range(size.rounds + 1)][1:]

    def median(of: Callable[[dict[tuple[str, str], Rate]], Rate]) -> Rate:
        return Rate(*(statistics.median(column) for column in zip(*map(of, rounds), strict=True)))

    def ratio(rates: dict[tuple[str, str], Rate], dtype: str, delivery: str) -> Rate:
        ours, theirs = rates[dtype, delivery], rates["gather", delivery]
        return Rate(ours.clock / theirs.clock, ours.cpu / theirs.cpu)

    found = {}
    for dtype in (*DTYPES, "gather"):
        reading = {d: median(lambda rates, dtype=dtype, d=d: rates[dtype, d]) for d in DELIVERIES}  # type: ignore[misc]
        ratios = {d: median(lambda rates, dtype=dtype, d=d: ratio(rates, dtype, d)) for d in DELIVERIES}  # type: ignore[misc]
        store, writing = written.get(dtype, (None, Rate(0, 0)))
        found[dtype] = Case(rows.nbytes if store is None else stored_bytes(store), writing, reading, ratios)
    return found


class Trained(NamedTuple):
    """Bytes of the store that was trained on, and the FVU of each seed."""

    bytes: int
    fvu: list[float]


def draw(name: str, tokens: Path, size: Size) -> Rows:
    """The rows of a set: so many, and a tenth as many held-out ones."""
    n = size.training_rows, size.training_rows // 10
    if name in SETS:
        data = SETS[name].draw(0)
        return Rows(data.rows(n[0], "training"), data.rows(n[1], "held out"))
    rows = read_rows(name, tokens)
    return Rows(rows.training[: n[0]], rows.held_out[: n[1]])


def train(place: Path, name: str, rows: Rows, size: Size) -> dict[str, Trained]:
    """A dictionary on each dtype's store of the same rows, seed by seed."""
    found = {}
    for dtype in DTYPES:
        store, _ = write_store(place / f"{name} {dtype}", rows.training, dtype)
        read = store.read(HOOK_POINT, 0, store.n_rows).float()
        fvu = []
        for seed in range(size.seeds):
            result = fit(
                read,
                dictionary={"act_fn": "topk", "d_sae": size.features, "top_k": SETTINGS[name].k},
                trainer={"total_training_tokens": size.steps * BATCH},
                batch_size=BATCH,
                seed=seed,
                device="cpu",
            )
            fvu.append(evaluate_reconstruction(result.inference, rows.held_out)["fvu"])
            click.echo(f"{name}, {dtype}, seed {seed}: FVU {fvu[-1]:.5f}")
        found[dtype] = Trained(stored_bytes(store), fvu)
    return found


def scaled_rows(x: Tensor, block: int | None = None) -> Tensor:
    """Rows [n, d] rounded to eight bits with one scale for each row, or for each `block` dimensions of one."""
    parts = x.unflatten(-1, (-1, x.shape[-1] if block is None else block))
    scale = parts.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((parts / scale).round() * scale).flatten(-2)


def coded(x: Tensor, dtype: str) -> Tensor:
    """Rows [n, d] as a codec gives them back; the first ones are measured."""
    codec = storage_codec(dtype)
    shared = codec.measure(x[:MEASURED])
    return codec.decode({**codec.encode(x, shared), **shared}, torch.float32)


def errors(residual: Tensor) -> list[str]:
    """Lines of a table: squared error by the variance, of all dimensions together and of the worst one."""
    wide, far = residual.clone(), residual.clone()
    wide[:, [3, 50, 100]] *= 50
    far[:, [3, 50, 100]] += 50 * residual.std()
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "bfloat16": lambda x: coded(x, "bfloat16"),
        "int8": lambda x: coded(x, "int8"),
        "8 bits, a scale of each row": scaled_rows,
        "8 bits, a scale of each 64 numbers": lambda x: scaled_rows(x, 64),
    }
    lines = [
        "| error by variance: all (worst dimension) | residual | three dimensions 50 times as wide | three 50 deviations off |",
        "|---|---:|---:|---:|",
    ]
    for name, way in ways.items():
        cells = []
        for x in (residual, wide, far):
            off, variance = (way(x) - x).square().mean(0), x.var(0)
            cells.append(f"{float(off.sum() / variance.sum()):.1e} ({float((off / variance).max()):.1e})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def missed(rates: dict[str, Case], trained: dict[str, dict[str, Trained]], size: Size) -> list[str]:
    """A line for each goal that int8 misses; rates of a small run are not judged."""
    lines = []
    cases = {"the random rows": rates, **trained}
    for name, by_dtype in cases.items():
        share = by_dtype["int8"].bytes / by_dtype["float16"].bytes
        if share > MOST_BYTES:
            lines.append(f"{name}: {share:.3f} of float16's bytes, wanted <= {MOST_BYTES}")
    for name, found in trained.items():
        worse = statistics.mean(found["int8"].fvu) / statistics.mean(found["bfloat16"].fvu) - 1
        if not worse <= MOST_FVU:
            lines.append(f"{name}: FVU {worse:.2%} above bfloat16's, wanted <= {MOST_FVU:.1%}")
    for delivery, ratio in rates["int8"].ratios.items():
        if ratio.clock < LEAST_READING and size is not SMALL:
            lines.append(f"reading, {delivery}: {ratio.clock:.2f} of a gather, wanted >= {LEAST_READING}")
    return lines


def report(rates: dict[str, Case], trained: dict[str, dict[str, Trained]], size: Size, about: list[str]) -> str:
    """The text of the results file."""
    faults = missed(rates, trained, size)
    base = rates["float16"].bytes
    lines = [
        "| store | bytes | of float16's | writing, rows/s | float32 batches, rows/s | of the gather | CPU | "
        "batches as stored, rows/s | of the gather | CPU |",
        "|---|" + "---:|" * 9,
    ]
    for dtype, case in rates.items():
        writing = f"{case.writing.clock:,.0f}" if case.writing.clock else ""
        cells = [f"{case.bytes:,}", f"{case.bytes / base:.3f}", writing]
        for delivery in DELIVERIES:
            ratio = case.ratios[delivery]
            cells += [f"{case.reading[delivery].clock:,.0f}", f"{ratio.clock:.2f}", f"{ratio.cpu:.2f}"]
        lines.append(f"| {dtype if dtype in DTYPES else 'gather from a memory map'} | {' | '.join(cells)} |")
    lines += [
        "",
        "| rows | store | bytes | of float16's | FVU of each seed | mean | beside bfloat16 |",
        "|---|---|" + "---:|" * 5,
    ]
    for name, found in trained.items():
        for dtype, (n_bytes, fvu) in found.items():
            mean, beside = statistics.mean(fvu), statistics.mean(found["bfloat16"].fvu)
            each = ", ".join(f"{value:.5f}" for value in fvu)
            share = f"{n_bytes / found['float16'].bytes:.3f}"
            lines.append(f"| {name} | {dtype} | {n_bytes:,} | {share} | {each} | {mean:.5f} | {mean / beside - 1:+.2%} |")
    return "\n".join(
        [
            "# The activation store in 16 and in 8 bits",
            "",
            f"`{' '.join(['python -m benchmarks.store', *sys.argv[1:]])}` on {machine()}, numpy {np.__version__}; one thread.",
            f"Rates: {size.rows:,} rows of width {size.width}, batches of {size.batch:,} in windows of {WINDOW_CHUNKS} chunks, "
            f"medians of {size.rounds} rounds in turn. FVU: TopK, {size.features:,} features, {size.steps} steps of {BATCH:,}; "
            f"{size.training_rows:,} rows of a store, held-out rows in float32.",
            f"Goals for int8: bytes at most {MOST_BYTES} of float16's; FVU at most {MOST_FVU:.1%} above bfloat16's; reading at "
            f"least {LEAST_READING} of the gather.",
            "",
            *lines,
            "",
            *about,
            *(["Goals missed:", "", *(f"- {line}" for line in faults)] if faults else ["All goals are met."]),
            "",
        ]
    )


@click.command()
@click.option("--small", is_flag=True, help="A few MB: checks that the stores are right; its figures mean little.")
@click.option("--tokens", type=click.Path(path_type=Path), default="data/tokens.zarr", show_default=True, help="Token store.")
@click.option("--directory", default=None, help="Where the files go; default: a temporary directory.")
def main(small: bool, tokens: Path, directory: str | None) -> None:
    """Write, check, time, train, compare with the goals."""
    torch.set_num_threads(1)
    size = SMALL if small else FULL
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        place = Path(temporary)
        rates = measure_rates(place, size)
        sets = {name: draw(name, tokens, size) for name in size.sets}
        trained = {name: train(place, name, rows, size) for name, rows in sets.items()}
    about = [] if RESIDUAL not in sets else [*errors(sets[RESIDUAL].held_out), ""]
    text = report(rates, trained, size, about)
    click.echo("\n" + text)
    if not small:
        RESULTS.write_text(text, encoding="utf-8")
    if missed(rates, trained, size):
        sys.exit(1)


if __name__ == "__main__":
    main()
