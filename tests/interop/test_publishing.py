"""Export with a model card, and the push to a stub of the hub: nothing goes out unasked, unchecked or over something else."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from pipeline.api import load_dictionary
from pipeline.errors import PipelineError
from pipeline.interop import verification
from pipeline.interop.card import is_ours
from pipeline.interop.exporting import export_dictionaries
from pipeline.interop.hub_paths import hub_path
from pipeline.interop.licence import declared_licence
from pipeline.interop.pushing import Target, look, push, stale
from tests.dictionaries.make import LAYERS_IN
from tests.interop import cases
from tests.interop.hub_stub import TOKEN, Hub, serving
from tests.messages import says
from tests.project import Outcome, Project

# What huggingface_hub's own upload says of its client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stub, to which huggingface_hub turns."""
    with serving(monkeypatch, tmp_path / "cache") as found:
        yield found


def files_of(folder: Path) -> dict[str, bytes]:
    """{name: content} of all files below a directory."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def done(outcome: Outcome) -> None:
    """A stage that succeeded, without the token in what it said."""
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    assert TOKEN not in outcome.stderr


def refused(outcome: Outcome, *words: object) -> None:
    """A stage that ended with one line."""
    assert outcome.exit_code == 2, outcome.exception
    assert outcome.stderr.count("\n") == 1
    assert TOKEN not in outcome.stderr
    says(outcome.stderr, *words)


def exported(path: Path, kind: str, gate: str, format: str, **changes: Any) -> Path:
    """A directory in a format, checked."""
    return export_dictionaries([cases.folded(kind, gate, **changes)], path, format).path


def pushed(folder: Path, to: str, format: str, **about: Any) -> list[str]:
    """Push a directory."""
    target = Target(hub_path(to), **about)
    return push(folder, target, look(target), format)


def test_a_run_is_pushed_with_its_card_and_read_back(project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files as of a local export that huggingface_hub uploads; each is read, with a card of the run's own figures."""
    options = ("--format", "saelens", "--license", "cc-by-4.0", "--language", "en")
    done(project.run("export", *options, "--to", "hf:me/saes/main", "--private", "--message", "the first"))
    remote = hub.repositories["me/saes"]
    assert (remote.private, remote.messages) == (True, ["the first"])
    assert f"Bearer {TOKEN}" in hub.tokens <= {"", f"Bearer {TOKEN}"}
    files = remote.commits[remote.refs["main"]]
    names = ["README.md", "cfg.json", "evaluation.json", "params.yaml", "sae_weights.safetensors"]
    assert sorted(files) == [".gitattributes", "README.md", *(f"main/{name}" for name in names)]
    done(project.run("export", *options, "--to", "local", "--as", "hf:me/saes/main"))
    assert {f"main/{name}": content for name, content in files_of(project.path / "local").items()} == {
        name: content for name, content in files.items() if name.startswith("main/")
    }
    hub.add("me/uploaded", {})
    HfApi().upload_folder(repo_id="me/uploaded", folder_path=project.path / "local", path_in_repo="main")
    uploaded = hub.repositories["me/uploaded"]
    assert uploaded.commits[uploaded.refs["main"]] == {name: files[name] for name in files if name.startswith("main/")}

    text = files["README.md"].decode()
    card = ModelCard(text)
    assert card.data.license == "cc-by-4.0"
    assert card.data.language == ["en"]
    assert card.data.library_name == "saelens"
    assert "sparse-autoencoder" in card.data.tags
    assert card.data.base_model is None
    metrics = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    assert json.loads(files["main/evaluation.json"]) == metrics
    row = next(line for line in text.splitlines() if line.startswith("| FVU |"))
    shown = [float(each) for each in re.findall(r"-?[\d.]+(?:e-?\d+)?", row)]
    wanted = [metrics[key] for key in ("fvu", "fvu_low", "fvu_high", "pca_fvu")]
    assert shown[:4] == pytest.approx(wanted, rel=1e-3)
    assert "tracking" not in yaml.safe_load(files["main/params.yaml"])
    assert yaml.safe_load(files["main/params.yaml"])["trainer"] == project.params["trainer"]
    (code,) = re.findall(r"```python\n(from pipeline.api.*?)```", text, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)  # the card's own lines
    ours = load_dictionary(project.path / "data" / "inference" / "main")
    x = 3 * cases.drawn("x", 40, ours.config.d_in)
    assert (ours.encode(x) != 0).any()
    assert (found["dictionary"].encode(x) - ours.encode(x)).abs().max() <= 1e-5 * ours.encode(x).abs().max()

    done(project.run("export", *options, "--to", "hf:me/saes/main", "--revision", "next"))
    assert set(remote.refs) == {"main", "next"}
    hub.repositories["me/saes"].private = False
    refused(project.run("export", *options, "--to", "hf:me/saes/main", "--private"), "--private", "is there and public")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(project.path / "none"))
    refused(project.run("export", *options, "--to", "hf:me/saes/main"), "without a token", "hf auth login")


def test_nothing_goes_out_that_is_not_asked_for_or_not_right(
    project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*options: str) -> Outcome:
        return project.run("export", "--format", "sparsify", *options)

    refused(run("--to", "hf:me/saes"), "--license", "not guessed")
    refused(run("--to", "hf:me/saes", "--license", "My own"), "--license 'My own'")
    refused(run("--to", "hf:me", "--license", "mit"), "hf:me", "not a path of the hub")
    refused(run("--to", "out", "--dry-run"), "--dry-run", "of a push alone")
    refused(run("--to", "hf:me/saes@a", "--revision", "b", "--license", "mit"), "--revision b", "names the branch a")
    refused(run("--to", "."), "params.yaml is here", "--to")
    done(run("--to", "hf:me/saes", "--license", "mit", "--dry-run"))
    monkeypatch.setattr(verification, "ALLOWED", 0.0)
    refused(run("--to", "hf:me/saes", "--license", "mit"), "differs from the dictionary")
    assert hub.repositories == {}
    assert not [each for each in hub.asked if not each.startswith("GET")]


def test_a_sweep_is_one_folder_a_member_and_one_card(project: Project, tmp_path: Path) -> None:
    inference = project.path / "data" / "inference"
    shutil.move(inference / "main", inference / "one")
    metrics = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    for name in ("a", "b"):
        shutil.copytree(inference / "one", inference / "main" / name)
    project.set(sweep={"a": {"trainer.lr": 0.001}, "b": {"trainer.lr": 0.002}})
    both = {"a": {**metrics, "fvu": 0.125, "fvu_ordinary": 0.125}, "b": {**metrics, "fvu": 0.25, "fvu_ordinary": 0.25}}
    (project.path / "metrics" / "evaluation.json").write_text(json.dumps(both))
    done(project.run("export", "--format", "sparsify", "--to", "all", "--as", "hf:me/saes"))
    for name in ("a", "b"):
        assert load_dictionary(project.path / "all" / name / "layers.0").config.top_k == 4
    text = (project.path / "all" / "README.md").read_text()
    assert is_ours(text)
    assert [*(project.path / "all").rglob("README.md")] == [project.path / "all" / "README.md"]
    for name, fvu in (("a", "0.125"), ("b", "0.25")):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert f"`{name}/layers.0`" in row
        assert f"| {fvu} (" in row
    done(project.run("export", "--format", "sparsify", "--member", "b"))
    member = project.path / "data" / "export" / "sparsify" / "main" / "b"
    assert json.loads((member / "evaluation.json").read_text()) == both["b"]
    assert (member / "layers.0" / "sae.safetensors").exists()
    for kind, hooks in (("skip", "blocks.0.ln2.hook_out"), ("clt", LAYERS_IN[0])):
        cases.folded(kind, "jumprelu").save(tmp_path / kind)
        place = ("--dictionary", str(tmp_path / kind), "--drawn", "--to", f"out-{kind}", "--as", f"hf:me/{kind}/set")
        done(project.run("export", "--format", "circuit_tracer", *place))
        text = (project.path / f"out-{kind}" / "README.md").read_text()
        assert "It was not evaluated." in text
        assert hooks in text
        assert not (project.path / f"out-{kind}" / "params.yaml").exists()
        assert f'"me/{kind}/set")' in text
        assert ("cross-layer-transcoder" in text) == (kind == "clt")
        loads = re.findall(r'load_dictionary\("hf:me/\w+/set(.*)"\)', text)
        assert loads == (["/layer_0.safetensors"] if kind == "skip" else [""])
        for name in loads:
            assert load_dictionary(project.path / f"out-{kind}{name}").config.kind == ("clt" if kind == "clt" else "transcoder")


def test_what_the_hub_has_is_compared_with_what_was_sent(tmp_path: Path, hub: Hub) -> None:
    folder = exported(tmp_path / "out", "sae", "topk", "saelens")
    hub.spoil = True
    with pytest.raises(PipelineError, match=r"other content than was sent of a/sae_weights.safetensors"):
        pushed(folder, "hf:me/saes/a", "saelens")


def test_a_message_of_the_hub_does_not_show_the_token(tmp_path: Path, hub: Hub) -> None:
    folder = exported(tmp_path / "out", "sae", "topk", "saelens")
    hub.broken = "you sent"
    with pytest.raises(PipelineError) as error:
        pushed(folder, "hf:me/saes/a", "saelens")
    says(error.value, "you sent", "<token>", "503", "--to DIRECTORY")
    assert TOKEN not in str(error.value)


def test_only_a_dictionary_of_the_same_format_is_replaced(tmp_path: Path, hub: Hub) -> None:
    first = exported(tmp_path / "first", "clt", "jumprelu", "circuit_tracer")
    layers = len(list(first.glob("W_enc_*")))
    pushed(first, "hf:me/saes/clt", "circuit_tracer")
    fewer = tmp_path / "fewer"
    shutil.copytree(first, fewer)
    for part in ("enc", "dec"):
        (fewer / f"W_{part}_{layers - 1}.safetensors").unlink()
    lines = pushed(fewer, "hf:me/saes/clt", "circuit_tracer")
    remote = hub.repositories["me/saes"]
    there = {name for name in remote.commits[remote.refs["main"]] if name.startswith("clt/")}
    assert there == {f"clt/{name}" for name in files_of(fewer)}
    assert sum("is deleted" in line for line in lines) == 2
    other = exported(tmp_path / "other", "sae", "topk", "openmoss")
    pushed(other, "hf:me/saes/other", "openmoss")
    with pytest.raises(PipelineError, match="format openmoss are in 'other'"):
        pushed(exported(tmp_path / "mine", "sae", "topk", "saelens"), "hf:me/saes/other", "saelens")
    assert stale({"a/layers.0/cfg.json": io.BytesIO()}, ["a/config.json"], "sparsify", hub_path("hf:a/b")) == []  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((None, "name", None), "--license: is not given"),
        (("other", None, None), "--license-name"),
        (("mit", "name", None), "leave --license-name"),
    ],
)
def test_licences_that_say_too_little_or_too_much(given: tuple[str | None, str | None, str | None], words: str) -> None:
    with pytest.raises(PipelineError, match=re.escape(words)):
        declared_licence(*given, required=False)


def test_another_licence_has_its_name_and_text() -> None:
    found = declared_licence("other", "Gemma terms", "https://example.org/terms", required=True)
    assert found is not None
    assert found.metadata() == {"license": "other", "license_name": "Gemma terms", "license_link": "https://example.org/terms"}
    assert found.sentence() == "The weights are published under: [Gemma terms](https://example.org/terms)."
