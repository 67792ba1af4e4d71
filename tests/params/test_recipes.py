"""The recipe of a preset on another model: what is taken, where its hook points come to, what stays, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.errors import ParamsError
from pipeline.params.loader import params_from_dict
from pipeline.params.presets import apply_preset, overlay, preset_names
from pipeline.params.reading import read_mapping
from pipeline.params.recipes import LENGTHS, Target, note_on, recipe_on
from pipeline.params.schema import Params, flatten
from stages.preset import main
from tests.messages import saying, says
from tests.project import REPOSITORY

PARAMS = REPOSITORY / "params.yaml"
FILE: dict[str, Any] = read_mapping(PARAMS)
DEEP = Target("deep/model", 24, 512)
RUN = {"activations": {"total_tokens": 10**9}, "trainer": {"total_training_tokens": 10**9}}  # longer than any warm-up
OTHERS = ("lorsa", "demo-lorsa", "crosscoder-checkpoints")
RECIPES = [name for name in preset_names() if name not in OTHERS]
SIZED = {"d_model", "hook_point_in", "hook_point_out", "hook_points_in", "hook_points_out", "name"}


def on(recipe: str, target: Target = DEEP) -> Params:
    return params_from_dict(overlay(overlay(FILE, RUN), recipe_on(recipe, target, FILE)))


@pytest.mark.parametrize("name", RECIPES)
def test_text_lengths_and_store_stay_and_the_method_is_the_presets(name: str) -> None:
    found, preset, file = on(name), apply_preset(name, PARAMS), params_from_dict(overlay(FILE, RUN))
    for section in ("dataset", "activations", "evaluation", "analysis", "norm", "tracking"):
        assert getattr(found, section) == getattr(file, section)
    assert found.model.model_name == "deep/model"
    its, mine, before = (each.trainer.to_dict() for each in (preset, found, file))
    assert {key: mine[key] for key in its if key not in LENGTHS} == {key: its[key] for key in its if key not in LENGTHS}
    assert {key: mine[key] for key in LENGTHS} == {key: before[key] for key in LENGTHS}
    its, mine = preset.dictionary.to_dict(), found.dictionary.to_dict()
    assert {key: mine[key] for key in its if key not in SIZED} == {key: its[key] for key in its if key not in SIZED}
    assert found.fold == preset.fold


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith(("clt", "sweep"))])
def test_the_highest_hook_point_comes_to_the_middle_block(name: str) -> None:
    hooks, before = on(name).hook_points, apply_preset(name, PARAMS).hook_points
    blocks, old = ([int(hook.split(".")[1]) for hook in each] for each in (hooks, before))
    assert max(blocks) == 12
    assert [12 - block for block in blocks] == [max(old) - block for block in old]
    assert [hook.split(".")[2:] for hook in hooks] == [hook.split(".")[2:] for hook in before]
    assert max(int(hook.split(".")[1]) for hook in on(name, DEEP._replace(layer=7)).hook_points) == 7


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("demo-")])
def test_on_the_model_that_it_was_sized_for_a_recipe_is_the_preset(name: str) -> None:
    found = params_from_dict(overlay(overlay(FILE, RUN), recipe_on(name, Target("demo", 4, 128), FILE)))
    preset = apply_preset(name, PARAMS)
    for section in ("dictionary", "initializer", "fold", "sweep", "model"):
        assert getattr(found, section) == getattr(preset, section)


def test_a_cross_layer_transcoder_is_of_all_blocks_and_members_of_a_sweep_move_too() -> None:
    clt = on("demo-clt").dictionary.to_dict()
    assert list(clt["hook_points_in"]) == [f"blocks.{i}.ln2.hook_out" for i in range(24)]
    assert list(clt["hook_points_out"]) == [f"blocks.{i}.hook_mlp_out" for i in range(24)]
    assert set(on("pythia-160m-sweep").hook_points) == {"blocks.12.hook_resid_post", "blocks.10.hook_resid_post"}


@pytest.mark.parametrize(("name", "width"), [("gemma-scope", 768), ("demo-gemma-scope", 128), ("jumprelu-tanh-quad", 768)])
def test_drawn_rows_keep_their_length_at_another_width(name: str, width: int) -> None:
    bound, before = (each.initializer.decoder_uniform_bound for each in (on(name), apply_preset(name, PARAMS)))
    assert bound * 512**0.5 == pytest.approx(before * width**0.5, rel=1e-4)
    assert on("clt").initializer.decoder_uniform_bound == 1.0


def test_another_model_has_not_the_revision_of_the_one_before() -> None:
    stated = overlay(FILE, {"model": {"model_name": "old", "revision": "step1", "prepend_bos": True, "dtype": "bfloat16"}})
    other = recipe_on("transcoder", DEEP, stated)["model"]
    assert other == {"model_name": "deep/model", "revision": None, "tokenizer_name": None, "prepend_bos": "auto"}
    assert recipe_on("transcoder", DEEP._replace(name="old"), stated)["model"] == {}


@pytest.mark.parametrize(
    ("name", "target", "parts"),
    [
        ("lorsa", DEEP, ("--on:", "lorsa", "n_qk_heads", "rotary_dim", "presets/lorsa.yaml")),
        ("crosscoder-checkpoints", DEEP, ("--on:", "crosscoder-checkpoints", "models")),
        ("transcoder", DEEP._replace(layer=24), ("--layer 24", "deep/model", "0 to 23")),
        ("transcoder", DEEP._replace(layer=-1), ("--layer -1", "0 to 23")),
        ("crosscoder", DEEP._replace(layer=0), ("--on:", "blocks 5 to 6", "too low")),
        ("gemma-scop", DEEP, ("unknown", "gemma-scope")),
    ],
)
def test_what_is_refused(name: str, target: Target, parts: tuple[str, ...]) -> None:
    with pytest.raises(ParamsError, match=saying(*parts)):
        recipe_on(name, target, FILE)


def test_a_penalty_that_was_tuned_elsewhere_is_said() -> None:
    (note,) = note_on(recipe_on("gemma-scope", DEEP, FILE))
    says(note, "trainer.l1_coefficient 0.0006", "trainer.target_l0")
    assert note_on(recipe_on("transcoder", DEEP, FILE)) == []


def test_the_command(tmp_path: Path) -> None:
    run, options = CliRunner().invoke, ["--params", str(PARAMS)]
    printed = run(main, ["demo-gemma-scope", "--on", "demo", "--layer", "1", "-S", "trainer.lr=0.001", *options])
    assert printed.exit_code == 0, printed.stderr
    words = printed.stdout.split()
    assert {"dictionary.hook_point_in=blocks.1.hook_resid_post", "trainer.lr=0.001"} <= set(words)
    assert not [word for word in words if word.startswith(("dataset", "activations", "evaluation", "analysis", "norm."))]
    says(printed.stderr, "note: trainer.l1_coefficient 0.0036")
    long = ["-S", "trainer.total_training_tokens=800000000", "-S", "activations.total_tokens=1000000"]
    assert run(main, ["gemma-scope", "--on", "demo", *long, *options]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["clt", "--on", "/none/such"], ("/none/such", "hub id")),
        (["clt", "--layer", "3"], ("--layer", "--on")),
        (["clt", "-S", "trainer.lr"], ("-S trainer.lr", "key=value")),
        (["clt", "-S", "trainer.lr=[1"], ("-S trainer.lr=[1", "dvc exp run -S")),
        (["clt", "-S", "trainer.betas=0.1,0.2"], ("-S trainer.betas", "several values", "[0.1,0.2]")),
        (["clt", "-S", "trainer.lrr=1"], ("trainer.lrr", "unknown")),
        (["gemma-scope", "--on", "demo"], ("preset gemma-scope on demo", "trainer.lr_warm_up_steps")),  # a run too short for it
        (["--from-settings", "x.toml", "--on", "demo"], ("--on", "preset")),
    ],
)
def test_what_the_command_refuses(arguments: list[str], parts: tuple[str, ...]) -> None:
    refused = CliRunner().invoke(main, [*arguments, "--params", str(PARAMS)])
    assert refused.exit_code == 2
    says(refused.stderr, *parts)
    assert refused.stdout.startswith("--no-such-preset=")


def test_a_recipe_has_no_key_of_text_or_length() -> None:
    values = dict(flatten(recipe_on("gemma-scope", DEEP, FILE)))
    assert not [key for key in values if key.startswith(("dataset", "activations", "evaluation", "analysis", "norm."))]
    assert "trainer.total_training_tokens" not in values
