"""Nothing that comes with a model, a data set, a store or a parameter file is ever run, whatever it says of itself.

Each file here would leave a mark if it were imported, unpickled or called.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.contracts.manifests import write_manifest
from pipeline.contracts.sealing import Origin
from pipeline.interpretation.chat import ChatError
from pipeline.interpretation.local import LocalModel
from tests.lm.conftest import CONFIGURATIONS
from tests.lm.families import write_model
from tests.lm.gguf_files import write_gguf
from tests.messages import saying, says
from tests.project import Outcome, Project
from tests.sealing import rewritten

SCRIPT = """
import pathlib
from datasets import GeneratorBasedBuilder
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
pathlib.Path({mark!r}).touch()
class Config(GPTNeoXConfig): pass
class Model(GPTNeoXForCausalLM): pass
class Tokenizer(PreTrainedTokenizerFast): pass
class Builder(GeneratorBasedBuilder): pass
"""


class Marking:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mark"
    yield path
    assert not path.exists(), "code was run"


def pickled(mark: Path) -> bytes:
    return pickle.dumps({"gpt_neox.embed_in.weight": Marking(mark)})


def script(mark: Path) -> str:
    return SCRIPT.format(mark=str(mark))


def refused(outcome: Outcome, *parts: object) -> None:
    """One error line with exit code 2."""
    if outcome.exception is not None:
        raise outcome.exception
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert (outcome.exit_code, len(errors)) == (2, 1), outcome.stderr
    says(errors[0], *parts)


def test_the_marks_work(tmp_path: Path) -> None:
    """Else no test here could fail."""
    pickle.loads(pickled(tmp_path / "a"))
    exec(script(tmp_path / "b"), {})
    assert (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()


@pytest.fixture
def with_code(project: Project, mark: Path) -> Project:
    """A model directory that names classes of a module beside it."""
    model = project.path / "model"
    (model / "evil.py").write_text(script(mark))
    for name, classes in (
        ("config.json", {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tokenizer"] * 2}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}),
    ):  # fmt: skip
        values = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**values, "auto_map": classes}))
    return project


def test_code_beside_a_model_of_a_known_kind_is_left_unread(with_code: Project, mark: Path) -> None:
    for stage in ("inputs", "tokenize_corpus", "generate_activations"):
        outcome = with_code.run(stage)
        assert outcome.exit_code == 0, outcome.stderr


@pytest.mark.parametrize("answers", [True, False])
def test_a_model_that_needs_its_code_is_refused_without_a_question(
    with_code: Project, mark: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """Also where somebody sits at a terminal, whom transformers would ask."""
    if answers:
        monkeypatch.setattr("builtins.input", lambda *_: "y")
    file = with_code.path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "odd"}))
    refused(with_code.run("generate_activations"), "model_type", "'odd'", "gpt_neox")
    with pytest.raises(ChatError, match=saying("--local")):
        LocalModel(str(file.parent)).complete([{"role": "user", "content": "hello"}])


def test_a_tokenizer_that_needs_its_code_is_refused(with_code: Project, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    model = with_code.path / "model"
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": "Tokenizer"}))
    (model / "tokenizer.json").rename(model / "tokenizer.model")
    refused(with_code.run("tokenize_corpus"), "model:", "tokenizer")


def test_there_is_no_key_that_lets_code_run(project: Project, mark: Path) -> None:
    project.params["model"]["trust_remote_code"] = True
    refused(project.set().run("inputs"), "model.trust_remote_code", "unknown key")


@pytest.fixture
def of_file(with_code: Project, tmp_path: Path) -> Project:
    """The project with a GGUF file as its model, beside the same code; the file itself names classes too."""
    directory = tmp_path / "llama"
    write_model(directory, *CONFIGURATIONS["llama"])
    metadata = {"auto_map": "evil.Model", "tokenizer.ggml.auto_map": "evil.Tokenizer", "llama.auto_map": "evil.Config"}
    write_gguf(directory, with_code.path / "model" / "own.gguf", metadata=metadata)
    return with_code.set(model__model_name="model/own.gguf")


def test_code_beside_a_gguf_file_is_left_unread(of_file: Project, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for stage in ("inputs", "tokenize_corpus", "generate_activations"):
        outcome = of_file.run(stage)
        assert outcome.exit_code == 0, outcome.stderr


@pytest.mark.parametrize("needs_code", [False, True])
def test_code_beside_a_tokenizer_of_another_place(
    with_code: Project, mark: Path, monkeypatch: pytest.MonkeyPatch, needs_code: bool
) -> None:
    """Left unread where the tokenizer is of a known kind, else the tokenizer is refused."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    model, words = with_code.path / "model", with_code.path / "words"
    words.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).rename(words / name)
    (words / "evil.py").write_text(script(mark))
    if needs_code:
        file = words / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": "Tokenizer"}))
        (words / "tokenizer.json").rename(words / "tokenizer.model")
    outcome = with_code.set(model__tokenizer_name="words").run("tokenize_corpus")
    if needs_code:
        refused(outcome, "words:", "tokenizer", "model.tokenizer_name")
    else:
        assert outcome.exit_code == 0, outcome.stderr


def test_pickled_weights_are_never_read(project: Project, mark: Path) -> None:
    model = project.path / "model"
    (model / "pytorch_model.bin").write_bytes(pickled(mark))
    assert project.run("generate_activations").exit_code == 0  # they lie beside those that are read
    whole = model / "model.safetensors"
    whole.write_bytes(pickled(mark))
    refused(project.run("generate_activations"), "model:", "weights", "SafetensorError")
    whole.unlink()
    refused(project.run("generate_activations"), "model.safetensors", "save_pretrained")
    index = {"metadata": {}, "weight_map": {"gpt_neox.embed_in.weight": "pytorch_model.bin"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(
        project.run("generate_activations"),
        "model.safetensors.index.json:",
        "pytorch_model.bin",
        "safetensors",
        "save_pretrained",
    )
    with pytest.raises(ChatError, match=saying("--local")):
        LocalModel(str(model)).complete([{"role": "user", "content": "hello"}])


def test_loading_scripts_of_data_sets(project: Project, mark: Path) -> None:
    folder = project.path / "texts"
    folder.mkdir()
    (folder / "texts.py").write_text(script(mark))
    (folder / "a.pkl").write_bytes(pickled(mark))
    project.set(dataset__dataset_name_or_path="texts")
    refused(project.run("tokenize_corpus"), "texts:", ".jsonl")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.pkl\n---\n")
    for stage in ("inputs", "tokenize_corpus"):
        refused(project.run(stage), "README.md:", "texts.py", "`configs`")
    (folder / "texts.py").unlink()
    refused(project.run("tokenize_corpus"), "README.md:")
    (folder / "README.md").unlink()
    shutil.copy(project.path / "text.jsonl", folder)
    (folder / "texts.py").write_text(script(mark))
    assert project.run("tokenize_corpus").exit_code == 0


@pytest.mark.filterwarnings("ignore:The Pandas builder")
def test_a_pickle_is_no_data_set(project: Project, mark: Path) -> None:
    """A local module may have the name of a data set, and the library has a reader of pickles."""
    (project.path / "odd.py").write_text(script(mark))
    (project.path / "text.pkl").write_bytes(pickled(mark))
    for name, part in (("odd.py", "unknown form"), ("text.pkl", "unknown form"), ("pandas", "'pandas'")):
        project.set(dataset__dataset_name_or_path=name)
        refused(project.run("tokenize_corpus"), part)


def test_a_column_type_of_arrow_that_unpickles(project: Project, mark: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    told = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled(mark)}
    texts = pa.array([f"the cat sat on mat {i} " * 40 for i in range(300)])
    table = pa.table([texts], schema=pa.schema([pa.field("text", pa.string(), metadata=told)]))
    pq.write_table(table, project.path / "text.parquet")
    saved = project.path / "saved"
    datasets.Dataset.from_dict({"text": texts.to_pylist()}).save_to_disk(str(saved))
    (arrow,) = saved.glob("*.arrow")
    with pa.ipc.new_stream(str(arrow), table.schema) as stream:
        stream.write_table(table)
    for name in ("text.parquet", "saved"):
        project.set(dataset__dataset_name_or_path=name)
        assert project.run("tokenize_corpus").exit_code == 0


@pytest.mark.parametrize(
    ("version", "codecs"),
    [
        (2, {"filters": [{"id": "pickle"}], "compressor": None}),
        (2, {"filters": None, "compressor": {"id": "pickle"}}),
        (3, {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]}),
        (3, {"codecs": [{"name": "pickle"}, {"name": "bytes", "configuration": {"endian": "little"}}]}),
    ],
)
@pytest.mark.parametrize("dtype", ["|O", "<i4"])
def test_codecs_of_zarr_that_unpickle(project: Project, mark: Path, version: int, codecs: dict[str, Any], dtype: str) -> None:
    """Digests do not help: whoever writes the arrays writes the manifest too."""
    store = project.path / "data" / "tokens.zarr"
    origin = Origin("tokenize", json.loads((store / "manifest.json").read_text())["made_from"])
    for node in sorted(store.rglob("zarr.json")):
        place, about = node.parent, json.loads(node.read_text())
        is_array = about["node_type"] == "array"
        if is_array:
            chunk = {"chunks": about["shape"]} if version == 2 else {}
            about |= {**codecs, **chunk, "fill_value": 0, "dtype": dtype, "order": "C"}
            for file in [*place.rglob("c/*")]:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            for name in ("0.0", "0", "c/0/0", "c/0"):
                if not (place / name).exists():
                    (place / name).parent.mkdir(exist_ok=True)
                    (place / name).write_bytes(pickled(mark))
        if version == 3:
            node.write_text(json.dumps(about))
            continue
        node.unlink()
        (place / (".zarray" if is_array else ".zgroup")).write_text(json.dumps({**about, "zarr_format": 2}))
        (place / ".zattrs").write_text(json.dumps(about["attributes"]))
    write_manifest(store, origin)
    for stage in ("generate_activations", "evaluate"):
        refused(project.run(stage), "tokens.zarr:", "`dvc repro tokenize`")


def test_codecs_of_the_activation_store_that_unpickle(project: Project, mark: Path) -> None:
    array = project.store / "blocks.0.hook_resid_post"
    for chunk in array.glob("c.*"):
        chunk.write_bytes(pickled(mark))
    about = json.loads((array / "zarr.json").read_text())
    (array / "zarr.json").write_text(json.dumps({**about, "codecs": [{"name": "numcodecs.pickle"}]}))
    refused(project.run("compute_norm"), "zarr.json", "codecs", "`dvc repro -s -f generate`")


@pytest.mark.parametrize("field", ["kind", "act_fn"])
@pytest.mark.parametrize("name", ["os:system", "evil.Model", "evil", "__builtins__", "../evil"])
def test_names_of_a_dictionary_are_looked_up_and_not_imported(project: Project, mark: Path, field: str, name: str) -> None:
    (project.path / "evil.py").write_text(script(mark))
    rewritten(project.path / "data" / "inference" / "main" / "config.json", lambda config: config.update({field: name}))
    refused(project.run("evaluate"), "config.json:", f"'{name}'")


def test_pickled_weights_of_a_dictionary(project: Project, mark: Path) -> None:
    file = project.path / "data" / "inference" / "main" / "weights.safetensors"
    file.write_bytes(content := pickled(mark) * 1000)
    import hashlib

    def record(config: dict[str, Any]) -> None:
        config["weights"] |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    rewritten(file.parent / "config.json", record)
    refused(project.run("evaluate"), "weights.safetensors:", "safetensors")


@pytest.mark.parametrize("tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/object/new:pathlib.PosixPath"])
def test_tags_of_yaml(project: Project, mark: Path, tag: str) -> None:
    file = project.path / "params.yaml"
    file.write_text(f"{file.read_text()}\nodd: {tag} [{mark}]\n")
    refused(project.run("train"), "params.yaml")


@pytest.mark.parametrize("place", ["model", "tokenizer_name", "file"])
@pytest.mark.parametrize(
    "template",
    [
        "{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}",
        "{{{{ messages.__class__.__mro__[1].__subclasses__() | map(attribute='__init__') | list }}}}",
        "{{% set x = messages.append(messages.__init__.__globals__) %}}{{{{ x.os.system('touch {mark}') }}}}",
    ],
)
def test_templates_of_tokenizers_are_confined(of_file: Project, mark: Path, place: str, template: str) -> None:
    """A chat data set is rendered by them."""
    own = template.format(mark=mark)
    model = of_file.path / "model"
    if place == "file":
        write_gguf(of_file.path.parent / "llama", model / "own.gguf", metadata={"tokenizer.chat_template": own})
    elif place == "tokenizer_name":
        (of_file.path / "words").mkdir()
        for file in (of_file.path.parent / "llama").glob("tokenizer*"):
            shutil.copy(file, of_file.path / "words")
        (of_file.path / "words" / "chat_template.jinja").write_text(own)
        of_file.set(model__tokenizer_name="words")
    else:
        (model / "chat_template.jinja").write_text(own)
        of_file.set(model__model_name="model")
    messages = [{"role": "user", "content": "the cat sat"}, {"role": "assistant", "content": "on the mat"}]
    (of_file.path / "chats.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 50)
    of_file.set(dataset__dataset_name_or_path="chats.jsonl", dataset__messages_field="messages")
    refused(of_file.run("tokenize_corpus"), "chats.jsonl", "chat template", "SecurityError")


def test_templates_of_chat_models_are_confined(project: Project, mark: Path) -> None:
    template = f"{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}"
    (project.path / "model" / "chat_template.jinja").write_text(template)
    with pytest.raises(ChatError, match=saying("--local")):
        LocalModel(str(project.path / "model"), max_tokens=2).complete([{"role": "user", "content": "cat"}])
