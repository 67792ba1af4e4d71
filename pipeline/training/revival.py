"""Revival of dead features (trainer.revive_dead_features): after each step a feature that has been silent for
`dead_threshold` tokens is moved to the threshold of the gate, so that it is active on the token of the batch that suits it
best.

With t_b the threshold that z must exceed on token b and m_i the mean of z_i over the batch's kept tokens,

    r_i = max_b (z_bi - m_i) / t_b        at token b*
    s_i = max(1, 1 / r_i)                 at most LARGEST
    z_bi <- s_i (z_bi - m_i) + c_i        with c_i such that z_b*i = (1 + MARGIN) t_b*

by scaling the feature's encoder weights and setting its bias. A feature that lost early has small weights, so that its z
hardly varies: raising the bias alone would open it on all tokens or on none, and a batch-wide gate answers by raising its
threshold until the run diverges (measured on planted data and on a language model). With s_i its z gets the spread of a feature
in use. AuxK, which trains dead features on the residual, needs more steps than short runs have.

What a feature writes keeps its direction. Where z holds its length (z_i = h_i n_i), a decoder row shorter than SHORTEST times
the mean of the features in use gets that length, and the encoder is divided by as much: the function stays the same.
Features that lose again and again otherwise end with long encoders on short decoder rows, whose f is so large that one step
of the optimiser on such a row blows the run up (measured on an attention output, dead_threshold 0.004).

Two bounds keep the cure from being worse than the illness where there are many more features than directions, or batches are
small. A feature counts as silent after EXPECTED F / k tokens at least: rare ones are not dead yet (d_sae 768, 64 directions,
k 4: FVU 1.21 without, 0.14 with this bound, 0.12 without revival). And none is scaled beyond LONGEST times the usual length;
it waits for a token that suits it better. With a GLU encoder all this is of the linear branch: z and e are divided by its gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.codes import Codes
from pipeline.dictionaries.fold import EPS_NORM
from pipeline.losses.reductions import widened
from pipeline.params.sections.trainer import TrainerParams
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.shares import resolve_share

LARGEST = 100.0
SMALLEST = 1e-6  # ratio below which z does not vary but by rounding
MARGIN = 1e-3
SHORTEST = 0.5  # of the mean decoder norm of the features in use
LONGEST = 3.0  # of the mean encoder length in units of z, over the activations of the batch
EXPECTED = 64  # activations of a feature of average use in the shortest silence that counts


@torch.no_grad()
def revive_(
    dictionary: Dictionary,
    codes: Codes,
    threshold: Tensor,
    dead: Tensor,
    mask: Tensor | None,
    *,
    encoder_gate: Tensor | None = None,
    reductions: Reductions = ONE_PROCESS,
) -> None:
    """Move dead features to the threshold of the gate.

    Args:
        dictionary: in training, as it was when `codes` were computed but for the step's update.
        codes: of a batch.
        threshold: what z must exceed, broadcastable to z; infinite where nothing can (see ActivationFunction.threshold).
        dead: bool of `feature_shape`.
        mask: bool over tokens; None: all kept.
        encoder_gate: Dictionary.encoder_gate of the batch.
        reductions: over the processes that hold the rest of the batch.
    """
    shape = dead.shape
    z = widened(codes.gating).reshape(-1, *shape)
    threshold = threshold.detach().to(z.dtype).expand(codes.shape).reshape(z.shape)
    kept = None if mask is None else mask.reshape(-1)
    columns = dead.reshape(-1).nonzero().squeeze(1)
    z, threshold = z.flatten(1)[:, columns], threshold.flatten(1)[:, columns]
    if encoder_gate is not None:  # what follows is of the linear branch
        sigma = widened(encoder_gate.detach()).reshape(-1, *shape).flatten(1)[:, columns].clamp_min(SMALLEST)
        z, threshold = z / sigma, threshold / sigma
    if kept is not None:
        z, threshold = z[kept], threshold[kept]
    found = _nearest(z, threshold, codes.uses(tuple(shape)), reductions)
    if found is None:
        return
    mean, ratio, best, wanted, use = found
    scale = torch.where(ratio > 0, 1.0 / ratio, torch.inf).clamp(1.0, LARGEST)
    shift = wanted - scale * (best - mean) + MARGIN * scale * (best - mean)
    gain = dictionary.gating_scale(codes.norms.detach())
    every = torch.ones(shape, dtype=z.dtype, device=z.device) if gain is None else gain.to(z.dtype).expand(shape)
    gain = every.reshape(-1)[columns].clamp_min(EPS_NORM)
    length = dictionary.encoder_norms().to(z.dtype) * every
    use, group = use.to(z.dtype), dictionary.feature_group
    used, uses = group.sum([(length * use).sum(), use.sum()])
    usual = used / uses.clamp_min(1)
    within = scale * length.reshape(-1)[columns] <= LONGEST * usual
    usable = dead.reshape(-1)[columns] & wanted.isfinite() & (ratio > SMALLEST) & within
    bias = dictionary.encoder_bias()
    flat = bias.reshape(-1)
    longer = torch.ones_like(mean)
    if dictionary.config.sparsity_include_decoder_norm:
        norms = codes.norms.detach().to(z.dtype)
        own = norms.reshape(-1)[columns].clamp_min(EPS_NORM)
        longer = torch.where(usable, (SHORTEST * _mean_length(norms, dead, group) / own).clamp_min(1.0), 1.0)
    new = (scale * (flat[columns] - mean / gain) + shift / gain) / longer
    flat[columns] = torch.where(usable, new, flat[columns]).to(bias.dtype)
    bias.copy_(flat.reshape(bias.shape))
    _scale_(dictionary.scale_encoder_, torch.where(usable, scale, 1.0) / longer, columns, dead)
    _scale_(dictionary.scale_decoder_, longer, columns, dead)


class _Nearest(NamedTuple):
    """Of each dead feature [n]: the mean z of the batch; the ratio r, z and threshold of the token that suits it best.

    Of every feature: on how many tokens it is in use.
    """

    mean: Tensor
    ratio: Tensor
    best: Tensor
    wanted: Tensor
    use: Tensor


def _nearest(z: Tensor, threshold: Tensor, use: Tensor, reductions: Reductions) -> _Nearest | None:
    """Of the batch's kept tokens, whichever process holds them (of equal ones the first); None: there is none.

    Args:
        z, threshold: of this process's kept tokens, [B, n].
        use: of these, how many each feature is in use on.
    """
    if reductions.size == 1:
        if not len(z):
            return None
        mean = z.mean(0)
    else:
        total, n_kept, use = reductions.sum([z.sum(0), torch.tensor(len(z), device=z.device), use])
        if not bool(n_kept):
            return None
        mean = total / n_kept
    if len(z):
        ratio, token = ((z - mean) / threshold.clamp_min(EPS_NORM)).max(0)
        own = torch.stack([ratio, z.gather(0, token[None])[0], threshold.gather(0, token[None])[0]])
    else:
        own = torch.full((3, z.shape[1]), -torch.inf, dtype=z.dtype, device=z.device)
    of_all = torch.stack(reductions.gathered(own, alike=True))
    nearest = of_all[:, 0].max(0).indices
    ratio, best, wanted = of_all.gather(0, nearest.expand(1, *own.shape))[0]
    return _Nearest(mean, ratio, best, wanted, use)


def least_silence(dictionary: Dictionary, params: TrainerParams) -> int:
    """Tokens that a feature must be silent for at least: those in which one of average use is active EXPECTED times."""
    config = dictionary.config
    if dictionary.activation.budgeted:
        return math.ceil(EXPECTED * config.d_sae * config.k_layers / config.top_k)
    return 0 if params.target_l0 is None else math.ceil(EXPECTED * config.d_sae / params.target_l0)


def silence(dictionary: Dictionary, params: TrainerParams) -> int:
    """Tokens after which a silent feature is revived: dead_threshold, or `least_silence` where that is more."""
    return max(resolve_share(params.dead_threshold, params.total_training_tokens), least_silence(dictionary, params))


def out_of_reach(dictionary: Dictionary, params: TrainerParams, tokens: int) -> str | None:
    """Why revival cannot act in a run of so many tokens; None where it can, or is off."""
    needed = silence(dictionary, params)
    if not params.revive_dead_features or needed <= tokens:
        return None
    return (
        f"trainer.revive_dead_features does nothing in this run of {tokens:,} tokens: a feature is revived after {needed:,} "
        f"without activation (dead_threshold, at least {EXPECTED} d_sae / k); train on more tokens, or on fewer features"
    )


def _mean_length(norms: Tensor, dead: Tensor, group: Reductions) -> Tensor:
    """Mean decoder norm of the features in use, of all processes, 0-dimensional; of all features if all are dead."""
    alive = (~dead).to(norms.dtype)
    living, n_living, total = group.sum([(norms * alive).sum(), alive.sum(), norms.sum()])
    return torch.where(n_living > 0, living / n_living.clamp_min(1), total / (norms.numel() * group.size))


def _scale_(scale: Callable[[Tensor], None], factors: Tensor, columns: Tensor, dead: Tensor) -> None:
    """Scale the weights of some features."""
    every = torch.ones(dead.numel(), dtype=factors.dtype, device=factors.device)
    every[columns] = factors
    scale(every.reshape(dead.shape))
