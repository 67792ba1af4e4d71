from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.lm.loading import load_language_model
from tests.project import CONTEXT, D_MODEL, make_model

RESID, MLP_IN, MLP_OUT = "blocks.{}.hook_resid_post", "blocks.{}.ln2.hook_out", "blocks.{}.hook_mlp_out"
LORSA = {"n_qk_heads": 4, "d_qk_head": 8, "n_ctx": CONTEXT, "rotary_dim": 4}
# kind of experiment -> what differs from the common configuration
KINDS = {
    "sae": {"kind": "sae", "hook_point_in": RESID.format(0)},
    "sae_jumprelu": {"kind": "sae", "hook_point_in": RESID.format(0), "act_fn": "jumprelu"},
    "sae_glu": {"kind": "sae", "hook_point_in": RESID.format(0), "act_fn": "relu", "use_glu_encoder": True},
    "transcoder": {"kind": "transcoder", "hook_point_in": MLP_IN.format(0), "hook_point_out": MLP_OUT.format(0), "skip": True},
    "crosscoder": {"kind": "crosscoder", "hook_points_in": [RESID.format(0), RESID.format(1)]},
    "clt": {"kind": "clt", "hook_points_in": [MLP_IN.format(0), MLP_IN.format(1)], "hook_points_out": [MLP_OUT.format(0), MLP_OUT.format(1)]},
    "lorsa": {"kind": "lorsa", "hook_point_in": "blocks.0.ln1.hook_out", "hook_point_out": "blocks.0.hook_attn_out", **LORSA},
}  # fmt: skip


def make(kind: str, dtype: torch.dtype = torch.float64, **fields: object) -> Dictionary:
    """A drawn, folded dictionary of one of KINDS, its biases not zero."""
    config = {"name": kind, "d_in": D_MODEL, "d_sae": 24, "act_fn": "topk", "top_k": 4, **KINDS[kind], **fields}
    if config["act_fn"] != "topk":
        del config["top_k"]
    made = build_dictionary(config, seed=2)
    with torch.no_grad():
        for key, tensor in made.named_parameters():
            if key in ("b_D", "b_E", "b_V"):
                tensor.add_(0.1 * torch.arange(1.0, tensor.numel() + 1).sin().reshape(tensor.shape))
            if key == "log_jumprelu_threshold":
                tensor.fill_(-4.0)
            if key == "W_skip":
                tensor.add_(0.3 * torch.arange(1.0, tensor.numel() + 1).cos().reshape(tensor.shape))
    hooks = dict.fromkeys((*made.hooks_in, *made.hooks_out))
    folded = made.fold({hook: {"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL} for hook in hooks})
    return folded.rebuilt_as(dtype)


@pytest.fixture(scope="session")
def model_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-NeoX with its tokenizer."""
    place = tmp_path_factory.mktemp("experiments") / "model"
    make_model(place)
    return place


@pytest.fixture(scope="session")
def single(model_place: Path):
    """It in float32."""
    return load_language_model(model_place, device="cpu")


@pytest.fixture(scope="session")
def double(model_place: Path):
    """It in float64, for finite differences."""
    model = load_language_model(model_place, device="cpu")
    model._model.double()
    model.dtype = torch.float64
    return model
