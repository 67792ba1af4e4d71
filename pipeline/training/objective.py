"""The loss of a batch: the plain sum of weighted terms (SPEC 5).

    total = l_rec + lambda * sparsity + lambda_p * lp + alpha * auxk + rho * model_loss,  rho = l_rec / (4 model_loss)

With matryoshka_widths l_rec is the mean over the nested prefixes (Bussmann et al. 2025). Terms that are off are absent. Every
term is a mean over kept tokens, in float32, outside autocast.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline import metric_names as names
from pipeline.dictionaries.base import CONFIGURED, Dictionary, Gate
from pipeline.dictionaries.codes import Codes
from pipeline.dictionaries.masks import kept_tokens
from pipeline.errors import ParamsError, unknown_name
from pipeline.losses.auxk import auxk_loss
from pipeline.losses.pre_act import pre_act_loss
from pipeline.losses.reconstruction import reconstruction_loss
from pipeline.losses.sparsity_losses import SparsityInputs, sparsity_loss
from pipeline.losses.through_model import with_gradient
from pipeline.params.losses import SPARSITY_LOSSES
from pipeline.params.sections.trainer import TrainerParams
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.shares import resolve_share

RECONSTRUCTION = "l_rec"
PRE_ACT = "lp"
AUXK = "auxk"
MODEL_LOSS_SHARE = 0.25  # what the loss through the language model counts, of l_rec (measured: docs/fine-tuning.md)
AMP_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelLoss(NamedTuple):
    """The loss through the language model of a step, of which this is one process's part.

    Attributes:
        of: a reconstruction of the part -> the loss of the whole step, and its gradient in that reconstruction.
        weight: of the part in the step, by which its loss is multiplied.
        rows: over the processes that have the other parts.
    """

    of: Callable[[Tensor], tuple[Tensor, Tensor]]
    weight: float | Tensor = 1.0
    rows: Reductions = ONE_PROCESS

    def term(self, r: Tensor, l_rec: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, differentiable, and rho.

        Args:
            r: the part's reconstruction. l_rec: its reconstruction error.
        """
        value, gradient = self.of(r.detach())
        (l_rec,) = self.rows.sum([l_rec.detach() * self.weight])
        tiny = torch.finfo(value.dtype).tiny
        # Where the part keeps no token, none is replaced and the gradient is 0.
        weight = torch.as_tensor(self.weight, dtype=gradient.dtype, device=gradient.device).clamp_min(tiny)
        return with_gradient(r, value, gradient / weight), MODEL_LOSS_SHARE * l_rec / value.clamp_min(tiny)


@dataclasses.dataclass(frozen=True, repr=False)
class LossReport:
    """The loss of a batch, term by term.

    Attributes:
        total: scalar, differentiable; the sum of `terms`.
        terms: {name: weighted term}: l_rec, the sparsity loss by its name (l0: l0_loss), lp, auxk, model_loss.
        unweighted: {name: the same before its coefficient}.
        codes, reconstruction: all stages of the encoding, and r [..., d_out].
        n_auxk_dropped: tokens that AuxK left out because their error was not finite.
    """

    total: Tensor
    terms: dict[str, Tensor]
    unweighted: dict[str, Tensor]
    codes: Codes
    reconstruction: Tensor
    n_auxk_dropped: Tensor

    def __repr__(self) -> str:
        terms = ", ".join(f"{name} {float(term.detach()):.4g}" for name, term in self.terms.items())
        return f"LossReport(total {float(self.total.detach()):.4g}: {terms})"


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
    params: TrainerParams,
    *,
    l1_coefficient: float | Tensor,
    gate: Gate = CONFIGURED,
    dead: Tensor | Callable[[Codes], Tensor] | None = None,
    step_statistic: Tensor | None = None,
    padding: Tensor | None = None,
    model_loss: ModelLoss | None = None,
) -> LossReport:
    """The loss of a batch of normalised activations.

    Args:
        dictionary: unfolded.
        x, y: input and label, [..., d_in] and [..., d_out].
        mask: bool [...], True for a kept token; None: all.
        params: trainer's parameters (amp_dtype, sparsity_loss_type and its fields, lp_coefficient, auxk_coefficient, k_aux,
            matryoshka_widths).
        l1_coefficient: lambda at this step.
        gate: what the step uses in place of the configured gate.
        dead: bool of `feature_shape`, the dead features, or what gives it for the batch's codes; None: AuxK is 0.
        step_statistic: for a micro-batch, the whole step's value of what the sparsity loss is not linear in.
        padding: bool [...], True for a position that holds no token: masked, and read by none; None: there are none.
        model_loss: of the reconstruction, to be weighed so that it counts a quarter of l_rec; None: there is none.
    """
    mask = mask if padding is None else kept_tokens(mask, padding)
    codes, reconstructions = _forward(dictionary, x, mask, params, gate, padding)
    r = reconstructions[-1]
    parts = [reconstruction_loss(part, y, mask) for part in reconstructions]
    unweighted = {RECONSTRUCTION: torch.stack(parts).mean() if len(parts) > 1 else parts[0]}
    terms = dict(unweighted)
    if params.sparsity_loss_type is not None:
        inputs = _sparsity_inputs(dictionary, codes, mask, step_statistic)
        value = sparsity_loss(params.sparsity_loss_type)(inputs, params)
        name = SPARSITY_LOSSES.get(params.sparsity_loss_type).metric or params.sparsity_loss_type
        unweighted[name] = value
        terms[name] = value * l1_coefficient
    if params.lp_coefficient is not None:
        inputs = _sparsity_inputs(dictionary, codes, mask, step_statistic)
        value = pre_act_loss(inputs, dictionary.config.sparsity_include_decoder_norm)
        unweighted[PRE_ACT] = value
        terms[PRE_ACT] = value * params.lp_coefficient
    dropped = torch.zeros((), dtype=torch.int64, device=x.device)
    if params.auxk_coefficient is not None:
        value = torch.zeros_like(unweighted[RECONSTRUCTION])
        dead = dead(codes) if callable(dead) else dead
        some = None if dead is None else dictionary.feature_group.any(dead.any())
        if dead is not None and some is not None and bool(some):
            with autocast(x.device, params.amp_dtype):
                e_hat = dictionary.decode_dead(codes.z, codes.h, dead, params.k_aux)
            value, dropped = auxk_loss(r, y, e_hat, some, mask)
        unweighted[AUXK] = value
        terms[AUXK] = value * params.auxk_coefficient
    if model_loss is not None:
        value, rho = model_loss.term(r, unweighted[RECONSTRUCTION])
        unweighted[names.MODEL_LOSS] = value
        terms[names.MODEL_LOSS] = value * rho
    total = sum(terms.values(), start=torch.zeros((), dtype=terms[RECONSTRUCTION].dtype, device=x.device))
    return LossReport(total, terms, unweighted, codes, r, dropped)


def _forward(
    dictionary: Dictionary, x: Tensor, mask: Tensor | None, params: TrainerParams, gate: Gate, padding: Tensor | None
) -> tuple[Codes, list[Tensor]]:
    """The codes and the reconstructions that are compared with the label, the whole one last."""
    if params.sparsity_loss_type == "l0":
        gate = gate._replace(window=params.l0_bandwidth)  # in this mode JumpReLU's own window too (SPEC 5)
    with autocast(x.device, params.amp_dtype):
        alone = params.sparsity_loss_type is None and params.lp_coefficient is None and params.matryoshka_widths is None
        codes = dictionary.step_codes(x, mask, gate, padding, decoded_only=alone)
        widths = [resolve_share(width, dictionary.config.d_sae) for width in params.matryoshka_widths or ()]
        return codes, dictionary.reconstructions(codes, x, widths)


def _sparsity_inputs(
    dictionary: Dictionary, codes: Codes, mask: Tensor | None, step_statistic: Tensor | None = None
) -> SparsityInputs:
    group = dictionary.feature_group
    return SparsityInputs(codes.f, codes.z, codes.norms, dictionary.thresholds(), mask, step_statistic, group)


@torch.no_grad()
def step_statistic(
    dictionary: Dictionary, x: Tensor, mask: Tensor | None, params: TrainerParams, gate: Gate = CONFIGURED
) -> Tensor | None:
    """A micro-batch's share of what the sparsity loss is not linear in; None where there is nothing of the kind.

    Arguments as in :func:`compute_loss`. The whole step's value is the mean of the parts', weighted by kept tokens.
    """
    if params.sparsity_loss_type is None or sparsity_loss(params.sparsity_loss_type).statistic is None:
        return None
    with autocast(x.device, params.amp_dtype):
        codes = dictionary.codes(x, mask, gate)
    inputs = _sparsity_inputs(dictionary, codes, mask)
    return sparsity_loss(params.sparsity_loss_type).step_statistic(inputs, params)
