"""The public functions, foremost `fit`: a planted dictionary is recovered, and what comes back fits together."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import api
from pipeline.errors import DataError, ParamsError
from pipeline.params.loader import load_params
from pipeline.params.schema import InitializerParams, TrainerParams
from pipeline.seeding import generator
from pipeline.training import recipe
from pipeline.training.fingerprint import WITHOUT_INFLUENCE
from tests.messages import saying
from tests.project import REPOSITORY

D, DIRECTIONS, ACTIVE = 32, 64, 4
SHORT = {"total_training_tokens": 20_000, "log_frequency": 5}
SHORTER = SHORT | {"total_training_tokens": 6_000}  # four epochs of `short`


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows that are sparse non-negative mixtures of fixed unit directions, and the directions."""
    directions = torch.nn.functional.normalize(torch.randn(DIRECTIONS, D, generator=generator(5, "tests", "planted")), dim=-1)
    draw = generator(seed, "tests", "planted rows")
    active = torch.rand(n, DIRECTIONS, generator=draw) < ACTIVE / DIRECTIONS
    sizes = 0.5 + torch.empty(n, DIRECTIONS).exponential_(generator=draw)
    return (active * sizes) @ directions + 0.02 * torch.randn(n, D, generator=draw), directions


def short(n: int = 1500, *shape: int) -> Tensor:
    return planted(n, seed=1)[0].reshape(*(shape or (n,)), D)


def test_a_planted_dictionary_is_recovered() -> None:
    activations, directions = planted(20_000, seed=0)
    result = api.fit(
        activations,
        dictionary={"top_k": ACTIVE, "d_sae": 4 * DIRECTIONS},
        trainer={"total_training_tokens": 400_000},
        batch_size=1024,
        seed=9,
        device="cpu",
    )
    rows = torch.nn.functional.normalize(result.inference.get_parameter("W_D").detach(), dim=-1)
    found = (directions @ rows.T).amax(1)
    assert float(found.mean()) > 0.99
    assert float(found.min()) > 0.9
    metrics = api.evaluate_reconstruction(result.inference, planted(4000, seed=2)[0])
    assert metrics["fvu"] < 0.13
    assert metrics["l0_mean"] <= ACTIVE
    assert result.history[-1]["tokens"] == 390 * 1024


def test_a_run_starts_from_a_dictionary(tmp_path: Path) -> None:
    """In memory or by its path, trained or folded, on rows of other lengths; what was given stays as it was."""
    rows, other = short(), 7 * planted(1500, seed=3)[0]
    fields = {"top_k": ACTIVE, "d_sae": 64}
    first = api.fit(rows, dictionary=fields, trainer=SHORT, batch_size=100, device="cpu")
    first.inference.save(tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in first.inference.state_dict().items()}
    unmoved = SHORTER | {"lr": 1e-12, "revive_dead_features": False}
    for start in (first.inference, first.dictionary, tmp_path / "base", str(tmp_path / "base")):
        again = api.fit(
            other, dictionary=fields, trainer=unmoved, initializer={"from_dictionary": start}, batch_size=100, device="cpu"
        )
        assert again.norms["input"]["mean_norm"] > 5 * first.norms["input"]["mean_norm"]
        for name, tensor in before.items():
            assert float((again.inference.state_dict()[name] - tensor).norm() / tensor.norm()) < 1e-6, name
    assert all(torch.equal(first.inference.state_dict()[name], tensor) for name, tensor in before.items())
    with pytest.raises(ParamsError, match=saying("a dictionary in memory", "d_sae is 64, wanted 128")):
        api.fit(
            rows, dictionary={"d_sae": 128}, trainer=SHORT, initializer={"from_dictionary": first.inference}, batch_size=100
        )


def test_what_has_no_effect_beside_a_start_is_said(tmp_path: Path) -> None:
    first = api.fit(short(), dictionary={"top_k": 4, "d_sae": 64}, trainer=SHORTER, batch_size=100, device="cpu")
    given = {"from_dictionary": first.inference, "bias_init_method": "mean"}
    with pytest.warns(UserWarning, match="initializer.bias_init_method mean .from_dictionary gives the weights."):
        api.fit(short(), dictionary={"top_k": 4, "d_sae": 64}, trainer=SHORTER, initializer=given, batch_size=100, device="cpu")


@pytest.mark.parametrize(
    ("dictionary", "trainer"),
    [
        ({}, {}),
        ({"act_fn": "batchtopk"}, {"gradient_accumulation_steps": 2, **SHORT}),
        ({"act_fn": "jumprelu"}, {"sparsity_loss_type": "power", "l1_coefficient": 0.1}),
        ({"act_fn": "relu", "use_glu_encoder": True}, {"sparsity_loss_type": "power", "clip_grad_norm": 1.0}),
        ({"norm_activation": "dataset-rms", "apply_b_dec_to_input": True}, {"auxk_coefficient": 0.03, "dead_threshold": 500}),
    ],
)
def test_inference_form_is_the_trained_dictionary(dictionary: dict[str, object], trainer: dict[str, object]) -> None:
    activations = short()
    result = api.fit(
        activations, dictionary={"top_k": 3, "d_sae": 48, **dictionary}, trainer=SHORTER | trainer, batch_size=100, device="cpu"
    )
    norm = result.norms["input"]
    assert norm["mean_norm"] == pytest.approx(float(activations.norm(dim=-1).mean()), rel=1e-5)
    rms = dictionary.get("norm_activation") == "dataset-rms"
    scale = 1 / math.sqrt(norm["mean_square"]) if rms else math.sqrt(D) / norm["mean_norm"]
    assert result.inference.config.folded
    assert [row["step"] for row in result.history][:3] == [0, 5, 10]
    if dictionary.get("act_fn") == "batchtopk":
        assert result.inference.config.act_fn == "jumprelu"
        l0 = float((result.inference.encode(activations) > 0).sum(-1).float().mean())
        assert l0 == pytest.approx(3.0, rel=0.15)
        return
    x = activations[:50]
    trained = result.dictionary(x * scale) / scale
    torch.testing.assert_close(result.inference(x), trained, rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_bits() -> None:
    first, again, other = (
        api.fit(short(), dictionary={"d_sae": 48, "top_k": 3}, trainer=SHORTER, batch_size=100, seed=seed, device="cpu")
        for seed in (0, 0, 1)
    )
    assert first.history == again.history
    assert all(torch.equal(t, again.dictionary.state_dict()[name]) for name, t in first.dictionary.state_dict().items())
    assert first.history != other.history


def test_targets_make_a_transcoder() -> None:
    x = short()
    y = torch.relu(x @ torch.randn(D, 20, generator=generator(0, "tests", "map")))
    result = api.fit(
        x, targets=y, dictionary={"d_sae": 64, "top_k": 8, "skip": True}, trainer=SHORT, batch_size=100, device="cpu"
    )
    config = result.dictionary.config
    assert (config.kind, config.d_in, config.d_out, sorted(result.norms)) == ("transcoder", D, 20, ["input", "output"])
    assert result.history[-1]["explained_variance"] > 0.5
    assert result.inference(x).shape == y.shape


def test_sequences() -> None:
    contexts = short(1600, 100, 16)
    result = api.fit(contexts, dictionary={"d_sae": 48, "top_k": 3}, trainer=SHORT, batch_size=5, device="cpu")
    assert result.history[-1]["tokens"] == 20_000
    assert result.inference(contexts).shape == contexts.shape


def test_targets_by_name_make_a_cross_layer_transcoder() -> None:
    x = short()
    lower = torch.relu(x @ torch.randn(D, D, generator=generator(0, "tests", "lower")))
    upper = 5 * torch.relu(lower @ torch.randn(D, D, generator=generator(0, "tests", "upper")))
    read, written = {"x0": x, "x1": lower}, {"y0": lower, "y1": upper}
    result = api.fit(
        read, targets=written, dictionary={"d_sae": 64, "top_k": 8, "act_fn": "batchlayertopk"}, trainer=SHORT, batch_size=100
    )
    config = result.dictionary.config
    assert (config.kind, config.hooks_in, config.hooks_out) == ("clt", ("x0", "x1"), ("y0", "y1"))
    assert list(result.norms) == ["x0", "x1", "y0", "y1"]
    assert result.norms["y1"]["mean_norm"] == pytest.approx(float(upper.norm(dim=-1).mean()), rel=1e-5)
    metrics = api.evaluate_reconstruction(result.inference, read, written)
    assert metrics["explained_variance.y0"] > 0.5
    assert metrics["explained_variance.y1"] > 0.5
    assert result.inference(torch.stack([x, lower], dim=1)).shape == (1500, 2, D)
    with pytest.raises(DataError, match=saying("x1", "x0")):
        api.evaluate_reconstruction(result.inference, {"x0": x}, written)


def test_tensors_by_name_make_a_crosscoder() -> None:
    x = short()
    given = {"early": x, "late": 7 * x @ torch.randn(D, D, generator=generator(0, "tests", "late"))}
    result = api.fit(given, dictionary={"d_sae": 64, "top_k": 4}, trainer=SHORT, batch_size=100, device="cpu")
    assert (result.dictionary.config.kind, result.dictionary.config.hooks_out) == ("crosscoder", ("early", "late"))
    metrics = api.evaluate_reconstruction(result.inference, given)
    assert 0.5 < metrics["explained_variance.late"] < 1
    contexts = {name: rows[:1480].view(37, 40, D) for name, rows in given.items()}
    short_of = {name: rows[:, :7] for name, rows in contexts.items()}
    assert len(api.fit(short_of, dictionary={"d_sae": 64}, trainer=SHORTER, batch_size=10, device="cpu").norms) == 2


@pytest.mark.parametrize("act_fn", ["topk", "batchtopk"])
def test_attention_on_contexts(act_fn: str) -> None:
    contexts = short(1600, 100, 16)
    past = contexts.cumsum(1) / torch.arange(1, 17)[:, None]
    reads_the_past = past @ torch.randn(D, D, generator=generator(0, "tests", "attended"))
    fields = {"kind": "lorsa", "d_sae": 64, "top_k": 8, "n_qk_heads": 4, "d_qk_head": 8, "n_ctx": 16, "rotary_dim": 4}
    result = api.fit(
        contexts, targets=reads_the_past, dictionary={**fields, "act_fn": act_fn}, trainer=SHORT, batch_size=5, device="cpu"
    )
    assert (result.dictionary.config.kind, sorted(result.norms)) == ("lorsa", ["input", "output"])
    assert result.history[-1]["explained_variance"] > 0.5
    assert result.inference(contexts).shape == contexts.shape
    later = contexts.clone()
    later[:, 9:] += 1
    assert torch.allclose(result.inference(contexts)[:, :9], result.inference(later)[:, :9], atol=1e-4)


@pytest.mark.parametrize(
    ("activations", "targets", "fields", "parts"),
    [
        ({"a": torch.zeros(9, D), "b": torch.zeros(8, D)}, None, {}, ("fit:", "[N, D]", "(9, 32)", "(8, 32)")),
        ({"a": torch.zeros(9, D)}, None, {}, ("dictionary.hook_points_in:", "crosscoder", "two")),
        ({"a": torch.zeros(9, D), "b": torch.zeros(9, D)}, torch.zeros(9, D), {}, ("fit:", "clt", "[N, D]", "targets")),
        ({"a": torch.zeros(9, D), "b": torch.zeros(9, D)}, None, {"kind": "sae"}, ("fit:", "sae", "one tensor")),
        (torch.zeros(9, D), None, {"kind": "clt"}, ("fit:", "clt", "[N, D]")),
        (torch.zeros(9, D), torch.zeros(9, D), {"kind": "lorsa"}, ("fit:", "lorsa", "[n, T, D]", "(9, 32)")),
        (torch.zeros(9, D), None, {"act_fn": "layertopk"}, ("dictionary.act_fn:", "layertopk", "topk")),
    ],
)
def test_forms_that_do_not_fit_the_kind_are_refused(
    activations: Tensor | dict[str, Tensor], targets: Tensor | None, fields: dict[str, str], parts: tuple[str, ...]
) -> None:
    with pytest.raises(ParamsError, match=saying(*parts)):
        api.fit(activations, targets=targets, dictionary=fields, trainer={}, batch_size=4)


def test_norms_that_cannot_be_folded_are_kept() -> None:
    result = api.fit(
        short(),
        dictionary={"d_sae": 48, "top_k": 3, "norm_activation": "token-wise"},
        trainer=SHORTER,
        batch_size=100,
        device="cpu",
    )
    assert not result.inference.config.folded


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"dictionary": {"act_fun": "topk"}}, ("dictionary.act_fun:", "unknown", "act_fn")),
        ({"dictionary": {"kind": "say"}}, ("dictionary.kind:", "say", "'sae'")),
        ({"dictionary": {"d_in": 31}}, ("dictionary.d_in:", 31, 32)),
        ({"trainer": {"lr": "fast"}}, ("trainer.lr:", "fast")),
        ({"trainer": {"auxk_coefficient": 0.1}, "dictionary": {"act_fn": "relu"}}, ("trainer.auxk_coefficient:", "relu")),
        ({"trainer": {"initial_k": 2}, "dictionary": {"top_k": 4}}, ("trainer.initial_k:", 2, 4)),
        (
            {"trainer": {"lr_scheduler_name": "exponentialwarmup", "lr_end_ratio": 0.0}},
            ("trainer.lr_end_ratio:", 0, "exponentialwarmup"),
        ),
        ({"initializer": {"initialize_tc_with_mlp": True}}, ("initializer.initialize_tc_with_mlp:", "transcoder")),
        ({"batch_size": 1501}, ("activations.batch_size:", 1501, 1500)),
        ({"batch_size": 800, "dictionary": {"act_fn": "batchtopk"}}, ("batch_size:", 800, 1500, "batchtopk")),
        ({"targets": torch.zeros(3, D)}, ("fit:", "targets", "(1500, 32)", "(3, 32)")),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], parts: tuple[object, ...]) -> None:
    call = {"dictionary": {}, "trainer": {}, "batch_size": 100, **change}
    with pytest.raises(ParamsError, match=saying(*parts)):
        api.fit(short(), **call)  # type: ignore[arg-type]


def test_non_finite_activations_are_refused() -> None:
    x = short()
    x[3, 4] = float("nan")
    with pytest.raises(DataError, match=saying("fit:", 1, "input", "non-finite")):
        api.fit(x, dictionary={}, trainer={}, batch_size=100)


def test_only_what_decides_l0_takes_the_place_of_the_target() -> None:
    """The pre-act loss pulls features up; without the target nothing would hold them down."""
    fields = recipe.dictionary_fields({"kind": "sae", "act_fn": "jumprelu", "top_k": 4, "d_sae": 64})
    assert recipe.trainer_fields({"lp_coefficient": 3e-6}, fields)["target_l0"] == 4
    assert recipe.trainer_fields({"lp_coefficient": 3e-6, "target_l0": 9}, fields)["target_l0"] == 9
    assert "target_l0" not in recipe.trainer_fields({"sparsity_loss_type": "power"}, fields)
    dictionary = {"act_fn": "jumprelu", "top_k": ACTIVE, "d_sae": 64}
    result = api.fit(short(), dictionary=dictionary, trainer=SHORT | {"lp_coefficient": 3e-6}, batch_size=100, device="cpu")
    assert api.evaluate_reconstruction(result.inference, short())["l0_mean"] == pytest.approx(ACTIVE, rel=0.2)


@pytest.mark.parametrize(
    ("given", "subtracts"),
    [
        ({"kind": "sae"}, True),
        ({"kind": "sae", "hook_point_out": "output"}, False),
        ({"kind": "sae", "use_decoder_bias": False}, False),
        ({"kind": "transcoder"}, False),
        ({"kind": "crosscoder"}, False),
        ({"kind": "clt"}, False),
        ({"kind": "lorsa"}, False),
    ],
)
def test_the_recipe_subtracts_the_decoder_bias_where_that_can_be(given: dict[str, object], subtracts: bool) -> None:
    assert ("apply_b_dec_to_input" in recipe.dictionary_fields(given)) == subtracts


def test_the_recipe_is_the_embedded_default() -> None:
    default = load_params(REPOSITORY / "params.yaml")
    fields = recipe.dictionary_fields({"kind": "sae"})
    made, stated = TrainerParams(**recipe.trainer_fields({}, fields)).to_dict(), default.trainer.to_dict()
    assert {k: v for k, v in made.items() if k not in WITHOUT_INFLUENCE} == {
        k: v for k, v in stated.items() if k not in WITHOUT_INFLUENCE
    }
    assert InitializerParams(**recipe.initializer_fields({}, fields, made)) == default.initializer
    stated = default.dictionary.to_dict()
    assert {key: stated[key] for key in recipe.DICTIONARY} == recipe.DICTIONARY
    assert default.fold.calibration_tokens == recipe.CALIBRATION_TOKENS


def test_public_names() -> None:
    assert all(callable(getattr(api, name)) for name in api.__all__ if name != "PROJECT")
    assert (api.PROJECT / "params.yaml").is_file()
    assert {"build_dictionary", "load_dictionary", "loss", "fit", "evaluate_reconstruction"} <= set(api.__all__)
    assert {"load_language_model", "open_activations"} <= set(api.__all__)


@pytest.mark.parametrize(
    ("dictionary", "trainer", "key", "parts"),
    [
        ({"d_sae": 8}, {}, "dictionary.top_k", (24, 8)),
        ({"d_sae": 49, "top_k": 4}, {"matryoshka_widths": [8, 48]}, "trainer.matryoshka_widths", (49, 48)),
        ({"d_sae": 64, "top_k": 4}, {"initial_k": 65}, "trainer.initial_k", (65, 64)),
        ({"d_sae": 8, "act_fn": "jumprelu", "top_k": 4}, {"target_l0": 9}, "trainer.target_l0", (9.0, 8)),
        ({"act_fn": "batchtopk", "top_k": 4}, {}, "batch_size", (400, 600)),
    ],
)
def test_fit_refuses_what_does_not_fit_the_width_or_the_rows(
    dictionary: dict[str, object], trainer: dict[str, object], key: str, parts: tuple[object, ...]
) -> None:
    with pytest.raises(ParamsError, match=saying(f"{key}:", *parts)):
        api.fit(short(600), dictionary=dictionary, trainer=SHORT | trainer, batch_size=400 if key == "batch_size" else 200)


@pytest.mark.parametrize(
    ("dictionary", "trainer", "message"),
    [
        ({"act_fn": "relu"}, {}, r"^dictionary\.act_fn: relu keeps every positive value, and nothing makes it sparse"),
        (
            {"act_fn": "jumprelu", "top_k": 4},
            {"target_l0": None, "lp_coefficient": 3e-6},
            r"^dictionary\.act_fn: nothing makes jumprelu sparse; set trainer\.target_l0",
        ),
        (
            {"top_k": 4},
            {"k_aux": 64, "p": 2.0},
            r"^no effect: trainer\.p 2\.0 \(there is no sparsity loss\), trainer\.k_aux 64",
        ),
    ],
)
def test_fit_warns_of_what_it_trains_all_the_same(
    dictionary: dict[str, object], trainer: dict[str, object], message: str
) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        result = api.fit(short(600), dictionary={"d_sae": 64, **dictionary}, trainer=SHORTER | trainer, batch_size=200)
    assert (len(caught), caught[0].filename) == (1, __file__)
    assert result.history


@pytest.mark.parametrize("kind", ["transcoder", "lorsa"])
def test_a_kind_that_writes_elsewhere_needs_targets(kind: str) -> None:
    with pytest.raises(ParamsError, match=saying("fit:", kind, "targets", None)):
        api.fit(short(600, 20, 30), dictionary={"kind": kind}, trainer=SHORT)
    made = api.build_dictionary({"kind": "transcoder", "d_in": D, "d_sae": 8, "act_fn": "relu"})
    with pytest.raises(ParamsError, match=saying("loss:", "output", "target")):
        api.loss(made, short(20))
    with pytest.raises(DataError, match=saying("output", "targets", None)):
        api.evaluate_reconstruction(made, short(20))


@pytest.mark.parametrize(
    ("kind", "act_fn", "trainer", "parts"),
    [
        ("sae", "topk", {"target_l0": 4}, ("topk", "dictionary.top_k", 4)),
        ("sae", "topk", {"matryoshka_widths": [4, 6]}, (8, 6)),
        ("clt", "topk", {"matryoshka_widths": [4, 8]}, ("sae", "transcoder", "clt", "null")),
        ("sae", "relu", {"auxk_coefficient": 0.1}, ("topk", "relu", "null")),
        ("sae", "relu", {"sparsity_loss_type": "l0"}, ("l0", "relu", "jumprelu")),
    ],
)
def test_loss_refuses_what_a_file_is_refused_for(
    kind: str, act_fn: str, trainer: dict[str, object], parts: tuple[object, ...]
) -> None:
    hooks = {"hook_points_in": ("a", "b"), "hook_points_out": ("c", "d")} if kind == "clt" else {}
    made = api.build_dictionary({"kind": kind, "d_in": D, "d_sae": 8, "top_k": 4, "act_fn": act_fn, **hooks})
    with pytest.raises(ParamsError, match=saying(f"trainer.{next(iter(trainer))}:", *parts)):
        api.loss(made, short(20), **trainer)


@pytest.mark.parametrize("given", [short(20).numpy(), [1.0]])
def test_what_is_no_tensor_is_named(given: object) -> None:
    with pytest.raises(ParamsError, match=saying("fit:", type(given).__name__, "torch.as_tensor")):
        api.fit(given, dictionary={}, trainer={})  # type: ignore[arg-type]
    made = api.build_dictionary({"kind": "sae", "d_in": D, "d_sae": 8, "act_fn": "relu"})
    with pytest.raises(DataError, match=saying(type(given).__name__, "torch.as_tensor")):
        api.evaluate_reconstruction(made, given)  # type: ignore[arg-type]
