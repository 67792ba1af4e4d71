"""Which features are active on a text: for each token the strongest ones, for each feature its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.analysis.texts import ReadableTexts, bos_of, contexts, feature_index, feature_name, token_ids
from pipeline.arguments import A_TEXT, checked, whole
from pipeline.dictionaries.given import A_DICTIONARY
from pipeline.errors import DataError
from pipeline.evaluation.models import LanguageModels
from pipeline.evaluation.raw_space import RawDictionary, own_norms
from pipeline.lm.given import models as given_models
from pipeline.norms.exclusion import lengths

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.norms.hook_norm import HookNorm
LONGEST = 1024  # tokens of a context, where nobody says


@dataclass(frozen=True, repr=False)
class Inspection:
    """Features of a text.

    Attributes:
        tokens: text of each token [N], beginning-of-text tokens included; the bytes of a split character stand as <0xE2>.
        kept: bool [N], False for special tokens, which have no features.
        features: sparse float32 [N, all features], activations in the dictionary's units (folded: the model's own).
        shape: of the features, [F] or [L, F].
        excluded: {token: how many times the median norm it is long} of the massive tokens that the dictionary was trained
            without (of several hook points the largest); they have features, which say little.
    """

    tokens: list[str]
    kept: Tensor
    features: Tensor
    shape: tuple[int, ...]
    excluded: Mapping[int, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        kept = int(self.kept.sum())
        active = len(self.features.values()) / max(kept, 1)
        massive = f", {len(self.excluded)} massive" if self.excluded else ""
        return (
            f"Inspection({len(self.tokens)} tokens, {kept} with features{massive}, {active:.1f} active of "
            f"{list(self.shape)} on each)"
        )

    @checked(top=whole(1))
    def strongest(self, token: int, top: int = 5) -> list[tuple[str, float]]:
        """(feature, activation) of the `top` strongest features of a token, strongest first.

        Raises:
            DataError: no such token.
        """
        self._check_token(token)
        rows, columns = self.features.indices()
        return [(feature_name(i, self.shape), value) for i, value in self._largest(rows == token, columns, top)]

    @checked(top=whole(1))
    def of_feature(self, feature: str | int, top: int | None = None) -> list[tuple[int, float]]:
        """(token, activation) of the tokens on which a feature is active, strongest first.

        Args:
            feature: `513`, or `2/513` for feature 513 of layer 2; or its index among all.
            top: how many tokens; None: all.

        Raises:
            DataError: no such feature.
        """
        rows, columns = self.features.indices()
        return self._largest(columns == feature_index(feature, self.shape), rows, top)

    def around(self, token: int, before: int = 8, after: int = 4) -> str:
        """The text around a token, which is in brackets.

        Raises:
            DataError: no such token.
        """
        self._check_token(token)
        left, right = self.tokens[max(0, token - before) : token], self.tokens[token + 1 : token + 1 + after]
        return f"{''.join(left)}[{self.tokens[token]}]{''.join(right)}"

    def _check_token(self, token: int) -> None:
        if whole(0)(token) or token >= len(self.tokens):
            raise DataError(f"token {token!r}: wanted its place in the text, from 0 to {len(self.tokens) - 1}")

    def _largest(self, chosen: Tensor, names: Tensor, top: int | None) -> list[tuple[int, float]]:
        values, names = self.features.values()[chosen], names[chosen]
        order = values.argsort(descending=True, stable=True)[:top]
        return list(zip(names[order].tolist(), values[order].tolist(), strict=True))


@checked(text=A_TEXT, dictionary=A_DICTIONARY, model=given_models, context_size=whole(1))
@torch.no_grad()
def inspect_text(
    text: str,
    dictionary: Dictionary,
    model: LanguageModel | Mapping[str, LanguageModel],
    *,
    norms: Mapping[str, HookNorm] | None = None,
    context_size: int | None = None,
    prepend_bos: bool | str = False,
) -> Inspection:
    """Run the model over a text and encode its activations.

    Args:
        text: any length; cut into contexts, each of which starts anew.
        dictionary: any kind.
        model: its language model, or {alias: model} of a dictionary with hook points of several ("" is the main one).
        norms: {hook point: norm}, for a dictionary that is not folded.
        context_size: tokens of a context; None: as many as the model and the dictionary take, at most 1,024.
        prepend_bos: whether each context starts with the beginning-of-text token; "auto": if the tokenizer puts it there by
            itself.

    Raises:
        DataError: no text, or hook points that the model does not have.
        NumericsError: an activation is not finite.
    """
    models = LanguageModels(model)
    main = models.owner(dictionary.hooks_in[0])
    raw = RawDictionary(dictionary, norms)
    bos = bos_of(main, prepend_bos)
    special = {main.bos_token_id, main.eos_token_id, main.pad_token_id} - {None}
    size = context_size or min(main.max_context or LONGEST, dictionary.max_context or LONGEST, LONGEST)
    shown = ReadableTexts(main)
    tokens: list[str] = []
    kept, features = [], []
    excluded: dict[int, float] = {}
    for number, ids in enumerate(contexts(token_ids(text, main), size, bos)):
        mask = torch.tensor([[int(i) not in special for i in ids[0]]])
        activations = models.activations(ids, raw.hooks)
        models.require_finite(activations, ids, mask, [number])
        inputs = {hook: activations[hook] for hook in raw.hooks_in}
        labels = {hook: activations[hook] for hook in raw.hooks_out}
        massive = raw.massive.above(activations)
        f = raw(inputs, labels, mask.to(models.device), massive).features.reshape(mask.numel(), -1).float().cpu()
        excluded |= {len(tokens) + place: length for place, length in _excluded(raw, activations, mask[0]).items()}
        features.append((f * mask[0, :, None]).to_sparse())
        kept.append(mask[0])
        tokens += [shown(int(i)) for i in ids[0]]
    return Inspection(tokens, torch.cat(kept), torch.cat(features).coalesce(), tuple(dictionary.feature_shape), excluded)


def _excluded(raw: RawDictionary, activations: Mapping[str, Tensor], kept: Tensor) -> dict[int, float]:
    """{place: times the median norm} of the excluded tokens of a context; `kept` bool [T]."""
    above = raw.excluded.above(activations)
    if above is None:
        return {}
    medians = {hook: norm.median_norm for hook, norm in own_norms(raw.dictionary).items()}
    times = [lengths(activations[hook][0]).cpu() / median for hook, median in medians.items() if median]
    longest = torch.stack(times).amax(0)
    return {int(place): float(longest[place]) for place in (above[0].cpu() & kept).nonzero()[:, 0]}
