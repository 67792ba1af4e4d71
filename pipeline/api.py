"""The public functions: what a notebook imports. Importing them needs torch, numpy, safetensors and pyyaml only.

from pipeline.api import PROJECT, fit, load_dictionary, load_language_model, run_with_dictionaries, spliced

result = fit(activations, dictionary={"top_k": 32}, trainer={"total_training_tokens": 1_000_000})
features = result.inference.encode(activations)

model, sae = load_language_model("demo"), load_dictionary(PROJECT / "data/inference/main")
run = run_with_dictionaries(model, "Once upon a time", sae, ablate=[513], grad=True)
loss = model.loss("Once upon a time", replace=spliced(sae))

A path is relative to the working directory, as everywhere in Python. What lies in the project is at `PROJECT / "data/..."`,
wherever one works; the model `demo` and presets are found from everywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.activations.reader import ActivationStore
from pipeline.analysis.inspection import Inspection, inspect_text
from pipeline.analysis.labels import feature_labels
from pipeline.analysis.steering import Steering, steer
from pipeline.arguments import A_PATH, checked, of_kind, shown
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.dictionaries.given import A_DICTIONARY, one_or_several
from pipeline.dictionaries.masks import check_padding
from pipeline.dictionaries.store import load_dictionary as _load_dictionary
from pipeline.dictionaries.store import stored_dtype
from pipeline.errors import DataError, ParamsError
from pipeline.evaluation.in_memory import evaluate_reconstruction
from pipeline.experiments.attribution import Effect, FeatureAttribution, attribute, logit_difference
from pipeline.experiments.runs import DictionaryRun, ModelRun, run_with_dictionaries
from pipeline.experiments.splice import spliced
from pipeline.experiments.top_features import TopFeature, TopFeatures, top_features
from pipeline.files import CHECKOUT
from pipeline.interop.exporting import Export, export_dictionaries
from pipeline.interop.importing import import_from, is_foreign
from pipeline.lm.language_model import LanguageModel, Output
from pipeline.lm.loading import load_language_model
from pipeline.opening import open_activations
from pipeline.params.choices import NORMS_OF_THE_DATA
from pipeline.params.schema import LossParams, section_from_dict
from pipeline.streaming import ActivationStream, stream_activations, write_activations
from pipeline.training.fit import FitResult, fit
from pipeline.training.objective import LossReport, compute_loss
from pipeline.training.on_activations import train_dictionary, train_on_text

__all__ = [
    "PROJECT",
    "ActivationStore",
    "ActivationStream",
    "Dictionary",
    "DictionaryRun",
    "Effect",
    "Export",
    "FeatureAttribution",
    "FitResult",
    "Inspection",
    "LanguageModel",
    "LossReport",
    "ModelRun",
    "Output",
    "Steering",
    "TopFeature",
    "TopFeatures",
    "attribute",
    "build_dictionary",
    "evaluate_reconstruction",
    "export_dictionary",
    "feature_labels",
    "fit",
    "import_dictionary",
    "inspect_text",
    "load_dictionary",
    "load_language_model",
    "logit_difference",
    "loss",
    "open_activations",
    "run_with_dictionaries",
    "spliced",
    "steer",
    "stream_activations",
    "top_features",
    "train_dictionary",
    "train_on_text",
    "write_activations",
]

PROJECT: Path = CHECKOUT
"""The checkout that the package is installed from: `PROJECT / "data/inference/main"` is the pipeline's dictionary."""
A_TENSOR = of_kind(Tensor, "a tensor")


@checked(path=A_PATH)
def load_dictionary(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    trained: bool = False,
) -> Dictionary:
    """Read a dictionary that takes raw activations: one of data/inference, or a trained one, which is folded.

    Args:
        path: relative to the working directory (in the project: `PROJECT / "data/inference/main"`); written by
            `Dictionary.save` or by the pipeline, or of another format that is known (docs/interchange.md); of the
            hub as hf:user/repository/folder@revision.
        device: where the weights go.
        dtype: of the loaded weights; None: as saved (float32 or float64 where it is folded).
        trained: give a trained one as it is; it takes normalised activations (`dictionary.config.norms` has the norms).

    Raises:
        DataError: nothing there that a format recognises; a file is missing, truncated or altered; or a trained dictionary
            without norms, or one whose norm depends on the data, unless `trained` is asked for.
    """
    if is_foreign(path):
        return import_dictionary(path, device=device, dtype=dtype)
    loaded = _load_dictionary(path, device=device, dtype=dtype)
    if trained or loaded.config.folded:
        return loaded
    takes = f"{path}: takes normalised activations (norm_activation {loaded.config.norm_activation}, not folded)"
    if loaded.config.norm_activation in NORMS_OF_THE_DATA or loaded.config.norms is None:
        lacks = "has no norms to fold" if loaded.config.norms is None else "this norm depends on the data and cannot be folded"
        raise DataError(f"{takes}, and {lacks}; give trained=True and normalise what it takes")
    warnings.warn(f"{takes}; it was folded, so that it takes raw ones. trained=True gives it as it is", stacklevel=3)
    return loaded.fold(loaded.config.norms)


@checked(dictionary=one_or_several, path=A_PATH)
def export_dictionary(
    dictionary: Dictionary | Sequence[Dictionary],
    path: str | Path,
    format: str = "saelens",
    *,
    activations: Tensor | Sequence[Tensor] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Export:
    """Write a dictionary in the format of another tool, checked by a pass of that format over what was written.

    Args:
        dictionary: folded, or trained with a norm that can be folded; several for a format that holds sets.
        path: directory.
        format: saelens, ... (docs/interchange.md says what each holds).
        activations: raw ones as the dictionary takes them, to check on (of several: each one's); None: drawn ones.
        about: model_name, model_type, dataset_path, context_size, prepend_bos, where the dictionary does not say them.

    Returns: where it lies, and how far the format's own pass differs.

    Raises:
        ParamsError: no such format, or it cannot hold this dictionary, and why.
        DataError: something else lies at `path`.
        NumericsError: what was written computes something else; nothing is left there.
    """
    dictionaries = [dictionary] if isinstance(dictionary, Dictionary) else list(dictionary)
    given = [activations] if isinstance(activations, Tensor) else activations
    return export_dictionaries(dictionaries, path, format, activations=given, about=about)


@checked(path=A_PATH)
def import_dictionary(
    path: str | Path,
    format: str | None = None,
    *,
    hook_point_in: str | None = None,
    hook_point_out: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
) -> Dictionary:
    """Read a dictionary that another tool has written, as one of ours: folded, its features as that tool computes them.

    Args:
        path: directory, file, or hf:user/repository/folder@revision.
        format: None: told by the files.
        hook_point_in, hook_point_out: what it reads and writes, where the files do not say it.
        device: where the weights go.
        dtype: of the weights; None: float32.

    Raises:
        ParamsError: no such format.
        DataError: nothing that is known is there; it is damaged, contradicts itself, or has no counterpart here.
    """
    made = import_from(path, format, hook_point_in=hook_point_in, hook_point_out=hook_point_out).dictionary
    return made.to(device=device, dtype=stored_dtype(dtype))


@checked(dictionary=A_DICTIONARY, x=A_TENSOR, target=A_TENSOR, mask=A_TENSOR, dead=A_TENSOR)
def loss(
    dictionary: Dictionary,
    x: Tensor,
    target: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    dead: Tensor | None = None,
    padding: Tensor | None = None,
    **trainer: Any,
) -> LossReport:
    """The training loss of a batch, term by term (SPEC 5).

    Args:
        dictionary: unfolded.
        x: input [..., d_in], normalised.
        target: label [..., d_out], normalised; None: x, of a dictionary that writes what it reads.
        mask: bool [...], True for a kept token; None: all.
        dead: bool [F], the features that AuxK revives; None: none, and the term is 0.
        padding: of kinds that read sequences: bool [b, S], True for a position that holds no token, as in `codes`: left out of
            every term and read by no other token. None: there are none.
        trainer: fields of trainer that the loss depends on: sparsity_loss_type, l1_coefficient (taken without warm-up), p,
            tanh_stretch_coefficient, frequency_scale, l0_bandwidth, target_l0 and its mode, lp_coefficient,
            auxk_coefficient, k_aux, matryoshka_widths, amp_dtype. Those that are not given have the declared defaults.

    Returns: total, the weighted terms that it is the sum of, and the features.

    Raises:
        ParamsError: unknown or mistyped fields, a term that makes no sense for this dictionary, no target where one is due,
            padding of a kind that reads each token by itself.
        DataError: activations of another width; a target, mask, padding or dead features of another type or shape.
    """
    given = {"dictionary": dictionary.config, "trainer": trainer}
    params = section_from_dict(LossParams, given).trainer
    if target is None and dictionary.hooks_in != dictionary.hooks_out:
        raise ParamsError(f"loss: the dictionary writes {', '.join(dictionary.hooks_out)}, not what it reads: give target")
    _check_batch(dictionary, x, target, mask, dead)
    check_padding(padding, x, kind=dictionary.config.kind, reads_sequences=dictionary.reads_sequences)
    y, coefficient = x if target is None else target, params.l1_coefficient
    return compute_loss(dictionary, x, y, mask, params, l1_coefficient=coefficient, dead=dead, padding=padding)


def _check_batch(dictionary: Dictionary, x: Tensor, target: Tensor | None, mask: Tensor | None, dead: Tensor | None) -> None:
    """Refuse what is not of the same tokens, or of the dictionary's features."""
    dictionary.excluded(x, target)  # which refuses other widths
    tokens = x.shape[: x.ndim - dictionary.input_dims]
    for what, given, shape in (("mask", mask, tokens), ("dead", dead, torch.Size(dictionary.feature_shape))):
        if given is not None and (given.dtype != torch.bool or given.shape != shape):
            kind = str(given.dtype).removeprefix("torch.")
            raise DataError(f"loss: {what}: wanted bool of shape {list(shape)}, got {kind} of shape {list(given.shape)}")
    if target is not None and target.shape[: len(tokens)] != tokens:
        raise DataError(f"loss: target: wanted a label for each token of shape {list(tokens)}, got {shown(target)}")
