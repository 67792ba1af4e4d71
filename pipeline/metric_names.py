"""The names of metrics and of their groups.

A metric has a bare name in metrics/<stage>.json and in the history (`l0`), and `group/name` in MLflow (`train/l0`), whose
charts are sorted by group. A metric of one hook point has the hook point appended: `fvu.blocks.2.hook_resid_post`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# Group of each stage's metrics where it is not the stage's own name.
GROUPS = {"evaluate": "evaluation", "fold_norm": "fold", "compute_norm": "norm", "generate_activations": "generate"}

# What two runs are compared by, and the metrics that they are; of all groups MLflow shows the first of the alphabet first.
HEADLINE = {
    "core/L0": "l0_mean",
    "core/FVU": "fvu",
    "core/PCA FVU": "pca_fvu",
    "core/delta CE": "delta_ce",
    "core/PCA delta CE": "pca_delta_ce",
    "core/loss recovered": "loss_recovered_mean",
    "core/dead share": "dead_fraction",
}

# History of training: figures of one step's batch, of normalised activations.
STEP = "step"  # number of the step
TOKENS = "tokens"  # tokens trained on so far
MEMBER = "member"  # of a sweep, whose row it is: a name
LOSS = "loss"  # the sum of the weighted terms
L_REC = "l_rec"  # reconstruction error, summed over dimensions, mean over tokens
L0 = "l0"  # active features a token
EXPLAINED_VARIANCE = "explained_variance"  # 1 - FVU
LR = "lr"
TOP_K = "top_k"
L1_COEFFICIENT = "l1_coefficient"
MODEL_LOSS = "model_loss"  # of the steps that trainer.model_loss acts in: nats a prediction, mean over the batch
L2_NORM_ERROR = "l2_norm_error"  # length of the error, mean over tokens (and written hook points)
L2_NORM_ERROR_RATIO = "l2_norm_error_ratio"  # its mean / mean length of the labels
GRAD_NORM = "grad_norm"  # of all gradients but the thresholds', before clipping; with a parameter's name appended of its own
AUXK_DROPPED = "auxk_dropped"  # tokens that AuxK left out so far, since their error was not finite
DEAD_FEATURES = "dead_features"  # no activation for dead_threshold tokens

# metrics/norm.json: the kept tokens that the norm stage measured, each figure of one hook point.
NORM = {
    "mean_norm": "mean L2 norm of the tokens that are not massive, which dataset-wise normalises by",
    "median_norm": "median norm of the first 32,768 tokens, by which massive ones are told",
    "norm_q01": "1 % of all tokens are shorter",
    "norm_q50": "half of all tokens are shorter: the median of them all",
    "norm_q99": "99 % of all tokens are shorter",
    "norm_q999": "99.9 % of all tokens are shorter",
    "largest_norm": "norm of the longest token",
    "massive_norm": "norm above which a token is massive: activations.max_norm_factor (null: 10) times the median",
    "n_tokens": "tokens that are not massive",
    "n_massive": "massive tokens; without a hook point: massive at any that is stored",
    "massive_fraction": "share of all tokens that are massive",
    "n_excluded": "massive tokens left out everywhere: all of them, or none where activations.max_norm_factor is null",
    "massive_positions": "the commonest positions of massive tokens in their contexts: a list",
    "massive_tokens": "the commonest massive tokens: a list",
}

# metrics/evaluation.json (SPEC 7): held-out tokens, raw activations. x: what is reconstructed, r: its reconstruction.
# A quantile has _q05 to _q95 appended, the ends of a 95 % interval over documents _low and _high, and after that a figure of
# one hook point (of a pair, of a further model) its name: `l0_q50.blocks.2.hook_mlp_out`.
EVALUATION = {
    "Reconstruction": {
        "fvu": "fraction of variance unexplained: sum of squared errors / sum of squared distances from the mean; 0 is perfect",
        "fvu_massive_share": "share of the variance in fvu that massive tokens make up: above 0 quote fvu_ordinary",
        "explained_variance": "1 - FVU",
        "fvu_ordinary": "FVU of the tokens that are not massive, their mean in the place of that of all",
        "explained_variance_ordinary": "1 - fvu_ordinary",
        "normalized_error_q50": "squared error / squared distance from the mean of the tokens that are not massive: median "
        "over all tokens",
        "explained_variance_legacy": "mean over tokens of 1 - squared error / squared distance from the mean; older libraries",
        "mse": "squared error, summed over dimensions, mean over tokens",
        "nmse": "sum of squared errors / sum of squared activations",
        "cosine_similarity": "of x and r, mean over tokens",
        "l2_ratio": "length of r / length of x, mean over tokens",
        "l2_norm_in": "length of x, mean over tokens",
        "l2_norm_out": "length of r, mean over tokens",
        "l2_norm_error": "length of x - r, mean over tokens",
        "l2_norm_error_ratio": "its mean / mean length of x",
        "relative_reconstruction_bias": "sum of r^2 / sum of <x, r>; 1 is unbiased, below 1 is shrunken",
    },
    "Sparsity": {
        "l0_mean": "active features a token, mean over tokens",
        "l0_mean_ordinary": "the same over the tokens that are not massive",
        "l0": "active features a token, quantiles over tokens",
        "l1_mean": "sum of the activations, mean over tokens",
        "mean_activation_when_active": "mean of the activations above 0",
        "dead_features": "features that are active on no evaluated token",
        "dead_fraction": "share of the features that are active on no evaluated token",
        "dead_fraction_ordinary": "share of the features that are active on no token but massive ones",
        "dense_fraction": "share of the features that are active on more than 10 % of the tokens",
        "features_above_1e-1": "features that are active on more than 10 % of the tokens",
        "features_above_1e-2": "features that are active on more than 1 % of the tokens",
        "features_below_1e-5": "features that are active on less than one of 1e5 tokens",
        "features_below_1e-6": "features that are active on less than one of 1e6 tokens",
        "features_below_1e-7": "features that are active on less than one of 1e7 tokens",
    },
    "Language model": {
        "ce_original": "cross entropy of the language model as it is, nats a token",
        "ce_spliced": "the same with the reconstruction in the activation's place",
        "delta_ce": "ce_spliced - ce_original: what the reconstruction costs; 0 is perfect",
        "loss_recovered_zero": "(ce_zero - ce_spliced) / (ce_zero - ce_original); 1 is perfect",
        "loss_recovered_mean": "(ce_mean - ce_spliced) / (ce_mean - ce_original); 1 is perfect",
        "kl": "mean KL divergence of the spliced model's predictions from the model's own, nats",
    },
    "Baselines": {
        "zero_fvu": "FVU of zeros in the reconstruction's place (of the mean it is 1)",
        "zero_fvu_ordinary": "the same of the tokens that are not massive",
        "ce_zero": "cross entropy with zeros in the activation's place, nats a token",
        "ce_mean": "cross entropy with the mean activation in its place, nats a token",
        "kl_zero": "KL divergence with zeros in its place, nats",
        "pca_rank": "principal directions of the baseline: the rounded l0_mean_ordinary of a layer, or evaluation.pca_rank",
        "pca_fvu": "FVU of as many principal directions as the L0, the baseline of the same rank",
        "pca_fvu_ordinary": "the same of the tokens that are not massive",
        "pca_delta_ce": "cross entropy that they cost, nats a token",
    },
    "Replacement model": {
        "replacement_score": "share of the influence on the next token that comes from tokens through features, and not from "
        "errors, in the attribution graph of a set that replaces all MLPs; 1 is perfect",
        "completeness_score": "share of what acts on a node that is no error, mean over nodes by influence; 1 is perfect",
        "replacement_score_mean": "the same without features: an MLP's output less its mean is an error",
        "completeness_score_mean": "likewise",
        "replacement_score_zero": "the same without features: an MLP's whole output is an error",
        "completeness_score_zero": "likewise",
        "replacement_ce_original": "cross entropy of the language model as it is, on the contexts of these figures",
        "replacement_ce": "cross entropy with all MLPs replaced by the set at once, nats a token",
        "replacement_kl": "KL divergence of its predictions from the model's own, nats",
        "replacement_top1": "share of the predictions whose likeliest token is the model's own",
        "replacement_ce_frozen": "as replacement_ce, attention patterns and norms' denominators held as the model has them",
        "replacement_kl_frozen": "likewise",
        "replacement_top1_frozen": "likewise",
        "replacement_ce_mean": "with the mean activation in the place of all MLPs' outputs",
        "replacement_kl_mean": "likewise",
        "replacement_top1_mean": "likewise",
        "replacement_ce_zero": "with zeros in the place of all MLPs' outputs",
        "replacement_kl_zero": "likewise",
        "replacement_top1_zero": "likewise",
        "graph_features": "active features of an attribution graph, mean over graphs",
        "replacement_contexts": "contexts, and graphs, of these figures",
        "replacement_predictions": "predictions of these figures",
    },
    "Dictionary": {
        "decoder_max_cosine": "largest cosine similarity of a decoder row with another one, quantiles over features",
        "decoder_max_cosine_mean": "its mean over features",
        "encoder_max_cosine_mean": "the same of the encoder's columns, of a dictionary with one encoder matrix",
        "decoder_norm": "length of what a feature of activation 1 writes, quantiles over features",
        "threshold": "JumpReLU thresholds, quantiles over features",
        "written_norm": "length of what a feature of activation 1 writes at a hook point, quantiles over features",
        "written_share": "share of that in what it writes anywhere, each length relative to the mean activation there",
        "written_cosine": "cosine similarity of what a feature writes at two hook points, quantiles over features",
        "exclusive_fraction": "share of the features of which more than 0.9 is written at this hook point",
        "shared_fraction": "share of the features that write, and of which no hook point has more than 0.9",
    },
    "Names of SAEBench": {
        "saebench/explained_variance": "explained_variance_legacy",
        "saebench/cossim": "cosine_similarity",
        "saebench/l2_norm_in": "l2_norm_in",
        "saebench/l2_norm_out": "l2_norm_out",
        "saebench/l2_ratio": "l2_ratio",
        "saebench/relative_reconstruction_bias": "relative_reconstruction_bias",
        "saebench/l0": "l0_mean",
        "saebench/l1": "l1_mean",
        "saebench/ce_loss_without_sae": "ce_original",
        "saebench/ce_loss_with_sae": "ce_spliced",
        "saebench/ce_loss_with_ablation": "ce_zero",
        "saebench/ce_loss_score": "loss_recovered_zero",
        "saebench/kl_div_with_sae": "kl",
        "saebench/kl_div_with_ablation": "kl_zero",
        "saebench/kl_div_score": "(kl_zero - kl) / kl_zero",
        "saebench/frac_alive": "1 - dead_fraction",
        "saebench/freq_over_1_percent": "share of the features that are active on more than 1 % of the tokens",
        "saebench/freq_over_10_percent": "dense_fraction",
        "saebench/normalized_freq_over_1_percent": "their share of all activations: sum of their densities / sum of all",
        "saebench/normalized_freq_over_10_percent": "the same of the dense ones",
        "saebench/average_max_decoder_cosine_sim": "decoder_max_cosine_mean",
        "saebench/average_max_encoder_cosine_sim": "encoder_max_cosine_mean",
    },
    "Tokens": {
        "evaluated_contexts": "contexts of the held-out split",
        "evaluated_tokens": "their tokens without special ones",
        "evaluated_documents": "documents that they are of, which intervals draw again; a text file is one",
        "evaluated_files": "of these, text files that are stored in pieces",
        "massive_tokens": "evaluated tokens that are far longer than the median at a hook point that is read or written",
        "massive_fraction": "their share",
        "excluded_tokens": "massive tokens that activations.max_norm_factor leaves out: no run replaces their activation",
        "excluded_fraction": "their share",
        "predicted_tokens": "evaluated tokens that are predicted: cross entropies and KL are means over them",
    },
}
# metrics/sparse_probing.json (SPEC 8): balanced accuracies on test texts, means over labels; of one label its name is appended.
SPARSE_PROBING = {
    "accuracy_k1": "of a probe on the one feature whose mean differs most between a label and the others; k2, k5: on so many",
    "pca_accuracy_k1": "the same of principal directions of the activations",
    "channel_accuracy_k1": "the same of the activations' own dimensions",
    "dense_accuracy": "of a probe on all dimensions of the activations: what there is to be told",
    "labels": "labels that are probed for, each against the others",
    "texts": "texts of all labels",
    "train_examples": "contexts of the texts that probes are fitted to",
    "test_examples": "contexts of the other texts",
}
# metrics/ground_truth.json (SPEC 9): a dictionary that was trained on activations made of known features.
GROUND_TRUTH = {
    "mcc": "mean |cosine| of known directions and decoder rows, matched one to one; 1 is perfect",
    "mcc_chance": "the same of as many drawn rows",
    "recovery": "largest cosine similarity of a known direction with a decoder row, mean over directions",
    "recovered_fraction": "share of the directions for which it is above 0.9",
    "uniqueness": "directions that are the most similar one of some decoder row / decoder rows",
    "precision": "of a feature as a detector of its most similar direction, mean over features; a dead one has 0",
    "recall": "the same: share of the rows with the direction on which the feature is active",
    "f1": "2 rows with both / (rows with the feature + rows with the direction), mean over features",
    "true_l0": "known features a row",
    "l0_mean": "active features a row",
    "fvu": "fraction of variance unexplained, on rows that were not trained on",
    "explained_variance": "1 - FVU",
    "l2_ratio": "length of the reconstruction / length of the activation, mean over rows",
    "dead_fraction": "share of the features that are active on no row",
    "pca_fvu": "FVU of as many principal directions as the L0",
    "noise_fvu": "share of the variance that is noise: what no dictionary can explain",
    "tokens": "rows that were trained on",
}
DEFINITIONS = {name: about for group in EVALUATION.values() for name, about in group.items()}


def ordinary(metrics: Mapping[str, Any], key: str) -> str:
    """The key of what is shown first of a metric: over the tokens that are not massive; of an evaluation that has not told
    them the metric itself, over all.

    Args:
        metrics: as in metrics/evaluation.json.
        key: a metric, perhaps of one place, as `fvu.blocks.2.hook_mlp_out`.
    """
    name, dot, place = key.partition(".")
    found = f"{name}_ordinary{dot}{place}"
    return found if isinstance(metrics.get(found), int | float) else key


class MetricKey(NamedTuple):
    """What a key of metrics/evaluation.json says.

    Attributes:
        name: of DEFINITIONS.
        part: "q05" to "q95", "low" or "high"; "" for the figure itself.
        place: hook point, pair of hook points or model that it is of; "" for the whole.
    """

    name: str
    part: str
    place: str


def read_key(key: str) -> MetricKey | None:
    """Take a key apart; None if it has no definition."""
    stem, dot, place = key.partition(".")
    found = stem if stem in DEFINITIONS else _PART.sub("", stem)
    if found not in DEFINITIONS:
        return None
    return MetricKey(found, stem[len(found) + 1 :], place if dot else "")


MAX_KEY_LENGTH = 250
_PART = re.compile(r"_(q\d\d|low|high)$")
_REFUSED = re.compile(r"[^\w\-. :/]", re.ASCII)


def grouped(stage: str, name: str) -> str:
    """`group/name`, in the characters and the length that MLflow takes; a name that has a group already keeps it."""
    full = name if "/" in name else f"{GROUPS.get(stage, stage)}/{name}"
    return _REFUSED.sub("_", full)[:MAX_KEY_LENGTH]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("section.key", value) of nested sections, in order."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{key}.")
        else:
            yield key, value
