"""Read a model's weights: all of them, or only the blocks up to the deepest hook point that is read.

A block that is not needed is taken out of the model after transformers has made it, without values, from its whole
configuration, and before any weight is read. So what depends on the number of blocks (kinds of layers listed one by one,
scales of the residual stream) is what it is in the whole model, and the weights of the rest are never read. An unembedding
goes too, unless it is the embedding.

The tensors of a GGUF file are unpacked to numbers while they are read, those of blocks that are not needed one by one and not
kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import DataError, unknown_name
from pipeline.foreign import reading
from pipeline.garbage import uncollected
from pipeline.lm.architectures import Architecture
from pipeline.lm.place import load_from
from pipeline.lm.placement import check_placement, placement_options
from pipeline.lm.quiet import quiet
from pipeline.lm.source import ModelSource
from pipeline.lm.unsupported import check_computable
from pipeline.params.choices import ATTENTIONS, HUGGINGFACE, MODEL_DTYPES
from pipeline.progress import say

if TYPE_CHECKING:
    from torch import nn

_FLASH = "model.attention: flash_attention_2 {}; write auto"
_LARGE = 1 << 30  # bytes of safetensors, above which loading is announced


def load_weights(
    source: ModelSource,
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
    attention: str = "auto",
    n_blocks: int | None = None,
    device_map: str | None = None,
    quantization: str | None = None,
) -> nn.Module:
    """The transformers model, on its device or devices, frozen, in evaluation mode.

    Args:
        source: where it is.
        dtype: of its weights; None: float32.
        device: None: cuda if there is one, else cpu.
        attention: how transformers computes attention; "auto": sdpa, or eager in a family that has no sdpa.
        n_blocks: so many blocks and no unembedding; None: all of it.
        device_map: "auto": on all devices there are (`device` is None then); None: on one.
        quantization: "8bit" or "4bit" linear layers; None: as they are.

    Raises:
        DataError: weights are missing, damaged, or do not fit the configuration; or this attention, device map or
            quantisation cannot be had here.
    """
    torch_dtype, torch_device = _torch_dtype(dtype), _torch_device(device)
    if attention not in ATTENTIONS:
        raise DataError(unknown_name("model.attention", attention, ATTENTIONS))
    check_placement(source, HUGGINGFACE, device, device_map, quantization)
    if source.gguf is not None:
        source.gguf.check_carried(configuration(source))
    elif source.is_local:
        source.weight_files()
    if attention == "flash_attention_2":
        _check_flash(torch_dtype, torch_device)
    cls: Any = type(empty_model(source))
    implementation = _implementation(cls, source, attention)
    if n_blocks is not None:
        cls = _first_blocks(cls, source.declared, n_blocks)
    options: dict[str, Any] = {"use_safetensors": True}
    if source.gguf is not None:
        options = {"config": configuration(source), **_unpacked()}
    elif source.declared.text_config is not None:  # the text model alone, of a multimodal model's files
        config = _text_config(source)
        config.architectures = [cls.__name__]
        options |= {"config": config, "key_mapping": dict(source.declared.renamed)}
    if source.gguf is None and source.config.get("quantization_config"):
        from transformers.utils.quantization_config import Mxfp4Config

        options["quantization_config"] = Mxfp4Config(dequantize=True)  # on every machine, also where its kernels are
    placed, folder = placement_options(torch_dtype, torch_device, device_map, quantization)
    announcement = loading_line(source, torch_dtype)
    if announcement:
        say(announcement)
    fault = f"{source.directory}: the weights of model '{source.name}' cannot be loaded"
    with uncollected(), quiet(), reading(fault, "restore the files or give another model"):
        model, info = load_from(
            source,
            cls.from_pretrained,
            dtype=torch_dtype,
            attn_implementation=implementation,
            output_loading_info=True,
            **options,
            **placed,
        )
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise DataError(
            f"{source.directory}: the weights of model '{source.name}' lack {len(missing)} tensors that its "
            f"configuration asks for, among them {', '.join(missing[:3])}; restore the files or give another model"
        )
    if placed:
        model.weights_folder = folder
    else:
        model = model.to(torch_device)
    return model.eval().requires_grad_(False)


def loading_line(source: ModelSource, dtype: torch.dtype) -> str:
    """What is said before weights are loaded that take a while: what, how large, and what is done; "" for small ones.

    A GGUF file is unpacked tensor by tensor, which takes tens of seconds for 10^8 weights; safetensors are read as they lie. Of
    a hub model that is not in the cache the size is not known here.

    Args:
        source: where they are.
        dtype: that they are loaded in.
    """
    name = str(dtype).removeprefix("torch.")
    if source.gguf is not None:
        n, size = source.gguf.n_weights, source.directory.stat().st_size
        return (
            f"loading model '{source.name}': a GGUF file of {_size(size)}, {n:,} weights, unpacked to {name} "
            f"({_size(n * dtype.itemsize)})"
        )
    files = source.weight_files() if source.is_local else sorted(source.directory.glob("*.safetensors"))
    if not files:
        return f"loading model '{source.name}': its weights are not in the cache and are fetched from the hub"
    size = sum(file.stat().st_size for file in files)
    return f"loading model '{source.name}': {_size(size)} of weights, to {name}" if size > _LARGE else ""


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:,.1f} GB"


def check_attention(
    source: ModelSource, attention: str, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> None:
    """Refuse a way to compute attention that this model, dtype or device has not; no weights are read.

    Raises:
        DataError: as :func:`load_weights`.
    """
    if attention == "flash_attention_2":
        _check_flash(_torch_dtype(dtype), _torch_device(device))
    _implementation(type(empty_model(source)), source, attention)


def check_computed(source: ModelSource) -> None:
    """Refuse a model that transformers cannot compute, or would compute otherwise than its file says; no weights are read.

    Raises:
        DataError: as :func:`load_weights`.
    """
    if source.gguf is not None:
        source.gguf.check_carried(configuration(source))
    empty_model(source)


def empty_model(source: ModelSource) -> nn.Module:
    """The transformers model of a configuration; its parameters have shapes and no values.

    Raises:
        DataError: there is none.
    """
    with uncollected():
        from transformers import AutoModelForCausalLM

    fault = f"{source.directory}: no model can be made of the configuration of '{source.name}'"
    with quiet(), reading(fault, "restore it or give another model"):
        config = _text_config(source)
    check_computable(config, source.name)
    with quiet(), torch.device("meta"), reading(fault, "restore it or give another model"):
        return AutoModelForCausalLM.from_config(config)


def _text_config(source: ModelSource) -> Any:
    """The configuration of transformers: of a multimodal model, that of its text model."""
    config = configuration(source)
    return config if source.declared.text_config is None else config.get_text_config()


def configuration(source: ModelSource) -> Any:
    """The configuration as transformers has it. Of a GGUF file it is made here: transformers takes seconds for it."""
    from transformers import AutoConfig

    if source.gguf is None:
        return load_from(source, AutoConfig.from_pretrained)
    return AutoConfig.for_model(**source.gguf.config())


def _first_blocks(cls: Any, architecture: Architecture, n_blocks: int) -> type:
    """The class of a model that keeps its first blocks alone, and no unembedding but one that is the embedding."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, config, *args, **kwargs)
        blocks = self.get_submodule(architecture.blocks)
        for name in [name for name, _ in blocks.named_children()][n_blocks:]:
            delattr(blocks, name)
        if not config.tie_word_embeddings:
            self.set_output_embeddings(None)

    return type(cls.__name__, (cls,), {"__init__": __init__, "__module__": cls.__module__})


def _unpacked() -> dict[str, Any]:
    """The option that has transformers unpack a GGUF file's tensors, where it could keep some packed instead."""
    import transformers

    config: Any = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _implementation(cls: Any, source: ModelSource, attention: str) -> str:
    """What transformers calls the way to compute attention."""
    wrong = source.declared.not_eager
    has = {"eager": wrong is None, "sdpa": cls._supports_sdpa, "flash_attention_2": cls._supports_flash_attn}
    if attention == "auto":
        return "sdpa" if has["sdpa"] else "eager"
    if attention == "eager" and wrong is not None:
        raise DataError(
            f"model.attention: of model '{source.name}' transformers computes no eager attention: {wrong}; write auto"
        )
    if not has[attention]:
        raise DataError(
            f"model.attention: model '{source.name}' is of family {source.model_type}, for which transformers has no "
            f"{attention}; write auto, or {' or '.join(name for name, there in has.items() if there)}"
        )
    return attention


def _check_flash(dtype: torch.dtype, device: torch.device) -> None:
    """Refuse flash attention where it cannot run.

    Raises:
        DataError: another device than CUDA, float32, or the package flash-attn is not installed.
    """
    if device.type != "cuda":
        raise DataError(_FLASH.format(f"runs on CUDA only, and the model is on {device.type}"))
    if dtype == torch.float32:
        raise DataError(_FLASH.format("computes in bfloat16 or float16, and the model is in float32"))
    from transformers.utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        raise DataError(_FLASH.format("needs flash-attn 2.3.3 or later, which is not installed") + ", or install it")


def _torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    name = dtype or "float32"
    if name not in MODEL_DTYPES:
        raise DataError(unknown_name("model dtype", name, MODEL_DTYPES))
    return getattr(torch, name)


def _torch_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with reading(f"model.device: unknown device '{device}'", "write cpu, cuda or null"):
        found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"model.device: '{device}' was asked for, but this machine has no usable GPU; set it to cpu or null")
    return found
