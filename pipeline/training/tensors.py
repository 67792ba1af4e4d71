"""Activations in memory as the dictionary of a kind takes them: one tensor, or one of each hook point."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError, ParamsError, unknown_name
from pipeline.hooks import split
from pipeline.norms.exclusion import median_norm
from pipeline.norms.hook_norm import hook_norm
from pipeline.norms.statistics import ActivationStatistics
from pipeline.params.dictionary_kinds import KINDS, kind_fields
from pipeline.params.kinds.fields import DictionaryFields
from pipeline.params.kinds.several_hook_points import SeveralHookPointsFields
from pipeline.training.fit_params import Rows

Activations = Tensor | Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class TensorData:
    """Inputs and labels of the same tokens.

    Attributes:
        kind: of the dictionary.
        inputs: [N, d_in] or [n, T, d_in]; of several hook points [N, L, d_in] or [n, T, L, d_in].
        labels: the same with d_out; the very tensor `inputs` where input and label are one activation.
        names_in, names_out: of the hook points, where there are several; else empty.
        mask: bool [N] or [n, T], True for a kept token; None: all.
    """

    kind: str
    inputs: Tensor
    labels: Tensor
    names_in: tuple[str, ...] = ()
    names_out: tuple[str, ...] = ()
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def fields(self) -> type[DictionaryFields]:
        """Of the kind."""
        return kind_fields(self.kind)

    @property
    def token_dims(self) -> int:
        """1 where a row is a token, 2 where it is a context."""
        return self.inputs.ndim - (2 if self.names_in else 1)

    @property
    def tokens_per_row(self) -> int:
        """1, or the length of a context."""
        return 1 if self.token_dims == 1 else self.inputs.shape[1]

    @property
    def shape(self) -> Rows:
        """Number and kind of the rows."""
        return Rows(len(self), self.tokens_per_row, self.token_dims == 2)

    def rows(self, first: int, last: int) -> TensorData:
        """Rows from `first` to before `last`."""
        inputs = self.inputs[first:last]
        labels = inputs if self.labels is self.inputs else self.labels[first:last]
        mask = None if self.mask is None else self.mask[first:last]
        return dataclasses.replace(self, inputs=inputs, labels=labels, mask=mask)

    def without(self, above: Tensor | None) -> TensorData:
        """Without some tokens, bool [N] or [n, T]: rows are left out, tokens of contexts masked."""
        if above is None or not bool(above.any()):
            return self
        if self.token_dims == 2:
            return dataclasses.replace(self, mask=~above if self.mask is None else self.mask & ~above)
        inputs = self.inputs[~above]
        labels = inputs if self.labels is self.inputs else self.labels[~above]
        return dataclasses.replace(self, inputs=inputs, labels=labels)

    def config_fields(self) -> dict[str, Any]:
        """What the tensors say of the dictionary's configuration."""
        if not self.names_in:
            return {"kind": self.kind}
        return {"kind": self.kind, "hook_points_in": self.names_in, "hook_points_out": self.names_out}

    def norms(
        self, hooks_in: tuple[str, ...], hooks_out: tuple[str, ...], max_norm_factor: float | None
    ) -> dict[str, dict[str, Any]]:
        """{hook point: as HookNorm.to_dict}; the hook points in the dictionary's order.

        Args:
            hooks_in, hooks_out: names of what is read and written.
            max_norm_factor: activations.max_norm_factor; the median is that of all tokens.

        Raises:
            DataError: a value that is not finite, or no norm to normalise by.
        """
        found: dict[str, dict[str, Any]] = {}
        for hook, tensor in (split(self.inputs, hooks_in) | split(self.labels, hooks_out)).items():
            statistics = ActivationStatistics(tensor.shape[-1], "cpu", median_norm(tensor), max_norm_factor)
            statistics.update(tensor)
            if statistics.nonfinite:
                raise DataError(f"fit: {statistics.nonfinite} of the tokens at '{hook}' hold non-finite values")
            found[hook] = hook_norm(statistics).to_dict()
        return found


def joined(parts: Sequence[TensorData]) -> TensorData:
    """The rows of all parts, which are of one form; masks are completed where only some have one."""
    if len(parts) == 1:
        return parts[0]
    inputs = torch.cat([part.inputs for part in parts])
    labels = inputs if parts[0].labels is parts[0].inputs else torch.cat([part.labels for part in parts])
    mask = None
    if any(part.mask is not None for part in parts):
        kept = [torch.ones(part.inputs.shape[: part.token_dims], dtype=torch.bool, device=inputs.device) for part in parts]
        mask = torch.cat([one if part.mask is None else part.mask for one, part in zip(kept, parts, strict=True)])
    return dataclasses.replace(parts[0], inputs=inputs, labels=labels, mask=mask)


def read_tensors(activations: Activations, targets: Activations | None, kind: str | None) -> TensorData:
    """Check what `fit` is given.

    Args:
        activations: [N, D] or [n, T, D], or {name: such a tensor} of each of several hook points.
        targets: labels in the same form; None: the activations.
        kind: of the dictionary; None: sae, with targets transcoder; of several hook points crosscoder, with targets clt.

    Raises:
        ParamsError: unknown kind, a kind that takes another form, shapes that do not fit together.
    """
    several = isinstance(activations, Mapping)
    names = ("crosscoder", "clt") if several else ("sae", "transcoder")
    kind = names[targets is not None] if kind is None else kind
    if kind not in KINDS:
        raise ParamsError(f"dictionary.kind: {unknown_name('kind', str(kind), KINDS)}")
    fields = kind_fields(kind)
    takes_several = issubclass(fields, SeveralHookPointsFields)
    forms = {isinstance(part, Mapping) for part in (activations, targets) if part is not None}
    if forms != {takes_several}:
        wanted = "tensors by name, {hook point: [N, D]}," if takes_several else "one tensor"
        also = " and another such for targets" if targets is not None else ""
        raise ParamsError(f"fit: kind {kind} wants {wanted} for activations{also}")
    if targets is None and fields.WRITES_ELSEWHERE:
        raise ParamsError(f"fit: kind {kind} does not write what it reads: give targets, which are None")
    inputs = _whole(activations, "activations")
    labels = inputs if targets is None else _whole(targets, "targets")
    data = TensorData(kind, inputs, labels, _names(activations), _names(activations if targets is None else targets))
    if fields.READS_SEQUENCES and data.token_dims != 2:
        raise ParamsError(f"fit: kind {data.kind} reads contexts: activations should be [n, T, D], got {tuple(inputs.shape)}")
    dims = 2 if takes_several else 1
    if data.token_dims not in (1, 2) or labels.shape[:-dims] != inputs.shape[:-dims]:
        raise ParamsError(
            "fit: activations should be floating point [N, D] or [n, T, D] (of each hook point), and targets of the same "
            f"tokens; got {inputs.dtype} {tuple(inputs.shape)} and {tuple(labels.shape)}"
        )
    return data


def _names(given: Activations) -> tuple[str, ...]:
    return tuple(given) if isinstance(given, Mapping) else ()


def _whole(given: Activations, what: str) -> Tensor:
    """One tensor, of several hook points stacked before the last dimension."""
    parts = list(given.values()) if isinstance(given, Mapping) else [given]
    others = [type(part).__name__ for part in parts if not isinstance(part, Tensor)]
    if others:
        raise ParamsError(f"fit: {what} should be tensors, got {', '.join(others)}; torch.as_tensor makes one")
    shapes = sorted({tuple(part.shape) for part in parts})
    if len(shapes) != 1 or not all(part.is_floating_point() and part.ndim in (2, 3) for part in parts):
        found = ", ".join(f"{part.dtype} {tuple(part.shape)}" for part in parts) or "none"
        raise ParamsError(f"fit: {what} should be floating point [N, D] or [n, T, D], of every hook point alike; got {found}")
    return torch.stack(parts, dim=-2) if isinstance(given, Mapping) else given
