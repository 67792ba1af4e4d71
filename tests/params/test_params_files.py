"""Reading parameter files: YAML 1.2 scalars, TOML, JSON, and what is wrong with a file as such."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.errors import ParamsError
from pipeline.params.loader import load_params, params_from_dict
from pipeline.params.reading import Yaml12Loader, read_mapping
from pipeline.params.schema import Params, TrainerParams
from tests.messages import faults, saying, says
from tests.params.changes import changed

ROOT = Path(__file__).resolve().parents[2]


def read(tmp_path: Path, text: str, suffix: str = ".yaml") -> object:
    path = tmp_path / f"p{suffix}"
    path.write_text(text)
    return read_mapping(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-05", 2e-05),
        ("1e-4", 1e-4),
        ("1e5", 1e5),
        ("1E+5", 1e5),
        ("-1.5e3", -1500.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("1.0", 1.0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("1", 1),
        ("-7", -7),
        ("+7", 7),
        ("012", 12),
        ("0o17", 15),
        ("0x1f", 31),
        ("1_000", "1_000"),
        ("1e", "1e"),
        ("e5", "e5"),
        (".", "."),
        ("-", ["-"]),
        ("1.2.3", "1.2.3"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("No", "No"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("Null", None),
        ("none", "none"),
        ("'1e-3'", "1e-3"),
        ("[0.9, 1e-1]", [0.9, 0.1]),
        ("inf", "inf"),
        ("nan", "nan"),
    ],
)
def test_yaml_1_2_scalars(tmp_path: Path, text: str, value: object) -> None:
    if value == ["-"]:
        value = [None]
        text = "\n  -"
    found = read(tmp_path, f"a: {text}\n")
    assert found == {"a": value}
    assert isinstance(found, dict)
    assert type(found["a"]) is type(value)


def test_nan_is_a_float() -> None:
    assert math.isnan(yaml.load("a: .nan", Loader=Yaml12Loader)["a"])


@pytest.mark.parametrize("value", [2e-05, 1e-4, 1e22, 5e-324, 123456789.125, 1.0, -0.0])
def test_what_dumpers_write_is_read_back(tmp_path: Path, value: float) -> None:
    assert read(tmp_path, f"a: {value!r}") == {"a": value}
    assert read(tmp_path, yaml.safe_dump({"a": value})) == {"a": value}
    assert read(tmp_path, json.dumps({"a": value}), ".json") == {"a": value}


def test_standard_loader_is_not_changed() -> None:
    assert yaml.safe_load("a: no") == {"a": False}


@pytest.mark.parametrize(
    ("text", "suffix", "parts"),
    [
        ("a: 1\na: 2\n", ".yaml", ("a:", "duplicate", "1", "2")),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", ".yaml", ("a.b:", "duplicate", "2", "4")),
        ("a: [1\nb: 2\n", ".yaml", ("line 2", "column 2", "YAML")),
        ("a:\n\t- 1\n", ".yaml", ("line 2", "column 1", "YAML")),
        ("a: !!python/object:os.system {}\n", ".yaml", ("line 1", "column 4", "YAML")),
        ("a: 1\nb: \x07\n", ".yaml", ("line 2", "YAML")),
        ("a: 1\n---\nb: 2\n", ".yaml", ("line 2", "column 1", "YAML")),
        ("? [a]\n: 1\n", ".yaml", ("line 1", "key")),
        ("- a\n", ".yaml", ("mapping", "list")),
        ("seed\n", ".yaml", ("mapping", "str")),
        ("", ".yaml", ("empty",)),
        ("# only a comment\n", ".yaml", ("empty",)),
        ("", ".json", ("empty",)),
        ('{"a": {"b": 1, "b": 2}}', ".json", ("b:", "duplicate")),
        ('{"a": 1,\n}', ".json", ("line 2", "column 1", "JSON")),
        ("[1]", ".json", ("mapping", "list")),
        ("a = 1\na = 2\n", ".toml", ("TOML", "Cannot overwrite", "line 2")),  # in tomllib's words, as the next
        ("a = \n", ".toml", ("TOML", "Invalid value", "line 1")),
        ("a = 1", ".ini", (".yaml", ".yml", ".toml", ".json")),
    ],
)
def test_a_faulty_file_is_named_with_the_line(tmp_path: Path, text: str, suffix: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ParamsError, match=saying(f"p{suffix}:", *parts)):
        read(tmp_path, text, suffix)


def test_missing_directory_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=saying("absent.yaml:", "missing")):
        load_params(tmp_path / "absent.yaml")
    (tmp_path / "d.yaml").mkdir()
    with pytest.raises(ParamsError, match=saying("d.yaml:", "file", "directory")):
        load_params(tmp_path / "d.yaml")
    (tmp_path / "b.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ParamsError, match=saying("b.yaml:", "UTF-8", "byte 3")):
        load_params(tmp_path / "b.yaml")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("seed: 0")

    def refuse(self: Path) -> bytes:
        # As the system refuses a user; root reads a file of mode 0 all the same.
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ParamsError, match=saying("p.yaml:", "read", "Permission denied")):
        load_params(path)


def toml_of(values: dict[str, object], prefix: str = "") -> str:
    """A TOML table of plain values, without the null ones."""
    plain = {k: v for k, v in values.items() if v is not None and not isinstance(v, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"[{prefix}{key}]", toml_of(value, f"{prefix}{key}.")]
    return "\n".join(lines)


def test_yaml_toml_and_json_give_the_same_params(tmp_path: Path) -> None:
    wanted = Params(trainer=TrainerParams(sparsity_loss_type="power"))
    for suffix, text in (
        (".yaml", yaml.safe_dump(wanted.to_dict())),
        (".yml", yaml.safe_dump(wanted.to_dict(), default_flow_style=True)),
        (".json", json.dumps(wanted.to_dict())),
        (".toml", toml_of(wanted.to_dict())),
    ):
        path = tmp_path / f"params{suffix}"
        path.write_text(text)
        assert load_params(path) == wanted


def test_a_toml_file_states_every_key_that_cannot_be_null(tmp_path: Path) -> None:
    path = tmp_path / "params.toml"
    path.write_text(toml_of(Params().to_dict()).replace("eval_fraction", "eval_frac"))
    with pytest.raises(ParamsError) as error:
        load_params(path)
    found = faults(error.value, path)
    assert list(found) == ["dataset.eval_frac", "dataset.eval_fraction"]
    says(found["dataset.eval_frac"], "unknown", "eval_fraction")
    says(found["dataset.eval_fraction"], "missing")


def test_params_yaml_loads_fast_and_without_torch() -> None:
    code = (
        "import sys; from pipeline.params.loader import load_params; load_params('params.yaml');"
        "print([m for m in ('torch', 'numpy', 'zarr', 'dvc', 'mlflow') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    text = (ROOT / "params.yaml").read_text()

    def least(work: Callable[[], object]) -> float:
        """Of five calls, the least processor seconds."""
        seconds = []
        for _ in range(5):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
        return min(seconds)

    # On a slow machine, not much longer than PyYAML takes for the text alone.
    assert least(lambda: load_params(ROOT / "params.yaml")) < max(0.05, 3 * least(lambda: yaml.safe_load(text)))


def test_every_line_of_params_yaml_has_a_comment() -> None:
    lines = (ROOT / "params.yaml").read_text().splitlines()
    # A list that DVC rewrote has its items on lines of their own.
    bare = [line for line in lines if line.strip() and "# " not in line and not line.lstrip().startswith("- ")]
    assert bare == []


def test_a_file_uses_its_models(tmp_path: Path) -> None:
    """In Python the dataclass defaults stand for themselves; in a file every key is meant."""
    path = tmp_path / "params.yaml"
    values = Params().to_dict() | {"models": {"other": {"model_name": "x", "revision": None}}}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    found = faults(caught.value, path)
    assert list(found) == ["models"]
    says(found["models"], "other:blocks.L.name", "dictionary.hook_points_in")


def test_keys_of_older_files_that_do_nothing_are_read_at_their_only_value() -> None:
    old = changed({})
    old["activations"]["buffer_shuffle"] = {"perm_seed": 42, "generator_device": None}
    assert params_from_dict(old) == params_from_dict(changed({}))
    old["activations"]["buffer_shuffle"]["generator_device"] = "cuda"
    with pytest.raises(ParamsError, match=saying("activations.buffer_shuffle.generator_device:", "cpu")):
        params_from_dict(old)


@pytest.mark.parametrize(
    ("text", "suffix", "part"),
    [
        ("seed: !!bool x", ".yaml", "not true or false"),
        ("seed: !!timestamp x", ".yaml", "timestamp"),
        ("seed: !!set {a}", ".yaml", "set"),
        ("seed: " + "[" * 5000, ".yaml", "nested too deep"),
        ("seed: " + "9" * 5000, ".yaml", "too many digits"),
        ('{"seed": ' + "9" * 5000 + "}", ".json", "too many digits"),
        ("seed = " + "9" * 5000, ".toml", "too many digits"),
        ("seed = " + "[" * 5000, ".toml", "nested too deep"),
        ("# more\n" * 200_000, ".yaml", "1,400,000 bytes"),
    ],
)
def test_what_libraries_cannot_read_is_one_line(text: str, suffix: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=saying(part)) as caught:
        read(tmp_path, text, suffix)
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("seed", 2**63, ("2^63", 2**63)),
        ("seed", int("f" * 5000, 16), ("2^63", "6,021 digits")),
        ("trainer.eps", 10**400, ("finite", "401 digits")),
        ("trainer.eps", 1e39, ("float32", "1e+39")),
        ("activations.ignore_token_ids", [1, 2**63], ("item 1", "2^63")),
        ("dataset.config_name", "a\0b", ("character", "at 1")),
        ("dataset.config_name", "a\udc80b", ("character", "at 1")),
        ("trainer.log_frequency", 1e308, ("an integer", "1e+308")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_tensor_and_no_name_can_be(key: str, value: object, parts: tuple[object, ...]) -> None:
    with pytest.raises(ParamsError) as caught:
        params_from_dict(changed({key: value}))
    found = faults(caught.value, "params")
    says(found[key], *parts)
    assert all(len(text) < 200 for text in found.values())
