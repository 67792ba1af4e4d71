"""Pulling from the hub, by huggingface_hub's own client from a stub of it: which files, what is recorded, what is refused."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.api import export_dictionary, load_dictionary
from pipeline.errors import PipelineError
from pipeline.interop.hub import listed
from pipeline.interop.layouts import natural
from tests.interop import cases
from tests.interop.hub_stub import TOKEN, Hub, serving, turn_to
from tests.interop.test_imports import same
from tests.messages import says

GEMMA = "google/gemma-scope-2b-pt-res"
CLOSED = "http://127.0.0.1:9"  # nothing answers there


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stub, to which huggingface_hub turns."""
    with serving(monkeypatch, tmp_path / "cache") as found:
        yield found


def files_of(folder: Path) -> dict[str, bytes]:
    """{name: content} of all files below a directory."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(path: str, *words: object, format: str | None = None) -> str:
    """One fault of ours, on one line, with these words and without the token."""
    from pipeline.api import import_dictionary

    with pytest.raises(PipelineError) as error:
        import_dictionary(path, format)
    assert len(error.value.faults) == 1, error.value.faults
    text = str(error.value)
    assert "\n" not in text
    assert TOKEN not in text
    says(text, path, *words)
    return text


def gemma(tmp_path: Path) -> tuple[dict[str, bytes], cases.Forward]:
    """The layout of Gemma Scope 1: 200 dictionaries, of which one can be read, beside one of the embedding and a README."""
    forward = cases.gemma_scope(tmp_path / "one")
    content = (tmp_path / "one" / "params.npz").read_bytes()
    files = {f"layer_{layer}/width_16k/average_l0_{70 + i}/params.npz": b"other" for layer in range(20) for i in range(10)}
    del files["layer_19/width_16k/average_l0_79/params.npz"]
    files |= {"layer_20/width_16k/average_l0_71/params.npz": content, "README.md": b"# Gemma Scope", ".gitattributes": b""}
    return files, forward


def test_exactly_one_dictionary_of_gemma_scope(tmp_path: Path, hub: Hub) -> None:
    files, forward = gemma(tmp_path)
    commit = hub.add(GEMMA, files)
    name = "layer_20/width_16k/average_l0_71"
    dictionary = load_dictionary(f"hf:{GEMMA}/{name}")
    same(dictionary, forward)
    assert hub.fetched() == [f"{name}/params.npz"]
    assert dictionary.hooks_in == dictionary.hooks_out == ("blocks.20.hook_resid_post",)
    origin = dictionary.config.provenance["imported"]
    assert origin["about"]["model_name"] == "google/gemma-2-2b"
    assert (origin["repository"], origin["folder"], origin["revision"]) == (GEMMA, name, commit)
    assert origin["files"] == {f"{name}/params.npz": hashlib.sha256(files[f"{name}/params.npz"]).hexdigest()}
    assert load_dictionary(f"hf:{GEMMA}/{name}/params.npz@{commit}").config.provenance["imported"]["revision"] == commit


def test_a_repository_of_200_asks_which_and_fetches_none(tmp_path: Path, hub: Hub) -> None:
    hub.add(GEMMA, gemma(tmp_path)[0])
    text = refused(
        f"hf:{GEMMA}", "holds 200 dictionaries", "which one", "layer_0/width_16k/average_l0_70", "192 more", "--list"
    )
    assert len(text) < 700
    refused(f"hf:{GEMMA}/layer_3", "holds 10 dictionaries", "layer_3/width_16k/average_l0_70", "2 more")
    refused(f"hf:{GEMMA}/layer_20/width_16k/average_l0_72", "has no 'layer_20", "nearest: layer_20/width_16k/average_l0_71")
    refused(f"hf:{GEMMA}/nowhere/at/all", "has no 'nowhere/at/all'", "it holds: layer_0/width_16k/average_l0_70")
    refused(f"hf:{GEMMA}/layer_3", "no dictionary of the format saelens", format="saelens")
    lines = listed(f"hf:{GEMMA}")
    assert len(lines) == 200
    assert lines[0] == f"hf:{GEMMA}/layer_0/width_16k/average_l0_70  gemma_scope  5 bytes"
    assert lines[-1].startswith(f"hf:{GEMMA}/layer_20/")
    assert hub.fetched() == []


SECOND = "google/gemma-scope-2-1b-pt"


@pytest.mark.parametrize(
    ("folder", "hooks"),
    [
        ("resid_post/layer_7_width_16k_l0_small", ("blocks.7.hook_resid_post",) * 2),
        ("attn_out_all/layer_7_width_16k_l0_small", ("blocks.7.attn.hook_z",) * 2),
        ("transcoder/layer_7_width_16k_l0_small_affine", ("blocks.7.ln2.hook_out", "blocks.7.hook_mlp_out")),
    ],
)
def test_gemma_scope_2_without_a_configuration(folder: str, hooks: tuple[str, str], tmp_path: Path, hub: Hub) -> None:
    forward = cases.gemma_scope_2(tmp_path / "one", affine="affine" in folder)
    weights = (tmp_path / "one" / "params.safetensors").read_bytes()
    hub.add(SECOND, {f"{folder}/params.safetensors": weights, "resid_post/layer_8_width_16k_l0_small/params.safetensors": b""})
    dictionary = load_dictionary(f"hf:{SECOND}/{folder}")
    same(dictionary, forward)
    assert (*dictionary.hooks_in, *dictionary.hooks_out) == hooks
    assert dictionary.config.provenance["imported"]["about"]["model_name"] == "google/gemma-3-1b-pt"
    assert hub.fetched() == [f"{folder}/params.safetensors"]


@pytest.mark.parametrize("stated", [True, False])
def test_llama_scope_by_the_names_of_its_directories(stated: bool, tmp_path: Path, hub: Hub) -> None:
    forward = cases.llama_scope(
        tmp_path / "one", hook_point_in="blocks.3.hook_resid_post" if stated else None, hook_point_out=None
    )
    folder = "Llama3_1-8B-Base-L15R-8x"
    files = {f"{folder}/{name}": content for name, content in files_of(tmp_path / "one").items()}
    hub.add("fnlp/Llama3_1-8B-Base-LXR-8x", {**files, "Llama3_1-8B-Base-L16R-8x/hyperparams.json": b"{}"})
    dictionary = load_dictionary(f"hf:fnlp/Llama3_1-8B-Base-LXR-8x/{folder}")
    same(dictionary, forward)
    assert dictionary.hooks_in == (f"blocks.{3 if stated else 15}.hook_resid_post",)
    assert dictionary.config.provenance["imported"]["about"]["model_name"] == "meta-llama/Llama-3.1-8B"
    assert set(hub.fetched()) == set(files)


# Format: (maker, directory that is named, other files that are read).
PULLED: dict[str, tuple[Callable[..., Any], str, tuple[str, ...]]] = {
    "saelens": (cases.saelens, "a", ()),
    "sparsify": (cases.sparsify, "layers.3.mlp", ("config.json",)),
    "dictionary_learning": (lambda path: cases.dictionary_learning(path, "BatchTopKSAE"), "a", ()),
    "openmoss": (cases.openmoss, "deep/er/a", ()),
    "circuit_tracer": (cases.circuit_tracer_clt, "clt", ()),
}


@pytest.mark.parametrize("format", PULLED)
def test_only_the_files_of_a_dictionary_are_fetched(format: str, tmp_path: Path, hub: Hub) -> None:
    make, folder, beside = PULLED[format]
    forward = make(tmp_path / folder)
    own = files_of(tmp_path / folder)
    files = {f"{folder}/{name}": content for name, content in own.items()}
    others = {f"{folder}-other/{name}": content for name, content in own.items()}
    others |= dict.fromkeys(("README.md", f"{folder}/optimizer.pt", f"{folder}/README.md", *beside), b"{}")
    hub.add("user/saes", files | others)
    dictionary = load_dictionary(f"hf:user/saes/{folder}")
    if format != "circuit_tracer":
        same(dictionary, forward)
    assert set(hub.fetched()) == set(files) | set(beside)
    assert dictionary.config.provenance["imported"]["files"].keys() == set(files) | set(beside)


def test_one_layer_of_a_set(tmp_path: Path, hub: Hub) -> None:
    forwards = cases.circuit_tracer(tmp_path / "set", layers=11)
    hub.add("user/set", files_of(tmp_path / "set"))
    same(load_dictionary("hf:user/set/layer_10.safetensors"), forwards["layer_10.safetensors"])
    assert set(hub.fetched()) == {"config.yaml", "layer_10.safetensors"}
    refused("hf:user/set", "holds 11 dictionaries", "layer_0.safetensors, layer_1.safetensors, layer_2.safetensors", "3 more")


def test_one_of_our_own_format_is_recorded(tmp_path: Path, hub: Hub) -> None:
    made = cases.folded("sae", "topk")
    made.save(tmp_path / "main")
    commit = hub.add("user/ours", files_of(tmp_path))
    loaded = load_dictionary("hf:user/ours")
    assert loaded.encode(cases.rows().float()).equal(made.encode(cases.rows().float()))
    origin = loaded.config.provenance["imported"]
    assert (origin["format"], origin["folder"], origin["revision"]) == ("scopeline", "main", commit)


def test_two_formats_in_a_folder_are_asked_about(tmp_path: Path, hub: Hub) -> None:
    cases.saelens(tmp_path / "both")
    cases.sparsify(tmp_path / "both")
    hub.add("user/both", files_of(tmp_path))
    with pytest.raises(PipelineError, match="several formats"):
        load_dictionary("hf:user/both/both")


def test_what_the_hub_refuses_is_one_line(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("user/saes", {"README.md": b""})
    hub.add("user/gated", {"a/params.npz": b""}, gated=True)
    refused("hf:user/none", "no repository user/none", "hf auth login")
    refused("hf:user/gated/a", "access to user/gated is restricted", "accept its terms")
    refused("hf:user/saes@v9", "no revision 'v9'")
    refused("hf:user/saes", "no dictionary of a known format here")
    hub.broken = "internal"
    refused("hf:user/saes", "it answers 503")
    turn_to(monkeypatch, CLOSED, tmp_path / "cache")
    refused("hf:user/saes", "the hub cannot be reached")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("hf:user/saes", "not in the cache", "HF_HUB_OFFLINE is set")


def test_offline_the_cache_answers_and_it_is_said(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.interop.importing import import_from

    cases.sparsify(tmp_path / "layers.1")
    commit = hub.add("user/saes", files_of(tmp_path))
    online = import_from("hf:user/saes/layers.1")
    assert online.said == ()
    turn_to(monkeypatch, CLOSED, tmp_path / "cache")
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        found = import_from("hf:user/saes/layers.1")
        says(found.said[0], "from the cache", commit, "HF_HUB_OFFLINE" if offline else "cannot be reached")
        assert (
            found.dictionary.config.provenance["imported"]["files"] == online.dictionary.config.provenance["imported"]["files"]
        )


def test_what_was_altered_in_the_cache_is_told(tmp_path: Path, hub: Hub) -> None:
    cases.sparsify(tmp_path / "layers.1")
    hub.add("user/saes", files_of(tmp_path))
    load_dictionary("hf:user/saes/layers.1")
    (file,) = (tmp_path / "cache").rglob("snapshots/*/layers.1/sae.safetensors")
    file.resolve().write_bytes(file.read_bytes()[:-1] + b"?")
    refused("hf:user/saes/layers.1", "sae.safetensors", "sha256 differs", "fetch it again")


def test_a_branch_means_its_newest_commit(tmp_path: Path, hub: Hub) -> None:
    cases.gemma_scope(tmp_path / "a")
    hub.add("user/saes", files_of(tmp_path))
    first = load_dictionary("hf:user/saes/a@main", dtype="float64")
    buffer = io.BytesIO()
    np.savez(buffer, **{**np.load(tmp_path / "a" / "params.npz"), "b_dec": np.ones(cases.D, np.float32)})
    new = hub.repositories["user/saes"].commit({"a/params.npz": buffer.getvalue()})
    second = load_dictionary("hf:user/saes/a@main")
    assert second.config.provenance["imported"]["revision"] == new
    assert second.config.provenance["imported"]["asked_revision"] == "main"
    assert not second.state_dict()["b_D"].double().equal(first.state_dict()["b_D"])


def test_the_hubs_export_is_no_local_directory(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"python -m stages.export --to hf:user/saes"):
        export_dictionary(cases.folded("sae", "topk"), "hf:user/saes")


def test_natural_order() -> None:
    assert sorted(["layer_10", "layer_9", "a", "layer_9/b"], key=natural) == ["a", "layer_9", "layer_9/b", "layer_10"]
