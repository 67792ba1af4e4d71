"""Names of hook points of several models: `alias:blocks.2.hook_resid_post`.

The alias is a key of the parameters' section `models`; a hook point of the main model (section `model`) has none. Stores,
norms and dictionaries use these keys as the names of hook points, so that only what runs a model takes them apart.
"""

from __future__ import annotations

from collections.abc import Iterable

MAIN = ""  # alias of the main model


def split_key(key: str) -> tuple[str, str]:
    """(alias, hook point inside that model) of a key; the main model's alias is the empty string."""
    alias, colon, hook = key.rpartition(":")
    return (alias, hook) if colon else (MAIN, key)


def join_key(alias: str, hook_point: str) -> str:
    """The key of a model's hook point."""
    return f"{alias}:{hook_point}" if alias else hook_point


def by_model(keys: Iterable[str]) -> dict[str, list[str]]:
    """{alias: hook points inside that model}, models in the order in which they occur first."""
    found: dict[str, list[str]] = {}
    for key in keys:
        alias, hook = split_key(key)
        found.setdefault(alias, []).append(hook)
    return found
