"""A model whose numbers are too large for float16: which layer they are of is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.analysis.attribution import logit_effects
from pipeline.analysis.inspection import inspect_text
from pipeline.analysis.steering import steer
from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import NumericsError
from pipeline.evaluation.models import LanguageModels
from pipeline.evaluation.split_tokens import SplitBatch
from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_language_model
from pipeline.norms.hook_norm import HookNorm
from pipeline.training.model_loss import SplicedContexts
from tests.lm.families import D
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


MLP_OUT, BEFORE = "blocks.1.hook_mlp_out", "blocks.1.hook_resid_pre"


def spliced_contexts(model: LanguageModel, token_ids: Tensor, kind: str = "kl") -> SplicedContexts:
    found = model.activations(token_ids, [BEFORE, MLP_OUT])
    kept = torch.ones_like(token_ids, dtype=torch.bool)
    return SplicedContexts(model, kind, MLP_OUT, token_ids, kept, found[BEFORE], found[MLP_OUT], 2, 7, (40, 41, 42))


@pytest.mark.parametrize("kind", ["kl", "ce"])
def test_the_loss_through_a_model_that_overflows_names_layer_and_context(
    kind: str, large: Callable[[str], Path], token_ids: Tensor
) -> None:
    """In what the dictionary reads, and after it."""
    model = load_language_model(large("blocks.2.hook_attn_out"), dtype="float16", device="cpu")
    found = model.first_not_finite(token_ids)
    assert found is not None
    contexts = spliced_contexts(model, token_ids, kind)
    contexts.check_finite({MLP_OUT: contexts.original})
    wanted = (
        f"trainer.model_loss {kind}",
        "step 7",
        f"context {40 + found.row}",
        "blocks.2.hook_attn_out",
        "float16",
        "bfloat16",
    )
    with pytest.raises(NumericsError, match=saying(*wanted)):
        contexts.loss(contexts.original.float(), 1.0, None)
    with pytest.raises(NumericsError, match=saying("step 7", "context 40", "blocks.2.hook_attn_out", "float16", "bfloat16")):
        contexts.check_finite({"blocks.2.hook_attn_out": torch.full((3, 17, D), torch.inf)})


def test_the_loss_through_a_model_names_what_a_reconstruction_overflows(
    language_model: Callable[[str, str], LanguageModel],
    model_directory: Callable[[str], Path],
    tmp_path: Path,
    token_ids: Tensor,
) -> None:
    import shutil

    # A residual stream of some hundreds: with 65,504, the largest number of float16, its sum is beyond it.
    directory = scaled(Path(shutil.copytree(model_directory("llama"), tmp_path / "wide")), ("embed_tokens",), 1000.0)
    half = load_language_model(directory, dtype="float16", device="cpu")
    assert half.first_not_finite(token_ids) is None
    contexts = spliced_contexts(half, token_ids)
    large = contexts.original.float()
    large[2] = 65_504.0
    parts = (
        "context 42",
        f"with the reconstruction at {MLP_OUT}",
        "first at blocks.1.hook_resid_post",
        "float16",
        "model.dtype",
    )
    with pytest.raises(NumericsError, match=saying(*parts)):
        contexts.loss(large, 1.0, None)
    large[2] = 70_000.0
    with pytest.raises(NumericsError, match=saying("context 42", "position 0", MLP_OUT, "up to 70,000", "float16", "bfloat16")):
        contexts.loss(large, 1.0, None)
    wide = spliced_contexts(language_model("llama", "huggingface"), token_ids)
    with pytest.raises(NumericsError, match=saying("step 7", "context 40", MLP_OUT, "too far", "trainer.lr")):
        wide.loss(torch.full_like(large, 3e38), 1.0, None)
    value, _ = wide.loss(torch.full_like(large, torch.nan), 1.0, None)  # the guard of the trainer names it
    assert bool(value.isnan())


def test_a_gradient_that_overflows_is_named(
    language_model: Callable[[str, str], LanguageModel], token_ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = spliced_contexts(language_model("llama", "huggingface"), token_ids)

    def part(self: SplicedContexts, part: slice, x: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros((), dtype=torch.float64), torch.full_like(x, torch.inf)

    monkeypatch.setattr(SplicedContexts, "_part", part)
    with pytest.raises(NumericsError, match=saying("the gradient at", MLP_OUT, "context 40", "trainer.lr")):
        contexts.loss(contexts.original, 1.0, None)


def test_analysis_names_layer_and_context(project: Project) -> None:
    """Activations that were stored in float32 are finite; the model is then run in float16."""
    scaled(project.path / "model", ("layers.0.mlp.dense_h_to_4h", "layers.0.mlp.dense_4h_to_h"))
    project.set(dictionary__hook_point_in="blocks.1.hook_resid_post").run_all(until="fold_norm")
    project.set(model__dtype="float16")
    outcome = project.run("analyze")
    assert outcome.exit_code == 2, outcome.exception
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    says(line, "hook point blocks.1.hook_resid_post:", "context", "first at blocks.0.hook_mlp_out", "float16", "bfloat16")


def test_a_text_that_is_inspected_or_steered_names_the_layer(large: Callable[[str], Path]) -> None:
    model = load_language_model(large("blocks.1.hook_mlp_out"), dtype="float16", device="cpu")
    dictionary = build_dictionary(
        {"kind": "sae", "hook_point_in": "blocks.2.hook_resid_post", "d_in": D, "d_sae": 64, "act_fn": "topk", "top_k": 4}
    )
    norms = {"blocks.2.hook_resid_post": HookNorm(1.0, 1.0, D)}
    parts = ("first at blocks.1.hook_mlp_out", "float16", "bfloat16")
    with pytest.raises(NumericsError, match=saying("context 0", *parts)):
        inspect_text("the cat sat on the mat", dictionary, model, norms=norms)
    with pytest.raises(NumericsError, match=saying("model '", *parts)):
        steer("the cat sat on the mat", dictionary, model, 3, 1.0, norms=norms)


def test_a_strength_that_overflows_is_named(model_directory: Callable[[str], Path]) -> None:
    model = load_language_model(model_directory("llama"), dtype="float16", device="cpu")
    dictionary = build_dictionary({"kind": "sae", "hook_point_in": MLP_OUT, "d_in": D, "d_sae": 64, "act_fn": "relu"})
    norms = {MLP_OUT: HookNorm(1.0, 1.0, D)}
    with pytest.raises(NumericsError, match=saying("steered at", MLP_OUT, "first at", "strength")):
        steer("the cat sat on the mat", dictionary, model, 3, 1e6, norms=norms)


def test_an_unembedding_that_is_not_finite_is_named(own_model: Path) -> None:
    file = own_model / "model.safetensors"
    tensors = load_file(file)
    tensors["embed_out.weight"][7, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    model = load_language_model(own_model, device="cpu")
    with pytest.raises(NumericsError, match=saying("the unembedding of token 7", "float32 too", "weights")):
        logit_effects(torch.eye(D), model, 3)
    with pytest.raises(NumericsError, match=saying("decoder weights", "trainer.lr")):
        logit_effects(torch.full((1, D), torch.nan), model, 3)
