"""The language model whose activations are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.choices import (
    ATTENTIONS,
    BACKENDS,
    DEVICE_MAPS,
    MODEL_DTYPES,
    QUANTIZATIONS,
    attention_fault,
    bridge_fault,
    device_map_fault,
)
from pipeline.params.fields import param
from pipeline.params.section import Section, rule

DEVICE = (r"cpu|(cuda|xpu|npu)(:\d+)?|mps", "a device (cpu, mps, cuda or cuda:N)")


_NAME_FORM = (r"\S(.*\S)?", "a hub id, a local directory, a GGUF file or demo")
_TOKENIZER_FORM = (r"\S(.*\S)?", "a hub id, a local directory or a GGUF file")
_REVISION_FORM = (r"\S+", "a branch, tag or commit")
ALIAS = r"[A-Za-z_][A-Za-z0-9_-]*"
ALIAS_FORM = (ALIAS, "letters, digits, '_' and '-', beginning with a letter")


@dataclass(frozen=True)
class NamedModelParams(Section):
    """One further language model of the section `models`; everything else is as in the section `model`."""

    NAME: ClassVar[str] = "models"

    model_name: str = param(
        form=_NAME_FORM, also_called=("name",), about="hub id, local directory or GGUF file of the further model"
    )
    revision: str | None = param(
        None, form=_REVISION_FORM, about="branch, tag or commit of its hub repository; null: its default branch"
    )
    tokenizer_name: str | None = param(
        None, form=_TOKENIZER_FORM, about="what its tokenizer is taken from; null: from beside it, or from its GGUF file"
    )


@dataclass(frozen=True)
class ModelParams(Section):
    """The language model whose activations are read."""

    NAME: ClassVar[str] = "model"

    model_name: str = param(
        "demo",
        form=_NAME_FORM,
        also_called=("name",),
        about="hub id, local directory, GGUF file, or demo (data/demo/model, committed)",
    )
    revision: str | None = param(
        None, form=_REVISION_FORM, about="branch, tag or commit of the hub repository; null: its default branch"
    )
    tokenizer_name: str | None = param(
        None,
        form=_TOKENIZER_FORM,
        about="hub id, local directory or GGUF file that the tokenizer is taken from; null: from the model's own",
    )
    backend: str = param(
        "huggingface",
        choices=BACKENDS,
        about="huggingface (forward hooks, stops early) | transformer_lens (TransformerBridge)",
    )
    dtype: str = param("float32", choices=MODEL_DTYPES, about="compute dtype of the model")
    attention: str = param(
        "auto",
        choices=ATTENTIONS,
        about="how attention is computed: auto (sdpa where the family has it, else eager) | eager | sdpa | "
        "flash_attention_2 (CUDA, half precision, package flash-attn)",
    )
    device: str | None = param(None, form=DEVICE, about="cpu, cuda, cuda:N, mps; null: cuda if there is one, else cpu")
    device_map: str | None = param(
        None,
        choices=DEVICE_MAPS,
        about="auto: a model too large for one device: its blocks on all GPUs, then in memory, then on the disk (package "
        "accelerate); null: on one device",
    )
    quantization: str | None = param(
        None,
        choices=QUANTIZATIONS,
        about="8bit (LLM.int8) | 4bit (NF4) weights of linear layers, other activations (package bitsandbytes); null: none",
    )
    prepend_bos: bool | str = param(
        "auto",
        words=("auto",),
        about="true: every context starts with the BOS token | false | auto: if the tokenizer puts it before a text by itself",
    )

    @rule("attention")
    def _the_bridge_has_one_attention(self) -> str | None:
        return attention_fault(self.backend, self.attention)

    @rule("device_map")
    def _a_device_map_has_no_device(self) -> str | None:
        return bridge_fault(self.backend, self.device_map) or device_map_fault(self.device_map, self.device)

    @rule("quantization")
    def _the_bridge_is_not_quantised(self) -> str | None:
        return bridge_fault(self.backend, self.quantization)

    @rule("attention")
    def _flash_attention_computes_in_half_precision(self) -> str | None:
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            return "flash_attention_2 computes in bfloat16 or float16, and model.dtype is float32; write auto, or change that"
        return None
