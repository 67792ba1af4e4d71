"""SAEBench beside Scopeline: the object's files, the environment, what is refused by name, results, and a whole run.

The whole run has a Python in the place of SAEBench's own that loads the object as SAEBench would, computes its L0 over the held-out
contexts in plain torch, and leaves a result in SAEBench's form. What SAEBench itself makes of it: docs/suites.md.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from pipeline.dictionaries.store import load_dictionary
from pipeline.errors import DataError, ParamsError
from pipeline.interop.plain import plain_of
from pipeline.interop.saebench import MODULE, saebench_object, write_object
from pipeline.suites import saebench_runner
from pipeline.suites.saebench_environment import PLACE, REQUIREMENTS, child_environment, environment_lines, environment_versions
from pipeline.suites.saebench_evaluations import EVALUATIONS, chosen_evaluations
from pipeline.suites.saebench_results import logged, read_result
from tests.interop.cases import GATES, folded, rows
from tests.messages import saying, says
from tests.project import Project

VERSIONS = {"sae-bench": "0.6.0", "torch": "2.13.0"}
STAND_IN = """
import importlib, json, os, sys
if sys.argv[1] == "-c":
    print(json.dumps({versions!r}))
    sys.exit()
from pathlib import Path
import torch
job, name = json.loads(Path(sys.argv[2]).read_text()), sys.argv[3]
assert "PYTHONPATH" not in os.environ
if name == "scr":
    print("working\\rstill working\\rrefused: data set X cannot be reached and is not in the cache", file=sys.stderr)
    sys.exit(3)
if name == "tpp":
    print("first\\nRuntimeError: the GPU is gone", file=sys.stderr)
    sys.exit(1)
if name == "absorption":
    print("it could not be evaluated")
    sys.exit(0)
sys.path.insert(0, str(Path("object").absolute()))
sae = importlib.import_module("scopeline_sae").load("object").double()
from transformers import GPTNeoXForCausalLM
model = GPTNeoXForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
tokens = torch.tensor([json.loads(line)["tokens"] for line in Path(job["text"], "train.jsonl").read_text().splitlines()])
with torch.no_grad():
    x = model(tokens, output_hidden_states=True).hidden_states[sae.cfg.hook_layer + 1]
    f = sae.encode(x[tokens != 0])
place = Path("eval_results", name)
place.mkdir(parents=True)
values = dict(sparsity=dict(l0=float((f > 0).sum(-1).double().mean()), l1=float(f.sum(-1).mean())), kl=dict(kl_div_score=-1, tokens=f.shape[0]))
(place / "scopeline_main_custom_sae_eval_results.json").write_text(json.dumps(dict(eval_result_metrics=values)))
"""


def stand_in(path: Path, versions: dict[str, str | None] = VERSIONS) -> Path:
    """A program that answers as the Python of SAEBench's environment."""
    (path / "stand_in.py").write_text(STAND_IN.replace("{versions!r}", repr(versions)))
    program = path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {path / "stand_in.py"} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("gate", GATES)
def test_the_files_load_without_scopeline(gate: str, tmp_path: Path) -> None:
    """By the class that lies beside them, in an interpreter that finds no pipeline package."""
    dictionary = folded("sae", gate)
    write_object(saebench_object(plain_of(dictionary)), tmp_path / "object")
    x = rows(50).float()
    torch.save(x, tmp_path / "x.pt")
    script = textwrap.dedent(
        f"""
        import sys, torch
        sys.path.insert(0, {str(tmp_path / "object")!r})
        import {Path(MODULE).stem} as module
        assert not [name for name in sys.modules if name.startswith("pipeline")]
        sae, x = module.load({str(tmp_path / "object")!r}), torch.load({str(tmp_path / "x.pt")!r})
        assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.hook_layer) == (sae.W_enc.shape[0], sae.W_dec.shape[0], 1)
        assert sae.cfg.seqpos_slice == (None,) and sae.dtype == torch.float32
        with torch.no_grad():
            torch.save([sae.encode(x), sae(x), sae.W_dec.norm(dim=-1)], {str(tmp_path / "y.pt")!r})
        """
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    f, y, norms = torch.load(tmp_path / "y.pt")
    with torch.no_grad():
        torch.testing.assert_close(y, dictionary(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(f > 0, dictionary.encode(x) > 0)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_the_environment_is_described_and_its_python_asked(tmp_path: Path) -> None:
    lines = environment_lines()
    assert any("numpy < 2" in line for line in lines)
    assert f"python -m venv {PLACE}" in lines
    assert set(REQUIREMENTS) <= set(lines)
    assert environment_versions(stand_in(tmp_path)) == VERSIONS
    with pytest.raises(DataError, match=saying("no sae-bench", "--environment")):
        environment_versions(stand_in(tmp_path, {"sae-bench": None, "torch": "2.13.0"}))
    with pytest.raises(DataError, match=saying("no Python here", "--environment")):
        environment_versions(tmp_path / "none")
    (tmp_path / "broken").write_text("#!/bin/sh\nexit 4\n")
    (tmp_path / "broken").chmod(0o755)
    with pytest.raises(DataError, match=saying("exit code 4")):
        environment_versions(tmp_path / "broken")
    (tmp_path / "text").write_text("no program")
    with pytest.raises(DataError, match=saying("does not run as a Python")):
        environment_versions(tmp_path / "text")


def test_our_packages_are_hidden_from_the_other_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    found = child_environment(Path("/there/bin/python"))
    assert "PYTHONPATH" not in found
    assert found["PATH"].split(os.pathsep)[0] == "/there/bin"


def test_evaluations_are_known_by_saebenchs_names() -> None:
    assert {"core", "sparse_probing", "scr", "tpp", "absorption", "ravel", "autointerp", "unlearning"} == set(EVALUATIONS)
    assert chosen_evaluations(("scr", "core", "scr"), None) == ("scr", "core")
    assert chosen_evaluations(("autointerp",), "http://localhost:1/v1") == ("autointerp",)
    with pytest.raises(ParamsError) as refused:
        chosen_evaluations(("cores", "autointerp"), None)
    says(refused.value, "--eval", "'cores'", "core", "autointerp", "--endpoint")
    assert len(refused.value.faults) == 2


def result(folder: Path, metrics: object, name: str = "core") -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "a_custom_sae_eval_results.json").write_text(json.dumps({"eval_result_metrics": metrics}))
    return folder


def test_results_keep_their_names_and_leave_out_what_is_undefined(tmp_path: Path) -> None:
    place = result(tmp_path, {"sparsity": {"l0": 24, "l1": None}, "kl": {"kl_div_score": -1, "ce": 0.5}})
    assert read_result(place, "core") == {"l0": 24.0, "ce": 0.5}
    assert read_result(result(tmp_path, {"llm": {"drop": -1}}, "scr"), "scr") == {"drop": -1.0}
    assert logged({"core": {"l0": 24.0}}) == {"saebench_core/l0": 24.0}


@pytest.mark.parametrize(
    ("metrics", "parts"),
    [
        ([], ("an object",)),
        ({"a": 1}, ("an object", "a number")),
        ({"a": {"b": "x"}}, ("eval_result_metrics.a.b", "'x'")),
        ({"a": {"b": 1}, "c": {"b": 2}}, ("b", "two groups")),
        ({"a": {}}, ("no figure",)),
    ],
)
def test_a_result_of_another_form(metrics: object, parts: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=saying(*parts)):
        read_result(result(tmp_path, metrics), "core")


def test_no_result_and_several(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=saying("core", 0)):
        read_result(tmp_path, "core")
    result(tmp_path, {"a": {"b": 1}})
    (tmp_path / "core" / "b_custom_sae_eval_results.json").write_text("{}")
    with pytest.raises(DataError, match=saying("core", 2)):
        read_result(tmp_path, "core")


def test_why_the_hub_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the classes of its own library."""
    import httpx
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    answer = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/x"))
    assert "gated" in saebench_runner.why(GatedRepoError("no", response=answer))
    assert "does not exist" in saebench_runner.why(RepositoryNotFoundError("no", response=answer))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in saebench_runner.why(LocalEntryNotFoundError("no"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert saebench_runner.why(LocalEntryNotFoundError("no")).endswith("cache")
    assert "TypeError: x" in saebench_runner.why(TypeError("x"))


def test_a_data_set_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(saebench_runner.Refused, match=saying("data set nobody/nothing", "not in the cache")):
        saebench_runner.check_data_set("nobody/nothing")


def test_a_whole_run(project: Project) -> None:
    program = stand_in(project.path)
    outcome = project.run("saebench", "--python", str(program), "--batch-prompts", "4", "--eval", "core")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    work = project.path / "data" / "saebench"
    job = json.loads((work / "job.json").read_text())
    assert (job["model"], job["text"], job["context_size"], job["dtype"]) == ("model", "scopeline_held_out", 16, "float32")
    written = json.loads((project.path / "metrics" / "saebench.json").read_text())
    ours = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    assert set(written["core"]) == {"l0", "l1", "tokens"}
    assert written["core"]["l0"] == pytest.approx(ours["l0_mean"], rel=0.02)  # all but a last part of a batch
    assert written["core"]["tokens"] <= ours["evaluated_tokens"]
    assert written["versions"] == VERSIONS
    assert (work / "object" / MODULE).is_file()
    assert json.loads((work / "object" / "cfg.json").read_text())["prepend_bos"] is False
    spec = importlib.util.spec_from_file_location("its_class", work / "object" / MODULE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["its_class"] = module
    spec.loader.exec_module(module)
    loaded = load_dictionary(project.path / "data" / "inference" / "main")
    x = torch.randn(30, loaded.config.d_in, generator=torch.Generator().manual_seed(0)) * 3
    with torch.no_grad():
        torch.testing.assert_close(module.load(work / "object")(x), loaded(x), rtol=1e-4, atol=1e-4)


def test_what_is_refused_and_what_fails_is_said_and_the_rest_is_kept(project: Project) -> None:
    names = [part for name in ("core", "scr", "tpp", "absorption") for part in ("--eval", name)]
    outcome = project.run("saebench", "--python", str(stand_in(project.path)), "--batch-prompts", "4", *names)
    assert outcome.exit_code == 2
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert lines[0] == "error: saebench scr: data set X cannot be reached and is not in the cache"
    says(lines[1], "saebench tpp", "exit code 1", "the GPU is gone")
    says(lines[2], "saebench absorption", "0 results", "it could not be evaluated")
    assert len(lines) == 3
    assert set(json.loads((project.path / "metrics" / "saebench.json").read_text())) == {"core", "versions"}


def test_the_command_says_what_is_wrong(project: Project) -> None:
    outcome = project.run("saebench", "--eval", "nothing")
    assert outcome.exit_code == 2
    says(outcome.stderr, "--eval", "'nothing'")
    outcome = project.run("saebench")
    assert outcome.exit_code == 2
    says(outcome.stderr, PLACE, "--environment")
    outcome = project.run("saebench", "--python", str(stand_in(project.path)), "--batch-prompts", "4000")
    assert outcome.exit_code == 2
    says(outcome.stderr, "--batch-prompts", 4000)
    project.set(dictionary__hook_point_in="blocks.0.attn.hook_z")
    outcome = project.run("saebench")
    assert outcome.exit_code == 2
    says(outcome.stderr, "dictionary.hook_point_in", "blocks.0.attn.hook_z", "hook_resid_post")
