"""Texts as what probes read: activations and features, each a mean over the tokens of a context that count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.analysis.texts import bos_of, contexts, token_ids
from pipeline.errors import DataError
from pipeline.evaluation.models import LanguageModels
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.progress import Progress

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from torch import Tensor

    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.norms.hook_norm import HookNorm

LEAST_TOKENS = 8  # of a context that is an example: the rest of a text may be shorter


@dataclass(frozen=True)
class Pooled:
    """Examples, in the order of the texts.

    Attributes:
        activations: float32 [N, D], of all hook points that the dictionary reads, side by side.
        features: sparse float32 [N, F].
        text: int64 [N], the number of the text that each is of.
    """

    activations: np.ndarray
    features: csr_matrix
    text: np.ndarray


@torch.no_grad()
def pooled_examples(
    texts: Sequence[str],
    dictionary: Dictionary,
    model: LanguageModel | Mapping[str, LanguageModel],
    *,
    norms: Mapping[str, HookNorm] | None = None,
    context_size: int,
    prepend_bos: bool | str = False,
    contexts_per_text: int = 1,
    batch_contexts: int = 32,
    progress: bool = False,
) -> Pooled:
    """Run the model over the first contexts of each text.

    A context is an example: the mean over its tokens of the activations, and of the features. Special tokens (beginning and
    end of text, padding) and massive tokens that the dictionary was trained without do not count. A context with fewer than
    LEAST_TOKENS tokens that count is none.

    Args:
        texts: any.
        dictionary: of any kind.
        model: its language model, or {alias: model}.
        norms: {hook point: norm}, of a dictionary that is not folded.
        context_size: tokens of a context.
        prepend_bos: whether each starts with the beginning-of-text token, or "auto".
        contexts_per_text: so many at most.
        batch_contexts: contexts in one pass.
        progress: show a line on standard error.

    Raises:
        DataError: no example is left.
    """
    from scipy.sparse import csr_matrix, vstack

    models, raw = LanguageModels(model), RawDictionary(dictionary, norms)
    main = models.owner(dictionary.hooks_in[0])
    special = [i for i in (main.bos_token_id, main.eos_token_id, main.pad_token_id) if i is not None]
    bos = bos_of(main, prepend_bos)
    rows = [
        (number, ids[0])
        for number, text in enumerate(texts)
        for ids in contexts(token_ids(text, main), context_size, bos)[:contexts_per_text]
    ]
    shown = Progress("probe", sum(len(ids) for _, ids in rows)) if progress else None
    activations, features, owners = [], [], []
    for start in range(0, len(rows), batch_contexts):
        batch = rows[start : start + batch_contexts]
        tokens, kept = _padded([ids for _, ids in batch], special)
        x, f, counted = _means(models, raw, tokens, kept)
        enough = counted >= LEAST_TOKENS
        activations.append(x[enough].numpy())
        features.append(csr_matrix(f[enough].numpy()))
        owners += [number for (number, _), whole in zip(batch, enough.tolist(), strict=True) if whole]
        if shown is not None:
            shown.update(sum(len(ids) for _, ids in batch))
    if shown is not None:
        shown.close()
    if not owners:
        raise DataError(f"no text has a context with {LEAST_TOKENS} tokens that count; give longer texts")
    return Pooled(np.concatenate(activations), vstack(features, format="csr"), np.array(owners, dtype=np.int64))


def _padded(rows: Sequence[Tensor], special: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Token ids [b, T], shorter contexts filled on the right (no token reads what is to its right), and bool [b, T], True
    where a token counts."""
    tokens = torch.nn.utils.rnn.pad_sequence([*rows], batch_first=True, padding_value=0)
    lengths = torch.tensor([len(ids) for ids in rows])
    kept = torch.arange(tokens.shape[1]) < lengths[:, None]
    return tokens, kept & ~torch.isin(tokens, torch.tensor(list(special), dtype=tokens.dtype))


def _means(models: LanguageModels, raw: RawDictionary, tokens: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean activations [b, D] and features [b, F], float32 on the CPU, and how many tokens counted, [b]."""
    found = models.activations(tokens, raw.hooks)
    inputs, labels = ({hook: found[hook] for hook in hooks} for hooks in (raw.hooks_in, raw.hooks_out))
    mask = kept.to(models.device)
    f = raw(inputs, labels, mask, raw.massive.above(found)).features.reshape(*tokens.shape, -1)
    excluded = raw.excluded.above(found)
    mask = mask if excluded is None else mask & ~excluded
    counted = mask.sum(1)
    weights = (mask / counted.clamp_min(1)[:, None]).unsqueeze(1)
    x = torch.cat([found[hook].float() for hook in raw.hooks_in], dim=-1)
    # Where a token does not count its value may be anything, NaN too.
    x, f = (torch.where(mask[..., None], each.to(weights.dtype), 0.0) for each in (x, f.to(mask.device)))
    return (weights @ x)[:, 0].cpu(), (weights @ f)[:, 0].cpu(), counted.cpu()
