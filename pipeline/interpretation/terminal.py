"""What `stages.interpret` does: choose the chat model, interpret, print a table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.dashboard.folder import EXPLANATIONS, OVERVIEW, write_dashboard, write_explanations
from pipeline.errors import ParamsError
from pipeline.files import read_object
from pipeline.interpretation.chat import ChatModel
from pipeline.interpretation.endpoint import EndpointModel
from pipeline.interpretation.interpret import Settings, choose_features, interpret
from pipeline.interpretation.local import LocalModel


@dataclass(frozen=True)
class Explainer:
    """Which chat model.

    Attributes:
        endpoint, name: of a served one.
        local: directory or hub id of one on this machine.
        key_variable: environment variable of the endpoint's API key.
    """

    endpoint: str | None
    name: str | None
    local: str | None
    key_variable: str

    def check(self) -> None:
        """Refuse what is not one chat model.

        Raises:
            ParamsError: neither an endpoint nor a local model, both, or an endpoint without a model's name.
        """
        forms = "--endpoint http://localhost:8000/v1 --model NAME (any OpenAI-compatible server), or --local PATH_OR_HUB_ID"
        if (self.endpoint is None) == (self.local is None):
            got = "none" if self.local is None else "both an endpoint and a local model"
            raise ParamsError(f"interpreting needs one language model that explains, got {got}; give {forms}")
        if (self.endpoint is None) != (self.name is None):
            raise ParamsError(f"--endpoint and --model belong together, got one of them; give {forms}")


@contextlib.contextmanager
def chat_model(explainer: Explainer, settings: Settings) -> Iterator[ChatModel]:
    """The chat model; its connections are closed afterwards."""
    explainer.check()
    if explainer.local is not None:
        yield LocalModel(explainer.local, max_tokens=settings.max_tokens)
        return
    assert explainer.endpoint is not None
    assert explainer.name is not None
    model = EndpointModel(
        explainer.endpoint,
        explainer.name,
        key_variable=explainer.key_variable,
        seed=settings.seed,
        max_tokens=settings.max_tokens,
    )
    with contextlib.closing(model):
        yield model


def print_interpretations(
    features_dir: Path,
    out: Path,
    explainer: Explainer,
    settings: Settings,
    *,
    dashboard: Path,
    names: Sequence[str] = (),
    n: int = 20,
    force: bool = False,
    concurrency: int = 4,
) -> None:
    """Interpret features and print a line for each; if the store has a dashboard, write one with explanations too.

    Args:
        features_dir: the feature store.
        out: folder of the results.
        explainer: which chat model.
        settings: of the interpretation.
        dashboard: of the store, where it may be.
        names: of features; without any, the n of the largest energy.
        force: do finished features again too.
        concurrency: features at a time, of an endpoint; a local model does one at a time.

    Raises:
        ParamsError: no chat model was named.
        DataError: no feature store, or no such feature.
        ChatError: the chat model does not answer.
    """
    store = FeatureStore(features_dir)
    rows = choose_features(store, names, n)  # before a model is loaded
    with chat_model(explainer, settings) as model:
        threads = concurrency if explainer.local is None else 1
        summary = interpret(store, model, rows, out, settings, force=force, concurrency=threads)
    for line in table(summary, [row["name"] for row in rows]):
        click.echo(line)
    click.echo(f"\n{out / 'summary.json'}", err=True)
    write_explanations(out / EXPLANATIONS, store, summary["features"])
    shown = dashboard / "data" / OVERVIEW
    if shown.exists():
        about = read_object(shown, "the dashboard's overview", "run `dvc repro analyze`")
        write_dashboard(out / "dashboard", store, about, single=0, explanations=summary["features"])
        click.echo(f"{out / 'dashboard' / 'index.html'}", err=True)


def table(summary: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Lines: feature, detection, fuzzing, explanation; and the medians over these features of the summary."""
    found = [(name, summary["features"][name]) for name in names]
    width = max(7, *(len(name) for name in names))
    lines = [f"{'feature':<{width}}  detection  fuzzing  explanation"]
    for name, one in found:
        cells = f"{_cell(one['detection']):>9}  {_cell(one['fuzzing']):>7}"
        lines.append(f"{name:<{width}}  {cells}  {one['explanation'] or '(none)'}")
    medians = summary["median"]
    cells = f"{_cell(medians['detection']):>9}  {_cell(medians['fuzzing']):>7}"
    lines.append(f"{'median':<{width}}  {cells}  over {len(summary['features'])} features of {summary['model']}")
    return lines


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
