"""from_dictionary: a run starts from the weights of a dictionary that exists, and computes what that did (fine-tuning).

The dictionary may be a trained one or one of mode keep (it takes normalised activations, its norms are in its configuration),
or a folded one (it takes raw ones). With a, b the factors of this run's norm and a', b' those of the dictionary (1 if folded),
in float64, SPEC 4 the other way round:

    1. x - b_D as what is encoded becomes part of the encoder's biases, if it is not so on both sides
    2. what reads times a' / a, what writes over b' / b (`Dictionary.scale_activations_`)
    3. the gate. With z' = h s' the dictionary's gating values and z = h s this run's (s = n or 1), s' / s is 1 for all features
       where the norms of the hook points have changed by one factor. Thresholds become theta' s / s'. A gate of the topk family
       selects by z' still: where s' / s differs between features, without the decoder norm in the gate the encoder takes it
       (decoder rows over it), else it stays beside the weights as gate_scale
    4. the unit of each feature, on which nothing depends but the training: trained weights keep theirs, those of a folded
       dictionary get encoder weights as long as decoder rows (`_set_units_`); unit rows if trainer.decoder_constraint says so

Another gate than the dictionary's computes something else: jumprelu after one of the topk family has the threshold that gives
the dictionary's own L0 on a sample (SPEC 2.2), relu has none, and the topk family selects top_k of what jumprelu or relu
had: by z, without the decoder norm in the gate by z' over its threshold. The
norms token-wise and batch-wise are no factors: they stay as they are, or are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import dictionary_class
from pipeline.dictionaries.fold import CONSTANT_GATE, divisible
from pipeline.dictionaries.store import load_dictionary
from pipeline.errors import DataError, NumericsError, ParamsError
from pipeline.initialization.sample import Sample
from pipeline.memory import Need, require_memory
from pipeline.norms.normalizer import Normalizer
from pipeline.params.choices import NORMS_OF_THE_DATA
from pipeline.params.dictionary_config import DictionaryConfig
from pipeline.params.fields import as_written
from pipeline.params.kinds.fields import DictionaryFields

KEY = "initializer.from_dictionary"
EXACT = 1e-9  # relative error in float64 above which a start with the dictionary's own gate is refused
COPIES = 5  # of the weights in float64, held at once
# What fine-tuning may change: where activations come from and how the features are gated. All else is the dictionary's shape.
HOOKS = {"hook_point_in", "hook_point_out", "hook_points_in", "hook_points_out"}
OPTIONS = {"apply_b_dec_to_input", "crosscoder_norm", "top_k_of", "n_ctx"}
BESIDE = {"folded", "norms", "provenance"}
SHARED = {field.name for field in dataclasses.fields(DictionaryFields)} - {"kind", "use_decoder_bias"}
MAY_CHANGE = HOOKS | OPTIONS | BESIDE | SHARED
# A change of these says nothing of what is computed.
NAMES = {"name", "sae_name", "sae_series", "dtype", "use_triton_kernel", "sparsity_threshold_for_triton_spmm_kernel"}
UNSAID = BESIDE | NAMES | {"jumprelu_threshold_window"}
OF_FOLDED = {"norm_activation", "sparsity_include_decoder_norm", "apply_b_dec_to_input", "crosscoder_norm"}


class Start(NamedTuple):
    """A dictionary to begin a run with.

    Attributes:
        dictionary: takes activations that this run's norm has scaled.
        found: change, the relative difference of its reconstructions from those of the dictionary that it was made of, on a
            batch; l0, threshold: of thresholds that were set.
        words: what was taken and what has changed, in a line.
    """

    dictionary: Dictionary
    found: dict[str, float]
    words: str


def read_start(place: str | Path) -> Dictionary:
    """The dictionary to start from.

    Raises:
        DataError: nothing there that a format recognises, or it is damaged.
    """
    try:
        loaded = load_dictionary(place)
    except DataError as error:
        raise DataError([f"{KEY}: {fault}" for fault in error.faults]) from None
    return full_precision(loaded)


def full_precision(dictionary: Dictionary) -> Dictionary:
    """One of half precision in float32; any other as it is."""
    half = next(dictionary.parameters()).dtype not in (torch.float32, torch.float64)
    return dictionary.rebuilt_as(torch.float32) if half else dictionary


def check_start(source: Dictionary, wanted: DictionaryConfig, place: str | Path) -> None:
    """Refuse a dictionary of another shape, or one whose norm this run cannot take the place of; before any data is read.

    Raises:
        ParamsError: names every field that differs, with both values.
        DataError: it takes normalised activations and has no norms.
    """
    n_bytes = COPIES * torch.float64.itemsize * sum(parameter.numel() for parameter in source.parameters())
    require_memory(Need("the weights in float64", n_bytes, {"dictionary.expansion_factor": wanted.d_sae / wanted.d_in}))
    different = _differences(source.config, wanted)
    if different:
        raise ParamsError(
            f"{KEY}: {place} is of another shape: {'; '.join(different)}; state its values in the section dictionary (d_sae is "
            "set by expansion_factor), or take another dictionary"
        )
    old, new = source.config.norm_activation, wanted.norm_activation
    if old != new and {old, new} & set(NORMS_OF_THE_DATA):
        what = "takes raw activations" if source.config.folded else f"was trained with norm_activation {old}"
        kept = next(norm for norm in (old, new) if norm in NORMS_OF_THE_DATA)
        instead = "dataset-wise" if old != kept else old
        raise ParamsError(
            f"{KEY}: {place} {what}, and the factors of {kept} depend on the data, so that no weights with "
            f"dictionary.norm_activation {new} compute the same; write {instead}"
        )
    if not source.config.folded and source.config.norms is None:
        raise DataError(
            f"{KEY}: {place} takes normalised activations (norm_activation {old}), and its config.json has no norms; give the "
            "output of the stage train or fold, or fold it in Python: dictionary.fold(norms).save(path)"
        )


def needs_sample(source: Dictionary, wanted: DictionaryConfig) -> bool:
    """Whether thresholds have to be set on a sample: jumprelu after a gate that has none."""
    return wanted.gate.has_threshold and not source.activation.has_threshold


@torch.no_grad()
def started(
    source: Dictionary,
    config: DictionaryConfig,
    norms: Any,
    sample: Sample,
    *,
    place: str | Path,
    batch_rows: int,
    unit_rows: bool = False,
) -> Start:
    """The first dictionary of a run: what `source` computes, with this run's norm and gate.

    Args:
        source: passed by `check_start`.
        config: of the run's dictionary.
        norms: {hook point: norm} of this run's data.
        sample: raw activations; all of it is used for thresholds, else one batch.
        place: of `source`, for what is said.
        batch_rows: tokens of a training batch.
        unit_rows: decoder rows get unit length.

    Raises:
        NumericsError: the same gate does not compute the same to 1e-9 in float64, or no threshold gives the L0.
    """
    base, found = _with_thresholds(source, sample, batch_rows) if needs_sample(source, config) else (source, {})
    wide = _taken_over(base, config, norms, unit_rows)
    found["change"] = _change(source, wide, norms, sample.batch(batch_rows, wide.reads_sequences))
    if _same_gate(source.config, config) and not found["change"] <= EXACT:
        raise NumericsError(
            f"{KEY}: the start differs from {place} by {found['change']:.2e} (relative, in float64), allowed {EXACT}; are the "
            "weights there finite?"
        )
    return Start(wide.rebuilt_as(getattr(torch, config.dtype)), found, _words(source.config, config, place, found))


def _taken_over(source: Dictionary, config: DictionaryConfig, norms: Any, unit_rows: bool) -> Dictionary:
    """The dictionary of `config`, in float64, that computes what `source` does, but for the kind of gate."""
    made = source.rebuilt_as(torch.float64)
    keeps = getattr(config, "apply_b_dec_to_input", False) and getattr(made.config, "apply_b_dec_to_input", False)
    if not keeps:
        made = made.absorbed()
    old_scale = made.gating_scale(made.decoder_norms())
    old_scale = torch.ones_like(made.decoder_norms()) if old_scale is None else divisible(old_scale)
    ratio = 1.0 if made.config.folded else float(made.encoder_norms().mean() / divisible(made.decoder_norms()).mean())
    made.scale_activations_(*_factors(source.config, config, norms))
    wide = dictionary_class(config.kind)(dataclasses.replace(config, dtype="float64")).to(old_scale.device)
    weights = dict(made.state_dict())
    weights.pop("gate_scale", None)
    if not wide.activation.has_threshold:
        weights.pop("log_jumprelu_threshold", None)
    wide.load_weights_(weights)
    into_weights = None
    if wide.activation.budgeted and not config.sparsity_include_decoder_norm and not unit_rows:
        if made.activation.has_threshold:
            into_weights = old_scale / divisible(made.log_jumprelu_threshold.exp())
        elif made.activation.budgeted:
            into_weights = old_scale
    units = _set_units_(wide, ratio, into_weights, folded=made.config.folded, unit_rows=unit_rows)
    scale = wide.gating_scale(wide.decoder_norms())
    beside = old_scale / units / (1.0 if scale is None else divisible(scale))
    if wide.activation.has_threshold:
        wide.log_jumprelu_threshold.sub_(beside.log())
    varies = float(beside.max() - beside.min()) > CONSTANT_GATE * float(beside.max())
    if made.activation.budgeted and wide.activation.budgeted and varies:
        wide.gate_scale = beside
    if not keeps:
        wide.release_()
    return wide


def _with_thresholds(source: Dictionary, sample: Sample, batch_rows: int) -> tuple[Dictionary, dict[str, float]]:
    """The jumprelu form of a gate without thresholds, with its L0 on the sample; of relu half the smallest positive z there."""
    batches = list(_batches(sample, batch_rows, source))
    if source.activation.budgeted:
        converted, calibration = source.calibrated(batches)
        return converted, {"l0": calibration.l0_before, "tokens": calibration.n_tokens}
    smallest, n_active, n_tokens = torch.inf, 0, 0
    for x, mask in batches:
        codes = source.codes(x, mask)
        active = codes.f > 0
        smallest = min(smallest, float(torch.where(active, codes.z, torch.inf).min()))
        n_active += int(active.sum())
        n_tokens += active.shape[: active.ndim - len(source.feature_shape)].numel() if mask is None else int(mask.sum())
    if smallest == torch.inf:
        raise NumericsError(
            f"{KEY}: no feature is active on {n_tokens:,} sampled tokens; is it a dictionary of these activations?"
        )
    log_threshold = torch.full_like(source.decoder_norms(), smallest / 2).log()
    weights = {**source.state_dict(), "log_jumprelu_threshold": log_threshold}
    return source.rebuilt(weights, act_fn="jumprelu"), {"l0": n_active / n_tokens, "tokens": n_tokens}


def _set_units_(wide: Dictionary, ratio: float, scale: Tensor | None, *, folded: bool, unit_rows: bool) -> Tensor:
    """Choose the unit of each feature in place: its activation is multiplied, its decoder divided by it.

    The optimiser moves every weight by the same step, so that encoder weights and decoder rows should be about equally long, as
    the transposed start makes them.

    Args:
        wide: in this run's space.
        ratio: wanted mean length of encoder weights over that of decoder rows.
        scale: of `feature_shape`, what the gate must have in the encoder's weights; None: nothing.
        folded: the units were those of a folded dictionary: each feature is balanced by itself.
        unit_rows: decoder rows have unit length, whatever the ratio is then.

    Returns: the units, of `feature_shape`.
    """
    rows, columns = divisible(wide.decoder_norms()), divisible(wide.encoder_norms())
    units = torch.ones_like(rows)
    if unit_rows:
        units = rows
    elif scale is not None:
        units = scale
    elif folded:
        units = (rows / columns).sqrt()
    if not unit_rows:
        units = units * (ratio * (rows / units).mean() / (columns * units).mean()).sqrt()
    wide.scale_encoder_(units)
    wide.encoder_bias().mul_(units)
    wide.scale_decoder_(1.0 / units)
    return units


def _factors(old: DictionaryConfig, new: DictionaryConfig, norms: Any) -> tuple[list[float], list[float]]:
    """The factors of the dictionary's norm over this run's, of what is read and of what is written; 1 for those of the data."""
    if new.norm_activation in NORMS_OF_THE_DATA:
        return [1.0] * len(new.hooks_in), [1.0] * len(new.hooks_out)
    before, after = Normalizer(old, old.norms), Normalizer(new, norms)

    def ratios(old_hooks: tuple[str, ...], new_hooks: tuple[str, ...]) -> list[float]:
        return [float(before.factor(a)) / float(after.factor(b)) for a, b in zip(old_hooks, new_hooks, strict=True)]

    return ratios(old.hooks_in, new.hooks_in), ratios(old.hooks_out, new.hooks_out)


def _batches(sample: Sample, batch_rows: int, source: Dictionary) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Whole training batches of the sample (or all of a smaller one) as `source` takes them, and their masks."""
    normalizer, dtype = Normalizer(source.config, source.config.norms), next(source.parameters()).dtype
    n = max(1, batch_rows // sample.raw_x.shape[1]) if source.reads_sequences else batch_rows
    for first in range(0, max(len(sample) - n, 0) + 1, n):
        mask = None if sample.mask is None else sample.mask[first : first + n]
        yield normalizer.inputs(sample.raw_x[first : first + n].to(dtype), mask), mask


def _change(source: Dictionary, wide: Dictionary, norms: Any, batch: Sample) -> float:
    """Relative difference of the reconstructions of a raw batch, in float64."""
    x = batch.raw_x.double()

    def reconstruction(dictionary: Dictionary, known: Any) -> Tensor:
        normalizer = Normalizer(dictionary.config, known)
        made = dictionary.rebuilt_as(torch.float64)(normalizer.inputs(x, batch.mask), batch.mask)
        return made if dictionary.config.norm_activation in NORMS_OF_THE_DATA else normalizer.outputs(made)

    before, after = reconstruction(source, source.config.norms), reconstruction(wide, norms)
    if batch.mask is not None:
        before, after = before[batch.mask], after[batch.mask]
    return float((after - before).norm() / before.norm().clamp_min(1e-300))


def _same_gate(old: DictionaryConfig, new: DictionaryConfig) -> bool:
    """Whether both gates select the same features, given the same gating values."""
    same_k = not new.is_topk_family or (old.top_k, old.k_layers) == (new.top_k, new.k_layers)
    return old.act_fn == new.act_fn and same_k


def _differences(old: DictionaryConfig, new: DictionaryConfig) -> list[str]:
    """`field is old, wanted new` of what must be equal."""
    pairs: dict[str, tuple[Any, Any]] = {
        "hook points read": (len(old.hooks_in), len(new.hooks_in)),
        "hook points written": (len(old.hooks_out), len(new.hooks_out)),
        "writes what it reads": (old.hooks_in == old.hooks_out, new.hooks_in == new.hooks_out),
    }
    before, after = old.to_dict(), new.to_dict()
    if old.kind == new.kind:
        pairs |= {key: (before.get(key), after.get(key)) for key in after if key not in MAY_CHANGE}
    else:  # fields of one kind say nothing beside those of another
        pairs = {key: (before[key], after[key]) for key in ("kind", "d_in", "d_out", "d_sae")} | pairs
    return [f"{key} is {as_written(a)}, wanted {as_written(b)}" for key, (a, b) in pairs.items() if a != b]


def _words(old: DictionaryConfig, new: DictionaryConfig, place: str | Path, found: dict[str, float]) -> str:
    form = "folded" if old.folded else "kept" if "fold" in old.provenance else "trained"
    both_choose = old.is_topk_family and new.is_topk_family
    unsaid = UNSAID | (OF_FOLDED if old.folded else set()) | (set() if both_choose else {"top_k"})
    before, after = old.to_dict(), new.to_dict()
    changed = [
        f"{key} {_plain(before.get(key))} -> {_plain(after[key])}"
        for key in after
        if key in MAY_CHANGE - unsaid and before.get(key) != after[key]
    ]
    if "l0" in found:
        changed.append(f"thresholds for its L0 of {found['l0']:.4g}, set on {found['tokens']:,.0f} tokens")
    if new.is_topk_family and not old.is_topk_family:
        above = "above thresholds" if old.gate.has_threshold else "above 0"
        changed.append(f"the {new.top_k} largest in place of those {above}")
    change = found["change"]
    computes = "computes the same" if change <= EXACT else f"its reconstructions change by {change:.3g} (relative)"
    what = f"{form}, {old.kind}, {old.act_fn}, {old.d_sae:,} features"
    return f"weights of {place} ({what}); {', '.join(changed) or 'nothing changed'}; {computes}"


def _plain(value: Any) -> str:
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, (list, tuple)) else as_written(value)
