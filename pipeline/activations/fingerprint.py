"""What a store's values depend on, as one digest; and whether a store was made for given parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.activations.codecs.interface import storage_codec
from pipeline.activations.schema import BLOCK_ROWS, FORMAT_VERSION, REGENERATE
from pipeline.errors import DataError, unknown_name
from pipeline.params.choices import TARGETS
from pipeline.params.schema import Params


@dataclass(frozen=True)
class GenerationSettings:
    """The parameters that generation depends on; names as in params.yaml.

    Attributes:
        context_size: tokens per context.
        model_batch_size: contexts in one pass of the model.
        total_tokens: kept tokens to store.
        target: activations-1d or activations-2d.
        storage_dtype: names the codec.
        perm_seed: seed of the order of contexts and rows.
        ignore_token_ids: ids that are masked; None: the token store's.
        ignore_positions: first positions of each context that are masked.
        backend, model_dtype, attention, quantization: how the model is run.
        compressor: of the store's chunks; None: they are as long as their rows.
    """

    context_size: int
    model_batch_size: int
    total_tokens: int
    target: str = "activations-1d"
    storage_dtype: str = "bfloat16"
    perm_seed: int = 42
    ignore_token_ids: tuple[int, ...] | None = None
    ignore_positions: int = 0
    backend: str = "huggingface"
    model_dtype: str = "float32"
    attention: str = "auto"
    quantization: str | None = None
    compressor: str | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise DataError(unknown_name("activations.target", self.target, TARGETS))
        storage_codec(self.storage_dtype)

    @classmethod
    def from_params(cls, params: Params) -> GenerationSettings:
        """From loaded params."""
        acts, model = params.activations, params.model
        return cls(
            context_size=acts.context_size,
            model_batch_size=acts.model_batch_size,
            total_tokens=acts.total_tokens,
            target=acts.target,
            storage_dtype=acts.storage_dtype,
            perm_seed=acts.buffer_shuffle.perm_seed,
            ignore_token_ids=None if acts.ignore_token_ids is None else tuple(acts.ignore_token_ids),
            ignore_positions=acts.ignore_positions,
            backend=model.backend,
            model_dtype=model.dtype or "float32",
            attention=model.attention,
            quantization=model.quantization,
            compressor=acts.compressor,
        )

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> GenerationSettings:
        """From what :func:`fingerprint_config` made."""
        found = {key: value for key, value in config.items() if key in cls.__dataclass_fields__}
        return cls(**found | {"ignore_token_ids": tuple(config["ignore_token_ids"])})


def fingerprint_config(
    settings: GenerationSettings, *, tokens_digest: str, ignore_token_ids: tuple[int, ...], model_digest: str
) -> dict[str, Any]:
    """All that a store's values depend on, except its hook points: a further one is added to the same store.

    Where the model lies and on what device or devices it runs are no part of it.
    """
    return {
        "format_version": FORMAT_VERSION,
        "block_rows": BLOCK_ROWS,
        "tokens_digest": tokens_digest,
        "ignore_token_ids": sorted(int(i) for i in ignore_token_ids),
        "model_digest": model_digest,
        "backend": settings.backend,
        "model_dtype": settings.model_dtype,
        "model_batch_size": settings.model_batch_size,
        "context_size": settings.context_size,
        "total_tokens": settings.total_tokens,
        "target": settings.target,
        "storage_dtype": settings.storage_dtype,
        "perm_seed": settings.perm_seed,
        # Left out where they are the default: a store of an earlier version keeps its name.
        **({"ignore_positions": settings.ignore_positions} if settings.ignore_positions else {}),
        **({"attention": settings.attention} if settings.attention != "auto" else {}),
        **({"quantization": settings.quantization} if settings.quantization is not None else {}),
        **({"compressor": settings.compressor} if settings.compressor is not None else {}),
    }


def check_made_for(
    path: object, config: Mapping[str, Any], settings: GenerationSettings, *, only: tuple[str, ...] | None = None
) -> None:
    """Refuse a store that was made for other parameters.

    Args:
        path: named in the error.
        config: the store's settings.
        settings: the wanted ones.
        only: names of settings to compare; None: all.

    Raises:
        DataError: lists every parameter that differs, with both values.
    """
    names = {
        "activations.context_size": "context_size",
        "activations.model_batch_size": "model_batch_size",
        "activations.total_tokens": "total_tokens",
        "activations.target": "target",
        "activations.storage_dtype": "storage_dtype",
        "activations.buffer_shuffle.perm_seed": "perm_seed",
        "model.backend": "backend",
        "model.dtype": "model_dtype",
    }
    pairs = [(name, config.get(key), getattr(settings, key)) for name, key in names.items() if only is None or key in only]
    if settings.ignore_token_ids is not None and only is None:
        pairs.append(("activations.ignore_token_ids", config.get("ignore_token_ids"), sorted(settings.ignore_token_ids)))
    if only is None:
        pairs.append(("activations.ignore_positions", config.get("ignore_positions", 0), settings.ignore_positions))
        pairs.append(("model.attention", config.get("attention", "auto"), settings.attention))
        pairs.append(("model.quantization", config.get("quantization"), settings.quantization))
        pairs.append(("activations.compressor", config.get("compressor"), settings.compressor))
    differing = [f"{name} {was!r}, not {wanted!r}" for name, was, wanted in pairs if was != wanted]
    if differing:
        raise DataError(f"{path}: the activation store was made for other parameters ({'; '.join(differing)}); {REGENERATE}")
