"""What `python -m stages.plan` estimates of each stage, beside what the stage then takes: processor seconds and peak memory.

Run it in a clean clone: it writes data/ and metrics/ there. Processor seconds (user and system) are compared rather than the
clock's, so that other programs on the machine matter little; the plan's stopwatch is set to them too. Threads: one.

    python -m benchmarks.sizing                     # the embedded default, 5 CPU minutes
    python -m benchmarks.sizing --larger            # a random model of 6 layers of width 256 on less text

Exit status 1: an estimate is off by more than FACTOR.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import yaml

from benchmarks.quality import machine
from pipeline.params.reading import read_mapping

FACTOR = 1.5
MODULES = {
    "tokenize": "tokenize_corpus",
    "generate": "generate_activations",
    "norm": "compute_norm",
    "initialize": "initialize",
    "train": "train",
    "fold": "fold_norm",
    "evaluate": "evaluate",
    "analyze": "analyze",
}
LARGER: dict[str, dict[str, Any]] = {
    "activations": {"total_tokens": 200_000, "model_batch_size": 32},
    "dictionary": {"hook_point_in": "blocks.4.hook_resid_post", "expansion_factor": 12, "top_k": 32},
    "trainer": {"total_training_tokens": 300_000},
    "analysis": {"tokens": 100_000},
    "norm": {"tokens": 65_536},
}


def estimate(params: Path) -> dict[str, tuple[float, int]]:
    """{stage: (processor seconds, bytes at most)} by the plan's own measurement, in this process."""
    from pipeline.params.loader import load_params
    from pipeline.planning import measuring
    from pipeline.planning.run import Run
    from pipeline.planning.stages import BY_NAME, peak_bytes
    from pipeline.planning.text import sample_text
    from pipeline.planning.timing import Stopwatch

    def seconds(self: Stopwatch) -> float:
        return time.process_time() - self._processor

    Stopwatch.seconds = seconds  # type: ignore[method-assign]
    before = measuring.beginning()
    loaded = load_params(params)
    run = Run.of(loaded)
    rates = measuring.measure(run, sample_text(loaded, run.sources.main), before)
    return {name: (BY_NAME[name].seconds(run, rates), peak_bytes(run, BY_NAME[name], rates)) for name in MODULES}


def taken(name: str, params: Path) -> tuple[float, int]:
    """(Processor seconds, bytes at most) of a stage.

    Raises:
        ClickException: it did not end well.
    """
    command = [sys.executable, "-m", f"stages.{MODULES[name]}", "--params", str(params)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"stages.{MODULES[name]} exited {process.returncode}: {said[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def larger_model(folder: Path) -> Path:
    """A random GPT-NeoX of 6 layers of width 256 with the embedded default's tokenizer."""
    import torch
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    from pipeline.lm.quiet import quiet

    torch.manual_seed(0)
    with quiet():
        AutoTokenizer.from_pretrained("data/demo/model").save_pretrained(folder)
        config = GPTNeoXConfig(
            vocab_size=4096,
            hidden_size=256,
            num_hidden_layers=6,
            num_attention_heads=8,
            intermediate_size=1024,
            max_position_embeddings=256,
            bos_token_id=0,
            eos_token_id=0,
        )
        GPTNeoXForCausalLM(config).save_pretrained(folder)
    return folder


def written(folder: Path, larger: bool) -> Path:
    """The parameter file of the run."""
    values = read_mapping("params.yaml")
    if larger:
        values["model"]["model_name"] = str(larger_model(folder / "model"))
        for section, own in LARGER.items():
            values[section] |= own
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


@click.command()
@click.option("--larger", is_flag=True, help="A larger model on less text.")
@click.option("--only-estimate", type=click.Path(path_type=Path), help="Print the estimates of a parameter file as JSON.")
def main(larger: bool, only_estimate: Path | None) -> None:
    """Estimate, run, compare."""
    if only_estimate is not None:
        click.echo(json.dumps(estimate(only_estimate)))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        params = written(Path(folder), larger)
        command = [sys.executable, "-m", "benchmarks.sizing", "--only-estimate", str(params)]
        planned = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        click.echo(f"`{' '.join(['python -m benchmarks.sizing', *sys.argv[1:]])}` on {machine()}, one thread")
        click.echo(
            "| stage | s estimated | taken | ratio | MB estimated | taken | ratio |\n|---|---:|---:|---:|---:|---:|---:|"
        )
        off = []
        for name, wanted in planned.items():
            found = taken(name, params)
            cells = []
            for guess, real, form, unit in zip(wanted, found, ("{:.1f}", "{:.0f}"), (1.0, 1e6), strict=True):
                cells += [form.format(guess / unit), form.format(real / unit), f"{guess / real:.2f}"]
                if not 1 / FACTOR <= guess / real <= FACTOR:
                    off.append(f"{name}: {cells[-1]}")
            click.echo(f"| {name} | {' | '.join(cells)} |")
    if off:
        click.echo(f"off by more than {FACTOR:g}: {'; '.join(off)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
