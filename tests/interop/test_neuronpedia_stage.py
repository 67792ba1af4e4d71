"""What the pipeline itself has analysed, exported by the one command."""

from __future__ import annotations

import gzip
import json

import pyarrow.parquet as pq

from tests.interop.neuronpedia_site import objection
from tests.project import Project


def test_the_features_of_a_run(project: Project) -> None:
    outcome = project.run("export", "--format", "neuronpedia")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    place, source = project.path / "data/export/neuronpedia/main", "0-scopeline-main"
    features = pq.read_table(project.path / "data/features/features.parquet").to_pylist()
    contexts = pq.read_table(project.path / "data/features/contexts.parquet").to_pylist()
    packed = (place / "bulk/model" / source / "features/batch-0.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
    assert [(row["index"], row["frac_nonzero"]) for row in rows] == [(str(row["feature"]), row["density"]) for row in features]
    assert [sum(row["freq_hist_data_bar_heights"]) for row in rows] == [row["active_tokens"] for row in features]
    sent = []
    for path in sorted((place / "upload" / source).iterdir()):
        batch = json.loads(path.read_bytes())
        assert objection(batch) is None
        sent += batch["features"]
    assert sorted(each["index"] for each in sent) == [row["feature"] for row in features if row["active_tokens"]]
    shown = sum(len(each["activations"]) for each in sent)
    assert shown == sum(row["band"] != "inactive" for row in contexts) > 0
    note = json.loads((place / "bulk/model" / source / "source.jsonl").read_text())["notes"]
    assert f"fvu {json.loads((project.path / 'metrics/evaluation.json').read_text())['fvu']:.4g}" in note
