"""What runs in another tool's environment for peer_formats.py: its own loader loads, or the tool makes a dictionary.

    PYTHON benchmarks/peer_loaders.py JOBS.json

Each job: {"peer", "do": load or make, "path", "rows": .npy, "out": .npz, "kind", "arguments"}. Written to `out`: features and
reconstruction of the rows in float32; to versions.json beside JOBS.json: the versions of the packages that take part. Imports
nothing of this project.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Pair = tuple[torch.Tensor, torch.Tensor]
STEPS = 30


def _saelens_load(path: str, x: torch.Tensor, job: dict[str, Any]) -> Pair:
    from sae_lens import SAE

    sae = SAE.load_from_disk(path)
    f = sae.encode(x)
    return f, sae(x)


def _saelens_make(path: str, x: torch.Tensor, job: dict[str, Any]) -> Pair:
    """Trained for a few steps (transcoders, which have no trainer there: filled), saved as the tool saves for inference."""
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata, TrainStepInput

    name, d = job["kind"], x.shape[-1]
    read = "blocks.0.ln2.hook_normalized" if "transcoder" in name else "blocks.0.hook_resid_post"
    meta = SAEMetadata(model_name="tiny", hook_name=read, hook_name_out="blocks.0.hook_mlp_out")
    if "transcoder" in name:
        stem = "".join({"jumprelu": "JumpReLU"}.get(word, word.capitalize()) for word in name.split("_"))
        cfg = getattr(sae_lens, f"{stem}Config")(d_in=d, d_sae=8 * d, d_out=d, apply_b_dec_to_input=False, metadata=meta)
        sae = getattr(sae_lens, stem)(cfg)
        with torch.no_grad():
            for each, parameter in sae.named_parameters():
                parameter.copy_(
                    0.3 * torch.randn(parameter.shape).abs() if each == "threshold" else 0.3 * torch.randn(parameter.shape)
                )
        sae.save_model(path)
        return sae.encode(x), sae(x)
    classes = {
        "standard": "Standard", "topk": "TopK", "jumprelu": "JumpReLU", "gated": "Gated", "batchtopk": "BatchTopK",
        "matryoshka_batchtopk": "MatryoshkaBatchTopK",
    }  # fmt: skip
    extra: dict[str, Any] = (
        {"k": 8} if "topk" in name else {"l0_coefficient": 1e-3} if name == "jumprelu" else {"l1_coefficient": 1e-3}
    )
    extra |= {"matryoshka_widths": [d, 8 * d]} if "matryoshka" in name else {}
    cfg = getattr(sae_lens, f"{classes[name]}TrainingSAEConfig")(
        d_in=d, d_sae=8 * d, metadata=meta, **extra, **job["arguments"]
    )
    sae = getattr(sae_lens, f"{classes[name]}TrainingSAE")(cfg)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for step in range(STEPS):
        inputs = TrainStepInput(
            sae_in=x, coefficients={key: c.value for key, c in sae.get_coefficients().items()}, dead_neuron_mask=None,
            n_training_steps=step, is_logging_step=False,
        )  # fmt: skip
        loss = sae.training_forward_pass(step_input=inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sae.save_inference_model(path)
    return _saelens_load(path, x, job)


def _dense(indices: torch.Tensor, values: torch.Tensor, n: int) -> torch.Tensor:
    return torch.zeros(len(indices), n).scatter_(-1, indices, values)


def _sparsify_load(path: str, x: torch.Tensor, job: dict[str, Any]) -> Pair:
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(path)
    out = coder(x)
    return _dense(out.latent_indices, out.latent_acts, coder.num_latents), out.sae_out


def _sparsify_make(path: str, x: torch.Tensor, job: dict[str, Any]) -> Pair:
    from sparsify import SparseCoder, SparseCoderConfig

    transcode = job["kind"] != "topk"
    config = SparseCoderConfig(
        num_latents=8 * x.shape[-1], k=8, transcode=transcode, skip_connection=job["kind"] == "skip transcoder"
    )
    coder = SparseCoder(x.shape[-1], config)
    y = x @ torch.randn(x.shape[-1], x.shape[-1]).tanh() if transcode else x
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-2)
    for _ in range(STEPS):
        loss = coder(x, y).fvu
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    coder.save_to_disk(path)
    return _sparsify_load(path, x, job)


def _dictionary_learning_load(path: str, x: torch.Tensor, job: dict[str, Any]) -> Pair:
    from dictionary_learning.utils import load_dictionary

    ae, _ = load_dictionary(path, device="cpu")
    f = ae.encode(x)
    return f, ae.decode(f)


def _dictionary_learning_make(path: str, x: torch.Tensor, job: dict[str, Any]) -> Pair:
    from dictionary_learning import trainers
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    name = job["kind"]
    trainer_class = MatryoshkaBatchTopKTrainer if "Matryoshka" in name else getattr(trainers, name)
    extra: dict[str, Any] = {"k": 8, "threshold_start_step": 2, "threshold_beta": 0.9} if "TopK" in name else {}
    extra |= {"group_fractions": [0.25, 0.75]} if "Matryoshka" in name else {}
    extra |= {"l1_penalty": 1e-3} if name in ("StandardTrainer", "GatedSAETrainer") else {}
    extra |= {"target_l0": 8.0} if name == "JumpReluTrainer" else {}
    warm = {} if "TopK" in name else {"sparsity_warmup_steps": 2}
    trainer = trainer_class(
        steps=10 * STEPS, activation_dim=x.shape[-1], dict_size=8 * x.shape[-1], layer=1, lm_name="tiny", lr=1e-2,
        warmup_steps=2, device="cpu", submodule_name="resid_post_layer_1", **extra, **warm,
    )  # fmt: skip
    for step in range(STEPS):
        trainer.update(step, x)
    Path(path).mkdir(parents=True, exist_ok=True)
    torch.save({key: tensor.cpu() for key, tensor in trainer.ae.state_dict().items()}, Path(path) / "ae.pt")
    (Path(path) / "config.json").write_text(json.dumps({"trainer": trainer.config, "buffer": {"ctx_len": 128}}))
    if name == "StandardTrainer":  # its loader would rescale the features
        return trainer.ae.encode(x), trainer.ae(x)
    return _dictionary_learning_load(path, x, job)


def _circuit_tracer_pages(folder: Path) -> None:
    """Every page, read as the frontend reads it and checked by the tool's own model of one."""
    from circuit_tracer.frontend.feature_models import Model

    for layer, place in json.loads(gzip.decompress((folder / "index.json.gz").read_bytes())).items():
        data, offsets = (folder / place["filename"]).read_bytes(), place["offsets"]
        for feature, start in enumerate(offsets[:-1]):
            length = int.from_bytes(data[start : start + 4], "little")
            page = Model.model_validate_json(gzip.decompress(data[start + 4 : start + 4 + length]))
            pair = int(layer) + feature
            if page.index != pair * (pair + 1) // 2 + feature or start + 4 + length != offsets[feature + 1]:
                raise ValueError(f"layer {layer}, feature {feature}: page {page.index} of {length} bytes")


def _circuit_tracer_load(path: str, x: torch.Tensor, job: dict[str, Any]) -> Pair:
    """As ReplacementModel.from_pretrained loads a directory: by its config.yaml."""
    sys.path.insert(0, SOURCES["circuit_tracer"])
    from circuit_tracer.utils.hf_utils import load_transcoder_from_hub

    if (Path(path) / "features").is_dir():
        _circuit_tracer_pages(Path(path) / "features")
    found, _ = load_transcoder_from_hub(path, device=torch.device("cpu"), lazy_decoder=False)
    inputs = x.transpose(0, 1)
    features = found.encode(inputs)
    y = found.decode(features.to_sparse()) if job["kind"] == "clt" else found.decode(features, inputs)
    return features.transpose(0, 1), y.transpose(0, 1)


def _openmoss_load(path: str, x: torch.Tensor, job: dict[str, Any]) -> Pair:
    """By the checkout where there is one, else by the package that is installed."""
    if "openmoss" in SOURCES:
        sys.path.insert(0, str(Path(SOURCES["openmoss"]) / "src"))
    import llamascopium.models.clt
    import llamascopium.models.crosscoder
    import llamascopium.models.lorsa
    import llamascopium.models.sae  # noqa: F401
    from llamascopium.models.sparse_dictionary import SparseDictionary

    model = SparseDictionary.from_pretrained(path, device="cpu", dtype=torch.float32)
    f = model.encode(x)
    y = model.decode(f, **({"batch_first": True} if job["kind"] == "clt" else {}))
    return (f[..., 0, :] if job["kind"] == "crosscoder" else f), y


DO: dict[tuple[str, str], Callable[[str, torch.Tensor, dict[str, Any]], Pair]] = {
    ("saelens", "load"): _saelens_load,
    ("saelens", "make"): _saelens_make,
    ("sparsify", "load"): _sparsify_load,
    ("sparsify", "make"): _sparsify_make,
    ("dictionary_learning", "load"): _dictionary_learning_load,
    ("dictionary_learning", "make"): _dictionary_learning_make,
    ("circuit_tracer", "load"): _circuit_tracer_load,
    ("openmoss", "load"): _openmoss_load,
}
SOURCES: dict[str, str] = {}
PACKAGES = {
    "saelens": ("sae-lens",),
    "sparsify": ("eai-sparsify",),
    "dictionary_learning": ("dictionary-learning",),
    "circuit_tracer": ("huggingface-hub", "transformers", "pydantic"),
    "openmoss": ("llamascopium", "transformer-lens", "huggingface-hub"),
}


def versions(peers: set[str]) -> dict[str, list[str]]:
    """Packages with their versions for each peer, as far as they are installed."""
    found: dict[str, list[str]] = {}
    for peer in sorted(peers):
        found[peer] = []
        for name in (*PACKAGES[peer], "torch"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[peer].append(f"{name} {importlib.metadata.version(name)}")
    return found


def main() -> None:
    """Do the jobs of the file that is named; one that fails says why in place of its result."""
    given = json.loads(Path(sys.argv[1]).read_text())
    SOURCES.update(given["sources"])
    found = versions({job["peer"] for job in given["jobs"]})
    Path(sys.argv[1]).with_name("versions.json").write_text(json.dumps(found))
    for job in given["jobs"]:
        torch.manual_seed(0)
        x = torch.from_numpy(np.load(job["rows"]))
        try:
            f, y = DO[job["peer"], job["do"]](job["path"], x, job)
        except Exception as error:  # whatever the tool raises is the result
            Path(job["out"]).with_suffix(".failed").write_text(f"{type(error).__name__}: {error}")
            continue
        np.savez(job["out"], f=f.detach().to_dense().float().numpy(), y=y.detach().float().numpy())


if __name__ == "__main__":
    main()
