"""Trained weights + norms -> inference weights (SPEC 2.2 and 4).

  1. A batch-dependent gate becomes JumpReLU, its threshold set on calibration rows that were not trained on (TopK too, if
     asked). Thresholds that were steered to a target L0 are multiplied by the one factor that gives it on those rows.
  2. mode fold: activation and decoder norms go into the weights, which then take raw activations; checked in float64 on
     calibration rows. mode keep: the weights stay and carry their run-time norm.
  3. L0 before and after is measured on the same rows.

The algebra is each kind's own (Dictionary.fold); this module knows the dictionary interface only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.activations.schema import calibration_rows
from pipeline.contracts.sealing import Origin
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.formats.scopeline import CONFIG_FILE
from pipeline.dictionaries.saving import save_dictionary
from pipeline.dictionaries.store import load_dictionary, read_config
from pipeline.errors import NumericsError, ParamsError, unknown_name
from pipeline.hooks import stacked
from pipeline.memory import require_memory
from pipeline.norms.exclusion import NormLimits
from pipeline.norms.hook_norm import HookNorm
from pipeline.norms.normalizer import Normalizer
from pipeline.params.choices import FOLD_MODES

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.activations.interface import Activations
    from pipeline.params.schema import Params

EXACT = 1e-9  # relative error in float64 above which a fold is refused

Batch = tuple[Tensor, Tensor | None]


@dataclasses.dataclass(frozen=True)
class StoredBatches:
    """Raw calibration batches of a store, read anew at every pass, in the store's order.

    Attributes:
        store: open activations.
        hooks: the dictionary's hooks_in.
        rows: (first, last + 1).
        batch_size: rows per batch, as in training.
        limits: of the norms of tokens; those above are masked.

    Yields (x, mask): [B, d] or [B, T, d]; several hook points stacked, [B, L, d] or [B, T, L, d].
    """

    store: Activations
    hooks: tuple[str, ...]
    rows: tuple[int, int]
    batch_size: int
    limits: NormLimits = dataclasses.field(default_factory=NormLimits)

    @classmethod
    def of(
        cls, store: Activations, dictionary: Dictionary, norms: Mapping[str, HookNorm], rows: tuple[int, int], batch_size: int
    ) -> StoredBatches:
        """Those of a dictionary, without the tokens that are massive by `norms` at any of its hook points.

        Raises:
            ParamsError: the features of a batch cannot be held.
        """
        n_rows = max(0, min(batch_size, rows[1] - rows[0]))
        need = dictionary.need(n_rows * store.n_tokens // store.n_rows, batch_size)
        require_memory(need, device=next(dictionary.parameters()).device)
        hooks = (*dictionary.hooks_in, *dictionary.hooks_out)
        limits = NormLimits.massive({hook: norms[hook] for hook in hooks if hook in norms})
        return cls(store, dictionary.hooks_in, rows, batch_size, limits)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(self.rows[0], self.rows[1], self.batch_size):
            stop = min(start + self.batch_size, self.rows[1])
            found = self.store.read_together((*self.hooks, *self.limits.limits), start, stop)
            yield stacked(found, self.hooks), self.limits.kept(found, self.store.read_rows_meta(start, stop).mask)


@dataclasses.dataclass(frozen=True)
class FoldReport:
    """A fold's result.

    Attributes:
        dictionary: the inference form.
        figures: flat numbers and names for metrics/fold.json: mode, feature_units, act_fn_before, act_fn_after; with
            calibration rows also calibration_tokens, l0_before, l0_after (mean active features per kept token, trained
            gate and inference form), l0_relative_difference, relative_error (of the fold, in float64); after a
            conversion threshold (gating units), threshold_mean_of_minimum, threshold_quantile; with a target L0 target_l0,
        threshold_factor.
    """

    dictionary: Dictionary
    figures: dict[str, float | str]

    @property
    def l0_before(self) -> float | None:
        """Mean active features per token under the trained gate; None without calibration rows."""
        return self._number("l0_before")

    @property
    def l0_after(self) -> float | None:
        """The same of the inference form."""
        return self._number("l0_after")

    @property
    def threshold(self) -> float | None:
        """theta in gating units, where a gate was converted."""
        return self._number("threshold")

    def _number(self, name: str) -> float | None:
        value = self.figures.get(name)
        return None if value is None else float(value)


def fold_dictionary(
    dictionary: Dictionary,
    norms: Mapping[str, Any],
    *,
    mode: str = "fold",
    feature_units: str = "raw",
    calibration_batches: Iterable[Any] | None = None,
    convert_topk: bool = False,
    target_l0: float | None = None,
) -> FoldReport:
    """Make the inference form of a trained dictionary.

    Args:
        dictionary: unfolded.
        norms: {hook point: {mean_norm, mean_square, d} or mean_norm}.
        mode: `fold`, or `keep`: the dictionary goes on normalising at run time, with the norms in its configuration.
        feature_units: `raw` or `normalized`, see Dictionary.fold.
        calibration_batches: raw inputs [..., d_in], or pairs (input, mask [...]), not trained on, of the training batch
            size; gone through several times. Needed for a conversion.
        convert_topk: turn a per-token TopK gate into JumpReLU as well.
        target_l0: L0 (a layer) that the thresholds of a jumprelu dictionary are set to; None: they stay.

    Raises:
        ParamsError: unknown mode or units, a fold that is not possible, or a conversion without calibration rows.
        NumericsError: no positive gating value was kept on the calibration rows, or the fold is not exact.
    """
    if mode not in FOLD_MODES:
        raise ParamsError(f"fold.mode: {unknown_name('mode', mode, FOLD_MODES)}")
    if dictionary.config.folded:
        raise ParamsError("the dictionary is folded already (norm_activation: inference); fold the trained one")
    normalizer = Normalizer(dictionary.config, norms)
    plain = {hook: norm.to_dict() for hook, norm in normalizer.norms.items()}
    raw = _Batches(dictionary, [] if calibration_batches is None else calibration_batches, None)
    scaled = _Batches(dictionary, raw.batches, normalizer)
    converted, figures = _converted(dictionary, scaled, convert_topk, target_l0)
    if mode == "fold":
        result = converted.fold(plain, feature_units=feature_units)
        figures |= _checked(converted, plain, raw, feature_units)
    else:
        result = converted.rebuilt(converted.state_dict())
    figures |= _l0_figures(dictionary, scaled, result, raw if mode == "fold" else scaled)
    figures |= {"mode": mode, "act_fn_before": dictionary.config.act_fn, "act_fn_after": result.config.act_fn}
    figures["feature_units"] = feature_units if mode == "fold" else "normalized"
    provenance = {**dictionary.config.provenance, "fold": figures}
    result.config = dataclasses.replace(result.config, norms=plain, provenance=provenance)
    return FoldReport(result, figures)


class _Batches:
    """Calibration batches as a dictionary takes them: on its device, in its dtype, scaled by a normalizer if there is one."""

    def __init__(self, dictionary: Dictionary, batches: Iterable[Any], normalizer: Normalizer | None) -> None:
        self.batches = list(batches) if isinstance(batches, Iterator) else batches
        parameter = next(dictionary.parameters())
        self.device, self.dtype, self.normalizer = parameter.device, parameter.dtype, normalizer

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            x, mask = batch if isinstance(batch, tuple) else (batch, None)
            mask = None if mask is None else mask.to(self.device)
            x = x.to(self.device, self.dtype)
            yield x if self.normalizer is None else self.normalizer.inputs(x, mask), mask


def _converted(
    dictionary: Dictionary, scaled: _Batches, convert_topk: bool, target_l0: float | None
) -> tuple[Dictionary, dict[str, float | str]]:
    becomes = dictionary.is_batch_dependent or (convert_topk and dictionary.activation.budgeted)
    if not becomes and target_l0 is None:
        return dictionary, {}
    if next(iter(scaled), None) is None:
        what = "becomes jumprelu for inference" if becomes else "gets its thresholds for trainer.target_l0"
        raise ParamsError(
            f"fold.calibration_tokens: act_fn '{dictionary.config.act_fn}' {what}, which needs rows that were not trained "
            "on; give some"
        )
    if target_l0 is not None:
        steered, calibration = dictionary.with_l0(scaled, target_l0)
        return steered, {"target_l0": target_l0, "threshold_factor": calibration.threshold}
    converted, calibration = dictionary.calibrated(scaled)
    return converted, {
        "threshold": calibration.threshold,
        "threshold_mean_of_minimum": calibration.mean_of_minimum,
        "threshold_quantile": calibration.quantile,
    }


@torch.no_grad()
def _checked(dictionary: Dictionary, norms: Mapping[str, Any], raw: _Batches, feature_units: str) -> dict[str, float | str]:
    """Relative error of the folded reconstruction of the first calibration batch, all in float64."""
    first = next(iter(raw), None)
    if first is None:
        return {}
    x, mask = first[0].double(), first[1]
    wide = dictionary.rebuilt({name: tensor.double() for name, tensor in dictionary.state_dict().items()})
    normalizer = Normalizer(dictionary.config, norms)
    wanted = normalizer.outputs(wide(normalizer.inputs(x), mask))
    found = wide.fold(norms, feature_units=feature_units)(x, mask)
    error = float((found - wanted).norm() / wanted.norm().clamp_min(1e-300))
    if not error <= EXACT:
        raise NumericsError(
            f"fold: the folded dictionary differs from the trained one by {error:.2e} (relative, float64), allowed {EXACT}"
        )
    return {"relative_error": error}


def _l0_figures(before: Dictionary, scaled: _Batches, after: Dictionary, raw: _Batches) -> dict[str, float | str]:
    l0_before, n_tokens = mean_l0(before, scaled)
    if not n_tokens:
        return {}
    l0_after, _ = mean_l0(after, raw)
    difference = (l0_after - l0_before) / l0_before if l0_before else 0.0
    return {
        "calibration_tokens": n_tokens,
        "l0_before": l0_before,
        "l0_after": l0_after,
        "l0_relative_difference": difference,
    }


@torch.no_grad()
def mean_l0(dictionary: Dictionary, batches: Iterable[Batch]) -> tuple[float, int]:
    """Mean active features per kept token (all layers together), and the number of kept tokens."""
    active, n_tokens = 0, 0
    for x, mask in batches:
        f = dictionary.encode(x, mask)
        active += int((f != 0).sum())
        token_shape = f.shape[: f.ndim - len(dictionary.feature_shape)]
        n_tokens += token_shape.numel() if mask is None else int(mask.sum())
    return (active / n_tokens if n_tokens else 0.0), n_tokens


def fold_stored(
    params: Params,
    trained: Path,
    out: Path,
    store: Activations,
    measured: Mapping[str, HookNorm],
    inputs: Mapping[str, str | None],
) -> dict[str, Any]:
    """Fold a trained dictionary that was written by the train stage, and write its inference form.

    Args:
        params: of it alone.
        trained: its directory.
        out: that of the inference form.
        store: open activations, whose rows kept from training are read.
        measured: norms of their hook points.
        inputs: {what: digest} that it should have been made from.

    Returns: the figures of metrics/fold.json.

    Raises:
        DataError: it is not there, or was made from something else.
    """
    dictionary = load_dictionary(trained)
    made = Origin.of(dictionary.config.provenance).check(trained, "train", inputs)
    rows = calibration_rows(store, params.fold.calibration_tokens)
    report = fold_dictionary(
        dictionary,
        measured,
        mode=params.fold.mode,
        feature_units=params.fold.feature_units,
        calibration_batches=StoredBatches.of(store, dictionary, measured, rows, params.activations.batch_size),
        convert_topk=params.fold.convert_topk_to_jumprelu,
        target_l0=params.trainer.steered_l0,
    )
    save_dictionary(report.dictionary, out, Origin("fold", made.made_from).to_dict())
    return report.figures


def model_entity(place: Path) -> tuple[str, dict[str, Any], list[Path]]:
    """An inference dictionary as trackers list models: (name, what it is, files about it). Its weights stay where they are.

    Args:
        place: its directory.
    """
    config = read_config(place).to_dict()
    keys = ("kind", "act_fn", "top_k", "d_in", "d_sae", "hook_point_in", "hook_point_out", "hook_points_in", "hook_points_out")
    about = {key: config[key] for key in keys if config.get(key) is not None}
    return re.sub(r"[^\w-]", "_", str(config.get("name") or place.name)), about | {"weights": str(place)}, [place / CONFIG_FILE]
