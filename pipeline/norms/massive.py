"""Where the massive tokens are (pipeline/norms/exclusion.py): how often at which position, how often which token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from pipeline.errors import DataError
from pipeline.hook_keys import split_key

if TYPE_CHECKING:
    from pipeline.activations.interface import Activations
    from pipeline.lm.token_texts import TokenTexts
    from pipeline.params.schema import Params


class MassiveTokens:
    """The massive tokens that :func:`pipeline.norms.measure.compute_norms` meets: `add` is its callback `massive`.

    Args:
        store: of which the norms are computed.

    Attributes:
        positions: {hook point: {position in the context: massive tokens there}}, of hook points that have any.
        tokens: {hook point: {token id: massive tokens of it}}, of the same.
    """

    def __init__(self, store: Activations) -> None:
        self.context_size = store.context_size
        self.positions: dict[str, Counter[int]] = {}
        self.tokens: dict[str, Counter[int]] = {}
        self._store = store
        self._anywhere: dict[int, Tensor] = {}

    def add(self, hook_point: str, start: int, rows: Tensor) -> None:
        """Count massive tokens.

        Args:
            hook_point: where they are massive.
            start: first row of the store; every hook point's rows are cut at the same ones.
            rows: bool [n] or [n, T], True for a massive token of row start, start + 1, ...
        """
        meta = self._store.read_rows_meta(start, start + len(rows))
        self.positions.setdefault(hook_point, Counter()).update(meta.positions[rows].tolist())
        self.tokens.setdefault(hook_point, Counter()).update(meta.tokens[rows].tolist())
        self._anywhere[start] = rows | self._anywhere[start] if start in self._anywhere else rows

    @property
    def n_anywhere(self) -> int:
        """Tokens that are massive at any of the hook points."""
        return sum(int(rows.sum()) for rows in self._anywhere.values())


def commonest(counts: Mapping[int, int], n: int) -> list[tuple[int, int]]:
    """At most `n` pairs (value, count), the largest counts first, equal ones by value."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:n]


class ModelTexts:
    """Texts of tokens by the tokenizer of the model that a hook point is of, loaded when it is first asked.

    Args:
        params: name the models.
    """

    def __init__(self, params: Params) -> None:
        self._params = params
        self._texts: dict[str, TokenTexts | None] = {}

    def __call__(self, hook_point: str, token: int) -> str | None:
        """The token's text; None where the tokenizer cannot be loaded."""
        alias, _ = split_key(hook_point)
        if alias not in self._texts:
            self._texts[alias] = self._loaded(alias)
        texts = self._texts[alias]
        return None if texts is None else texts(token)

    def _loaded(self, alias: str) -> TokenTexts | None:
        from pipeline.lm.loading import load_tokenizer
        from pipeline.lm.token_texts import TokenTexts

        model = self._params.language_model(alias)
        try:
            return TokenTexts(load_tokenizer(model.model_name, model.revision, model.tokenizer_name))
        except DataError:
            return None
