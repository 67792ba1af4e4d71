"""interpret: a language model explains features, and is scored on how well its explanations predict where they are active.

Reads data/features (of a sweep data/features/<member>). Writes data/interpretations (of a sweep <member>/ in it): a JSON file
for each feature, summary.json, and a dashboard with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.command import Output, stage_command


@stage_command
@click.option("--features-dir", type=click.Path(path_type=Path), default="data/features", help="The feature store.")
@click.option(
    "--out", type=Output(directory=True, path_type=Path), default="data/interpretations", help="Folder of the results."
)
@click.option("--member", help="Of a sweep: the member whose features are meant; results go to <out>/<member>.")
@click.option("--feature", "names", multiple=True, help="A feature (with layers: LAYER/FEATURE); may be repeated.")
@click.option("--n", type=click.IntRange(1), default=20, help="Without --feature: so many, of the largest energy.")
@click.option("--endpoint", help="OpenAI-compatible server, such as http://localhost:8000/v1.")
@click.option("--model", help="Name of the model at the endpoint.")
@click.option("--local", help="Instead of an endpoint: directory or hub id of a transformers model.")
@click.option(
    "--api-key-variable", default="OPENAI_API_KEY", help="Environment variable with the endpoint's key, if it needs one."
)
@click.option("--max-tokens", type=click.IntRange(1), default=1024, help="Most tokens of an answer.")
@click.option("--seed", type=int, default=0, help="Of the order of the examples, and sent with each request.")
@click.option("--force", is_flag=True, help="Interpret finished features again too.")
@click.option("--concurrency", type=click.IntRange(1), default=4, help="Features at a time, at an endpoint.")
def main(params: str, features_dir: Path, out: Path, member: str | None, max_tokens: int, seed: int, **options: Any) -> None:
    """Explain features with a language model, and score the explanations by detection and fuzzing."""
    from pipeline.analysis.feature_columns import FEATURES
    from pipeline.dictionaries.formats.interface import members_at
    from pipeline.dictionaries.places import chosen
    from pipeline.interpretation.interpret import Settings
    from pipeline.interpretation.terminal import Explainer, print_interpretations

    part = chosen(member, members_at(features_dir, FEATURES), str(features_dir))
    print_interpretations(
        features_dir / part,
        out / part,
        Explainer(*(options.pop(name) for name in ("endpoint", "model", "local", "api_key_variable"))),
        Settings(max_tokens=max_tokens, seed=seed),
        dashboard=features_dir.parent / "dashboard" / part,
        **options,
    )


if __name__ == "__main__":
    main()
