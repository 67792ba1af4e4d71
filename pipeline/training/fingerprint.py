"""What a training run's weights depend on: the name of its checkpoints' directory.

Two runs with one fingerprint end with the same bits on the same machine, so one may go on from the other's checkpoint, or
take over its end. The code counts too: after an edit of the trainer, an old end must not be mistaken for a new one.
"""

from __future__ import annotations

from typing import Any

import torch

from pipeline.norms.normalizer import Normalizer
from pipeline.params.dictionary_config import DictionaryConfig
from pipeline.stage_code import code_digest
from pipeline.training.checkpoints import CODE
from pipeline.training.source import StoreSource

# Fields of trainer that change what is written down, not what is learnt.
WITHOUT_INFLUENCE = ("log_frequency", "n_checkpoints", "checkpoint_schedule", "checkpoint_minutes")
# Fields of a dictionary's configuration that say what it is called and where it comes from.
NAMES = ("name", "sae_name", "sae_series", "provenance", "norms")
# Code of the stage that a step does not run: what draws the history, and the command line.
NOT_WEIGHTS = ("pipeline/extent.py", "pipeline/plots", "stages")


def describe_run(
    config: DictionaryConfig,
    initial_weights: str,
    normalizer: Normalizer,
    source: StoreSource,
    trainer: dict[str, Any],
    *,
    total_steps: int,
    determinism: bool,
    device: torch.device,
) -> dict[str, Any]:
    """All that changes the weights, as plain values; the checkpoints keep it, to name a difference.

    Args:
        config: of the dictionary.
        initial_weights: their digest.
        normalizer: with the norms in use.
        source: of the batches.
        trainer: the parameters of trainer.
        total_steps: T.
        determinism, device: as the run uses them.
    """
    norms = {hook: norm.to_dict() for hook, norm in normalizer.norms.items()}
    shape = {key: value for key, value in config.to_dict().items() if key not in NAMES}
    return {
        CODE: code_digest("train", NOT_WEIGHTS),
        "torch": torch.__version__,
        "device": device.type,
        "determinism": determinism,
        "dictionary": shape,
        "initial_weights": initial_weights,
        "norms": norms,
        "trainer": {key: value for key, value in trainer.items() if key not in WITHOUT_INFLUENCE},
        "total_steps": total_steps,
        "batches": {
            "store": source.store.content((*source.hooks_in, *source.hooks_out)),
            "batch_size": source.batch_size,
            "rows": list(source.rows),
            "buffer_rows": source.buffer_rows,
            "seed": source.seed,
            "dtype": str(source.dtype),
        },
    }
