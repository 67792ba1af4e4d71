"""The comparison of experiments: what is read of them, which no other beats, how they are shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plots.charts import Group, Point, ScatterChart, axes, axis_labels
from pipeline.plots.comparison import LEGEND, markdown, table, tables
from pipeline.plots.experiment import DOCUMENTS, Experiment, distinct, member_rows, read_experiment, told_apart, why_apart
from pipeline.plots.experiments import experiment_rows, with_documents
from pipeline.plots.knee import RULES
from pipeline.plots.page import page
from pipeline.plots.pareto import front, pareto_charts
from pipeline.plots.png import png
from pipeline.plots.svg import PLANE_HEIGHT
from tests.messages import says
from tests.project import REPOSITORY

ROW = {"Experiment": "wide", "rev": "1a2b3c4", "l0_mean": 24.0, "fvu": 0.1, "delta_ce": 0.2, "dead_fraction": 0.01}
PARAMS = {"model.model_name": "demo", "dictionary.kind": "sae", "dictionary.act_fn": "topk", "dictionary.top_k": 24}
LABEL = 6.7  # of a picture's height that a character of an upright label takes, in the largest letters of a page


def made(name: str, l0: float, fvu: float, delta_ce: float = 0.1, site: str = "demo, blocks.2") -> Experiment:
    return Experiment(name, site, "sae topk 24", l0, fvu, delta_ce, 0.0)


@pytest.mark.parametrize(
    ("fields", "site"),
    [
        ({"dictionary.hook_point_in": "a", "dictionary.hook_point_out": "None"}, "demo, a"),
        ({"dictionary.hook_point_in": "a", "dictionary.hook_point_out": "b"}, "demo, b"),
        ({"dictionary.hook_point_in": "None", "dictionary.hook_points_in": "['a', 'b']"}, "demo, a, b"),
        ({"dictionary.hook_points_in": ["a", "b"], "dictionary.hook_points_out": ["c", "d", "e"]}, "demo, c to e (3)"),
        ({}, "demo, ?"),
    ],
)
def test_a_row_of_dvc(fields: dict[str, object], site: str) -> None:
    found = read_experiment({**ROW, **PARAMS, **fields})
    wanted = Experiment("wide", site, "sae topk 24", 24.0, 0.1, 0.2, 0.01)
    assert found is not None
    assert found._replace(stated=()) == wanted._replace(
        revision="default revision", data="unknown text", gate="sae topk", kind="sae"
    )


def test_figures_without_massive_tokens_come_first() -> None:
    """An evaluation of before has none of them, and DVC gives nothing, or a dash, in their place."""
    apart = {"l0_mean_ordinary": 20.0, "fvu_ordinary": 0.25, "dead_fraction_ordinary": 0.5, "pca_fvu_ordinary": 0.75}
    found = read_experiment({**ROW, **PARAMS, "pca_fvu": 0.3, **apart})
    assert found is not None
    assert (found.l0, found.fvu, found.delta_ce, found.dead, found.pca_fvu) == (20.0, 0.25, 0.2, 0.5, 0.75)
    for nothing in (None, "-", ""):
        before = read_experiment({**ROW, **PARAMS, "pca_fvu": 0.3, **dict.fromkeys(apart, nothing)})
        assert before is not None
        assert (before.l0, before.fvu, before.dead, before.pca_fvu) == (24.0, 0.1, 0.01, 0.3)


def test_tokens_trained_are_the_same_of_a_member_and_alone() -> None:
    """A row of DVC has None for the key that another row's figure has."""
    stated = {"trainer.total_training_tokens": 400000.0, "metrics/generate.json:tokens": 7.0}
    alone = {**ROW, **PARAMS, **stated, "metrics/train.json:tokens": 397799.0, "k8.tokens": None}
    member = {f"k8.{key}": value for key, value in ROW.items() if key not in ("Experiment", "rev")}
    sweep = {"Experiment": "s", **PARAMS, **stated, **member, "metrics/train.json:tokens": None, "k8.tokens": 397799.0}
    several = {key: value for key, value in sweep.items() if key != "k8.tokens"} | {"metrics/train.json:k8.tokens": 397799.0}
    for row in (alone, sweep, several):
        (found,) = [e for each in member_rows(row) if (e := read_experiment(each))]
        assert found.trained == 397799.0


def test_why_runs_are_in_several_groups_is_said() -> None:
    own = [made("sae", 32, 0.1), made("k8", 8, 0.2), made("k32", 32, 0.1), made("other", 8, 0.1, site="demo, blocks.3")]
    tokens = ("10,227 held-out tokens", *["4,086 held-out tokens"] * 3)
    experiments = [e._replace(evaluated=each) for e, each in zip(own, tokens, strict=True)]
    (line,) = why_apart(experiments)
    says(line, "demo, blocks.2", "evaluation.tokens", "10,227 held-out tokens (sae)", "4,086 held-out tokens (k8, k32)")
    assert "other" not in line
    assert why_apart(experiments[1:]) == []


def test_rows_without_an_evaluation_and_repeated_ones() -> None:
    assert read_experiment({**ROW, **PARAMS, "fvu": "None"}) is None
    assert read_experiment({"rev": "workspace"}) is None
    wide, workspace, main = made("wide", 24, 0.1), made("workspace", 24, 0.1), made("main", 12, 0.2)
    assert distinct([workspace, main, wide]) == ([wide, main], [])
    assert distinct([wide, workspace]) == ([wide], [])
    shown, (line,) = distinct([wide._replace(name="again"), wide, main])
    assert [e.name for e in shown] == ["again", "main"]
    assert line == "wide has the figures of again throughout: it is shown as again alone"


def test_no_point_lies_on_the_right_edge() -> None:
    """TopK's L0 is a round number, as ticks are."""
    for l0 in (8.0, 10.0, 64.0, 100.0):
        x, _ = axes(pareto_charts([made("a", l0, 0.1), made("b", l0 / 2, 0.2)])[0])
        assert x.share(l0) < 0.99


def test_axes_are_logarithmic_and_their_labels_fit() -> None:
    for chart in pareto_charts([made("a", 8.0, 0.1), made("b", 4.0, 0.2)]):
        _, label = axis_labels(chart)
        assert label.endswith(", log scale")
        assert len(label) * LABEL <= PLANE_HEIGHT, label
    assert not pareto_charts([made("a", 0.0, 0.1), made("b", 4.0, 0.2)])[0].x_log  # a dictionary that is dead


def test_members_of_a_sweep_are_experiments_of_their_own() -> None:
    """As DVC gives the rows of a sweep and of a single run beside each other: each has "None" for what the other has."""
    sweep = {
        "Experiment": None, "rev": "workspace", "sweep": "None", **dict.fromkeys(ROW.keys() - {"Experiment", "rev"}, "None"), **PARAMS,
        "dictionary.hook_point_in": "a", "sweep.k1.6.dictionary.top_k": 16.0, "sweep.k1.6.trainer.lr": 0.0002,
        "sweep.both.dictionary.hook_points_in": "['a', 'b']", "sweep.both.dictionary.kind": "crosscoder",
    }  # fmt: skip
    for name, l0 in (("k1.6", 16.0), ("base", 24.0), ("both", 20.0)):
        sweep |= {f"{name}.{key}": value for key, value in {**ROW, "l0_mean": l0}.items() if key not in ("Experiment", "rev")}
        sweep[f"{name}.fvu_ordinary"] = l0 / 100
        sweep[f"{name}.fvu.blocks.0.hook_mlp_out"] = 7.0
    single = {**dict.fromkeys(sweep, "None"), **ROW, **PARAMS, "dictionary.hook_point_in": "a"}
    assert member_rows(single) == [single]
    experiments = told_apart([e for row in (single, sweep) for each in member_rows(row) if (e := read_experiment(each))])
    assert [(e.name, e.site, e.about, e.l0, e.fvu, e.differs) for e in experiments] == [
        ("wide", "demo, a", "sae topk 24", 24.0, 0.1, ""),
        ("workspace/k1.6", "demo, a", "sae topk 16", 16.0, 0.16, "top_k 16, trainer.lr 0.0002"),
        ("workspace/base", "demo, a", "sae topk 24", 24.0, 0.24, ""),
        ("workspace/both", "demo, a, b", "crosscoder topk 24", 20.0, 0.2, "hook_points_in ['a', 'b'], kind crosscoder"),
    ]
    lines = table(experiments)
    assert lines[1].endswith("differs in")
    assert next(line for line in lines if "k1.6" in line).endswith("top_k 16, trainer.lr 0.0002")
    fvu = pareto_charts(experiments)[0]
    assert fvu.groups[0].front == (Point(16.0, 0.16, "workspace/k1.6"), Point(24.0, 0.1, "wide"))
    again = [e._replace(name=e.name.replace("workspace", "exp-1")) for e in experiments]
    assert [e.name for e in distinct([*experiments, *again])[0]] == ["wide", "exp-1/k1.6", "exp-1/base", "exp-1/both"]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12))
def test_the_front_is_what_no_other_beats(values: list[tuple[int, int]]) -> None:
    experiments = [made(str(i), l0, fvu) for i, (l0, fvu) in enumerate(values)]
    found = front(experiments, lambda e: e.fvu)
    better = [
        e
        for e in experiments
        if not any(o.l0 <= e.l0 and o.fvu <= e.fvu and (o.l0 < e.l0 or o.fvu < e.fvu) for o in experiments)
    ]
    assert {(e.l0, e.fvu) for e in found} == {(e.l0, e.fvu) for e in better}
    assert len(found) == len(better)  # those that are equal in both, too
    assert [e.l0 for e in found] == sorted(e.l0 for e in found)


def test_table_and_charts_keep_sites_apart() -> None:
    experiments = [made("b", 32, 0.2), made("a", 16, 0.1, 0.3), made("c", 8, 0.9, site="other")]
    lines = table(experiments)
    first = ["demo,", "experiment", "a", "b", "knee:", "a", "a", "other", "experiment", "c"]
    assert [line.split()[0] for line in lines if line][:10] == first
    meanings = lines[-len(LEGEND) - len(RULES) :]
    assert [line.split("  ")[0] for line in meanings] == [*LEGEND, *RULES]  # each column in a line
    assert set(lines[1].replace("95 %", "95_%").replace("delta CE", "delta_CE").split()[2:]) <= {
        name.replace(" ", "_") for name in LEGEND
    }
    assert "0.1000*" in lines[2]
    assert "0.2000 " in lines[3]
    assert "0.1000*" in lines[3]  # of delta CE
    assert "0.9000*" in lines[10]  # alone in its group
    fvu, delta, *other = pareto_charts(experiments)
    assert [fvu.title, other[0].title] == ["L0 and FVU: demo, blocks.2", "L0 and FVU: other"]
    assert [[group.label for group in chart.groups] for chart in (fvu, *other)] == [["demo, blocks.2"], ["other"], ["other"]]
    assert fvu.groups[0].front == (Point(16, 0.1, "a"),)
    assert delta.groups[0].front == (Point(16, 0.3, "a"), Point(32, 0.1, "b"))
    assert len({chart.name for chart in (fvu, delta, *other)}) == 4
    assert {chart.name.split(".")[0] for chart in (fvu, delta, *other)} == {"pareto_fvu", "pareto_delta_ce"}
    assert [(each.title, [row.name for row in each.rows]) for each in tables(experiments)] == [
        ("demo, blocks.2", ["a", "b"]), ("other", ["c"]), ("Columns", [])
    ]  # fmt: skip


def test_runs_evaluated_on_other_tokens_are_not_compared_and_what_differs_is_said() -> None:
    rows = [
        {**ROW, **PARAMS, "Experiment": name, "fvu": fvu, "evaluated_tokens": tokens, "trainer.amp_dtype": dtype}
        for name, fvu, tokens, dtype in (("a", 0.1, 1000, "float32"), ("b", 0.2, 1000, "bfloat16"), ("c", 0.3, 9000, "float32"))
    ]
    found = told_apart([e for row in rows if (e := read_experiment(row)) is not None])
    assert [e.site for e in found] == [
        "demo, ?, 1,000 held-out tokens", "demo, ?, 1,000 held-out tokens", "demo, ?, 9,000 held-out tokens"
    ]  # fmt: skip
    assert [e.differs for e in found] == ["trainer.amp_dtype float32", "trainer.amp_dtype bfloat16", ""]
    assert [line.split()[0] for line in table(found) if "*" in line] == [
        "a",
        "b",
        "c",
        "*",
    ]  # b is equal to a in L0 and delta CE
    equal = [found[0], found[0]._replace(name="again", delta_ce=found[0].delta_ce + 1.0)]
    assert [line.count("*") for line in table(equal)[2:4]] == [2, 1]  # both have the asterisk of FVU
    alone = told_apart([e for row in rows[:1] if (e := read_experiment(row)) is not None])
    assert table(alone)[0] == "demo, ?, 1,000 held-out tokens"
    counted = {**rows[0], "evaluated_documents": 5.0, "evaluated_files": 5.0}
    told = told_apart([e for row in (counted, rows[1]) if (e := read_experiment(row)) is not None])
    assert len({e.site for e in told}) == 1  # one from before documents were counted stays beside the others
    assert table(told)[0] == "demo, ?, 1,000 held-out tokens of 5 text files"
    assert any("95 % intervals are rough" in line for line in table(told))
    assert not any("rough" in line for line in table(alone))
    assert any("rough" in point for point in tables(told)[0].points)
    assert any("rough" in line for line in markdown(told))


def test_tokens_trained_seed_learning_rate_and_intervals_have_columns() -> None:
    """`tokens` is in two files of metrics, so that DVC writes the file before it; of a training without figures the parameters."""
    measured = {
        "metrics/train.json:tokens": 1998848,
        "metrics/generate.json:tokens": 7,
        "learning_rate": 0.00254631784,
        "seed": 3,
    }
    ends = {
        "fvu_ordinary": 0.125,
        "fvu_ordinary_low": 0.12,
        "fvu_ordinary_high": 0.13,
        "delta_ce_low": 0.19,
        "delta_ce_high": 0.21,
    }
    stated = {"trainer.lr": "auto", "trainer.total_training_tokens": 2000000}
    found = read_experiment({**ROW, **PARAMS, **measured, **ends, **stated})
    assert found is not None
    assert (found.trained, found.lr, found.seed) == (1998848.0, "0.00255", "3")
    assert (found.fvu_interval, found.delta_ce_interval) == ((0.12, 0.13), (0.19, 0.21))
    says(table([found])[2], "0.1200 to 0.1300", "0.1900 to 0.2100", "0.00255", "1.999M")
    before = read_experiment({**ROW, **PARAMS, **stated, "fvu_low": 0.1})
    assert before is not None
    assert (before.trained, before.lr, before.seed, before.fvu_interval) == (2000000.0, "auto", "", None)


def test_of_many_differences_the_first_are_named() -> None:
    rows = [
        {**ROW, **PARAMS, "Experiment": name, **{f"dictionary.key{i}": value for i in range(9)}} for name, value in ("a1", "b2")
    ]
    found = told_apart([e for row in rows if (e := read_experiment(row)) is not None])
    assert found[1].differs == "key0 2, key1 2, key2 2, key3 2 and 5 more"


def test_other_text_and_another_revision_of_the_model_are_other_sites() -> None:
    rows = [{**ROW, **PARAMS, "Experiment": name, "model.revision": revision, "dataset.dataset_name_or_path": text}
            for name, revision, text in (("a", "None", "demo"), ("b", "step1000", "demo"), ("c", "None", "pile"))]  # fmt: skip
    found = told_apart([e for row in rows if (e := read_experiment(row)) is not None])
    assert [e.site for e in found] == [
        "demo, ?, default revision, demo",
        "demo, ?, step1000, demo",
        "demo, ?, default revision, pile",
    ]
    same = told_apart([e for row in rows[:1] if (e := read_experiment(row)) is not None])
    assert [e.site for e in same] == ["demo, ?"]


def test_other_weights_of_sources_are_other_sites() -> None:
    chat = {"dataset.sources.chat.dataset_name_or_path": "chats", "dataset.sources.chat.messages_field": "turns"}
    rows = [
        {
            **ROW,
            **PARAMS,
            "Experiment": name,
            "dataset.dataset_name_or_path": "demo",
            **chat,
            "dataset.sources.chat.weight": weight,
        }
        for name, weight in (("a", 1.0), ("b", 3.0))
    ]
    found = told_apart([e for row in rows if (e := read_experiment(row)) is not None])
    for experiment, weight in zip(found, (1.0, 3.0), strict=True):
        says(experiment.site, "chat.dataset_name_or_path chats", "chat.messages_field turns", f"chat.weight {weight}")
    assert len({e.site for e in found}) == 2


def test_the_documented_columns_of_dvc_exp_show_are_those_of_single_runs_and_of_members() -> None:
    """DVC keeps a column whose name the pattern matches from its beginning on."""
    text = (REPOSITORY / "docs" / "experiments.md").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"dvc exp show .* --keep '([^']*)'", text)
    wanted = ("fvu_ordinary", "l0_mean_ordinary", "delta_ce")
    columns = [*wanted, *(f"k16.{name}" for name in wanted), "Experiment", "dictionary.top_k"]
    others = ["fvu_ordinary_low", "k16.delta_ce_high", "fvu_ordinary.blocks.2", "sweep.k16.dictionary.top_k", "trainer.lr"]
    assert [name for name in [*columns, *others] if re.match(pattern, name)] == columns


def test_pca_is_in_the_charts_and_in_the_table() -> None:
    a, b, c = made("a", 72, 0.1), made("b", 72, 0.2), made("c", 8, 0.9)  # 72: three layers of 24
    experiments = [e._replace(pca_fvu=0.4, pca_delta_ce=1.4, pca_rank=24.0) for e in (a, b)] + [c]
    fvu, delta = pareto_charts(experiments)  # of one site
    assert fvu.groups[-1] == Group("PCA", (Point(24, 0.4, "PCA 24"),))
    assert delta.groups[-1].points == (Point(24, 1.4, "PCA 24"),)
    lines = table(experiments)
    assert lines[1].split()[6:] == ["FVU", "95", "%", "PCA", "delta", "CE", "95", "%", "PCA", "rank", "dead"]
    rows = [line.split() for line in lines[2:5]]
    assert [row[-6] for row in rows] == ["-", "0.4000", "0.4000"]
    assert [row[-2] for row in rows] == ["-", "24", "24"]
    assert max(len(fvu.y_label), len(delta.y_label)) <= 45  # what fits beside a chart
    assert fvu.x_label.endswith("; of PCA its rank")
    says(fvu.note, "PCA", "rank", "hook point")
    assert "PCA" not in pareto_charts([c])[0].note + pareto_charts([c])[0].x_label
    assert pareto_charts([c])[0].groups[-1].label != "PCA"


def test_scatter_charts_are_drawn() -> None:
    group = Group("one <b>", (Point(16, 0.1, "a & b"), Point(3, 0.4, "late")), (Point(3, 0.4, "late"), Point(16, 0.1, "a & b")))
    chart = ScatterChart("scatter", "Title", "x", "y", (group, Group("two", (Point(1, 2, "c"),))))
    x, y = axes(chart)
    assert (x.low, y.low) == (0, 0)
    assert x.high >= 16
    assert y.high >= 2
    text = page("All", "three", [chart])
    assert text.count("<circle") == 3
    assert "a &amp; b: 16, 0.1" in text
    assert "one &lt;b&gt;" in text
    assert png([chart])[:4] == b"\x89PNG"


def git(place: Path, *arguments: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(place)}
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *arguments], cwd=place, check=True, env=environment)


def report(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(place), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "stages.report", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment)


def test_a_project_without_experiments_says_so(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    alone = {"HOME": str(tmp_path), "DVC_NO_ANALYTICS": "true"}  # else it leaves a process behind that outlives the test
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=tmp_path, check=True, env=alone)
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "one")
    outcome = report(tmp_path)
    assert outcome.returncode == 2
    says(outcome.stderr, "error:", "no experiment", "`dvc repro`")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # DVC's own
def test_documents_of_a_revision_are_read_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each revision's own, in a repository of two; where the cache is gone there are none."""
    alone = {"HOME": str(tmp_path), "DVC_NO_ANALYTICS": "true", "PATH": os.environ["PATH"]}
    git(tmp_path, "init", "-q")

    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=tmp_path, check=True, env=alone, capture_output=True)

    dvc("init", "-q")
    place = tmp_path / "metrics/plots/evaluation"
    (place / "k8").mkdir(parents=True)
    for digest in ("first", "second"):
        for folder in (place, place / "k8"):
            (folder / "documents.json").write_text(f'{{"digest": "{digest} {folder.name}", "sums": {{}}}}')
        dvc("add", "-q", "metrics/plots/evaluation")
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "-m", digest)
        git(tmp_path, "tag", digest)
    monkeypatch.chdir(tmp_path)

    def of(rev: str, member: str = "") -> str | None:
        found = with_documents({"rev": rev})[DOCUMENTS](member).documents
        return None if found is None else found.digest

    assert [of(rev) for rev in ("workspace", "second", "first")] == [
        "second evaluation",
        "second evaluation",
        "first evaluation",
    ]
    assert [of(rev, "k8") for rev in ("workspace", "first")] == ["second k8", "first k8"]
    assert of("workspace", "k9") is of("first", "k9") is of("no-such") is None
    shutil.rmtree(tmp_path / ".dvc/cache")
    assert of("workspace") == "second evaluation"
    assert of("first") is of("main") is None


def test_outside_a_repository_it_says_where_to_go(tmp_path: Path) -> None:
    outcome = report(tmp_path)
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: ")
    says(line, "git repository", "`dvc init`")


def test_experiments_of_other_commits_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import dvc.api
    import dvc.repo

    class Repository:
        """Three experiments, one of the last commit."""

        experiments = property(lambda self: self)

        def __enter__(self) -> Repository:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ls(self, num: int = 1, all_commits: bool = False) -> dict[str, list[str]]:
            return {"new": ["a"], "old": ["b", "c"]} if all_commits else {"new": ["a"]}

    monkeypatch.setattr(dvc.repo, "Repo", Repository)
    monkeypatch.setattr(dvc.api, "exp_show", lambda num: [{"num": num}])
    monkeypatch.chdir(tmp_path)
    assert experiment_rows(1) == ([{"num": 1}], ["2 more experiments are of other commits: --commits -1 shows them too"])
    assert experiment_rows(-1) == ([{"num": -1}], [])
    rows = [{"rev": "workspace", "Experiment": None}, {"rev": "main", "Experiment": None}, {"rev": "1a2", "Experiment": "k8"}]
    monkeypatch.setattr(dvc.api, "exp_show", lambda num: rows)
    assert [row["Experiment"] for row in experiment_rows(1)[0]] == [None, "k8", "main (of the repository)"]
    lock = "stages:\n  train:\n    params:\n      params.yaml:\n        seed: 0\n        dictionary:\n          top_k: 8\n          eps: 1e-06\n          skip:\n"
    (tmp_path / "dvc.lock").write_text(lock)
    (tmp_path / "params.yaml").write_text("seed: 0\ndictionary:\n  top_k: 8\n  eps: 1.0e-6\n")
    assert len(experiment_rows(-1)[0]) == 3
    (tmp_path / "dvc.lock").write_text(f"{lock}  analyze:\n    params:\n      params.yaml:\n        seed: 1\n")  # it is at work
    assert len(experiment_rows(-1)[0]) == 3
    (tmp_path / "params.yaml").write_text("seed: 0\ndictionary:\n  top_k: 16\n  eps: 1.0e-6\n")  # a run is at work
    found, notes = experiment_rows(-1)
    assert [row["Experiment"] for row in found] == ["k8", "main (of the repository)"]
    says(*notes, "the working tree is left out")
