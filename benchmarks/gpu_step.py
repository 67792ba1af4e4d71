"""A step of the topk family made of the GPU kernels alone, without autograd and without waiting: what a CUDA graph can replay.

bfloat16 products and gathered rows, float32 weights, moments and sums. The encoder lies by feature, [F, D]. It is what
training should come near to; dictionaries are trained by pipeline/training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.kernels.gpu.accumulate import accumulate_rows, feature_runs
from pipeline.kernels.gpu.adam import adam_, bias_corrections
from pipeline.kernels.gpu.decode import decoding_error, values_gradient
from pipeline.kernels.gpu.select_batch import select_batch
from pipeline.kernels.gpu.select_rows import select_rows

HALF = torch.bfloat16


class SparseStep:
    """Weights, moments and one batch; a call trains on the batch once.

    Args:
        d, f, k, n_tokens: width, features, open features per token, tokens.
        gate: topk (with decoder norms in the gate) or batchtopk.
        device: of everything.
        dense: gradients of the weights by dense products.
    """

    def __init__(self, d: int, f: int, k: int, n_tokens: int, gate: str, device: torch.device, dense: bool = False) -> None:
        self.k, self.gate, self.n_tokens, self.dense = k, gate, n_tokens, dense
        self.x = torch.randn(n_tokens, d, device=device)
        self.W_D = torch.randn(f, d, device=device) * d**-0.5
        shapes = {"W_E": (f, d), "W_D": (f, d), "b_E": (f,), "b_D": (d,)}
        self.weights = {"W_E": self.W_D.clone(), "W_D": self.W_D, "b_E": torch.zeros(f, device=device)}
        self.weights["b_D"] = torch.zeros(d, device=device)
        self.copies = {name: weight.to(HALF) for name, weight in self.weights.items()}
        self.moments = {name: [torch.zeros(shape, device=device) for _ in range(2)] for name, shape in shapes.items()}
        self.lr = torch.full((), 1e-4, device=device)
        self.steps = torch.zeros((), device=device)
        self.since = torch.zeros(f, dtype=torch.int32, device=device)
        self.loss = torch.zeros((), device=device)
        self.row_tokens = torch.arange(n_tokens, device=device, dtype=torch.int32).repeat_interleave(k)
        self.row_offsets = torch.arange(n_tokens + 1, device=device, dtype=torch.int32) * k

    def _select(self, x16: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """index, values, tokens of the chosen entries, offsets of the tokens."""
        z = torch.addmm(self.copies["b_E"], x16, self.copies["W_E"].T)
        if self.gate == "topk":
            norms = torch.linalg.vector_norm(self.weights["W_D"], dim=1)
            index, values = select_rows(z, self.k, norms)
            return index.reshape(-1), values.reshape(-1), self.row_tokens, self.row_offsets
        flat, values, offsets = select_batch(z, self.k * self.n_tokens)
        n_features = z.shape[1]
        return (flat % n_features).int(), values, (flat // n_features).int(), offsets

    def gradients(self) -> dict[str, Tensor]:
        """Loss (kept in `loss`) and the gradient of every weight."""
        x16 = self.x.to(HALF)
        index, values, tokens, offsets = self._select(x16)
        values = values.float().clamp_min(0.0)
        g16, squares = decoding_error(
            values, index, offsets, self.copies["W_D"], self.weights["b_D"], self.x, 2 / self.n_tokens
        )
        self.loss.copy_(squares.mean())
        by_value = torch.where(values > 0, values_gradient(g16, index, offsets, self.copies["W_D"]), 0.0)
        fired = torch.zeros_like(self.since).scatter_reduce_(0, index.long(), (values > 0).int(), "amax")
        self.since.copy_(torch.where(fired > 0, 0, self.since + self.n_tokens))
        found = {"b_D": g16.sum(0, dtype=torch.float32)}
        if self.dense:
            flat = tokens.long() * len(self.since) + index
            f, by_z = (self._dense(entries, flat) for entries in (values, by_value))
            found |= {"W_D": product(f.T, g16), "W_E": product(by_z.T, x16), "b_E": by_z.sum(0, dtype=torch.float32)}
            return found
        runs = feature_runs(index, tokens, len(self.since))
        W_D, _ = accumulate_rows(values, g16, runs)
        W_E, b_E = accumulate_rows(by_value, x16, runs, with_bias=True)
        assert b_E is not None
        return {**found, "W_E": W_E, "W_D": W_D, "b_E": b_E}

    def _dense(self, values: Tensor, flat: Tensor) -> Tensor:
        found = torch.zeros(self.n_tokens * len(self.since), dtype=HALF, device=values.device)
        return found.scatter_(0, flat, values.to(HALF)).reshape(self.n_tokens, -1)

    def __call__(self) -> None:
        """One step."""
        gradients = self.gradients()
        self.steps += 1
        scalars = bias_corrections(self.lr, self.steps, (0.9, 0.999))
        for name, gradient in gradients.items():
            adam_(self.weights[name], gradient, *self.moments[name], scalars, copy=self.copies[name])


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b of bfloat16 matrices, in float32."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.device.type == "cuda" else a.float() @ b.float()


def dense_products(x16: Tensor, w16: Tensor, z16: Tensor) -> dict[str, Callable[[], Tensor]]:
    """What the entry-wise kernels stand against: the same sums as dense bfloat16 products."""
    return {
        "decode": lambda: z16 @ w16,
        "gradient of values": lambda: x16 @ w16.T,
        "gradient of a weight": lambda: product(z16.T, x16),
    }
