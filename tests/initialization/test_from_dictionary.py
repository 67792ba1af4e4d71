"""Starting from a dictionary that exists: its function on raw activations, whatever this run's norm, gate and options are."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary, config_from_dict
from pipeline.errors import DataError, NumericsError, ParamsError
from pipeline.folding import fold_dictionary
from pipeline.initialization.from_dictionary import check_start, needs_sample, read_start, started
from pipeline.initialization.sample import Sample
from pipeline.params.schema import TrainerParams
from pipeline.training.source import TrainingBatch
from pipeline.training.step import Trainer
from tests.dictionaries.make import ACT_FNS, LAYERS_IN, LAYERS_OUT, filled, read_by
from tests.messages import saying

PAIR = {"hook_point_in": "in", "hook_point_out": "out"}
OTHER_PAIR = {"hook_point_in": "blocks.1.ln2.hook_out", "hook_point_out": "blocks.1.hook_mlp_out"}
NORMED = {"use_post_qk_ln": True, "normalization_type": "RMS"}
LORSA = {"n_qk_heads": 4, "d_qk_head": 6, "n_ctx": 64, "rotary_dim": 4}
KINDS: dict[str, dict[str, Any]] = {
    "sae": {"kind": "sae"},
    "sae-apply-b-dec-glu": {"kind": "sae", "apply_b_dec_to_input": True, "use_glu_encoder": True},
    "sae-without-bias": {"kind": "sae", "use_decoder_bias": False},
    "transcoder-skip-glu": {"kind": "transcoder", "d_out": 9, "skip": True, "use_glu_encoder": True, **PAIR},
    "clt": {"kind": "clt", "hook_points_in": LAYERS_IN, "hook_points_out": LAYERS_OUT},
    "crosscoder": {"kind": "crosscoder", "hook_points_in": LAYERS_IN},
    "crosscoder-sum": {"kind": "crosscoder", "hook_points_in": LAYERS_IN, "crosscoder_norm": "sum"},
    "lorsa": {"kind": "lorsa", **PAIR, **LORSA, **NORMED},
}
# Widths of every dictionary here: 6 read, 20 features (of a layer).
Numbers = dict[str, dict[str, float]]


def norms(config: Any, seed: float) -> Numbers:
    """Of each hook point another, growing with its place."""
    hooks = [*dict.fromkeys((*config.hooks_in, *config.hooks_out))]
    widths = {**dict.fromkeys(config.hooks_in, config.d_in), **dict.fromkeys(config.hooks_out, config.d_out)}
    return {
        hook: {"mean_norm": seed * 1.7**i + i, "mean_square": (seed * 1.9**i + i) ** 2, "d": widths[hook]}
        for i, hook in enumerate(hooks)
    }


def factors(config: Any, known: Numbers) -> tuple[Tensor, Tensor]:
    """SPEC 3, written out again: of what is read and written, as they broadcast over [..., d] or [..., L, d]."""

    def of(hooks: tuple[str, ...]) -> Tensor:
        rms = config.norm_activation == "dataset-rms"
        found = [
            1 / math.sqrt(known[h]["mean_square"]) if rms else math.sqrt(known[h]["d"]) / known[h]["mean_norm"] for h in hooks
        ]
        made = torch.tensor(found, dtype=torch.float64)
        return made[:, None] if len(hooks) > 1 else made

    return of(config.hooks_in), of(config.hooks_out)


@torch.no_grad()
def on_raw(dictionary: Dictionary, raw: Tensor, known: Numbers | None = None) -> tuple[Tensor, Tensor]:
    """Support and raw reconstruction of raw activations."""
    if dictionary.config.folded:
        return dictionary.encode(raw) > 0, dictionary(raw)
    assert known is not None
    a, b = factors(dictionary.config, known)
    return dictionary.encode(raw * a) > 0, dictionary(raw * a) / b


def wanted(source: Dictionary, **changes: Any) -> Any:
    """The configuration of a run that starts from it: unfolded, other hook points of the same number."""
    kept = source.config.to_dict()
    for name in ("norms", "provenance", "folded", "norm_activation", "d_model"):
        kept.pop(name, None)
    return config_from_dict({**kept, "dtype": "float64", **changes})


def start(source: Dictionary, config: Any, known: Numbers, raw: Tensor, **options: Any) -> Any:
    check_start(source, config, "base")
    sample = Sample(raw, raw, raw, raw, torch.ones(raw.shape[:2], dtype=torch.bool) if source.reads_sequences else None)
    return started(
        source,
        config,
        known,
        sample,
        place="base",
        batch_rows=len(raw) * (raw.shape[1] if source.reads_sequences else 1),
        **options,
    )


def trained(act_fn: str, kind: str, include_norm: bool, **fields: Any) -> tuple[Dictionary, Numbers]:
    """A dictionary with its norms, as the stage train leaves it; in float64."""
    made = filled(act_fn=act_fn, sparsity_include_decoder_norm=include_norm, **KINDS[kind], **fields)
    known = norms(made.config, 37.0)
    made = made.rebuilt(made.state_dict(), norms=known)
    return made, known


def differences(one: Tensor, two: Tensor, hooks: int) -> float:
    """Largest relative difference of a hook point."""
    parts = zip(one.unbind(-2), two.unbind(-2), strict=True) if hooks > 1 else [(one, two)]
    return max(float((a - b).norm() / b.norm()) for a, b in parts)


FORMS = ("trained", "raw", "normalized")


@torch.no_grad()
@pytest.mark.parametrize("include_norm", [True, False], ids=["with-norm", "without-norm"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act_fn", ACT_FNS)
def test_the_start_computes_what_the_dictionary_did(act_fn: str, kind: str, form: str, include_norm: bool) -> None:
    """With norms of other data, whose ratios differ between hook points, and with the options of the gate kept or changed."""
    source, known = trained(act_fn, kind, include_norm)
    raw = read_by(source, 40) / factors(source.config, known)[0]
    if form != "trained":
        source = source.fold(known, feature_units=form)
    support, reconstruction = on_raw(source, raw, known)
    assert 0 < int(support.sum()) < support.numel()
    subtracts = [False, True] if kind.startswith("sae-apply") else [False]
    for gate_norm, apply in itertools.product([True, False], subtracts):
        changes = {"sparsity_include_decoder_norm": gate_norm, "norm_activation": "dataset-rms" if apply else "dataset-wise"}
        if kind.startswith("sae-apply"):
            changes["apply_b_dec_to_input"] = apply
        config = wanted(source, **changes)
        other = norms(config, 5.0)
        made = start(source, config, other, raw)
        found, again = on_raw(made.dictionary, raw, other)
        assert torch.equal(found, support)
        assert differences(again, reconstruction, len(config.hooks_out)) <= 1e-12
        assert made.found["change"] <= 1e-12
        assert made.dictionary.config == config
        # Its own fold, from which it would be served after 0 steps, is the same function too.
        served = made.dictionary.fold(other)
        assert torch.equal(served.encode(raw) > 0, support)
        assert differences(served(raw), reconstruction, len(config.hooks_out)) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act_fn", ["topk", "jumprelu", "relu"])
def test_no_step_gives_the_folded_dictionary_back(act_fn: str, kind: str) -> None:
    """Weights and outputs, in float32 to 1e-6, though the run's norm is another."""
    made, known = trained(act_fn, kind, True)
    base = made.rebuilt_as(torch.float32).fold(known)
    config = wanted(base, dtype="float32", sparsity_include_decoder_norm=True)
    other = norms(config, 5.0)
    raw = read_by(made, 40) / factors(made.config, known)[0]
    first = start(base, config, other, raw.float()).dictionary
    assert next(first.parameters()).dtype == torch.float32
    back = fold_dictionary(first, other).dictionary
    assert back.state_dict().keys() == base.state_dict().keys()
    for name, tensor in base.state_dict().items():
        assert float((back.state_dict()[name] - tensor).norm() / tensor.norm()) <= 1e-6, name
    with torch.no_grad():
        assert differences(back(raw.float()), base(raw.float()), len(config.hooks_out)) <= 1e-6


def test_the_same_norm_and_options_give_the_same_bits() -> None:
    for kind in KINDS:
        source, known = trained("jumprelu", kind, True, dtype="float32")
        raw = read_by(source, 40, dtype=torch.float32)
        config = wanted(source, dtype="float32", norm_activation="dataset-wise")
        made = start(source, config, known, raw).dictionary
        for name, tensor in source.state_dict().items():
            assert torch.equal(made.state_dict()[name], tensor), (kind, name)


@pytest.mark.parametrize("norm", ["token-wise", "batch-wise"])
def test_a_norm_of_the_data_stays(norm: str) -> None:
    """Mode keep, the only form that such a dictionary has."""
    source, known = trained("topk", "transcoder-skip-glu", True, norm_activation=norm)
    kept = fold_dictionary(source, known, mode="keep").dictionary
    raw = read_by(source, 40)
    made = start(kept, wanted(kept, norm_activation=norm), norms(kept.config, 5.0), raw)
    for name, tensor in source.state_dict().items():
        assert torch.equal(made.dictionary.state_dict()[name], tensor), name
    with pytest.raises(ParamsError, match=saying("initializer.from_dictionary", norm, "depend on the data", "write " + norm)):
        check_start(kept, wanted(kept, norm_activation="dataset-wise"), "base")
    folded = trained("topk", "transcoder-skip-glu", True)[0].fold(known)
    with pytest.raises(
        ParamsError, match=saying("initializer.from_dictionary", "takes raw activations", norm, "write dataset-wise")
    ):
        check_start(folded, wanted(folded, norm_activation=norm), "base")


@pytest.mark.parametrize("units", ["raw", "normalized"])
@pytest.mark.parametrize("form", ["trained", "folded"])
@pytest.mark.parametrize("kind", ["sae", "crosscoder", "clt"])
@pytest.mark.parametrize("include_norm", [True, False])
@torch.no_grad()
def test_jumprelu_after_topk_has_its_l0(kind: str, form: str, units: str, include_norm: bool) -> None:
    """One threshold in the units of the old selection: the entries above it, and as many of them."""
    source, known = trained("topk", kind, include_norm, top_k=3)
    raw = read_by(source, 200) / factors(source.config, known)[0]
    a, _ = factors(source.config, known)
    z = source.codes(raw * a).z
    if form == "folded":
        source = source.fold(known, feature_units=units)
    config = wanted(source, act_fn="jumprelu", sparsity_include_decoder_norm=True)
    assert needs_sample(source, config)
    other = norms(config, 5.0)
    made = start(source, config, other, raw)
    support, _ = on_raw(made.dictionary, raw, other)
    layers = 3 if kind == "clt" else 1
    for layer in range(layers):
        own, values = (support[:, layer], z[:, layer]) if kind == "clt" else (support, z)
        assert float(own.sum()) / len(raw) == pytest.approx(3, abs=0.05)
        assert float(values[own].min()) > float(values[~own].max())
    assert made.found["l0"] == pytest.approx(3 * layers, abs=0.05)
    assert "act_fn topk -> jumprelu" in made.words


@torch.no_grad()
def test_thresholds_of_a_folded_batchtopk_stay_and_its_selection_comes_back() -> None:
    for kind, include_norm in itertools.product(["sae", "transcoder-skip-glu"], [True, False]):
        source, known = trained("batchtopk", kind, include_norm, top_k=3)
        raw = read_by(source, 64) / factors(source.config, known)[0]
        chosen, _ = on_raw(source, raw, known)
        report = fold_dictionary(source, known, calibration_batches=[raw])
        base = report.dictionary
        assert base.config.act_fn == "jumprelu"
        assert not needs_sample(base, wanted(base))
        other = norms(wanted(base), 5.0)
        kept = start(base, wanted(base), other, raw)
        assert torch.equal(on_raw(kept.dictionary, raw, other)[0], on_raw(base, raw)[0])
        again = wanted(base, act_fn="batchtopk", top_k=3, sparsity_include_decoder_norm=include_norm)
        made = start(base, again, other, raw)
        assert torch.equal(on_raw(made.dictionary, raw, other)[0], chosen)
        assert "the 3 largest in place of those above thresholds" in made.words


@torch.no_grad()
def test_jumprelu_after_relu_is_it_on_the_sample() -> None:
    source, known = trained("relu", "clt", False)
    raw = read_by(source, 60) / factors(source.config, known)[0]
    config = wanted(source, act_fn="jumprelu")
    other = norms(config, 5.0)
    made = start(source, config, other, raw)
    assert torch.equal(on_raw(made.dictionary, raw, other)[0], on_raw(source, raw, known)[0])
    source.get_parameter("b_E").fill_(-1e6)
    with pytest.raises(NumericsError, match="no feature is active"):
        start(source, config, other, raw)


@torch.no_grad()
def test_a_selection_by_the_old_lengths_stays_through_a_step() -> None:
    """Hook points whose norms have changed by different factors: z has the ratio beside n, in every way that codes are made."""
    source, known = trained("topk", "crosscoder", True)
    raw = read_by(source, 40) / factors(source.config, known)[0]
    other = norms(source.config, 5.0)
    made = start(source, wanted(source, sparsity_include_decoder_norm=True), other, raw).dictionary
    scale = made.gate_scale
    assert scale is not None
    x = raw * factors(made.config, other)[0]
    codes, x_hat = made.run(x)
    h = torch.einsum("bpd,pdf->bf", x, made.get_parameter("W_E")) + made.get_parameter("b_E")
    n = made.get_parameter("W_D").square().sum((0, 2)).sqrt()
    torch.testing.assert_close(codes.z, h * n * scale)
    chosen = torch.zeros_like(h, dtype=torch.bool).scatter(1, (h * n * scale).topk(4).indices, True)
    torch.testing.assert_close(codes.f, torch.where(chosen, h.clamp_min(0), 0.0))
    torch.testing.assert_close(x_hat, made(x))
    with torch.enable_grad():
        trainer = Trainer(made, TrainerParams(lr=1e-3, lr_warm_up_steps=0), total_steps=2, norms=other)
        trainer.step(TrainingBatch(0, raw, raw))
    assert torch.equal(made.gate_scale, scale)
    assert "dictionary/gate_scale" in trainer.state()
    again = start(made.rebuilt(made.state_dict(), norms=other), made.config, known, raw)
    assert torch.equal(on_raw(again.dictionary, raw, known)[0], on_raw(made, raw, other)[0])


@torch.no_grad()
def test_unit_rows() -> None:
    source, known = trained("topk", "sae-apply-b-dec-glu", False)
    raw = read_by(source, 40) / factors(source.config, known)[0]
    config = wanted(source, sparsity_include_decoder_norm=False)
    other = norms(config, 5.0)
    made = start(source, config, other, raw, unit_rows=True).dictionary
    torch.testing.assert_close(made.decoder_norms(), torch.ones(20, dtype=torch.float64))
    assert torch.equal(on_raw(made, raw, other)[0], on_raw(source, raw, known)[0])


@torch.no_grad()
def test_a_folded_one_gets_weights_that_an_optimiser_can_move() -> None:
    """Encoder weights as long as decoder rows, feature by feature, in activations of any size."""
    for size in (1e-3, 1.0, 1e4):
        source = filled(act_fn="topk")
        base = source.fold({"input": 37.0 * size})
        raw = read_by(source, 40) * 37.0 * size
        made = start(base, wanted(base, sparsity_include_decoder_norm=True), norms(wanted(base), 30.0 * size), raw).dictionary
        ratio = made.encoder_norms() / made.decoder_norms()
        torch.testing.assert_close(ratio, torch.ones_like(ratio))


def test_every_difference_of_shape_is_named() -> None:
    source, _ = trained("topk", "transcoder-skip-glu", True)
    other = {"d_in": 8, "d_out": 4, "d_sae": 32, "skip": False, "use_glu_encoder": False, "use_decoder_bias": False}
    config = config_from_dict({"kind": "transcoder", **OTHER_PAIR, "act_fn": "jumprelu", **other})
    said = ("base is of another shape", "d_in is 6, wanted 8", "d_out is 9, wanted 4", "d_sae is 20, wanted 32")
    flags = ("skip is true, wanted false", "use_glu_encoder is true, wanted false", "use_decoder_bias is true, wanted false")
    with pytest.raises(ParamsError, match=saying("initializer.from_dictionary", *said, *flags)):
        check_start(source, config, "base")
    crosscoder, _ = trained("topk", "crosscoder", True)
    with pytest.raises(
        ParamsError,
        match=saying("initializer.from_dictionary", "kind is crosscoder, wanted transcoder", "hook points read is 3, wanted 1"),
    ):
        check_start(crosscoder, config, "base")
    lorsa, _ = trained("topk", "lorsa", True)
    heads = wanted(lorsa, n_qk_heads=2, rotary_base=500.0, n_ctx=32)
    with pytest.raises(
        ParamsError,
        match=saying("initializer.from_dictionary", "n_qk_heads is 4, wanted 2", "rotary_base is 10000.0, wanted 500.0"),
    ):
        check_start(lorsa, heads, "base")
    check_start(lorsa, wanted(lorsa, n_ctx=32), "base")


def test_other_hook_points_are_said() -> None:
    source, known = trained("topk", "transcoder-skip-glu", True)
    raw = read_by(source, 40) / factors(source.config, known)[0]
    config = wanted(source, **OTHER_PAIR, top_k=5)
    made = start(source, config, norms(config, 5.0), raw)
    assert "hook_point_in in -> blocks.1.ln2.hook_out" in made.words
    assert "top_k 4 -> 5" in made.words
    same = start(source, wanted(source, norm_activation="dataset-wise"), known, raw)
    assert same.words.endswith("nothing changed; computes the same")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=saying("initializer.from_dictionary", str(tmp_path / "gone"), "no dictionary directory here")
    ):
        read_start(tmp_path / "gone")
    with pytest.raises(DataError, match=saying("initializer.from_dictionary", "no dictionary of a known format")):
        read_start(tmp_path)
    source, _ = trained("topk", "sae", True)
    source.save(tmp_path / "whole")
    content = (tmp_path / "whole" / "weights.safetensors").read_bytes()
    (tmp_path / "whole" / "weights.safetensors").write_bytes(content[:-1])
    with pytest.raises(DataError, match=saying("initializer.from_dictionary", "weights.safetensors", "truncated")):
        read_start(tmp_path / "whole")


def test_a_trained_one_without_norms_is_refused() -> None:
    source = build_dictionary({"kind": "sae", "d_in": 6, "d_sae": 20, "act_fn": "topk", "top_k": 4})
    with pytest.raises(DataError, match=saying("initializer.from_dictionary", "normalised", "no norms", "fold")):
        check_start(source, wanted(source, dtype="float32"), "base")


def test_weights_that_are_not_finite_are_refused() -> None:
    source, known = trained("relu", "sae", True)
    with torch.no_grad():
        source.get_parameter("b_D")[0] = math.nan
    with pytest.raises(NumericsError, match=saying("initializer.from_dictionary", "are the weights there finite?")):
        start(source, wanted(source, norm_activation="dataset-wise"), known, read_by(source, 20))


def test_half_precision_is_read_in_full(tmp_path: Path) -> None:
    filled(act_fn="topk", dtype="float32").rebuilt_as(torch.bfloat16).save(tmp_path / "half")
    assert next(read_start(tmp_path / "half").parameters()).dtype == torch.float32
