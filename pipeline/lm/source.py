"""Where a language model comes from, and what its configuration says; no weights are read and torch is not imported.

A name is `demo` (the embedded model in data/demo/model), a local directory, a GGUF file, or an id of the Hugging Face hub. A
hub model is taken from the local cache if it is there, else fetched, and is pinned to the commit that its name and revision
mean now.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import CHECKOUT, json_object, local_path, looked_in, near, read_object, root
from pipeline.foreign import reading
from pipeline.hook_keys import AFTER
from pipeline.lm.architectures import Architecture
from pipeline.lm.families import architecture_of, check_configuration, is_known
from pipeline.lm.gguf_file import SUFFIX, is_gguf, read_header
from pipeline.lm.hook_points import HookPoints
from pipeline.lm.hub import hub_snapshot
from pipeline.lm.place import Place
from pipeline.lm.tokenizer_place import TokenizerPlace, resolve_tokenizer
from pipeline.lm.unsupported import check_predicts, check_quantised

DEMO = "demo"
_CONFIG = "give a directory written by save_pretrained"
_FIELDS = {
    "d_model": ("hidden_size", "n_embd"),
    "n_layers": ("num_hidden_layers", "n_layer"),
    "vocab_size": ("vocab_size",),
    "max_context": ("max_position_embeddings", "n_positions"),
}
# Written by transformers, without influence on what the model computes.
_FREE_KEYS = ("_name_or_path", "transformers_version", "_commit_hash")
_INSIDE = (
    *(f"attn.hook_{part}" for part in "qkvz"),
    "mlp.hook_p",
)  # what is not as wide as the residual stream


@dataclass(frozen=True)
class ModelSource(Place):
    """A language model that exists, and its configuration.

    Attributes:
        name: as it was asked for.
        directory: local directory with the configuration, or the GGUF file; for a hub model the cached snapshot.
        revision: commit of a hub model, None for what is local.
        gguf: header of a GGUF file, else None.
        config: contents of config.json, or what a GGUF file says under the same names.
        tokenizer_name: where the tokenizer is, if not beside the model (model.tokenizer_name).
    """

    config: dict[str, Any] = field(default_factory=dict)
    tokenizer_name: str | None = None

    @property
    def model_type(self) -> str:
        """`model_type` of the configuration."""
        return str(self.config.get("model_type", "none"))

    @functools.cached_property
    def declared(self) -> Architecture:
        """What is declared of its family, for this configuration.

        Raises:
            DataError: it is not supported.
        """
        return architecture_of(self.model_type, self.name, self.config).of_model(self.text_config)

    @functools.cached_property
    def text_config(self) -> dict[str, Any]:
        """The configuration of the language model: of a multimodal one, that part of it."""
        key = architecture_of(self.model_type, self.name, self.config).text_config
        found = self.config if key is None else self.config.get(key, {})
        if not isinstance(found, dict):
            raise DataError(f"{self.directory / 'config.json'}: {key} should be an object, got {found!r}; {_CONFIG}")
        return found

    @functools.cached_property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self._integer("d_model")

    @functools.cached_property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self._integer("n_layers")

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self._integer("vocab_size")

    @functools.cached_property
    def max_context(self) -> int | None:
        """Most tokens in one context, or None if the configuration does not say."""
        found = self._field("max_context")
        return found if isinstance(found, int) else None

    @functools.cached_property
    def blocks(self) -> tuple[Architecture, ...]:
        """Names of the modules of each block."""
        return tuple(self.declared.of_block(self.text_config, layer) for layer in range(self.n_layers))

    @functools.cached_property
    def points(self) -> HookPoints:
        """All hook points."""
        sites, after = tuple(block.sites for block in self.blocks), AFTER if self.declared.final_norm else ()
        return HookPoints(self.name, sites, self.model_type, self.declared.blocks, after)

    def mlp_reads(self, layer: int) -> dict[str, str | None]:
        """{hook point that the MLP of a block is a function of: the norm whose gain and bias come first, if any}."""
        block, prefix = self.blocks[layer], f"blocks.{layer}."
        norm = block.mlp_norm
        reads: dict[str, str | None] = {f"{prefix}{norm}.hook_out": None, f"{prefix}{norm}.hook_normalized": norm}
        own = {f"{prefix}{site}": None for site in ("mlp.hook_in", "hook_resid_mid")[: 1 if norm else 2] if site in block.sites}
        return {**(reads if norm else {}), **own}

    def hook_points(self) -> list[str]:
        """Names of all hook points but those of modules, in the order of a run."""
        return self.points.names()

    def hook_width(self, hook_point: str) -> int:
        """Width of the activation at a hook point.

        Inside attention and MLP, and at modules, it is seen in a run of the model without values (torch is imported).

        Raises:
            DataError: no such hook point, or a module whose activation is no [batch, token, width].
        """
        point = self.points.parse(hook_point)
        if not point.path and not point.site.startswith(_INSIDE):
            return self.d_model
        if hook_point not in self._seen:
            from pipeline.lm.seen import see

            inside = [name for name in self.hook_points() if self.points.parse(name).site.startswith(_INSIDE)]
            self._seen.update(see(self, [hook_point] if point.path else inside))
        return self._seen[hook_point]

    def needed_blocks(self, hook_points: Iterable[str]) -> int | None:
        """How many of the first blocks a run to these hook points needs; None: the whole model.

        Raises:
            DataError: no such hook point.
        """
        points = self.points.parse_all(hook_points).values()
        if any(point.anywhere for point in points):
            return None
        return min(self.n_layers, max((max(point.layer, 0) + 1 for point in points), default=0))

    @functools.cached_property
    def _seen(self) -> dict[str, int]:
        return {}

    def in_order(self, hook_points: Sequence[str]) -> list[str]:
        """Hook points in the order in which they occur in a run; errors as :meth:`hook_width`."""
        from pipeline.lm.seen import see

        return list(see(self, hook_points))

    def digest(self) -> str:
        """sha256 over the configuration and the content of every weight file, or over configuration and commit (hub), or over
        the content of a GGUF file, which holds both.

        Raises:
            DataError: a weight file is missing.
        """
        if self.gguf is not None:
            with open(self.directory, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        free = {key: value for key, value in self.config.items() if key not in _FREE_KEYS}
        digest = hashlib.sha256(json.dumps(free, sort_keys=True).encode())
        if self.revision is not None:
            digest.update(f"\ncommit {self.revision}".encode())
            return digest.hexdigest()
        for file in self.weight_files():
            with open(file, "rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"\n{file.name} {content}".encode())
        return digest.hexdigest()

    def weight_files(self) -> list[Path]:
        """The weight files of a local directory, sorted by name.

        Raises:
            DataError: there are none, or one that the index names is missing.
        """
        single = self.directory / "model.safetensors"
        index = self.directory / "model.safetensors.index.json"
        if single.is_file():
            return [single]
        pickled = [name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if (self.directory / name).is_file()]
        if not index.is_file() and pickled:
            raise DataError(
                f"{self.directory}: the weights of model '{self.name}' are pickled ({pickled[0]}); such files may run code and "
                "are never read: write the model anew with save_pretrained, as model.safetensors"
            )
        if not index.is_file():
            raise DataError(
                f"{self.directory}: no model.safetensors (or model.safetensors.index.json) for model '{self.name}'; "
                "write one with save_pretrained, or restore the file"
            )
        what, advice = "index of weight files", "restore it"
        weight_map = json_object(read_object(index, what, advice).get("weight_map", {}), f"{index}: weight_map", advice)
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise DataError(f"{index}: weight_map should name a file for each tensor; {advice}")
        files = [self.directory / name for name in sorted(set(weight_map.values()))]
        other = [file.name for file in files if file.suffix != ".safetensors"]
        if other:
            raise DataError(
                f"{index}: names weight files that are not safetensors: {', '.join(other)}; such files may run code and are "
                "never read: write the model anew with save_pretrained"
            )
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise DataError(f"{index}: weight files are missing: {', '.join(missing) or 'none is named'}; restore them")
        return files

    def check_weight_files(self) -> None:
        """Refuse weight files of a local directory that are not whole, by their headers; no weights are read.

        Raises:
            DataError: as :meth:`weight_files`; or one is no safetensors file, or was cut short.
        """
        from safetensors import safe_open

        for file in self.weight_files():
            fault = f"{file}: weights of model '{self.name}' are damaged"
            with reading(fault, "restore the file"), safe_open(file, framework="np"):
                pass

    def tokenizer_place(self) -> TokenizerPlace:
        """Where the tokenizer is: beside the model, in the GGUF file, or where model.tokenizer_name says.

        Raises:
            DataError: there is nothing of the name that was given.
        """
        if self.tokenizer_name is None:
            return TokenizerPlace(self.name, self.directory, self.revision, self.gguf)
        return resolve_tokenizer(self.tokenizer_name)

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer; on the hub it is not known before it is asked for."""
        return self.tokenizer_place().has_tokenizer

    @property
    def states_tokenizer(self) -> bool:
        """Whether what is local says what its tokenizer is; else transformers takes what is usual in the model's family."""
        return self.tokenizer_place().states_tokenizer

    def load_tokenizer(self) -> Any:
        """The tokenizer of the model (of transformers).

        Raises:
            DataError: it is missing or damaged.
        """
        return self.tokenizer_place().load()

    def _field(self, what: str) -> Any:
        for key in _FIELDS[what]:
            if key in self.text_config:
                return self.text_config[key]
        if self.gguf is not None:  # which states everything that a model needs
            return self.gguf.metadata.get(f"{self.gguf.architecture}.context_length") if what == "max_context" else None
        # A configuration may leave out what equals its family's default.
        from transformers import AutoConfig

        attribute = {"d_model": "hidden_size", "n_layers": "num_hidden_layers"}.get(what, _FIELDS[what][0])
        with reading(f"{self.directory / 'config.json'}: the configuration of model '{self.name}' is damaged", _CONFIG):
            stated = {k: v for k, v in self.text_config.items() if k != "model_type"}
            nested = self.declared.text_config is not None
            name = str(self.text_config.get("model_type", f"{self.model_type}_text")) if nested else self.model_type
            full = AutoConfig.for_model(name, **stated)
            return getattr(full, attribute, None)

    def _integer(self, what: str) -> int:
        value = self._field(what)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            keys = " or ".join(_FIELDS[what])
            place = self.directory / "config.json" if self.gguf is None else f"{self.directory}: the metadata as config.json"
            raise DataError(f"{place}: {keys} should be a positive integer, got {value!r}; {_CONFIG}")
        return value


def _embedded() -> Path:
    """The embedded model of the checkout that one works in; where that has none, of the one that is installed."""
    here, installed = (place / "data" / "demo" / "model" for place in (root(), CHECKOUT))
    elsewhere = not os.environ.get("DVC_ROOT") and not here.exists() and installed.exists()
    return installed if elsewhere else here


def holds_model(path: Path) -> bool:
    """Whether a path is that of a model, by the names of its files."""
    return path.suffix == SUFFIX if path.is_file() else (path / "config.json").is_file()


def resolve_model(
    name_or_path: str | Path,
    revision: str | None = None,
    tokenizer_name: str | None = None,
    *,
    any_family: bool = False,
) -> ModelSource:
    """Find a model and read its configuration.

    Args:
        name_or_path: `demo`, a local directory, a GGUF file, or a hub id such as `EleutherAI/pythia-160m`.
        revision: branch, tag or commit of a hub model.
        tokenizer_name: a directory, hub id or GGUF file whose tokenizer is the model's; None: the one beside the model. It is
            looked for when the tokenizer is asked for.
        any_family: its family need not be declared: TransformerLens may have it (bridged.py).

    Raises:
        DataError: there is none, or its architecture is not supported; the message says what was tried and what to do.
    """
    name = str(name_or_path)
    found = _embedded() if name == DEMO else local_path(name)
    directory = found or Path(name).expanduser()
    if name == DEMO and not (directory / "config.json").is_file():
        raise DataError(
            f"{directory}: the embedded model is missing; restore it with `git checkout -- data/demo/model`, "
            "or make it anew with `python -m stages.pretrain`"
        )
    local = name == DEMO or os.path.exists(directory)
    if local and revision is not None:
        kind = "a local directory" if os.path.isdir(directory) else "a local file"
        raise DataError(f"model.revision '{revision}' was given for '{name}', {kind}, which has no revisions; set it to null")
    if name == DEMO or os.path.isdir(directory):
        source = ModelSource(name, directory, None, None, _read_config(directory, name), tokenizer_name)
    elif local and is_gguf(directory):
        header = read_header(directory)
        source = ModelSource(name, directory, None, header, header.config(), tokenizer_name)
    elif local:
        raise DataError(
            f"{name}: a model should be a directory with config.json and model.safetensors, or a GGUF file; this is none"
        )
    elif name.startswith((".", "/", "~")) or not 0 <= name.count("/") <= 1 or name.endswith(SUFFIX):
        kind = "GGUF file" if name.endswith(SUFFIX) else "directory"
        raise DataError(
            f"{name}: no such {kind} for a model ({looked_in(name)}){near(name, holds_model)}; give an existing one, a hub id, "
            f"or '{DEMO}'"
        )
    else:
        directory, commit = _hub_config(name, revision)
        source = ModelSource(name, directory, commit, None, _read_config(directory, name), tokenizer_name)
    if any_family and not is_known(source.model_type):
        from pipeline.lm.bridged import BridgedSource

        check_predicts(source.config, name)
        source = BridgedSource(name, directory, source.revision, source.gguf, source.config, tokenizer_name)
    check_configuration(source.declared, source.text_config, name)
    if source.gguf is None:
        check_quantised(source.config, name)
    _ = (source.d_model, source.n_layers, source.vocab_size)  # checked now, so that what is returned is usable
    return source


def _read_config(directory: Path, name: str) -> dict[str, Any]:
    if not (directory / "config.json").exists() and (files := sorted(directory.glob(f"*{SUFFIX}"))):
        raise DataError(f"{directory}: has no config.json, but {files[0].name}; to load that, name the file itself")
    if not (directory / "config.json").exists() and (directory / "adapter_config.json").exists():
        raise DataError(
            f"{directory}: is an adapter (adapter_config.json), not a model; load it with peft, merge it into its base model "
            "with merge_and_unload, and save that with save_pretrained"
        )
    return read_object(directory / "config.json", f"configuration of model '{name}'", _CONFIG)


def _hub_config(name: str, revision: str | None) -> tuple[Path, str]:
    """(snapshot directory, commit) of a hub model whose config.json is in the cache or could be fetched."""
    return hub_snapshot(name, revision, ("config.json",))
