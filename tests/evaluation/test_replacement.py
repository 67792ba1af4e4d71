"""The replacement model and its attribution graphs, against a frozen model written out by hand in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.evaluation.attribution_graph import AttributionGraph, LinearRun, Nodes, active_nodes
from pipeline.evaluation.full_set import FullSet
from pipeline.evaluation.graph_scores import graph_scores
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.evaluation.replacement import ReplacementModel
from tests.evaluation.tiny import D_MODEL, N_LAYERS, held_out, principal_of, tiny_tokens

READS = tuple(f"blocks.{layer}.ln2.hook_out" for layer in range(N_LAYERS))
WRITES = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(N_LAYERS))
T = 7
F = 40
CENTRE = torch.eye(D_MODEL, dtype=torch.float64) - 1.0 / D_MODEL


def clt(**config: Any) -> Dictionary:
    fields = {"kind": "clt", "act_fn": "topk", "top_k": 3, "hook_points_in": READS, "hook_points_out": WRITES}
    return filled({**fields, **config})


def transcoders(**config: Any) -> list[Dictionary]:
    fields = {"kind": "transcoder", "act_fn": "relu", **config}
    return [filled({**fields, "hook_point_in": READS[i], "hook_point_out": WRITES[i]}, seed=i) for i in range(N_LAYERS)]


def filled(config: dict[str, Any], seed: int = 3) -> Dictionary:
    """Folded, with every weight drawn, so that biases and skip terms take part."""
    made = build_dictionary({**config, "d_in": D_MODEL, "d_sae": F}, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return made.fold(2.0).rebuilt_as(torch.float64)


class Layer(NamedTuple):
    """What is held of a block, for one context: pattern [H, T, T] and the norms' 1 / deviation [T, 1]."""

    block: Any
    pattern: Tensor
    first: Tensor
    second: Tensor


@dataclass
class Naive:
    """The tiny GPT-NeoX with patterns and deviations held, as sums and products."""

    module: nn.Module
    ids: Tensor
    layers: list[Layer] = field(default_factory=list)

    def __post_init__(self) -> None:
        body: Any = self.module.gpt_neox
        seen: dict[nn.Module, Tensor] = {}
        handles = [
            norm.register_forward_hook(lambda norm, args, out: seen.__setitem__(norm, args[0][0]))
            for block in body.layers
            for norm in (block.input_layernorm, block.post_attention_layernorm)
        ] + [body.final_layer_norm.register_forward_hook(lambda norm, args, out: seen.__setitem__(norm, args[0][0]))]
        with torch.no_grad():
            self.module.set_attn_implementation("eager")
            with patch("torch.nn.functional.softmax", in_its_dtype):
                out = self.module(input_ids=self.ids[None], use_cache=False, output_attentions=True)
            self.module.set_attn_implementation("sdpa")
        for handle in handles:
            handle.remove()
        self.logits, self.embedding = out.logits[0], body.embed_in(self.ids).detach()

        def deviation(norm: Any) -> Tensor:
            return 1 / (seen[norm].var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()

        for block, pattern in zip(body.layers, out.attentions, strict=True):
            norms = (deviation(block.input_layernorm), deviation(block.post_attention_layernorm))
            self.layers.append(Layer(block, pattern[0], *norms))
        self.last = deviation(body.final_layer_norm)

    @torch.no_grad()
    def run(self, embedding: Tensor, mlp: Callable[[int, Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        """What each MLP reads and what the unembedding reads, the MLPs' outputs given by layer and input."""
        x, reads = embedding, []
        for number, layer in enumerate(self.layers):
            a = normed(x, layer.block.input_layernorm, layer.first)
            reads.append(normed(x, layer.block.post_attention_layernorm, layer.second))
            x = x + attended(a, layer) + mlp(number, reads[-1])
        return reads, normed(x, self.module.gpt_neox.final_layer_norm, self.last)  # type: ignore[union-attr]

    def mlp(self, number: int, read: Tensor) -> Tensor:
        with torch.no_grad():
            return self.layers[number].block.mlp(read)


def in_its_dtype(x: Tensor, dim: int, dtype: object = None) -> Tensor:
    """transformers' own attention weights are rounded to float32."""
    return x.softmax(dim)


def normed(x: Tensor, norm: Any, deviation: Tensor) -> Tensor:
    return (x @ CENTRE) * deviation * norm.weight + norm.bias


def attended(a: Tensor, layer: Layer) -> Tensor:
    attention = layer.block.attention
    heads = len(layer.pattern)
    v = attention.query_key_value(a).view(len(a), heads, 3, -1)[:, :, 2]
    z = torch.einsum("hts,shd->thd", layer.pattern, v).reshape(len(a), -1)
    return attention.dense(z)


def features_of(dictionaries: list[Dictionary], reads: list[Tensor]) -> list[Tensor]:
    """[T, F] of each layer."""
    if len(dictionaries) == 1:
        f = dictionaries[0].encode(torch.stack(reads, dim=1)).detach()
        return [f[:, layer] for layer in range(N_LAYERS)]
    return [d.encode(x).detach() for d, x in zip(dictionaries, reads, strict=True)]


def decoder_row(dictionaries: list[Dictionary], layer: int, feature: int, target: int) -> Tensor:
    if len(dictionaries) == 1:
        blocks = dictionaries[0].W_D
        return blocks[target][layer, feature] if target >= layer else torch.zeros(D_MODEL, dtype=torch.float64)  # type: ignore[index,no-any-return]
    row = dictionaries[layer].W_D[feature]  # type: ignore[index]
    return row if target == layer else torch.zeros_like(row)


def encoder_column(dictionaries: list[Dictionary], layer: int, feature: int) -> Tensor:
    if len(dictionaries) == 1:
        return dictionaries[0].W_E[layer, :, feature]  # type: ignore[index,no-any-return]
    return dictionaries[layer].W_E[:, feature]  # type: ignore[index,no-any-return]


def reconstructions(dictionaries: list[Dictionary], reads: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        if len(dictionaries) == 1:
            d = dictionaries[0]
            x = torch.stack(reads, dim=1)
            y = d.reconstruct(d.encode(x), x)
            return [y[:, layer] for layer in range(N_LAYERS)]
        return [d.reconstruct(d.encode(x), x) for d, x in zip(dictionaries, reads, strict=True)]


def skipped(dictionaries: list[Dictionary], layer: int, x: Tensor) -> Tensor:
    skip = getattr(dictionaries[layer], "W_skip", None) if len(dictionaries) > 1 else None
    return torch.zeros_like(x) if skip is None else x @ skip.detach()


class Reference:
    """Every direct effect by central differences of the naive model, node by node, and the scores by a matrix inverse."""

    def __init__(self, module: nn.Module, ids: Tensor, dictionaries: list[Dictionary], replaced: Tensor) -> None:
        self.naive, self.dictionaries = Naive(module, ids), dictionaries
        naive = self.naive
        self.reads, self.end = naive.run(naive.embedding, naive.mlp)
        outputs = [naive.mlp(layer, read) for layer, read in enumerate(self.reads)]
        f = [part * replaced[:, None] for part in features_of(dictionaries, self.reads)]
        self.features = [(i, int(t), int(k)) for i in range(N_LAYERS) for t, k in f[i].nonzero().tolist()]
        errors = [(y - r) * replaced[:, None] for y, r in zip(outputs, reconstructions(dictionaries, self.reads), strict=True)]
        zero = torch.zeros(N_LAYERS, len(ids), D_MODEL, dtype=torch.float64)
        self.sources: list[tuple[Tensor, Tensor]] = []  # what a node adds to the MLPs' outputs and to the embedding
        for layer, t, k in self.features:
            added = zero.clone()
            for target in range(N_LAYERS):
                added[target, t] = f[layer][t, k] * decoder_row(dictionaries, layer, k, target).detach()
            self.sources.append((added, zero[0]))
        for layer in range(N_LAYERS):
            for t in range(len(ids)):
                added = zero.clone()
                added[layer, t] = errors[layer][t]
                self.sources.append((added, zero[0]))
        for t in range(len(ids)):
            embedding = zero[0].clone()
            embedding[t] = naive.embedding[t]
            self.sources.append((zero, embedding))
        p, tokens = naive.logits[-1].softmax(-1).sort(descending=True)
        n = min(10, 1 + int((p.cumsum(0) < 0.95).sum()))
        self.logits, self.probabilities = tokens[:n], p[:n]
        self.outputs = torch.stack(outputs)

    def read_by_targets(self, added: Tensor, embedding: Tensor) -> Tensor:
        """Of all features and logits what they read, with this added to what the run has."""
        naive = self.naive

        def mlp(layer: int, read: Tensor) -> Tensor:
            """The run's own output, but for the skip term, which follows its input."""
            moved = skipped(self.dictionaries, layer, read) - skipped(self.dictionaries, layer, self.reads[layer])
            return self.outputs[layer] + added[layer] + moved

        reads, end = naive.run(naive.embedding + embedding, mlp)
        W_U = naive.module.lm_head.weight.detach()  # type: ignore[union-attr]
        found = [reads[layer][t] @ encoder_column(self.dictionaries, layer, k).detach() for layer, t, k in self.features]
        found += [end[-1] @ (W_U[token] - W_U.mean(0)) for token in self.logits]
        return torch.stack(found)

    def adjacency(self) -> Tensor:
        """[features and logits, sources]."""
        columns = [(self.read_by_targets(a, e) - self.read_by_targets(-a, -e)) / 2 for a, e in self.sources]
        return torch.stack(columns, dim=1)

    def scores(self, effects: Tensor) -> tuple[float, float]:
        n, k, first = len(self.sources), len(self.logits), len(self.features)
        A = torch.zeros(n + k, n + k, dtype=torch.float64)
        A[:first, :n], A[n:, :n] = effects[:first].abs(), effects[first:].abs()
        shares = A / A.sum(1, keepdim=True).clamp_min(1e-10)
        p = torch.zeros(n + k, dtype=torch.float64)
        p[n:] = self.probabilities
        every = torch.linalg.inv(torch.eye(n + k, dtype=torch.float64) - shares)
        influence = p @ every - p
        errors = slice(first, first + N_LAYERS * T)
        tokens, missed = influence[errors.stop : n].sum(), influence[errors].sum()
        explained = 1 - shares[:, errors].sum(1)
        weight = influence + p
        return float(tokens / (tokens + missed)), float((weight * explained).sum() / weight.sum())


def case(exact: tuple[Any, nn.Module], dictionaries: list[Dictionary]) -> tuple[Reference, AttributionGraph]:
    """Both of one context; token 2 is not replaced."""
    model, module = exact
    ids = torch.from_numpy(tiny_tokens()[0, :T].astype(np.int64))
    replaced = torch.arange(T) != 2
    full = FullSet([RawDictionary(d, {}) for d in dictionaries], model)
    run = LinearRun(full, ids[None], copies=5)
    reference = Reference(module, ids, dictionaries, replaced)
    features = dict(enumerate(features_of(dictionaries, reference.reads)))
    errors = reference.outputs - torch.stack(reconstructions(dictionaries, reference.reads))
    return reference, AttributionGraph(full, run, active_nodes(full, run, features, errors, replaced))


def dense(graph: AttributionGraph) -> Tensor:
    rows = torch.zeros(graph.nodes.n_features + len(graph.logits), graph.n_sources, dtype=torch.float64)
    for part in graph.feature_rows():
        rows[part.targets] = part.effects
    for part in graph.logit_rows():
        rows[graph.nodes.n_features + part.targets] = part.effects
    return rows


@pytest.mark.parametrize("kind", ["clt", "transcoders", "skip transcoders"])
def test_effects_equal_finite_differences_and_scores_an_inverse(exact: Any, kind: str) -> None:
    dictionaries = [clt()] if kind == "clt" else transcoders(act_fn="topk", top_k=3, skip="skip" in kind)
    reference, graph = case(exact, dictionaries)
    named = torch.stack([graph.nodes.layers, graph.nodes.positions, graph.nodes.features], dim=1)
    assert [tuple(row) for row in named.tolist()] == reference.features
    assert len(reference.features) > 20
    assert graph.logits.tolist() == reference.logits.tolist()
    wanted = reference.adjacency()
    torch.testing.assert_close(dense(graph), wanted, rtol=1e-8, atol=1e-10)
    scores = graph_scores(graph)
    assert scores == pytest.approx(reference.scores(wanted), rel=1e-8)
    assert 0 < scores.replacement < 1
    assert 0 < scores.completeness < 1


def test_what_acts_on_a_feature_adds_up_to_what_it_is_without_biases(exact: Any) -> None:
    reference, graph = case(exact, [clt()])
    added = torch.stack([a for a, _ in reference.sources]).sum(0)
    embedding = torch.stack([e for _, e in reference.sources]).sum(0)
    zero = torch.zeros_like(added)
    whole = reference.read_by_targets(zero, zero[0]) - reference.read_by_targets(-added, -embedding)
    torch.testing.assert_close(dense(graph).sum(1), whole, rtol=1e-8, atol=1e-10)


def test_a_dictionary_without_errors_scores_one_and_one_without_features_what_tokens_give(exact: Any) -> None:
    reference, graph = case(exact, [clt()])
    without = Nodes(**{**vars(graph.nodes), "errors": torch.zeros_like(graph.nodes.errors)})
    assert graph_scores(AttributionGraph(graph.full, graph.run, without)) == pytest.approx((1.0, 1.0))
    alone = AttributionGraph(graph.full, graph.run, Nodes.errors_alone(reference.outputs))
    effects = dense(alone).abs()
    shares = effects / effects.sum(1, keepdim=True)
    p = graph.probabilities / graph.probabilities.sum()
    assert graph_scores(alone).replacement == pytest.approx(float(p @ shares[:, -T:].sum(1)))


def naive_figures(logits: Tensor, other: Tensor, ids: Tensor) -> dict[str, float]:
    """Token by token, over the predictions of tokens that are not special."""
    ce, kl, same = [], [], []
    for t in range(len(ids) - 1):
        if ids[t + 1] != 0:
            p, q = logits[t].log_softmax(-1), other[t].log_softmax(-1)
            ce.append(float(-q[ids[t + 1]]))
            kl.append(float((p.exp() * (p - q)).sum()))
            same.append(float(p.argmax() == q.argmax()))
    return {"ce": sum(ce), "kl": sum(kl), "top1": sum(same), "n": len(ce)}


@pytest.mark.parametrize("kind", ["clt", "transcoders"])
def test_runs_of_the_replacement_model_equal_naive_ones(exact: Any, kind: str) -> None:
    model, module = exact
    dictionaries = [clt()] if kind == "clt" else transcoders(act_fn="topk", top_k=3)
    tokens = tiny_tokens(3)
    acts = model.activations(torch.from_numpy(tokens.astype(np.int64)), list(WRITES))
    principal = {hook: principal_of(acts[hook][torch.from_numpy(tokens) != 0]) for hook in WRITES}
    full = FullSet([RawDictionary(d, {}) for d in dictionaries], model)
    found = ReplacementModel(full, principal, T).metrics(held_out(tokens, 2))
    sums: dict[str, float] = {}
    for row in torch.from_numpy(tokens.astype(np.int64)):
        kept, naive = (row != 0)[:, None], Naive(module, row)
        body: Any = module
        for end in ("", "_frozen", "_mean", "_zero"):
            seen: list[Tensor] = []

            def replaced(
                layer: int, read: Tensor, own: Tensor, end: str = end, seen: list[Tensor] = seen, kept: Tensor = kept
            ) -> Tensor:
                seen.append(read)
                if end in ("_mean", "_zero"):
                    value = principal[WRITES[layer]].mean * (end == "_mean")
                else:
                    padded = [*seen, *[torch.zeros_like(read)] * (N_LAYERS - len(seen))]
                    value = reconstructions(dictionaries, padded)[layer]
                return torch.where(kept, value, own)

            if end == "_frozen":
                _, last = naive.run(
                    naive.embedding, lambda layer, x, naive=naive, replaced=replaced: replaced(layer, x, naive.mlp(layer, x))
                )
                logits = body.lm_head(last).detach()
            else:
                logits = hooked(body, row, replaced)
            for name, value in naive_figures(naive.logits, logits, row).items():
                sums[f"{name}{end}"] = sums.get(f"{name}{end}", 0.0) + value
    for end in ("", "_frozen", "_mean", "_zero"):
        for figure in ("ce", "kl", "top1"):
            assert found[f"replacement_{figure}{end}"] == pytest.approx(sums[f"{figure}{end}"] / sums[f"n{end}"], rel=1e-6)
    assert found["replacement_kl"] != found["replacement_kl_frozen"]
    assert found["replacement_predictions"] == sums["n"]
    assert found["replacement_contexts"] == 3


def hooked(module: Any, ids: Tensor, replaced: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
    """Logits of transformers' own run with each MLP's output replaced."""
    handles = [
        block.mlp.register_forward_hook(lambda _, args, y, i=i: replaced(i, args[0][0], y[0])[None])
        for i, block in enumerate(module.gpt_neox.layers)
    ]
    try:
        with torch.no_grad():
            return module(input_ids=ids[None], use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
