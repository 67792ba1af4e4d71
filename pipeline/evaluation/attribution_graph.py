"""The attribution graph of one prediction: direct effects in the local replacement model (SPEC 7).

The nodes of a context of T tokens are its active features, the errors of the reconstruction at each layer and token, the
tokens, and the likeliest next tokens (logits). In the frozen model (frozen.py) with the MLPs' outputs held, what a node reads
is linear in what others write, and

    A[t, s] = sum over layers j of  w_s[j] . d(e_t . x_t) / d mlp_out[j]     of a token: of hook_embed, w_s its embedding
    feature       e: its encoder column, x: what it reads;   w[j]: activation times decoder row
    error         w: mlp_out - reconstruction
    logit         e: its row of the unembedding, less the mean row, x: ln_final.hook_out of the last token

Effects run through the residual stream, attention's outputs under the held patterns, and skip terms, not through MLPs. Of
tokens that are not replaced (special or excluded ones) there are no features and no errors. Biases are no nodes.
Source: Ameisen et al. 2025, circuit tracing; the choice of logits is circuit-tracer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.evaluation.frozen import Frozen
from pipeline.evaluation.full_set import FullSet

MAX_LOGITS, LOGIT_PROBABILITY = 10, 0.95
LINEAR = 0.05  # relative difference of an activation from its pre-activation, in the model's dtype

END = "ln_final.hook_out"


class Rows(NamedTuple):
    """Some rows of the graph.

    Attributes:
        targets: int64 [n]: numbers of nodes of the kind.
        effects: [n, all nodes but logits], what the nodes add to each target.
    """

    targets: Tensor
    effects: Tensor


@dataclass(frozen=True)
class Nodes:
    """What writes, beside tokens: features in the order of layers, and errors.

    Attributes:
        layers, positions, features: int64 [n], of the active features.
        activations: [n].
        errors: [L, T, D].
    """

    layers: Tensor
    positions: Tensor
    features: Tensor
    activations: Tensor
    errors: Tensor

    @property
    def n_features(self) -> int:
        """n."""
        return len(self.layers)

    @classmethod
    def errors_alone(cls, errors: Tensor) -> Nodes:
        """Without features."""
        none = torch.zeros(0, dtype=torch.int64, device=errors.device)
        return cls(none, none, none, errors.new_zeros(0), errors)


class LinearRun:
    """The frozen model on copies of one context, each MLP's output held; differentiable in what is added to that.

    Args:
        full: the set, for what is read and for skip terms.
        tokens: int64 [1, T].
        copies: so many gradients are computed at once.

    Attributes:
        logits: [T, V] of the model as it is.
        embedded: [T, D], hook_embed.

    Raises:
        DataError: the model cannot be frozen.
    """

    def __init__(self, full: FullSet, tokens: Tensor, copies: int) -> None:
        self._full, model = full, full.model
        frozen = Frozen(model, tokens)
        found = model.activations(tokens, ["hook_embed", *full.hooks_in, *full.hooks_out])
        self.embedded, self.copies = found["hook_embed"][0], copies
        outputs = [found[hook] for hook in full.hooks_out]
        shape = (copies, *outputs[0].shape[1:])
        self._added = [output.new_zeros(shape, requires_grad=True) for output in outputs]
        self._embedding = found["hook_embed"].expand(shape).clone().requires_grad_()
        kept: dict[str, Mapping[str, Tensor]] = {}

        def held(layer: int) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
            def replace(captured: Mapping[str, Tensor], original: Tensor) -> Tensor:
                kept["run"] = captured
                skip = full.skip(layer, captured[full.hooks_in[layer]])
                value = outputs[layer].expand(shape) + self._added[layer]
                return value if skip is None else value + (skip - skip.detach()).to(value)

            return replace

        replace = frozen.replacements() | {hook: held(layer) for layer, hook in enumerate(full.hooks_out)}
        replace["hook_embed"] = lambda captured, original: self._embedding
        keep = dict.fromkeys((*full.hooks_in, *frozen.reads, END))
        logits = model.logits(tokens.expand(copies, -1), replace, capture=keep, gradient=True)
        self.logits = logits[0].detach()
        self._read = [kept["run"][hook] for hook in full.hooks_in]
        self._end = kept["run"][END]

    def reads(self, layer: int) -> Tensor:
        """What the features of a layer read, [T, D]."""
        return self._read[layer][0].detach()

    def gradients(self, vectors: Tensor, positions: Tensor, layer: int | None) -> tuple[list[Tensor], Tensor]:
        """Of vectors [n, D] times what is read at positions [n], by features of a layer or (None) by the unembedding.

        Args:
            vectors: as many as copies, or fewer.

        Returns: with respect to each MLP's output, of the layers below, [n, T, D] each; and to the embeddings, [n, T, D].
        """
        read = self._end if layer is None else self._read[layer]
        below = self._added[: self._full.n_layers if layer is None else layer]
        inject = torch.zeros_like(read)
        inject[torch.arange(len(vectors)), positions] = vectors.to(read)
        found = torch.autograd.grad(read, [*below, self._embedding], inject, retain_graph=True, allow_unused=True)
        every = [torch.zeros_like(self._embedding) if part is None else part for part in found]
        return [part[: len(vectors)] for part in every[:-1]], every[-1][: len(vectors)]


class AttributionGraph:
    """The graph of the prediction after a context, computed a few rows at a time.

    Args:
        full: the set.
        run: the frozen model on the context.
        nodes: what writes.

    Attributes:
        logits: int64 [k], the smallest set of next tokens, at most MAX_LOGITS, whose probabilities sum to LOGIT_PROBABILITY.
        probabilities: float64 [k].
    """

    def __init__(self, full: FullSet, run: LinearRun, nodes: Nodes) -> None:
        self.full, self.run, self.nodes = full, run, nodes
        self.n_positions = len(run.embedded)
        probabilities = run.logits[-1].double().softmax(-1)
        first, tokens = probabilities.topk(min(MAX_LOGITS, len(probabilities)))
        n = min(int((first.cumsum(0) < LOGIT_PROBABILITY).sum()) + 1, len(first))
        self.logits, self.probabilities = tokens[:n], first[:n]
        self._writers = [self._written(target) for target in range(full.n_layers)]

    @property
    def n_sources(self) -> int:
        """Nodes that write: features, errors [L, T], tokens [T], in this order."""
        return self.nodes.n_features + (self.full.n_layers + 1) * self.n_positions

    def logit_rows(self) -> Iterator[Rows]:
        """Of the logits, numbered from 0."""
        W_U = self.full.model.unembedding().W_U.detach()
        vectors = (W_U[self.logits] - W_U.mean(0)).to(self.run.embedded)
        yield from self._rows(torch.arange(len(vectors)), vectors, torch.full((len(vectors),), self.n_positions - 1), None)

    def feature_rows(self) -> Iterator[Rows]:
        """Of the features, those of the last layer first: what a row adds to comes after it."""
        for layer in reversed(range(self.full.n_layers)):
            targets = (self.nodes.layers == layer).nonzero().flatten()
            if len(targets):
                vectors = self.full.encoder_columns(layer, self.nodes.features[targets])
                yield from self._rows(targets, vectors, self.nodes.positions[targets], layer)

    def _rows(self, targets: Tensor, vectors: Tensor, positions: Tensor, layer: int | None) -> Iterator[Rows]:
        for start in range(0, len(targets), self.run.copies):
            some = slice(start, start + self.run.copies)
            outputs, embedding = self.run.gradients(vectors[some], positions[some], layer)
            yield Rows(targets[some], self._effects(outputs, embedding))

    def _effects(self, outputs: Sequence[Tensor], embedding: Tensor) -> Tensor:
        effects = embedding.new_zeros(len(embedding), self.n_sources)
        first, T = self.nodes.n_features, self.n_positions
        for j, gradient in enumerate(outputs):
            writers, rows = self._writers[j]
            for position in self.nodes.positions[writers].unique().tolist():
                here = self.nodes.positions[writers] == position
                effects[:, writers[here]] += gradient[:, position] @ rows[here].T
            effects[:, first + j * T : first + (j + 1) * T] = (gradient * self.nodes.errors[j].to(gradient)).sum(-1)
        effects[:, -T:] = (embedding * self.run.embedded).sum(-1)
        return effects

    def _written(self, target: int) -> tuple[Tensor, Tensor]:
        """Numbers of the features that write at a layer, and what they write there, [n, D]."""
        numbers, rows = [], []
        for layer in range(target + 1):
            own = (self.nodes.layers == layer).nonzero().flatten()
            found = self.full.decoder_rows(layer, self.nodes.features[own], target) if len(own) else None
            if found is not None:
                numbers.append(own)
                rows.append((found * self.nodes.activations[own, None].to(found)).to(self.run.embedded))
        if not numbers:
            return self.nodes.layers.new_zeros(0), self.run.embedded.new_zeros(0, self.run.embedded.shape[-1])
        return torch.cat(numbers), torch.cat(rows)


def active_nodes(full: FullSet, run: LinearRun, features: Mapping[int, Tensor], errors: Tensor, replaced: Tensor) -> Nodes:
    """The features that are active on the replaced tokens of a context, and the errors there.

    Args:
        features: {layer: [T, F]}.
        errors: [L, T, D].
        replaced: bool [T].

    Raises:
        DataError: an activation is not the encoder's output, so that no linear model says what it depends on.
    """
    parts = []
    for layer in range(full.n_layers):
        here = features[layer] * replaced[:, None]
        position, feature = here.nonzero(as_tuple=True)
        value = here[position, feature]
        h = full.pre_activations(layer, feature, run.reads(layer)[position])
        if len(value) and float((h - value).norm()) > LINEAR * float(value.norm()):
            raise DataError(f"features of {full.hooks_in[layer]} are no linear function of what is read, where they are active")
        parts.append((torch.full_like(position, layer), position, feature, value))
    layers, positions, numbers, values = (torch.cat(each) for each in zip(*parts, strict=True))
    return Nodes(layers, positions, numbers, values, errors * replaced[None, :, None])
