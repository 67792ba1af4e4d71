"""sparse_probing: how well few features tell labels of texts, beside principal directions, channels and all activations.

Reads data/inference/<name>/ (of a sweep <name>/<member>/), the model, and labelled texts: a file of JSON lines, a data set, or
without either the embedded corpus, whose label is the package that a text is from. Writes metrics/sparse_probing.json and logs
to the run of data/run.json. Cost: one run of the model over the texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.command import Output, stage_command
from pipeline.interrupts import interruption


@stage_command
@click.option("--texts", "file", type=click.Path(path_type=Path), help="JSON lines, each with a text and a label.")
@click.option("--data-set", help="Instead: a hub data set, or a directory in the hub's form.")
@click.option("--config-name", help="Its configuration.")
@click.option("--split", default="train", help="Its split.")
@click.option("--revision", help="Its branch, tag or commit.")
@click.option("--text-field", default="text", help="Column of the text.")
@click.option("--label-field", default="label", help="Column of the label.")
@click.option("--per-label", type=click.IntRange(1), default=500, help="Texts of each label, at most.")
@click.option("--contexts", type=click.IntRange(1), default=2, help="Contexts of each text, at most; each is an example.")
@click.option("--k", "ks", type=click.IntRange(1), multiple=True, default=(1, 2, 5), help="Features of a probe; repeated.")
@click.option("--test-fraction", type=click.FloatRange(0.05, 0.95), default=0.25, help="Share of the texts to test on.")
@click.option("--seed", type=int, default=0, help="Which texts these are.")
@click.option("--member", help="Of a sweep: the member whose dictionary is meant.")
@click.option("--inference", default="data/inference", help="Directory of the inference dictionaries.")
@click.option("--norms", default="data/norms.json", help="Activation norms.")
@click.option("--out", type=Output(), default="metrics/sparse_probing.json", help="Metrics to write.")
@click.option("--run", "run_file", default="data/run.json", help="The tracking run to go on with.")
@interruption("interrupted; run the same command again, it starts anew")
def main(params: str, member: str | None, inference: str, norms: str, out: str, run_file: str, **options: Any) -> None:
    """Probe for labels with k features, k principal directions, k channels and all of them."""
    from pipeline.dictionaries.places import chosen, dictionary_places
    from pipeline.params.loader import load_params
    from pipeline.suites.sparse_probing import Probing, Texts, run

    loaded = load_params(params)
    name = chosen(member, loaded.members, "the run")
    ks = tuple(dict.fromkeys(options.pop("ks")))
    how = Probing(ks, *(options.pop(key) for key in ("contexts", "test_fraction", "seed")))
    place = dictionary_places(loaded, inference)[name]
    for line in run(loaded.members[name], place, name, Texts(**options), how, norms=norms, out=out, run=run_file):
        click.echo(line)


if __name__ == "__main__":
    main()
