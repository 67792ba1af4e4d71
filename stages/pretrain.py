"""pretrain (frozen): installed packages' documentation -> data/demo/model, the embedded default's small language model.

Reads no data file. Writes data/demo/model (Hugging Face form, committed) and metrics/pretrain.json. Goes on from its last
resume point. Cost: about two minutes for each million tokens on two cores. Run it with `dvc unfreeze pretrain`.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import Output, stage_command


@stage_command
@click.option("--out", type=Output(directory=True), default="data/demo/model", help="Model directory to write.")
@click.option("--metrics", type=Output(), default="metrics/pretrain.json", help="Figures to write.")
def main(params: str, out: str, metrics: str) -> None:
    """Train the embedded default's language model from scratch."""
    from pipeline.params.loader import load_params
    from pipeline.pretraining.pretrain import pretrain

    pretrain(load_params(params).demo, Path(out), Path(metrics))


if __name__ == "__main__":
    main()
