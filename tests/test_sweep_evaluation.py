"""A sweep's evaluation, analysis, report and pages, in a small project whose members were trained each by itself."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.analysis.analyze import Inputs, analyze
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.api import load_dictionary
from pipeline.errors import DataError
from pipeline.evaluation import kept_activations
from pipeline.evaluation.models import LanguageModels
from pipeline.metric_names import ordinary
from pipeline.params.loader import load_params
from pipeline.plots.experiment import Experiment, member_rows, read_experiment
from pipeline.plots.experiments import with_documents
from pipeline.plots.knee import LOSSES, knee_lines
from pipeline.tracking.tracker import Tracker
from tests.evaluated_sweep import LATE, MLP, SWEEP, Sweep, make_sweep
from tests.messages import says
from tests.project import Project


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Evaluated and analysed together."""
    made = make_sweep(tmp_path_factory.mktemp("sweep") / "project")
    for stage in ("evaluate", "analyze"):
        outcome = made.project.run(stage)
        if outcome.exception is not None:
            raise outcome.exception
        assert outcome.exit_code == 0, outcome.stderr
    return made


@pytest.fixture
def copied(sweep: Sweep, tmp_path: Path) -> Project:
    """A copy that a test may damage."""
    return sweep.project.copy(tmp_path / "project")


def fails(project: Project, stage: str, *useful: str, arguments: tuple[str, ...] = ()) -> None:
    outcome = project.run(stage, *arguments)
    assert outcome.exception is None
    assert outcome.exit_code == 2
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    says(line, *useful)


def test_each_member_has_the_metrics_that_it_has_alone(sweep: Sweep) -> None:
    """Of two hook points and another kind, number for number."""
    found = json.loads((sweep.project.path / "metrics/evaluation.json").read_text())
    assert found == sweep.alone
    assert len({one["fvu"] for one in found.values()}) == len(SWEEP)


@pytest.mark.parametrize("name", [*SWEEP])
def test_each_member_has_the_feature_store_that_it_has_alone(
    name: str, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, though a member is looked at on activations that were kept for it."""
    monkeypatch.chdir(sweep.project.path)
    params, place = load_params().members[name], Path("data/inference/main") / name
    analyze(params, Inputs(place, "data/tokens.zarr", "data/norms.json"), tmp_path / "alone")
    together = Path("data/features") / name
    files = [file.name for file in together.iterdir()]
    assert sorted(files) == sorted(file.name for file in (tmp_path / "alone").iterdir())
    for file in files:
        assert (together / file).read_bytes() == (tmp_path / "alone" / file).read_bytes(), file


def test_the_model_runs_once_for_members_with_the_same_hook_points(copied: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, ...]] = []
    given = LanguageModels.activations

    def counted(self: LanguageModels, tokens: Tensor, keys: Iterable[str]) -> dict[str, Tensor]:
        runs.append(tuple(keys))
        return given(self, tokens, runs[-1])

    monkeypatch.setattr(LanguageModels, "activations", counted)
    assert copied.run("analyze").exit_code == 0
    of_each = {hooks: runs.count(hooks) for hooks in runs}
    assert len(of_each) == 3  # k4 and k8 read the same
    (n_batches,) = set(of_each.values())
    monkeypatch.setattr(kept_activations.KeptActivations, "get", lambda self, tokens, key: None)
    runs.clear()
    assert copied.run("analyze").exit_code == 0
    assert len(runs) == 4 * n_batches


def test_plots_of_all_and_of_each(sweep: Sweep) -> None:
    folder = sweep.project.path / "metrics/plots/evaluation"
    pictures = {"feature_density.png", "activation_norm.png"}
    assert {path.name for path in folder.glob("*.png")} == {*pictures, "pareto_fvu.png", "pareto_delta_ce.png"}
    together = load_file(folder / "feature_density.safetensors")
    rows = json.loads((folder / "feature_density.json").read_text())
    page = (folder / "index.html").read_text()
    for name in SWEEP:
        assert {path.name for path in (folder / name).glob("*.png")} == pictures
        own = load_file(folder / name / "feature_density.safetensors")
        assert torch.equal(together[f"{name}/density"], own["density"])
        alone = json.loads((folder / name / "feature_density.json").read_text())
        assert [{k: v for k, v in row.items() if k != "member"} for row in rows if row["member"] == name] == alone
        assert f'href="{name}/index.html"' in page
    assert "top_k 8, trainer.lr 0.001" in page
    assert MLP[1] in (folder / "mlp/index.html").read_text()
    assert LATE not in (folder / "mlp/index.html").read_text()


def test_members_have_sums_of_the_same_documents_which_the_report_reads(sweep: Sweep, monkeypatch) -> None:
    """Those of each member where it is, and of no other figures than its own."""
    monkeypatch.chdir(sweep.project.path)
    figures = {f"{name}.{key}": value for name, one in sweep.alone.items() for key, value in one.items()}
    rows = member_rows(with_documents({"rev": "workspace", "Experiment": "s", **figures}))
    found = {row["Experiment"]: read_experiment(row) for row in rows}
    assert set(found) == {f"s/{name}" for name in SWEEP}
    kept = [e.documents.documents for e in found.values() if e is not None and e.documents is not None]
    assert len({each.digest for each in kept if each is not None}) == 1
    for label, loss in LOSSES.items():
        losses = loss.redrawn([e for e in found.values() if e is not None])
        assert losses is not None, label
        for at, name in enumerate(SWEEP):
            ends = [sweep.alone[name][f"{ordinary(sweep.alone[name], loss.field)}_{end}"] for end in ("low", "high")]
            assert np.quantile(losses[:, at], [0.025, 0.975]).tolist() == pytest.approx(ends, rel=1e-9)


def test_a_feature_store_and_pages_of_each(sweep: Sweep) -> None:
    features, dashboard = (sweep.project.path / "data" / name for name in ("features", "dashboard"))
    assert {path.name for path in features.iterdir()} == set(SWEEP)
    assert {path.name for path in dashboard.iterdir()} == {*SWEEP, "index.html"}
    for name in SWEEP:
        assert FeatureStore(features / name).about["name"] == f"main-{name}"
        assert '<nav><a href="../index.html">Members</a>' in (dashboard / name / "index.html").read_text()
        assert "../index.html" not in (dashboard / name / "single.html").read_text()
    overviews = {name: json.loads((dashboard / name / "data/overview.json").read_text()) for name in SWEEP}
    charts = {name: "".join(overviews[name]["charts"]) for name in SWEEP}
    assert [charts[name].count("<h2>Activation norm") for name in SWEEP] == [1, 1, 1, 2]  # of its own hook points
    assert dict(overviews["late"]["figures"])["L0 (held out)"] == sweep.alone["late"]["l0_mean"]
    assert not list((sweep.project.path / "data/checkpoints").glob("analysis-*"))


def test_the_first_page_has_the_members_and_leads_to_their_pages(sweep: Sweep) -> None:
    place = sweep.project.path / "data/dashboard"
    page = (place / "index.html").read_text()
    rows = re.findall(r"<tr>(<td>.*?)</tr>", page, re.DOTALL)
    assert [re.search(r"<b>(.*?)</b>", row)[1] for row in rows] == list(SWEEP)  # type: ignore[index]
    assert "as the run" in rows[0]
    assert "top_k 8, trainer.lr 0.001" in rows[1]
    links = [link.split("#")[0] for link in re.findall(r'href="([^"#:]+[^":]*)"', page)]
    assert {f"{name}/{file}" for name in SWEEP for file in ("index.html", "single.html")} < set(links)
    assert all((place / link).is_file() for link in links)
    assert page.count("<svg") == 6  # L0 against both losses: of the whole page's members, and of those at each hook point
    assert page.count("<script") == 1  # of the colours
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_stopped_analysis_goes_on_and_runs_the_model_for_the_rest_alone(copied: Project, monkeypatch) -> None:
    """Stopped at the third member, what the first two found is there; nothing is half written."""
    from pipeline.analysis.collection import Collection
    from pipeline.errors import Interrupted

    before = {path: path.read_bytes() for path in (copied.path / "data/dashboard").rglob("*") if path.is_file()}
    seen: list[str] = []
    collect = Collection.collect

    def counted(self: Collection, batch: object) -> object:
        name = self.raw.dictionary.config.name
        if name == "main-late" and "stopped" not in seen:
            seen.append("stopped")
            raise Interrupted("stopped")
        seen.append(name)
        return collect(self, batch)

    monkeypatch.setattr(Collection, "collect", counted)
    assert copied.run("analyze").exit_code == 130
    assert set(seen) == {"main-k4", "main-k8", "stopped"}
    assert {path: path.read_bytes() for path in before} == before
    seen[:] = ["stopped"]
    outcome = copied.run("analyze")
    assert (outcome.exit_code, outcome.exception) == (0, None)
    assert set(seen) == {"main-late", "main-mlp", "stopped"}
    assert {path: path.read_bytes() for path in before} == before


def test_faults_of_places(copied: Project) -> None:
    inference = copied.path / "data/inference/main"
    shutil.move(inference / "k8", inference.parent / "k8")
    fails(copied, "evaluate", "data/inference/main", "member k8", "k4, late, mlp", "`dvc repro`")
    fails(copied, "analyze", "data/inference/main", "member k8", "`dvc repro`")
    copied.set(sweep=None)
    fails(copied, "evaluate", "data/inference/main", "members k4, late, mlp", "sweep", "`dvc repro`")
    shutil.rmtree(inference)
    shutil.move(inference.parent / "k8", inference)
    assert copied.run("evaluate").exit_code == 0
    single = (copied.path / "metrics/evaluation.json").read_text()
    copied.set(sweep={"k8": {}})
    fails(copied, "evaluate", "data/inference/main", "one dictionary", "sweep k8", "`dvc repro`")
    inference.rename(inference.parent / "k8")
    (inference / "k8").parent.mkdir()
    shutil.move(inference.parent / "k8", inference / "k8")
    fails(copied, "analyze", "metrics/evaluation.json", "one dictionary", "sweep", "k8", "`dvc repro evaluate`")
    (copied.path / "metrics/evaluation.json").write_text(json.dumps({"other": json.loads(single)}))
    fails(copied, "analyze", "metrics/evaluation.json", "k8", "other", "`dvc repro evaluate`")


def test_a_metrics_file_of_a_sweep_is_not_that_of_one(copied: Project) -> None:
    inference = copied.path / "data/inference/main"
    shutil.move(inference / "k4", inference.parent / "k4")
    shutil.rmtree(inference)
    shutil.move(inference.parent / "k4", inference)
    copied.set(sweep=None)
    fails(copied, "analyze", "metrics/evaluation.json", "sweep", "k4, k8, late, mlp", "`dvc repro evaluate`")


def test_a_damaged_member_is_named(copied: Project) -> None:
    (copied.path / "data/inference/main/late/config.json").write_text("{")
    fails(copied, "evaluate", "sweep.late:", "config.json")


def test_the_folder_of_a_sweep_is_no_dictionary(sweep: Sweep) -> None:
    place = sweep.project.path / "data/inference/main"
    with pytest.raises(DataError) as error:
        load_dictionary(place)
    says(str(error.value), str(place), "k4, k8, late, mlp", "sweep", str(place / "k4"))
    assert load_dictionary(place / "k8").config.top_k == 8


def test_inspect_wants_a_member(copied: Project) -> None:
    text = ("--text", "the cat sat on the mat")
    fails(copied, "inspect", "--member", "k4, k8, late, mlp", arguments=text)
    fails(copied, "inspect", "--member", "'k9'", "'k8'", arguments=(*text, "--member", "k9"))
    assert copied.run("inspect", *text, "--member", "late").exit_code == 0
    copied.set(sweep=None)
    fails(copied, "inspect", "--member k4", "without a sweep", arguments=(*text, "--member", "k4"))


class Recorded(Tracker):
    """What a tracker was given."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.tags: dict[str, str] = {}
        self.artifacts: list[tuple[str, str]] = []

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log_metrics(self, values: dict[str, float]) -> None:
        self.metrics |= values

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def describe(self, text: str) -> None:
        self.note = text

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        assert Path(path).exists(), path
        self.artifacts.append((Path(path).as_posix(), folder))


def test_each_member_has_a_run_of_its_own_and_the_sweep_one_that_compares_them(copied: Project, monkeypatch) -> None:
    runs: dict[tuple[str, str], Recorded] = {}

    def opened(params: object, *, stage: str, run_file: Path, member: str = "") -> Recorded:
        assert run_file == Path("data/run.json")
        return runs.setdefault((stage, member), Recorded())

    seen: list[Experiment] = []
    monkeypatch.setattr("pipeline.evaluation.members.knee_lines", lambda own: (seen.extend(own), knee_lines(own))[1])
    monkeypatch.setattr("pipeline.evaluation.results.open_tracker", opened)
    monkeypatch.setattr("pipeline.dashboard.run.open_tracker", opened)
    for stage in ("evaluate", "analyze"):
        outcome = copied.run(stage)
        assert (outcome.exit_code, outcome.exception) == (0, None), outcome.stderr
    assert set(runs) == {(stage, member) for stage in ("evaluate", "analyze") for member in ("", *SWEEP)}
    metrics = json.loads((copied.path / "metrics/evaluation.json").read_text())
    for name, own in metrics.items():
        of_member = runs["evaluate", name]
        assert of_member.metrics.items() >= own.items()
        assert f"main-{name}" in of_member.note
        assert of_member.artifacts == [(f"metrics/plots/evaluation/{name}", "plots/evaluation")]
        assert runs["analyze", name].artifacts == [(f"data/dashboard/{name}/single.html", "dashboard")]
        assert runs["evaluate", ""].metrics[f"{name}/delta CE"] == float(f"{own['delta_ce']:.4g}")
    whole = runs["evaluate", ""]
    assert whole.tags["differs"].startswith("sweep of 4: k4, k8, late, mlp; knee: not said of 2 different L0s")
    for name, own in metrics.items():
        says(whole.note, f"| {name} |", f"{own['delta_ce']:.4f}")
    assert {e.name for e in seen} == set(SWEEP)
    assert len({e.documents.documents.digest for e in seen if e.documents and e.documents.documents}) == 1
    assert all(e.documents for e in seen)
    together = runs["evaluate", ""].artifacts
    assert together == [("metrics/evaluation.json", "metrics"), ("metrics/plots/evaluation", "plots/evaluation")]
    assert runs["analyze", ""].artifacts == [("data/dashboard/index.html", "dashboard")]
