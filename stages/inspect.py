"""inspect: the features that are active on texts of one's own, steering, and features by a word. The model is loaded once.

Reads data/inference/<name>/, the model, norms.json (for a run-time norm), data/features, data/interpretations; writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.command import stage_command
from pipeline.interrupts import interruption


@stage_command
@click.option("--text", "given", multiple=True, help="A text; may be given several times.")
@click.option("--file", type=click.Path(path_type=Path), help="A file with the text.")
@click.option("--lines", is_flag=True, help="Each line of standard input is a text, answered at once.")
@click.option("--top", type=click.IntRange(1), default=4, help="Features of a token, and tokens of a feature.")
@click.option("--feature", "features", multiple=True, help="Show the tokens of this feature (with layers: LAYER/FEATURE).")
@click.option("--search", "word", help="Instead of a text: the features that fire on this word, from the feature store.")
@click.option("--steer", "steered", help="Add this feature at every token, and show what the model does.")
@click.option("--strength", type=float, help="Added activation; else the largest in data/features, or twice that on the text.")
@click.option("--continue", "n_tokens", type=click.IntRange(1), default=40, help="Tokens that the model writes after the text.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, help="0: always the likeliest token.")
@click.option("--seed", type=int, default=0, help="Of what is drawn at a temperature above 0.")
@click.option("--alias", help="Model whose residual stream is meant, of `models` in the parameters; without it the main one.")
@click.option("--member", help="Of a sweep: the member whose dictionary is meant.")
@click.option("--inference", type=click.Path(path_type=Path), default="data/inference", help="Inference dictionaries.")
@click.option("--norms", default="data/norms.json", help="Activation norms.")
@interruption("interrupted")
def main(params: str, inference: Path, norms: str, member: str | None, word: str | None, **options: Any) -> None:
    """Show the strongest features of each token of a text; or a feature's tokens; or those of a word; or steer with one."""
    from pipeline.analysis.search import print_search
    from pipeline.analysis.terminal import Continuation, print_inspections, texts_of
    from pipeline.dictionaries.places import chosen, dictionary_places
    from pipeline.params.loader import load_params
    from pipeline.planning.inspecting import begin_inspection

    loaded = load_params(params)
    part = chosen(member, loaded.members, "the run")
    known = (inference.parent / "features" / part, inference.parent / "interpretations" / part)
    if word is not None:
        return print_search(word, *known)
    options["texts"] = texts_of(*(options.pop(name) for name in ("given", "file", "lines")))
    begin_inspection(loaded.members[part], known[0])
    print_inspections(
        loaded.members[part],
        dictionary=dictionary_places(loaded, inference)[part],
        norms=norms,
        continuation=Continuation(*(options.pop(name) for name in ("n_tokens", "temperature", "seed"))),
        known=known,
        **options,
    )


if __name__ == "__main__":
    main()
