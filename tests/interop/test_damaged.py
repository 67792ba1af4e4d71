"""Damaged files of every format: one clear line each, with the file, and nothing that lies in them is run."""

from __future__ import annotations

import itertools
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.api import import_dictionary, load_dictionary
from pipeline.errors import DataError, PipelineError
from tests.interop import cases
from tests.messages import says

# format: (maker, configuration, weights, an encoder matrix, a bias)
FORMATS: dict[str, tuple[Callable[[Path], Any], str, str, str, str]] = {
    "saelens": (cases.saelens, "cfg.json", "sae_weights.safetensors", "W_enc", "b_enc"),
    "sparsify": (cases.sparsify, "cfg.json", "sae.safetensors", "encoder.weight", "encoder.bias"),
    "dictionary_learning": (cases.dictionary_learning, "config.json", "ae.pt", "encoder.weight", "encoder.bias"),
    "gemma_scope": (cases.gemma_scope_2, "config.json", "params.safetensors", "w_enc", "threshold"),
    "llama_scope": (cases.llama_scope, "hyperparams.json", "checkpoints/final.safetensors", "encoder.weight", "encoder.bias"),
    "openmoss": (cases.openmoss, "config.json", "sae_weights.safetensors", "W_E", "b_E"),
    "circuit_tracer": (cases.circuit_tracer, "config.yaml", "layer_0.safetensors", "W_enc", "activation_function.threshold"),
}
NAMES = {"gemma_scope": {"w_enc": "W_enc"}}  # what a message calls a tensor that has two names


def tensors_of(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True) if file.suffix == ".pt" else load_file(file)


def put_tensors(tensors: dict[str, Any], file: Path) -> None:
    if file.suffix == ".pt":
        torch.save(tensors, file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


Change = Callable[[dict[str, Any], str, str], dict[str, Any]]
TENSORS: dict[str, tuple[Change, str]] = {
    "missing": (lambda t, matrix, bias: {k: v for k, v in t.items() if k != matrix}, "{matrix} is missing"),
    "unexpected": (lambda t, matrix, bias: {**t, "scratch": torch.zeros(2)}, "scratch is unexpected"),
    "transposed": (lambda t, matrix, bias: {**t, matrix: t[matrix].T}, "{matrix} is transposed"),
    "cut": (lambda t, matrix, bias: {**t, matrix: t[matrix][:, :-1]}, "{matrix} is ["),
    "not a number": (
        lambda t, matrix, bias: {**t, bias: t[bias] * float("nan")},
        "{bias} has 20 of 20 values that are not finite",
    ),
    "infinite": (lambda t, matrix, bias: {**t, matrix: t[matrix] / 0}, "values that are not finite"),
    "integers": (
        lambda t, matrix, bias: {**t, matrix: t[matrix].int()},
        "{matrix} should be a tensor of floating-point numbers",
    ),
}


def one_line(place: Path, *words: object) -> None:
    """One fault of ours, on one line, with these words."""
    with pytest.raises(PipelineError) as error:
        import_dictionary(place)
    assert len(error.value.faults) == 1, error.value.faults
    assert "\n" not in str(error.value)
    for word in words:
        assert str(word) in str(error.value), f"{word!r} not in: {error.value}"


def member(format: str, folder: Path) -> Path:
    return folder / "layer_0.safetensors" if format == "circuit_tracer" else folder


@pytest.mark.parametrize(("format", "what"), list(itertools.product(FORMATS, TENSORS)))
def test_tensors(format: str, what: str, tmp_path: Path) -> None:
    make, _, weights, matrix, bias = FORMATS[format]
    folder = tmp_path / "layers.1"
    make(folder)
    change, words = TENSORS[what]
    put_tensors(change(tensors_of(folder / weights), matrix, bias), folder / weights)
    named = NAMES.get(format, {})
    one_line(
        member(format, folder), folder / weights, words.format(matrix=named.get(matrix, matrix), bias=named.get(bias, bias))
    )


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_weights_file(format: str, tmp_path: Path) -> None:
    make, _, weights, _, _ = FORMATS[format]
    folder = tmp_path / "layers.1"
    make(folder)
    content = (folder / weights).read_bytes()
    (folder / weights).write_bytes(content[: len(content) // 2])
    one_line(member(format, folder), folder / weights)


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("gemma_scope", "openmoss")])
def test_a_configuration_that_is_no_json(format: str, tmp_path: Path) -> None:
    make, config, _, _, _ = FORMATS[format]
    folder = tmp_path / "layers.1"
    make(folder)
    (folder / config).write_text('{"trainer": ')
    one_line(member(format, folder), folder / config)


# format: (maker's arguments, what is stated instead, words)
CONFIGURATIONS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("saelens", {"d_in": 7}, ("W_enc is [6, 20], wanted [d_in 7, d_sae 20]",)),
    ("saelens", {"d_sae": "many"}, ("cfg.json: d_sae should be a whole number", "got 'many'")),
    ("saelens", {"architecture": "temporal"}, ("architecture temporal has no counterpart",)),
    ("saelens", {"architecture": "jumprellu"}, ("did you mean 'jumprelu'",)),
    ("saelens", {"architecture": "batchtopk"}, ("save_inference_model",)),
    ("saelens", {"normalize_activations": "layer_norm"}, ("normalize_activations 'layer_norm'",)),
    ("saelens", {"apply_b_dec_to_input": "yes"}, ("apply_b_dec_to_input should be true or false",)),
    ("saelens", {"metadata": [1]}, ("metadata should be an object",)),
    ("saelens", {"metadata": {}, "activation_fn_str": "tanh-relu"}, ("activation_fn 'tanh-relu'",)),
    ("saelens", {"metadata": {}, "hook_head_index": 3}, ("hook_head_index 3",)),
    ("sparsify", {"activation": "groupmax"}, ("activation 'groupmax'", "each of k groups")),
    ("sparsify", {"k": 0}, ("cfg.json: k should be a whole number of at least 1, got 0",)),
    ("sparsify", {"k": 21}, ("layers.1: import: k should be at most 20, the number of features, got 21",)),
    ("sparsify", {"num_latents": 21}, ("encoder.weight is [20, 6], wanted [num_latents 21, d_in 6]",)),
    ("sparsify", {"skip_connection": True}, ("skip_connection of an autoencoder",)),
    ("dictionary_learning", {"dict_class": "IdentityDict"}, ("trainer.dict_class", "unknown class 'IdentityDict'")),
    ("dictionary_learning", {"activation_dim": None}, ("activation_dim should be a whole number",)),
    ("dictionary_learning", {"dict_size": 21}, ("encoder.weight is [20, 6], wanted [dict_size 21, activation_dim 6]",)),
    ("dictionary_learning", {"k": 5}, ("trainer.k 5 contradicts k 4",)),
    ("llama_scope", {"d_sae": 21}, ("encoder.weight is [20, 6], wanted [",)),
    ("llama_scope", {"jump_relu_threshold": -1.0}, ("jump_relu_threshold should be a positive number",)),
    ("llama_scope", {"dataset_average_activation_norm": {"in": 3.0}}, ("out should be a positive number, is missing",)),
    ("llama_scope", {"dataset_average_activation_norm": None}, ("dataset_average_activation_norm should be an object",)),
    ("openmoss", {"sae_type": "molt"}, ("sae_type", "unknown kind 'molt'")),
    ("openmoss", {"act_fn": "batchtopk"}, ("act_fn 'batchtopk'", "depends on the batch", "jumprelu")),
    ("openmoss", {"act_fn": "batchlayertopk"}, ("act_fn 'batchlayertopk'", "depends on the batch")),
    ("openmoss", {"act_fn": "layertopk"}, ("act_fn layertopk of a sae",)),
    ("openmoss", {"act_fn": "topkk"}, ("act_fn", "did you mean 'topk'")),
    ("openmoss", {"norm_activation": "token-wise"}, ("norm_activation 'token-wise' depends on the data",)),
    ("openmoss", {"use_glu_encoder": True}, ("W_E_glu is missing, b_E_glu is missing",)),
    ("openmoss", {"use_glu_encoder": 1}, ("use_glu_encoder should be true or false",)),
    ("openmoss", {"expansion_factor": 0}, ("expansion_factor should be a positive number",)),
    ("openmoss", {"expansion_factor": 3.0}, ("W_E is [6, 20], wanted [d_model 6, d_sae 18]",)),
    ("openmoss", {"hook_point_in": "blocks.0.hook_resid_pre"}, ("no norm of blocks.0.hook_resid_pre",)),
    ("circuit_tracer", {"model_kind": "plt"}, ("model_kind should be transcoder_set or cross_layer_transcoder",)),
    ("circuit_tracer", {"feature_input_hook": 3}, ("feature_input_hook should be a string",)),
    ("circuit_tracer", {"activation": "topk"}, ("has thresholds", "activation topk")),
    ("gemma_scope", {"affine_connection": True}, ("affine_skip_connection is missing",)),
    ("gemma_scope", {"hf_hook_point_in": "model.layers.1.mystery.output"}, ("no hook point of this module is known",)),
]


@pytest.mark.parametrize(
    ("format", "changes", "words"), CONFIGURATIONS, ids=lambda value: str(value)[:60] if isinstance(value, dict) else ""
)
def test_configurations(format: str, changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "layers.1"
    make, config, *_ = FORMATS[format]
    make(folder)
    values = json.loads((folder / config).read_text())
    (values["trainer"] if format == "dictionary_learning" else values).update(changes)
    (folder / config).write_text(json.dumps(values))
    one_line(member(format, folder), *words)


class Runs:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("it-ran"),)


@pytest.mark.parametrize("content", ["object", "list", "number"])
def test_a_pickle_that_is_no_state_dict_is_not_run(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases.dictionary_learning(tmp_path / "a")
    value: Any = {"object": {"encoder.weight": Runs()}, "list": [torch.zeros(2)], "number": 3}[content]
    torch.save(value, tmp_path / "a" / "ae.pt")
    one_line(tmp_path / "a", "ae.pt", "save the state dict")
    (tmp_path / "a" / "ae.pt").write_bytes(pickle.dumps(value))
    one_line(tmp_path / "a", "ae.pt", "save the state dict")
    assert not (tmp_path / "it-ran").exists()


class Makes:
    """What a pickle would run, by a function of one module."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, ("it-ran",)


def test_a_pickle_that_would_run_code_is_told_without_torchs_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """torch's own advice is to load it all the same, and it warns of pickle protocols; neither is shown."""
    monkeypatch.chdir(tmp_path)
    cases.dictionary_learning(tmp_path / "a")
    file = tmp_path / "a" / "ae.pt"
    torch.save({"a": Makes()}, file)
    one_line(tmp_path / "a", "ae.pt: not a pickle of tensors alone (it names os.makedirs); such a file may run code")
    file.write_bytes(pickle.dumps({"a": Makes()}))
    with pytest.raises(DataError) as error:
        import_dictionary(tmp_path / "a")
    assert "ae.pt: not a pickle of tensors alone" in str(error.value)
    assert "weights_only" not in str(error.value)
    assert not recwarn.list
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("length", [0, 500])
def test_a_truncated_pickle_is_not_called_unsafe(length: int, tmp_path: Path) -> None:
    cases.dictionary_learning(tmp_path / "a")
    file = tmp_path / "a" / "ae.pt"
    file.write_bytes(file.read_bytes()[:length])
    one_line(tmp_path / "a", "ae.pt: not a file of torch, or truncated", "fetch the file again")


def test_an_npz_with_objects_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases.gemma_scope(tmp_path / "a", b_enc=np.array([Runs()], dtype=object))
    one_line(tmp_path / "a", "params.npz", "objects in it are never read")
    assert not (tmp_path / "it-ran").exists()


def test_a_resumed_state_without_its_factor(tmp_path: Path) -> None:
    cases.dictionary_learning(tmp_path / "a", resume=2.0)
    state = torch.load(tmp_path / "a" / "ae.pt", weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "norm_factor"}, tmp_path / "a" / "ae.pt")
    one_line(tmp_path / "a", "ae.pt", "norm_factor")


def test_a_scaling_of_features_that_is_not_one(tmp_path: Path) -> None:
    cases.saelens(tmp_path / "a")
    file = tmp_path / "a" / "sae_weights.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "scaling_factor": torch.ones(cases.F)}, file)
    assert import_dictionary(tmp_path / "a").config.act_fn == "jumprelu"
    save_file({**tensors, "scaling_factor": torch.full((cases.F,), 2.0)}, file)
    one_line(tmp_path / "a", file, "scaling_factor is not 1")


def test_negative_thresholds_of_a_tool_that_lets_negative_features_pass(tmp_path: Path) -> None:
    cases.circuit_tracer(tmp_path / "a")
    file = tmp_path / "a" / "layer_0.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "activation_function.threshold": -tensors["activation_function.threshold"]}, file)
    one_line(file, file, "20 thresholds are negative")


def test_a_clt_with_a_gap_and_one_with_some_thresholds(tmp_path: Path) -> None:
    cases.circuit_tracer_clt(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "W_enc_1.safetensors")
    save_file(
        {key: value for key, value in tensors.items() if not key.startswith("threshold")},
        tmp_path / "a" / "W_enc_1.safetensors",
    )
    one_line(tmp_path / "a", "some layers have thresholds")
    (tmp_path / "a" / "W_enc_1.safetensors").unlink()
    one_line(tmp_path / "a", "the layers [0, 2] have gaps")


def test_a_glu_encoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    cases.openmoss_clt(tmp_path / "a", use_glu_encoder=True)
    one_line(tmp_path / "a", "config.json", "use_glu_encoder of a clt")


def test_gemma_scope_clts_that_are_no_clt_of_ours(tmp_path: Path) -> None:
    cases.gemma_scope_2_clt(tmp_path / "skip_affine", affine=True)
    one_line(tmp_path / "skip_affine", "params_layer_0.safetensors", "affine_skip_connection", "no counterpart")
    cases.gemma_scope_2_clt(tmp_path / "backwards", backwards=1.0)
    one_line(tmp_path / "backwards", "params_layer_1.safetensors", "w_dec[:, :1]", "writes backwards")
    point = "model.layers.0.output"
    cases.gemma_scope_2_clt(tmp_path / "crosscoder", hf_hook_point_in=point, hf_hook_point_out=point)
    one_line(tmp_path / "crosscoder", "config.json", "a crosscoder, blocks.0.hook_resid_post")
    cases.gemma_scope_2_clt(tmp_path / "hooks", hf_hook_point_in=["model.layers.0.mlp.input"])
    one_line(tmp_path / "hooks", "config.json", "hf_hook_point_in should name a module, or a list of 3")
    cases.gemma_scope_2_clt(tmp_path / "gap")
    (tmp_path / "gap" / "params_layer_1.safetensors").unlink()
    one_line(tmp_path / "gap", "has the layers [0, 2]", "without a gap")
    cases.gemma_scope_2_clt(tmp_path / "narrow")
    file = tmp_path / "narrow" / "params_layer_2.safetensors"
    save_file({name: tensor[..., :-1].contiguous() for name, tensor in load_file(file).items()}, file)
    one_line(tmp_path / "narrow", file, "b_enc is [19], wanted [d_sae 20]")


def test_one_layer_of_a_clt_is_no_dictionary(tmp_path: Path) -> None:
    cases.gemma_scope_2_clt(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "params.safetensors").write_bytes((tmp_path / "a" / "params_layer_0.safetensors").read_bytes())
    (tmp_path / "b" / "config.json").write_bytes((tmp_path / "a" / "config.json").read_bytes())
    one_line(tmp_path / "b", "params.safetensors", "w_dec is [20, 3, 6]", "one layer of a cross-layer transcoder")


def test_a_folder_of_two_formats_asks_which(tmp_path: Path) -> None:
    folder = tmp_path / "layers.1"
    cases.saelens(folder)
    save_file(load_file(folder / "sae_weights.safetensors"), folder / "sae.safetensors")
    one_line(folder, "several formats (saelens, sparsify)", "--format")
    assert import_dictionary(folder, "saelens").config.d_sae == cases.F


def test_a_folder_of_many_dictionaries_asks_which(tmp_path: Path) -> None:
    for i in range(200):
        folder = tmp_path / "many" / f"layers.{i}"
        folder.mkdir(parents=True)
        (folder / "cfg.json").write_text("{}")
        (folder / "sae.safetensors").write_bytes(b"")
    with pytest.raises(DataError) as error:
        load_dictionary(tmp_path / "many")
    says(error.value, "holds 200 dictionaries", "which one", "layers.0", "192 more")
    assert len(str(error.value)) < 2000


def test_one_dictionary_in_a_folder_is_taken(tmp_path: Path) -> None:
    cases.sparsify(tmp_path / "run" / "layers.3.mlp")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": "tiny", "dataset": "text", "ctx_len": 32}))
    dictionary = load_dictionary(tmp_path / "run")
    assert dictionary.hooks_in == ("blocks.3.hook_mlp_out",)
    about = dictionary.config.provenance["imported"]["about"]
    assert about == {"model_name": "tiny", "dataset_path": "text", "context_size": 32}


def test_a_format_without_its_files_is_told_by_them(tmp_path: Path) -> None:
    cases.saelens(tmp_path / "a")
    (tmp_path / "a" / "sae_weights.safetensors").unlink()
    with pytest.raises(DataError) as error:
        import_dictionary(tmp_path / "a", format="saelens")
    assert "no dictionary of the format saelens (cfg.json, sae_weights.safetensors) here" in str(error.value)


def test_nothing_that_is_known(tmp_path: Path) -> None:
    one_line(tmp_path / "absent", tmp_path / "absent", "no dictionary here")
    (tmp_path / "a").mkdir()
    one_line(tmp_path / "a", "no dictionary of a known format (known: scopeline, saelens, sparsify,")
    with pytest.raises(PipelineError, match="did you mean 'sparsify'"):
        import_dictionary(tmp_path / "a", "sparsefy")


@pytest.mark.parametrize("path", ["hf:one", "hf:", "hf:a/b@@", "hf:a b/c"])
def test_a_path_of_the_hub_that_is_none(path: str) -> None:
    one_line(Path(path), path, "hf:user/repository/folder@revision")


def test_the_hub_that_cannot_be_reached() -> None:
    one_line(Path("hf:nobody/nothing/layers.1"), "hf:nobody/nothing/layers.1", "not in the cache", "HF_HUB_OFFLINE")


def test_a_snapshot_in_the_cache_is_read_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--user--saes"
    forward = cases.sparsify(repository / "snapshots" / commit / "layers.1")
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    dictionary = load_dictionary("hf:user/saes/layers.1@v1")
    x = cases.rows(20)
    torch.testing.assert_close(dictionary.encode(x.float()).double().detach(), forward(x)[0], rtol=1e-4, atol=1e-4)
    origin = dictionary.config.provenance["imported"]
    assert (origin["repository"], origin["folder"], origin["revision"]) == ("user/saes", "layers.1", commit)
    assert len(origin["digest"]) == 64
