"""Files of other tools, nearly right: every form of every format that is read, with another configuration, header, tensor or byte."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save

from pipeline.api import import_dictionary
from tests.fuzz.hunting import Target
from tests.fuzz.mutations import changed, corrupted
from tests.interop import cases

FOLDER = "layers.1"  # what sparsify takes the hook point from
# form: (its maker, what is named in its folder)
FORMS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "saelens": (cases.saelens, ""),
    "saelens, gated": (lambda folder: cases.saelens(folder, "gated"), ""),
    "saelens, skip": (lambda folder: cases.saelens(folder, "jumprelu_skip_transcoder"), ""),
    "saelens, before 6": (
        lambda folder: cases.saelens(
            folder,
            "topk",
            metadata={},
            activation_fn_str="topk",
            activation_fn_kwargs={"k": 4},
            hook_point="blocks.1.hook_resid_pre",
        ),
        "",
    ),
    "sparsify": (cases.sparsify, ""),
    "sparsify, skip": (lambda folder: cases.sparsify(folder / "mlp", transcode=True, skip=True), "mlp"),
    "dictionary_learning": (cases.dictionary_learning, ""),
    "dictionary_learning, batch": (lambda folder: cases.dictionary_learning(folder, "BatchTopKSAE"), ""),
    "dictionary_learning, gated": (lambda folder: cases.dictionary_learning(folder, "GatedAutoEncoder"), ""),
    "dictionary_learning, resumed": (lambda folder: cases.dictionary_learning(folder, "AutoEncoder", resume=2.0), ""),
    "gemma_scope": (cases.gemma_scope, ""),
    "gemma_scope, 2": (lambda folder: cases.gemma_scope_2(folder, affine=True), ""),
    "gemma_scope, clt": (cases.gemma_scope_2_clt, ""),
    "llama_scope": (cases.llama_scope, ""),
    "openmoss": (cases.openmoss, ""),
    "openmoss, glu": (lambda folder: cases.openmoss(folder, glu=True), ""),
    "openmoss, clt": (cases.openmoss_clt, ""),
    "circuit_tracer": (lambda folder: cases.circuit_tracer(folder, skip=True), "layer_0.safetensors"),
    "circuit_tracer, clt": (cases.circuit_tracer_clt, ""),
}
Files = tuple[tuple[str, bytes], ...]
Case = tuple[str, Files]  # a form, and the files of its folder by their paths in it


def whole(form: str, seeds: Path) -> Case:
    """A form as its tool writes it."""
    folder = seeds / form.replace(", ", "-") / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    FORMS[form][0](folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return form, tuple((str(path.relative_to(folder)), path.read_bytes()) for path in files)


def with_other_tensors(draw: Random, content: bytes, name: str) -> bytes:
    """A safetensors or torch file in which a tensor is lost, renamed, another one's, transposed, cut, of integers, or not finite."""
    pickled = name.endswith(".pt")
    found = torch.load(io.BytesIO(content), weights_only=True) if pickled else load(content)
    tensors = found["ae"] if pickled and "ae" in found else found
    key, other = (draw.choice(list(tensors)) for _ in range(2))
    tensor = tensors[key]
    changes: dict[str, Callable[[], Any]] = {
        "transpose": lambda: tensor.T if tensor.ndim == 2 else tensor[None],
        "cut": lambda: tensor[..., :-1] if tensor.ndim else tensor[None],
        "integers": lambda: tensor.int(),
        "booleans": lambda: tensor > 0,
        "nan": lambda: tensor * float("nan"),
        "infinite": lambda: tensor / 0,
        "huge": lambda: tensor.double() * 1e300,
        "zero": lambda: tensor * 0,
        "negative": lambda: -tensor,
        "empty": lambda: torch.zeros(0),
        "half": lambda: tensor.half(),
        "complex": lambda: tensor + 1j,
        "other": lambda: tensors[other],
    }
    what = draw.choice(("lose", "rename", *changes))
    if what in changes:
        tensors[key] = changes[what]()
    else:
        del tensors[key]
        if what == "rename":
            tensors[draw.choice(("", "scratch", "W_enc\n", f"{key}.weight"))] = tensor
    if not pickled:
        return save({name: value.contiguous().clone() for name, value in tensors.items()})
    sink = io.BytesIO()
    torch.save(found, sink)
    return sink.getvalue()


def with_other_header(draw: Random, weights: bytes) -> bytes:
    """A safetensors file with another header."""
    size = int.from_bytes(weights[:8], "little")
    text = json.dumps(changed(draw, json.loads(weights[8 : 8 + size]))).encode()
    return len(text).to_bytes(8, "little") + text + weights[8 + size :]


def changed_file(draw: Random, name: str, content: bytes) -> bytes:
    """Of one file, by what it is."""
    if name.endswith((".json", ".yaml")):
        if draw.random() < 0.2:
            return corrupted(draw, content)
        try:
            return json.dumps(changed(draw, json.loads(content), most=2)).encode()
        except (ValueError, TypeError):
            return b"{}"
    what = draw.random()
    if what < 0.6 and name.endswith((".pt", ".safetensors")):
        return with_other_tensors(draw, content, name)
    if what < 0.8 and name.endswith(".safetensors"):
        return with_other_header(draw, content)
    return corrupted(draw, content)


def changed_case(draw: Random, case: Case) -> Case:
    """One file of a form changed; in one of ten cases it is not there."""
    form, files = case
    name = draw.choice([name for name, _ in files])
    if draw.random() < 0.1:
        return form, tuple(each for each in files if each[0] != name)
    return form, tuple((each, changed_file(draw, each, content) if each == name else content) for each, content in files)


def write(folder: Path, case: Case) -> None:
    """The files of a case."""
    for name, content in case[1]:
        file = folder / FOLDER / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (folder / "form").write_text(case[0])


def read(folder: Path) -> object:
    """As the stages do."""
    form = (folder / "form").read_text()
    return import_dictionary(folder / FOLDER / FORMS[form][1], form.partition(",")[0])


def interchange(seeds: Path) -> Target:
    """Every form."""
    wholes = tuple(whole(form, seeds / "interchange") for form in FORMS)
    return Target("interchange", lambda draw: changed_case(draw, draw.choice(wholes)), write, read, wholes)
