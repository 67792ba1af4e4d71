"""Language models in GGUF files: the same model as the directory that the file was written from."""

from __future__ import annotations

import dataclasses
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import DataError
from pipeline.lm import weights
from pipeline.lm.gguf_file import read_header
from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_language_model, load_tokenizer, model_widths
from pipeline.lm.quiet import quiet
from pipeline.lm.source import resolve_model
from pipeline.lm.weights import loading_line
from pipeline.planning.weights import n_parameters
from tests.lm.families import CONTEXT, LAYERS, VOCAB, D
from tests.lm.gguf_files import gguf_name, put, stored, vocabulary, write_gguf
from tests.messages import saying, says

TEXT = "the cat sat on the log, caf\u00e9 12"
FAMILIES = ("llama", "mistral", "qwen2")
Directory = Callable[[str], Path]


@pytest.fixture(scope="session")
def files(model_directory: Directory, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str | None], Path]:
    """(family, how it is quantised) -> a file; shared, so not to be written to."""
    root, made = tmp_path_factory.mktemp("gguf"), {}

    def file(family: str, quantized: str | None = None) -> Path:
        if (family, quantized) not in made:
            metadata = {"general.name": "mistral"} if family == "mistral" else None
            path = root / f"{family}-{quantized}.gguf"
            made[family, quantized] = write_gguf(model_directory(family), path, quantized=quantized, metadata=metadata)
        return made[family, quantized]

    return file


Files = Callable[..., Path]


def every_value(model: LanguageModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    trace = model.trace(ids)
    return {**trace.activations, "logits": trace.logits}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_in_float32_is_the_directory(
    family: str, files: Files, language_model: Callable[..., LanguageModel], token_ids: torch.Tensor
) -> None:
    model = load_language_model(files(family), device="cpu")
    wanted = language_model(family, "huggingface")
    assert (model.d_model, model.n_layers, model.vocab_size, model.max_context) == (D, LAYERS, VOCAB, CONTEXT)
    found = every_value(model, token_ids)
    for name, value in every_value(wanted, token_ids).items():
        # A file holds rope_theta and eps in float32.
        torch.testing.assert_close(found[name], value, rtol=2e-6, atol=2e-6 * float(value.abs().max()), msg=name)


def test_what_is_loaded_is_said_once(files: Files, model_directory: Directory, capsys: pytest.CaptureFixture[str]) -> None:
    file = files("llama", "Q8_0")
    n_weights = sum(parameter.numel() for parameter in loaded_by_transformers(file).parameters())
    capsys.readouterr()
    load_language_model(file, device="cpu", dtype="bfloat16")
    (line,) = capsys.readouterr().err.splitlines()
    says(line, f"'{file}'", "GGUF", f"{file.stat().st_size / 1e6:,.0f} MB", f"{n_weights:,} weights", "unpacked to bfloat16")
    load_language_model(model_directory("llama"), device="cpu")
    assert capsys.readouterr().err == ""  # small, and read as it lies


def test_what_is_said_of_safetensors(model_directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve_model(model_directory("llama"))
    size = (model_directory("llama") / "model.safetensors").stat().st_size
    assert loading_line(source, torch.float32) == ""
    monkeypatch.setattr(weights, "_LARGE", size - 1)
    says(loading_line(source, torch.float32), f"'{source.name}'", f"{size / 1e6:,.0f} MB", "float32")
    monkeypatch.setattr(weights, "_LARGE", size)
    assert loading_line(source, torch.float32) == ""
    fetched = dataclasses.replace(source, name="someone/model", directory=tmp_path, revision="1234")
    says(loading_line(fetched, torch.float32), "'someone/model'", "not in the cache", "hub")


def loaded_by_transformers(file: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with quiet():
        return AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)


@pytest.mark.parametrize("quantized", ["Q8_0", "Q4_1", "F16"])
def test_weights_are_those_of_transformers_own_loader_and_of_the_blocks(
    quantized: str, files: Files, model_directory: Directory, token_ids: torch.Tensor
) -> None:
    import gguf

    file = files("llama", quantized)
    model = load_language_model(file, device="cpu")
    theirs = loaded_by_transformers(file)
    own = dict(model._model.named_parameters())  # type: ignore[attr-defined]
    assert set(own) == set(dict(theirs.named_parameters()))
    for name, parameter in theirs.named_parameters():
        assert own[name].dtype == torch.float32
        assert torch.equal(own[name], parameter), name
    kind = gguf.GGMLQuantizationType[quantized]
    changed = 0
    for name, parameter in own.items():
        if ".q_proj." in name or ".k_proj." in name:
            continue  # whose rows are in another order
        whole = stored(model_directory("llama"))[gguf_name(name)]
        if whole.ndim == 2 and whole.shape[1] % 32 == 0:
            whole = gguf.quants.dequantize(gguf.quants.quantize(whole, kind), kind)
            changed += 1
        np.testing.assert_array_equal(parameter.numpy(), whole)
    assert changed > LAYERS
    torch.testing.assert_close(model.logits(token_ids), theirs(input_ids=token_ids, use_cache=False).logits, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, files: Files) -> None:
    model = load_language_model(files("llama", "Q8_0"), dtype=dtype, device="cpu")
    whole = load_language_model(files("llama", "Q8_0"), device="cpu")
    assert model.dtype == getattr(torch, dtype)
    for own, parameter in zip(model._model.parameters(), whole._model.parameters(), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(own, parameter.to(model.dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_blocks_alone(family: str, files: Files, token_ids: torch.Tensor) -> None:
    names = ["blocks.1.hook_mlp_out", "blocks.0.hook_resid_post"]
    model = load_language_model(files(family, "Q8_0"), device="cpu", hook_points=names)
    assert (model.n_loaded, model.n_layers, model.whole) == (2, LAYERS, False)
    whole = load_language_model(files(family, "Q8_0"), device="cpu")
    for name, value in whole.activations(token_ids, names).items():
        assert torch.equal(model.activations(token_ids, names)[name], value)
    assert not any("lm_head" in name or ".2." in name for name, _ in model._model.named_parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_back_ends(family: str, files: Files, token_ids: torch.Tensor) -> None:
    bridge = load_language_model(files(family, "Q8_0"), backend="transformer_lens", device="cpu")
    plain = load_language_model(files(family, "Q8_0"), device="cpu")
    assert bridge.digest == plain.digest
    for name, value in every_value(plain, token_ids).items():
        torch.testing.assert_close(every_value(bridge, token_ids)[name], value, rtol=2e-6, atol=2e-6 * float(value.abs().max()))


def test_the_digest_is_of_the_content(files: Files, tmp_path: Path) -> None:
    import hashlib

    file = files("llama")
    copied = Path(shutil.copy(file, tmp_path / "other.gguf"))
    assert resolve_model(copied).digest() == resolve_model(file).digest() == hashlib.sha256(file.read_bytes()).hexdigest()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    copied.write_bytes(content)
    assert resolve_model(copied).digest() != resolve_model(file).digest()


def test_its_parameters_are_counted_as_they_are_loaded(files: Files) -> None:
    """Not estimated from its configuration, as those of a model whose files are not here."""
    file = files("llama", "Q8_0")
    assert n_parameters(model_widths(file)) == sum(parameter.numel() for parameter in loaded_by_transformers(file).parameters())


def test_widths_need_no_torch(files: Files) -> None:
    code = (
        "import sys; from pipeline.lm.loading import model_widths; "
        f"widths = model_widths({str(files('llama'))!r}); assert widths.d_model == {D} and widths.max_context == {CONTEXT}; "
        "widths.digest(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "False"


# The keys of an architecture that differ from a Llama's.
_MOE = {"expert_count": 4, "expert_used_count": 2}
_WINDOWED = {"attention.key_length": 8, "attention.sliding_window": 8}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "phi3": {}, "falcon": {}, "gpt2": {"attention.layer_norm_epsilon": 1e-3},
    "bloom": {"attention.layer_norm_epsilon": 1e-3}, "stablelm": {"attention.layer_norm_epsilon": 1e-3},
    "qwen2moe": _MOE, "qwen3moe": {**_MOE, "attention.key_length": 8}, "gpt-oss": _MOE, "gemma2": _WINDOWED,
    "gemma3": _WINDOWED,
}  # fmt: skip


@pytest.mark.parametrize("named", ["a name", None])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_configuration_is_the_one_that_transformers_makes(
    architecture: str, named: str | None, model_directory: Directory, tmp_path: Path
) -> None:
    """Of every architecture: ours is read without torch, theirs is not."""
    import gguf
    from transformers import PretrainedConfig

    writer = gguf.GGUFWriter(str(tmp_path / "a.gguf"), architecture)
    like_llama = {
        "context_length": CONTEXT, "block_count": LAYERS, "embedding_length": D, "feed_forward_length": 48,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-3,
        "rope.freq_base": 5e5, "rope.dimension_count": 8, **ARCHITECTURES[architecture],
    }  # fmt: skip
    for key, value in {
        "general.name": named,
        **{f"{architecture}.{key}": value for key, value in like_llama.items()},
        **vocabulary(model_directory("llama")),
    }.items():
        put(writer, key, value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.add_tensor("blk.0.attn_q.bias", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs, _ = PretrainedConfig.get_config_dict(str(tmp_path), gguf_file="a.gguf", local_files_only=True)
    ours = read_header(tmp_path / "a.gguf").config()
    given = {key: value for key, value in theirs.items() if key not in ("_model_name_or_path", "_commit_hash")}
    assert ours == given


# The tokenizer.


def test_the_tokenizer_is_the_files(files: Files, model_directory: Directory, tmp_path: Path) -> None:
    """Whatever lies beside the file."""
    file = Path(shutil.copy(files("llama"), tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "config.json").write_text("{")
    own, wanted = load_tokenizer(file), load_tokenizer(model_directory("llama"))
    assert own(TEXT)["input_ids"] == wanted(TEXT)["input_ids"]
    assert own.decode(own(TEXT)["input_ids"]) == TEXT
    assert (own.bos_token_id, own.eos_token_id, own.pad_token_id) == (0, 0, None)
    source = model_widths(file)
    assert source.has_tokenizer
    assert source.states_tokenizer


def test_a_file_without_a_tokenizer(files: Files, model_directory: Directory, tmp_path: Path) -> None:
    file = write_gguf(model_directory("llama"), tmp_path / "bare.gguf", tokenizer=False)
    model = load_language_model(file, device="cpu")
    assert not resolve_model(file).has_tokenizer
    with pytest.raises(DataError, match=saying(str(file), "no tokenizer", "model.tokenizer_name")):
        _ = model.tokenizer


@pytest.mark.parametrize("kind", ["directory", "file"])
@pytest.mark.parametrize("model", ["directory", "file"])
def test_a_tokenizer_from_elsewhere(
    model: str, kind: str, files: Files, model_directory: Directory, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    bare = tmp_path / "bare"
    if model == "file":
        name = write_gguf(model_directory("llama"), bare.with_suffix(".gguf"), tokenizer=False)
    else:
        name = Path(shutil.copytree(model_directory("llama"), bare))
        for file in name.glob("tokenizer*"):
            file.unlink()
    with pytest.raises(DataError, match=saying("no tokenizer", "model.tokenizer_name")):
        load_tokenizer(name)
    given = tmp_path / "words"
    if kind == "file":
        given = files("llama")
    else:
        given.mkdir()
        for file in model_directory("llama").glob("tokenizer*"):
            shutil.copy(file, given)
    wanted = load_tokenizer(model_directory("llama"))(TEXT)["input_ids"]
    assert load_tokenizer(name, None, str(given))(TEXT)["input_ids"] == wanted
    for backend in ("huggingface", "transformer_lens"):
        loaded = load_language_model(name, backend=backend, device="cpu", tokenizer_name=str(given))
        assert loaded.tokenizer(TEXT)["input_ids"] == wanted
        assert loaded.tokenizer_name == str(given)
        assert len(loaded.trace(token_ids).tokens[0]) == token_ids.shape[1]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("nowhere/at/all", ("no such place", "hub id")),
        ("./nowhere", ("no such place",)),
        ("nowhere.gguf", ("no such place",)),
        ("params.yaml", ("another file", "GGUF")),
    ],
)
def test_a_tokenizer_that_is_not_there(name: str, parts: tuple[str, ...], model_directory: Directory) -> None:
    source = resolve_model(model_directory("llama"), None, name)
    with pytest.raises(DataError, match=saying("model.tokenizer_name:", name, *parts)):
        source.load_tokenizer()


def test_a_tokenizer_of_the_hub_that_is_not_here(model_directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=saying("tokenizer 'org/none'", "HF_HUB_OFFLINE")):
        load_tokenizer(model_directory("llama"), None, "org/none")


def test_a_tokenizer_of_the_hub_in_the_cache(
    model_directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--words"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    for file in [*model_directory("llama").glob("tokenizer*"), model_directory("llama") / "config.json"]:
        shutil.copy(file, repository / "snapshots" / commit)
    wanted = load_tokenizer(model_directory("llama"))(TEXT)["input_ids"]
    assert load_tokenizer(model_directory("gpt_neox"), None, "org/words")(TEXT)["input_ids"] == wanted


# What is refused.


def damaged(file: Path, to: Path, change: Callable[[bytearray], bytes | bytearray]) -> Path:
    to.write_bytes(change(bytearray(file.read_bytes())))
    return to


DAMAGES: dict[str, tuple[Callable[[bytearray], bytes | bytearray], tuple[str, ...]]] = {
    "empty": (lambda content: b"", ("GGUF",)),
    "another file": (lambda content: b"PK\3\4" + content[4:], ("begin", "GGUF")),
    "a later version": (lambda content: content[:4] + struct.pack("<I", 9) + content[8:], ("version 9", "2 or 3")),
    "big-endian": (lambda content: content[:4] + struct.pack(">I", 3) + content[8:], ("version", "little-endian")),
    "cut in the counts": (lambda content: content[:14], ("cut short",)),
    "cut in the header": (lambda content: content[:200], ("cut short",)),
    "cut in the weights": (lambda content: content[:-100], ("cut short", "tensor")),
    "many keys": (lambda content: content[:16] + struct.pack("<Q", 2**63) + content[24:], ("header", "table", "cut short")),
    "a key's length": (lambda content: content[:24] + struct.pack("<Q", 2**62) + content[32:], ("cut short",)),
    "a key's type": (lambda content: content[:52] + struct.pack("<I", 77) + content[56:], ("type 77",)),
    "not UTF-8": (lambda content: content[:34] + b"\xff\xfe" + content[36:], ("UTF-8",)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_in_one_line(damage: str, files: Files, tmp_path: Path) -> None:
    change, parts = DAMAGES[damage]
    file = damaged(files("llama"), tmp_path / "damaged.gguf", change)
    for ask in (model_widths, load_language_model, load_tokenizer):
        with pytest.raises(DataError) as refused:
            ask(file)
        (fault,) = refused.value.faults
        assert str(file) in fault
        assert any(part in fault for part in parts), fault
        assert "\n" not in fault


def test_every_place_at_which_a_file_may_be_cut(files: Files, tmp_path: Path) -> None:
    content = files("llama").read_bytes()
    file = tmp_path / "cut.gguf"
    for end in [*range(0, 700), *range(700, len(content), 1009), len(content) - 1]:
        file.write_bytes(content[:end])
        with pytest.raises(DataError, match=r"cut\.gguf: .*(cut short|begin with)"):
            read_header(file)


def without_a_tensor(tensors: dict[str, np.ndarray]) -> None:
    del tensors["blk.1.ffn_up.weight"]


def with_another_shape(tensors: dict[str, np.ndarray]) -> None:
    tensors["blk.1.ffn_up.weight"] = np.zeros((3, 32), np.float32)


def test_tensors_that_are_missing_or_of_other_shapes(model_directory: Directory, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    write_gguf(model_directory("llama"), file, change=without_a_tensor)
    with pytest.raises(DataError, match=saying(str(file), "lack", "model.layers.1.mlp.up_proj.weight")):
        load_language_model(file, device="cpu")
    # A block that is not needed may be missing.
    load_language_model(file, device="cpu", hook_points=["blocks.0.hook_resid_post"])
    write_gguf(model_directory("llama"), file, change=with_another_shape)
    with pytest.raises(DataError, match=saying(str(file), "weights", "cannot be loaded")):
        load_language_model(file, device="cpu")


@pytest.mark.parametrize("key", ["embedding_length", "block_count"])
@pytest.mark.parametrize("value", [None, 0, "many"])
def test_sizes_that_are_not_there(key: str, value: Any, model_directory: Directory, tmp_path: Path) -> None:
    """No size of the family's default takes their place."""
    file = write_gguf(model_directory("llama"), tmp_path / "a.gguf", metadata={f"llama.{key}": value})
    name = {"embedding_length": "hidden_size", "block_count": "num_hidden_layers"}[key]
    with pytest.raises(DataError, match=saying(str(file), name, "positive integer", "None" if value is None else value)):
        model_widths(file)


def test_an_architecture_that_is_not_known(model_directory: Directory, tmp_path: Path) -> None:
    file = write_gguf(model_directory("llama"), tmp_path / "a.gguf", architecture="lama")
    with pytest.raises(DataError, match=saying(str(file), "'lama'", "llama", "directory or hub id")):
        model_widths(file)
    file = write_gguf(model_directory("llama"), tmp_path / "b.gguf", architecture="mamba")
    with pytest.raises(DataError, match=saying("model_type", "'mamba'")):
        model_widths(file)


def rope_freqs(tensors: dict[str, np.ndarray]) -> None:
    tensors["rope_freqs.weight"] = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("metadata", "change", "parts"),
    [
        ({}, rope_freqs, ("rope_freqs.weight",)),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, None, ("llama.rope.scaling.type linear",)),
        ({"llama.attention.key_length": 16}, None, ("llama.attention.key_length", "16", "8")),
    ],
)
def test_what_transformers_would_not_read_is_refused(
    metadata: dict[str, Any], change: Any, parts: tuple[str, ...], model_directory: Directory, tmp_path: Path
) -> None:
    file = tmp_path / "a.gguf"
    write_gguf(model_directory("llama"), file, metadata=metadata, **({} if change is None else {"change": change}))
    with pytest.raises(DataError, match=saying(str(file), "transformers", *parts)):
        load_language_model(file, device="cpu")


def test_rope_scaling_that_scales_nothing_is_taken(model_directory: Directory, tmp_path: Path) -> None:
    file = write_gguf(model_directory("llama"), tmp_path / "a.gguf", metadata={"llama.rope.scaling.type": "none"})
    load_language_model(file, device="cpu")


def test_names(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shutil.copy(files("llama"), tmp_path / "no suffix")
    assert model_widths("no suffix").d_model == D  # in the checkout, and by its content
    with pytest.raises(DataError, match=saying("models/none.gguf", "no such GGUF file")):
        model_widths("models/none.gguf")
    with pytest.raises(DataError, match=saying("'main'", "a local file", "no revisions")):
        model_widths("no suffix", "main")
    (tmp_path / "folder").mkdir()
    shutil.copy(files("llama"), tmp_path / "folder" / "own.gguf")
    with pytest.raises(DataError, match=saying("config.json", "own.gguf")):
        model_widths(tmp_path / "folder")


def test_without_the_package(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(DataError, match=saying("package gguf", "pip install gguf")):
        model_widths(files("llama"))


def test_more_embeddings_than_tokens(model_directory: Directory, tmp_path: Path, token_ids: torch.Tensor) -> None:
    """What the vocabulary lacks are rows that no text reaches."""
    keys = vocabulary(model_directory("llama"))
    n = len(keys["tokenizer.ggml.tokens"])
    assert n < VOCAB
    file = write_gguf(model_directory("llama"), tmp_path / "a.gguf")
    model = load_language_model(file, device="cpu")
    assert (model.vocab_size, len(model.tokenizer)) == (VOCAB, n)
    assert model.logits(token_ids).shape[-1] == VOCAB
    assert token_ids.max() >= n  # and such tokens have a text
    assert len(model.trace(token_ids).tokens) == len(token_ids)
