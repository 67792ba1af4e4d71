"""Several dictionaries from one pass: each has the bits of the same dictionary trained alone, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.dictionaries.store import load_dictionary, read_config
from pipeline.errors import DataError
from pipeline.metric_files import read_histories, read_history
from pipeline.params.loader import params_from_dict
from tests.messages import says
from tests.project import Project

EARLY, LATE = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
FIRST = ("generate_activations", "compute_norm", "initialize")
SWEEP: dict[str, dict[str, Any]] = {
    "k2": {"dictionary.top_k": 2},
    "k8": {"dictionary.top_k": 8, "initializer.seed": 3},
    "wide": {"dictionary.expansion_factor": 8, "trainer.gradient_accumulation_steps": 2},
    "late": {"dictionary.hook_point_in": LATE, "trainer.log_frequency": 24},
    "relu": {
        "dictionary.act_fn": "jumprelu",
        "trainer": {"target_l0": 4.0, "lr": 1e-3},
    },
    "mlp": {
        "dictionary": {
            "kind": "transcoder",
            "hook_point_in": "blocks.0.ln2.hook_normalized",
            "hook_point_out": "blocks.0.hook_mlp_out",
            "apply_b_dec_to_input": False,
        }
    },
}


def must(project: Project, *stages: str) -> str:
    """Run stages, each of which must succeed; what they said."""
    said = ""
    for stage in stages:
        outcome = project.run(stage)
        if outcome.exception is not None:
            raise outcome.exception
        assert outcome.exit_code == 0, outcome.stderr
        said += outcome.stderr
    return said


def alone(project: Project, member: str, path: Path) -> Project:
    """The same project, with the member as its one dictionary, trained by itself from its own store on."""
    of_member = params_from_dict(project.params).members[member]
    path.mkdir()
    for name in ("model", "text.jsonl", "metrics", "data/tokens.zarr"):
        source, target = project.path / name, path / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    single = Project(path, yaml.safe_load(yaml.safe_dump(of_member.to_dict()))).set()
    must(single, *FIRST, "train", "fold_norm")
    return single


def weights(place: Path) -> bytes:
    return (place / "weights.safetensors").read_bytes()


def all_weights(project: Project, names: Any = SWEEP) -> dict[str, bytes]:
    return {name: weights(project.path / "data" / "trained" / "main" / name) for name in names}


def checkpoints(project: Project) -> list[Path]:
    return sorted((project.path / "data" / "checkpoints").glob("*/about.json"))


@pytest.fixture(scope="module")
def sweep(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose sweep has been trained and folded; not to be changed."""
    project = finished_project.copy(tmp_path_factory.mktemp("sweep") / "project")
    shutil.rmtree(project.path / "data" / "checkpoints")
    project.set(sweep=SWEEP, activations__max_norm_factor=1.2)  # so low that other tokens are excluded at each hook point
    must(project, *FIRST, "train", "fold_norm")
    return project


@pytest.fixture
def changed(sweep: Project, tmp_path: Path) -> Project:
    """A copy to be changed, trained, its outputs and checkpoints still there."""
    return sweep.copy(tmp_path / "changed")


@pytest.fixture
def begun(changed: Project) -> Project:
    """A copy that is not trained yet; three members."""
    changed.set(sweep={name: SWEEP[name] for name in ("k2", "wide", "late")})
    must(changed, "initialize")
    shutil.rmtree(changed.path / "data" / "checkpoints")
    shutil.rmtree(changed.path / "data" / "trained")
    return changed


@pytest.mark.parametrize("member", SWEEP)
def test_each_member_is_the_same_trained_alone(sweep: Project, member: str, tmp_path: Path) -> None:
    """Another width, another kind, other hook points and gates: bit for bit, in a process that knows of no other member."""
    single = alone(sweep, member, tmp_path / member)
    for stage in ("initial", "trained", "inference"):
        own, beside = single.path / "data" / stage / f"main-{member}", sweep.path / "data" / stage / "main" / member
        assert weights(own) == weights(beside), stage
        assert read_config(beside).name == f"main-{member}"
    (about,) = checkpoints(single)
    assert about.parent.name in {place.parent.name for place in checkpoints(sweep)}
    assert json.loads((sweep.path / "metrics" / "fold.json").read_text())[member] == json.loads(
        (single.path / "metrics" / "fold.json").read_text()
    )
    figures = json.loads((sweep.path / "metrics" / "train.json").read_text())
    assert figures[member] == json.loads((single.path / "metrics" / "train.json").read_text())
    rows = read_history(single.path / "metrics" / "train_history.jsonl", "train")
    assert read_history(sweep.path / "metrics" / "train_history.jsonl", "train", member=member) == rows


def test_the_members_differ(sweep: Project) -> None:
    assert len(set(all_weights(sweep).values())) == len(SWEEP)
    figures = json.loads((sweep.path / "metrics" / "train.json").read_text())
    left_out = {name: figures[name]["left_out_tokens"] for name in ("k2", "wide", "late", "mlp")}
    assert 0 < left_out["k2"] == left_out["wide"] != left_out["late"] != left_out["mlp"] > 0


def test_outputs_have_the_members_names(sweep: Project) -> None:
    data, metrics = sweep.path / "data", sweep.path / "metrics"
    for stage in ("initial", "trained", "inference"):
        assert sorted(path.name for path in (data / stage / "main").iterdir()) == sorted(SWEEP)
    assert set(json.loads((metrics / "train.json").read_text())) == set(SWEEP)
    assert set(json.loads((metrics / "fold.json").read_text())) == set(SWEEP)
    rows = [json.loads(line) for line in (metrics / "train_history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["member"] == "late"] == [0, 24, 48, 63]
    assert {row["member"] for row in rows} == set(SWEEP)
    assert json.loads((data / "run.json").read_text()) == {"run_id": None, "members": dict.fromkeys(SWEEP)}
    plots = metrics / "plots" / "training"
    own = {"loss.png", "l0.png", "explained_variance.png", "index.html", "history.json"}
    assert {path.name for path in plots.iterdir()} == own | set(SWEEP)
    assert {path.name for path in (plots / "wide").iterdir()} == own
    assert json.loads((plots / "history.json").read_text()) == rows
    page = (plots / "index.html").read_text()
    assert all(member in page for member in SWEEP)


def test_histories_are_read_by_their_members(sweep: Project, finished_project: Project, tmp_path: Path) -> None:
    history = sweep.path / "metrics" / "train_history.jsonl"
    assert list(read_histories(history, "train")) == list(SWEEP)
    single = finished_project.path / "metrics" / "train_history.jsonl"
    assert list(read_histories(single, "train")) == [""]
    for place, member, parts in (
        (history, "", ("k2, k8", "one dictionary", "train again")),
        (history, "k3", ("members k2, k8", "'k3'")),
        (single, "k2", ("one dictionary", "member 'k2'")),
    ):
        with pytest.raises(DataError) as error:
            read_history(place, "train again", member=member)
        says(error.value, *parts)
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"step": 0, "member": 3}\n')
    with pytest.raises(DataError, match="member should be a name, got 3"):
        read_history(wrong, "train again")


def test_what_is_said(changed: Project) -> None:
    shutil.rmtree(changed.path / "data" / "checkpoints")
    said = must(changed, "initialize", "train")
    assert "initialize: wide: the first weights are scaled by " in said
    n_bytes = 4 * sum(p.nbytes for p in load_dictionary(changed.path / "data/initial/main/wide").parameters())
    assert f"train: wide: {n_bytes:,} bytes" in said
    assert f"train: {len(SWEEP)} members in one pass" in said
    assert "wait" in [line for line in said.splitlines() if line.startswith("train 100%")][-1]


def test_an_interrupted_sweep_goes_on_to_the_same_bytes(
    sweep: Project, begun: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training.step import Trainer

    step, steps_of = Trainer.step, []

    def stopping(trainer: Trainer, batch: object, observe: bool = False, asks: object = None) -> object:
        steps_of.append(trainer.step_number)
        if trainer.step_number == 13 and steps_of.count(13) == 2:  # the second member's turn
            signal.raise_signal(signal.SIGINT)
        return step(trainer, batch, observe, asks)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        outcome = begun.run("train")
        assert outcome.exit_code == 130
        (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
        assert "stopped by SIGINT after step 14 of 64" in line
        assert len(list(begun.path.glob("data/checkpoints/*/step-000000014"))) == 3
        steps_of.clear()
        must(begun, "train")
        assert sorted(steps_of) == sorted([*range(14, 64)] * 3)
    names = ("k2", "wide", "late")
    assert all_weights(begun, names) == all_weights(sweep, names)
    history = "metrics/train_history.jsonl"
    for name in names:
        wanted = read_history(sweep.path / history, "train", member=name)
        assert read_history(begun.path / history, "train", member=name) == wanted


def test_members_that_are_not_as_far_as_others_catch_up(
    sweep: Project, begun: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the saves of two members: one goes on at another step than the next, the third begins."""
    from pipeline.training.step import Trainer

    class Killed(Exception):
        pass

    step, steps_of = Trainer.step, dict[int, list[int]]()

    def killed(trainer: Trainer, batch: object, observe: bool = False, asks: object = None) -> object:
        steps_of.setdefault(id(trainer), []).append(trainer.step_number)
        if trainer.step_number == 20:
            raise Killed
        return step(trainer, batch, observe, asks)  # type: ignore[arg-type]

    stated = begun.params["sweep"]
    begun.set(sweep={name: {**own, "trainer.checkpoint_minutes": 1e-9} for name, own in stated.items()})
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        assert isinstance(begun.run("train").exception, Killed)
    first, second, _ = [sorted(place.parent.glob("step-*")) for place in checkpoints(begun)]
    shutil.rmtree(first[-1])
    for place in second:
        shutil.rmtree(place)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", lambda trainer, batch, observe=False, asks=None: (
            steps_of.setdefault(id(trainer), []).append(trainer.step_number), step(trainer, batch, observe, asks))[1])  # fmt: skip
        steps_of.clear()
        must(begun, "train")
    assert sorted(steps[0] for steps in steps_of.values()) == [0, 19, 20]
    assert all(steps == list(range(steps[0], 64)) for steps in steps_of.values())
    assert all_weights(begun, stated) == all_weights(sweep, stated)


def test_only_what_has_not_ended_is_trained(sweep: Project, changed: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that was trained alone, under another name or beside others, is taken over; so is one that differs in nothing
    that changes weights."""
    from pipeline.training.run import TrainingRun

    trained = []
    init = TrainingRun.__init__

    def noted(run: TrainingRun, *args: Any, **kwargs: Any) -> None:
        trained.append(kwargs["name"])
        init(run, *args, **kwargs)

    monkeypatch.setattr(TrainingRun, "__init__", noted)
    changed.set(sweep=None, dictionary__top_k=2)
    must(changed, "initialize", "train")
    assert not trained  # as k2 beside others
    assert weights(changed.path / "data/trained/main") == all_weights(sweep)["k2"]
    changed.set(sweep=None, dictionary__top_k=3)
    must(changed, "initialize", "train")
    assert trained == [""]
    again = {"k3": {}, "k3_kept": {"fold.mode": "keep"}, "k5": {"dictionary.top_k": 5}, "mid": {"dictionary.top_k": 2}}
    again["twin"] = {**again["k5"], "fold.mode": "keep"}
    changed.set(sweep=again)
    must(changed, "initialize", "train", "fold_norm")
    assert trained == ["", "k5"]
    found = all_weights(changed, again)
    assert found["mid"] == all_weights(sweep)["k2"]
    assert found["k3"] == found["k3_kept"] != found["k5"] == found["twin"]
    inference = changed.path / "data" / "inference" / "main"
    assert weights(inference / "k5") != weights(inference / "twin")


@pytest.mark.parametrize(("lr", "why"), [(1e6, "the loss is not finite at step"), (5.0, "diverged: at step")])
def test_a_member_that_fails_does_not_hold_up_the_others(sweep: Project, begun: Project, lr: float, why: str) -> None:
    good = dict(begun.params["sweep"])
    begun.set(sweep={"k2": good["k2"], "steep": {"trainer.lr": lr, "trainer.lr_warm_up_steps": 0}, "late": good["late"]})
    must(begun, "initialize")
    outcome = begun.run("train")
    assert (outcome.exit_code, outcome.exception) == (2, None), outcome
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: sweep.steep: training: {why}")
    assert not any(name in line for name in ("k2", "late"))
    assert "the other members go on" in outcome.stderr
    ended = [place.parent for place in checkpoints(begun) if (place.parent / "finished").exists()]
    assert len(ended) == 2
    assert not (begun.path / "data" / "trained").exists()
    kept = [place.parent for place in checkpoints(begun) if list(place.parent.glob("step-*"))]
    assert len(kept) == ("diverged" in why)
    assert all(str(place) in line for place in kept)
    again = begun.run("train")
    assert [error for error in again.stderr.splitlines() if error.startswith("error: ")] == [line]
    assert "train: late: trained already" not in again.stderr  # its outputs are not written yet
    begun.set(sweep=good)
    must(begun, "initialize")
    assert "train: late: trained already" in must(begun, "train")
    assert len(checkpoints(begun)) == 4
    assert all_weights(begun, good) == all_weights(sweep, good)


def test_outputs_of_earlier_members_go(changed: Project) -> None:
    changed.set(sweep={"k2": SWEEP["k2"]})
    must(changed, "initialize", "train", "fold_norm")
    for stage in ("initial", "trained", "inference"):
        assert [path.name for path in (changed.path / "data" / stage / "main").iterdir()] == ["k2"]
    changed.set(sweep=None)
    must(changed, "initialize", "train", "fold_norm")
    for stage in ("initial", "trained", "inference"):
        assert not (changed.path / "data" / stage / "main" / "k2").exists()
    assert json.loads((changed.path / "data" / "run.json").read_text()) == {"run_id": None}


def test_two_members_at_once(changed: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several threads two steps are taken at the same time; the bits are those of each alone with as many threads."""
    import torch

    from pipeline.training.step import Trainer

    step, inside, most = Trainer.step, [], [0]

    def counted(trainer: Trainer, batch: object, observe: bool = False, asks: object = None) -> object:
        inside.append(trainer)
        most[0] = max(most[0], len(inside))
        found = step(trainer, batch, observe, asks)  # type: ignore[arg-type]
        inside.remove(trainer)
        return found

    threads = torch.get_num_threads()
    members = {name: SWEEP[name] for name in ("k2", "wide", "late")}
    try:
        torch.set_num_threads(2)
        shutil.rmtree(changed.path / "data" / "checkpoints")
        changed.set(sweep=members)
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", counted)
            must(changed, "initialize", "train")
        assert most == [2]
        for member in ("wide", "late"):
            single = alone(changed, member, tmp_path / member)
            assert weights(single.path / f"data/trained/main-{member}") == all_weights(changed, members)[member]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
@pytest.mark.parametrize("source", ["store", "live"])
def test_live_and_contexts_too(changed: Project, tmp_path: Path, target: str, source: str) -> None:
    members = {name: SWEEP[name] for name in ("k2", "late", "mlp")}
    changed.set(sweep=members, activations__source=source, activations__target=target)
    if target == "activations-2d":
        changed.set(activations__batch_size=8)
    shutil.rmtree(changed.path / "data" / "store")
    must(changed, *FIRST, "train", "fold_norm")
    single = alone(changed, "late", tmp_path / "late")
    assert weights(single.path / "data/trained/main-late") == all_weights(changed, members)["late"]


def test_a_member_that_does_not_fit_the_model_is_named(changed: Project) -> None:
    changed.set(sweep={"k2": SWEEP["k2"], "narrow": {"dictionary.d_model": 20}, "few": {"dictionary.top_k": 100}})
    outcome = changed.run("generate_activations")
    assert outcome.exit_code == 2
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in lines] == ["sweep.narrow", "sweep.few"]
    says(lines[0], "dictionary.d_model: 20", "16 wide")


def test_a_start_that_is_not_there_is_named_with_its_member(changed: Project) -> None:
    changed.set(sweep={"k2": SWEEP["k2"], "tuned": {"initializer.from_dictionary": "nowhere"}})
    outcome = changed.run("inputs")
    assert outcome.exit_code == 2
    says(outcome.stderr, "sweep.tuned: initializer.from_dictionary: nowhere", "no such directory")
