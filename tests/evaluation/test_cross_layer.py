"""A cross-layer transcoder of the MLPs, against plain transformers runs: what is spliced, and the rank of its PCA baseline."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.raw_space import RawDictionary
from tests.evaluation import naive
from tests.evaluation.tiny import D_MODEL, N_LAYERS, held_out, principal_of, tiny_tokens

READS = tuple(f"blocks.{layer}.ln2.hook_out" for layer in range(N_LAYERS))
WRITES = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(N_LAYERS))


class Case:
    """A folded cross-layer transcoder over all layers of the tiny model, and runs of that by forward hooks alone."""

    def __init__(self, model: Any, module: nn.Module, **config: Any) -> None:
        self.model, self.module = model, module
        self.tokens = tiny_tokens()
        self.ids = torch.from_numpy(self.tokens.astype(np.int64))
        self.mask = self.ids != 0
        fields = {"hook_points_in": READS, "hook_points_out": WRITES, "d_in": D_MODEL, "d_sae": 64, "top_k": 4, **config}
        self.dictionary = build_dictionary({"kind": "clt", "act_fn": "topk", **fields}, seed=3).fold(2.0)
        _, self.inputs, self.outputs = self.run([])

    def run(self, written: list[int]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits with the reconstruction in place of some layers' MLP outputs; the MLPs' inputs and own outputs in that run."""
        seen: list[Tensor] = []
        outputs: list[Tensor] = []

        def read(_: nn.Module, args: object, x: Tensor) -> None:
            seen.append(x)

        def write(_: nn.Module, args: object, y: Tensor) -> Tensor:
            layer = len(outputs)
            outputs.append(y)
            if layer not in written:
                return y
            return torch.where(self.mask[..., None], naive_target(self.dictionary, seen), y)

        with ExitStack() as stack, torch.no_grad():
            for block in self.module.gpt_neox.layers:  # type: ignore[union-attr]
                stack.callback(block.post_attention_layernorm.register_forward_hook(read).remove)
                stack.callback(block.mlp.register_forward_hook(write).remove)
            logits = self.module(input_ids=self.ids, use_cache=False).logits
        return logits, seen, outputs

    def ce(self, written: list[int]) -> float:
        return naive.cross_entropy(self.run(written)[0].numpy(), self.tokens, self.mask.numpy())

    def evaluate(self) -> dict[str, float]:
        principal = {hook: principal_of(y[self.mask]) for hook, y in zip(WRITES, self.outputs, strict=True)}
        return Evaluator(self.model, RawDictionary(self.dictionary, {}), principal, held_out(self.tokens)).evaluate().metrics


def features(dictionary: Dictionary, layer: int, x: Tensor) -> Tensor:
    """The top k of relu(h) of a token and layer: gates of their own, so that later layers do not matter."""
    h = (x @ dictionary.W_E[layer] + dictionary.b_E[layer]).relu()  # type: ignore[index,operator]
    z = h if dictionary.gate_scale is None else h * dictionary.gate_scale[layer]
    chosen = z.topk(dictionary.config.top_k, dim=-1).indices
    return torch.zeros_like(h).scatter(-1, chosen, h.gather(-1, chosen))


def naive_target(dictionary: Dictionary, seen: list[Tensor]) -> Tensor:
    """x_hat of the layer whose input is the last one seen: sum over the layers so far."""
    target = len(seen) - 1
    parts = [features(dictionary, layer, x) @ dictionary.W_D[target][layer] for layer, x in enumerate(seen)]  # type: ignore[index]
    return sum(parts, start=dictionary.b_D[target])  # type: ignore[index,call-overload]


def test_every_layer_reads_what_the_splices_before_it_have_made(model: Any, module: nn.Module) -> None:
    """The MLPs' inputs are read and not written: they come from what the spliced run has captured, not from the run as it is."""
    case = Case(model, module)
    got = case.evaluate()
    spliced = case.ce([0, 1, 2])
    assert got["ce_original"] == pytest.approx(case.ce([]), rel=1e-6)
    assert got["ce_spliced"] == pytest.approx(spliced, rel=1e-6)
    assert got["delta_ce"] == pytest.approx(spliced - case.ce([]), rel=1e-4)
    for layer, hook in enumerate(WRITES):
        assert got[f"ce_spliced.{hook}"] == pytest.approx(case.ce([layer]), rel=1e-6), hook
    inputs = case.run([0, 1, 2])[1]
    assert torch.equal(inputs[0], case.inputs[0])
    for layer in (1, 2):  # or the test would not tell one run from the other
        assert float((inputs[layer] - case.inputs[layer])[case.mask].norm() / case.inputs[layer][case.mask].norm()) > 0.05


def test_the_rank_of_pca_is_the_mean_l0_of_a_layer(model: Any, module: nn.Module) -> None:
    case = Case(model, module)
    got = case.evaluate()
    with torch.no_grad():
        active = [(features(case.dictionary, layer, x)[case.mask] > 0).sum(-1) for layer, x in enumerate(case.inputs)]
    per_layer = float(torch.stack(active).double().mean())
    assert got["pca_rank"] == round(per_layer) == 4
    for hook, y in zip(WRITES, case.outputs, strict=True):
        centred = (y[case.mask] - y[case.mask].mean(0)).double()
        energy = torch.linalg.svdvals(centred).square()
        assert got[f"pca_fvu.{hook}"] == pytest.approx(float(energy[4:].sum() / energy.sum()), rel=1e-4)
