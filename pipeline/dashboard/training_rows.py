"""How a dictionary was made, in words and figures, from the provenance in its config.json and the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.files import is_number
from pipeline.provenance import section

if TYPE_CHECKING:
    from pipeline.params.schema import DatasetParams, Params

_DECODERS = {
    "initialize_lorsa_with_mhsa": "the model's own attention heads",
    "initialize_tc_with_mlp": "the MLP's responses to the encoder rows",
    "initialize_W_D_with_active_subspace": "decoder rows in the span of the top principal directions",
    "initialize_W_D_with_activations": "decoder rows are centred activations",
}
_BIASES = {
    "mean": "decoder bias the mean activation",
    "geometric_median": "decoder bias the geometric median of the activations",
}


def training_rows(config: Mapping[str, Any], params: Params | None = None) -> list[list[Any]]:
    """[name, value] of the training: figures or words, no times. Empty for a dictionary that was not trained here.

    Args:
        config: config.json of the inference dictionary.
        params: for what provenance does not hold: the data set and the norm of the training.
    """
    provenance = section(config, "provenance")
    training = section(provenance, "training")
    if not training:
        return []
    trainer = section(training, "trainer")
    rows: list[list[Any]] = [
        ["tokens", training.get("tokens")],
        ["steps", training.get("steps")],
        ["batch size (rows)", training.get("batch_size")],
        ["learning rate", trainer.get("lr")],
        ["schedule", trainer.get("lr_scheduler_name")],
        ["optimizer", trainer.get("optimizer")],
        ["seed", training.get("seed")],
    ]
    if params is not None:
        rows.append(["norm of activations", params.dictionary.norm_activation])
        rows.append(["data set", _text(params.dataset)])
    started = section(provenance, "initialization")
    if started:
        rows.append(["initialisation", initialization_words(started, config)])
    return [row for row in rows if row[1] is not None]


def _text(dataset: DatasetParams) -> str:
    """Where the text lies; of several sources each with its weight."""
    if dataset.sources is None:
        return dataset.dataset_name_or_path
    return ", ".join(
        f"{name}: {source.dataset_name_or_path} (weight {source.weight:g})" for name, source in dataset.sources.items()
    )


def initialization_words(started: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """`decoder rows are centred activations, encoder its transpose, decoder bias the mean activation`."""
    chosen = [words for key, words in _DECODERS.items() if started.get(key)]
    parts = [chosen[0] if chosen else "decoder rows drawn uniformly"]
    factor = started.get("init_encoder_with_decoder_transpose_factor")
    factor = factor if is_number(factor) and factor else 1.0
    reads, writes = ([config.get(f"hook_point_{side}"), config.get(f"hook_points_{side}")] for side in ("in", "out"))
    own = any(started.get(key) for key in ("initialize_lorsa_with_mhsa", "initialize_tc_with_mlp"))
    own = own or bool(started.get("initialize_W_D_with_activations") and any(writes) and reads != writes)
    if started.get("init_encoder_with_decoder_transpose") and not own:
        parts.append("encoder its transpose" + (f" times {factor:g}" if factor != 1.0 else ""))
    if started.get("grid_search_init_norm"):
        parts.append("decoder norm by grid search")
    if config.get("use_decoder_bias", True):
        parts.append(_BIASES.get(str(started.get("bias_init_method")), "decoder bias 0"))
    if started.get("init_encoder_bias_with_mean_hidden_pre"):
        parts.append("encoder bias makes the mean pre-activation 0")
    return ", ".join(parts)
