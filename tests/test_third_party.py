"""A package outside this repository brings what is found by name: an activation function, a sparsity loss with a key of its own, a
kind, a language-model family, a storage codec, a file format of dictionaries, a format of another tool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.closure import ROOT

DECLARED = """
from dataclasses import dataclass

from pipeline.params.dictionary_kinds import KindDeclaration
from pipeline.params.fields import param
from pipeline.params.gates import GateDeclaration
from pipeline.params.kinds.per_layer import PerLayerFields
from pipeline.params.losses import SparsityLossDeclaration

HALF = GateDeclaration("half-topk", "toolkit.code:HalfTopK", budgeted=True)
HOYER = SparsityLossDeclaration("hoyer", "toolkit.code:hoyer", fields={"hoyer_scale": (float, param(1.0, more_than=0))})
KIND = KindDeclaration("louder", "toolkit.declared:LouderFields", "toolkit.code:Louder")


@dataclass(frozen=True)
class LouderFields(PerLayerFields):
    loudness: float = param(2.0, more_than=0)
"""
CODE = """
from pipeline.activation_functions.interface import BudgetedActivation
from pipeline.activation_functions.topk import TopK
from pipeline.dictionaries.sae import SparseAutoencoder


class HalfTopK(BudgetedActivation):
    def selection(self, z, settings):
        return TopK().selection(z, settings._replace(k=max(1, settings.k // 2)))


def hoyer(inputs, *, hoyer_scale=1.0):
    f = inputs.f.float() * inputs.norms
    return hoyer_scale * (f.abs().sum(-1).square() / f.square().sum(-1).clamp_min(1e-6)).mean()


class Louder(SparseAutoencoder):
    def linear_branches(self, x):
        return super().linear_branches(x * self.config.loudness)
"""
FAMILY = """
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pipeline.lm.architectures import Architecture


class AlpacaConfig(LlamaConfig):
    model_type = "alpaca"


class AlpacaForCausalLM(LlamaForCausalLM):
    config_class = AlpacaConfig


AutoConfig.register("alpaca", AlpacaConfig)
AutoModelForCausalLM.register(AlpacaConfig, AlpacaForCausalLM)
NORMS = ("input_layernorm", "post_attention_layernorm")
ALPACA = Architecture("alpaca", "model.layers", "model.norm", "self_attn", "mlp", *NORMS)
"""
CODEC = """
import torch

from pipeline.activations.codecs.interface import ROWS, ElementType, Part, StorageCodec
from pipeline.params.codecs import StorageCodecDeclaration

BYTES = StorageCodecDeclaration("bytes", "toolkit.codec:Bytes")


class _Bytes(StorageCodec):
    dtype = torch.float32
    parts = {
        ROWS: Part(ElementType(torch.int8, "int8", "|i1", 0)),
        "scale": Part(ElementType(torch.float32, "float32", "<f4", float("nan")), width=1),
    }

    def encode(self, rows, shared):
        scale = rows.float().abs().amax(-1, keepdim=True) / 127
        return {ROWS: (rows / scale).round().to(torch.int8), "scale": scale}

    def decode(self, parts, dtype, out=None):
        rows = parts[ROWS].to(dtype) * parts["scale"].to(dtype)
        return rows if out is None else out.copy_(rows)


Bytes = _Bytes()
"""
FORMAT = """
import dataclasses, json

import numpy as np
import torch

from pipeline.dictionaries.formats.interface import DictionaryFormat, configuration
from pipeline.errors import ParamsError
from pipeline.params.dictionary_formats import FormatDeclaration

ARCHIVE = FormatDeclaration("archive", "toolkit.format:Archive")


class _Archive(DictionaryFormat):
    def recognises(self, path):
        return path.suffix == ".npz"

    def read(self, path):
        with np.load(path, allow_pickle=False) as arrays:
            found = dict(arrays)
        config = configuration(json.loads(str(found.pop("about"))), path)
        return config, {name: torch.from_numpy(array) for name, array in found.items()}

    def write(self, dictionary, path, config):
        if not config.folded:
            raise ParamsError("an archive holds folded dictionaries only")
        about = np.array(json.dumps(dataclasses.asdict(config)))
        np.savez(path, about=about, **{name: weights.numpy() for name, weights in dictionary.state_dict().items()})


Archive = _Archive()
"""
TOOL = """
import json

import torch

from pipeline.errors import DataError
from pipeline.interop.interface import InterchangeFormat
from pipeline.interop.plain import PlainDictionary
from pipeline.interop.tensors import checked, read_safetensors, write_safetensors
from pipeline.params.interchange import InterchangeDeclaration

BENCH = InterchangeDeclaration("bench", "toolkit.tool:Bench")


class _Bench(InterchangeFormat):
    name = "bench"

    def recognises(self, path):
        return (path / "bench.json").is_file()

    def read(self, path):
        about = json.loads((path / "bench.json").read_text())
        d, f = ("width", about["width"]), ("features", about["features"])
        shapes = {"enc": (f, d), "enc_bias": (f,), "dec": (f, d), "dec_bias": (d,)}
        found = checked(read_safetensors(path / "bench.safetensors"), shapes, path / "bench.safetensors")
        tensors = {"W_enc": found["enc"].T, "b_enc": found["enc_bias"], "W_dec": found["dec"], "b_dec": found["dec_bias"]}
        return PlainDictionary("sae", "relu", tensors, (about["hook"],), (about["hook"],))

    def prepared(self, plain):
        if (plain.kind, plain.gate) != ("sae", "relu"):
            raise self.refuse(plain, "anything but a ReLU autoencoder")
        return plain

    def write(self, dictionaries, path):
        plain = self.only(dictionaries)
        names = {"enc_bias": "b_enc", "dec": "W_dec", "dec_bias": "b_dec"}
        tensors = {"enc": plain.tensors["W_enc"].T} | {theirs: plain.tensors[ours] for theirs, ours in names.items()}
        write_safetensors(tensors, path / "bench.safetensors")
        about = {"width": plain.d_in, "features": plain.d_sae, "hook": plain.hooks_in[0]}
        (path / "bench.json").write_text(json.dumps(about))
        return [path]

    def forward(self, path):
        w = {name: tensor.double() for name, tensor in read_safetensors(path / "bench.safetensors").items()}

        def run(x):
            f = torch.nn.functional.linear(x, w["enc"], w["enc_bias"]).relu()
            return f, f @ w["dec"] + w["dec_bias"]

        return run


Bench = _Bench()
"""
POINTS = """
[scopeline.activation_functions]
half-topk = toolkit.declared:HALF

[scopeline.sparsity_losses]
hoyer = toolkit.declared:HOYER

[scopeline.dictionary_kinds]
louder = toolkit.declared:KIND

[scopeline.model_families]
alpaca = toolkit.family:ALPACA

[scopeline.storage_codecs]
bytes = toolkit.codec:BYTES

[scopeline.dictionary_formats]
archive = toolkit.format:ARCHIVE

[scopeline.interchange_formats]
bench = toolkit.tool:BENCH
"""
DICTIONARIES = """
import json, sys
from pathlib import Path
import torch
import pipeline.api as api
from pipeline.errors import ParamsError
from pipeline.params.loader import load_params, params_from_dict
from tests.project import make_project
from tests.params.changes import changed

assert "toolkit.code" not in sys.modules
made = api.build_dictionary({"kind": "louder", "d_in": 8, "d_sae": 32, "act_fn": "half-topk", "top_k": 6, "loudness": 3.0})
assert int((made.encode(torch.randn(50, 8)) > 0).sum(-1).max()) <= 3

def faults(**changes):
    try:
        params_from_dict(changed({key.replace("__", "."): value for key, value in changes.items()}))
    except ParamsError as error:
        return "\\n".join(error.faults)
    return ""

base = {"dictionary__act_fn": "relu", "trainer__sparsity_loss_type": "hoyer", "trainer__hoyer_scale": 0.5}
assert faults(**base) == "", faults(**base)
for changes, words in (
    ({"trainer__hoyer_scale": -1.0}, "trainer.hoyer_scale: must be greater than 0"),
    ({"trainer__hoyer_scal": 1.0}, "trainer.hoyer_scal: unknown key; did you mean 'hoyer_scale'"),
    ({"trainer__sparsity_loss_type": "power"}, "trainer.hoyer_scale: unknown key"),
    ({"trainer__sparsity_loss_type": "hoyr"}, "did you mean 'hoyer'"),
    ({"dictionary__act_fn": "half-topc"}, "did you mean 'half-topk'"),
    ({"dictionary__kind": "loud"}, "did you mean 'louder'"),
    ({"dictionary__kind": "louder", "dictionary__loudness": 0.0}, "dictionary.loudness: must be greater than 0"),
    ({"dictionary__loudness": 3.0}, "dictionary.loudness: is a field of kind louder, not of sae"),
    ({"dictionary__act_fn": "half-topk", "trainer__target_l0": 3.0}, "trainer.target_l0: the L0 of half-topk is"),
):
    assert words in faults(**{**base, **changes}), (words, faults(**{**base, **changes}))

rows = torch.randn(2000, 8)
trainer = {"total_training_tokens": 8000, "sparsity_loss_type": "hoyer", "l1_coefficient": 1e-3, "hoyer_scale": 0.5}
for fields in ({"kind": "louder", "act_fn": "half-topk", "top_k": 6, "loudness": 3.0}, {"act_fn": "relu"}):
    found = api.fit(rows, dictionary={"d_sae": 32, **fields}, trainer=trainer, batch_size=200)
    assert found.inference.config.folded

project = make_project(Path(sys.argv[1]))
project.params["dictionary"] |= {"kind": "louder", "loudness": 1.5, "act_fn": "half-topk", "top_k": 8}
project.params["trainer"] |= {"sparsity_loss_type": "hoyer", "hoyer_scale": 0.5, "l1_coefficient": 1e-3}
project.set().run_all()
assert load_params(project.path / "params.yaml").trainer.hoyer_scale == 0.5
metrics = json.loads((project.path / "metrics" / "evaluation.json").read_text())
assert metrics["l0_mean"] <= 4 and metrics["fvu"] < 1
history = (project.path / "metrics" / "train_history.jsonl").read_text()
assert '"hoyer"' in history
loaded = api.load_dictionary(project.path / "data/inference/main")
assert (type(loaded).__name__, loaded.config.loudness, loaded.config.act_fn) == ("Louder", 1.5, "half-topk")
"""


FAMILIES = """
import sys
from pathlib import Path
import pytest
import torch
import pipeline.api as api
from pipeline.corpus.tokens import open_tokens
from pipeline.errors import DataError
from pipeline.lm.families import architecture_of
from tests.project import CONTEXT, D_MODEL, VOCABULARY, make_project

project = make_project(Path(sys.argv[1]))
assert "toolkit.family" not in sys.modules
with pytest.raises(DataError, match=r"unknown model_type 'alpacca'; did you mean 'alpaca'\\? \\(known: gpt_neox, .*, alpaca\\)"):
    architecture_of("alpacca", "somewhere")
architecture_of("alpaca", "somewhere")
from toolkit.family import AlpacaConfig, AlpacaForCausalLM

heads = {"num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT}
model = AlpacaForCausalLM(AlpacaConfig(vocab_size=VOCABULARY, hidden_size=D_MODEL, bos_token_id=0, eos_token_id=0, **heads))
model.save_pretrained(project.path / "model")
project.set(activations__storage_dtype="float32").run_all(until="generate_activations")
monkeypatch = pytest.MonkeyPatch()
monkeypatch.chdir(project.path)
store = api.open_activations("data/activations.json")
meta, rows = store.read_rows_meta(0, store.n_rows), store.read("blocks.0.hook_resid_post", 0, store.n_rows)
ids = torch.from_numpy(open_tokens("data/tokens.zarr").train.read()).long()
with torch.no_grad():
    wanted = model(input_ids=ids, output_hidden_states=True).hidden_states[1]
torch.testing.assert_close(rows, wanted[meta.context_ids, meta.positions])
"""


CODECS = """
import json, sys
from pathlib import Path
import pytest
import torch
import pipeline.api as api
from pipeline.errors import DataError, ParamsError
from pipeline.params.loader import params_from_dict
from tests.params.changes import changed
from tests.project import make_project

with pytest.raises(ParamsError, match="'byts' is none of the choices; did you mean 'bytes'"):
    params_from_dict(changed({"activations.storage_dtype": "byts"}))
monkeypatch = pytest.MonkeyPatch()
whole = make_project(Path(sys.argv[1]) / "whole").set(activations__storage_dtype="float32").run_all(until="generate_activations")
for target in ("activations-1d", "activations-2d"):
    project = make_project(Path(sys.argv[1]) / target)
    project.set(activations__storage_dtype="bytes", activations__target=target)
    if target == "activations-2d":
        project.set(activations__batch_size=8)
    project.run_all(until="fold_norm" if target == "activations-1d" else "generate_activations")
    hook = "blocks.0.hook_resid_post"
    rows = project.store / f"{hook}@scale"
    chunk = next(rows.glob("c.0*"))
    content = chunk.read_bytes()
    chunk.write_bytes(bytes(len(content)))
    monkeypatch.chdir(project.path)
    store = api.open_activations("data/activations.json")
    with pytest.raises(DataError, match="scale': chunk 0 is altered"):
        store.read(hook, 0, 10)
    assert project.run("generate_activations").exit_code == 0
    assert chunk.read_bytes() == content
    store = api.open_activations("data/activations.json")
    assert store.hook_points == [hook] and store.width(hook) == 16
    assert sorted(store.digests) == sorted([hook, f"{hook}@scale", "tokens", "positions", "context_ids", "mask"])
    read = store.read(hook, 0, store.n_rows)
    for dtype in (None, torch.float64):
        for batch in store.batches(32, epochs=1, dtype=dtype):
            torch.testing.assert_close(batch.activations[hook], read[batch.rows].to(dtype or torch.float32))
monkeypatch.chdir(whole.path)
store = api.open_activations("data/activations.json")
monkeypatch.chdir(project.path.parent / "activations-1d")
read = api.open_activations("data/activations.json").read(hook, 0, store.n_rows)
wanted = store.read(hook, 0, store.n_rows)
assert ((read - wanted).abs() <= wanted.abs().amax(-1, keepdim=True) / 250).all()
assert not torch.equal(read, wanted)
assert api.load_dictionary("data/inference/main").config.folded
"""


FORMATS = """
import sys
from pathlib import Path
import pytest
import torch
import pipeline.api as api
from pipeline.dictionaries.saving import save_dictionary
from pipeline.dictionaries.store import read_config
from pipeline.errors import DataError, ParamsError

place = Path(sys.argv[1])
place.mkdir()
made = api.build_dictionary({"kind": "sae", "d_in": 8, "d_sae": 32, "act_fn": "topk", "top_k": 6})
folded = made.fold(2.0)
folded.save(place / "own")
assert api.load_dictionary(place / "own").config.folded
assert "toolkit.format" not in sys.modules
with pytest.raises(ParamsError, match=r"unknown dictionary format 'archiv'; did you mean 'archive'\\? \\(known: scopeline, archive"):
    save_dictionary(made, place / "made.npz", format="archiv")
with pytest.raises(ParamsError, match="folded dictionaries only"):
    save_dictionary(made, place / "made.npz", format="archive")
save_dictionary(folded, place / "folded.npz", {"model": {"name": "m"}}, format="archive")
assert read_config(place / "folded.npz").provenance == {"model": {"name": "m"}}
loaded, x = api.load_dictionary(place / "folded.npz", dtype="float64"), torch.randn(50, 8)
assert loaded.W_E.dtype == torch.float64
torch.testing.assert_close(loaded(x.double()).float(), folded(x))
(place / "other.txt").write_text("")
with pytest.raises(DataError, match=r"other.txt: no dictionary of a known format \\(known: scopeline, archive, saelens, .*\\)"):
    api.load_dictionary(place / "other.txt")
"""


TOOLS = """
import sys
from pathlib import Path
import pytest
import torch
import pipeline.api as api
from pipeline.errors import DataError, ParamsError
from pipeline.params.interchange import INTERCHANGE_FORMATS

place, x = Path(sys.argv[1]), torch.randn(500, 8)
made = {act_fn: api.build_dictionary({"kind": "sae", "d_in": 8, "d_sae": 32, "act_fn": act_fn, "hook_point_in": "blocks.1.hook_resid_post"},
                                     seed=3).fold(2.0) for act_fn in ("relu", "topk")}
assert "bench" in list(INTERCHANGE_FORMATS) and "toolkit.tool" not in sys.modules
with pytest.raises(ParamsError, match="did you mean 'bench'"):
    api.export_dictionary(made["relu"], place / "made", "bensch", activations=x)
with pytest.raises(ParamsError, match="--format bench: cannot hold anything but a ReLU autoencoder"):
    api.export_dictionary(made["topk"], place / "made", "bench", activations=x)
with pytest.raises(ParamsError, match="circuit_tracer.*bench|bench.*circuit_tracer"):
    api.export_dictionary(made["relu"], place / "made", "gemma_scope", activations=x)
assert not (place / "made").exists()
api.export_dictionary(made["relu"], place / "made", "bench", activations=x)
read = api.load_dictionary(place / "made")
torch.testing.assert_close(read(x), made["relu"](x))
assert (read.hooks_in, read.config.provenance["imported"]["format"]) == (("blocks.1.hook_resid_post",), "bench")
(place / "made" / "bench.safetensors").unlink()
with pytest.raises(DataError, match="bench.safetensors: the weights are missing"):
    api.load_dictionary(place / "made")
"""


USES = {"dictionaries": DICTIONARIES, "families": FAMILIES, "codecs": CODECS, "formats": FORMATS, "tools": TOOLS}
# Each in a fork of a process that has imported other libraries, which takes seconds, and nothing of the pipeline's.
EACH = """
import json, os, sys, traceback
import pytest, torch, transformers.models.gpt_neox.modeling_gpt_neox

assert not any(name.partition(".")[0] in ("pipeline", "toolkit") for name in sys.modules)
for name, use in json.load(sys.stdin).items():
    if (child := os.fork()) == 0:
        sys.argv[1] = os.path.join(sys.argv[1], name)
        try:
            exec(use, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(json.dumps([name, os.waitpid(child, 0)[1]]), flush=True)
"""


def install(site: Path) -> None:
    """Make a directory as an installer leaves it: the package, and its metadata with the entry points."""
    modules = {
        "__init__": "",
        "declared": DECLARED,
        "code": CODE,
        "family": FAMILY,
        "codec": CODEC,
        "format": FORMAT,
        "tool": TOOL,
    }
    for name, text in modules.items():
        (site / "toolkit").mkdir(parents=True, exist_ok=True)
        (site / "toolkit" / f"{name}.py").write_text(text)
    about = site / "toolkit-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toolkit\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINTS)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is wrong with each use of the package, empty for nothing."""
    place = tmp_path_factory.mktemp("third party")
    install(place / "site")
    environment = os.environ | {"PYTHONPATH": f"{place / 'site'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-W", "ignore", "-c", EACH, str(place)]
    done = subprocess.run(
        command, input=json.dumps(USES), cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=800
    )
    ended = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    return {name: "" if ended.get(name) == 0 else done.stderr[-8000:] or "it did not run" for name in USES}


@pytest.mark.parametrize("use", USES)
def test_what_another_package_declares_works_everywhere(faults: dict[str, str], use: str) -> None:
    assert faults[use] == ""
