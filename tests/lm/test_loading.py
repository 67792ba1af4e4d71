"""Finding, reading and refusing models, offline."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import DataError
from pipeline.lm.loading import load_language_model, load_tokenizer, model_widths
from pipeline.lm.source import resolve_model
from pipeline.lm.tokenizer_place import resolve_tokenizer
from tests.lm.families import CONTEXT, LAYERS, NOT_BRIDGED, VOCAB, D
from tests.messages import saying

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def edit_config(directory, **changes):
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "remove"}))


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def hub_cache(own_model, tmp_path, monkeypatch, offline):
    """The tiny model as `org/tiny` in a Hugging Face cache, branch main."""
    cache = tmp_path / "hub"
    repository = cache / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    shutil.copytree(own_model, repository / "snapshots" / COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return repository


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "llama"])
def test_widths_come_from_the_configuration(family, model_directory):
    widths = model_widths(model_directory(family))
    assert (widths.d_model, widths.n_layers, widths.vocab_size, widths.max_context) == (D, LAYERS, VOCAB, CONTEXT)
    assert widths.hook_width("blocks.2.ln2.hook_normalized") == D
    assert len(widths.hook_points()) == 3 + len(widths.blocks[0].sites) * LAYERS
    heads = {"gpt_neox": (32, 32, 64), "gpt2": (32, 32, 128), "llama": (32, 16, 48)}[family]
    assert tuple(widths.hook_width(f"blocks.1.{site}") for site in ("attn.hook_z", "attn.hook_k", "mlp.hook_pre")) == heads
    assert widths.revision is None
    with pytest.raises(DataError, match="layer 3 does not exist"):
        widths.hook_width("blocks.3.hook_resid_post")


def test_widths_need_neither_torch_nor_transformers(own_model):
    code = (
        "import sys; from pipeline.lm.loading import model_widths; "
        f"assert model_widths({str(own_model)!r}).d_model == {D}; "
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"


def test_widths_that_the_configuration_leaves_to_its_familys_default(own_model):
    edit_config(own_model, hidden_size="remove", model_type="llama")
    assert model_widths(own_model).d_model == 4096


def test_the_digest_depends_on_content_alone(own_model, tmp_path):
    digest = resolve_model(own_model).digest()
    elsewhere = Path(shutil.copytree(own_model, tmp_path / "another place"))
    edit_config(elsewhere, _name_or_path="/somewhere/else", transformers_version="0")
    assert resolve_model(elsewhere).digest() == digest
    edit_config(elsewhere, layer_norm_eps=0.5)
    assert resolve_model(elsewhere).digest() != digest
    content = bytearray((own_model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (own_model / "model.safetensors").write_bytes(content)
    assert resolve_model(own_model).digest() != digest


def test_sharded_weights(own_model, token_ids):
    from safetensors.torch import load_file, save_file

    before = load_language_model(own_model, device="cpu").logits(token_ids)
    tensors = load_file(own_model / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, own_model / file, metadata={"format": "pt"})
    weight_map = {key: file for file, keys in shards.items() for key in keys}
    (own_model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (own_model / "model.safetensors").unlink()
    model = load_language_model(own_model, device="cpu")
    assert torch.equal(model.logits(token_ids), before)
    assert len(model.digest) == 64
    (own_model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DataError, match=r"weight files are missing: model-00002-of-00002\.safetensors"):
        load_language_model(own_model)


def test_demo_is_the_embedded_model_of_the_checkout(own_model, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(DataError, match=r"embedded model is missing; restore it with `git checkout.*python -m stages.pretrain"):
        model_widths("demo")
    shutil.copytree(own_model, tmp_path / "data" / "demo" / "model")
    assert model_widths("demo").digest() == model_widths(own_model).digest()
    with pytest.raises(DataError, match="which has no revisions"):
        model_widths("demo", "main")


def test_a_hub_model_in_the_cache(hub_cache, own_model, token_ids):
    model = load_language_model("org/tiny", device="cpu")
    assert model.revision == COMMIT
    assert model.name == "org/tiny"
    assert torch.equal(model.logits(token_ids), load_language_model(own_model, device="cpu").logits(token_ids))
    assert model.digest != load_language_model(own_model).digest
    assert model.digest == model_widths("org/tiny", COMMIT).digest()
    assert model.tokenizer.decode(model.tokenizer.encode("the cat")) == "the cat"
    with pytest.raises(DataError, match=r"'org/tiny' \(revision 'step3'\) does not exist here"):
        model_widths("org/tiny", "step3")


def test_a_hub_model_without_its_weights(hub_cache):
    (hub_cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        load_language_model("org/tiny")


def test_a_missing_hub_model_is_known_at_once(offline, monkeypatch):
    """Without a look at the network, and without waiting."""
    waited = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: waited.append(address))
    monkeypatch.setattr("socket.socket.connect", lambda *address: waited.append(address))
    monkeypatch.setattr("time.sleep", waited.append)
    with pytest.raises(DataError) as caught:
        load_language_model("EleutherAI/pythia-160mm")
    assert waited == []
    message = str(caught.value)
    assert "\n" not in message
    for part in ("'EleutherAI/pythia-160mm'", "HF_HUB_OFFLINE is set", "local directory", "'demo'"):
        assert part in message


def test_an_unreachable_hub_is_asked_once(monkeypatch):
    asked = []

    def model_info(self, *args, **kwargs):
        asked.append(kwargs["timeout"])
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    with pytest.raises(DataError, match=r"the hub cannot be reached \(ConnectionError: no route to host\)"):
        model_widths("org/absent")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such directory for a model"),
        ("/nowhere/at/all", "no such directory for a model"),
        ("a name with spaces", "neither a directory nor a hub id"),
    ],
)
def test_names_that_mean_nothing(name, message, offline):
    with pytest.raises(DataError, match=message):
        model_widths(name)


def test_a_misspelt_path_is_told_what_is_near(own_model, offline, tmp_path, monkeypatch):
    (tmp_path / "data" / "demo").mkdir(parents=True)
    (tmp_path / "data" / "demo" / "model").symlink_to(own_model)
    (tmp_path / "data" / "demo" / "small.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for name, near in (
        ("data/dmeo/model", "near it is data/demo/model"),
        ("./data/demo/modl", "near it is data/demo/model"),
        ("data/demo/smal.gguf", "near it is data/demo/small.gguf"),
        ("data/demo-model", "does not exist here"),
    ):
        with pytest.raises(DataError, match=near):
            model_widths(name)
        with pytest.raises(DataError, match=near):
            resolve_tokenizer(name)
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(DataError, match=r"does not exist here: no directory of this name in .*; near it is demo/model, not"):
        model_widths("dmeo/model")  # by its form a hub id


def test_options_that_do_not_exist(own_model):
    with pytest.raises(DataError, match="unknown back end 'hugginface'; did you mean 'huggingface'"):
        load_language_model(own_model, backend="hugginface")
    with pytest.raises(DataError, match=r"unknown model dtype 'bf16'.*float32, bfloat16, float16"):
        load_language_model(own_model, dtype="bf16")
    with pytest.raises(DataError, match="unknown device 'gpu'"):
        load_language_model(own_model, device="gpu")
    assert load_language_model(own_model, dtype=torch.float16, device="cpu").dtype == torch.float16


def test_an_unsupported_architecture_lists_the_supported(own_model):
    edit_config(own_model, model_type="whisper")
    with pytest.raises(DataError, match=saying("own", "unknown model_type 'whisper'", "gpt2", "gemma3", "declare its family")):
        model_widths(own_model)


@pytest.mark.parametrize("model_type", ["gemma3n", "gemma3n_text"])
def test_a_family_that_does_not_fit_says_why(own_model, model_type):
    edit_config(own_model, model_type=model_type)
    with pytest.raises(DataError, match=saying("own", model_type, "four residual streams", "gemma3 model")):
        model_widths(own_model)


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ({"apply_residual_connection_post_layernorm": True}, ("no one residual stream", "another model")),
        ({"slow_but_exact": True, "pretraining_tp": 2}, ("slow_but_exact", "slices")),
    ],
)
def test_a_setting_with_which_hook_points_would_mean_another_thing(setting, parts, model_directory, tmp_path):
    own = Path(shutil.copytree(model_directory("bloom"), tmp_path / "own"))
    edit_config(own, **setting)
    with pytest.raises(DataError, match=saying("own", "family bloom", *parts)):
        model_widths(own)


@pytest.mark.parametrize(("name", "part"), NOT_BRIDGED.items())
def test_what_the_bridge_would_run_otherwise_is_refused(name, part, model_directory):
    with pytest.raises(DataError, match=saying(name, "TransformerLens", part, "model.backend", "huggingface")):
        load_language_model(model_directory(name), backend="transformer_lens", device="cpu")


def _truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _drop_a_tensor(directory):
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    del tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors"),
        (_truncate, "cannot be loaded"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "cannot be loaded"),
        (_drop_a_tensor, r"lack 1 tensors.*layers\.1\.mlp\.dense_h_to_4h\.weight"),
        (lambda d: edit_config(d, hidden_size=64), "cannot be loaded"),
        (
            lambda d: edit_config(d, hidden_size="wide"),
            "hidden_size or n_embd should be a positive integer, got 'wide'",
        ),
        (lambda d: (d / "config.json").write_text("{"), "configuration of model .* is damaged"),
        (lambda d: (d / "config.json").write_text("[]"), "should be an object, got a list"),
        (lambda d: (d / "config.json").unlink(), "configuration of model .* is missing"),
    ],
)
def test_damaged_directories(damage, message, own_model):
    damage(own_model)
    with pytest.raises(DataError, match=message) as caught:
        load_language_model(own_model, device="cpu")
    assert str(own_model) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tokenizers(own_model):
    tokenizer = load_tokenizer(own_model)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.encode("the cat")
    (own_model / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer of .* is damaged"):
        load_tokenizer(own_model)
    (own_model / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="has no tokenizer"):
        load_tokenizer(own_model)


def test_a_model_is_no_file(own_model):
    with pytest.raises(DataError, match="should be a directory"):
        model_widths(own_model / "config.json")


def test_loading_says_nothing(own_model, capfd):
    load_language_model(own_model, device="cpu").tokenizer.encode("the")
    load_language_model(own_model, backend="transformer_lens", device="cpu")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
