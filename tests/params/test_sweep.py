"""sweep: what members may have of their own, how they are stated, and every fault of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ParamsError
from pipeline.params.loader import load_params, params_from_dict
from pipeline.params.presets import NAMED
from pipeline.params.reading import read_mapping
from pipeline.params.schema import Params

MID, LATE = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"


def with_sweep(sweep: Any) -> Params:
    return params_from_dict(read_mapping("params.yaml") | {"sweep": sweep})


def faults(sweep: Any) -> list[str]:
    with pytest.raises(ParamsError) as error:
        with_sweep(sweep)
    return error.value.faults


def test_a_run_without_a_sweep_is_its_only_member() -> None:
    params = load_params()
    assert params.sweep is None
    assert dict(params.members) == {"": params}


def test_a_member_is_the_run_with_its_keys_and_a_name_of_its_own() -> None:
    params = with_sweep({"k16": {"dictionary.top_k": 16, "trainer.lr": 2e-4}, "wide": {"dictionary": {"expansion_factor": 32}}})
    assert list(params.members) == ["k16", "wide"]
    values = read_mapping("params.yaml")
    values["dictionary"] |= {"top_k": 16, "name": "main-k16"}
    values["trainer"] |= {"lr": 2e-4}
    assert params.members["k16"] == params_from_dict(values)
    assert params.members["wide"].dictionary.expansion_factor == 32.0
    assert params.members["wide"].dictionary.top_k == params.dictionary.top_k


def test_the_store_has_the_hook_points_of_all_members_each_once() -> None:
    sweep = {
        "late": {},
        "mid": {"dictionary.hook_point_in": MID},
        "mid16": {"dictionary.hook_point_in": MID, "dictionary.top_k": 16},
    }
    params = with_sweep(sweep)
    assert params.hook_points == (LATE, MID)
    assert params.dictionary_hook_points == (LATE, MID)
    assert params.members["mid"].hook_points == (MID,)


def test_stated_hook_points_are_those_of_every_member() -> None:
    values = read_mapping("params.yaml")
    values["activations"]["hook_points"] = [LATE]
    with pytest.raises(ParamsError, match=rf"sweep\.mid: activations\.hook_points: the dictionary needs {MID}"):
        params_from_dict(values | {"sweep": {"mid": {"dictionary.hook_point_in": MID}}})


def test_a_member_may_be_of_another_kind() -> None:
    keys = {
        "kind": "crosscoder",
        "hook_point_in": None,
        "apply_b_dec_to_input": False,
        "hook_points_in": [MID, LATE],
    }
    member = with_sweep({"both": {"dictionary": keys}}).members["both"]
    assert member.dictionary.kind == "crosscoder"
    assert member.hook_points == (MID, LATE)


def test_the_draw_of_a_member_may_have_a_seed_of_its_own() -> None:
    params = with_sweep({"first": {}, "second": {"initializer.seed": 7}})
    assert [member.initializer.drawn_by(params.seed) for member in params.members.values()] == [params.seed, 7]


def test_the_parameters_of_a_sweep_can_be_written_and_read_again() -> None:
    params = with_sweep({"k16": {"dictionary.top_k": 16}})
    assert params_from_dict(params.to_dict()) == params
    assert "sweep" in NAMED


@pytest.mark.parametrize(
    ("sweep", "fault"),
    [
        ({"a": {"dictionary.top_kk": 16}}, "sweep.a: dictionary.top_kk: unknown key; did you mean 'top_k'?"),
        ({"a": {"top_k": 16}}, "sweep.a: top_k: unknown key; did you mean 'dictionary.top_k'?"),
        ({"a": {"dictionry.top_k": 16}}, "sweep.a: dictionry.top_k: unknown key; did you mean 'dictionary.top_k'?"),
        ({"a": {"dictionary": 16}}, "sweep.a: dictionary: a section, of which members state keys; write dictionary.KEY"),
        ({"a": {"nothing": 16}}, "sweep.a: nothing: unknown section 'nothing'"),
        ({"a": {"seed": 3}}, "initializer.seed here for another draw"),
        ({"a": {"activations.batch_size": 64}}, "sweep.a: activations.batch_size: one pass over the activations serves all"),
        ({"a": {"model": {"dtype": "bfloat16"}}}, "sweep.a: model.dtype: one pass over the activations serves all"),
        (
            {"a": {"trainer.total_training_tokens": 5}},
            "sweep.a: trainer.total_training_tokens: members are trained on the same",
        ),
        ({"a": {"fold.calibration_tokens": 5}}, "sweep.a: fold.calibration_tokens: members are trained on the same rows"),
        ({"a": {"trainer.model_loss": "kl"}}, "sweep.a: trainer.model_loss: kl, but the members of a sweep share batches"),
        ({"a": {"dictionary.name": "b"}}, "sweep.a: dictionary.name: the members' directories"),
        ({"a": {"dictionary.top_k": 16, "dictionary": {"top_k": 8}}}, "sweep.a: dictionary.top_k: stated twice"),
        (
            {"a": {"dictionary.act_fn": "topp"}},
            "sweep.a: dictionary.act_fn: 'topp' is none of the choices; did you mean 'topk'?",
        ),
        ({"a": {"trainer.lr_warm_up_steps": 5000}}, "sweep.a: trainer.lr_warm_up_steps"),
        ({"k16": {}, "K16": {}}, "sweep: members 'k16' and 'K16' differ in case alone"),
        ({"a": 5}, "sweep: a: expected a mapping of keys to values, got the integer 5"),
        ({"a/b": {}}, "sweep: expected at most 64 letters"),
        ({}, "sweep: expected a mapping of names or null, got an empty one; write null"),
        ([{"dictionary.top_k": 16}], "sweep: expected a mapping of names or null, got a list"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_named(sweep: Any, fault: str) -> None:
    found = faults(sweep)
    assert len(found) == 1
    assert fault in found[0]


def test_all_faults_of_all_members_are_told_at_once() -> None:
    found = faults({"a": {"dictionary.top_k": -1, "trainer.lrr": 1}, "b": {"seed": 1, "fold.mode": "x"}})
    assert [fault.split(": ")[1:3] for fault in found] == [
        ["sweep.a", "dictionary.top_k"],
        ["sweep.a", "trainer.lrr"],
        ["sweep.b", "seed"],
        ["sweep.b", "fold.mode"],
    ]


def test_a_name_that_is_there_twice_is_refused_by_the_reader(tmp_path: Path) -> None:
    text = Path("params.yaml").read_text().replace("\nsweep:", "\nsweep:\n  a: {}\n  a: {}")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=r"sweep\.a: duplicate key"):
        load_params(tmp_path / "params.yaml")
