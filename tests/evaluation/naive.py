"""Every metric once more, in numpy float64, all tokens at once and one loop at a time: what the tests compare with."""

from __future__ import annotations

import numpy as np


def reconstruction(x: np.ndarray, r: np.ndarray, massive: np.ndarray | None = None) -> dict[str, float]:
    """x, r: [n, D] kept labels and reconstructions of one hook point; massive: bool [n], None: none is.

    Without the median.
    """
    x, r = x.astype(np.float64), r.astype(np.float64)
    rest = np.ones(len(x), dtype=bool) if massive is None else ~massive
    of_rest = _plain(x[rest], r[rest])
    ordinary = {f"{name}_ordinary": of_rest[name] for name in ("fvu", "explained_variance", "zero_fvu")}
    return _plain(x, r) | ordinary


def normalized_error_q50(x: np.ndarray, r: np.ndarray, massive: np.ndarray | None = None) -> float:
    """Of the same; over all kept tokens, relative to the mean of those that are not massive."""
    x, r = x.astype(np.float64), r.astype(np.float64)
    rest = x if massive is None else x[~massive]
    mean = rest.mean(0)
    return float(np.median([np.sum((a - b) ** 2) / np.sum((a - mean) ** 2) for a, b in zip(x, r, strict=True)]))


def _plain(x: np.ndarray, r: np.ndarray) -> dict[str, float]:
    mean = x.mean(0)
    error = np.array([np.sum((a - b) ** 2) for a, b in zip(x, r, strict=True)])
    spread = np.array([np.sum((a - mean) ** 2) for a in x])
    fvu = error.sum() / spread.sum()
    return {
        "fvu": fvu,
        "zero_fvu": np.sum(x**2) / spread.sum(),
        "explained_variance": 1 - fvu,
        "explained_variance_legacy": float(np.mean(1 - error / spread)),
        "mse": error.mean(),
        "nmse": error.sum() / np.sum(x**2),
        "cosine_similarity": float(
            np.mean([a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(x, r, strict=True)])
        ),
        "l2_ratio": float(np.mean([np.linalg.norm(b) / np.linalg.norm(a) for a, b in zip(x, r, strict=True)])),
        "l2_norm_in": float(np.mean([np.linalg.norm(a) for a in x])),
        "l2_norm_out": float(np.mean([np.linalg.norm(b) for b in r])),
        "l2_norm_error": float(np.mean([np.linalg.norm(a - b) for a, b in zip(x, r, strict=True)])),
        "l2_norm_error_ratio": sum(np.linalg.norm(a - b) for a, b in zip(x, r, strict=True)) / sum(map(np.linalg.norm, x)),
        "relative_reconstruction_bias": np.mean(np.sum(r * r, 1)) / np.mean(np.sum(x * r, 1)),
    }


def sparsity(f: np.ndarray, massive: np.ndarray | None = None) -> dict[str, float]:
    """f: [n, F] features of kept tokens; massive: bool [n], None: none is."""
    f = f.astype(np.float64)
    rest = f if massive is None else f[~massive]
    l0 = (f > 0).sum(1)
    density = (f > 0).mean(0)
    results = {
        "l0_mean": l0.mean(),
        "dead_features": float((density == 0).sum()),
        "dead_fraction": float((density == 0).mean()),
        "dense_fraction": float((density > 0.1).mean()),
        "features_above_1e-1": float((density > 0.1).sum()),
        "features_above_1e-2": float((density > 0.01).sum()),
        "features_below_1e-5": float((density < 1e-5).sum()),
        "features_below_1e-6": float((density < 1e-6).sum()),
        "features_below_1e-7": float((density < 1e-7).sum()),
        "mean_activation_when_active": f[f > 0].mean(),
        "l1_mean": float(np.mean([sum(row) for row in f])),
        "l0_mean_ordinary": float(np.mean([sum(value > 0 for value in row) for row in rest])),
        "dead_fraction_ordinary": float(np.mean([not any(value > 0 for value in column) for column in rest.T])),
    }
    results.update({f"l0_q{round(100 * q):02d}": float(np.quantile(l0, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)})
    return results


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def cross_entropy(logits: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> float:
    """Mean over predictions of kept tokens at positions >= 1. logits [b, T, V], tokens and mask [b, T]."""
    log_p = log_softmax(logits)
    losses = [-log_p[b, t - 1, tokens[b, t]] for b in range(tokens.shape[0]) for t in range(1, tokens.shape[1]) if mask[b, t]]
    return float(np.mean(losses))


def kl(logits: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float:
    log_p, log_q = log_softmax(logits), log_softmax(other)
    values = [
        np.sum(np.exp(log_p[b, t - 1]) * (log_p[b, t - 1] - log_q[b, t - 1]))
        for b in range(mask.shape[0])
        for t in range(1, mask.shape[1])
        if mask[b, t]
    ]
    return float(np.mean(values))


def mean_largest_cosine(rows: np.ndarray) -> float:
    """rows: [F, D]. Mean over rows of the largest cosine similarity with another one."""
    unit = [row / np.linalg.norm(row) for row in rows.astype(np.float64)]
    return float(np.mean([max(a @ b for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]))


def saebench(
    x: np.ndarray, r: np.ndarray, f: np.ndarray, kl: tuple[float, float], ce: tuple[float, float, float]
) -> dict[str, float]:
    """SAEBench's core metrics of kept tokens: x, r [n, D], f [n, F]; KL and cross entropies in its order (without, with, zero).

    Those of the weights are not among them.
    """
    own = reconstruction(x, r)
    density = [float(np.mean(column > 0)) for column in f.T]
    found = {
        "explained_variance": own["explained_variance_legacy"],
        "cossim": own["cosine_similarity"],
        "l0": float(np.mean([(row > 0).sum() for row in f])),
        "l1": float(np.mean([row.astype(np.float64).sum() for row in f])),
        "ce_loss_without_sae": ce[0],
        "ce_loss_with_sae": ce[1],
        "ce_loss_with_ablation": ce[2],
        "ce_loss_score": (ce[2] - ce[1]) / (ce[2] - ce[0]),
        "kl_div_with_sae": kl[0],
        "kl_div_with_ablation": kl[1],
        "kl_div_score": (kl[1] - kl[0]) / kl[1],
        "frac_alive": sum(d > 0 for d in density) / len(density),
        **{name: own[name] for name in ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias")},
    }
    for percent in (1, 10):
        dense = [d for d in density if d > percent / 100]
        found[f"freq_over_{percent}_percent"] = len(dense) / len(density)
        found[f"normalized_freq_over_{percent}_percent"] = sum(dense) / sum(density)
    return {f"saebench/{name}": value for name, value in found.items()}
