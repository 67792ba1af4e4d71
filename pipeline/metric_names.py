"""The names of metrics and of their groups.

A metric has a bare name in metrics/<stage>.json and in the history (`l0`), and `group/name` in MLflow (`train/l0`), whose
charts are sorted by group. A metric of one hook point has the hook point appended: `fvu.blocks.2.hook_resid_post`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Group of each stage's metrics where it is not the stage's own name.
GROUPS = {"evaluate": "evaluation", "fold_norm": "fold", "compute_norm": "norm", "generate_activations": "generate"}

# History of training: figures of one step's batch, of normalised activations.
STEP = "step"  # number of the step
TOKENS = "tokens"  # tokens trained on so far
LOSS = "loss"  # the sum of the weighted terms
L_REC = "l_rec"  # reconstruction error, summed over dimensions, mean over tokens
L0 = "l0"  # active features a token
EXPLAINED_VARIANCE = "explained_variance"  # 1 - FVU
LR = "lr"
TOP_K = "top_k"
L1_COEFFICIENT = "l1_coefficient"
GRAD_NORM = "grad_norm"
DEAD_FEATURES = "dead_features"  # no activation for dead_threshold tokens

# metrics/evaluation.json (SPEC 7): held-out tokens, raw activations.
EVALUATION = {
    "fvu": "fraction of variance unexplained: sum of squared errors / sum of squared distances from the mean; 0 is perfect",
    "explained_variance": "1 - FVU",
    "l0_mean": "active features a token, mean over tokens",
    "dead_fraction": "share of the features that are active on no evaluated token",
    "dense_fraction": "share of the features that are active on more than 10 % of the tokens",
    "ce_original": "cross entropy of the language model as it is, nats a token",
    "ce_spliced": "the same with the reconstruction in the activation's place",
    "ce_zero": "with zeros in its place",
    "ce_mean": "with the mean activation in its place",
    "delta_ce": "ce_spliced - ce_original: what the reconstruction costs; 0 is perfect",
    "loss_recovered_zero": "(ce_zero - ce_spliced) / (ce_zero - ce_original); 1 is perfect",
    "loss_recovered_mean": "(ce_mean - ce_spliced) / (ce_mean - ce_original); 1 is perfect",
    "kl": "mean KL divergence of the spliced model's predictions from the model's own, nats",
    "pca_fvu": "FVU of as many principal directions as the L0, the baseline of the same rank",
    "pca_delta_ce": "cross entropy that they cost, nats a token",
}

MAX_KEY_LENGTH = 250
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
