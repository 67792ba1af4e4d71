"""inspect: the features that are active on a text of one's own, and steering.

Reads data/inference/<name>/ (of a sweep <name>/<member>/), the model, and data/norms.json (for a dictionary with its run-time
norm). Writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.command import stage_command
from pipeline.interrupts import interruption


@stage_command
@click.option("--text", help="The text.")
@click.option("--file", type=click.Path(path_type=Path), help="A file with the text.")
@click.option("--top", type=click.IntRange(1), default=4, help="Features of a token, and tokens of a feature.")
@click.option("--feature", "features", multiple=True, help="Show the tokens of this feature (with layers: LAYER/FEATURE).")
@click.option("--steer", help="Add this feature at every token, and show what the model does.")
@click.option("--strength", type=float, help="Activation that is added; without it, twice the feature's largest on the text.")
@click.option("--continue", "n_tokens", type=click.IntRange(1), default=40, help="Tokens that the model writes after the text.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, help="0: always the likeliest token.")
@click.option("--seed", type=int, default=0, help="Of what is drawn at a temperature above 0.")
@click.option("--alias", help="Model whose residual stream is meant, of `models` in the parameters; without it the main one.")
@click.option("--member", help="Of a sweep: the member whose dictionary is meant.")
@click.option("--inference", type=click.Path(path_type=Path), default="data/inference", help="Inference dictionaries.")
@click.option("--norms", default="data/norms.json", help="Activation norms.")
@interruption("interrupted")
def main(params: str, text: str | None, file: Path | None, inference: Path, norms: str, **options: Any) -> None:
    """Show the strongest features of each token of a text; or a feature's tokens; or steer with a feature."""
    from pipeline.analysis.terminal import Continuation, print_inspection, read_text
    from pipeline.dictionaries.places import chosen, dictionary_places
    from pipeline.params.loader import load_params

    loaded = load_params(params)
    member = chosen(options["member"], loaded.members, "the run")
    print_inspection(
        loaded.members[member],
        read_text(text, file),
        dictionary=dictionary_places(loaded, inference)[member],
        norms=norms,
        top=options["top"],
        features=options["features"],
        steered=options["steer"],
        strength=options["strength"],
        continuation=Continuation(options["n_tokens"], options["temperature"], options["seed"]),
        alias=options["alias"],
    )


if __name__ == "__main__":
    main()
