"""What `stages.sparse_probing` does: choose labelled texts, run model and dictionary over them, probe, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.loading import load_for_analysis
from pipeline.corpus.document import held_out
from pipeline.errors import ParamsError
from pipeline.files import write_json
from pipeline.suites.labelled_texts import LabelledSet, chosen_texts, of_data_set, of_demo, of_file
from pipeline.suites.pooled import pooled_examples
from pipeline.suites.probing import LEAST_EXAMPLES, Examples, probe
from pipeline.tracking.opening import open_tracker

if TYPE_CHECKING:
    from pipeline.params.schema import Params

STAGE = "sparse_probing"
DEMO = "package of the embedded corpus"


@dataclass(frozen=True)
class Texts:
    """Where labelled texts are from.

    Attributes:
        file: of JSON lines; None: none is given.
        data_set: name on the hub, or a directory in its form; None: none is given. With neither: the embedded corpus.
        config_name, split, revision: of the data set.
        text_field, label_field: names of the columns.
        per_label: so many texts of each label at most.
    """

    file: Path | None = None
    data_set: str | None = None
    config_name: str | None = None
    split: str = "train"
    revision: str | None = None
    text_field: str = "text"
    label_field: str = "label"
    per_label: int = 500

    def read(self, params: Params, least: int) -> LabelledSet:
        """The texts; a label with fewer than `least` is left out.

        Raises:
            ParamsError: a file and a data set.
            DataError: they cannot be read, or hold fewer than two labels.
        """
        if self.file is not None and self.data_set is not None:
            raise ParamsError("labelled texts: give --texts or --data-set, got both")
        fields = {"text_field": self.text_field, "label_field": self.label_field}
        if self.file is not None:
            return chosen_texts(of_file(self.file, **fields), str(self.file), self.per_label, least)
        if self.data_set is not None:
            found = of_data_set(self.data_set, self.config_name, self.split, self.revision, **fields)
            return chosen_texts(found, f"{self.data_set} ({self.label_field})", self.per_label, least)
        dataset = params.dataset
        own = of_demo(params.demo.text_packages, dataset.eval_fraction, dataset.split_seed)
        return chosen_texts(own, DEMO, self.per_label, least)


@dataclass(frozen=True)
class Probing:
    """How it is probed.

    Attributes:
        ks: numbers of features.
        contexts: of each text, at most.
        test_fraction: expected share of the texts that probes are tested on.
        seed: of the split.
    """

    ks: tuple[int, ...] = (1, 2, 5)
    contexts: int = 2
    test_fraction: float = 0.25
    seed: int = 0


def sparse_probing(
    params: Params, dictionary: Path, texts: LabelledSet, how: Probing, *, norms: str | Path, progress: bool = True
) -> dict[str, float]:
    """Probe the features of a dictionary directory.

    All contexts of a text, and equal texts, are on one side of the split.

    Args:
        params: sections model, models, activations.context_size and evaluation.batch_contexts are used.
        dictionary: directory.
        texts: labelled.
        how: it is probed.
        norms: norms.json, of a dictionary that is not folded.
        progress: show a line on standard error.

    Returns: as of :func:`pipeline.suites.probing.probe`, and `labels`, `texts`, `train_examples`, `test_examples`.

    Raises:
        DataError: something is missing, or there is too little text.
    """
    loaded = load_for_analysis(params, dictionary, norms=norms)
    pooled = pooled_examples(
        [each.text for each in texts.texts],
        loaded.dictionary,
        loaded.models,
        norms=loaded.norms,
        context_size=params.activations.context_size,
        prepend_bos=params.model.prepend_bos,
        contexts_per_text=how.contexts,
        batch_contexts=params.evaluation.batch_contexts,
        progress=progress,
    )
    labels = np.array([each.label for each in texts.texts])[pooled.text]
    sides = np.array([held_out(each.digest, how.test_fraction, how.seed) for each in texts.texts])
    examples = Examples(pooled.activations, pooled.features, labels, sides[pooled.text])
    found = probe(examples, how.ks)
    n_test = int(examples.test.sum())
    counts = {"labels": len(texts.labels), "texts": len(texts.texts), "train_examples": len(labels) - n_test}
    return {**{name: float(value) for name, value in {**counts, "test_examples": n_test}.items()}, **found}


def run(params: Params, dictionary: Path, member: str, texts: Texts, how: Probing, **files: str | Path) -> list[str]:
    """Probe, write the figures and log them; lines for a terminal.

    Args:
        params: of the run.
        dictionary: directory.
        member: of the sweep; "" without one.
        texts, how: see there.
        files: `norms`, `out` and `run`: norms.json, the metrics to write, and the run file.
    """
    chosen = texts.read(params, least=round(LEAST_EXAMPLES / min(how.test_fraction, 1 - how.test_fraction)))
    metrics = sparse_probing(params, dictionary, chosen, how, norms=files["norms"])
    about = {"task": chosen.name, "label_names": chosen.labels, "k": list(how.ks), "seed": how.seed}
    write_json(files["out"], {**about, **metrics})
    with open_tracker(params.tracking, stage=STAGE, run_file=files["run"], member=member) as tracker:
        tracker.log_metrics(metrics)
        tracker.set_tags({f"{STAGE}.task": chosen.name})
        tracker.log_artifact(files["out"], "metrics")
    return [*chosen.lines, *table(metrics, chosen, how.ks)]


def table(metrics: Mapping[str, Any], texts: LabelledSet, ks: Sequence[int]) -> list[str]:
    """The means over labels, in lines."""
    counts = {name: int(metrics[name]) for name in ("train_examples", "test_examples")}
    head = f"{texts.name}: {', '.join(texts.labels[:8])}{', ...' if len(texts.labels) > 8 else ''}"
    lines = [f"{head}; {counts['train_examples']:,} training and {counts['test_examples']:,} test examples"]
    lines.append(f"{'balanced accuracy':<24}" + "".join(f"{f'k = {k}':>8}" for k in ks))
    for prefix, name in (("", "features"), ("pca_", "principal directions"), ("channel_", "channels")):
        lines.append(f"{name:<24}" + "".join(f"{metrics[f'{prefix}accuracy_k{k}']:>8.3f}" for k in ks))
    return [*lines, f"{'all channels (dense)':<24}{metrics['dense_accuracy']:>8.3f}"]
