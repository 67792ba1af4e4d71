"""What a GGUF file says of itself: its metadata and the table of its tensors, read without torch.

1. `GGUF`, version (uint32), number of tensors and of metadata keys (uint64), all little-endian.
2. Metadata: key, type, value. A number is kept, a text too, an array of numbers as a list, one of texts as how many there are.
3. Tensors: name, sizes, type, offset from where the data begins: the next multiple of `general.alignment` after the table.

Every tensor is checked to lie inside the file, so a file that was cut short is refused before anything is loaded. The
configuration is the one that transformers makes of the same metadata, under the names of config.json.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, nearest
from pipeline.foreign import told

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_MOST_SIZES = 8  # dimensions of a tensor; ggml has four
_RESTORE = "download or copy the file anew"
# What transformers calls an architecture that it names otherwise than the file does.
_MODEL_TYPES = {
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gpt-oss": "gpt_oss",
}
_TEXT_TYPES = {"gemma3": "gemma3_text"}  # a file has the text part alone
_TOKENS = "tokenizer.ggml.tokens"
# Frequencies of the rotary embedding that transformers leaves in the file, and whose loss no shape would show.
_ROTARY_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_OTHER = "so that activations would be others than the model's; give the model's own directory or hub id"


@dataclass(frozen=True)
class GGUFHeader:
    """What stands before the weights.

    Attributes:
        path: of the file.
        metadata: {key: number, text, list of numbers, or how many texts}.
        tensors: names, in the order of the file.
        n_weights: elements of all tensors.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[str, ...]
    n_weights: int

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return str(self.metadata["general.architecture"])

    @property
    def has_tokenizer(self) -> bool:
        """Whether a vocabulary is in the file."""
        return bool(self.metadata.get(_TOKENS))

    def config(self) -> dict[str, Any]:
        """The configuration that transformers makes of the metadata, under the names of config.json.

        Raises:
            DataError: transformers reads no file of this architecture, or the file lacks a key.
        """
        from transformers.integrations import GGUF_CONFIG_DEFAULTS_MAPPING, GGUF_CONFIG_MAPPING

        # Of each architecture {key of the file: name in config.json}, and of the tokenizer.
        renamings: dict[str, Any] = dict(GGUF_CONFIG_MAPPING)
        of_tokenizer = renamings.pop("tokenizer")
        del renamings["general"]
        own, known = self.architecture, _MODEL_TYPES.get(self.architecture, self.architecture)
        if known not in renamings:
            return self._newer_config(renamings)
        found: dict[str, Any] = dict(GGUF_CONFIG_DEFAULTS_MAPPING.get(known, {}))
        for prefix, renamed in ((own, renamings[known]), ("tokenizer", of_tokenizer)):
            for key, name in renamed.items():
                if name is not None and f"{prefix}.{key}" in self.metadata:
                    found[name] = self.metadata[f"{prefix}.{key}"]
        if "vocab_size" not in found and self.has_tokenizer:
            found["vocab_size"] = self.metadata[_TOKENS]
        if own == "stablelm":
            found["use_qkv_bias"] = any(name.endswith(("attn_q.bias", "attn_k.bias", "attn_v.bias")) for name in self.tensors)
            found["use_parallel_residual"] = not any("ffn_norm" in name for name in self.tensors)
        tied = "output.weight" not in self.tensors or own in ("falcon", "bloom")
        return {**found, "model_type": _TEXT_TYPES.get(known, known), "tie_word_embeddings": tied}

    def _newer_config(self, others: Iterable[str]) -> dict[str, Any]:
        """Of an architecture that transformers has a function for, in versions that have any; `others` has none."""
        make: Mapping[str, Any] = {}
        with contextlib.suppress(ImportError):
            from transformers.integrations.gguf import GGUF_CONFIG_ARCHS as make
        if self.architecture not in make:
            close = nearest(self.architecture, sorted({*others, *_MODEL_TYPES, *make}))
            raise DataError(
                f"{self.path}: transformers reads no GGUF file of architecture '{self.architecture}'"
                f"{f' (the nearest that it reads is {close})' if close else ''}; give the model's own directory or hub id"
            )
        try:
            return dict(make[self.architecture](dict(self.metadata), self.tensors))
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise DataError(f"{self.path}: no configuration can be made of the metadata ({told(error)}); {_RESTORE}") from None

    def check_carried(self, config: Any) -> None:
        """Refuse a file that says of its computation what transformers does not take from it.

        Args:
            config: the configuration as transformers has it.

        Raises:
            DataError: rotary frequencies are scaled, or a key has another value than the configuration.
        """
        scaling = self.metadata.get(f"{self.architecture}.rope.scaling.type", "none")
        lost = [name for name in self.tensors if name in _ROTARY_TENSORS]
        lost += [] if scaling == "none" else [f"{self.architecture}.rope.scaling.type {scaling}"]
        if lost:
            raise DataError(
                f"{self.path}: has scaled rotary frequencies ({', '.join(lost)}), which transformers does not read from a GGUF "
                f"file, {_OTHER}"
            )
        for name, taken in _taken(config).items():
            stated = self.metadata.get(f"{self.architecture}.{name}")
            if isinstance(stated, (int, float)) and taken is not None and not math.isclose(stated, taken, rel_tol=1e-5):
                raise DataError(
                    f"{self.path}: {self.architecture}.{name} is {stated:g}, but transformers, which does not read it, takes "
                    f"{taken:g}, {_OTHER}"
                )


def _taken(config: Any) -> dict[str, float | None]:
    """{key of the metadata: what a configuration of transformers has in its place; None: it has nothing of the kind}."""
    heads = getattr(config, "num_attention_heads", None)
    head = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    rope = getattr(config, "rope_parameters", None) or {}
    nested = any(isinstance(value, dict) for value in rope.values())  # by kind of layer
    share = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0))
    return {
        "attention.key_length": head,
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "rope.freq_base": None if nested else rope.get("rope_theta"),
        "rope.dimension_count": None if nested or not rope or head is None else int(head * share),
    }


def is_gguf(path: Path) -> bool:
    """Whether a file is meant to be one: by its name, or by how it begins."""
    if path.name.endswith(SUFFIX):
        return True
    try:
        with open(path, "rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read_header(path: Path) -> GGUFHeader:
    """Read what stands before the weights, and check that the weights are all there.

    Raises:
        DataError: no GGUF file, one of a version or with a type that is not known, a damaged one, or one that was cut short.
    """
    try:
        with open(path, "rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                raise DataError(f"{path}: does not begin with {_MAGIC.decode()}, so it is no GGUF file; {_RESTORE}")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _header(path, _Reader(content))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_RESTORE}") from None
    except (struct.error, OverflowError):
        raise DataError(f"{path}: the file was cut short inside its header; {_RESTORE}") from None
    except _Damaged as damage:
        raise DataError(f"{path}: {damage}; {_RESTORE}") from None


class _Damaged(Exception):
    """What is wrong with the file, in words."""


class _Reader:
    """Values one after the other; a struct.error is the end of the file."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.at = len(_MAGIC)

    def numbers(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return found

    def bytes(self) -> bytes:
        (length,) = self.numbers("<Q")
        self.skip(length)
        return self.content[self.at - length : self.at]

    def text(self) -> str:
        begin = self.at
        try:
            return self.bytes().decode()
        except UnicodeDecodeError:
            raise _Damaged(f"the header is damaged (byte {begin}: a text that is not UTF-8)") from None

    def skip(self, length: int) -> None:
        if length > len(self.content) - self.at:
            raise struct.error
        self.at += length

    def value(self, kind: int) -> Any:
        """A number, a text, a list of numbers, or the number of texts."""
        if kind in _FORMATS:
            return self.numbers(_FORMATS[kind])[0]
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise _Damaged(f"the header is damaged (byte {self.at}: a value of type {kind}, which GGUF does not have)")
        of, count = self.numbers("<IQ")
        if of in _FORMATS:
            form = _FORMATS[of]
            self.skip(count * struct.calcsize(form))
            return list(struct.unpack_from(f"<{count}{form[1]}", self.content, self.at - count * struct.calcsize(form)))
        if of != _TEXT:
            raise _Damaged(f"the header is damaged (byte {self.at}: an array of type {of})")
        for _ in range(count):
            self.skip(self.numbers("<Q")[0])
        return count


def _header(path: Path, reader: _Reader) -> GGUFHeader:
    (version,) = reader.numbers("<I")
    if version not in _VERSIONS:
        raise _Damaged(f"GGUF version {version} (little-endian) is not one that is read ({' or '.join(map(str, _VERSIONS))})")
    n_tensors, n_keys = reader.numbers("<QQ")
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = reader.text()
        metadata[key] = reader.value(reader.numbers("<I")[0])
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise _Damaged("the metadata lacks general.architecture")
    table = []
    for _ in range(n_tensors):
        name = reader.text()
        (n_sizes,) = reader.numbers("<I")
        if n_sizes > _MOST_SIZES:
            raise _Damaged(f"the table of tensors is damaged ('{name}' has {n_sizes} dimensions)")
        sizes = reader.numbers(f"<{n_sizes}Q")
        kind, offset = reader.numbers("<IQ")
        table.append((name, math.prod(sizes), kind, offset))
    if not table:
        raise _Damaged("holds no tensors")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"general.alignment is {alignment!r}")
    begin = -(-reader.at // alignment) * alignment
    _check_inside(table, begin, len(reader.content))
    return GGUFHeader(path, metadata, tuple(name for name, *_ in table), sum(elements for _, elements, *_ in table))


def _check_inside(table: list[tuple[str, int, int, int]], begin: int, size: int) -> None:
    """Refuse a table of (name, elements, type, offset) that does not fit a file of `size` bytes with data from `begin` on."""
    sizes = _block_sizes()
    names = set()
    for name, elements, kind, offset in table:
        if name in names:
            raise _Damaged(f"the table of tensors is damaged ('{name}' is there twice)")
        names.add(name)
        if kind not in sizes:
            raise _Damaged(f"tensor '{name}' is stored as type {kind}, which the installed package gguf does not know")
        per_block, n_bytes = sizes[kind]
        if elements % per_block:
            raise _Damaged(
                f"the table of tensors is damaged ('{name}' has {elements} elements, not whole blocks of {per_block})"
            )
        end = begin + offset + elements // per_block * n_bytes
        if end > size:
            raise _Damaged(f"the file was cut short: tensor '{name}' ends at byte {end:,}, and the file has {size:,}")


def _block_sizes() -> dict[int, tuple[int, int]]:
    """{type: (elements, bytes) of a block}.

    Raises:
        DataError: the package gguf is not installed.
    """
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError:
        raise DataError("a GGUF file is read with the package gguf, which is not installed; run `pip install gguf`") from None
    return {int(kind): (int(elements), int(n_bytes)) for kind, (elements, n_bytes) in GGML_QUANT_SIZES.items()}
