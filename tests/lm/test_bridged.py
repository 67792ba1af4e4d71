"""Families that are not declared: TransformerLens's own hook points, against plain hooks on transformers' modules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import DataError
from pipeline.lm.bridged import BridgedModel
from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_attention_form, load_language_model, load_tokenizer, model_widths
from tests.lm.families import GQA, LAYERS, D, write_model
from tests.lm.shapes import with_plain_hooks
from tests.messages import saying

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
# name -> (configuration, {hook point of block 1: (module of transformers, side)})
UNDECLARED: dict[str, tuple[dict[str, Any], dict[str, tuple[str, str]]]] = {
    "phi": (
        {**GQA, "layer_norm_eps": 1e-3, "pad_token_id": 0},
        {
            "hook_resid_pre": ("model.layers.1", "input"),
            "ln1.hook_out": ("model.layers.1.input_layernorm", "output"),
            "attn.hook_z": ("model.layers.1.self_attn.dense", "input"),
            "hook_mlp_out": ("model.layers.1.mlp", "output"),
            "mlp.out.hook_in": ("model.layers.1.mlp.fc2", "input"),
            "hook_resid_post": ("model.layers.1", "output"),
        },
    ),
    "cohere": (
        {**GQA, "layer_norm_eps": 1e-3, "pad_token_id": 0, "logit_scale": 0.25},
        {
            "hook_attn_out": ("model.layers.1.self_attn", "output"),
            "attn.q.hook_out": ("model.layers.1.self_attn.q_proj", "output"),
        },
    ),
    "granite": (
        {**GQA, "logits_scaling": 3.0},
        {"mlp.gate.hook_out": ("model.layers.1.mlp.gate_proj", "output"), "hook_resid_post": ("model.layers.1", "output")},
    ),
    "qwen2_moe": ({**GQA, **_EXPERTS}, {"hook_mlp_out": ("model.layers.1.mlp", "output")}),
    "mamba": (
        {},
        {"mixer.hook_out": ("backbone.layers.1.mixer", "output"), "hook_resid_post": ("backbone.layers.1", "output")},
    ),
}


@pytest.fixture(scope="module")
def bridged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LanguageModel]:
    root, made = tmp_path_factory.mktemp("undeclared"), {}

    def model(name: str) -> LanguageModel:
        if name not in made:
            write_model(root / name, name, UNDECLARED[name][0])
            made[name] = load_language_model(root / name, backend="transformer_lens", device="cpu")
        return made[name]

    return model


def plain(model: LanguageModel) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model.name, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", UNDECLARED)
def test_hook_points_are_the_bridges_own(name: str, bridged: Callable[[str], LanguageModel], token_ids: torch.Tensor) -> None:
    model, places = bridged(name), UNDECLARED[name][1]
    assert isinstance(model, BridgedModel)
    assert (model.backend, model.n_layers, model.d_model) == ("transformer_lens", LAYERS, D)
    own = plain(model)
    found = with_plain_hooks(own, token_ids)
    names = model.hook_points()
    assert {f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS)} <= set(names)
    acts = model.activations(token_ids, names)
    for hook, value in acts.items():
        assert value.shape == (*token_ids.shape, model.hook_width(hook)), hook
    for site, (path, side) in places.items():
        a, b = acts[f"blocks.1.{site}"], found[path, side]
        assert float((a - b).norm() / b.norm()) < 2e-6, site
    with torch.no_grad():
        logits = own(input_ids=token_ids, use_cache=False).logits
    assert float((model.logits(token_ids) - logits).norm() / logits.norm()) < 2e-6
    stream = [f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS)]
    same = dict.fromkeys(stream, lambda captured, original: original.clone())
    assert (model.loss(token_ids, same) - model.loss(token_ids)).abs().max().item() == 0
    louder = model.logits(token_ids, {stream[1]: lambda captured, original: 1.5 * original + 0.1})
    assert float((louder - logits).norm() / logits.norm()) > 1e-3


@pytest.mark.parametrize("name", ["phi", "cohere", "granite", "mamba"])
def test_the_unembedding_has_the_familys_scale(
    name: str, bridged: Callable[[str], LanguageModel], token_ids: torch.Tensor
) -> None:
    """Logits are linear in what the final norm gives: the same factor for a difference of two tokens."""
    model = bridged(name)
    final = model.activations(token_ids, ["ln_final.hook_out"])["ln_final.hook_out"]
    found, wanted = final @ model.unembedding().W_U.T, model.logits(token_ids)
    rest = wanted - found  # a bias of the head
    assert float((rest - rest[:1, :1]).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_what_is_not_known_of_an_undeclared_family(bridged: Callable[[str], LanguageModel], token_ids: torch.Tensor) -> None:
    model = bridged("phi")
    attention = "blocks.1.ln1.hook_out"
    for ask in (
        lambda: model.layer_mlp(1),
        lambda: model.layer_attention(1, attention),
        lambda: load_attention_form(model.name, None, 1),
    ):
        with pytest.raises(DataError, match=saying("phi", "not declared", "CONTRIBUTING.md")):
            ask()
    with pytest.raises(DataError, match=saying("blocks.1.hook_rsid_post", "did you mean 'blocks.1.hook_resid_post'", "phi")):
        model.activations(token_ids, ["blocks.1.hook_rsid_post"])


def test_back_ends_and_families(bridged: Callable[[str], LanguageModel], tmp_path: Path) -> None:
    directory = Path(bridged("phi").name)
    with pytest.raises(DataError, match=saying("phi", "unknown model_type", "model.backend to transformer_lens", "phi3")):
        model_widths(directory)
    assert model_widths(directory, backend="transformer_lens").hook_width("blocks.1.mlp.hook_post") == GQA["intermediate_size"]
    assert load_tokenizer(directory).bos_token_id == 0
    # What neither knows.
    own = Path(shutil.copytree(directory, tmp_path / "own"))
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(
        json.dumps({**config, "model_type": "persimmon", "architectures": ["PersimmonForCausalLM"]})
    )
    with pytest.raises(DataError, match=saying("persimmon", "not declared here", "CONTRIBUTING.md")):
        model_widths(own, backend="transformer_lens").hook_points()


def test_a_bridge_that_computes_another_model_is_refused(
    bridged: Callable[[str], LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens.model_bridge.generalized_components import NormalizationBridge

    directory = bridged("phi").name
    forward = NormalizationBridge.forward
    monkeypatch.setattr(NormalizationBridge, "forward", lambda self, x, **options: 1.01 * forward(self, x, **options))
    with pytest.raises(DataError, match=saying("phi", "logits differ", "declared family")):
        load_language_model(directory, backend="transformer_lens", device="cpu")
