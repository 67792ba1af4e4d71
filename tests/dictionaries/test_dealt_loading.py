"""A dictionary that several processes read: each its features, as if it had read all and taken its part."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.formats import scopeline
from pipeline.dictionaries.formats.interface import dictionary_format
from pipeline.dictionaries.sharding import deal_
from pipeline.dictionaries.store import load_dealt, load_dictionary, stored_digest
from pipeline.dictionaries.weights import weights_digest
from pipeline.errors import DataError, ParamsError
from tests.dictionaries.test_contract import CASES
from tests.messages import saying
from tests.training.test_every_kind import make
from tests.training.threads import Place, in_mesh


def saved(path: Path, kind: str, act_fn: str, scaled: bool = False) -> Dictionary:
    made = make(kind, act_fn)
    if scaled:
        made.gate_scale = torch.rand(made.feature_shape) + 0.5
    made.save(path)
    return load_dictionary(path)


def loaded(path: Path, size: int) -> list[Dictionary]:
    return in_mesh(1, size, lambda place: load_dealt(path, place.features))


@pytest.mark.parametrize(("kind", "act_fn"), CASES)
def test_the_part_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, act_fn: str) -> None:
    whole = saved(tmp_path / "one", kind, act_fn, scaled=act_fn == "jumprelu")

    def dealt(place: Place) -> Dictionary:
        own = copy.deepcopy(whole)
        deal_(own, place.features)
        return own

    monkeypatch.setattr(scopeline, "load_tensors", lambda _: pytest.fail("the weights are read whole"))
    for wanted, found in zip(in_mesh(1, 2, dealt), loaded(tmp_path / "one", 2), strict=True):
        assert found.config == wanted.config
        assert [name for name, _ in found.named_parameters()] == [name for name, _ in wanted.named_parameters()]
        ours, theirs = found.state_dict(), wanted.state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].equal(tensor), name
            assert ours[name].stride() == tensor.stride(), name
        assert found.n_features == whole.d_sae // 2


@pytest.mark.parametrize("piece", [1, 50, 2**24])
def test_the_digest_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr("pipeline.dictionaries.store.PIECE", piece)
    for kind, act_fn in (("sae", "jumprelu"), ("clt", "topk"), ("lorsa", "topk")):
        whole = saved(tmp_path / kind, kind, act_fn, scaled=True)
        found = in_mesh(1, 2, lambda place, kind=kind: stored_digest(tmp_path / kind, place.features))
        assert found == [weights_digest(whole)] * 2


def test_a_damaged_file_is_told_by_all(tmp_path: Path) -> None:
    path = tmp_path / "one"
    saved(path, "sae", "topk")
    file = path / "weights.safetensors"
    content = file.read_bytes()

    def told(place: Place) -> str:
        with pytest.raises(DataError) as caught:
            load_dealt(path, place.features)
        return str(caught.value)

    damaged: dict[str, Any] = {"altered": content[:-1] + bytes([content[-1] ^ 1]), "truncated": content[:-8], "missing": None}
    for word, other in damaged.items():
        file.unlink()
        if other is not None:
            file.write_bytes(other)
        with pytest.raises(DataError, match=saying("weights.safetensors", word)) as alone:
            load_dictionary(path)
        assert in_mesh(1, 2, told) == [str(alone.value)] * 2


def test_what_does_not_divide_is_refused_before_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "one", "sae", "topk")
    monkeypatch.setattr(type(dictionary_format("scopeline")), "tensors", lambda *_, **__: pytest.fail("weights are read"))
    with pytest.raises(ParamsError, match=saying("distributed.model_parallel_size", "3", "20 features")):
        loaded(tmp_path / "one", 3)
