"""Models on several devices and quantised ones: the same activations wherever the weights lie, and what cannot be had."""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.lm import placement
from pipeline.lm.language_model import LanguageModel, Start
from pipeline.lm.loading import load_language_model
from pipeline.lm.placement import main_device, placement_options
from pipeline.lm.splicing import Run
from tests.lm.families import LAYERS
from tests.lm.gguf_files import write_gguf
from tests.messages import saying

Directory = Callable[[str], Path]
FAMILIES = ("gpt_neox", "gpt2", "llama", "gemma2", "qwen3_moe")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine in whose memory the embedding and a block or two have room: the rest goes to the disk."""
    from transformers.integrations import accelerate

    chosen = accelerate.infer_auto_device_map

    def infer(model: Any, max_memory: Any = None, **options: Any) -> dict[str, Any]:
        sizes = accelerate.compute_module_sizes(model, options.get("hf_quantizer"))
        sizes = sizes[0] if isinstance(sizes, tuple) else sizes
        return chosen(model, max_memory={"cpu": int(sizes[""] * 0.7)}, **options)

    monkeypatch.setattr(accelerate, "infer_auto_device_map", infer)


def dealt(model: LanguageModel) -> set[str]:
    return {str(place) for place in getattr(model._model, "hf_device_map", {}).values()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_activation_is_that_of_a_model_on_one_device(
    model_directory: Directory, token_ids: Tensor, little_memory: None, name: str
) -> None:
    plain = load_language_model(model_directory(name), device="cpu")
    model = load_language_model(model_directory(name), device_map="auto")
    assert dealt(model) == {"cpu", "disk"}
    assert (model.device, model.dtype) == (plain.device, plain.dtype)
    points = plain.hook_points()
    wanted, found = plain.activations(token_ids, points), model.activations(token_ids, points)
    for point in points:
        assert torch.equal(wanted[point], found[point]), point
    assert torch.equal(plain.logits(token_ids), model.logits(token_ids))
    assert model.generate(token_ids[0], 3) == plain.generate(token_ids[0], 3)


@pytest.mark.parametrize("name", ["gpt_neox", "llama"])
def test_splicing_and_weights_that_are_read(
    model_directory: Directory, token_ids: Tensor, little_memory: None, name: str
) -> None:
    plain = load_language_model(model_directory(name), device="cpu")
    model = load_language_model(model_directory(name), device_map="auto")
    for point in ("blocks.0.hook_resid_post", f"blocks.{LAYERS - 1}.ln2.hook_normalized", "blocks.1.hook_mlp_out"):
        replace = {point: lambda captured, x: x * 1.25 + 0.125}
        assert torch.equal(plain.logits(token_ids, replace), model.logits(token_ids, replace)), point
    last = LAYERS - 1
    residual = plain.activations(token_ids, [f"blocks.{last}.hook_resid_pre"])[f"blocks.{last}.hook_resid_pre"]
    for _ in range(2):  # skipped blocks are as before afterwards
        for each in (plain, model):
            assert torch.equal(each.logits(token_ids, start=Start(last, residual)), plain.logits(token_ids))
        assert torch.equal(model.logits(token_ids), plain.logits(token_ids))
    x = torch.randn(5, plain.d_model, generator=torch.Generator().manual_seed(0))
    for layer in range(LAYERS):
        for point in (None, f"blocks.{layer}.ln2.hook_normalized"):
            assert torch.equal(model.layer_mlp(layer, point)(x), plain.layer_mlp(layer, point)(x)), (layer, point)
        where = layer, f"blocks.{layer}.ln1.hook_normalized"
        for field, value in vars(plain.layer_attention(*where)).items():
            mine = getattr(model.layer_attention(*where), field)
            assert torch.equal(mine, value) if isinstance(value, Tensor) else mine == value, (layer, field)
    assert torch.equal(model.unembedding().logits(x), plain.unembedding().logits(x))


def test_the_first_blocks_alone(model_directory: Directory, token_ids: Tensor, little_memory: None) -> None:
    point = "blocks.0.hook_resid_post"
    plain = load_language_model(model_directory("gpt_neox"), device="cpu", hook_points=[point])
    model = load_language_model(model_directory("gpt_neox"), device_map="auto", hook_points=[point])
    assert model.n_loaded == 1
    assert torch.equal(model.activations(token_ids, [point])[point], plain.activations(token_ids, [point])[point])


def test_what_is_on_the_disk_goes_with_the_model(model_directory: Directory, little_memory: None) -> None:
    model = load_language_model(model_directory("qwen3_moe"), device_map="auto")
    folder = model._model.weights_folder.path  # type: ignore[attr-defined]
    assert folder.is_dir()
    del model
    gc.collect()
    assert not folder.exists()


@pytest.fixture
def elsewhere() -> torch.device:
    """Another device than the CPU, for want of a second one: tensors there have shapes and no values."""
    return torch.device("meta")


def test_activations_of_another_device_come_where_they_are_wanted(elsewhere: torch.device) -> None:
    """And what replaces them goes back to where the model goes on."""
    seen: list[Tensor] = []

    def replace(captured: Any, x: Tensor) -> Tensor:
        seen.extend([captured["before"], captured["lazy"], x])
        return torch.full(x.shape, 7.0)

    run = Run(frozenset({"before", "lazy", "here"}), {"here": replace})
    run.device = elsewhere
    before = torch.ones(1, 2, 3)
    assert run.visit("before", before) is before
    run.visit("lazy", lambda: before)
    on = run.visit("here", before * 2)
    assert isinstance(on, Tensor)
    assert on.device.type == "cpu"
    assert on.unique().tolist() == [7.0]
    assert [x.device for x in (*seen, run.captured["here"])] == [elsewhere] * 4


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        ({"embed": "cuda:1", "blocks.0": "cuda:1", "blocks.1": "cuda:2", "head": "disk"}, "cuda:1"),
        ({"embed": "cpu", "blocks.0": "xpu:0", "head": "disk"}, "xpu:0"),
        ({"embed": "cpu", "head": "disk"}, "cpu"),
    ],
)
def test_the_device_that_tokens_go_to(places: dict[str, Any], wanted: str) -> None:
    model = torch.nn.Linear(1, 1)
    model.hf_device_map = places  # type: ignore[assignment]
    assert main_device(model) == torch.device(wanted)


def test_the_quantisation_that_is_asked_for() -> None:
    cpu, half = torch.device("cpu"), torch.bfloat16
    options, folder = placement_options(half, cpu, None, "8bit")
    config = options["quantization_config"]
    assert (config.load_in_8bit, config.load_in_4bit, options["device_map"], folder) == (True, False, {"": cpu}, None)
    options, folder = placement_options(half, cpu, "auto", "4bit")
    config = options["quantization_config"]
    assert (config.load_in_8bit, config.load_in_4bit, config.bnb_4bit_quant_type) == (False, True, "nf4")
    assert (config.bnb_4bit_compute_dtype, options["device_map"]) == (half, "auto")
    assert folder is not None
    assert placement_options(half, cpu, None, None) == ({}, None)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Packages that are not installed, whatever is."""
    found = importlib.util.find_spec

    def hide(*packages: str) -> None:
        monkeypatch.setattr(placement.importlib.util, "find_spec", lambda name: None if name in packages else found(name))

    return hide


def fault(directory: Path, **how: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_language_model(directory, **how)
    return str(caught.value)


def test_packages_that_are_missing(model_directory: Directory, without: Callable[..., None]) -> None:
    directory = model_directory("gpt_neox")
    without("accelerate")
    assert "model.device_map: auto needs the package accelerate; run `pip install accelerate`" in fault(
        directory, device_map="auto"
    )
    assert "model.quantization: 8bit needs the package accelerate" in fault(directory, quantization="8bit")
    without("bitsandbytes")
    assert "4bit needs the package bitsandbytes; run `pip install bitsandbytes`" in fault(directory, quantization="4bit")


def test_a_device_that_bitsandbytes_does_not_know(model_directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its versions before the CPU back end, and as a device of none."""
    old = ModuleType("bitsandbytes")
    old.__spec__ = importlib.util.spec_from_loader("bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", old)
    monkeypatch.setattr(placement, "version", lambda package: "0.45.5")
    said = fault(model_directory("gpt_neox"), quantization="8bit", device="cpu")
    assert "model.quantization: 8bit on cpu, but bitsandbytes 0.45.5 computes on cuda; install a newer one" in said


def test_what_cannot_be_together(model_directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = model_directory("gpt_neox")
    said = fault(directory, backend="transformer_lens", device_map="auto")
    assert "model.device_map: TransformerLens" in said
    assert "huggingface" in said
    assert "model.quantization: TransformerLens" in fault(directory, backend="transformer_lens", quantization="4bit")
    assert "model.device_map: auto deals" in fault(directory, device_map="auto", device="cpu")
    assert "did you mean '8bit'?" in fault(directory, quantization="8bits")
    assert "unknown model.device_map 'balanced'" in fault(directory, device_map="balanced")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 processes were started" in fault(directory, device_map="auto")


def test_gguf_files(model_directory: Directory, token_ids: Tensor, tmp_path: Path, little_memory: None) -> None:
    """They are dealt to devices as others are, and not quantised again."""
    file = write_gguf(model_directory("llama"), tmp_path / "llama.gguf")
    said = fault(file, quantization="8bit")
    assert f"model.quantization: 8bit of '{file}', a GGUF file" in said
    model, plain = load_language_model(file, device_map="auto"), load_language_model(file, device="cpu")
    assert dealt(model) == {"cpu", "disk"}
    assert torch.equal(model.logits(token_ids), plain.logits(token_ids))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("quantization", "off", "rounding"), [("8bit", 0.003, 0.05), ("4bit", 0.03, 1e-4)])
@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "llama"])
def test_real_quantisation(
    model_directory: Directory, token_ids: Tensor, name: str, quantization: str, off: float, rounding: float
) -> None:
    """It is the model of the rounded weights: up to rounding in 4 bits, where in 8 bits what they read is rounded too."""
    plain, rounded = (load_language_model(model_directory(name), device="cpu") for _ in range(2))
    model = load_language_model(model_directory(name), device="cpu", quantization=quantization)
    assert (model.device, model.dtype) == (plain.device, torch.float32)
    assert unpack_into(rounded._model, model._model) >= 4 * LAYERS  # type: ignore[attr-defined]
    x = torch.randn(40, plain.d_model, generator=torch.Generator().manual_seed(0))
    point = "blocks.0.hook_resid_post"
    found, wanted, before = (
        [each.layer_mlp(0)(x), each.activations(token_ids, [point])[point]] for each in (model, rounded, plain)
    )
    for ours, theirs, unrounded in zip(found, wanted, before, strict=True):
        assert apart(ours, theirs) < rounding
        assert apart(theirs, unrounded) > off
    assert torch.equal(model.unembedding().W_U, plain.unembedding().W_U)
    with pytest.raises(DataError, match=saying("quantised", "model.quantization")):
        model.layer_attention(0, "blocks.0.ln1.hook_out")
    part = load_language_model(model_directory(name), device="cpu", quantization=quantization, hook_points=[point])
    assert torch.equal(part.activations(token_ids, [point])[point], found[1])


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def unpack_into(plain: torch.nn.Module, quantised: torch.nn.Module) -> int:
    """Give a model the numbers that another's packed weights stand for, by hand; how many layers are packed."""
    from bitsandbytes.functional import dequantize_4bit

    n = 0
    for path, layer in quantised.named_modules():
        kind = type(layer).__name__
        if kind == "Linear8bitLt":
            weight = layer.weight.data.float() * layer.weight.SCB[:, None] / 127  # type: ignore[union-attr,operator]
        elif kind == "Linear4bit":
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()  # type: ignore[union-attr]
        else:
            continue
        target = plain.get_submodule(path).weight
        target.data.copy_(weight.T if hasattr(plain.get_submodule(path), "nf") else weight)
        n += 1
    return n
