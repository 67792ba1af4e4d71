"""The fault table: each fault that a user can meet, the stage that meets it, and the message that it gives.

Every row prepares a fault in a copy of a finished project, runs one stage as its command line would, and wants exit code 2, one
`error:` line with the message, and nothing lost: what stood in data/ before the fault is still there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ParamsError
from tests.messages import faults, says
from tests.project import Project
from tests.sealing import rewritten

HOOK = "blocks.0.hook_resid_post"


def nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters alone are the fault."""


def empty_text(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.path / "text.txt").write_text("\n \n")


def binary_text(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.path / "text.txt").write_bytes(b"some text \0 and more")


def half_surrogate(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.path / "text.jsonl").write_text('{"text": "good"}\n{"text": "\\udc80"}\n')


def one_document_a_line(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.path / "text.txt").write_text("the cat sat\n" * 9000)


def chat_template(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.path / "model" / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    )


def further_token(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the tokenizer knows and the model has no embedding of."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(project.path / "model", local_files_only=True)
    tokenizer.add_tokens([f"<further {n}>" for n in range(300)])
    tokenizer.save_pretrained(project.path / "model")
    text = project.path / "text.jsonl"
    text.write_text(text.read_text().replace("cat", "<further 299>"))


def remove_store(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project.store)


def chunk(project: Project) -> Path:
    """The first chunk of the hook point's array."""
    return sorted((project.store / HOOK).glob("c.*"))[0]


def truncate_chunk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk(project).write_bytes(chunk(project).read_bytes()[:-2])


def alter_chunk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(chunk(project).read_bytes())
    content[1000] ^= 1
    chunk(project).write_bytes(bytes(content))


def remove_chunk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk(project).unlink()


def other_manifest(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project.path / "data" / "activations.json"
    rewritten(path, lambda manifest: manifest["hook_points"][HOOK].update(digest="0" * 32))


def remove_manifest(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.path / "data" / "activations.json").unlink()


def non_finite_model(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project.path / "model" / "model.safetensors"
    weights = load_file(path)
    weights["gpt_neox.embed_in.weight"][3:280] = torch.inf
    save_file(weights, path, metadata={"format": "pt"})


def full_disk_ahead(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project.path / "data" / "store")
    usage = shutil.disk_usage(project.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))


def full_disk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project.path / "data" / "store")
    import os

    whole = os.replace

    def replace(source: str | Path, target: str | Path) -> None:
        if Path(target).name.startswith("c."):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        whole(source, target)

    monkeypatch.setattr(os, "replace", replace)


def full_disk_in_training(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project.path / "data" / "checkpoints")
    usage = shutil.disk_usage(project.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))


def hold(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold a lock file as another process would (a second open file description conflicts within a process too)."""
    stream = open(path, "a")  # noqa: SIM115
    fcntl.flock(stream, fcntl.LOCK_EX)
    held.append(stream)


held: list = []


@pytest.fixture(autouse=True)
def release():  # type: ignore[no-untyped-def]
    """Give back the locks that a row holds."""
    yield
    while held:
        held.pop().close()


def second_generation(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(next((project.path / "data" / "store").glob("*.lock")), monkeypatch)


def second_training(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(next((project.path / "data" / "checkpoints").rglob("*lock*")), monkeypatch)


def other_checkpoint(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = (project.path / "data" / "checkpoints").rglob("about.json")
    about = json.loads(path.read_text())
    about["seed"] = 99
    path.write_text(json.dumps(about))


def damaged_checkpoints(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (finished,) = (project.path / "data" / "checkpoints").glob("*/finished")
    state = finished / "state.safetensors"
    state.write_bytes(state.read_bytes()[:40])
    finished.rename(finished.parent / "step-000000032")


def other_lengths(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dictionary of a model with far shorter activations."""
    file = project.path / "data" / "inference" / "main" / "config.json"
    rewritten(file, lambda config: config["norms"][HOOK].update(median_norm=1e-3))


def altered_dictionary(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project.path / "data" / "inference" / "main" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def missing_tokens(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project.path / "data" / "tokens.zarr")


def planned(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("generate_activations", "compute_norm", "initialize"):
        assert project.run(stage).exit_code == 0


@dataclass(frozen=True)
class Fault:
    """One row: what is wrong, the parameters changed, the preparation, the stage, and the useful parts of the message."""

    name: str
    stage: str
    parts: tuple[object, ...]
    changes: dict[str, object]
    prepare: Callable[[Project, pytest.MonkeyPatch], None] = nothing


FAULTS = [
    Fault("mistyped parameter", "train", ("trainer.lr:", "'fast'"), {"trainer__lr": "fast"}),
    Fault("parameter out of range", "train", ("trainer.k_aux:", 0), {"trainer__k_aux": 0}),
    Fault("model does not exist", "tokenize_corpus", ("no-such/model",), {"model__model_name": "no-such/model"}),
    Fault("model directory does not exist", "tokenize_corpus", ("./none",), {"model__model_name": "./none"}),
    Fault(
        "data set does not exist",
        "tokenize_corpus",
        ("none.txt:", "dataset.dataset_name_or_path:", "no such file"),
        {"dataset__dataset_name_or_path": "none.txt"},
    ),
    Fault(
        "hook point does not exist",
        "generate_activations",
        ("unknown", "blocks.0.hook_resid_pst", "hook_resid_post"),
        {"dictionary__hook_point_in": "blocks.0.hook_resid_pst"},
    ),
    Fault(
        "layer does not exist",
        "generate_activations",
        ("blocks.7.hook_resid_post", "layer 7", "2 layers"),
        {"dictionary__hook_point_in": "blocks.7.hook_resid_post"},
    ),
    Fault("d_model does not fit", "initialize", ("dictionary.d_model", 17, 16), {"dictionary__d_model": 17}),
    Fault("width does not fit", "initialize", ("dictionary.top_k:", 100, 64), {"dictionary__top_k": 100}),
    Fault(
        "no dictionary to start from",
        "initialize",
        ("initializer.from_dictionary:", "gone:", "no dictionary directory"),
        {"initializer__from_dictionary": "gone"},
    ),
    Fault(
        "a start of a foreign format",
        "initialize",
        ("initializer.from_dictionary:", "model:", "no dictionary of a known format"),
        {"initializer__from_dictionary": "model"},
    ),
    Fault(
        "a damaged start",
        "initialize",
        ("initializer.from_dictionary:", "weights.safetensors:", "altered"),
        {"initializer__from_dictionary": "data/inference/main", "dictionary__name": "tuned"},
        altered_dictionary,
    ),
    Fault(
        "a start of another shape",
        "initialize",
        ("initializer.from_dictionary:", "d_sae is 64, wanted 128"),
        {"initializer__from_dictionary": "data/inference/main", "dictionary__name": "tuned", "dictionary__expansion_factor": 8},
    ),
    Fault(
        "too little text",
        "tokenize_corpus",
        ("too little text", "activations.total_tokens", "9,000,000"),
        {"activations__total_tokens": 9_000_000},
    ),
    Fault(
        "empty text file", "tokenize_corpus", ("text.txt:", "empty"), {"dataset__dataset_name_or_path": "text.txt"}, empty_text
    ),
    Fault(
        "binary text file",
        "tokenize_corpus",
        ("text.txt:", "UTF-8", "byte 10", "0x00"),
        {"dataset__dataset_name_or_path": "text.txt"},
        binary_text,
    ),
    Fault(
        "a text that is no Unicode",
        "tokenize_corpus",
        ("text.jsonl:", "line 2", "character 0", "surrogate"),
        {},
        half_surrogate,
    ),
    Fault(
        "one document a line in a text file",
        "tokenize_corpus",
        ("held-out context", "0 of 1 documents", ".jsonl"),
        {"dataset__dataset_name_or_path": "text.txt"},
        one_document_a_line,
    ),
    Fault(
        "a token that the model has no embedding of",
        "tokenize_corpus",
        ("'model'", "text.jsonl", "further 299", "0 to 299", "resize_token_embeddings"),
        {},
        further_token,
    ),
    Fault(
        "chat messages without a chat template",
        "tokenize_corpus",
        ("'model'", "dataset.messages_field", "chat template", "dataset.text_field"),
        {"dataset__messages_field": "text"},
    ),
    Fault(
        "a row that holds no chat messages",
        "tokenize_corpus",
        ("text.jsonl:", "line 1", "dataset.messages_field 'text'", "text", "{role, content}"),
        {"dataset__messages_field": "text", "dataset__shuffle_seed": None},
        chat_template,
    ),
    Fault("tokens missing", "generate_activations", ("tokens.zarr:", "missing", "`dvc repro tokenize`"), {}, missing_tokens),
    Fault(  # 4,096 rows are one block, whose kept-back ones are of most contexts
        "too few whole contexts",
        "train",
        ("trainer.model_loss", "160", "activations.total_tokens", "trainer.model_loss_batches", "activations.batch_size"),
        {"activations__source": "live", "trainer__model_loss": "kl", "trainer__model_loss_batches": 20},
        planned,
    ),
    Fault("store missing", "train", ("store", "missing", "`dvc repro -s -f generate`"), {"seed": 1}, remove_store),
    Fault("chunk missing", "train", (f"array '{HOOK}':", "chunk 0", "missing"), {"seed": 1}, remove_chunk),
    Fault("chunk truncated", "train", (f"array '{HOOK}':", "chunk 0", "truncated"), {"seed": 1}, truncate_chunk),
    Fault("chunk altered", "train", (f"array '{HOOK}':", "chunk 0", "altered"), {"seed": 1}, alter_chunk),
    Fault(
        "store for other parameters",
        "train",
        ("store", "activations.buffer_shuffle.perm_seed", 42, 7),
        {"activations__buffer_shuffle__perm_seed": 7},
    ),
    Fault(
        "store with other hook points",
        "initialize",
        ("blocks.1.hook_mlp_out", HOOK),
        {"dictionary__hook_point_in": "blocks.1.hook_mlp_out"},
    ),
    Fault("store with another content", "train", (f"array '{HOOK}':", "altered", "digest"), {}, other_manifest),
    Fault("initial dictionary for other parameters", "train", ("initial dictionary", "parameters"), {"dictionary__top_k": 5}),
    Fault("manifest missing", "train", ("activations.json:", "missing"), {"seed": 1}, remove_manifest),
    Fault(
        "non-finite activations",
        "generate_activations",
        (f"hook point {HOOK}:", "context", "position", "token id", "store row", "non-finite"),
        {},
        non_finite_model,
    ),
    Fault(
        "flash attention without a GPU",
        "generate_activations",
        ("model.attention", "flash_attention_2", "CUDA", "cpu", "auto"),
        {"model__attention": "flash_attention_2", "model__dtype": "bfloat16", "model__device": "cpu"},
    ),
    Fault("non-finite loss", "train", ("finite", "step", "tokens", "loss", "l_rec"), {"trainer__lr": 1e36}),
    Fault(
        "a run that diverges",
        "train",
        ("training:", "diverged", "of 64", "explained variance", "trainer.lr 30", "auto", "checkpoints"),
        {"trainer__lr": 30.0},
    ),
    Fault("no space left, seen ahead", "generate_activations", ("data/store", "no space"), {}, full_disk_ahead),
    Fault("no space left, while writing", "generate_activations", ("data/store", "no space", "while writing"), {}, full_disk),
    Fault("no space left for a checkpoint", "train", ("data/checkpoints", "no space"), {}, full_disk_in_training),
    Fault(
        "second process on a store",
        "generate_activations",
        ("data/store", "in use", f"pid {os.getpid()}"),
        {},
        second_generation,
    ),
    Fault("second process on a checkpoint", "train", ("data/checkpoints", "in use", f"pid {os.getpid()}"), {}, second_training),
    Fault("checkpoint for other parameters", "train", ("data/checkpoints", "parameters", "seed 99"), {}, other_checkpoint),
    Fault("checkpoints damaged", "train", ("data/checkpoints", "damaged"), {}, damaged_checkpoints),
    Fault("every evaluated token massive", "evaluate", ("every", "massive", "excluded", f"{HOOK} 0.01"), {}, other_lengths),
    Fault("inference weights altered", "evaluate", ("weights.safetensors:", "altered"), {}, altered_dictionary),
]


def tree(project: Project) -> set[str]:
    """Every file below data/ but lock files."""
    return {
        str(p.relative_to(project.path)) for p in (project.path / "data").rglob("*") if p.is_file() and "lock" not in p.name
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_fault(fault: Fault, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.set(**fault.changes)
    fault.prepare(project, monkeypatch)
    before = tree(project)
    outcome = project.run(fault.stage)
    if outcome.exception is not None:
        raise outcome.exception
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert outcome.exit_code == 2, outcome.stderr
    assert len(errors) == 1, outcome.stderr
    says(errors[0], *fault.parts)
    assert before <= tree(project)
    assert not list((project.path / "data").rglob("*partial*"))


def test_all_parameter_faults_at_once(project: Project) -> None:
    text = (project.path / "params.yaml").read_text()
    text = text.replace("lr_warm_up_steps", "warmup_step").replace("top_k: 4", "top_k: four").replace("kind: sae", "kind: sea")
    (project.path / "params.yaml").write_text(text)
    outcome = project.run("train")
    assert outcome.exit_code == 2
    lines = outcome.stderr.splitlines()
    assert all(line.startswith("error: params.yaml: ") for line in lines)
    found = faults(ParamsError(lines), "error: params.yaml")
    says(found["trainer.warmup_step"], "unknown", "'lr_warm_up_steps'")
    says(found["trainer.lr_warm_up_steps"], "missing")
    says(found["dictionary.kind"], "'sae'")
