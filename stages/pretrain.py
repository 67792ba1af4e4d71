"""pretrain: installed packages' documentation -> data/demo/model, the embedded default's small language model.

No stage of dvc.yaml: the model is in git, and every run takes it from there. Reads no data file. Writes data/demo/model
(Hugging Face form), with its figures in pretraining.json. Goes on from its last resume point. Cost: about two minutes for each
million tokens on two cores.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import Output, stage_command


@stage_command
@click.option("--out", type=Output(directory=True), default="data/demo/model", help="Model directory to write.")
def main(params: str, out: str) -> None:
    """Train the embedded default's language model from scratch."""
    from pipeline.params.loader import load_params
    from pipeline.pretraining.pretrain import pretrain

    pretrain(load_params(params).demo, Path(out))


if __name__ == "__main__":
    main()
