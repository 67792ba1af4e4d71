"""What the GPU kernels' constants were chosen by: each kernel over a grid of them, and the kernels of a step, by time.

python -m benchmarks.gpu_tune          # on a GPU; prints tables
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import click
import torch

from benchmarks.gpu import S1, S3, Bench, Size
from benchmarks.gpu_step import SparseStep
from pipeline.kernels.gpu import accumulate, decode, select_batch, select_rows

GRIDS: dict[str, tuple[ModuleType, dict[str, tuple[int, ...]]]] = {
    "accumulate": (accumulate, {"ENTRIES": (4, 8, 16), "WIDTH": (256, 512, 1024), "RUN": (64, 128, 256)}),
    "decode": (decode, {"ENTRIES": (4, 8, 16)}),
    "values": (decode, {"ENTRIES": (4, 8, 16), "WIDTH": (256, 512, 1024), "WARPS": (1, 2, 4)}),
    "select_rows": (select_rows, {"SCANNED": (512, 1024, 2048), "WARPS": (1, 2, 4)}),
    "select_batch": (select_batch, {"SCANNED": (512, 1024, 2048), "WARPS": (1, 2, 4)}),
}


@contextmanager
def constants(module: ModuleType, values: dict[str, int]) -> Iterator[None]:
    """The module with other constants."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def calls(size: Size, device: torch.device) -> dict[str, Callable[[], object]]:
    """Each kernel on rows of this size."""
    n_tokens, k = size.tokens, size.k
    x16 = torch.randn(n_tokens, size.d, device=device).to(torch.bfloat16)
    w16 = (torch.randn(size.f, size.d, device=device) * size.d**-0.5).to(torch.bfloat16)
    z16, scale = x16 @ w16.T, torch.rand(size.f, device=device) + 0.5
    index, values = (t.reshape(-1) for t in select_rows.select_rows(z16, k))
    tokens = torch.arange(n_tokens, device=device, dtype=torch.int32).repeat_interleave(k)
    offsets = torch.arange(n_tokens + 1, device=device, dtype=torch.int32) * k
    ordered = accumulate.feature_runs
    return {
        "accumulate": lambda: accumulate.accumulate_rows(values, x16, ordered(index, tokens, size.f), True),
        "decode": lambda: decode.sparse_decode(values, index, offsets, w16),
        "values": lambda: decode.values_gradient(x16, index, offsets, w16),
        "select_rows": lambda: select_rows.select_rows(z16, k, scale),
        "select_batch": lambda: select_batch.select_batch(z16, k * n_tokens),
    }


def profile(size: Size, gate: str, dense: bool, device: torch.device) -> None:
    """The kernels of a step, longest first."""
    step = SparseStep(size.d, size.f, size.k, size.tokens, gate, device, dense)
    step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows) / 3e3
    click.echo(f"{size.name} {gate} dense {dense}: {total:.3f} ms of kernels")
    for row in rows[:14]:
        click.echo(f"  {row.self_device_time_total / 3e3:8.4f} ms  {row.count // 3:3d} x  {row.key[:90]}")


@click.command()
@click.option("--profiles/--no-profiles", default=True, help="The kernels of whole steps too.")
@click.option("--only", multiple=True, type=click.Choice(sorted(GRIDS)), help="Kernels; all without it.")
def main(profiles: bool, only: tuple[str, ...]) -> None:
    """Measure and print."""
    device = torch.device("cuda")
    bench = Bench(device, 10)
    for size in (S1, S3):
        for gate, dense in (("topk", False), ("topk", True), ("batchtopk", False)):
            if profiles and not (dense and size is S3):
                profile(size, gate, dense, device)
        torch.cuda.empty_cache()
        timed = calls(size, device)
        for name in only or GRIDS:
            module, grid = GRIDS[name]
            found = []
            for values in itertools.product(*grid.values()):
                chosen = dict(zip(grid, values, strict=True))
                with constants(module, chosen):
                    found.append((bench.time(timed[name], graph=size is not S3), chosen))
            found.sort(key=lambda pair: pair[0])
            shown = [f"{ms:.4f} {chosen}" for ms, chosen in (*found[:3], found[-1])]
            click.echo(f"{size.name} {name}: " + "; ".join(shown))


if __name__ == "__main__":
    main()
