"""A model whose numbers are too large for float16: which layer they are of is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import NumericsError
from pipeline.evaluation.models import LanguageModels
from pipeline.evaluation.split_tokens import SplitBatch
from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_language_model
from tests.messages import saying, says
from tests.project import Project

# Factors that put the first overflow of float16 into the output of that module; by hand: 3000 * 3000 is above 65504.
LARGE = {
    "blocks.1.hook_mlp_out": ("model.layers.1.mlp", ("layers.1.mlp.up_proj", "layers.1.mlp.down_proj")),
    "blocks.2.hook_attn_out": ("model.layers.2.self_attn", ("layers.2.self_attn.v_proj", "layers.2.self_attn.o_proj")),
}


def scaled(directory: Path, parts: tuple[str, ...], factor: float = 3000.0) -> Path:
    tensors = load_file(directory / "model.safetensors")
    changed = [name for name in tensors if any(part in name for part in parts) and name.endswith("weight")]
    assert len(changed) == len(parts)
    save_file({name: tensor * factor if name in changed else tensor for name, tensor in tensors.items()},
              directory / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    return directory


@pytest.fixture
def large(model_directory: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    import shutil

    def directory(where: str) -> Path:
        return scaled(Path(shutil.copytree(model_directory("llama"), tmp_path / "large")), LARGE[where][1])

    return directory


def bad_modules(model: nn.Module, ids: Tensor) -> list[str]:
    """Names of the parts of blocks that give a value that is not finite, in the order of a plain run."""
    found: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if not bool(torch.isfinite(value).all()):
                found.append(name)

        return hook

    names = [name for name, _ in model.named_modules() if name.endswith(("self_attn", "mlp", "layernorm"))]
    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("backend", ["huggingface", "transformer_lens"])
@pytest.mark.parametrize("where", LARGE)
def test_the_first_place_is_named(where: str, backend: str, large: Callable[[str], Path], token_ids: Tensor) -> None:
    directory = large(where)
    plain = load_language_model(directory, dtype="float16", device="cpu")
    assert bad_modules(plain._model, token_ids)[0] == LARGE[where][0]  # type: ignore[attr-defined]
    model = load_language_model(directory, backend=backend, dtype="float16", device="cpu")
    found = model.first_not_finite(token_ids)
    assert found is not None
    assert found.where == where
    bad = ~torch.isfinite(model.activations(token_ids, [where])[where])
    assert bool(bad[found.row, found.position].any())
    assert not bool(bad[: found.row].any())
    assert not bool(bad[found.row, : found.position].any())
    says(str(found), where, "position", "float16", "65,504", "model.dtype", "bfloat16", "float32")
    for dtype in ("bfloat16", "float32"):
        assert load_language_model(directory, backend=backend, dtype=dtype, device="cpu").first_not_finite(token_ids) is None


def test_of_the_first_blocks_alone(large: Callable[[str], Path], token_ids: Tensor) -> None:
    directory = large("blocks.1.hook_mlp_out")
    model = load_language_model(directory, dtype="float16", device="cpu", hook_points=["blocks.1.hook_resid_post"])
    found = model.first_not_finite(token_ids)
    assert found is not None
    assert found.where == "blocks.1.hook_mlp_out"
    below = load_language_model(directory, dtype="float16", device="cpu", hook_points=["blocks.0.hook_resid_post"])
    assert below.first_not_finite(token_ids) is None


def test_logits_alone(model_directory: Callable[[str], Path], own_model: Path, token_ids: Tensor) -> None:
    scaled(own_model, ("embed_out",), 60000.0)
    scaled(own_model, ("final_layer_norm",), 1000.0)
    model = load_language_model(own_model, dtype="float16", device="cpu")
    found = model.first_not_finite(token_ids)
    assert found is not None
    assert found.where == "the logits"


def test_a_model_that_is_not_finite_in_float32(own_model: Path, token_ids: Tensor) -> None:
    scaled(own_model, ("layers.1.mlp.dense_4h_to_h",), float("nan"))
    found = load_language_model(own_model, device="cpu").first_not_finite(token_ids)
    assert found is not None
    assert found.where == "blocks.1.hook_mlp_out"
    says(str(found), "blocks.1.hook_mlp_out", "nan", "float32 too", "weights")


def test_generation_names_layer_and_context(project: Project) -> None:
    """The hook point that is stored is above the one that overflows."""
    scaled(project.path / "model", ("layers.0.mlp.dense_h_to_4h", "layers.0.mlp.dense_4h_to_h"))
    project.set(model__dtype="float16", dictionary__hook_point_in="blocks.1.hook_resid_post")
    outcome = project.run("generate_activations")
    assert outcome.exit_code == 2, outcome.exception
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    says(line, "hook point blocks.1.hook_resid_post:", "context", "first at blocks.0.hook_mlp_out", "float16", "bfloat16")


def batch_of(tokens: Tensor) -> SplitBatch:
    contexts = torch.arange(len(tokens)) + 40
    return SplitBatch(contexts, tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens), "contexts")


def test_evaluation_names_layer_and_context(large: Callable[[str], Path], token_ids: Tensor) -> None:
    model = load_language_model(large("blocks.1.hook_mlp_out"), dtype="float16", device="cpu")
    found = model.first_not_finite(token_ids)
    assert found is not None
    with (
        pytest.raises(NumericsError, match=saying("a value", f"context {40 + found.row}", "blocks.1.hook_mlp_out", "float16")),
        LanguageModels(model).explaining(batch_of(token_ids)),
    ):
        raise NumericsError("a value")


def test_a_fault_that_is_not_the_models_is_left_alone(
    language_model: Callable[[str, str], LanguageModel], token_ids: Tensor
) -> None:
    models = LanguageModels(language_model("llama", "huggingface"))
    with pytest.raises(NumericsError) as raised, models.explaining(batch_of(token_ids)):
        raise NumericsError("a reconstruction")
    assert str(raised.value) == "a reconstruction"
