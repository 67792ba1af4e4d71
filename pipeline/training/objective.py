"""The loss of a batch: the plain sum of weighted terms (SPEC 5).

    total = l_rec + lambda * sparsity + alpha * auxk

Terms that are off are absent. Every term is a mean over kept tokens, in float32, outside autocast.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
from torch import Tensor

from pipeline.dictionaries.base import Codes, Dictionary
from pipeline.errors import ParamsError, unknown_name
from pipeline.losses.auxk import auxk_loss
from pipeline.losses.reconstruction import reconstruction_loss
from pipeline.losses.registry import SparsityInputs, sparsity_loss

RECONSTRUCTION = "l_rec"
AUXK = "auxk"
AMP_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class LossReport:
    """The loss of a batch, term by term.

    Attributes:
        total: scalar, differentiable; the sum of `terms`.
        terms: {name: weighted term}: l_rec, the sparsity loss by its name, auxk.
        unweighted: {name: the same before its coefficient}.
        features: f [..., F].
        codes, reconstruction: all stages of the encoding, and r [..., d_out].
        n_auxk_dropped: tokens that AuxK left out because their error was not finite.
    """

    total: Tensor
    terms: dict[str, Tensor]
    unweighted: dict[str, Tensor]
    features: Tensor
    codes: Codes
    reconstruction: Tensor
    n_auxk_dropped: Tensor


def autocast(device: torch.device, amp_dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to `amp_dtype`, or nothing for float32.

    Raises:
        ParamsError: unknown name.
    """
    if amp_dtype not in AMP_DTYPES:
        raise ParamsError(f"trainer.amp_dtype: {unknown_name('dtype', amp_dtype, AMP_DTYPES)}")
    dtype = AMP_DTYPES[amp_dtype]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def compute_loss(
    dictionary: Dictionary,
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    params: Any,
    *,
    l1_coefficient: float,
    top_k: int | None = None,
    dead: Tensor | None = None,
) -> LossReport:
    """The loss of a batch of normalised activations.

    Args:
        dictionary: unfolded.
        x, y: input and label, [..., d_in] and [..., d_out].
        mask: bool [...], True for a kept token; None: all.
        params: trainer's parameters (amp_dtype, sparsity_loss_type and its fields, auxk_coefficient, k_aux).
        l1_coefficient: lambda at this step.
        top_k: k at this step; None: the dictionary's.
        dead: bool of `feature_shape`, the dead features; None: AuxK is 0.
    """
    with autocast(x.device, params.amp_dtype):
        codes, r = dictionary.run(x, mask, top_k)
    unweighted = {RECONSTRUCTION: reconstruction_loss(r, y, mask)}
    terms = dict(unweighted)
    if params.sparsity_loss_type is not None:
        inputs = SparsityInputs(codes.f, codes.z, codes.norms, dictionary.thresholds(), mask)
        value = sparsity_loss(params.sparsity_loss_type)(inputs, params)
        unweighted[params.sparsity_loss_type] = value
        terms[params.sparsity_loss_type] = value * l1_coefficient
    dropped = torch.zeros((), dtype=torch.int64, device=x.device)
    if params.auxk_coefficient is not None:
        value = torch.zeros_like(unweighted[RECONSTRUCTION])
        # On the CPU looking is free and saves the work; elsewhere it would wait for the device, and the term is 0 anyhow.
        if dead is not None and (x.device.type != "cpu" or bool(dead.any())):
            with autocast(x.device, params.amp_dtype):
                e_hat = dictionary.decode_dead(codes.z, codes.h, dead, params.k_aux)
            value, dropped = auxk_loss(r, y, e_hat, dead, mask)
        unweighted[AUXK] = value
        terms[AUXK] = value * params.auxk_coefficient
    total = sum(terms.values(), start=torch.zeros((), dtype=terms[RECONSTRUCTION].dtype, device=x.device))
    return LossReport(total, terms, unweighted, codes.f, codes, r, dropped)
