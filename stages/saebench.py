"""saebench: SAEBench's own evaluations of the inference dictionary, in an environment of their own.

Reads data/inference/<name>/ (of a sweep <name>/<member>/), data/tokens.zarr and the model. Writes the object, logs and results
to data/saebench, metrics/saebench.json, and logs to the run of data/run.json. Cost: what SAEBench takes; core minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.command import Output, stage_command


@stage_command
@click.option("--environment", is_flag=True, help="Print how to make SAEBench's environment, and its requirements.")
@click.option("--requirements", is_flag=True, help="Print the requirements alone, for pip.")
@click.option("--python", type=click.Path(path_type=Path), default=".venv-saebench/bin/python", help="Of that environment.")
@click.option("--eval", "evaluations", multiple=True, default=("core",), help="core, sparse_probing, ...; may be repeated.")
@click.option("--text", help="Hub data set that core and autointerp read.  [default: the held-out contexts of the run]")
@click.option("--model", help="Name that TransformerLens knows, or a directory.  [default: the run's own]")
@click.option("--device", help="Of the evaluations.  [default: cuda if there is one]")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", help="Of them too.")
@click.option("--reconstruction-batches", type=click.IntRange(1), default=200, help="Of core; fewer if the text ends.")
@click.option("--sparsity-batches", type=click.IntRange(1), default=2000, help="Of core; fewer if the text ends.")
@click.option("--batch-prompts", type=click.IntRange(1), default=16, help="Contexts in a batch of core.")
@click.option("--llm-batch-size", type=click.IntRange(1), default=32, help="Contexts in a pass of the others.")
@click.option("--endpoint", help="Of autointerp: OpenAI-compatible server, such as http://localhost:8000/v1.")
@click.option("--api-key-variable", "key_variable", default="OPENAI_API_KEY", help="Variable with its key.")
@click.option("--n-latents", type=click.IntRange(1), help="Of autointerp.  [default: SAEBench's own]")
@click.option("--total-tokens", type=click.IntRange(1), help="Of autointerp.  [default: SAEBench's own]")
@click.option("--member", help="Of a sweep: the member whose dictionary is meant.")
@click.option("--inference", default="data/inference", help="Directory of the inference dictionaries.")
@click.option("--tokens", default="data/tokens.zarr", help="Token store.")
@click.option("--work", type=Output(directory=True, path_type=Path), default="data/saebench", help="Folder of its runs.")
@click.option("--out", type=Output(), default="metrics/saebench.json", help="Metrics to write.")
@click.option("--run", "run_file", default="data/run.json", help="The tracking run to go on with.")
def main(params: str, environment: bool, requirements: bool, evaluations: tuple[str, ...], **options: Any) -> None:
    """Run SAEBench's evaluations on the dictionary."""
    from pipeline.suites.saebench_stage import evaluate, printed

    for line in printed(environment, requirements) or evaluate(params, evaluations, options):
        click.echo(line)


if __name__ == "__main__":
    main()
