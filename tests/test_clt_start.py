"""initialize_tc_with_mlp through the stages: each layer of a cross-layer transcoder starts with the MLP of its own layer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPTNeoXForCausalLM

from pipeline.activations.schema import training_rows
from pipeline.dictionaries.store import load_dictionary
from pipeline.opening import open_activations
from tests.project import N_LAYERS, make_project

READS = [f"blocks.{layer}.ln2.hook_out" for layer in range(N_LAYERS)]
WRITES = [f"blocks.{layer}.hook_mlp_out" for layer in range(N_LAYERS)]


@torch.no_grad()
def test_rows_are_responses_of_the_models_mlp_of_the_layer(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project").set(
        dictionary__kind="clt",
        dictionary__hook_point_in=None,
        dictionary__hook_points_in=READS,
        dictionary__hook_points_out=WRITES,
        dictionary__apply_b_dec_to_input=False,
        initializer__initialize_W_D_with_activations=False,
        initializer__initialize_tc_with_mlp=True,
        initializer__cross_layer_decoders="zero",
    )
    project.run_all(until="initialize")
    made = load_dictionary(project.path / "data" / "initial" / "main")
    model = GPTNeoXForCausalLM.from_pretrained(project.path / "model", dtype=torch.float32).eval()
    store = open_activations(project.store)
    start, _ = training_rows(store, 256)
    for layer, hook in enumerate(READS):
        x = store.read(hook, start, start + 512).float()
        mean = x.mean(0)
        spread = (x - mean).square().sum(-1).mean().sqrt()
        e = torch.nn.functional.normalize(made.get_parameter("W_E")[layer], dim=0).T
        found = made.get_parameter(f"W_D.{layer}")[layer]
        likeness = []
        for other in range(N_LAYERS):
            mlp = model.gpt_neox.layers[other].mlp
            likeness.append(torch.nn.functional.cosine_similarity(mlp(mean + spread * e) - mlp(mean), found, dim=-1))
        assert float(likeness[layer].min()) > 1 - 1e-4
        assert float(likeness[1 - layer].mean()) < 0.7
