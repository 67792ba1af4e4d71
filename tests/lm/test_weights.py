"""Models of which only the first blocks are loaded, and the ways to compute attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.errors import DataError
from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import BACKENDS, load_language_model
from tests.lm.conftest import CONFIGURATIONS, OLDEST
from tests.lm.families import LAYERS, VOCAB, D
from tests.messages import saying

Directory = Callable[[str], Path]
Whole = Callable[[str, str], LanguageModel]
BY_LAYER = ("gpt2_by_layer", "mistral_window", "qwen2_window", "llama_dynamic")  # what differs from block to block
TOLERANCE = 2e-6


def up_to(layer: int) -> list[str]:
    return [f"blocks.{lower}.{site}" for lower in range(layer + 1) for site in ("hook_mlp_out", "hook_resid_post")]


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "huggingface") for name in (*CONFIGURATIONS, *BY_LAYER)] + [(name, "transformer_lens") for name in OLDEST],
)
def test_the_first_blocks_give_the_whole_models_activations(
    name: str, backend: str, model_directory: Directory, language_model: Whole, token_ids: torch.Tensor
) -> None:
    """Bit for bit, of the last hook point of a block and of one within it."""
    part = load_language_model(model_directory(name), backend=backend, device="cpu", hook_points=up_to(1))
    assert (part.n_loaded, part.n_layers) == (2, LAYERS)
    inside = (
        "blocks.1.ln1.hook_normalized" if "blocks.1.ln1.hook_normalized" in part.hook_points() else "blocks.1.hook_attn_out"
    )
    for wanted in (up_to(1), [inside, "blocks.0.hook_resid_pre"]):
        found, whole = part.activations(token_ids, wanted), language_model(name, backend).activations(token_ids, wanted)
        for hook_point in wanted:
            assert torch.equal(found[hook_point], whole[hook_point]), hook_point


@pytest.mark.parametrize(
    ("name", "tied"),
    [("gpt_neox", False), ("llama", False), ("gpt2", True), ("gemma", True), ("qwen3_moe", False), ("gemma3_multimodal", True)],
)
def test_weights_above_are_not_there(name: str, tied: bool, model_directory: Directory, language_model: Whole) -> None:
    whole = language_model(name, "huggingface")
    for layer in range(LAYERS):
        part = load_language_model(model_directory(name), device="cpu", hook_points=up_to(layer))
        kept = sum(parameter.numel() for parameter in part._model.parameters())  # type: ignore[attr-defined]
        above = [parameter.numel() for block in whole._blocks[layer + 1 :] for parameter in block.parameters()]  # type: ignore[attr-defined]
        unembedding = 0 if tied else VOCAB * D
        assert kept + sum(above) + unembedding == sum(p.numel() for p in whole._model.parameters())  # type: ignore[attr-defined]
        assert part._model.config.num_hidden_layers == LAYERS  # type: ignore[attr-defined]
        assert part.digest == whole.digest


def test_nothing_above_the_deepest_hook_point_runs(language_model: Whole, token_ids: torch.Tensor) -> None:
    """Of a whole model too: neither in the first call nor in a later one."""
    model = language_model("gpt_neox", "huggingface")
    ran: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: ran.append(name))
        for name, module in model._model.named_modules()  # type: ignore[attr-defined]
    ]
    fresh = type(model)(model._source, model._model)  # type: ignore[attr-defined, call-arg]
    try:
        fresh.activations(token_ids, ["blocks.1.ln2.hook_out"])
    finally:
        for handle in handles:
            handle.remove()
    last = [name for name in ran if name.startswith("gpt_neox.layers.1")]
    assert last[-1] == "gpt_neox.layers.1.post_attention_layernorm"
    assert not [name for name in ran if ".mlp" in name and "layers.1" in name]
    assert not [name for name in ran if "layers.2" in name or "final" in name or "lm_head" in name or "embed_out" in name]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_part_of_a_model_cannot_do(backend: str, model_directory: Directory, token_ids: torch.Tensor) -> None:
    model = load_language_model(model_directory("gpt_neox"), backend=backend, device="cpu", hook_points=up_to(1))
    assert model.layer_mlp(1)(torch.zeros(2, D)).shape == (2, D)
    assert model.layer_attention(1, "blocks.1.ln1.hook_out").n_heads == 4
    for above in (
        lambda: model.activations(token_ids, ["blocks.2.hook_resid_pre"]),
        lambda: model.layer_mlp(2),
        lambda: model.layer_attention(2, "blocks.2.ln1.hook_out"),
    ):
        with pytest.raises(DataError, match=saying("layer 2", "not loaded", "0 to 1")):
            above()
    for of_the_whole in (lambda: model.logits(token_ids), lambda: model.trace(token_ids), model.unembedding):
        with pytest.raises(DataError, match=saying("no logits", "load it")):
            of_the_whole()
    with pytest.raises(DataError, match=saying("blocks.3.hook_resid_post", "3 layers")):
        load_language_model(model_directory("gpt_neox"), hook_points=["blocks.3.hook_resid_post"])


def test_loading_a_part_says_nothing(model_directory: Directory, capfd: pytest.CaptureFixture[str]) -> None:
    load_language_model(model_directory("gpt_neox"), device="cpu", hook_points=up_to(0))
    assert capfd.readouterr() == ("", "")


EAGER_ALONE = ("gemma2", "gpt_oss", "gptj", "bloom")  # of which transformers has no sdpa
BOTH_WAYS = [name for name in CONFIGURATIONS if name not in (*EAGER_ALONE, "falcon_alibi")]


@pytest.mark.parametrize("name", EAGER_ALONE)
def test_a_family_that_transformers_computes_eagerly(name: str, model_directory: Directory, language_model: Whole) -> None:
    assert language_model(name, "huggingface")._model.config._attn_implementation == "eager"  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=saying("model.attention", name, "no sdpa", "auto")):
        load_language_model(model_directory(name), device="cpu", attention="sdpa")


def test_an_eager_attention_that_transformers_computes_wrongly_is_refused(
    model_directory: Directory, language_model: Whole, token_ids: torch.Tensor
) -> None:
    """Falcon's alibi is part of the mask, and in eager attention is added again."""
    with pytest.raises(DataError, match=saying("model.attention", "falcon_alibi", "alibi", "twice", "auto")):
        load_language_model(model_directory("falcon_alibi"), device="cpu", attention="eager")
    # What is left is right: by hand, of the first block.
    model = language_model("falcon_alibi", "huggingface")
    names = ["blocks.0.attn.hook_q", "blocks.0.attn.hook_k", "blocks.0.attn.hook_v", "blocks.0.attn.hook_z"]
    acts = model.activations(token_ids, names)
    q, k, v = (acts[name].double().unflatten(-1, (4, 8)).transpose(1, 2) for name in names[:3])
    slopes = torch.tensor([2.0 ** (-8 * (head + 1) / 4) for head in range(4)], dtype=torch.float64)
    positions = torch.arange(token_ids.shape[1])
    scores = (q @ k.transpose(-1, -2) + slopes[:, None, None] * positions) / 8**0.5
    scores = scores.masked_fill(positions[:, None] < positions, -torch.inf)
    z = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
    assert float((acts[names[3]] - z).norm() / z.norm()) < 5e-3  # transformers keeps alibi in bfloat16


@pytest.mark.parametrize("name", [*BOTH_WAYS, "mistral_window", "qwen2_window"])
def test_each_attention_gives_the_same_to_rounding(
    name: str, model_directory: Directory, language_model: Whole, token_ids: torch.Tensor
) -> None:
    hook_point = f"blocks.{LAYERS - 1}.hook_resid_post"
    auto = language_model(name, "huggingface").activations(token_ids, [hook_point])[hook_point]
    found = {}
    for attention in ("eager", "sdpa"):
        model = load_language_model(model_directory(name), device="cpu", attention=attention, hook_points=[hook_point])
        assert model._model.config._attn_implementation == attention  # type: ignore[attr-defined]
        found[attention] = model.activations(token_ids, [hook_point])[hook_point]
    assert torch.equal(found["sdpa"], auto)
    difference = (found["eager"] - auto).norm() / auto.norm()
    assert 0 < difference < TOLERANCE


@pytest.mark.parametrize("name", ["gpt_neox", "qwen3"])
def test_the_bridge_is_eager_by_itself(
    name: str, model_directory: Directory, language_model: Whole, token_ids: torch.Tensor
) -> None:
    names = up_to(LAYERS - 1)
    auto = language_model(name, "transformer_lens").activations(token_ids, names)
    model = load_language_model(model_directory(name), backend="transformer_lens", device="cpu", attention="eager")
    eager = model.activations(token_ids, names)
    assert all(torch.equal(eager[hook_point], auto[hook_point]) for hook_point in names)
    for attention in ("sdpa", "flash_attention_2"):
        with pytest.raises(DataError, match=saying("model.attention", attention, "auto", "huggingface")):
            load_language_model(model_directory(name), backend="transformer_lens", attention=attention)


def test_runs_begin_at_a_block_with_eager_attention(model_directory: Directory, token_ids: torch.Tensor) -> None:
    from pipeline.lm.language_model import Start

    model = load_language_model(model_directory("gpt_neox"), device="cpu", attention="eager")
    residual = model.activations(token_ids, ["blocks.1.hook_resid_pre"])["blocks.1.hook_resid_pre"]
    assert torch.equal(model.logits(token_ids, start=Start(1, residual)), model.logits(token_ids))


@pytest.mark.parametrize("name", ["gpt_neox", "qwen3"])
def test_attention_is_read_alike_however_it_is_computed(name: str, model_directory: Directory, language_model: Whole) -> None:
    """What low-rank sparse attention starts from."""
    where = (1, "blocks.1.ln1.hook_normalized")
    wanted = vars(language_model(name, "huggingface").layer_attention(*where))
    model = load_language_model(model_directory(name), device="cpu", attention="eager")
    for field, value in vars(model.layer_attention(*where)).items():
        assert torch.equal(value, wanted[field]) if isinstance(value, torch.Tensor) else value == wanted[field], field


def test_a_family_without_sdpa(model_directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.GPTNeoXForCausalLM._supports_sdpa", False)
    directory = model_directory("gpt_neox")
    with pytest.raises(DataError, match=saying("model.attention", directory, "gpt_neox", "sdpa", "auto")):
        load_language_model(directory, device="cpu", attention="sdpa")
    model = load_language_model(directory, device="cpu")
    assert model._model.config._attn_implementation == "eager"  # type: ignore[attr-defined]


def test_flash_attention_that_cannot_be(model_directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(device: str, dtype: str) -> str:
        with pytest.raises(DataError, match=saying("model.attention", "flash_attention_2", "auto")) as caught:
            load_language_model(model_directory("llama"), device=device, dtype=dtype, attention="flash_attention_2")
        return str(caught.value)

    assert "CUDA" in load("cpu", "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "float32" in load("cuda", "float32")
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    assert "flash-attn 2.3.3" in load("cuda", "bfloat16")
    with pytest.raises(DataError, match=saying("model.attention", "eagre", "eager")):
        load_language_model(model_directory("llama"), device="cpu", attention="eagre")
