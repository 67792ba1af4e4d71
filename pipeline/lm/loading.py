"""Load a language model, its tokenizer, or only what its configuration says.

    model = load_language_model("demo")
    model_widths("EleutherAI/pythia-160m").d_model      # reads config.json alone

Every import of transformers is inside the functions that need it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError, unknown_name
from pipeline.foreign import reading
from pipeline.garbage import uncollected
from pipeline.lm.source import ModelSource, from_hub_or_directory, resolve_model
from pipeline.params.choices import BACKENDS, MODEL_DTYPES

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.lm.attention import AttentionWeights
    from pipeline.lm.language_model import LanguageModel


def load_language_model(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    backend: str = "huggingface",
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> LanguageModel:
    """Load a causal language model for reading and splicing activations.

    Args:
        name_or_path: `demo`, a local directory written by save_pretrained, or a hub id.
        revision: branch, tag or commit of a hub model.
        backend: "huggingface" or "transformer_lens"; they agree to 2e-6 relative in float32.
        dtype: "float32", "bfloat16" or "float16" (or the torch dtype); None: float32.
        device: None: cuda if there is one, else cpu.

    Raises:
        DataError: no such model, back end, dtype or device, an unsupported architecture, or damaged or missing weights.
    """
    if backend not in BACKENDS:
        raise DataError(unknown_name("back end", backend, BACKENDS))
    source = resolve_model(name_or_path, revision)
    if backend == "transformer_lens":
        from pipeline.lm.transformer_lens import TransformerLensModel

        return TransformerLensModel(source, _load_weights(source, dtype, device))
    from pipeline.lm.huggingface import HuggingFaceModel

    return HuggingFaceModel(source, _load_weights(source, dtype, device))


def load_tokenizer(name_or_path: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of a model (a transformers tokenizer).

    Raises:
        DataError: no such model, or its tokenizer is missing or damaged.
    """
    return resolve_model(name_or_path, revision).load_tokenizer()


def model_widths(name_or_path: str | Path, revision: str | None = None) -> ModelSource:
    """What a model's configuration says, without weights and without importing torch.

    Returns:
        an object with .d_model, .n_layers, .vocab_size, .max_context, .model_type, .revision, .hook_points(),
        .hook_width(hook_point) (a DataError if it does not exist) and .digest().

    Raises:
        DataError: no such model, or its architecture is not supported.
    """
    return resolve_model(name_or_path, revision)


def load_attention_form(name_or_path: str | Path, revision: str | None, layer: int) -> AttentionWeights:
    """The attention of one layer without its weights, by the configuration alone: tensors have shapes and no values.

    Raises:
        DataError: no such model or layer, or an attention of a form that cannot be read.
    """
    source = resolve_model(name_or_path, revision)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipeline.lm.huggingface import HuggingFaceModel
    from pipeline.lm.quiet import quiet

    fault = f"{source.directory}: no model can be made of the configuration of '{source.name}'"
    with quiet(), torch.device("meta"), reading(fault, "restore it or give another model"):
        model = AutoModelForCausalLM.from_config(from_hub_or_directory(source, AutoConfig.from_pretrained))
    return HuggingFaceModel(source, model).layer_attention(layer, f"blocks.{layer}.ln1.hook_out")


def _torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    import torch

    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    name = dtype or "float32"
    if name not in MODEL_DTYPES:
        raise DataError(unknown_name("model dtype", name, MODEL_DTYPES))
    return getattr(torch, name)


def _torch_device(device: str | torch.device | None) -> torch.device:
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with reading(f"model.device: unknown device '{device}'", "write cpu, cuda or null"):
        found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"model.device: '{device}' was asked for, but this machine has no usable GPU; set it to cpu or null")
    return found


def _load_weights(source: ModelSource, dtype: str | torch.dtype | None, device: str | torch.device | None) -> nn.Module:
    """The transformers model, on its device, frozen, in evaluation mode.

    Raises:
        DataError: weights are missing, damaged, or do not fit the configuration.
    """
    torch_dtype, torch_device = _torch_dtype(dtype), _torch_device(device)
    if source.is_local:
        source.weight_files()
    with uncollected():
        from transformers import AutoModelForCausalLM

    from pipeline.lm.quiet import quiet

    fault = f"{source.directory}: the weights of model '{source.name}' cannot be loaded"
    with uncollected(), quiet(), reading(fault, "restore the files or give another model"):
        model, info = from_hub_or_directory(
            source,
            AutoModelForCausalLM.from_pretrained,
            dtype=torch_dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
        )
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise DataError(
            f"{source.directory}: the weights of model '{source.name}' lack {len(missing)} tensors that its "
            f"configuration asks for, among them {', '.join(missing[:3])}; restore the files or give another model"
        )
    return model.to(torch_device).eval().requires_grad_(False)
