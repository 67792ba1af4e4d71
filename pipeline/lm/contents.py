"""What a language model is now: by its files' contents where it is local, by its commit where it is on the hub."""

from __future__ import annotations

from pipeline.digests import FileDigests
from pipeline.lm.source import DEMO, resolve_model

# What transformers reads beside the weights: configuration, tokenizer, chat template.
_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken")


def model_contents(name: str, revision: str | None, digests: FileDigests) -> dict[str, int | str | None]:
    """What tells a model from another one under the same name; the embedded one is a dependency by itself.

    Raises:
        DataError: there is no such model.
    """
    if name == DEMO:
        return {"name": name}
    source = resolve_model(name, revision, any_family=True)
    if not source.is_local:
        return {"name": name, "commit": source.revision}
    names = [file.name for file in source.directory.iterdir() if file.suffix in _SUFFIXES and file.is_file()]
    return digests.of_all(source.directory, [name for name in names if not name.startswith(".")])
