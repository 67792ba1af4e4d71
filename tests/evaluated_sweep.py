"""A small project with the dictionaries of a sweep, each trained by itself, and what each is alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.project import Project, make_project, put

EARLY, LATE = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
MLP = ("blocks.0.ln2.hook_out", "blocks.0.hook_mlp_out")
TRANSCODER = {"dictionary.kind": "transcoder", "dictionary.hook_point_in": MLP[0], "dictionary.hook_point_out": MLP[1]}
SWEEP: dict[str, dict[str, Any]] = {
    "k4": {},
    "k8": {"dictionary.top_k": 8, "trainer.lr": 0.001},
    "late": {"dictionary.hook_point_in": LATE, "dictionary.expansion_factor": 2},
    "mlp": TRANSCODER,
}


@dataclass(frozen=True)
class Sweep:
    """A project up to fold, and what its members have alone.

    Attributes:
        project: its parameters have the sweep.
        alone: {member: metrics/evaluation.json of the project with that dictionary by itself}.
    """

    project: Project
    alone: dict[str, dict[str, float]]


def make_sweep(path: Path) -> Sweep:
    """Train, fold and evaluate each member as a run of its own, then put them where the members of a sweep are."""
    project = make_project(path).set(
        activations__hook_points=[EARLY, *MLP, LATE], trainer__total_training_tokens=2048, analysis__tokens=1024
    )
    project.run_all("compute_norm")
    base = json.loads(json.dumps(project.params))
    alone, history, done = {}, [], project.path / "done"
    for name, keys in SWEEP.items():
        project.params = json.loads(json.dumps(base))
        if "dictionary.kind" in keys:
            project.params["dictionary"].update(hook_point_out=None, apply_b_dec_to_input=False)
        for key, value in {**keys, "dictionary.name": f"main-{name}"}.items():
            put(project.params, key, value)
        project.set()
        for stage in ("initialize", "train", "fold_norm", "evaluate"):
            outcome = project.run(stage)
            assert outcome.exit_code == 0, outcome.stderr or outcome.exception
        alone[name] = json.loads((project.path / "metrics/evaluation.json").read_text())
        rows = (project.path / "metrics/train_history.jsonl").read_text().splitlines()
        history += [json.dumps({**json.loads(row), "member": name}) for row in rows]
        shutil.move(project.path / f"data/inference/main-{name}", done / name)
    shutil.rmtree(project.path / "data/inference")
    shutil.move(done, project.path / "data/inference/main")
    shutil.rmtree(project.path / "data/checkpoints")
    (project.path / "metrics/train_history.jsonl").write_text("\n".join(history) + "\n")
    project.params = {**base, "sweep": {name: dict(keys) for name, keys in SWEEP.items()}}
    project.params["sweep"]["mlp"]["dictionary.apply_b_dec_to_input"] = False
    return Sweep(project.set(), alone)
