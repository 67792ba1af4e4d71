"""The features that stand out on a text, with what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from pipeline.analysis.inspection import inspect_text
from pipeline.analysis.texts import feature_name
from pipeline.arguments import A_TEXT, checked, of_kind, whole
from pipeline.dictionaries.given import A_DICTIONARY
from pipeline.lm.given import models

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.norms.hook_norm import HookNorm


class TopFeature(NamedTuple):
    """One feature on a text.

    Attributes:
        feature: `513`, or `2/513` for feature 513 of layer 2.
        activation: its largest on the text, in the dictionary's units.
        n_tokens: on how many tokens it is active.
        token: the text around the strongest token, which is in brackets.
        label: an explanation, or the tokens on which it is strongest; "" where nothing is known.
    """

    feature: str
    activation: float
    n_tokens: int
    token: str
    label: str


@dataclass(frozen=True, repr=False)
class TopFeatures:
    """The features that stand out on a text, strongest first; its repr is a table.

    Attributes:
        features: as asked for.
    """

    features: list[TopFeature]

    def __repr__(self) -> str:
        lines = [f"{'feature':>8} {'largest':>9} {'tokens':>6}  strongest at / label"]
        for one in self.features:
            at = ascii(one.token)[1:-1]
            lines.append(
                f"{one.feature:>8} {one.activation:>9.3g} {one.n_tokens:>6}  {at}{'  | ' + one.label if one.label else ''}"
            )
        return "\n".join(lines)


@checked(
    model=models,
    dictionary=A_DICTIONARY,
    text=A_TEXT,
    n=whole(1),
    labels=of_kind(Mapping, "{feature: label}, as `feature_labels(...)` gives it"),
)
def top_features(
    model: LanguageModel | Mapping[str, LanguageModel],
    dictionary: Dictionary,
    text: str,
    n: int = 10,
    *,
    labels: Mapping[str, str] | None = None,
    norms: Mapping[str, HookNorm] | None = None,
    prepend_bos: bool | str = "auto",
) -> TopFeatures:
    """The features that are strongest on a text, massive tokens left out.

    They are ranked by their largest activation times the length of what they write: by what they add to the activations.

    Args:
        model: its language model, or {alias: model} of a dictionary with hook points of several.
        dictionary: any kind.
        text: any length; cut into contexts.
        n: how many.
        labels: {feature: what is known of it}, of `feature_labels`.
        norms: {hook point: norm}, for a dictionary that is not folded.
        prepend_bos: see `LanguageModel.to_tokens`.

    Example:
        >>> top_features(model, sae, "The cat sat on the mat", labels=feature_labels("data/features"))

    Raises:
        DataError: no text, or hook points that the model does not have.
    """
    found = inspect_text(text, dictionary, model, norms=norms, prepend_bos=prepend_bos)
    tokens, features = found.features.indices()
    values = found.features.values()
    usual = torch.tensor([token not in found.excluded for token in tokens.tolist()], dtype=torch.bool)
    tokens, features, values = tokens[usual], features[usual], values[usual]
    which, inverse = features.unique(return_inverse=True)
    largest = torch.zeros(len(which)).scatter_reduce_(0, inverse, values, "amax")
    lengths = dictionary.decoder_lengths().detach().flatten().float().cpu()[which]
    result = []
    for i in (largest * lengths).argsort(descending=True, stable=True)[:n].tolist():
        own = inverse == i
        at = int(tokens[own][values[own].argmax()])
        name = feature_name(int(which[i]), found.shape)
        label = (labels or {}).get(name, "")
        result.append(TopFeature(name, float(largest[i]), int(own.sum()), found.around(at, 4, 2), label))
    return TopFeatures(result)
