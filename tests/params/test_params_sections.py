"""Sections: all faults at once, typed values, defaults, construction in Python, what follows from several keys."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ParamsError
from pipeline.params.dictionary_kinds import KINDS
from pipeline.params.fields import limits_of
from pipeline.params.loader import load_params, params_from_dict
from pipeline.params.losses import SPARSITY_LOSSES
from pipeline.params.schema import (
    ActivationsParams,
    FoldParams,
    Params,
    SAEParams,
    TrainerParams,
    flatten,
    section_from_dict,
)
from pipeline.params.section import Section, hints
from pipeline.params.sections.dictionary import DictionaryParams, params_class
from pipeline.shares import resolve_share, resolve_steps
from tests import messages
from tests.closure import ROOT
from tests.messages import saying, says
from tests.params.changes import ABSENT, DEFAULTS, TRANSCODER, changed, faults, one_fault

TranscoderParams = params_class("transcoder")


def test_all_faults_at_once_of_every_sort() -> None:
    found = faults(
        {
            "trainer.warmup_step": 5,
            "trainer.lr": "1e-3",
            "trainer.initial_k": 20,
            "trainer.auxk_coefficient": 0.1,
            "dictionary.skip": True,
            "dictionary.top_k": 0,
            "fold": ABSENT,
            "seed": -1,
        }
    )
    assert list(found) == [
        "dictionary.top_k",
        "dictionary.skip",
        "trainer.warmup_step",
        "trainer.lr",
        "seed",
        "fold",
        "trainer.initial_k",
        "trainer.auxk_coefficient",
    ]


def test_a_check_that_needs_a_faulty_value_is_left_out() -> None:
    one_fault({"trainer.initial_k": 20, "dictionary.act_fn": "topkk"}, "dictionary.act_fn")
    one_fault({"activations.batch_size": "many"}, "activations.batch_size")
    one_fault({"dictionary.kind": "cltt", "activations.hook_points": ["blocks.1.hook_resid_post"]}, "dictionary.kind")


def test_faults_of_a_file_start_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"sed": 1}')
    with pytest.raises(ParamsError) as error:
        load_params(path)
    found = messages.faults(error.value, path)
    assert next(iter(found)) == "sed"
    says(found["sed"], "unknown", "seed")
    says(found["trainer"], "missing")


def test_values_are_typed_after_reading() -> None:
    params = params_from_dict(changed({"trainer.eps": 1, "dictionary.expansion_factor": 8, "trainer.betas": [0, 0.5]}))
    assert isinstance(params.trainer.eps, float)
    assert isinstance(params.dictionary.expansion_factor, float)
    assert params.trainer.betas == (0.0, 0.5)
    assert all(isinstance(beta, float) for beta in params.trainer.betas)
    assert type(params.trainer.lr_warm_up_steps) is int
    assert type(params.trainer.lr_cool_down_steps) is float
    assert params_from_dict(params.to_dict()) == params


def test_numbers_and_shares_keep_their_types() -> None:
    shares = params_from_dict(changed({"trainer.dead_threshold": 0.03, "trainer.matryoshka_widths": [0.25, 1.0]})).trainer
    assert (shares.dead_threshold, shares.matryoshka_widths) == (0.03, (0.25, 1.0))
    numbers = params_from_dict(changed({"trainer.dead_threshold": 1, "trainer.matryoshka_widths": [4, 8]})).trainer
    assert (type(numbers.dead_threshold), numbers.dead_threshold) == (int, 1)
    assert numbers.matryoshka_widths is not None
    assert [type(width) for width in numbers.matryoshka_widths] == [int, int]
    assert numbers.to_dict()["matryoshka_widths"] == [4, 8]


def test_dataclass_defaults_are_the_specs() -> None:
    trainer, dictionary, fold = TrainerParams(), SAEParams(), FoldParams()
    assert (trainer.lr, trainer.betas, trainer.eps, trainer.optimizer) == (4e-4, (0.9, 0.999), 1e-8, "adam")
    assert (trainer.lr_scheduler_name, trainer.lr_warm_up_steps, trainer.lr_cool_down_steps) == (
        "constantwithwarmup",
        5000,
        0.2,
    )
    assert (trainer.lr_end_ratio, trainer.l1_coefficient, trainer.p, trainer.k_aux) == (1 / 32, 8e-5, 1.0, 512)
    assert (trainer.k_schedule_type, trainer.k_warmup_steps, trainer.k_exponential_factor) == ("linear", 0.1, 3.0)
    assert (trainer.auxk_coefficient, trainer.dead_threshold, trainer.log_frequency) == (None, 10_000_000, 1000)
    assert (trainer.n_checkpoints, trainer.jumprelu_lr_factor, trainer.initial_k) == (10, 0.1, None)
    assert (trainer.sparsity_loss_type, trainer.tanh_stretch_coefficient, trainer.frequency_scale) == (None, 4.0, 0.01)
    assert (trainer.l0_bandwidth, trainer.lp_coefficient, trainer.topk_start_steps) == (0.001, None, 0)
    assert (trainer.target_l0, trainer.target_l0_mode, trainer.target_l0_gain) == (None, "threshold", 0.3)
    assert (trainer.revive_dead_features, trainer.decoder_constraint, trainer.matryoshka_widths) == (False, "none", None)
    assert (dictionary.act_fn, dictionary.top_k, dictionary.use_decoder_bias) == ("relu", 50, True)
    assert (dictionary.norm_activation, dictionary.jumprelu_threshold_window) == ("dataset-wise", 2.0)
    assert (dictionary.sparsity_include_decoder_norm, dictionary.use_glu_encoder) == (True, False)
    assert (fold.mode, fold.feature_units) == ("fold", "raw")


def test_sections_built_in_python_are_checked_as_strictly() -> None:
    assert TrainerParams(lr=1e-3, betas=(0, 0.9)).betas == (0.0, 0.9)
    with pytest.raises(ParamsError) as error:
        TrainerParams(lr=-1.0, p=0.5)
    found = messages.faults(error.value)
    assert list(found) == ["trainer.lr", "trainer.p"]
    says(found["trainer.lr"], "0", "-1.0")
    says(found["trainer.p"], "1", "0.5")
    with pytest.raises(ParamsError, match=r"^trainer\.auxk_coefficient: "):
        Params(trainer=TrainerParams(auxk_coefficient=0.1))
    with pytest.raises(ParamsError, match=r"^fold\.mode: "):
        dataclasses.replace(Params(), dictionary=SAEParams(norm_activation="token-wise"))
    with pytest.raises(ParamsError, match=saying("dictionary.kind:", "sae", "transcoder")):
        TranscoderParams(kind="sae")
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainerParams().lr = 1.0  # type: ignore[misc]


def test_section_from_dict_is_strict_and_fills_in_defaults() -> None:
    assert section_from_dict(TrainerParams, {"lr": "auto", "clip_grad_norm": 1}) == TrainerParams(lr="auto", clip_grad_norm=1.0)
    with pytest.raises(ParamsError) as error:
        section_from_dict(TrainerParams, {"learning_rate": 1, "p": 0}, where="fit.trainer")
    found = messages.faults(error.value)
    assert list(found) == ["fit.trainer.learning_rate", "fit.trainer.p"]
    says(found["fit.trainer.learning_rate"], "unknown", "lr")
    says(found["fit.trainer.p"], "1", "0.0")
    with pytest.raises(ParamsError, match=saying("trainer:", "mapping", "list")):
        section_from_dict(TrainerParams, [])  # type: ignore[arg-type]
    nested = section_from_dict(ActivationsParams, {"buffer_shuffle": {"perm_seed": 7}})
    assert nested.buffer_shuffle.perm_seed == 7
    with pytest.raises(ParamsError, match=saying("a.buffer_shuffle.perm_sed:", "unknown", "perm_seed")):
        section_from_dict(ActivationsParams, {"buffer_shuffle": {"perm_sed": 7}}, "a")
    kind = section_from_dict(DictionaryParams, {"kind": "transcoder"})  # type: ignore[type-abstract]
    assert isinstance(kind, TranscoderParams)


def test_kinds_share_their_fields() -> None:
    assert list(KINDS) == ["clt", "crosscoder", "lorsa", "sae", "transcoder"]
    assert [f.name for f in dataclasses.fields(SAEParams)] == [f.name for f in dataclasses.fields(TranscoderParams)]


def test_declarations_are_read_without_torch() -> None:
    for name in SPARSITY_LOSSES:
        assert TrainerParams(sparsity_loss_type=name).sparsity_loss_type == name
    code = "import sys, pipeline.params.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_hook_points_and_steps() -> None:
    params = params_from_dict(changed(TRANSCODER))
    assert params.hook_points == ("blocks.2.ln2.hook_out", "blocks.2.hook_mlp_out")
    assert (params.dictionary.hooks_in, params.dictionary.hooks_out) == (params.hook_points[:1], params.hook_points[1:])
    assert params.dictionary.is_transcoder
    assert Params().hook_points == ("blocks.2.hook_resid_post",)
    assert not Params().dictionary.is_transcoder
    stated = params_from_dict(changed({"activations.hook_points": ["blocks.2.hook_resid_post", "blocks.0.hook_attn_out"]}))
    assert stated.hook_points == ("blocks.2.hook_resid_post", "blocks.0.hook_attn_out")
    assert Params().total_steps == 300_000_000 // 2048
    two = params_from_dict(changed({"activations.target": "activations-2d", "activations.batch_size": 16}))
    assert two.total_steps == 300_000_000 // (16 * 128)
    assert SAEParams(d_model=100, expansion_factor=1.5).d_sae == 150


def test_resolve_steps() -> None:
    assert [resolve_steps(x, 100) for x in (0, 7, 0.0, 0.07, 0.29, 1.0, 0.999)] == [0, 7, 0, 7, 29, 100, 99]
    assert resolve_steps(1, 100) == 1
    assert resolve_steps(0.1, 976) == 97
    assert isinstance(resolve_steps(0.5, 10), int)


def test_resolve_share() -> None:
    assert [resolve_share(x, 2048) for x in (1, 7, 4096, 0.0625, 0.25, 1.0)] == [1, 7, 4096, 128, 512, 2048]
    assert [resolve_share(x, 100) for x in (0.29, 0.07, 0.001, 0.999)] == [29, 7, 1, 99]
    assert type(resolve_share(0.03, 1_000_000)) is int


def test_flatten() -> None:
    flat = dict(flatten(Params().to_dict()))
    assert flat["activations.buffer_shuffle.perm_seed"] == 42
    assert flat["trainer.betas"] == [0.9, 0.999]
    assert "trainer" not in flat


def test_every_default_is_within_its_own_limits_and_typed() -> None:
    def sections(cls: type[Section]) -> list[type[Section]]:
        nested = [hint for hint in hints(cls).values() if isinstance(hint, type) and issubclass(hint, Section)]
        chosen = [hint.chosen_by({}) for hint in nested]
        return [cls, *(inner for section in chosen for inner in sections(section))]

    found = sections(Params)
    assert len(found) == 16
    for cls in found:
        assert cls().to_dict()
        names = {field.name for field in dataclasses.fields(cls)}
        for field in dataclasses.fields(cls):
            assert not names & set(limits_of(field).also_called)
        for check in cls.rules():
            key = check.rule_key  # type: ignore[attr-defined]
            assert key in (names if cls is not Params else flatten_keys()), key


def flatten_keys() -> set[str]:
    return {key for key, _ in flatten(DEFAULTS)}


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "half \ud800", "x" * 251, " ", ""])
def test_names_that_no_database_or_file_system_takes_are_refused_when_they_are_read(name: str) -> None:
    for key in ("tracking.experiment_name", "tracking.run_name", "dictionary.sae_name", "dictionary.name"):
        with pytest.raises(ParamsError) as error:
            params_from_dict(changed({key: name}))
        assert [fault.split(": ")[1] for fault in error.value.faults] == [key]
    with pytest.raises(ParamsError):
        params_from_dict(changed({"dictionary.name": "x" * 101}))
    assert params_from_dict(changed({"tracking.run_name": "\u00e9t\u00e9 \U0001f600"})).tracking.run_name is not None
