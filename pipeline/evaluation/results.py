"""What the evaluation of a run leaves: metrics and plots as files, of a sweep of all members, and figures in tracked runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dictionaries.store import read_config
from pipeline.evaluation.compared_runs import PLOTS, log_comparison
from pipeline.evaluation.headline import headline, member_headlines, note
from pipeline.evaluation.massive import massive_line
from pipeline.evaluation.members import about_members
from pipeline.evaluation.plots import write_plots
from pipeline.evaluation.sweep_plots import write_sweep_plots
from pipeline.files import write_json
from pipeline.tracking.opening import open_tracker
from pipeline.words import of_members

if TYPE_CHECKING:
    from pipeline.evaluation.measured import Evaluation
    from pipeline.params.schema import Params


def write_results(
    params: Params,
    evaluations: Mapping[str, Evaluation],
    places: Mapping[str, Path],
    *,
    out: str | Path,
    plots: str | Path,
    norms: str | Path,
    statistics: str | Path,
) -> None:
    """Write the metrics, of a sweep {member: metrics}, and the directory of plots.

    Args:
        params: of the run.
        evaluations, places: of each member, or of "", and where its dictionary is.
        out, plots: what is written.
        norms, statistics: what the norm stage wrote.
    """
    if params.sweep is None:
        write_json(out, evaluations[""].metrics)
        write_plots(plots, evaluations[""], places[""], norms=norms, statistics=statistics)
    else:
        write_json(out, {name: evaluation.metrics for name, evaluation in evaluations.items()})
        write_sweep_plots(plots, params, evaluations, places, norms=norms, statistics=statistics)


def notices(evaluations: Mapping[str, Evaluation], places: Mapping[str, Path]) -> list[str]:
    """How many tokens are excluded, a line for all dictionaries of which it is true, and what was not measured."""
    lines = list(dict.fromkeys(evaluation.said for evaluation in evaluations.values() if evaluation.said))
    excluded: dict[str, list[str]] = {
        name: [str(massive_line(one.metrics, read_config(places[name]).norms))] if one.metrics["excluded_tokens"] else []
        for name, one in evaluations.items()
    }
    return lines + of_members(excluded)


def log_results(
    params: Params,
    evaluations: Mapping[str, Evaluation],
    places: Mapping[str, Path],
    *,
    run: str | Path,
    out: str | Path,
    plots: str | Path,
) -> None:
    """Log to the run what was written; of a sweep each member's figures to its own run, inside that of the sweep, which has
    what tells members apart.

    Args:
        run: file with the ids of the runs.
        params, evaluations, places, out, plots: as of :func:`write_results`.
    """
    members = []
    for name, evaluation in evaluations.items():
        own, config = evaluation.metrics, read_config(places[name])
        with open_tracker(params.tracking, stage="evaluate", run_file=Path(run), member=name) as tracker:
            members.append(tracker.run_id)
            tracker.log_metrics({**own, **headline(own)})
            tracker.log_model_metrics(headline(own))
            tracker.describe(note(config.to_dict(), own, layers=config.layers))
            tracker.log_artifact(Path(plots) / name, PLOTS)
            if not name:
                tracker.log_artifact(out, "metrics")
                log_comparison(tracker, members)
    if params.sweep is not None:
        with open_tracker(params.tracking, stage="evaluate", run_file=Path(run)) as tracker:
            metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
            tracker.log_metrics(member_headlines(metrics))
            known = {name: {**own, **_training(places[name])} for name, own in metrics.items()}
            documents = {name: evaluation.documents for name, evaluation in evaluations.items()}
            line, text = about_members(params, known, documents)
            tracker.set_tags({"differs": line})
            tracker.describe(text)
            tracker.log_artifact(out, "metrics")
            log_comparison(tracker, members)
            tracker.log_artifact(plots, PLOTS)


def _training(place: Path) -> dict[str, Any]:
    """Figures of metrics/train.json that a dictionary carries along: tokens that it was trained on, and the learning rate."""
    training = read_config(place).provenance.get("training", {})
    figures = {"tokens": training.get("tokens"), "learning_rate": training.get("trainer", {}).get("lr")}
    return {key: value for key, value in figures.items() if value is not None}
