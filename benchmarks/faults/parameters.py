"""Senseless and extreme parameters, damaged parameter files: is each refused before it costs anything?

On a tiny project that has run to its end, one or two keys get other values, or the file is written another way; the stages
are run from the first that reads the key until one of them does not succeed, in one process with little memory and time:
refused, accepted (every stage came to its end), SILENT (accepted, and the value has no meaning for any key), TRACEBACK, OUT OF
MEMORY or TOO LONG.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.faults.cases import ACCEPTED, KILLED, REFUSED, SILENT, SLOW, TRACEBACK, Case, is_refused, said
from benchmarks.faults.forked import run_forked
from pipeline.params.documents.declared import Form, sections
from pipeline.params.fields import Refused, convert, types_of
from pipeline.params.schema import SAEParams
from pipeline.progress import Progress
from tests.project import REPOSITORY, STAGES, Project, make_project, put

MEMORY, SECONDS = 4 * 10**9, 60.0  # what a case may have
TITLE = "Parameters"
ABOUT = f"""Each case gives one key or two a senseless or extreme value, or writes the parameter file in a damaged or odd way,
and runs the stages that read it, within {MEMORY / 1e9:g} GB and {SECONDS:g} s."""
VERDICTS = (REFUSED, ACCEPTED, SILENT, TRACEBACK, KILLED, SLOW)
PRETRAIN = "pretrain"
TINY_PRETRAINING = {
    "text_packages": ["click"], "pretrain_packages": [], "vocab_size": 300, "d_model": 8, "n_layers": 1, "n_heads": 2,
    "d_mlp": 16, "context_size": 16, "batch_size": 4, "total_tokens": 1024, "held_out_fraction": 0.2,
}  # fmt: skip

# No key takes any of these.
SENSELESS: dict[str, Any] = {
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "NUL in a name": "a\0b", "half a surrogate": "a\udc80b",
    "a map": {"a": 1}, "a list of lists": [[1]], "1e308": 1e308,
}  # fmt: skip
VALUES: dict[str, Any] = SENSELESS | {
    "0": 0, "-1": -1, "1": 1, "2^31": 2**31, "2^63": 2**63, "10^12": 10**12, "1e12": 1e12,
    "1e-308": 1e-308, "10^400": 10**400,
    "0.5": 0.5, "empty": "", "a word": "word", "300 characters": "a" * 300, "a list": [1, 2], "an empty list": [], "null": None,
    "true": True, "a number in quotes": "1", "two lines": "a\nb",
}  # fmt: skip
KILLS = ("out of memory", "MemoryError", "can't allocate memory", "bad_alloc", "Cannot allocate memory", "Unable to allocate")
# Keys that no result depends on, so that dvc.yaml names them with no stage: the first that reads them.
NO_RESULT = {"tracking": "train", "activations.device": "train", "model.device": "generate_activations"}
# How long a run is to take is for the user to say: more than this of it is not tried.
LENGTHS = {"trainer.total_training_tokens": 10**5, "demo.total_tokens": 10**4}


@dataclass(frozen=True)
class Fault:
    """What a case does.

    Attributes:
        area: the section, `pairs` or `file`.
        name: what is done, in words.
        stage: the first that reads it.
        values: {dotted key: value}.
        rename: a key, and the name that it gets.
        write: {file name: content} in place of params.yaml.
        senseless: nothing may accept it.
    """

    area: str
    name: str
    stage: str
    values: dict[str, Any] = field(default_factory=dict)
    rename: tuple[str, str] | None = None
    write: tuple[str, bytes] | None = None
    senseless: bool = False


def keys() -> dict[str, tuple[Form, ...]]:
    """{dotted key: how each choice of its section declares it}, of every key that a parameter file has."""
    return {
        f"{place}.{key.name}".lstrip("."): tuple(key.forms.values())
        for place, section in sections()
        for key in section.keys
        if "NAME" not in place
    }


def first_readers() -> Callable[[str], str]:
    """The first stage of the pipeline that reads a key, by dvc.yaml; the first of all where none is known."""
    declared = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    reads = {stage["cmd"].split()[2].removeprefix("stages."): stage.get("params", ()) for stage in declared.values()}

    def first(key: str) -> str:
        if key.startswith("demo.") and key != "demo.text_packages":
            return PRETRAIN
        for place, stage in NO_RESULT.items():
            if f"{key}.".startswith(f"{place}."):
                return stage
        found = (s for s in STAGES if any(key == read or key.startswith(f"{read}.") for read in reads[s]))
        return next(found, STAGES[0])

    return first


def single(keys: dict[str, tuple[Form, ...]], first: Callable[[str], str], draw: random.Random) -> list[Fault]:
    """Each key with each value, and misspelt; the first ones have every key once."""
    columns = []
    for key in keys:
        area = key.partition(".")[0] if "." in key else "top"
        stage = first(key)
        column = [
            Fault(area, f"{key}: {name}", stage, {key: value}, senseless=name in SENSELESS)
            for name, value in VALUES.items()
            if not too_long(key, value)
        ]
        column.append(Fault(area, f"{key} misspelt", stage, rename=(key, key[:-1] + key[-1] * 2), senseless=True))
        draw.shuffle(column)
        columns.append(column)
    return [fault for row in itertools.zip_longest(*columns) for fault in row if fault is not None]


def too_long(key: str, value: Any) -> bool:
    """Whether this is a run of hours, as asked for."""
    return key in LENGTHS and isinstance(value, int) and LENGTHS[key] < value < 2**63


def extremes(forms: tuple[Form, ...]) -> list[Any]:
    """Valid values of a key by itself that lie far out."""
    found: list[Any] = []
    for form in forms:
        members, nullable = types_of(form.annotation)
        tried: list[Any] = [*(form.limits.choices or ()), *form.limits.words]
        if int in members:
            tried += [0, 1, 2, 1000, 10**6, 2**31 - 1, 2**31, 2**40, 10**12]
        if float in members:
            tried += [0.0, 1e-308, 1e-30, 1e-3, 0.999999, 1.0, 2.0, 1e6, 1e30, 1e300]
        if bool in members:
            tried += [True, False]
        for value in tried + ([None] if nullable else []):
            try:
                convert(value, form.annotation, form.limits)
            except Refused:
                continue
            if not any(type(value) is type(other) and value == other for other in found):
                found.append(value)
    return found


def pairs(keys: dict[str, tuple[Form, ...]], first: Callable[[str], str], draw: random.Random) -> Iterator[Fault]:
    """Two keys at a time, each with a value that is valid by itself."""
    own = SAEParams.__dataclass_fields__
    far = {
        key: [value for value in extremes(forms) if not too_long(key, value)]
        for key, forms in keys.items()
        if not key.startswith("demo.") and (not key.startswith("dictionary.") or key.partition(".")[2] in own)
    }
    far = {key: values for key, values in far.items() if values}
    while True:
        chosen = {key: draw.choice(far[key]) for key in draw.sample(sorted(far), 2)}
        stage = min((first(key) for key in chosen), key=STAGES.index)
        yield Fault("pairs", ", ".join(f"{key} {value}" for key, value in chosen.items()), stage, chosen)


def files(text: str) -> list[Fault]:
    """Parameter files that are damaged, or written in ways that libraries trip over."""
    plain = yaml.safe_load(text)
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    as_json = json.dumps(plain)
    toml = "seed = 0\ndeterminism = true\n"
    written: dict[str, tuple[str, str | bytes]] = {
        "empty": ("params.yaml", ""),
        "a comment": ("params.yaml", "# nothing\n"),
        "a list": ("params.yaml", "- seed: 0\n"),
        "a word": ("params.yaml", "word"),
        "a number": ("params.yaml", "5"),
        "null": ("params.yaml", "null\n"),
        "binary": ("params.yaml", bytes(range(256))),
        "UTF-16": ("params.yaml", text.encode("utf-16")),
        "UTF-16 without BOM": ("params.yaml", text.encode("utf-16-le")),
        "Latin-1": ("params.yaml", (text + "# \xe9\n").encode("latin-1")),
        "NUL": ("params.yaml", text + "\0"),
        "a tab": ("params.yaml", text.replace("\n  ", "\n\t")),
        "a key twice": ("params.yaml", text + "seed: 1\n"),
        "a section twice": ("params.yaml", text + "fold: {}\n"),
        "a key that is a list": ("params.yaml", text + "[1, 2]: 3\n"),
        "a key that is a map": ("params.yaml", text + "{a: 1}: 3\n"),
        "a key that is a number": ("params.yaml", text + "1: 3\n"),
        "a key that is null": ("params.yaml", text + "null: 3\n"),
        "an unknown section": ("params.yaml", text + "extra: {a: 1}\n"),
        "two documents": ("params.yaml", text + "---\nseed: 1\n"),
        "an undefined anchor": ("params.yaml", text.replace("seed: 0", "seed: *x", 1)),
        "an anchor in itself": ("params.yaml", text + "extra: &x [*x]\n"),
        "a section in itself": ("params.yaml", text.replace("norm:", "norm: &n\n  x: *n", 1)),
        "a merge key": ("params.yaml", text + "extra: &x {a: 1}\nmore:\n  <<: *x\n"),
        "billion laughs": ("params.yaml", text + bomb),
        "billion laughs as a value": ("params.yaml", bomb + text.replace("seed: 0", "seed: *a11", 1)),
        "billion laughs as a list key": ("params.yaml", bomb + text.replace("hook_points:", "hook_points: *a11", 1)),
        "10,000 deep, lists": ("params.yaml", text.replace("seed: 0", "seed: " + "[" * 10000 + "]" * 10000, 1)),
        "10,000 deep, open": ("params.yaml", "a: " + "[" * 10000),
        "10,000 deep, maps": ("params.yaml", text + "extra: " + "{a: " * 10000 + "}" * 10000),
        "200 deep": ("params.yaml", text.replace("seed: 0", "seed: " + "[" * 200 + "]" * 200, 1)),
        "400 deep": ("params.yaml", text.replace("seed: 0", "seed: " + "[" * 400 + "]" * 400, 1)),
        "an integer of 5,000 digits": ("params.yaml", text.replace("seed: 0", "seed: " + "9" * 5000, 1)),
        "a hexadecimal integer of 5,000 digits": ("params.yaml", text.replace("seed: 0", "seed: 0x" + "f" * 5000, 1)),
        "a float of 5,000 digits": ("params.yaml", text.replace("lr: auto", "lr: " + "9" * 5000 + ".0", 1)),
        "a date": ("params.yaml", text.replace("seed: 0", "seed: 2024-01-01", 1)),
        "a BOM within": ("params.yaml", "\ufeff\ufeff" + text),
        "carriage returns": ("params.yaml", text.replace("\n", "\r")),
        "no file": ("other.yaml", text),
        "an unknown form": ("params.ini", text),
        "JSON, empty": ("params.json", ""),
        "JSON, cut": ("params.json", as_json[:200]),
        "JSON, a list": ("params.json", "[1]"),
        "JSON, a key twice": ("params.json", as_json[:-1] + ', "seed": 1}'),
        "JSON, NaN": ("params.json", as_json.replace('"eps": 1e-08', '"eps": NaN')),
        "JSON, 1e999": ("params.json", as_json.replace('"eps": 1e-08', '"eps": 1e999')),
        "JSON, 5,000 digits": ("params.json", as_json.replace('"seed": 0', '"seed": ' + "9" * 5000, 1)),
        "JSON, 10,000 deep": ("params.json", '{"seed": ' + "[" * 10000 + "]" * 10000 + "}"),
        "JSON, 100,000 deep": ("params.json", '{"seed": ' + "[" * 100000 + "]" * 100000 + "}"),
        "JSON, half a surrogate": ("params.json", as_json.replace('"model_name": "model"', '"model_name": "\\udc80"')),
        "JSON, half a surrogate in a key": ("params.json", as_json[:-1] + ', "\\udc80": 1}'),
        "JSON, UTF-16": ("params.json", as_json.encode("utf-16")),
        "JSON, text after it": ("params.json", as_json + "}"),
        "JSON, NUL": ("params.json", as_json + "\0"),
        "TOML, empty": ("params.toml", ""),
        "TOML, cut": ("params.toml", toml + "[model"),
        "TOML, a key twice": ("params.toml", toml + "seed = 1\n"),
        "TOML, a date": ("params.toml", "seed = 2024-01-01\n"),
        "TOML, nan": ("params.toml", "seed = nan\n"),
        "TOML, 5,000 digits": ("params.toml", "seed = " + "9" * 5000 + "\n"),
        "TOML, 10,000 deep": ("params.toml", "seed = " + "[" * 10000 + "]" * 10000 + "\n"),
        "TOML, 10,000 dots": ("params.toml", ".".join(["a"] * 10000) + " = 1\n"),
        "TOML, UTF-16": ("params.toml", toml.encode("utf-16")),
        "TOML, a BOM within": ("params.toml", "\ufeff\ufeff" + toml),
        "TOML, NUL": ("params.toml", toml + "\0"),
    }  # fmt: skip
    tags = (
        "python/object:os.system",
        "python/object/apply:os.system [ls]",
        "python/name:os.system",
        "python/tuple [1]",
        "int x",
    )
    tags = (*tags, "float x", "bool x", "binary x", "set {a}", "omap [a: 1]", "timestamp x", "null x", "str 5", "merge x")
    for tag in tags:
        written[f"tag !!{tag}"] = ("params.yaml", text.replace("seed: 0", f"seed: !!{tag}", 1))
    written["tag of one's own"] = ("params.yaml", text.replace("seed: 0", "seed: !mine 5", 1))
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        written[f"cut at {share}"] = ("params.yaml", text[: int(len(text) * share)])
    written["huge"] = ("params.yaml", text + "# more of it\n" * 3_000_000)
    written["huge list"] = ("params.yaml", text.replace("hook_points:", f"hook_points: [{'x, ' * 1_000_000}]", 1))
    return [
        Fault("file", name, STAGES[0], write=(file, content if isinstance(content, bytes) else content.encode()))
        for name, (file, content) in written.items()
    ]


def before_each_stage(project: Project, work: Path) -> dict[str, Path]:
    """Run the whole project; {stage: a copy of it as the stage finds it}."""
    found = {}
    for stage in STAGES:
        found[stage] = project.copy(work / stage).path
        code, stderr = run_forked(lambda: run_stages(project.path, "params.yaml", (stage,)), project.path)  # noqa: B023
        assert code == 0, stderr
    found[PRETRAIN] = found[STAGES[0]]
    return found


def run_stages(project: Path, params: str, stages: tuple[str, ...]) -> None:
    """Run stages one after the other; SystemExit at the first that does not succeed."""
    os.environ["DVC_ROOT"] = str(project)
    torch.set_num_threads(1)
    for stage in stages:
        try:
            importlib.import_module(f"stages.{stage}").main(["--params", params], prog_name=f"stages.{stage}")
        except SystemExit as end:
            if end.code:
                raise


def little_memory() -> None:
    """Let this process have MEMORY bytes more than it has."""
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def prepare(fault: Fault, project: Path) -> str:
    """Write the fault's parameter file; its name."""
    if fault.write is not None:
        name, content = fault.write
        (project / "params.yaml").unlink()
        (project / name).write_bytes(content)
        return "params.yaml" if name == "other.yaml" else name
    path = project / "params.yaml"
    values = yaml.safe_load(path.read_text())
    if fault.stage == PRETRAIN:
        values["demo"] |= TINY_PRETRAINING
    for key, value in fault.values.items():
        put(values, key, value)
    if fault.rename:
        *places, last = fault.rename[0].split(".")
        section = values
        for place in places:
            section = section[place]
        section[fault.rename[1].rpartition(".")[2]] = section.pop(last)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return "params.yaml"


def judge(fault: Fault, source: Path, work: Path) -> Case:
    """Run the stages on a copy of the project that the first of them finds."""
    copy = work / "copy"
    shutil.copytree(source, copy)
    stages = (PRETRAIN,) if fault.stage == PRETRAIN else STAGES[STAGES.index(fault.stage) :]
    try:
        params = prepare(fault, copy)

        def job() -> None:
            little_memory()
            run_stages(copy, params, stages)

        try:
            code, stderr = run_forked(job, copy, timeout=SECONDS)
        except TimeoutError:
            return Case(fault.area, fault.name, SLOW, "")
        return Case(fault.area, fault.name, verdict(fault, code, stderr), said(stderr, copy))
    finally:
        shutil.rmtree(copy)


def verdict(fault: Fault, code: int, stderr: str) -> str:
    """What became of it."""
    if code == 0:
        return SILENT if fault.senseless else ACCEPTED
    if code < 0 or any(kill in stderr for kill in KILLS):
        return KILLED
    return REFUSED if is_refused(code, stderr, of_params=True) else TRACEBACK


def campaign(count: int, seed: int, work: Path) -> list[Case]:
    """So many faults: a sixth in files, a quarter in pairs of keys, the rest in single keys, each key at least once."""
    work.mkdir()
    path = work / "project"
    code, stderr = run_forked(
        lambda: make_project(path).set(trainer__n_checkpoints=0, trainer__total_training_tokens=2048), work
    )
    assert code == 0, stderr
    project = Project(path, yaml.safe_load((path / "params.yaml").read_text()))
    sources = before_each_stage(project, work)
    draw, declared, first = random.Random(seed), keys(), first_readers()
    of_files = files((path / "params.yaml").read_text())
    draw.shuffle(of_files)
    of_files = of_files[: count // 6]
    of_pairs = list(itertools.islice(pairs(declared, first, draw), count // 4))
    of_keys = single(declared, first, draw)[: count - len(of_files) - len(of_pairs)]
    faults = [*of_keys, *of_pairs, *of_files]
    found = []
    progress = Progress("parameters", len(faults), unit="cases")
    for fault in faults:
        found.append(judge(fault, sources[fault.stage], work))
        progress.update(1)
    progress.close()
    return found
