"""Names that a parameter may have, where parameters and the code that acts on them both list them."""

from __future__ import annotations

HUGGINGFACE = "huggingface"
BACKENDS = (HUGGINGFACE, "transformer_lens")
MODEL_DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("auto", "eager", "sdpa", "flash_attention_2")
DEVICE_MAPS = ("auto",)
QUANTIZATIONS = ("8bit", "4bit")
COMPRESSORS = ("blosc-lz4", "blosc-zstd")
LIVE, STORE = "live", "store"
SOURCES = (STORE, LIVE)  # of activations
TARGETS = ("activations-1d", "activations-2d")

CONSTANT_NORMS, NORMS_OF_THE_DATA = ("dataset-wise", "dataset-rms"), ("token-wise", "batch-wise")
NORM_ACTIVATIONS = (*CONSTANT_NORMS, *NORMS_OF_THE_DATA)
INFERENCE = "inference"  # the norm of a folded dictionary: none
WEIGHT_DTYPES = ("float32", "float64")
STORED_DTYPES = (*WEIGHT_DTYPES, "float16", "bfloat16")  # of a dictionary that is loaded or saved

BIAS_STARTS = ("all_zero", "geometric_median", "mean")
CROSS_LAYER_DECODERS = ("drawn", "by_sources", "zero")
K_SCHEDULES = ("linear", "exponential")
MODEL_LOSSES = ("kl", "ce")
FOLD_MODES = ("fold", "keep")
FEATURE_UNITS = ("raw", "normalized")


def attention_fault(backend: str, attention: str) -> str | None:
    """What is wrong with an attention of a back end: TransformerLens computes it eagerly, whatever it is told."""
    if backend != "transformer_lens" or attention in ("auto", "eager"):
        return None
    return f"TransformerLens computes attention eagerly, got {attention}; write auto, or model.backend: huggingface"


def bridge_fault(backend: str, value: str | None) -> str | None:
    """What is wrong with a device map or a quantisation of a back end: TransformerLens copies the model to one device."""
    if backend != "transformer_lens" or value is None:
        return None
    return f"TransformerLens runs a whole model on one device, got {value}; write null, or model.backend: huggingface"


def device_map_fault(device_map: str | None, device: object) -> str | None:
    """What is wrong with a device map beside a device."""
    if device_map is None or device is None:
        return None
    return f"{device_map} deals the blocks to all devices, and model.device is {device}; write null to one of the two"
