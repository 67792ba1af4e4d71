"""Forward and backward of a topk-family SAE: entry-wise kernels against the dense products, over the chosen share k / F.

    python -m benchmarks.dictionary_step            # the embedded default's size and two larger ones
    python -m benchmarks.dictionary_step --small    # seconds; what the tests run

Both ways compute the same loss and gradients, which is checked first. Then, after a warm-up, the median of process times on
one thread (a shared machine's wall time says little). pipeline/kernels/cpu.py takes its crossover from here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import click
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.kernels.cpu import CpuEntries
from pipeline.losses.reconstruction import reconstruction_loss
from pipeline.seeding import generator

SHARES = (256, 64, 32, 16, 12, 8, 4)  # F / k


class Size(NamedTuple):
    """Width, features and tokens of a step."""

    d: int
    f: int
    tokens: int


SIZES = (Size(128, 2048, 2048), Size(512, 4096, 512), Size(768, 6144, 512))


class Result(NamedTuple):
    """Median milliseconds of forward and backward, entry-wise and dense."""

    size: Size
    act_fn: str
    k: int
    entries_ms: float
    dense_ms: float


@contextmanager
def forced(entries: bool) -> Iterator[None]:
    """The entry-wise kernels, or the dense products, whatever dispatch says."""
    with mock.patch.object(CpuEntries, "entries_pay", return_value=entries):
        yield


def step(dictionary: Dictionary, x: Tensor) -> list[Tensor]:
    """Loss and gradients of a batch."""
    dictionary.zero_grad()
    loss = reconstruction_loss(dictionary.run(x)[1], x)
    loss.backward()
    return [loss.detach(), *(p.grad for p in dictionary.parameters() if p.grad is not None)]


def timed(function: Callable[[], object], rounds: int) -> float:
    """Median process time in milliseconds, after one warm-up."""
    function()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds) * 1e3


def measure(size: Size, act_fn: str, k: int, rounds: int) -> Result:
    """One case; the two ways are checked against each other before they are timed."""
    config = {"kind": "sae", "d_in": size.d, "d_sae": size.f, "act_fn": act_fn, "top_k": k}
    dictionary = build_dictionary({**config, "decoder_uniform_bound": size.d**-0.5})
    x = torch.randn(size.tokens, size.d, generator=generator(0, "benchmark"))
    results = []
    for entries in (True, False):
        with forced(entries):
            results.append(step(dictionary, x))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    times = []
    for entries in (True, False):
        with forced(entries):
            times.append(timed(lambda: step(dictionary, x), rounds))
    return Result(size, act_fn, k, *times)


@click.command()
@click.option("--small", is_flag=True, help="A case of seconds.")
@click.option("--rounds", default=9, show_default=True, help="Timed repetitions of each case.")
def main(small: bool, rounds: int) -> None:
    """Time the two ways and print a table."""
    torch.set_num_threads(1)
    click.echo(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, 1 thread")
    click.echo("| D, F, tokens | act_fn | k / F | entry-wise ms | dense ms | dense / entry-wise |")
    click.echo("|---|---|---|---|---|---|")
    for size in (Size(16, 256, 64),) if small else SIZES:
        for act_fn in ("topk", "batchtopk"):
            for share in SHARES:
                found = measure(size, act_fn, max(size.f // share, 1), rounds)
                ratio = found.dense_ms / found.entries_ms
                click.echo(
                    f"| {size.d}, {size.f}, {size.tokens} | {act_fn} | 1/{share} | {found.entries_ms:.1f} "
                    f"| {found.dense_ms:.1f} | {ratio:.2f} |"
                )


if __name__ == "__main__":
    main()
