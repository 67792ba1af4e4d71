"""Where a language model comes from, and what its configuration says; no weights are read and torch is not imported.

A name is `demo` (the embedded model in data/demo/model), a local directory, or an id of the Hugging Face hub. A hub
model is taken from the local cache if it is there, else fetched, and is pinned to the commit that its name and revision
mean now.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import json_object, local_path, looked_in, read_object, root
from pipeline.foreign import reading, shortened
from pipeline.hook_keys import AFTER
from pipeline.lm.architectures import Architecture
from pipeline.lm.families import architecture_of, check_configuration, is_known
from pipeline.lm.hook_points import HookPoints

DEMO = "demo"
_HUB_TIMEOUT = 10.0
_GIVE = f"give a hub id while online, a local directory written by save_pretrained, or '{DEMO}'"
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
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


@dataclass(frozen=True)
class ModelSource:
    """A language model that exists, and its configuration.

    Attributes:
        name: as it was asked for.
        directory: local directory with the configuration; for a hub model the cached snapshot.
        revision: commit of a hub model, None for a local directory.
        config: contents of config.json.
    """

    name: str
    directory: Path
    revision: str | None
    config: dict[str, Any]

    @property
    def is_local(self) -> bool:
        """Whether it is a directory rather than a hub model."""
        return self.revision is None

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
        return architecture_of(self.model_type, self.name).of_model(self.text_config)

    @functools.cached_property
    def text_config(self) -> dict[str, Any]:
        """The configuration of the language model: of a multimodal one, that part of it."""
        key = architecture_of(self.model_type, self.name).text_config
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

    @functools.cached_property
    def _seen(self) -> dict[str, int]:
        return {}

    def in_order(self, hook_points: Sequence[str]) -> list[str]:
        """Hook points in the order in which they occur in a run; errors as :meth:`hook_width`."""
        from pipeline.lm.seen import see

        return list(see(self, hook_points))

    def digest(self) -> str:
        """sha256 over the configuration and the content of every weight file, or over configuration and commit (hub).

        Raises:
            DataError: a weight file is missing.
        """
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
        pickled = [file.name for file in files if file.suffix != ".safetensors"]
        if pickled:
            raise DataError(
                f"{index}: names weight files that are not safetensors: {', '.join(pickled)}; such files may run code and are "
                "never read: write the model anew with save_pretrained"
            )
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise DataError(f"{index}: weight files are missing: {', '.join(missing) or 'none is named'}; restore them")
        return files

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer lies beside the model; of a hub model it is not known before it is asked for."""
        return not self.is_local or any((self.directory / name).is_file() for name in _TOKENIZER_FILES)

    @property
    def states_tokenizer(self) -> bool:
        """Whether a local directory says what its tokenizer is; else transformers takes what is usual in the model's family."""
        return not self.is_local or (self.directory / "tokenizer_config.json").is_file()

    def load_tokenizer(self) -> Any:
        """The tokenizer beside the model.

        Raises:
            DataError: it is missing or damaged.
        """
        from pipeline.lm.quiet import quiet

        if not self.has_tokenizer:
            raise DataError(
                f"{self.directory}: model '{self.name}' has no tokenizer (looked for {', '.join(_TOKENIZER_FILES)}); "
                "write one beside the model with tokenizer.save_pretrained"
            )
        from transformers import AutoTokenizer

        fault = f"{self.directory}: the tokenizer of '{self.name}' is damaged"
        with quiet(), reading(fault, "restore its files or give another model"):
            return from_hub_or_directory(self, AutoTokenizer.from_pretrained)

    def _field(self, what: str) -> Any:
        for key in _FIELDS[what]:
            if key in self.text_config:
                return self.text_config[key]
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
            raise DataError(f"{self.directory / 'config.json'}: {keys} should be a positive integer, got {value!r}")
        return value


def resolve_model(name_or_path: str | Path, revision: str | None = None, *, any_family: bool = False) -> ModelSource:
    """Find a model and read its configuration.

    Args:
        name_or_path: `demo`, a local directory, or a hub id such as `EleutherAI/pythia-160m`.
        revision: branch, tag or commit of a hub model.
        any_family: its family need not be declared: TransformerLens may have it (bridged.py).

    Raises:
        DataError: there is none, or its architecture is not supported; the message says what was tried and what to do.
    """
    name = str(name_or_path)
    found = root() / "data" / "demo" / "model" if name == DEMO else local_path(name)
    directory = found or Path(name).expanduser()
    if name == DEMO and not (directory / "config.json").is_file():
        raise DataError(
            f"{directory}: the embedded model is missing; restore it with `git checkout -- data/demo/model`, "
            "or make it anew with `dvc unfreeze pretrain && dvc repro pretrain`"
        )
    if name == DEMO or os.path.isdir(directory):
        if revision is not None:
            raise DataError(
                f"model.revision '{revision}' was given for '{name}', a local directory, which has no revisions; set it to null"
            )
        commit = None
    elif os.path.exists(directory):
        raise DataError(f"{name}: a model should be a directory with config.json and model.safetensors, this is a file")
    elif name.startswith((".", "/", "~")) or not 0 <= name.count("/") <= 1:
        raise DataError(
            f"{name}: no such directory for a model (looked in {looked_in()}); give an existing one, a hub id, or '{DEMO}'"
        )
    else:
        directory, commit = _hub_config(name, revision)
    source = ModelSource(name, directory, commit, _read_config(directory, name))
    if any_family and not is_known(source.model_type):
        from pipeline.lm.bridged import BridgedSource

        source = BridgedSource(name, directory, commit, source.config)
    check_configuration(source.declared, source.text_config, name)
    _ = (source.d_model, source.n_layers, source.vocab_size)  # checked now, so that what is returned is usable
    return source


def from_hub_or_directory(source: ModelSource, load: Any, **options: Any) -> Any:
    """`load(...)` from the directory, or from the hub at the pinned commit: the cache first, then over the network.

    Code that lies beside a model is never run, nor does transformers ask whether it may be.

    Raises:
        DataError: a hub model is not whole in the cache and the hub cannot be reached.
    """
    options["trust_remote_code"] = False
    if source.is_local:
        return load(str(source.directory), local_files_only=True, **options)
    try:
        return load(source.name, revision=source.revision, local_files_only=True, **options)
    except OSError:
        _check_hub(source.name, source.revision)
        return load(source.name, revision=source.revision, **options)


def _read_config(directory: Path, name: str) -> dict[str, Any]:
    return read_object(directory / "config.json", f"configuration of model '{name}'", _CONFIG)


def _hub_config(name: str, revision: str | None) -> tuple[Path, str]:
    """(snapshot directory, commit) of a hub model whose config.json is in the cache or could be fetched."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        file = hf_hub_download(name, "config.json", revision=revision, local_files_only=True)
    except HFValidationError:
        raise DataError(f"{_nothing_found(name, revision)} it is neither a directory nor a hub id; {_GIVE}") from None
    except LocalEntryNotFoundError:
        _check_hub(name, revision)
        with reading(f"{_nothing_found(name, revision)} the hub refused it", _GIVE):
            file = hf_hub_download(name, "config.json", revision=revision)
    directory = Path(file).parent
    return directory, directory.name


def _check_hub(name: str, revision: str | None) -> None:
    """Ask the hub for the model once, so that a wrong name or a missing network is known in seconds."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.is_offline_mode():
        raise DataError(f"{_nothing_found(name, revision)} the hub was not asked (HF_HUB_OFFLINE is set); {_GIVE}")
    # No network: the client's own exceptions differ between versions.
    with reading(f"{_nothing_found(name, revision)} the hub cannot be reached", _GIVE):
        try:
            HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT)
        except GatedRepoError:
            raise DataError(
                f"model '{name}': access is restricted; accept its terms on the hub and log in with `hf auth login`"
            ) from None
        except RepositoryNotFoundError:
            raise DataError(f"{_nothing_found(name, revision)} the hub has no model of this name; {_GIVE}") from None
        except RevisionNotFoundError:
            raise DataError(
                f"{_nothing_found(name, revision)} the hub has this model, but not this revision; {_GIVE}"
            ) from None
        except HfHubHTTPError as error:
            raise DataError(f"{_nothing_found(name, revision)} the hub said: {shortened(error)}; {_GIVE}") from None


def _nothing_found(name: str, revision: str | None) -> str:
    """How a message begins that goes on with what the hub says."""
    at = f" (revision '{revision}')" if revision else ""
    looked = f"no directory of this name in {looked_in()}, not in the Hugging Face cache"
    return f"model '{name}'{at} does not exist here: {looked}, and"
