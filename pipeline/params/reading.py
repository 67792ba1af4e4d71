"""A parameter file as a plain mapping: YAML (1.2 rules), TOML or JSON, with faults that name the line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ParamsError

SUFFIXES = (".yaml", ".yml", ".toml", ".json")
PARAMETER_FILE = "parameter file"
MOST_BYTES = 2**20  # of a parameter file, which has a few thousand


class Yaml12Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2.

    PyYAML follows YAML 1.1, in which 2e-05 is a string, 1_000 a number, `no` false, 012 ten, 1:30 ninety and
    2024-01-01 a date. Here a number with an exponent is a float and the others are strings (012 is 12), as DVC reads
    and writes them. Merge keys (<<) do not exist in YAML 1.2, nor do dates, sets and what else a tag of YAML 1.1 can make.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own attribute)


def _implicit(tag: str, pattern: str, first: str) -> None:
    Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_implicit("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_implicit("null", r"^(?:~|null|Null|NULL|)$", "~nN\0")
_implicit("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789")
_implicit(
    "float",
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
    "-+.0123456789",
)
Yaml12Loader.yaml_implicit_resolvers.setdefault("", []).extend(Yaml12Loader.yaml_implicit_resolvers.pop("\0"))


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _construct_bool(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node))
    if text.lower() not in ("true", "false"):
        raise ValueError(f"not true or false: {text!r}")
    return text.lower() == "true"


_CORE = (*(f"tag:yaml.org,2002:{name}" for name in ("null", "str", "seq", "map")), None)
Yaml12Loader.yaml_constructors = {tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in _CORE}
Yaml12Loader.add_constructor("tag:yaml.org,2002:bool", _construct_bool)
Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
Yaml12Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def read_mapping(path: str | Path, what: str = PARAMETER_FILE) -> dict[str, Any]:
    """The whole file as nested dicts, lists and scalars.

    Args:
        path: of the file.
        what: it is, for messages.

    Raises:
        ParamsError: the file is missing, unreadable, of an unknown form, not valid, has a key twice, or is no mapping.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ParamsError(f"{path}: unknown form of {what}; wanted one of {', '.join(SUFFIXES)}")
    text = _read_text(path, what)
    read = {".toml": _read_toml, ".json": _read_json}.get(path.suffix.lower(), _read_yaml)
    values = read(path, text)
    if values is None:
        raise ParamsError(f"{path}: the file is empty; wanted a mapping of sections")
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: wanted a mapping of sections, got a {type(values).__name__}")
    return values


def _read_text(path: Path, what: str) -> str:
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ParamsError(f"{path}: {size:,} bytes are no {what}, which has at most {MOST_BYTES:,}")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        advice = "; run from the project's root or give --params" if what == PARAMETER_FILE else ""
        raise ParamsError(f"{path}: {what} is missing{advice}") from None
    except IsADirectoryError:
        raise ParamsError(f"{path}: {what} should be a file, got a directory") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror})") from None


def _read_yaml(path: Path, text: str) -> Any:
    try:
        loader = Yaml12Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            faults = _duplicates(path, node)
            if faults:
                raise ParamsError(faults)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ParamsError(f"{path}: {line}not valid YAML ({error.problem or error.context})") from None
    except yaml.reader.ReaderError as error:
        row = text.count("\n", 0, error.position) + 1
        raise ParamsError(f"{path}: line {row}: not valid YAML ({error.reason})") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ParamsError(f"{path}: not valid YAML ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """Why a library could not read a file, of what is no fault of form to it."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    text = str(error)
    return "a number of too many digits" if "integer string conversion" in text else text


def _duplicates(path: Path, root: yaml.Node) -> list[str]:
    """A fault for each key that stands twice in one mapping, or is no plain scalar."""
    faults: list[str] = []
    seen: set[int] = set()

    def walk(node: yaml.Node, where: str) -> None:
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            return
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                walk(item, where)
            return
        lines: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                faults.append(f"{path}: line {line}: a key must be a plain word")
                continue
            dotted = f"{where}.{key_node.value}" if where else key_node.value
            if key_node.value in lines:
                faults.append(f"{path}: {dotted}: duplicate key on lines {lines[key_node.value]} and {line}")
            lines.setdefault(key_node.value, line)
            walk(value_node, dotted)

    walk(root, "")
    return faults


def _read_toml(path: Path, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # beside TOMLDecodeError, of a number too long or nested too deep
        raise ParamsError(f"{path}: not valid TOML ({_reason(error)})") from None


def _read_json(path: Path, text: str) -> Any:
    faults: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        faults.extend(f"{path}: {key}: duplicate key" for key in dict.fromkeys(keys) if keys.count(key) > 1)
        return dict(pairs)

    try:
        values = json.loads(text, object_pairs_hook=mapping) if text.strip() else None
    except json.JSONDecodeError as error:
        raise ParamsError(f"{path}: line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})") from None
    except (RecursionError, ValueError) as error:
        raise ParamsError(f"{path}: not valid JSON ({_reason(error)})") from None
    if faults:
        raise ParamsError(faults)
    return values
