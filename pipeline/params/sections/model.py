"""The language model whose activations are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section

MODEL_DTYPES = ("float32", "bfloat16", "float16")
DEVICE = (r"cpu|(cuda|xpu|npu)(:\d+)?|mps", "a device (cpu, mps, cuda or cuda:N)")


@dataclass(frozen=True)
class ModelParams(Section):
    """Fields: see the comments of params.yaml."""

    NAME: ClassVar[str] = "model"

    model_name: str = param("demo", form=(r"\S(.*\S)?", "a hub id, a local directory or demo"), also_called=("name",))
    revision: str | None = param(None, form=(r"\S+", "a branch, tag or commit"))
    backend: str = param("huggingface", choices=("huggingface", "transformer_lens"))
    dtype: str = param("float32", choices=MODEL_DTYPES)
    device: str | None = param(None, form=DEVICE)
    prepend_bos: bool = param(False)
