"""Presets fix every key but those left alone, and their flags reach params.yaml through the shell and DVC unchanged."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.errors import ParamsError
from pipeline.params.loader import load_params, params_from_dict
from pipeline.params.preset_flags import flags, flags_over
from pipeline.params.presets import (
    DIRECTORY,
    apply_preset,
    header,
    is_left_alone,
    overlay,
    preset_names,
    read_preset,
)
from pipeline.params.reading import read_mapping
from pipeline.params.schema import Params, flatten
from stages.preset import main
from tests.messages import saying, says

ROOT = Path(__file__).resolve().parents[2]
SMALL = [name for name in preset_names() if name.startswith("demo-")]
SMOLLM2 = [name for name in preset_names() if name.startswith("smollm2-")]  # a real model on two cores
LARGE = [name for name in preset_names() if name not in (*SMALL, *SMOLLM2)]
# Trainer's keys that make a method; the others are sizes, rates and lengths.
OF_THE_METHOD = (
    "optimizer",
    "betas",
    "lr_scheduler_name",
    "sparsity_loss_type",
    "p",
    "tanh_stretch_coefficient",
    "frequency_scale",
    "l0_bandwidth",
    "target_l0_mode",
    "auxk_coefficient",
    "decoder_constraint",
    "matryoshka_widths",
)


def test_pythia_160m_has_designs_figures() -> None:
    params = apply_preset("pythia-160m", ROOT / "params.yaml")
    model, acts, dictionary, trainer = params.model, params.activations, params.dictionary, params.trainer
    assert (model.model_name, model.dtype) == ("EleutherAI/pythia-160m", "float16")
    assert (params.dataset.dataset_name_or_path, params.dataset.split) == ("Hzfinfdu/SlimPajama-3B", "train")
    assert (acts.context_size, acts.model_batch_size, acts.batch_size, acts.buffer_size) == (1024, 32, 4096, 16384)
    assert (acts.total_tokens, trainer.total_training_tokens) == (800_000_000, 800_000_000)
    assert acts.buffer_shuffle.perm_seed == 42
    assert params.hook_points == ("blocks.6.hook_resid_post",)
    assert (dictionary.expansion_factor, dictionary.act_fn, dictionary.top_k) == (8.0, "batchtopk", 50)
    assert trainer.lr == 1e-4


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_has_a_value_for_every_key_but_those_left_alone(name: str) -> None:
    named = ("models", "sweep")
    stated = {next((of for of in named if key.startswith(f"{of}.")), key) for key, _ in flatten(read_preset(name))}
    every = {key for key, _ in flatten(read_mapping(ROOT / "params.yaml"))}
    assert stated == {key for key in every if not is_left_alone(key)}


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_does_not_depend_on_what_it_is_laid_over(name: str) -> None:
    over_defaults = params_from_dict(overlay(Params().to_dict(), read_preset(name)))
    over_file = apply_preset(name, ROOT / "params.yaml")
    differing = {
        key for (key, a), (_, b) in zip(flatten(over_defaults.to_dict()), flatten(over_file.to_dict()), strict=True) if a != b
    }
    assert all(is_left_alone(key) for key in differing)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_what_it_costs(name: str) -> None:
    top = header(name)
    assert top[0].startswith(f"{name}: ")
    for cost in ("tokens: ", "disk: ", "GPU hours: "):
        assert any(line.startswith(cost) for line in top), cost
    assert any("estimate" in line or "took" in line or "docs/" in line for line in top) or name in SMALL


@pytest.mark.parametrize("name", LARGE)
def test_figures_of_the_large_follow_from_their_keys(name: str) -> None:
    params = apply_preset(name, ROOT / "params.yaml")
    tokens = params.activations.total_tokens
    assert params.trainer.total_training_tokens == tokens
    store = tokens * 768 * 2 * len(params.hook_points)
    # tokens, document ids and offsets in tokens.zarr; tokens, positions, context ids and mask in the store
    beside = tokens * (16 + 13)
    text = "\n".join(header(name))
    assert f"tokens: {tokens // 10**6}M, " in text
    assert f"({params.total_steps:,} steps of 4,096)" in text
    assert f"{params.dictionary.d_sae:,} features (8x)" in header(name)[0]
    if params.activations.source == "live":
        assert f"disk: {tokens * 16 / 1e9:.0f} GB" in text
        return
    assert f"{store / 1e12:.2f} TB activations" in text
    assert f"disk: {(store + beside) / 1e12:.2f} TB" in text


@pytest.mark.parametrize("name", SMOLLM2)
def test_figures_of_those_for_two_cores_follow_from_their_keys(name: str) -> None:
    params, text = apply_preset(name, ROOT / "params.yaml"), "\n".join(header(name))
    tokens, steps = params.activations.total_tokens, params.total_steps
    assert params.trainer.total_training_tokens == 4 * tokens
    assert (
        f"tokens: {tokens // 1000}K, stored and passed four times ({steps:,} steps of {params.activations.batch_size:,})"
        in text
    )
    assert f"{params.evaluation.tokens // 1024}K held-out ones evaluated, {params.analysis.tokens // 1000}K analysed" in text
    assert (
        f"disk: {tokens * 576 * 2 / 1e9:.1f} GB of activations ({tokens // 1000}K x {params.dictionary.d_model} x 2 bytes)"
        in text
    )
    assert f"{params.dictionary.d_sae:,} features (8x)" in header(name)[0]
    assert f"after block {params.dictionary.hook_point_in.split('.')[1]} of 30" in header(name)[0]
    assert params.activations.max_norm_factor == 10.0


def test_both_smollm2_differ_in_model_and_text_alone() -> None:
    hub, local = (
        dict(flatten(apply_preset(name, ROOT / "params.yaml").to_dict())) for name in ("smollm2-135m", "smollm2-135m-local")
    )
    assert {key for key in hub if hub[key] != local[key]} == {
        "model.model_name", "dataset.dataset_name_or_path", "dataset.streaming"
    }  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_the_small_run_on_the_embedded_defaults_store(name: str) -> None:
    default = load_params(ROOT / "params.yaml")
    small = apply_preset(name, ROOT / "params.yaml")
    stored = small.activations
    if small.dictionary.READS_SEQUENCES:  # another store of the same tokens, the same number of them in a batch
        assert stored.tokens_per_batch == default.activations.tokens_per_batch
        plain = ("target", "batch_size", "buffer_size")
        stored = dataclasses.replace(stored, **{key: getattr(default.activations, key) for key in plain})
    stored = dataclasses.replace(stored, source=default.activations.source)
    assert (small.model, small.dataset, stored) == (default.model, default.dataset, default.activations)
    assert (small.norm, small.evaluation) == (default.norm, default.evaluation)
    n_layers = len({hook.split(".")[1] for hook in small.hook_points})
    assert n_layers > 1 or all(hook.startswith("blocks.2.") for hook in small.hook_points)
    assert 1_000_000 <= small.trainer.total_training_tokens <= 2_000_000


# demo-live and demo-sweep are the embedded default, as pythia-160m-live and pythia-160m-sweep are pythia-160m.
@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("demo-live", "demo-sweep")])
def test_the_small_are_the_large_at_another_size(name: str) -> None:
    """What makes a preset what it is (gate, losses, constraint, start, hook points but for the layer) is in both."""
    small = dict(flatten(apply_preset(name, ROOT / "params.yaml").to_dict()))
    large = dict(flatten(apply_preset(name.removeprefix("demo-"), ROOT / "params.yaml").to_dict()))
    sized = {"d_model", "expansion_factor", "top_k", "hook_point_in", "hook_point_out", "hook_points_in", "hook_points_out"}
    sized |= {"n_qk_heads", "d_qk_head", "n_ctx", "rotary_dim"}  # the model's
    same = [key for key in small if key.startswith(("dictionary.", "initializer.")) and key.split(".")[1] not in sized]
    same = [key for key in same if not key.endswith("_bound")]  # goes with the width
    same += [f"trainer.{key}" for key in OF_THE_METHOD]
    differing = {key: (small[key], large[key]) for key in same if small[key] != large[key]}
    assert not differing
    for key in ("dictionary.hook_point_in", "dictionary.hook_point_out"):
        if key not in small:
            continue
        assert (small[key] or "").replace("blocks.2.", "blocks.6.") == (large[key] or "")


@pytest.mark.parametrize(("name", "of"), [("demo-live", None), ("pythia-160m-live", "pythia-160m")])
def test_live_presets_are_live_and_nothing_else(name: str, of: str | None) -> None:
    live = apply_preset(name, ROOT / "params.yaml")
    stored = load_params(ROOT / "params.yaml") if of is None else apply_preset(of, ROOT / "params.yaml")
    assert live.activations.source == "live"
    other = {"source": stored.activations.source, "buffer_size": stored.activations.buffer_size}
    assert dataclasses.replace(live, activations=dataclasses.replace(live.activations, **other)) == stored


@pytest.mark.parametrize(("name", "of"), [("demo-sweep", None), ("pythia-160m-sweep", "pythia-160m")])
def test_sweep_presets_are_six_members_and_nothing_else(name: str, of: str | None) -> None:
    several = apply_preset(name, ROOT / "params.yaml")
    assert dataclasses.replace(several, sweep=None) == (
        load_params(ROOT / "params.yaml") if of is None else apply_preset(of, ROOT / "params.yaml")
    )
    members = [member.dictionary for member in several.members.values()]
    assert len(members) == 6
    assert {member.top_k for member in members} == {8, 16, 32, 64}
    assert len({member.expansion_factor for member in members}) == len(several.hook_points) == 2


def test_presets_are_what_their_names_say() -> None:
    def of(name: str) -> Params:
        return apply_preset(name, ROOT / "params.yaml")

    tanh = of("jumprelu-tanh-quad")
    assert (tanh.dictionary.act_fn, tanh.dictionary.jumprelu_threshold_window) == ("jumprelu", 2.0)
    assert tanh.trainer.sparsity_loss_type == "tanh-quad"
    assert tanh.trainer.lp_coefficient is not None
    gemma = of("gemma-scope")
    assert (gemma.dictionary.act_fn, gemma.dictionary.norm_activation) == ("jumprelu", "dataset-rms")
    assert gemma.dictionary.to_dict()["apply_b_dec_to_input"]
    assert gemma.initializer.init_log_jumprelu_threshold_value == pytest.approx(math.log(0.001), abs=1e-5)
    assert gemma.initializer.init_encoder_with_decoder_transpose
    t = gemma.trainer
    assert (t.sparsity_loss_type, t.l0_bandwidth, t.decoder_constraint) == ("l0", 0.001, "unit_norm")
    assert (t.betas, t.lr, t.lr_start_ratio, t.lr_warm_up_steps) == ((0.0, 0.999), 7e-5, 0.1, 1000)
    assert (t.l1_coefficient_warmup_steps, gemma.activations.batch_size) == (10_000, 4096)
    matryoshka = of("matryoshka-batchtopk")
    assert (matryoshka.dictionary.act_fn, matryoshka.trainer.matryoshka_widths) == ("batchtopk", (0.0625, 0.25, 1.0))
    for name, skip in (("transcoder", False), ("transcoder-skip", True)):
        transcoder = of(name)
        assert transcoder.hook_points == ("blocks.6.ln2.hook_out", "blocks.6.hook_mlp_out")
        assert (transcoder.dictionary.kind, transcoder.dictionary.to_dict()["skip"]) == ("transcoder", skip)
    layers, checkpoints = of("crosscoder"), of("crosscoder-checkpoints")
    assert layers.models is None
    assert layers.hook_points == ("blocks.5.hook_resid_post", "blocks.6.hook_resid_post")
    assert checkpoints.hook_points == ("blocks.6.hook_resid_post", "early:blocks.6.hook_resid_post")
    early, late = checkpoints.language_model("early"), checkpoints.language_model("")
    assert (early.model_name, early.revision, late.revision) == (late.model_name, "step16000", None)
    assert (early.backend, early.dtype) == (late.backend, late.dtype)
    attention = of("attention-out")
    assert attention.hook_points == ("blocks.6.hook_attn_out",)
    assert attention.initializer.initialize_W_D_with_active_subspace
    assert attention.initializer.d_active_subspace is None


@functools.cache
def flags_of(name: str, params: Path = ROOT / "params.yaml") -> list[str]:
    return flags_over(name, params)


def test_flags_have_nothing_that_a_shell_would_change() -> None:
    for name in preset_names():
        for word in flags_of(name):
            assert re.fullmatch(
                r"-S|[a-z0-9_.A-Z]+=(\[[A-Za-z0-9_./@%:+,-]*\]|[A-Za-z0-9_./@%:+-]+|\{[A-Za-z0-9_./@%:+,{}-]*\})", word
            ), word


@pytest.mark.parametrize("value", ["a b", "it's", "*", "a=b", "", "null", "True", "1e5", "12", "a,b", "$x", "~", "nan"])
def test_values_that_need_quotes_are_refused(value: str) -> None:
    with pytest.raises(ParamsError, match=saying("model.model_name:", "flag", "quotes")):
        flags({"model": {"model_name": value}})


def test_flag_values() -> None:
    values = {"a": {"b": None, "c": True, "d": [0.9, 0.999], "e": [], "f": 1e-8, "g": 3, "h": 0.0, "i": "x/y-1.z"}}
    assert flags(values)[1::2] == [
        "a.b=null",
        "a.c=true",
        "a.d=[0.9,0.999]",
        "a.e=[]",
        "a.f=1e-08",
        "a.g=3",
        "a.h=0.0",
        "a.i=x/y-1.z",
    ]


def test_flags_put_named_models_in_the_place_of_those_that_are_there() -> None:
    models = {"early": {"model_name": "a/b", "revision": "step1"}, "late": {"model_name": "c", "revision": None}}
    found = flags({"seed": 1, "models": models})[1::2]
    assert found == [
        "seed=1",
        "models=null",
        "models={early:{model_name:a/b,revision:step1},late:{model_name:c,revision:null}}",
    ]
    assert flags({"models": None})[1::2] == ["models=null"]


DVC_ARGUMENTS = """
import itertools, os, sys
from dvc.cli import parse_args
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
every = set()
for is_end, words in itertools.groupby(sys.argv[1:], lambda word: word == "END"):
    if is_end:
        continue
    directory, *rest = words
    args = parse_args(["exp", "run", *rest])
    overrides = to_path_overrides(args.set_param)
    for path, values in overrides.items():
        every |= set(values)
        apply_overrides(os.path.join(directory, path), values)
assert len(get_hydra_sweeps({"params.yaml": sorted(every)})) == 1  # none is a choice of several
"""


def test_flags_reach_params_yaml_through_the_shell_and_dvc(tmp_path: Path) -> None:
    (tmp_path / "apply.py").write_text(DVC_ARGUMENTS)
    command = f'"{sys.executable}" -W ignore apply.py'
    params = (ROOT / "params.yaml").read_text()
    assert "\nmodels: " in params  # a model that an earlier run has left there goes
    changed = params.replace("\nmodels: ", "\nmodels: {old: {model_name: x, revision: null}} ")
    changed = changed.replace("\n  top_k: 24 ", "\n  top_k: 7 ").replace("\n  eps: 1.0e-8 ", "\n  eps: 0.5 ")
    assert "\n  top_k: 7 " in changed
    assert "\n  eps: 0.5 " in changed
    (tmp_path / "params.yaml").write_text(changed)
    for name in preset_names():  # one process for all: dvc takes seconds to import
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "params.yaml", tmp_path / name / "params.yaml")
        (tmp_path / name / "flags.txt").write_text(" ".join(flags_of(name, tmp_path / "params.yaml")))
        command += f" {name} $(cat {name}/flags.txt) -S trainer.lr=2e-5 END"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    for name in preset_names():
        wanted = overlay(read_mapping(ROOT / "params.yaml"), read_preset(name))
        wanted["trainer"]["lr"] = 2e-05
        assert load_params(tmp_path / name / "params.yaml") == params_from_dict(wanted), name


def test_preset_command(tmp_path: Path) -> None:
    run = CliRunner().invoke
    options = ["--params", str(ROOT / "params.yaml")]
    printed = run(main, ["pythia-160m", *options])
    assert printed.exit_code == 0
    assert printed.stdout.count("\n") == 1
    assert "-S trainer.betas=[0.9,0.999]" in printed.stdout
    whole = run(main, ["pythia-160m", "--yaml", *options])
    (tmp_path / "whole.yaml").write_text(whole.stdout)
    assert load_params(tmp_path / "whole.yaml") == apply_preset("pythia-160m", ROOT / "params.yaml")
    listed = run(main, ["--list"])
    assert all(f"{name}: " in listed.stdout for name in preset_names())
    assert "disk: " in listed.stdout


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (["pythia-16m"], ("pythia-16m", "'pythia-160m'", "attention-out")),
        ([], ("attention-out",)),
        (["a b"], ("unknown", "a b")),
    ],
)
def test_a_failed_preset_stops_dvc_too(name: list[str], parts: tuple[str, ...]) -> None:
    failed = CliRunner().invoke(main, [*name, "--params", str(ROOT / "params.yaml")])
    assert failed.exit_code == 2
    says(failed.stderr, *parts)
    assert re.fullmatch(r"--no-such-preset=[A-Za-z0-9._-]+\n", failed.stdout)


def test_preset_faults_name_the_preset_and_the_file(tmp_path: Path) -> None:
    broken = tmp_path / "params.yaml"
    broken.write_text((ROOT / "params.yaml").read_text().replace("context_size:", "contextsize:"))
    failed = CliRunner().invoke(main, ["pythia-160m", "--params", str(broken)])
    assert failed.exit_code == 2
    says(failed.stderr, "pythia-160m", f"{broken}:", "activations.contextsize:", "unknown")


def test_presets_are_beside_the_pipeline() -> None:
    assert DIRECTORY == ROOT / "presets"
    assert "pythia-160m" in preset_names()


def keys(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words[1::2]]


@pytest.mark.parametrize("name", preset_names())
def test_flags_are_what_the_parameter_file_does_not_say_already(name: str) -> None:
    """In the file's order; names with sections of their own are null first, so that those of before go, and stand at the end."""
    file, preset = read_mapping(ROOT / "params.yaml"), read_preset(name)
    named = [key for key in ("models", "sweep") if file[key] != preset[key]]
    wanted = [key for key, value in flatten(file) if (key, value) not in list(flatten(preset)) and not is_left_alone(key)]
    assert keys(flags_of(name)) == [*wanted, *named]
    assert len(wanted) < 50


def test_a_preset_that_the_file_is_already_has_no_flag(tmp_path: Path) -> None:
    whole = CliRunner().invoke(main, ["gemma-scope", "--yaml", "--params", str(ROOT / "params.yaml")])
    (tmp_path / "params.yaml").write_text(whole.stdout)
    assert flags_over("gemma-scope", tmp_path / "params.yaml") == []
    (tmp_path / "params.yaml").write_text(whole.stdout.replace("streaming: false", "streaming: 0"))
    with pytest.raises(ParamsError, match="streaming"):  # false is no 0; what the preset does not restore is refused
        load_params(tmp_path / "params.yaml")
    assert keys(flags_over("gemma-scope", tmp_path / "params.yaml")) == ["dataset.streaming"]


def test_flags_follow_the_parameter_file(tmp_path: Path) -> None:
    """Without keys of other kinds that it does not state; a key of the preset's own kind is never left out."""
    lines = (ROOT / "params.yaml").read_text().splitlines(keepends=True)
    changed = [line.replace("rotary_base: 10000.0", "rotary_base: 5.0    ") for line in lines]
    own = tmp_path / "params.yaml"
    own.write_text("".join(changed))
    assert "dictionary.rotary_base" in keys(flags_over("clt", own))
    own.write_text("".join(line for line in changed if not line.startswith(("  rotary_base:", "  top_k:"))))
    fewer = keys(flags_over("clt", own))
    assert "dictionary.rotary_base" not in fewer
    assert "dictionary.top_k" in fewer
