"""A dictionary directory is whole, or refused by name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.dictionaries.formats.interface import dictionary_format, format_at
from pipeline.dictionaries.saving import save_dictionary
from pipeline.dictionaries.store import load_dictionary, read_config
from pipeline.errors import DataError, ParamsError
from pipeline.params.dictionary_formats import DICTIONARY_FORMATS
from tests.dictionaries.make import filled, inputs
from tests.messages import says
from tests.sealing import rewritten


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    filled(act_fn="topk").save(tmp_path / "d")
    return tmp_path / "d"


def edit(path: Path, **changes: object) -> None:
    rewritten(path / "config.json", lambda values: values.update(changes))


def test_the_directory_holds_two_files_and_the_same_bytes_every_time(saved: Path, tmp_path: Path) -> None:
    assert sorted(os.listdir(saved)) == ["config.json", "weights.safetensors"]
    filled(act_fn="topk").save(tmp_path / "again")
    for name in os.listdir(saved):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_tensor_names_are_the_fields(saved: Path) -> None:
    assert set(load_file(saved / "weights.safetensors")) == {"W_E", "b_E", "W_D", "b_D"}
    glu = filled(act_fn="jumprelu", use_glu_encoder=True, kind="transcoder", d_out=5, skip=True)
    names = {"W_E", "b_E", "W_D", "b_D", "W_G", "b_G", "W_skip", "log_jumprelu_threshold"}
    assert set(glu.state_dict()) == names


def test_a_gate_scale_is_saved_with_the_weights(tmp_path: Path) -> None:
    dictionary = filled(act_fn="topk", sparsity_include_decoder_norm=False).fold(2.0)
    dictionary.save(tmp_path / "d")
    loaded = load_dictionary(tmp_path / "d")
    assert loaded.gate_scale is not None
    x = inputs(9, 6)
    assert torch.equal(loaded(x), dictionary(x))


def test_extra_entries_travel_in_the_configuration(tmp_path: Path) -> None:
    save_dictionary(filled(), tmp_path / "d", {"model": {"name": "m"}, "norms": {"input": {"mean_norm": 3.0}}})
    config = read_config(tmp_path / "d")
    assert config.provenance == {"model": {"name": "m"}}
    assert config.norms == {"input": {"mean_norm": 3.0}}


def test_dtype_is_that_of_the_weights_or_as_asked(saved: Path, tmp_path: Path) -> None:
    assert load_dictionary(saved).W_E.dtype == torch.float64
    assert load_dictionary(saved, dtype=torch.float32).W_E.dtype == torch.float32
    assert load_dictionary(saved, dtype="bfloat16").W_E.dtype == torch.bfloat16
    filled(dtype="float32").double().save(tmp_path / "wide")
    assert load_dictionary(tmp_path / "wide").W_E.dtype == torch.float64
    with pytest.raises(ParamsError, match="did you mean 'float32'"):
        load_dictionary(saved, dtype="float33")


def test_a_mistyped_path_is_told_what_is_near(saved: Path, tmp_path: Path) -> None:
    """The dictionaries beside it, the nearest in spelling first, members of a sweep too; `dvc repro` is no answer to a typing error."""
    folder = tmp_path / "runs" / "inference"
    for name in ("main", "other", "sweep/k8"):
        shutil.copytree(saved, folder / name)
    (tmp_path / "void").mkdir()
    for typed, near in (
        (folder / "mian", folder / "main"),
        (folder / "sweep" / "k9", folder / "sweep" / "k8"),
        (tmp_path / "runs" / "inferences" / "main", folder / "main"),
    ):
        with pytest.raises(DataError) as caught:
            load_dictionary(typed)
        says(caught.value, f"{typed}: no dictionary directory here;", str(near))
        assert str(caught.value).partition("near it")[2].split()[1].rstrip(",;") == str(near)
        assert "dvc repro" not in str(caught.value)
    with pytest.raises(DataError) as caught:
        load_dictionary(tmp_path / "void" / "mian")
    says(caught.value, f"{tmp_path / 'void'} is there", "give the path of one that is there")
    assert "dvc repro" not in str(caught.value)


def test_a_missing_directory_or_file_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no dictionary directory"):
        load_dictionary(tmp_path / "nowhere")
    (saved / "weights.safetensors").unlink()
    with pytest.raises(DataError, match=r"weights\.safetensors: the dictionary's weights file is missing"):
        load_dictionary(saved)
    (saved / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(
        DataError, match=r"d: no dictionary of a known format \(known: scopeline.*\); .*stages.import_dictionary .*d`"
    ):
        load_dictionary(saved)
    (saved / "weights.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"config\.json: a dictionary's configuration is missing"):
        load_dictionary(saved)


def test_a_foreign_directory_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    with pytest.raises(DataError, match="no dictionary of a known format"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize("name", list(DICTIONARY_FORMATS))
def test_a_format_reads_what_it_has_written_and_is_recognised(name: str, tmp_path: Path) -> None:
    folded = filled(act_fn="jumprelu").fold(2.0)
    save_dictionary(folded, tmp_path / "d", format=name)
    assert format_at(tmp_path / "d") is dictionary_format(name)
    x = inputs(9, 6)
    torch.testing.assert_close(load_dictionary(tmp_path / "d")(x), folded(x))


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"unknown dictionary format 'scopelin'; did you mean 'scopeline'\?"):
        save_dictionary(filled(), tmp_path / "d", format="scopelin")


def test_truncated_weights_are_named(saved: Path) -> None:
    content = (saved / "weights.safetensors").read_bytes()
    (saved / "weights.safetensors").write_bytes(content[:-10])
    with pytest.raises(DataError, match=r"weights\.safetensors: truncated"):
        load_dictionary(saved)


def test_altered_weights_are_named(saved: Path) -> None:
    content = bytearray((saved / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "weights.safetensors").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"weights\.safetensors: altered"):
        load_dictionary(saved)


def test_weights_of_another_shape_are_named(saved: Path) -> None:
    edit(saved, d_sae=21)
    with pytest.raises(DataError, match=r"W_E is \[6, 20\], wanted \[6, 21\]"):
        load_dictionary(saved)
    edit(saved, d_sae=20, act_fn="jumprelu")
    with pytest.raises(DataError, match="log_jumprelu_threshold missing"):
        load_dictionary(saved)


def test_a_file_that_is_no_safetensors_is_named(saved: Path) -> None:
    import hashlib

    (saved / "weights.safetensors").write_bytes(b"not tensors")
    edit(saved, weights={"size": 11, "sha256": hashlib.sha256(b"not tensors").hexdigest()})
    with pytest.raises(DataError, match="not a safetensors file"):
        load_dictionary(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format_version 99 is unknown, this version reads 1"),
        ({"weights": None}, "record of the weights"),
        ({"kind": "clt2"}, "dictionary.kind: .*'clt2'"),
        ({"surplus": 1}, "dictionary.surplus: unknown key"),
        ({"folded": True}, "'inference' and folded go together"),
    ],
)
def test_a_foreign_configuration_is_named(saved: Path, changes: dict[str, object], message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(DataError, match=message) as error:
        load_dictionary(saved)
    assert str(saved / "config.json") in str(error.value)


def test_damaged_json_is_named(saved: Path) -> None:
    (saved / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json: a dictionary's configuration is damaged"):
        read_config(saved)
    (saved / "config.json").write_text("[]")
    with pytest.raises(DataError, match="should be an object, got a list"):
        read_config(saved)


def test_a_failed_save_leaves_the_old_directory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / "weights.safetensors").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr("pipeline.dictionaries.formats.scopeline.write_json", fail)
    with pytest.raises(OSError, match="full"):
        filled(seed=5).save(saved)
    assert (saved / "weights.safetensors").read_bytes() == before
    assert sorted(os.listdir(saved.parent)) == ["d"]


def test_weights_saved_by_someone_else_are_seen(saved: Path) -> None:
    tensors = load_file(saved / "weights.safetensors")
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, saved / "weights.safetensors")
    with pytest.raises(DataError, match="altered"):
        load_dictionary(saved)


@pytest.mark.parametrize("norm", [5, [1.0], {"mean_norm": "long"}, {"max_norm_factor": True}])
def test_norms_of_another_shape(saved: Path, norm: object) -> None:
    rewritten(saved / "config.json", lambda config: config.update(norms={"input": norm}))
    with pytest.raises(DataError) as caught:
        load_dictionary(saved)
    says(caught.value, "config.json:", "dictionary.norms:", "input", "mean_norm")
