"""What the analysis takes: a token of its pass, a feature in the store and on the pages, and the neighbours of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pipeline.planning.timing import SECONDS, Stopwatch, silent, slope, timed

if TYPE_CHECKING:
    from pipeline.analysis.collection import Collection
    from pipeline.analysis.loading import Loaded
    from pipeline.analysis.tracing import AnalysedContexts
    from pipeline.corpus.tokens import TokenStore
    from pipeline.evaluation.raw_space import RawDictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.norms.hook_norm import HookNorm
    from pipeline.params.schema import Params

COMPARED = 4096  # features whose neighbours are looked for; of more the time grows with the square of their number
SHOWN_CONTEXTS = 96  # that features are shown in, so that they have about as many as in a whole pass


class Part(NamedTuple):
    """Seconds: of a token, of one whose activations are kept, of a feature, of the neighbours of all features."""

    token: float
    kept: float
    feature: float
    neighbours: float


def measure_features(
    params: Params,
    raw: RawDictionary,
    norms: Mapping[str, HookNorm],
    models: Mapping[str, LanguageModel],
    replayed: Mapping[str, Any],
    tokens: TokenStore,
    analysed: int,
    folder: Path,
    *,
    is_one_of_several: bool,
) -> Part:
    """Measure the analysis of one dictionary.

    Args:
        params: all parameters.
        raw: the dictionary.
        norms: {hook point: norm}, for a dictionary that is not folded.
        models: of its hook points.
        replayed: what gives activations without running them.
        tokens: contexts.
        analysed: tokens of the run's whole pass.
        folder: where a part of a feature store is written.
        is_one_of_several: whether another dictionary may have had its activations before it.
    """
    from pipeline.analysis.analyze import within
    from pipeline.analysis.collection import Collection
    from pipeline.analysis.loading import Loaded
    from pipeline.analysis.texts import ReadableTexts
    from pipeline.analysis.tracing import AnalysedContexts
    from pipeline.evaluation.models import LanguageModels
    from pipeline.evaluation.split_tokens import SplitTokens

    size, analysis = tokens.context_size, params.analysis

    def split(n: int, batch: int) -> SplitTokens:
        return SplitTokens(tokens.train, tokens.train.mask, n * size, batch)

    most = min(analysis.batch_contexts, tokens.train.n_contexts)
    kept = within(analysis, split(tokens.train.n_contexts, most), raw.dictionary)

    def token(of: Mapping[str, Any]) -> float:
        """Seconds of a token whose activations these give."""
        running = Collection(LanguageModels(of), raw, kept, analysed)
        each, beside = slope(lambda n: running.update(next(iter(split(n, n)))), most)
        return (each + beside / most) / size

    seconds = token(models), token(replayed) if is_one_of_several else 0.0
    shown = split(min(SHOWN_CONTEXTS, tokens.train.n_contexts), most)
    collection = Collection(LanguageModels(cast(Any, replayed)), raw, kept, analysed)
    for batch in shown:
        collection.update(batch)
    found = Loaded(raw.dictionary, dict(models), None if raw.dictionary.config.folded else dict(norms))
    contexts = AnalysedContexts(tokens.train, shown.contexts, ReadableTexts(found.main))
    feature = _feature(params, found, collection, contexts, folder)
    return Part(*seconds, feature, _neighbours(found, collection, kept.neighbours))


def _neighbours(found: Loaded, collection: Collection, n: int) -> float:
    """Seconds of the neighbours of all features."""
    from pipeline.analysis.decoder_neighbours import decoder_neighbours, decoder_rows

    if not n:
        return 0.0
    rows = decoder_rows(found.dictionary)
    total = len(rows[0])
    some = min(total, COMPARED)
    seconds, _ = timed(lambda: decoder_neighbours([part[:some] for part in rows], n))
    if total > COMPARED:
        return 2 * seconds * (total / some) ** 2
    with silent():
        return seconds + timed(lambda: collection.coactivation.neighbours(n))[0]


def _feature(params: Params, found: Loaded, collection: Collection, contexts: AnalysedContexts, folder: Path) -> float:
    """Seconds of a feature: its rows in the feature store, and its place on the pages."""
    import pyarrow.parquet as pq

    from pipeline.analysis.attribution import logit_effects
    from pipeline.analysis.feature_columns import CONTEXTS, FEATURES
    from pipeline.analysis.feature_tables import TableWriter, contexts_schema, features_schema, table_rows
    from pipeline.analysis.shown_contexts import context_columns
    from pipeline.analysis.writing import BLOCK, feature_columns, written
    from pipeline.dashboard.chunks import CHUNK, Table, chunk, packed

    with silent():
        every = written(found, collection, 0)
    features = TableWriter(folder / FEATURES, features_schema(), {})
    shown = TableWriter(folder / CONTEXTS, contexts_schema(), {})
    energies, total, done = every.norms.new_ones(len(every.norms)), len(every.norms), 0
    watch = Stopwatch()
    while done < total and (not done or watch.seconds() < SECONDS):
        some = slice(done, min(done + BLOCK, total))
        effects = None
        if every.directions is not None:
            effects = logit_effects(every.directions[some], found.models[found.alias], params.analysis.logit_tokens)
        features.write(feature_columns(some, collection, every, energies, effects, found, contexts))
        shown.write(context_columns(some, collection, contexts, params.analysis))
        done = some.stop
    features.close()
    shown.close()
    rows = table_rows(pq.read_table(folder / FEATURES))
    by_feature: dict[int, list[dict[str, Any]]] = {row["feature"]: [] for row in rows}
    for row in table_rows(pq.read_table(folder / CONTEXTS)):
        by_feature[row["feature"]].append(row)
    table = Table(None)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        packed(chunk(part, by_feature))
        for row in part:
            table.add(row, by_feature[row["feature"]])
    packed(table.packed())
    return watch.seconds() / done
