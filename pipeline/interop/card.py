"""The model card of exported dictionaries: README.md as the hub reads it, its metadata in YAML before the text.

Figures come from metrics/evaluation.json, what was trained from the dictionary's provenance and the parameters. What is not
known is left out; the licence is the one that was declared.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.corpus.sources import DEMO
from pipeline.dashboard.training_rows import training_rows
from pipeline.errors import DataError
from pipeline.evaluation.compared import compared
from pipeline.evaluation.headline import note
from pipeline.files import local_path
from pipeline.interop.interface import Loading, interchange_format
from pipeline.interop.licence import Licence
from pipeline.metric_names import ordinary
from pipeline.plots.charts import number
from pipeline.plots.training_report import describe
from pipeline.provenance import section, source_revision

if TYPE_CHECKING:
    from pipeline.params.schema import Params

NAME, MARK = "README.md", "scopeline"
PARAMS, EVALUATION = "params.yaml", "evaluation.json"
ELSEWHERE = "user/repository"  # for a repository that is not named yet
_KINDS = {
    "sae": "sparse-autoencoder", "transcoder": "transcoder", "clt": "cross-layer-transcoder", "crosscoder": "crosscoder",
    "lorsa": "low-rank-sparse-attention",
}  # fmt: skip
_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Described:
    """One exported dictionary, or a set that lies in one directory.

    Attributes:
        member: of a sweep; "": there is none.
        folder: of its files in the repository; "": the repository itself.
        configs: config.json of each dictionary.
        about: what the exported files say of the model.
        files: names of what Scopeline loads, relative to the folder; "": the folder.
        metrics: of the evaluation; None: it was not evaluated.
    """

    member: str
    folder: str
    configs: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any]
    files: Sequence[str] = ("",)
    metrics: Mapping[str, Any] | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the first dictionary."""
        return self.configs[0]


def model_card(
    described: Sequence[Described],
    params: Params,
    format: str,
    *,
    repository: str | None,
    licence: Licence | None,
    languages: Sequence[str] = (),
    attached: Sequence[str] = (),
) -> str:
    """The card's text.

    Args:
        described: the dictionaries; of a sweep each member's.
        params: of the run, for the text that they were trained on.
        format: of the exported files.
        repository: user/repository; None: not known yet.
        licence: as declared; None: none was.
        languages: of the text, as declared.
        attached: files beside the card.

    Raises:
        DataError: metrics that are no evaluation of a dictionary.
    """
    metadata = _metadata(described, params, format, licence, languages)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        *_introduction(described, format),
        "## Figures",
        *_figures(described),
        "## Training",
        *_training(described, params, attached),
        "## Loading",
        *_loading(described, format, repository),
        "## Licence",
        "No licence was declared." if licence is None else licence.sentence(),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(
    described: Sequence[Described], params: Params, format: str, licence: Licence | None, languages: Sequence[str]
) -> dict[str, Any]:
    trained = any(section(section(each.config, "provenance"), "training") for each in described)
    texts = _texts(params) if trained else []
    kinds = dict.fromkeys(_KINDS.get(str(config.get("kind")), "") for each in described for config in each.configs)
    known = languages or (["en"] if texts == [DEMO] else [])
    found = {
        **(licence.metadata() if licence else {}),
        "language": list(known),
        "library_name": interchange_format(format).library,
        "tags": [*filter(None, kinds), "mechanistic-interpretability", MARK, *([format] if format != MARK else [])],
        "base_model": list(dict.fromkeys(filter(None, map(_base_model, described)))),
        "datasets": [text for text in texts if is_hub_id(text)],
    }
    return {key: value for key, value in found.items() if value}


def _texts(params: Params) -> list[str]:
    dataset = params.dataset
    sources = [dataset] if dataset.sources is None else list(dataset.sources.values())
    return [source.dataset_name_or_path for source in sources]


def _base_model(each: Described) -> str | None:
    """The hub id of the model: a commit of it is known, or it has the form of one and is nothing local."""
    name = each.about.get("model_name")
    if not isinstance(name, str):
        return None
    return name if each.about.get("model_revision") or is_hub_id(name) else None


def is_hub_id(name: str) -> bool:
    """Whether a name has the form user/repository, and no file or directory is called so."""
    return bool(_ID.fullmatch(name)) and local_path(name) is None


def _introduction(described: Sequence[Described], format: str) -> list[str]:
    model = described[0].about.get("model_name")
    if len(described) == 1:
        title, said = describe(described[0].config, model), f"A dictionary of features in the format `{format}`"
        if len(described[0].configs) > 1:
            hooks = ", ".join(_hooks(config) for config in described[0].configs)
            title, said = f"{len(described[0].configs)} dictionaries of {model}", f"A set in the format `{format}`: {hooks}"
    else:
        title = f"{len(described)} dictionaries of {model}"
        said = f"The members of a sweep in the format `{format}`, one folder each"
    return [
        f"# {title}",
        f"{said}, on raw activations: norms are folded into the weights. Before it was put here, a pass of that format over "
        "the files was compared with the dictionary that was trained.",
    ]


def _figures(described: Sequence[Described]) -> list[str]:
    """The table of one dictionary, or one row of each member."""
    try:
        if len(described) == 1:
            return _one(described[0])
        return _several(described)
    except (KeyError, TypeError) as error:
        raise DataError(f"evaluation: no figure {error} of a dictionary; run `python -m stages.evaluate` anew") from None


def _one(each: Described) -> list[str]:
    if each.metrics is None:
        return ["It was not evaluated."]
    table = note(each.config, each.metrics).split("\n", 2)[2]
    return [
        "On held-out text, with 95 % intervals over documents, beside the principal directions of the same number (PCA), the "
        "mean, and zeros in the reconstruction's place.",
        table,
        f"All figures are in `{EVALUATION}`. FVU: squared error over variance. Delta cross entropy: what the model loses a "
        "token with the reconstruction in the activation's place. Dead: active on no evaluated token.",
    ]


def _several(described: Sequence[Described]) -> list[str]:
    head = ["member", "folder", "", "L0", "FVU (95 %)", "PCA", "delta cross entropy, nats (95 %)", "PCA", "mean", "dead"]
    rows = [head, ["---", "---", "---", *["---:"] * 7]]
    for each in described:
        row = [each.member, f"`{each.folder}`", describe(each.config)]
        rows.append([*row, *(_row(each.metrics) if each.metrics else ["not evaluated", *[""] * 6])])
    return [
        "On held-out text, with 95 % intervals over documents. Beside FVU (squared error over variance) and delta cross "
        "entropy (what the model loses a token): the same of as many principal directions (PCA), and of the mean.",
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
    ]


def _row(metrics: Mapping[str, Any]) -> list[str]:
    fvu, delta = compared(metrics)[:2]
    l0, dead = (metrics[ordinary(metrics, name)] for name in ("l0_mean", "dead_fraction"))
    shown = []
    for figure in (fvu, delta):
        ends = f" ({number(figure.interval[0])} to {number(figure.interval[1])})" if figure.interval else ""
        shown += [number(figure.value) + ends, "" if figure.pca is None else number(figure.pca)]
    return [number(l0), *shown, "" if delta.mean is None else number(delta.mean), f"{100 * dead:.2f} %"]


def _training(described: Sequence[Described], params: Params, attached: Sequence[str]) -> list[str]:
    parts = []
    if PARAMS in attached:
        parts.append(f"All parameters are in `{PARAMS}`, without the section `tracking`.")
    for each in described:
        for config in each.configs:
            title = [f"### {each.member}"] if each.member else []
            rows = _rows(config, each.about, params)
            parts += [*title, "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])]
    return parts


def _rows(config: Mapping[str, Any], about: Mapping[str, Any], params: Params) -> list[tuple[str, Any]]:
    """What is known of the making, name and value."""
    provenance = section(config, "provenance")
    training, imported = section(provenance, "training"), section(provenance, "imported")
    revision = about.get("model_revision")
    model = f"{about.get('model_name')}" + (f", revision {revision}" if revision else "")
    act = f"{config.get('act_fn')}" + (f", k {config['top_k']}" if config.get("top_k") else "")
    before = section(provenance, "fold").get("act_fn_before")
    rows = [
        ("model", model),
        ("hook points", _hooks(config)),
        ("kind", config.get("kind")),
        ("act_fn", act + (f" (trained as {before})" if before and before != config.get("act_fn") else "")),
    ]
    if imported:
        rows.append(("taken over from", _origin(imported)))
    if training:
        rows += [("losses", _losses(section(training, "trainer"))), *((str(a), b) for a, b in training_rows(config, params))]
        rows.append(("seeds of the text", _seeds(params)))
        commit, dirty = source_revision()
        if commit:
            rows.append(("commit of Scopeline that exported it", commit + (", with changes" if dirty else "")))
    return [(name, _shown(value)) for name, value in rows if value is not None]


def _shown(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else number(value) if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _hooks(config: Mapping[str, Any]) -> str:
    """`read` or `read -> written`."""
    sides = []
    for side in ("in", "out"):
        several = config.get(f"hook_points_{side}")
        sides.append(", ".join(several) if isinstance(several, Sequence) else str(config.get(f"hook_point_{side}")))
    return sides[0] if sides[1] in (sides[0], "None") else f"{sides[0]} -> {sides[1]}"


def _origin(imported: Mapping[str, Any]) -> str:
    if "repository" not in imported:
        return f"files in the format {imported.get('format')}, digest {imported.get('digest')}"
    folder = f"/{imported['folder']}" if imported.get("folder") else ""
    return f"{imported['repository']}{folder}, commit {imported.get('revision')} ({imported.get('format')})"


def _losses(trainer: Mapping[str, Any]) -> str:
    """The terms of the training loss."""
    terms = ["reconstruction (squared error)"]
    if trainer.get("sparsity_loss_type"):
        terms.append(f"{trainer['sparsity_loss_type']} times {trainer.get('l1_coefficient')}")
    terms += [
        f"{name} times {trainer[key]}"
        for name, key in (("lp", "lp_coefficient"), ("auxk", "auxk_coefficient"), ("model loss", "model_loss"))
        if trainer.get(key)
    ]
    if trainer.get("matryoshka_widths"):
        terms.append(f"reconstructions of the first {', '.join(map(str, trainer['matryoshka_widths']))} features")
    return ", ".join(terms)


def _seeds(params: Params) -> str:
    dataset, rows = params.dataset, params.activations.buffer_shuffle.perm_seed
    return f"order of documents {dataset.shuffle_seed}, held-out split {dataset.split_seed}, order of rows {rows}"


def _loading(described: Sequence[Described], format: str, repository: str | None) -> list[str]:
    """Code for each tool, of one member: the others differ in the folder."""
    first, where = described[0], repository or ELSEWHERE
    names = [posixpath.join(first.folder, file).rstrip("/") for file in first.files]
    load = "\n".join(f'dictionary = load_dictionary("hf:{"/".join(filter(None, (where, name)))}")' for name in names)
    code = {"Scopeline": f"from pipeline.api import load_dictionary\n\n{load}"}
    place = Loading(where, first.folder, str(first.config.get("kind")), first.about)
    code |= interchange_format(format).loading(place)
    parts = [f"{tool}:\n\n```python\n{lines}\n```" for tool, lines in code.items()]
    if repository is None:
        parts.insert(0, f"`{ELSEWHERE}` stands for the repository that this folder is uploaded to.")
    if len(described) > 1:
        parts.append(f"These load the member {first.member}; of the others the folder is another.")
    return parts


def is_ours(text: str) -> bool:
    """Whether a README.md is a card that was written here."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return match is not None and f"\n- {MARK}\n" in f"\n{match[1]}\n"
