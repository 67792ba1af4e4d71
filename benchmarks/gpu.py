"""Everything that needs a GPU, in one command: kernels against references, dictionaries against the CPU, and timings.

    python -m benchmarks.gpu                     # minutes; prints a table, writes benchmarks/results/gpu.json and gpu.md
    TRITON_INTERPRET=1 python -m benchmarks.gpu --small     # no GPU: everything once at small sizes, kernels interpreted
    TRITON_INTERPRET=1 python -m benchmarks.gpu --small --part group    # one part, without the checks

Runs with torch, triton, numpy, safetensors, click, pyyaml alone. First correctness (gpu_checks.py); any fault ends it with
exit status 1 and no timings. Then the card's own limits (a large copy, a large bfloat16 product), every kernel beside the
dense product or torch function that does the same, the sparse step made of these kernels as one CUDA graph (gpu_step.py), the
trainer's own steps (gpu_training.py: by its graph and without, from a store where zarr is installed, eai-sparsify's beside them
where that is), steps in a process group of one rank (gpu_group.py: NCCL, on a CPU gloo) beside steps without one, and the
crossover between entries and dense products. A floor is the larger of the bytes that must move over the
copy's rate and the operations over the product's; the share is floor / measured.
Sizes: S1 = 768 x 6,144, k 64, batch 4,096; S3 = 4,096 x 131,072, k 64, batch 8,192.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
import triton
from torch import Tensor

from benchmarks.gpu_checks import check_dictionaries, check_entries, check_graph, check_kernels, check_reading
from benchmarks.gpu_group import beside_none
from benchmarks.gpu_step import SparseStep, dense_products
from benchmarks.gpu_training import from_store, refusing, resident, sparsify_ms, step_ms, trainer
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError
from pipeline.kernels.gpu.accumulate import accumulate_rows, feature_runs
from pipeline.kernels.gpu.adam import adam_, bias_corrections
from pipeline.kernels.gpu.decode import sparse_decode, values_gradient
from pipeline.kernels.gpu.select_batch import select_batch
from pipeline.kernels.gpu.select_rows import select_rows
from pipeline.training.objective import autocast

RESULTS = Path("benchmarks/results/gpu")
PARTS = ("limits", "steps", "kernels", "generation", "training", "group", "crossover", "sparsify")


class Size(NamedTuple):
    """Width, features, open features per token, tokens of a step."""

    name: str
    d: int
    f: int
    k: int
    tokens: int


S1, S2 = Size("S1", 768, 6144, 64, 4096), Size("S2", 2304, 65536, 64, 8192)
S3 = Size("S3", 4096, 131072, 64, 8192)
SMALL = Size("small", 48, 192, 4, 32)


class Limits(NamedTuple):
    """Bytes a second that a copy moves (read and written), operations a second of a bfloat16 product."""

    bytes: float
    operations: float

    def floor(self, n_bytes: float, n_operations: float = 0.0) -> float:
        """Milliseconds."""
        return max(n_bytes / self.bytes, n_operations / self.operations) * 1e3


class Bench:
    """Times functions on a device and keeps what was found.

    Args:
        device: cuda, or cpu for an interpreted run, whose times say nothing.
        rounds: timed repetitions.
    """

    def __init__(self, device: torch.device, rounds: int) -> None:
        self.device, self.rounds = device, rounds
        self.rows: list[dict[str, Any]] = []
        self.limits = Limits(1e12, 1e14)

    def time(self, function: Callable[[], object], graph: bool = True) -> float:
        """Median milliseconds of a call; on a GPU as the replay of a captured graph, if asked for."""
        if self.device.type == "cpu":
            start = time.perf_counter()
            function()
            return (time.perf_counter() - start) * 1e3
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                function()
        torch.cuda.synchronize()
        call = function
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                function()
            call = captured.replay
        times = []
        for _ in range(self.rounds + 1):
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            call()
            last.record()
            torch.cuda.synchronize()
            times.append(first.elapsed_time(last))
        return statistics.median(times[1:])

    def add(self, size: str, what: str, ms: float, floor: float | None = None, **more: Any) -> None:
        """Keep and print a row."""
        row = {"size": size, "what": what, "ms": round(ms, 4), **more}
        if floor is not None:
            row |= {"floor_ms": round(floor, 4), "share": round(floor / ms, 3)}
        self.rows.append(row)
        click.echo("  ".join(f"{key} {value}" for key, value in row.items()))


def measure_limits(bench: Bench, small: bool) -> None:
    """The card's copy and product."""
    n = 2**12 if small else 2**30
    a = torch.empty(n, dtype=torch.bfloat16, device=bench.device).normal_()
    b = torch.empty_like(a)
    copy = bench.time(lambda: b.copy_(a), graph=False)
    m = 64 if small else 8192
    x, y = (torch.randn(m, m, dtype=torch.bfloat16, device=bench.device) for _ in range(2))
    product = bench.time(lambda: x @ y, graph=False)
    bench.limits = Limits(4 * n / copy * 1e3, 2 * m**3 / product * 1e3)
    bench.add("-", "copy", copy, tb_per_s=round(bench.limits.bytes / 1e12, 2))
    bench.add("-", "bf16 product", product, tflops=round(bench.limits.operations / 1e12))


def measure_kernels(bench: Bench, size: Size) -> None:
    """Each kernel, and what torch has for the same."""
    d, f, k, n_tokens, device = size.d, size.f, size.k, size.tokens, bench.device
    n, floor = k * n_tokens, bench.limits.floor
    half = torch.bfloat16
    x, weight = torch.randn(n_tokens, d, device=device), torch.randn(f, d, device=device) * d**-0.5
    x16, w16 = x.to(half), weight.to(half)
    z16, scale = x16 @ w16.T, torch.rand(f, device=device) + 0.5
    bench.add(size.name, "encoder product", bench.time(lambda: x16 @ w16.T), floor(2 * n_tokens * f, 2 * n_tokens * d * f))
    read = floor(2 * n_tokens * f)
    bench.add(size.name, "select_rows", bench.time(lambda: select_rows(z16, k)), read)
    bench.add(size.name, "select_rows, scaled", bench.time(lambda: select_rows(z16, k, scale)), read)
    if f * n_tokens < 2**29:
        z32 = z16.float()
        bench.add(size.name, "select_rows, float32", bench.time(lambda: select_rows(z32, k)), 2 * read)
        bench.add(size.name, "select_batch, float32", bench.time(lambda: select_batch(z32, n)), 2 * read)
        del z32
    bench.add(size.name, "torch.topk by row", bench.time(lambda: torch.topk(z16, k, sorted=False), graph=False), read)
    bench.add(size.name, "select_batch", bench.time(lambda: select_batch(z16, n)), read)
    chosen = select_rows(z16, k)
    index, values = chosen.columns.reshape(-1), chosen.values.reshape(-1).float()
    tokens = torch.arange(n_tokens, device=device, dtype=torch.int32).repeat_interleave(k)
    offsets = torch.arange(n_tokens + 1, device=device, dtype=torch.int32) * k
    gather = floor(2 * n * d)
    bench.add(size.name, "sparse_decode", bench.time(lambda: sparse_decode(values, index, offsets, w16)), gather)
    bench.add(size.name, "values_gradient", bench.time(lambda: values_gradient(x16, index, offsets, w16)), gather)
    bench.add(size.name, "sort by feature", bench.time(lambda: feature_runs(index, tokens, f)))
    runs = feature_runs(index, tokens, f)
    bench.add(
        size.name, "accumulate_rows", bench.time(lambda: accumulate_rows(values, x16, runs, True)), floor(2 * n * d + 4 * f * d)
    )
    for what, call in dense_products(x16, w16, z16).items():
        bench.add(size.name, f"dense: {what}", bench.time(call), floor(0, 2 * n_tokens * d * f))
    scalars = bias_corrections(torch.tensor(1e-3, device=device), torch.tensor(5.0, device=device), (0.9, 0.999))
    m, v, g = (torch.rand(f, d, device=device) for _ in range(3))
    ours = bench.time(lambda: adam_(weight, g, m, v, scalars, copy=w16))
    bench.add(size.name, "adam_ with bf16 copy", ours, floor(30 * f * d))
    step = [torch.ones((), device=device)]

    def fused() -> None:
        torch._fused_adam_(
            [weight], [g], [m], [v], [], step, lr=1e-3, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    bench.add(size.name, "torch's fused Adam", bench.time(fused, graph=False), floor(28 * f * d))


def measure_steps(bench: Bench, size: Size) -> None:
    """The sparse step as one graph."""
    for gate, dense in itertools.product(("topk", "batchtopk"), (False, True)):
        if dense and size.f * size.tokens >= 2**29:
            continue
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        step = SparseStep(size.d, size.f, size.k, size.tokens, gate, bench.device, dense)
        ms = bench.time(step)
        eager = bench.time(step, graph=False)
        memory = torch.cuda.max_memory_allocated() / 1e9 if bench.device.type == "cuda" else 0.0
        more = {"tokens_per_s": round(size.tokens / ms * 1e3), "eager_ms": round(eager, 3), "peak_gb": round(memory, 2)}
        bench.add(size.name, f"sparse step, {gate}{', dense gradients' if dense else ''}", ms, **more)
        del step


def measure_crossover(bench: Bench, small: bool) -> None:
    """Forward and backward of a TopK dictionary of S1's width and k by entries and by dense products, over its features."""
    d, k, tokens = (24, 4, 16) if small else (S1.d, S1.k, S1.tokens)
    for f in (48, 96) if small else (6144, 12288, 16384, 24576, 32768, 65536):
        rows = torch.randn(tokens, d, device=bench.device)
        for way, triton_fields in (("entries", (True, 0.0)), ("dense", (False, 1.0))):
            fields = dict(zip(("use_triton_kernel", "sparsity_threshold_for_triton_spmm_kernel"), triton_fields, strict=True))
            made = build_dictionary({"kind": "sae", "d_in": d, "d_sae": f, "act_fn": "topk", "top_k": k, **fields}, seed=0)
            made = made.to(bench.device)

            def run(made: Dictionary = made, rows: Tensor = rows) -> None:
                made.zero_grad()
                with autocast(bench.device, "bfloat16"):
                    x_hat = made.run(rows)[1]
                (x_hat - rows).square().sum().backward()

            ms = bench.time(run, graph=False)
            bench.add(f"{d} x {f:,}", f"forward and backward, {way}", ms, inactive=round(1 - k / f, 5))


def measure_training(bench: Bench, size: Size, gates: tuple[str, ...], dtypes: tuple[str, ...], steps: int) -> None:
    """The trainer's own steps from resident batches, by the graph and without; of S1's TopK from a store too."""
    rows = torch.randn(8 * size.tokens, size.d, device=bench.device) + 1.0
    for gate, dtype, graph in itertools.product(gates, dtypes, (True, False)):
        dictionary: dict[str, Any] = {"d_in": size.d, "d_sae": size.f, "act_fn": gate}
        fields: dict[str, Any] = {"amp_dtype": dtype}
        if gate == "jumprelu":
            fields["target_l0"] = float(size.k)
        else:
            dictionary["top_k"] = size.k
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run = trainer(bench.device, dictionary, fields, 10**6, size.tokens)
        if not graph:
            run.capture(refusing)
        ms = step_ms(run, resident(rows, size.tokens), steps)
        memory = torch.cuda.max_memory_allocated() / 1e9 if bench.device.type == "cuda" else 0.0
        more = {"tokens_per_s": round(size.tokens / ms * 1e3), "peak_gb": round(memory, 2)}
        bench.add(size.name, f"step, {gate}, {dtype}, {'graph' if graph else 'no graph'}", ms, **more)
        if graph and size.name != "S3" and (gate, dtype) == ("topk", "bfloat16"):
            try:
                ms, waited = from_store(run, rows, size.tokens, steps)
            except ImportError as error:
                click.echo(f"no store: {error}")
            else:
                more = {"tokens_per_s": round(size.tokens / ms * 1e3), "waiting": round(waited, 4)}
                bench.add(size.name, "step, topk, bfloat16, from a store", ms, **more)
        del run


def measure_group(bench: Bench, size: Size, steps: int) -> None:
    """A step in a process group of one rank, without a graph as in any group: the same weights, and what the calls cost."""
    rows = torch.randn(8 * size.tokens, size.d, device=bench.device) + 1.0
    backend = "NCCL" if bench.device.type == "cuda" else "gloo"
    for gate in ("topk", "batchtopk"):
        dictionary = {"d_in": size.d, "d_sae": size.f, "act_fn": gate, "top_k": size.k}
        ms, alone, off = beside_none(bench.device, rows, dictionary, size.tokens, steps)
        more = {"without_group_ms": round(alone, 4), "times": round(ms / alone, 3), "weights_apart": off}
        bench.add(size.name, f"step, {gate}, {backend}, one rank", ms, **more)


def measure_sparsify(bench: Bench, size: Size, steps: int) -> None:
    """A step of eai-sparsify on the same card, where it is installed."""
    rows = torch.randn(8 * size.tokens, size.d, device=bench.device) + 1.0
    try:
        ms = sparsify_ms(rows, size.f, size.k, size.tokens, steps)
    except ImportError as error:
        click.echo(f"no sparsify: {error}")
        return
    bench.add(size.name, "step, sparsify", ms, tokens_per_s=round(size.tokens / ms * 1e3))


def measure_generation(bench: Bench, small: bool) -> None:
    """A language model of Pythia-160M's shape, random weights, bfloat16, to the end of layer 6."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from pipeline.lm.loading import load_language_model

    width, context, n_contexts = (64, 16, 2) if small else (768, 1024, 32)
    config = GPTNeoXConfig(
        hidden_size=width, num_hidden_layers=12, num_attention_heads=12 if not small else 4, intermediate_size=4 * width,
        vocab_size=50304 if not small else 100, max_position_embeddings=2048,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        GPTNeoXForCausalLM(config).save_pretrained(directory)
        wanted = ["blocks.5.hook_resid_post"]
        model = load_language_model(directory, dtype="bfloat16", device=bench.device, hook_points=wanted)
        ids = torch.randint(0, config.vocab_size, (n_contexts, context), device=bench.device)
        ms = bench.time(lambda: model.activations(ids, wanted), graph=False)
    layers = 6 * (24 * width**2 + 4 * width * context / 2)
    floor = bench.limits.floor(0, ids.numel() * layers)
    bench.add("160M", "generation to layer 6", ms, floor, tokens_per_s=round(ids.numel() / ms * 1e3))


def about(device: torch.device) -> dict[str, Any]:
    """What this ran on."""
    card = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU, kernels interpreted"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "card": card,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# benchmarks.gpu", "", ", ".join(f"{key} {value}" for key, value in found["about"].items()), ""]
    lines += [f"{len(found['checks'])} checks, no fault.", ""]
    lines += ["| size | what | ms | floor ms | share | |", "|---|---|---|---|---|---|"]
    for row in found["rows"]:
        more = ", ".join(f"{k} {v:,}" for k, v in row.items() if k not in ("size", "what", "ms", "floor_ms", "share"))
        floor = f"{row.get('floor_ms', '')} | {row.get('share', '')}"
        lines.append(f"| {row['size']} | {row['what']} | {row['ms']:.3f} | {floor} | {more} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--small", is_flag=True, help="Small sizes; the only ones without a GPU.")
@click.option("--rounds", default=20, show_default=True, help="Timed repetitions.")
@click.option("--output", type=click.Path(path_type=Path), help="Written with .json and .md; without a GPU: nothing.")
@click.option(
    "--part", type=click.Choice(PARTS), multiple=True, help="This part alone; nothing is written unless --output says."
)
@click.option("--seconds", default=400.0, show_default=True, help="On a GPU no further part is begun after so long.")
def main(small: bool, rounds: int, output: Path | None, part: tuple[str, ...], seconds: float) -> None:
    """Check, time, write."""
    start = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        output = output or (None if part else RESULTS)
    else:
        seconds = math.inf
    if device.type == "cpu" and not small:
        raise click.UsageError("there is no GPU; --small with TRITON_INTERPRET=1 runs everything at small sizes")
    bench = Bench(device, rounds)
    checks, faults = [], []
    wanted = () if part else (check_kernels, check_dictionaries, check_entries, check_graph, check_reading)
    for name, fault in itertools.chain.from_iterable(check(device) for check in wanted):
        checks.append(name)
        if fault is not None:
            faults.append(f"{name}: {fault}")
            click.echo(faults[-1])
    click.echo(f"{len(checks)} checks, {len(faults)} faults, {time.monotonic() - start:.0f} s")
    found: dict[str, Any] = {"about": about(device), "checks": checks, "faults": faults, "rows": bench.rows}
    sizes = (SMALL,) if small else (S1, S3)
    gates = ("topk", "batchtopk", "jumprelu")
    parts: list[tuple[str, Callable[[], None]]] = [("limits", lambda: measure_limits(bench, small))]
    parts += [("steps", lambda size=size: measure_steps(bench, size)) for size in sizes]  # type: ignore[misc]
    parts += [("kernels", lambda size=size: measure_kernels(bench, size)) for size in sizes]  # type: ignore[misc]
    parts.append(("generation", lambda: measure_generation(bench, small)))
    steps, dtypes = (2, 100)[not small], ("bfloat16", "float32")
    parts.append(("training", lambda: measure_training(bench, sizes[0], gates, dtypes, steps)))
    parts.append(("group", lambda: measure_group(bench, sizes[0], steps)))
    parts.append(("crossover", lambda: measure_crossover(bench, small)))
    parts.append(("sparsify", lambda: measure_sparsify(bench, sizes[0], steps)))
    if not small:
        parts.append(("training", lambda: measure_training(bench, S3, ("topk", "batchtopk"), ("bfloat16",), 20)))
    for name, measure in parts if not faults else []:
        if (not part or name in part) and time.monotonic() - start < seconds:
            try:
                measure()
            except (RuntimeError, DataError, ImportError) as error:  # out of memory, say: the other parts go on
                faults.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
                click.echo(faults[-1])
    found["seconds"] = round(time.monotonic() - start)
    if not faults:
        click.echo(table(found))
    if output is not None:
        output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        if not faults:
            output.with_suffix(".md").write_text(table(found))
    click.echo(f"{found['seconds']} s" + ("" if output is None else f", written to {output}.json"))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
