"""What each format holds: written, computed by naive readers of the format, read back; and what it cannot hold, refused by name."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.api import build_dictionary, export_dictionary, load_dictionary
from pipeline.dictionaries.base import Dictionary
from pipeline.errors import DataError, NumericsError, ParamsError
from pipeline.interop.interface import interchange_format
from pipeline.interop.plain import plain_of
from pipeline.interop.saebench import saebench_object
from pipeline.params.interchange import INTERCHANGE_FORMATS
from tests.dictionaries.make import filled, read_by
from tests.interop.cases import GATES, HELD, KINDS, D, F, folded, naive
from tests.interop.test_imports import same
from tests.messages import saying, says

PAIRS = [(format, kind, gate) for format, held in HELD.items() for kind, gate in sorted(held)]


def inputs_of(dictionary: Dictionary) -> Tensor:
    return 2 * read_by(dictionary, 60)


@pytest.mark.parametrize(("format", "kind", "gate"), PAIRS)
def test_what_is_written_computes_the_same_and_reads_back(format: str, kind: str, gate: str, tmp_path: Path) -> None:
    dictionary = folded(kind, gate)
    x = inputs_of(dictionary)
    export = export_dictionary(dictionary, tmp_path / "out", format, activations=x.float(), about={"model_name": "tiny"})
    forward = READERS[format](export.path)
    with torch.no_grad():
        f, y = forward(x)
        ours = dictionary.encode(x.float()).double()
        if dictionary.gate_scale is not None:  # written in the units in which features compete
            ours = ours * dictionary.gate_scale.double()
        assert 0 < int((ours != 0).sum()) < ours.numel()
        assert float((f - ours).norm() / ours.norm()) <= 1e-5
        assert float((y - dictionary(x.float()).double()).norm() / y.norm()) <= 1e-5
    back = load_dictionary(export.path)
    same(back, forward, x)
    assert (back.hooks_in, back.hooks_out) == (dictionary.hooks_in, dictionary.hooks_out)
    assert back.config.act_fn == gate
    assert (export.drawn, len(export.differences)) == (False, 1)


@pytest.mark.parametrize(
    ("format", "kind", "gate"),
    [
        case
        for case in itertools.product(HELD, KINDS, GATES)
        if case[1:] not in HELD[case[0]]
        and not (case[0] == "circuit_tracer" and case[1] in ("transcoder", "skip") and case[2] != "topk")
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_those_that_can(format: str, kind: str, gate: str, tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as error:
        export_dictionary(folded(kind, gate), tmp_path / "out", format)
    holders = ", ".join(name for name in INTERCHANGE_FORMATS if (kind, gate) in HELD.get(name, ())) or "none"
    says(error.value, f"--format {format}", "cannot hold", f"formats that hold it: {holders}")
    assert len(error.value.faults) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"norm_activation": "token-wise"}, ("norm_activation token-wise", "depends on the data")),
        ({"norm_activation": "dataset-wise"}, ("norm_activation dataset-wise", "no norms to fold")),
        ({"use_glu_encoder": True}, ("use_glu_encoder",)),
        ({"act_fn": "batchtopk"}, ("act_fn batchtopk", "depends on the batch", "dictionary.to_jumprelu(batches)")),
        ({**KINDS["clt"], "act_fn": "layertopk"}, ("act_fn layertopk", "fold.convert_topk_to_jumprelu")),
    ],
)
def test_a_dictionary_without_inference_weights_is_refused_by_every_format(
    config: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    dictionary = filled(**config)
    if "norm_activation" not in config:
        dictionary = dictionary.fold(dict.fromkeys((*dictionary.hooks_in, *dictionary.hooks_out), 2.0))
    for format in HELD:
        with pytest.raises(ParamsError) as error:
            export_dictionary(dictionary, tmp_path / "out", format)
        says(error.value, *words)


@pytest.mark.parametrize("format", ["gemma_scope", "llama_scope"])
def test_a_format_that_is_read_only_says_so(format: str, tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as error:
        export_dictionary(folded("sae", "jumprelu"), tmp_path / "out", format)
    says(error.value, f"--format {format}", "is read here, not written", "saelens")


def test_a_crosscoder_feature_that_writes_nothing_somewhere_has_no_form_there(tmp_path: Path) -> None:
    dictionary = folded("crosscoder", "relu")
    with torch.no_grad():
        dictionary.W_D[1, 3] = 0.0
    with pytest.raises(ParamsError) as error:
        export_dictionary(dictionary, tmp_path / "out", "openmoss")
    says(error.value, "openmoss", "writes nothing at a hook point")


@pytest.mark.parametrize("kind", ["clt", "crosscoder", "lorsa", "transcoder"])
def test_norms_of_the_data_in_an_openmoss_file_are_folded_on_reading(kind: str, tmp_path: Path) -> None:
    """x times sqrt(d) / norm goes in, what comes out is divided by that of its own hook point."""
    dictionary = folded(kind, "relu")
    export = export_dictionary(dictionary, tmp_path / "out", "openmoss")
    forward = openmoss_reader(export.path)
    norms = {hook: 3.0 + i for i, hook in enumerate(dict.fromkeys((*dictionary.hooks_in, *dictionary.hooks_out)))}
    file, weights = export.path / "config.json", export.path / "sae_weights.safetensors"
    file.write_text(json.dumps({**json.loads(file.read_text()), "norm_activation": "dataset-wise"}))
    stated = {f"dataset_average_activation_norm.{hook}": torch.tensor(norm) for hook, norm in norms.items()}
    save_file({**load_file(weights), **stated}, weights)

    def factors(hooks: tuple[str, ...]) -> Tensor:
        found = torch.tensor([math.sqrt(D) / norms[hook] for hook in hooks], dtype=torch.float64)
        return found[:, None] if len(hooks) > 1 else found

    def normalised(x: Tensor) -> tuple[Tensor, Tensor]:
        f, y = forward(x * factors(dictionary.hooks_in))
        return f, y / factors(dictionary.hooks_out)

    same(load_dictionary(export.path), normalised, inputs_of(dictionary))


def test_an_unknown_format_lists_all(tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as error:
        export_dictionary(folded("sae", "relu"), tmp_path / "out", "saelense")
    says(error.value, "saelense", "did you mean 'saelens'", *INTERCHANGE_FORMATS)


def test_features_that_compete_by_another_unit_are_written_in_it(tmp_path: Path) -> None:
    """A TopK that selected by h alone keeps a scale beside its unit rows; formats have no place for it but the weights."""
    dictionary = folded("sae", "topk", sparsity_include_decoder_norm=False)
    assert dictionary.gate_scale is not None
    x = inputs_of(dictionary)
    for format in ("saelens", "sparsify", "dictionary_learning", "openmoss"):
        export = export_dictionary(dictionary, tmp_path / format, format, activations=x)
        assert any("compete" in sentence for sentence in export.said)
        f, y = READERS[format](export.path)(x)
        wide = dictionary.rebuilt_as(torch.float64)
        torch.testing.assert_close(f, (wide.encode(x) * dictionary.gate_scale.double()).detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(y, wide(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_calibrated_threshold_stays(tmp_path: Path) -> None:
    trained = filled(act_fn="batchtopk", dtype="float32", **KINDS["sae"])
    batches = [2 * read_by(trained, 200, seed=seed, dtype=torch.float32) for seed in range(3)]
    dictionary = trained.to_jumprelu(batches).fold({"blocks.1.hook_resid_post": 3.0})
    for format in ("saelens", "dictionary_learning", "openmoss"):
        export = export_dictionary(dictionary, tmp_path / format, format)
        back = load_dictionary(export.path)
        torch.testing.assert_close(back.thresholds(), dictionary.thresholds(), rtol=1e-6, atol=0)


def test_a_trained_dictionary_with_its_norms_is_folded(tmp_path: Path) -> None:
    made = build_dictionary(
        {"kind": "sae", "d_in": D, "d_sae": F, "act_fn": "relu", "norms": {"input": {"mean_norm": 4.0, "d": D}}}
    )
    export = export_dictionary(made, tmp_path / "out")
    assert export.said == ("the norms were folded into the weights",)
    x = inputs_of(made)
    f, _ = saelens_reader(export.path)(x)
    raw = made.rebuilt_as(torch.float64).fold(made.config.norms).encode(x)
    torch.testing.assert_close(f, raw.detach(), rtol=1e-5, atol=1e-6)


def test_what_computes_something_else_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = interchange_format("saelens")
    write = type(form).write

    def damaged(self: Any, dictionaries: Any, path: Path) -> list[Path]:
        places = write(self, dictionaries, path)
        tensors = load_file(path / "sae_weights.safetensors")
        save_file({**tensors, "b_dec": tensors["b_dec"] * 1.001}, path / "sae_weights.safetensors")
        return places

    monkeypatch.setattr(type(form), "write", damaged)
    with pytest.raises(NumericsError) as error:
        export_dictionary(folded("sae", "relu"), tmp_path / "out")
    says(error.value, "saelens", "differs from the dictionary", "allowed 1e-05")
    assert list(tmp_path.iterdir()) == []


def test_something_else_is_not_replaced_but_an_earlier_export_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError) as error:
        export_dictionary(folded("sae", "relu"), tmp_path)
    says(error.value, tmp_path, "something else")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    for gate in ("relu", "jumprelu"):
        export_dictionary(folded("sae", gate), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["architecture"] == "jumprelu"
    export_dictionary(folded("sae", "relu"), tmp_path / "set" / "k8")
    with pytest.raises(DataError, match=saying("set", "the dictionaries k8, each in a folder of its own", "--to")):
        export_dictionary(folded("sae", "relu"), tmp_path / "set")


def test_a_set_of_transcoders_is_written_for_circuit_tracer(tmp_path: Path) -> None:
    layers = [
        folded("transcoder", "jumprelu", hook_point_in=f"blocks.{i}.ln2.hook_out", hook_point_out=f"blocks.{i}.hook_mlp_out")
        for i in range(2)
    ]
    export = export_dictionary(layers, tmp_path / "set", "circuit_tracer")
    assert sorted(file.name for file in export.path.iterdir()) == ["config.yaml", "layer_0.safetensors", "layer_1.safetensors"]
    with pytest.raises(DataError) as error:
        load_dictionary(export.path)
    says(error.value, "which one", export.path / "layer_0.safetensors", export.path / "layer_1.safetensors")
    assert load_dictionary(export.path / "layer_1.safetensors").hooks_in == layers[1].hooks_in
    for wrong in ([layers[1]], [layers[0], layers[0]]):
        with pytest.raises(ParamsError) as refused:
            export_dictionary(wrong, tmp_path / "other", "circuit_tracer")
        says(refused.value, "circuit_tracer", "each layer from 0 without a gap")
    with pytest.raises(ParamsError) as several:
        export_dictionary(layers, tmp_path / "other", "saelens")
    says(several.value, "saelens", "one dictionary", "got 2")


@pytest.mark.parametrize("gate", GATES)
def test_the_object_for_saebench(gate: str) -> None:
    dictionary = folded("sae", gate)
    made = saebench_object(plain_of(dictionary))
    x = inputs_of(dictionary).float()
    with torch.no_grad():
        torch.testing.assert_close(made.encode(x), dictionary.encode(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made(x), dictionary(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made.W_dec.norm(dim=-1), torch.ones(F))
    assert made.cfg.to_dict()["hook_layer"] == 1
    assert (made.cfg.hook_name, made.cfg.d_in, made.cfg.d_sae, made.device.type) == ("blocks.1.hook_resid_post", D, F, "cpu")
    with pytest.raises(ParamsError, match="transcoder"):
        saebench_object(plain_of(folded("transcoder", gate)))


# Readers of what is written, by each format's own documentation -----------------------------------------------------------------


def _read(path: Path, name: str) -> dict[str, Tensor]:
    return {key: tensor.double() for key, tensor in load_file(path / name).items()}


def saelens_reader(path: Path) -> Any:
    cfg, w = json.loads((path / "cfg.json").read_text()), _read(path, "sae_weights.safetensors")
    assert cfg["apply_b_dec_to_input"] is False
    assert cfg["normalize_activations"] == "none"
    assert ("jumprelu" in cfg["architecture"], "skip" in cfg["architecture"]) == ("threshold" in w, "W_skip" in w)
    assert int(cfg["metadata"]["sae_lens_version"].split(".")[0]) >= 6

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f, y = naive(x, w["W_enc"], w["b_enc"], w["W_dec"], w["b_dec"], theta=w.get("threshold", 0.0), k=cfg.get("k"))
        return f, y + x @ w["W_skip"].T if "W_skip" in w else y

    return forward


def sparsify_reader(path: Path) -> Any:
    cfg, w = json.loads((path / "cfg.json").read_text()), _read(path, "sae.safetensors")
    assert path.name in ("layers.1", "layers.0.mlp")
    assert (cfg["num_latents"], cfg["d_in"]) == tuple(w["encoder.weight"].shape)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        shift = 0.0 if cfg["transcode"] else w["b_dec"]
        f, y = naive(x, w["encoder.weight"].T, w["encoder.bias"], w["W_dec"], w["b_dec"], k=cfg["k"], b_in=shift)
        return f, y + x @ w["W_skip"].T if cfg["skip_connection"] else y

    return forward


def dictionary_learning_reader(path: Path) -> Any:
    trainer = json.loads((path / "config.json").read_text())["trainer"]
    w = {key: tensor.double() for key, tensor in torch.load(path / "ae.pt", weights_only=True).items()}
    if trainer["dict_class"] == "JumpReluAutoEncoder":
        return lambda x: naive(x, w["W_enc"], w["b_enc"], w["W_dec"], w["b_dec"], theta=w["threshold"])
    bias = w["bias"] if trainer["dict_class"] == "AutoEncoder" else w["b_dec"]
    return lambda x: naive(
        x, w["encoder.weight"].T, w["encoder.bias"], w["decoder.weight"].T, bias, k=trainer.get("k"), b_in=bias
    )


def _gated(z: Tensor, cfg: dict[str, Any], theta: Tensor | None) -> Tensor:
    if cfg["act_fn"] == "topk":
        kth = z.sort(dim=-1, descending=True).values[..., cfg["top_k"] - 1 : cfg["top_k"]]
        return torch.where((z >= kth) & (z > 0), z, 0.0)
    return torch.where(z > (0.0 if theta is None else theta), z, 0.0)


def openmoss_reader(path: Path) -> Any:
    cfg, w = json.loads((path / "config.json").read_text()), _read(path, "sae_weights.safetensors")
    assert cfg["norm_activation"] == "inference"
    assert cfg["sparsity_include_decoder_norm"] == (cfg["sae_type"] == "crosscoder")  # whose loader has no other form
    assert int(cfg["d_model"] * cfg["expansion_factor"]) == F
    theta = w["activation_function.log_jumprelu_threshold"].exp() if cfg["act_fn"] == "jumprelu" else None

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        if cfg["sae_type"] == "lorsa":
            f = _gated(_lorsa(cfg, w, x), cfg, theta)
            return f, f @ w["W_O"] + w["b_D"]
        if cfg["sae_type"] == "clt":
            n = x.shape[1]
            f = torch.stack(
                [_gated(x[:, i] @ w["W_E"][i] + w["b_E"][i], cfg, None if theta is None else theta[i]) for i in range(n)], dim=1
            )
            return f, torch.stack(
                [sum((f[:, i] @ w[f"W_D.{j}"][i] for i in range(j + 1)), w[f"b_D.{j}"]) for j in range(n)], dim=1
            )
        if cfg["sae_type"] == "crosscoder":
            n = x.shape[1]
            f = _gated(sum(x[:, h] @ w["W_E"][h] + w["b_E"][h] for h in range(n)), cfg, theta)  # type: ignore[arg-type]
            return f, torch.stack([f @ w["W_D"][h] + w["b_D"][h] for h in range(n)], dim=1)
        f = _gated(x @ w["W_E"] + w["b_E"], cfg, theta)
        return f, f @ w["W_D"] + w["b_D"]

    return forward


def _lorsa(cfg: dict[str, Any], w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Query by query, with a rotation of each pair of neighbours by its angle."""
    n, heads, half = x.shape[1], cfg["n_qk_heads"], cfg["rotary_dim"] // 2
    each = F // heads
    out = torch.zeros(*x.shape[:2], F, dtype=torch.float64)
    for head in range(heads):
        sides = []
        for name in ("Q", "K"):
            t = x @ w[f"W_{name}"][head] + w[f"b_{name}"][head]
            t = t / (t.square().mean(-1, keepdim=True) + cfg["eps"]).sqrt() * w[f"ln_{name.lower()}.w"][head]
            for position, pair in itertools.product(range(n), range(half)):
                angle = position * cfg["rotary_base"] ** (-2 * pair / cfg["rotary_dim"])
                a, b = t[:, position, 2 * pair].clone(), t[:, position, 2 * pair + 1].clone()
                t[:, position, 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
                t[:, position, 2 * pair + 1] = b * math.cos(angle) + a * math.sin(angle)
            sides.append(t)
        v = (x @ w["W_V"].T + w["b_V"])[..., head * each : (head + 1) * each]
        for q in range(n):
            scores = (sides[0][:, q, None] * sides[1][:, : q + 1]).sum(-1) / (cfg["attn_scale"] or cfg["d_qk_head"] ** 0.5)
            out[:, q, head * each : (head + 1) * each] = (scores.softmax(-1)[..., None] * v[:, : q + 1]).sum(1)
    return out


def circuit_tracer_reader(path: Path) -> Any:
    if (path / "layer_0.safetensors").exists():
        w = _read(path, "layer_0.safetensors")

        def forward(x: Tensor) -> tuple[Tensor, Tensor]:
            theta = w.get("activation_function.threshold", 0.0)
            f, y = naive(x, w["W_enc"].T, w["b_enc"], w["W_dec"], w["b_dec"], theta=theta)
            return f, y + x @ w["W_skip"].T if "W_skip" in w else y

        return forward
    n = len(list(path.glob("W_dec_*")))
    files = [_read(path, f"W_{side}_{i}.safetensors") for side in ("enc", "dec") for i in range(n)]
    w = {key: tensor for file in files for key, tensor in file.items()}

    def cross(x: Tensor) -> tuple[Tensor, Tensor]:
        f = [
            torch.where((z := x[:, i] @ w[f"W_enc_{i}"].T + w[f"b_enc_{i}"]) > w.get(f"threshold_{i}", torch.zeros(())), z, 0.0)
            for i in range(n)
        ]
        y = [sum((f[i] @ w[f"W_dec_{i}"][:, j - i] for i in range(j + 1)), w[f"b_dec_{j}"]) for j in range(n)]
        return torch.stack(f, dim=1), torch.stack(y, dim=1)

    return cross


READERS: dict[str, Any] = {
    "saelens": saelens_reader,
    "sparsify": sparsify_reader,
    "dictionary_learning": dictionary_learning_reader,
    "openmoss": openmoss_reader,
    "circuit_tracer": circuit_tracer_reader,
}
