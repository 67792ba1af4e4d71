"""gpt-oss as it is published: experts in MXFP4, unpacked by hand here, and by the pipeline on every machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.lm.loading import load_language_model
from pipeline.planning.weights import n_parameters
from pipeline.seeding import generator
from tests.lm.conftest import CONFIGURATIONS
from tests.lm.families import LAYERS, write_model

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of the lower three bits; the fourth is the sign
GROUP = 32  # numbers that share a power of two


def drawn(shape: tuple[int, int, int], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [experts, out, in] packed as blocks and scales, and as numbers."""
    draw = generator(0, "tests", name)
    experts, rows, columns = shape
    codes = torch.randint(0, 16, (experts, rows, columns // GROUP, GROUP), generator=draw)
    powers = torch.randint(-5, -2, (experts, rows, columns // GROUP), generator=draw)
    signed = torch.tensor([*VALUES, *(-value for value in VALUES)])
    numbers = (signed[codes] * 2.0 ** powers[..., None]).reshape(shape)
    blocks = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)  # the first of a pair in the lower half
    return blocks, (powers + 127).to(torch.uint8), numbers


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """Directories of the same model: experts packed, and as numbers."""
    model_type, options = CONFIGURATIONS["gpt_oss"]
    write_model(tmp_path / "numbers", model_type, {**options, "intermediate_size": 64})
    packed = Path(shutil.copytree(tmp_path / "numbers", tmp_path / "packed"))
    plain = load_file(packed / "model.safetensors")
    small = dict(plain)
    for layer in range(LAYERS):
        for part in ("gate_up_proj", "down_proj"):
            name = f"model.layers.{layer}.mlp.experts.{part}"
            experts, columns, rows = plain[name].shape
            blocks, scales, numbers = drawn((experts, rows, columns), name)
            plain[name] = numbers.transpose(1, 2).contiguous()
            del small[name]
            small |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(plain, tmp_path / "numbers" / "model.safetensors", metadata={"format": "pt"})
    save_file(small, packed / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    return packed, tmp_path / "numbers"


def test_packed_experts_are_the_numbers_that_they_stand_for(both: tuple[Path, Path], token_ids: Tensor) -> None:
    packed, numbers = (load_language_model(path, device="cpu") for path in both)
    assert torch.equal(packed.logits(token_ids), numbers.logits(token_ids))
    names = packed.hook_points()
    found, wanted = packed.activations(token_ids, names), numbers.activations(token_ids, names)
    assert all(torch.equal(found[name], wanted[name]) for name in names)
    assert all(value.dtype == torch.float32 for value in found.values())


def test_of_the_first_blocks_alone(both: tuple[Path, Path], token_ids: Tensor) -> None:
    hook = "blocks.1.hook_mlp_out"
    packed, numbers = (load_language_model(path, device="cpu", hook_points=[hook]) for path in both)
    assert torch.equal(packed.activations(token_ids, [hook])[hook], numbers.activations(token_ids, [hook])[hook])


def test_the_true_activation_changes_no_loss(both: tuple[Path, Path], token_ids: Tensor) -> None:
    model = load_language_model(both[0], device="cpu")
    same: dict[str, Callable[..., Tensor]] = {"blocks.1.hook_mlp_out": lambda captured, original: original.clone()}
    assert torch.equal(model.loss(token_ids, same), model.loss(token_ids))


def test_their_parameters_are_counted_unpacked(both: tuple[Path, Path]) -> None:
    from pipeline.lm.loading import model_widths

    packed, numbers = (n_parameters(model_widths(path)) for path in both)
    assert packed == numbers
