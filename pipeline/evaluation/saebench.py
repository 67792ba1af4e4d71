"""The core metrics under the names that SAEBench prints, so that its numbers can be laid beside these.

Source: SAEBench (Karvonen et al. 2025), sae_bench/evals/core. Where its formula depends on how the tokens were cut into
batches, the same quantity over all tokens at once is given: means by token, and one mean activation for the variance.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

GROUP = "saebench"
SAME = {
    "explained_variance": "explained_variance_legacy",
    "cossim": "cosine_similarity",
    "l2_norm_in": "l2_norm_in",
    "l2_norm_out": "l2_norm_out",
    "l2_ratio": "l2_ratio",
    "relative_reconstruction_bias": "relative_reconstruction_bias",
    "l0": "l0_mean",
    "l1": "l1_mean",
    "ce_loss_without_sae": "ce_original",
    "ce_loss_with_sae": "ce_spliced",
    "ce_loss_with_ablation": "ce_zero",
    "ce_loss_score": "loss_recovered_zero",
    "kl_div_with_sae": "kl",
    "kl_div_with_ablation": "kl_zero",
    "average_max_decoder_cosine_sim": "decoder_max_cosine_mean",
    "average_max_encoder_cosine_sim": "encoder_max_cosine_mean",
}


def saebench_core(metrics: Mapping[str, float], density: Tensor) -> dict[str, float]:
    """`saebench/<name>` of its core metrics.

    explained_variance: mean over tokens of 1 - ||x - r||^2 / ||x - mean||^2 (ours: explained_variance_legacy; the share of the
    whole variance, ours without a prefix, is another number). cossim, l2_norm_in, l2_norm_out, l2_ratio: means over tokens.
    relative_reconstruction_bias. l0, l1: mean number of active features, and mean sum of activations.
    ce_loss_without_sae, ce_loss_with_sae, ce_loss_with_ablation (zeros),
    ce_loss_score = (ablation - sae) / (ablation - without).
    kl_div_with_sae, kl_div_with_ablation, kl_div_score = (ablation - sae) / ablation.
    frac_alive: features active at least once. freq_over_1_percent, freq_over_10_percent: share of the features with such a
    density; normalized_freq_over_...: their share of all activations. average_max_decoder_cosine_sim,
    average_max_encoder_cosine_sim: mean over features of the largest cosine similarity of its decoder row (encoder column) with
    another one's; the latter of a dictionary with one encoder matrix only.
    Two things are Scopeline's own: ablation puts zeros at kept tokens only (SAEBench: everywhere, special tokens included), and
    cross entropies and KL count the predictions of kept tokens (SAEBench: those made at kept tokens; of KL the last one too).
    Its mse is left out: it divides by the number of tokens twice, and so depends on its batch size. What is
    undefined, such as the bias of a dead dictionary, is left out too.

    Args:
        metrics: of the evaluation.
        density: share of tokens on which each feature is active.
    """
    d = density.double().flatten()
    found = {name: metrics[ours] for name, ours in SAME.items() if ours in metrics}
    if metrics["kl_zero"]:
        found["kl_div_score"] = (metrics["kl_zero"] - metrics["kl"]) / metrics["kl_zero"]
    found["frac_alive"] = float((d > 0).double().mean())
    for percent in (1, 10):
        above = d > percent / 100
        found[f"freq_over_{percent}_percent"] = float(above.double().mean())
        found[f"normalized_freq_over_{percent}_percent"] = float(d[above].sum() / d.sum()) if bool(d.any()) else 0.0
    return {f"{GROUP}/{name}": value for name, value in found.items()}
