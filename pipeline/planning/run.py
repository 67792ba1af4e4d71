"""What a run is, known from its parameters and the configurations of its models: how much of everything.

Counts of contexts and held-out tokens are exact where the token store is there, else what the parameters lead to: a document
is held out with probability dataset.eval_fraction.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from pipeline.params.choices import LIVE
from pipeline.planning.rows import PlannedRows, planned_rows
from pipeline.planning.sources import Sources, sources_of
from pipeline.planning.stored import is_stored

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.dictionaries.base import Dictionary
    from pipeline.extent import Extent
    from pipeline.params.schema import Params
    from pipeline.planning.text import HeldOut, TextSample


MOST_CONTEXTS = 1.5  # times as few as can hold the tokens: short documents end often, and their ends are no training tokens


class Counts(NamedTuple):
    """Contexts of a token store that is there."""

    train: int
    held_out: int


def counted(params: Params, tokens: str | Path) -> Counts | None:
    """The contexts of a token store; None: there is none that can be read, or it is of other parameters by its size."""
    from pipeline.corpus.tokens import open_tokens
    from pipeline.errors import DataError

    try:
        store = open_tokens(tokens)
    except DataError:
        return None
    acts, n_contexts = params.activations, store.train.n_contexts
    least = math.ceil(acts.total_tokens / (acts.context_size - acts.ignore_positions))
    whole = not any(part.assistant_tokens_only for part in params.dataset.each().values())
    if store.context_size != acts.context_size or n_contexts < least or (whole and n_contexts > MOST_CONTEXTS * least + 1):
        return None
    return Counts(n_contexts, store.eval.n_contexts)


@dataclass(frozen=True)
class Run:
    """A run that is planned.

    Attributes:
        params: all of it.
        sources: of its models.
        counts: contexts of its token store; None: it is not there yet.
        held_out: what the text will give to evaluate, where that is known.
        tokens: the token store, where its counts are known.
        steps_left: of each training (one, or those of the members) the steps that are still to be taken; None: all.
    """

    params: Params
    sources: Sources
    counts: Counts | None = None
    held_out: HeldOut | None = None
    tokens: str | Path | None = None
    steps_left: tuple[int, ...] | None = None

    @classmethod
    def of(cls, params: Params, tokens: str | Path | None = None) -> Run:
        """The run of `params`; counts are those of the token store, if it is there.

        Raises:
            DataError: there is no such model, or it has no such hook point.
        """
        counts = None if tokens is None else counted(params, tokens)
        return cls(params, sources_of(params), counts, tokens=None if counts is None else tokens)

    def with_text(self, text: TextSample) -> Run:
        """The run with what its text tells of the held-out tokens."""
        return dataclasses.replace(self, held_out=text.held_out_of(self.stored_tokens, self.params.dataset.eval_fraction))

    @cached_property
    def stored(self) -> bool:
        """Whether its activation store is there already; reads the weights of its models for their digest."""
        return self.tokens is not None and is_stored(self.params, self.sources, self.tokens)

    @property
    def live(self) -> bool:
        """Whether activations are computed while they are read."""
        return self.params.activations.source == LIVE

    @property
    def context_size(self) -> int:
        """Tokens of a context."""
        return self.params.activations.context_size

    @property
    def train_contexts(self) -> int:
        """Contexts of the training split; where the text has not been tokenized, as few as can hold the tokens."""
        if self.counts is not None:
            return self.counts.train
        acts = self.params.activations
        return math.ceil(acts.total_tokens / (acts.context_size - acts.ignore_positions))

    @property
    def held_out_contexts(self) -> int:
        """Contexts of the held-out split, at least 1."""
        if self.counts is not None:
            return self.counts.held_out
        if self.held_out is not None:
            return max(1, round(self.held_out.tokens / self.context_size))
        share = self.params.dataset.eval_fraction
        return max(1, round(self.train_contexts * share / (1.0 - share)))

    @property
    def stored_tokens(self) -> int:
        """Tokens of activations."""
        return self.params.activations.total_tokens

    @property
    def norm_tokens(self) -> int:
        """Tokens whose norms are measured."""
        asked = self.params.norm.tokens
        return self.stored_tokens if asked is None else min(asked, self.stored_tokens)

    @property
    def initializer_tokens(self) -> int:
        """Tokens that the start of each dictionary is made of: initializer.tokens, or all training rows if fewer."""
        first, stop = self.training_rows
        per_row = 1 if self.params.activations.tokens_per_row == 1 else self.context_size
        return per_row * min(stop - first, math.ceil(self.params.initializer.tokens / per_row))

    @property
    def trained_tokens(self) -> int:
        """Tokens of all steps."""
        return self.params.total_steps * self.params.activations.tokens_per_batch

    @property
    def share_left(self) -> float:
        """The share of all trainings' steps that is still to be taken."""
        return 1.0 if not self.steps_left else sum(self.steps_left) / (len(self.steps_left) * self.params.total_steps)

    @property
    def least_rows(self) -> int:
        """Rows of the store, at least: tokens, or as few contexts as can hold them."""
        acts = self.params.activations
        return acts.total_tokens // (1 if acts.tokens_per_row == 1 else acts.context_size - acts.ignore_positions)

    @cached_property
    def rows(self) -> PlannedRows:
        """The rows of the store."""
        return planned_rows(self.params, self.sources, None if self.counts is None else self.train_contexts)

    @cached_property
    def training_rows(self) -> tuple[int, int]:
        """Those that are trained on; of contexts that are not counted yet, about.

        Raises:
            DataError: fold.calibration_tokens leaves none.
        """
        from pipeline.activations.schema import training_rows

        if self.counts is None and self.params.activations.tokens_per_row > 1:
            per_row = self.context_size
            return 0, max(self.rows.n_rows - -(-self.params.fold.calibration_tokens // per_row), 1)
        return training_rows(self.rows, self.params.fold.calibration_tokens)

    @property
    def tokens_to_train_on(self) -> int:
        """Stored tokens that are trained on; the others are kept for the fold."""
        return self.stored_tokens * self.training_rows[1] // max(self.rows.n_rows, 1)

    @property
    def epochs(self) -> float:
        """How often each training row is trained on."""
        return self.params.total_steps * self.params.activations.batch_size / max(self.training_rows[1], 1)

    @property
    def evaluated_tokens(self) -> int:
        """Held-out tokens that are evaluated."""
        asked = self.params.evaluation.tokens
        contexts = self.held_out_contexts
        return self.context_size * (contexts if asked is None else min(contexts, math.ceil(asked / self.context_size)))

    @cached_property
    def held_out_extent(self) -> Extent | None:
        """Documents of the held-out tokens; None: not known. Reads the token store, where it is there."""
        return self._extent_of(None)

    @cached_property
    def evaluated_extent(self) -> Extent | None:
        """Documents of the held-out tokens that are evaluated, on which intervals rest; None: not known. Reads the token store,
        where it is there.
        """
        return self._extent_of(self.params.evaluation.tokens)

    def _extent_of(self, asked: int | None) -> Extent | None:
        if self.counts is not None and self.tokens is not None:
            from pipeline.corpus.tokens import open_tokens
            from pipeline.evaluation.split_tokens import SplitTokens

            split = open_tokens(self.tokens).eval
            return SplitTokens(split, split.mask, asked, 1).whole_extent()
        return None if self.held_out is None else self.held_out.evaluated(asked, self.context_size)

    @property
    def evaluation_runs(self) -> int:
        """Runs of a language model over each of them (pipeline.evaluation.evaluator.Evaluator.n_runs)."""
        from pipeline.hook_keys import by_model

        written = [by_model(member.dictionary.hooks_out) for member in self.params.members.values()]
        places = [tuple(hooks) for own in written for hooks in own.values()]
        each = [place for hooks in places for place in (hooks, *(((hook,) for hook in hooks) if len(hooks) > 1 else ()))]
        return 2 * len({alias for own in written for alias in own}) + 2 * len(each) + 2 * len(set(each))

    @property
    def analysed_tokens(self) -> int:
        """Tokens that the features are looked at on, by each member."""
        analysis = self.params.analysis
        contexts = self.train_contexts if analysis.split == "train" else self.held_out_contexts
        asked = analysis.tokens
        return self.context_size * (contexts if asked is None else min(contexts, math.ceil(asked / self.context_size)))

    @cached_property
    def dictionaries(self) -> dict[str, Dictionary]:
        """{member: its dictionary}; tensors have shapes and no values.

        Raises:
            ParamsError: a width that does not fit.
        """
        import torch

        from pipeline.dictionaries.build import config_from_dict, dictionary_class

        found = {}
        for name, own in self.params.members.items():
            hooks_in, hooks_out = own.dictionary.hooks_in, own.dictionary.hooks_out
            widths = self.sources.widths
            fields = own.with_widths(widths).dictionary.of_widths(widths[hooks_in[0]], widths[hooks_out[0]])
            config = config_from_dict(fields)
            with torch.device("meta"):
                found[name] = dictionary_class(config.kind)(config)
        return found

    @property
    def n_features(self) -> int:
        """Features of all members together."""
        return sum(math.prod(each.feature_shape) for each in self.dictionaries.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of all members together."""
        return sum(parameter.nbytes for each in self.dictionaries.values() for parameter in each.parameters())
