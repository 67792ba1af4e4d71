"""A settings file of the reference, checked: TOML, JSON or YAML, as its `train` and `generate` commands take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ParamsError, nearest, unknown_name
from pipeline.params.fields import Refused, convert, describe
from pipeline.params.lm_saes.declared import Config, Key, Named, Required, Several
from pipeline.params.lm_saes.table import GENERATE, ONE_FACTORY_CROSSCODER, TRAIN
from pipeline.params.reading import read_mapping

# Keys by which a dictionary's kind is told where sae_type is not stated.
TELLING = {"n_qk_heads": "lorsa", "hook_points_in": "clt", "hook_points": "crosscoder", "rank_counts": "molt"}
NO_MOLT = "molt (a mixture of linear transforms) has no counterpart; nearest: a transcoder, sae_type sae with two hook points"


@dataclass
class Settings:
    """What a file says.

    Attributes:
        source: the file.
        kind: of the dictionary that is trained; "" of a generation.
        config: the class of the settings.
        known: {dotted key: its declaration} of all keys, in order; those inside a list are there for each of its items.
        stated: {dotted key: value} of the keys that the file states and that hold no settings.
        sections: dotted places of the settings inside that the file states.
        items: {dotted key of a list, or of a mapping by names: {number or name: the place of its settings}}.
    """

    source: str
    kind: str
    config: Config
    known: dict[str, Key] = field(default_factory=dict)
    stated: dict[str, Any] = field(default_factory=dict)
    sections: set[str] = field(default_factory=set)
    items: dict[str, dict[str, str]] = field(default_factory=dict)

    def __getitem__(self, place: str) -> Any:
        """The value of a dotted key: what is stated, or the reference's default."""
        return self.stated[place] if place in self.stated else self.known[place].default


def read_settings(path: str | Path) -> Settings:
    """Read and check a file.

    Raises:
        ParamsError: the file cannot be read, is of neither command, or has unknown, missing or mistyped keys; all at once.
    """
    raw = read_mapping(path, "settings file")
    kind, config = _class_of(str(path), raw)
    settings = Settings(str(path), kind, config)
    faults: list[str] = []
    _read(settings, config, raw, "", faults)
    if faults:
        raise ParamsError([f"{path}: {fault}" for fault in faults])
    return settings


def _class_of(path: str, raw: Mapping[str, Any]) -> tuple[str, Config]:
    if "sae" in raw:
        kind = _kind_of(path, raw["sae"])
        return kind, ONE_FACTORY_CROSSCODER if kind == "crosscoder" and "activation_factory" in raw else TRAIN[kind]
    if "items" in raw:
        raise ParamsError(
            f"{path}: items: settings of a sweep are not read; give each item's by themselves (nearest: `sweep` in params.yaml)"
        )
    if "output_dir" in raw or "dataset_name" in raw:
        return "", GENERATE
    raise ParamsError(
        f"{path}: neither settings of a training, which have `sae`, nor of a generation, which have `output_dir`; "
        f"got {', '.join(map(str, raw)) or 'no key'}"
    )


def _kind_of(path: str, sae: Any) -> str:
    stated = sae.get("sae_type") if isinstance(sae, Mapping) else None
    if stated is None:
        keys = sae if isinstance(sae, Mapping) else {}
        stated = next((kind for key, kind in TELLING.items() if key in keys), "sae")
    if stated == "molt":
        raise ParamsError(f"{path}: sae.sae_type: {NO_MOLT}")
    if not isinstance(stated, str):
        raise ParamsError(f"{path}: sae.sae_type: expected a string, got {describe(stated)}")
    if stated not in TRAIN:
        raise ParamsError(f"{path}: sae.sae_type: {unknown_name('sae_type', stated, (*TRAIN, 'molt'))}")
    return stated


def _read(settings: Settings, config: Config, raw: Any, where: str, faults: list[str]) -> None:
    """Read a mapping as settings of a class; None: they are not stated, and have their defaults."""
    if raw is not None and not isinstance(raw, Mapping):
        faults.append(f"{where}: expected a mapping of keys to values, got {describe(raw)}")
        return
    prefix = f"{where}." if where else ""
    if raw is not None:
        settings.sections.add(where)
        faults += [f"{prefix}{name}: {_unknown(str(name), config)}" for name in raw if name not in config.by_name]
    pretrained = raw is not None and raw.get("pretrained_name_or_path") is not None
    for key in config.keys:
        place = f"{prefix}{key.name}"
        settings.known[place] = key
        stated = None if raw is None else raw.get(key.name)
        if raw is not None and key.name not in raw and key.default is Required and not pretrained:
            faults.append(f"{place}: missing key; the reference has no default for it")
        elif key.nested is not None:
            _read_nested(settings, key, stated, place, faults, raw is not None and key.name in raw)
        elif raw is not None and key.name in raw:
            try:
                settings.stated[place] = convert(stated, key.annotation, key.limits)
            except Refused as refused:
                faults.append(f"{place}: {refused}")


def _read_nested(settings: Settings, key: Key, value: Any, place: str, faults: list[str], is_stated: bool) -> None:
    assert key.nested is not None
    if value is None and is_stated and key.default is Required:
        faults.append(f"{place}: expected a mapping of keys to values, got null")
    elif isinstance(key.annotation, Config):
        _read(settings, key.nested, value, place, faults)
    elif value is None:
        return
    elif isinstance(key.annotation, Several):
        if not isinstance(value, list) or not value:
            faults.append(f"{place}: expected a list of mappings, got {'an empty one' if value == [] else describe(value)}")
            return
        settings.items[place] = {str(number): f"{place}[{number}]" for number in range(len(value))}
        for number, item in enumerate(value):
            _read(settings, key.nested, {} if item is None else item, f"{place}[{number}]", faults)
    elif isinstance(key.annotation, Named):
        if not isinstance(value, Mapping) or not value:
            faults.append(f"{place}: expected a mapping of names, got {'an empty one' if value == {} else describe(value)}")
            return
        settings.items[place] = {str(name): f"{place}.{name}" for name in value}
        for name, item in value.items():
            if item is None:
                faults.append(f"{place}.{name}: is null, which stands for what a database has; state dataset_name_or_path")
            else:
                _read(settings, key.nested, item, f"{place}.{name}", faults)


def _unknown(name: str, config: Config) -> str:
    close = nearest(name, config.by_name)
    return f"unknown key of {config.name}" + (
        f"; did you mean '{close}'?" if close else f" (known: {', '.join(config.by_name)})"
    )
