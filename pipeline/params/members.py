"""The members of a sweep: several dictionaries from one pass, each a run of its own with some keys laid over the file's.

What the pass is made of is shared: text, models, activations, batches, tokens, and what is measured on them. A member is told
apart by its dictionary, its initializer, its trainer and its fold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import ParamsError, nearest, unknown_name
from pipeline.params.section import hints, section_from_dict

if TYPE_CHECKING:
    from pipeline.params.schema import Params

OWN = ("dictionary", "initializer", "trainer", "fold")  # sections of which members have keys of their own
SHARED = {
    "dictionary.name": "the members' directories have the names of the members, inside that of dictionary.name",
    "trainer.total_training_tokens": "members are trained on the same tokens",
    "fold.calibration_tokens": "members are trained on the same rows",
}
ONE_PASS = "one pass over the activations serves all members; write it outside sweep"


def members_of(params: Params) -> dict[str, Params]:
    """{name: the parameters of that member alone}; {"": params} of a run of one dictionary.

    A member's dictionary.name is that of the run and its own, joined by a hyphen.

    Raises:
        ParamsError: every fault of every member, each as `sweep.<member>: <dotted key>: <what is wrong>`.
    """
    if params.sweep is None:
        return {"": params}
    found: dict[str, Params] = {}
    faults = [f"sweep: {fault}" for fault in _of_names(params.sweep)]
    for name, stated in params.sweep.items():
        try:
            found[name] = _member(params, name, stated)
        except ParamsError as error:
            faults += [f"sweep.{name}: {fault}" for fault in error.faults]
    if faults:
        raise ParamsError(faults)
    return found


def own_keys(params: Params, name: str) -> dict[str, Any]:
    """{dotted key: value} that a member of the sweep states; nothing of a run without one."""
    return dict(_dotted(params.sweep[name])) if params.sweep else {}


def _of_names(names: Iterable[str]) -> Iterator[str]:
    """Names that are one directory where case does not count."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.lower(), name)) != name:
            yield f"members '{other}' and '{name}' differ in case alone, and are one directory on some systems; rename one"


def _member(params: Params, name: str, stated: Mapping[str, Any]) -> Params:
    faults: list[str] = []
    own: dict[str, dict[str, Any]] = {section: {} for section in OWN}
    for key, value in _dotted(stated):
        section, _, field = key.partition(".")
        fault = _not_own(params, key)
        if fault is None and field in own[section]:
            fault = "stated twice; take one of them out"
        if fault is not None:
            faults.append(f"{key}: {fault}")
        else:
            own[section][field] = value
    sections: dict[str, Any] = {}
    own["dictionary"]["name"] = f"{params.dictionary.name}-{name}"
    for section, values in own.items():
        try:
            sections[section] = section_from_dict(
                hints(type(params))[section], {**getattr(params, section).to_dict(), **values}
            )
        except ParamsError as error:
            faults += error.faults
    if not faults and (loss := sections["trainer"].model_loss) is not None:
        faults.append(
            f"trainer.model_loss: {loss}, but the members of a sweep share batches of shuffled rows; write null, and train the "
            "chosen member with it by itself"
        )
    if faults:
        raise ParamsError(faults)
    return dataclasses.replace(params, sweep=None, **sections)


def _dotted(stated: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of dotted keys, of nested ones, and of both."""
    for key, value in stated.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _not_own(params: Params, key: str) -> str | None:
    """Why a member cannot have this key of its own; None: it can, or the section says what is wrong with it."""
    section, _, field = key.partition(".")
    if key in SHARED:
        return f"{SHARED[key]}; write it outside sweep"
    if key == "seed":
        return f"{ONE_PASS}, and initializer.seed here for another draw of the weights"
    if not field:
        places = [name for name in OWN if section in {each.name for each in dataclasses.fields(getattr(params, name))}]
        if places:
            return f"unknown key; did you mean '{places[0]}.{key}'?"
    if section in OWN:
        return None if field else "a section, of which members state keys; write " + f"{section}.KEY"
    if section in {each.name for each in dataclasses.fields(params)}:
        return ONE_PASS
    close = nearest(section, OWN)
    if close and field:
        return f"unknown key; did you mean '{close}.{field}'?"
    return unknown_name("section", section, OWN)
