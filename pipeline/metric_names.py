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
EVALUATION = (
    "fvu",
    "explained_variance",
    "l0_mean",
    "dead_fraction",
    "dense_fraction",
    "ce_original",
    "ce_spliced",
    "ce_zero",
    "ce_mean",
    "delta_ce",
    "loss_recovered_zero",
    "loss_recovered_mean",
    "kl",
    "pca_fvu",
    "pca_delta_ce",
)

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
