"""What the files of presets/ say over each other, against a naive merge of flat keys; what `extends` refuses."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ParamsError
from pipeline.params import loader, presets
from pipeline.params.dictionary_kinds import KINDS
from pipeline.params.loader import params_from_dict
from pipeline.params.presets import DIRECTORY, NAMED, apply_preset, is_left_alone, layers, overlay, preset_names, read_preset
from pipeline.params.reading import read_mapping
from pipeline.params.schema import Params, TrainerParams
from pipeline.params.sections.dictionary import params_class
from tests.messages import saying

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(DIRECTORY).with_suffix("").as_posix() for path in DIRECTORY.rglob("*.yaml"))


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys and values; names with sections of their own are one value."""
    found: dict[str, Any] = {}

    def walk(inner: dict[str, Any], where: str) -> None:
        for key, value in inner.items():
            if isinstance(value, dict) and where + key not in NAMED:
                walk(value, f"{where}{key}.")
            else:
                found[where + key] = value

    walk(values, "")
    return found


def order(name: str) -> list[str]:
    """The files that `name` extends, the deepest first, each once, and `name`."""
    found: list[str] = []
    for base in read_mapping(DIRECTORY / f"{name}.yaml").get("extends", []):
        found += [each for each in order(base) if each not in found]
    return [*found, name]


def own(name: str) -> dict[str, Any]:
    """What a file itself states."""
    return {key: value for key, value in flat(read_mapping(DIRECTORY / f"{name}.yaml")).items() if key != "extends"}


def merged(names: list[str], kind: str | None = None) -> dict[str, Any]:
    """The files over the declared defaults of the kind that they name, or of `kind`: later files win."""
    stated = {key: value for name in names for key, value in own(name).items()}
    values = {key: value for key, value in flat(Params().to_dict()).items() if not key.startswith("dictionary.")}
    of_kind = {field.name for field in dataclasses.fields(params_class(kind or stated.get("dictionary.kind", "sae")))}
    for each in (*KINDS, kind or stated.get("dictionary.kind", "sae")):
        for field in dataclasses.fields(params_class(each)):
            at_rest = field.name not in of_kind and field.name.startswith("hook_point")
            values[f"dictionary.{field.name}"] = None if at_rest else field.default
    return {key: value for key, value in values.items() if not is_left_alone(key)} | stated


def typed(values: dict[str, Any]) -> dict[str, tuple[type, str]]:
    return {key: (type(value), repr(value)) for key, value in values.items()}


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_what_its_files_say_over_the_declared_defaults(name: str) -> None:
    wanted = merged(order(name))
    assert typed(flat(read_preset(name))) == typed(wanted)
    assert list(layers(name)) == order(name)


@pytest.mark.parametrize("name", FILES)
def test_no_file_states_what_it_extends(name: str) -> None:
    """The type counts: a flag of 16 and one of 16.0 differ."""
    *extended, _ = order(name)
    kind = own(name).get("dictionary.kind")
    under = typed(merged(extended, kind)) | typed({"dictionary.kind": merged(extended)["dictionary.kind"]})
    idle = [key for key, value in typed(own(name)).items() if under.get(key) == value]
    assert not idle, f"{name} states what it extends: {', '.join(idle)}; take it out"


def test_each_file_is_part_of_a_preset() -> None:
    assert {file for name in preset_names() for file in order(name)} == set(FILES)
    assert set(preset_names()) == {file for file in FILES if "/" not in file}


def test_a_key_declared_tomorrow_has_a_value_in_every_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer = dataclasses.make_dataclass(
        "FreshTrainer", [("fresh", tuple[float, ...] | None, (0.5,))], bases=(TrainerParams,), frozen=True
    )
    field = ("trainer", trainer, dataclasses.field(default_factory=trainer))
    params = dataclasses.make_dataclass("FreshParams", [field], bases=(Params,), frozen=True)
    for module in (presets, loader):
        monkeypatch.setattr(module, "Params", params)
    other = tmp_path / "presets"
    shutil.copytree(DIRECTORY, other)
    text = (other / "shared" / "base.yaml").read_text()
    (other / "shared" / "base.yaml").write_text(text.replace("\ntrainer:\n", "\ntrainer:\n  fresh: [1, 2.0]\n"))
    for name in preset_names():
        assert params_from_dict(overlay(params().to_dict(), read_preset(name))).trainer.fresh == (0.5,)
        assert read_preset(name)["trainer"]["fresh"] == [0.5]  # whatever params.yaml says
        assert read_preset(name, other)["trainer"]["fresh"] == [1, 2.0]


def write(directory: Path, **files: str) -> None:
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)


def test_files_are_laid_over_each_other_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(
        tmp_path,
        base="trainer: {lr: 0.1, eps: 0.1, p: 1.5}\nmodels: {a: {model_name: x}}",
        left="extends: [base]\ntrainer: {lr: 0.2, eps: 0.2}\nactivations: {buffer_shuffle: {perm_seed: 1}}",
        right="extends: [base]\ntrainer: {lr: 0.3}\nmodels: {b: {model_name: y}}",
        both="extends: [left, right]\ntrainer: {k_aux: 7}",
    )
    preset = read_preset("both", tmp_path)
    assert list(layers("both", tmp_path)) == ["base", "left", "right", "both"]
    assert [preset["trainer"][key] for key in ("lr", "eps", "p", "k_aux")] == [0.3, 0.2, 1.5, 7]
    assert preset["activations"]["buffer_shuffle"] == {"perm_seed": 1}
    assert preset["models"] == {"b": {"model_name": "y"}}
    assert read_preset("base", tmp_path)["trainer"]["k_aux"] == TrainerParams().k_aux  # extends nothing


@pytest.mark.parametrize(
    ("extends", "parts"),
    [
        ("[a]", ("a.yaml: extends:", "a -> a")),
        ("[b]", ("b.yaml: extends:", "a -> b -> a")),
        ("[c, shared/bse]", ("a.yaml: extends:", "unknown", "'shared/bse'", "'shared/base'", "a, b, c")),
        ("[c, ../c, nothing.like.it]", ("a.yaml: extends:", "'../c'", "'nothing.like.it'")),
        ("c", ("a.yaml: extends:", "list", "'c'")),
        ("null", ("a.yaml: extends:", "list", "null")),
        ("[c, 3]", ("a.yaml: extends: item 1:", "string", "3")),
    ],
)
def test_what_extends_refuses(tmp_path: Path, extends: str, parts: tuple[str, ...]) -> None:
    (tmp_path / "shared").mkdir()
    write(tmp_path, a=f"extends: {extends}", b="extends: [a]", c="trainer: {lr: 0.1}", **{"shared/base": "seed: 0"})
    with pytest.raises(ParamsError, match=saying(*parts)):
        read_preset("a", tmp_path)


def test_a_shared_file_is_no_preset() -> None:
    with pytest.raises(ParamsError, match=saying("unknown", "shared/base", "attention-out")):
        read_preset("shared/base")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("dictionary: {kind: klt}", ("dictionary.kind:", "'klt'", "'clt'")),
        ("dictionary: 3", ("dictionary:", "mapping", "3")),
        ("trainer: {lrr: 1}", ("trainer.lrr:", "unknown", "lr")),
        ("extend: [b]", ("extend:", "unknown")),
    ],
)
def test_what_a_file_states_wrongly_is_refused_by_its_key(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    write(tmp_path, a=text)
    with pytest.raises(ParamsError, match=saying("preset a", f"{ROOT / 'params.yaml'}:", *parts)):
        apply_preset("a", ROOT / "params.yaml", tmp_path)
