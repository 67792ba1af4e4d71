"""Evaluation of a dictionary on activations in memory, without a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.arguments import checked, whole
from pipeline.dictionaries.given import A_DICTIONARY
from pipeline.dictionaries.masks import check_padding, kept_tokens
from pipeline.errors import DataError
from pipeline.evaluation.decoder import decoder_metrics
from pipeline.evaluation.raw_space import own_norms, run_apart
from pipeline.evaluation.reconstruction import LabelMean, ReconstructionMetrics
from pipeline.evaluation.sparsity import SparsityMetrics
from pipeline.hooks import split, stacked
from pipeline.norms.exclusion import MASSIVE_FACTOR, NormLimits, median_norm

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary


@checked(dictionary=A_DICTIONARY, batch_size=whole(1))
@torch.no_grad()
def evaluate_reconstruction(
    dictionary: Dictionary,
    activations: Tensor | Mapping[str, Tensor],
    targets: Tensor | Mapping[str, Tensor] | None = None,
    *,
    mask: Tensor | None = None,
    padding: Tensor | None = None,
    batch_size: int = 4096,
) -> dict[str, float]:
    """Reconstruction, sparsity and decoder metrics on given activations.

    Nothing is normalised: pass raw activations to a folded dictionary and normalised ones to an unfolded one; the metrics
    are of the space that is passed.

    Massive tokens (pipeline/norms/exclusion.py) are told by the norms in a folded dictionary's configuration; at a hook point
    without a median there, and of other dictionaries, by 10 times the median norm of the kept activations that are given.

    Args:
        dictionary: any kind.
        activations: what it reads, [..., D] (several hook points: [B, L, D], or {hook point: [B, D]}; sequence dictionaries:
            [b, S, D]).
        targets: what it should write, in the same form with the same leading shape; None: the activations, of a dictionary
            that writes what it reads.
        mask: bool, True for a kept token: the leading shape of `activations` ([B] with several hook points). None: all.
        padding: of kinds that read sequences: bool [b, S], True for a position that holds no token, as in `Dictionary.codes`:
            left out of every metric and read by no other token. None: there are none.
        batch_size: rows of the first dimension at a time; matters to batch-dependent activation functions only.

    Returns:
        flat metrics, as documented at ReconstructionSums.results, SparsityMetrics.results and decoder_metrics, and
        massive_tokens, massive_fraction; with several written hook points also `<metric>.<hook>`, and of features of several
        layers L0, dead and dense ones of each.

    Raises:
        ParamsError: padding of a kind that reads each token by itself.
        DataError: shapes, a mask or padding that do not fit, a hook point that is not given, or no targets where needed.
        NumericsError: a non-finite value, or a metric that is undefined on this data.
    """
    activations, labels = _tensors(dictionary, activations, targets)
    mask = _kept(dictionary, activations, labels, mask, padding)
    massive = _massive(dictionary, activations, labels, mask)
    slices = _slices(len(activations), batch_size)
    reconstruction = ReconstructionMetrics.of(_label_means(dictionary, labels, mask, massive, slices))
    sparsity = SparsityMetrics(dictionary.feature_shape, dictionary.hooks_in)
    parameter = next(dictionary.parameters())
    for rows in slices:
        kept, padded, apart = (None if t is None else t[rows].to(parameter.device) for t in (mask, padding, massive))
        x = activations[rows].to(parameter.device, parameter.dtype)
        f, x_hat = run_apart(dictionary, x, kept, apart, padded)
        r, y = (split(t, dictionary.hooks_out) for t in (x_hat, labels[rows].to(parameter.device)))
        reconstruction.update(r, y, kept, f"rows from {rows.start}", massive=apart)
        sparsity.update(f, kept, apart)
    return {
        "evaluated_tokens": float(reconstruction.tokens),
        "massive_tokens": float(sparsity.massive_tokens),
        "massive_fraction": sparsity.massive_tokens / reconstruction.tokens,
        **reconstruction.results(),
        **sparsity.results(),
        **decoder_metrics(dictionary),
    }


def _slices(rows: int, batch_size: int) -> list[slice]:
    return [slice(start, start + batch_size) for start in range(0, rows, batch_size)]


def _massive(dictionary: Dictionary, activations: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor | None:
    """Which kept tokens are massive, bool in the mask's shape, on the activations' device; None: none is."""
    given = split(activations, dictionary.hooks_in) | split(labels, dictionary.hooks_out)
    limits = dict(NormLimits.massive(own_norms(dictionary)).limits) if dictionary.config.folded else {}
    for hook, x in given.items():
        if hook not in limits and (median := median_norm(x, mask)) is not None:
            limits[hook] = MASSIVE_FACTOR * median
    above = NormLimits(limits).above(given)
    if above is not None and mask is not None:
        above = above & mask.to(above.device)
    return above if above is not None and bool(above.any()) else None


def _label_means(
    dictionary: Dictionary, labels: Tensor, mask: Tensor | None, massive: Tensor | None, slices: Sequence[slice]
) -> dict[str, LabelMean]:
    """{written hook point: mean of its labels}."""
    means = {hook: LabelMean() for hook in dictionary.hooks_out}
    for rows in slices:
        kept, apart = (None if t is None else t[rows] for t in (mask, massive))
        for hook, label in split(labels[rows], dictionary.hooks_out).items():
            means[hook].update(label, kept, where=f"{hook}, rows from {rows.start}", massive=apart)
    return means


def _tensors(
    dictionary: Dictionary, activations: Tensor | Mapping[str, Tensor], targets: Tensor | Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Inputs and labels as the dictionary takes them; one tensor for both where the activations are both."""
    if targets is not None:
        return _tensor(activations, dictionary.hooks_in), _tensor(targets, dictionary.hooks_out)
    if dictionary.hooks_in != dictionary.hooks_out:
        written = ", ".join(dictionary.hooks_out)
        raise DataError(f"the dictionary writes {written}, not what it reads: give targets, which are None")
    labels = _tensor(activations, dictionary.hooks_out)
    return labels, labels


def _tensor(given: Tensor | Mapping[str, Tensor], hooks: Sequence[str]) -> Tensor:
    """As the dictionary takes it."""
    if isinstance(given, Tensor):
        return given
    if not isinstance(given, Mapping):
        raise DataError(f"expected a tensor, or tensors by hook point, got {type(given).__name__}; torch.as_tensor makes one")
    missing = [hook for hook in hooks if hook not in given]
    if missing:
        raise DataError(f"no activations of {', '.join(missing)} are given; there are {', '.join(given) or 'none'}")
    return stacked(given, hooks)


def _kept(
    dictionary: Dictionary, activations: Tensor, labels: Tensor, mask: Tensor | None, padding: Tensor | None
) -> Tensor | None:
    """The mask, without padded positions; everything is checked to be of the same tokens."""
    _check_shapes(dictionary, activations, labels, mask)
    check_padding(padding, activations, kind=dictionary.config.kind, reads_sequences=dictionary.reads_sequences)
    return mask if padding is None else kept_tokens(mask, padding)


def _check_shapes(dictionary: Dictionary, activations: Tensor, labels: Tensor, mask: Tensor | None) -> None:
    several = len(dictionary.hooks_in) > 1
    leading = activations.shape[:1] if several else activations.shape[:-1]
    for what, x, dims in (("activations", activations, dictionary.input_dims), ("targets", labels, 1)):
        if not x.is_floating_point() or x.ndim < 1 + dims:
            got = f"{str(x.dtype).removeprefix('torch.')} numbers of shape {list(x.shape)}"
            raise DataError(f"{what}: wanted floating-point numbers [rows, ..., width], got {got}")
    if activations.shape[-1] != dictionary.config.d_in or labels.shape[-1] != dictionary.config.d_out:
        raise DataError(
            f"the dictionary reads width {dictionary.config.d_in} and writes {dictionary.config.d_out}, got activations "
            f"{tuple(activations.shape)} and targets {tuple(labels.shape)}"
        )
    if mask is not None and mask.dtype != torch.bool:
        raise DataError(f"mask: wanted bool, True for a kept token, got {mask.dtype}; give mask.bool(), or mask > 0.5")
    if labels.shape[: len(leading)] != leading or (mask is not None and mask.shape != leading):
        raise DataError(
            f"activations, targets and mask are not of the same tokens: {tuple(activations.shape)}, "
            f"{tuple(labels.shape)}, {None if mask is None else tuple(mask.shape)}"
        )
