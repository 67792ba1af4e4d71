"""Tiny random models of every supported family, written with save_pretrained and loaded exactly like hub models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_language_model
from pipeline.seeding import generator

D, LAYERS, VOCAB, CONTEXT, WINDOW = 32, 3, 300, 24, 8
_GQA = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
_NEOX = {"num_attention_heads": 4, "intermediate_size": 64, "hidden_act": "gelu"}
# name -> (model_type, configuration); eps differ from every library's default, so that a wrong one would show.
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("gpt_neox", {**_NEOX, "use_parallel_residual": True, "layer_norm_eps": 1e-3}),
    "gpt_neox_sequential": ("gpt_neox", {**_NEOX, "use_parallel_residual": False, "layer_norm_eps": 1e-3}),
    "gpt2": ("gpt2", {"num_attention_heads": 4, "layer_norm_epsilon": 1e-3}),
    "llama": ("llama", {**_GQA, "rms_norm_eps": 1e-3}),
    "mistral": ("mistral", {**_GQA, "rms_norm_eps": 1e-3}),
    "qwen2": ("qwen2", {**_GQA, "rms_norm_eps": 1e-3}),
    "qwen3": ("qwen3", {**_GQA, "rms_norm_eps": 1e-3, "head_dim": 8}),
    "gemma": ("gemma", {**_GQA, "rms_norm_eps": 1e-3, "head_dim": 8}),
}
# Settings of an attention; layer 0 of qwen2_window has no window.
_PARTS = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
_QWEN2_WINDOW = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}


def _rope(rope_type: str, **options: Any) -> tuple[str, dict[str, Any]]:
    return "llama", {**_GQA, "rope_parameters": {"rope_type": rope_type, "rope_theta": 100.0, **options}}


ATTENTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2_unscaled": ("gpt2", {"num_attention_heads": 4, "scale_attn_weights": False}),
    "gpt2_by_layer": ("gpt2", {"num_attention_heads": 4, "scale_attn_by_inverse_layer_idx": True}),
    "llama_linear": _rope("linear", factor=4.0),
    "llama_by_parts": _rope("llama3", **_PARTS),
    "llama_yarn": _rope("yarn", factor=4.0, original_max_position_embeddings=CONTEXT // 4),
    "llama_dynamic": _rope("dynamic", factor=4.0),
    "mistral_window": ("mistral", {**_GQA, "sliding_window": WINDOW}),
    "qwen2_window": ("qwen2", {**_GQA, **_QWEN2_WINDOW}),
}


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog sat on the log"] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def write_model(directory: Path, model_type: str, options: dict[str, Any]) -> None:
    """Write a tiny random model and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipeline.lm.quiet import quiet

    with quiet():
        config = AutoConfig.for_model(
            model_type,
            vocab_size=VOCAB,
            hidden_size=D,
            num_hidden_layers=LAYERS,
            max_position_embeddings=CONTEXT,
            bos_token_id=0,
            eos_token_id=0,
            **options,
        )
        model = AutoModelForCausalLM.from_config(config)
        draw = generator(0, "tests", model_type)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                base = 1.0 if "norm" in name and name.endswith("weight") and model_type != "gemma" else 0.0
                base = 1.0 if ".ln_" in name and name.endswith("weight") else base
                parameter.copy_(base + 0.15 * torch.randn(parameter.shape, generator=draw))
        model.save_pretrained(directory)
        _tokenizer().save_pretrained(directory)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """name -> directory of a tiny model; shared, so not to be written to."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def directory(name: str) -> Path:
        if name not in made:
            made[name] = root / name
            write_model(made[name], *{**CONFIGURATIONS, **ATTENTIONS}[name])
        return made[name]

    return directory


@pytest.fixture(scope="session")
def language_model(model_directory: Callable[[str], Path]) -> Callable[[str, str], LanguageModel]:
    """(name, back end) -> the loaded model, loaded once."""
    loaded: dict[tuple[str, str], LanguageModel] = {}

    def model(name: str, backend: str) -> LanguageModel:
        if (name, backend) not in loaded:
            loaded[name, backend] = load_language_model(model_directory(name), backend=backend, device="cpu")
        return loaded[name, backend]

    return model


@pytest.fixture
def own_model(model_directory: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a tiny gpt_neox model that a test may damage."""
    return Path(shutil.copytree(model_directory("gpt_neox"), tmp_path / "own"))


@pytest.fixture(scope="session")
def token_ids() -> torch.Tensor:
    """Random token ids [3, 17]."""
    return torch.randint(0, VOCAB, (3, 17), generator=generator(0, "tests", "tokens"))
