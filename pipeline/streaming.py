"""Activations from a language model and text in Python: streamed, or written to a store.

stream = stream_activations("demo", "demo", ["blocks.2.hook_resid_post"], total_tokens=100_000)
for batch in stream: batch.activations["blocks.2.hook_resid_post"]
store = write_activations(stream, "stores")
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.activations.batches import ActivationBatch
from pipeline.activations.fingerprint import GenerationSettings
from pipeline.activations.live import LiveActivations
from pipeline.activations.reader import ActivationStore, open_store
from pipeline.arguments import A_PATH, checked, names, of_kind, whole
from pipeline.corpus.document import Document
from pipeline.errors import DataError
from pipeline.hook_keys import MAIN
from pipeline.lm.given import A_MODEL
from pipeline.opening import open_live
from pipeline.params.schema import ActivationsParams, DatasetParams, DemoParams, ModelParams, section_from_dict

if TYPE_CHECKING:
    from pipeline.activations.generation import ModelFacts
    from pipeline.lm.language_model import LanguageModel


class _Text(NamedTuple):
    """Parameters by which text is tokenized."""

    activations: ActivationsParams
    dataset: DatasetParams
    demo: DemoParams
    model: ModelParams


@dataclasses.dataclass(frozen=True, repr=False)
class ActivationStream:
    """Live activations and how they are batched. Iterating gives batches for ever, the same ones each time.

    Attributes:
        activations: any rows of them, in any order.
        batch_size: rows in a batch: tokens (1-D) or contexts (2-D).
        buffer_size: tokens that are mixed at a time.
        model: that computes them.
        folder: where the tokens are; a temporary one goes with the stream.
    """

    activations: LiveActivations
    batch_size: int
    buffer_size: int
    model: LanguageModel
    folder: Path

    def __repr__(self) -> str:
        return (
            f"ActivationStream(batches of {self.batch_size:,}, {self.buffer_size:,} tokens mixed at a time, "
            f"{self.activations!r}, {self.model!r})"
        )

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self.activations.batches(self.batch_size, buffer_rows=self.buffer_size)


def _texts_or_name(value: object) -> str:
    """What is wanted in the place of a data set."""
    if isinstance(value, (list, tuple)):
        right = all(isinstance(each, str) for each in value)
    else:
        right = isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping))
    return "" if right else "a path, a hub id, 'demo', or texts"


def _model(value: object) -> str:
    """What is wanted in the place of a model: it, or its name."""
    return "" if isinstance(value, str) else A_MODEL(value) and "a language model, or its name"


@checked(
    model=_model,
    dataset=_texts_or_name,
    hook_points=names,
    batch_size=whole(1),
    buffer_size=whole(1),
    total_tokens=whole(1),
    context_size=whole(1),
    model_batch_size=whole(1),
    ignore_positions=whole(0),
)
def stream_activations(
    model: LanguageModel | str,
    dataset: str | Iterable[str],
    hook_points: Sequence[str],
    *,
    target: str = "activations-1d",
    batch_size: int = 4096,
    buffer_size: int = 2**20,
    perm_seed: int = 42,
    total_tokens: int = 1_000_000,
    context_size: int = 128,
    model_batch_size: int = 64,
    storage_dtype: str = "float32",
    prepend_bos: bool | str = "auto",
    ignore_token_ids: Sequence[int] | None = None,
    ignore_positions: int = 0,
    folder: str | Path | None = None,
    **text: Any,
) -> ActivationStream:
    """Activations of text, computed while they are read; the same code as a pipeline with `activations.source: live`.

    Args:
        model: loaded, or its name.
        dataset: `demo`, a file, a directory or a hub id, as dataset.dataset_name_or_path; or texts.
        hook_points: of which activations are wanted, all in one pass.
        target: activations-1d (rows are tokens, shuffled) or activations-2d (rows are contexts).
        batch_size: tokens (1-D) or contexts (2-D) in a batch.
        buffer_size: tokens mixed at a time.
        perm_seed: of the order of contexts and tokens.
        total_tokens: in an epoch.
        context_size: tokens in a context.
        model_batch_size: contexts in one pass of the model.
        storage_dtype: in which rows are held.
        prepend_bos, ignore_token_ids, ignore_positions: as in params.yaml.
        folder: where the tokens are written; None: a temporary directory.
        text: further fields of dataset.

    Raises:
        DataError: no such model, hook point or text, or too little of it.
        NumericsError: the first batch has a non-finite activation.
        ParamsError: unknown or mistyped fields.
    """
    from pipeline.activations.live_plan import plan_and_check
    from pipeline.corpus.tokens import open_tokens

    hook_points = list(hook_points)
    loaded = _loaded(model, hook_points)
    if not hook_points:
        raise DataError("hook_points: wanted at least one name, such as blocks.0.hook_resid_post, got none")
    for hook in hook_points:
        loaded.hook_width(hook)  # no such hook point is said before text is read
    ignored = None if ignore_token_ids is None else tuple(ignore_token_ids)
    activations = ActivationsParams(
        context_size=context_size,
        total_tokens=total_tokens,
        ignore_token_ids=ignored,
        ignore_positions=ignore_positions,
        batch_size=min(batch_size, total_tokens),
    )
    with contextlib.ExitStack() as stack:
        if folder is None:
            root = Path(tempfile.mkdtemp(prefix="activations-"))
            stack.callback(shutil.rmtree, root, ignore_errors=True)
        else:
            (root := Path(folder)).mkdir(parents=True, exist_ok=True)
        _tokenize(loaded, dataset, text, activations, prepend_bos, root / "tokens.zarr")
        settings = GenerationSettings(
            context_size=context_size,
            model_batch_size=model_batch_size,
            total_tokens=total_tokens,
            target=target,
            storage_dtype=storage_dtype,
            perm_seed=perm_seed,
            ignore_token_ids=ignored,
            ignore_positions=ignore_positions,
            model_dtype=str(loaded.dtype).removeprefix("torch."),
        )
        tokens = open_tokens(root / "tokens.zarr")
        manifest = root / "activations.json"
        plan_and_check(tokens, tokens.path, {MAIN: _facts(loaded, hook_points)}, {MAIN: lambda _: loaded}, settings, manifest)
        stream = ActivationStream(open_live(manifest, loaded), batch_size, buffer_size, loaded, root)
        weakref.finalize(stream, stack.pop_all().close)
    return stream


@checked(
    stream=of_kind(ActivationStream, "a stream, as `stream_activations(...)` gives it"), path=A_PATH, total_tokens=whole(1)
)
def write_activations(stream: ActivationStream, path: str | Path, total_tokens: int | None = None) -> ActivationStore:
    """Write the activations of a stream to a store, or go on with one that was begun; row i is row i of the stream.

    Args:
        stream: as :func:`stream_activations` gives it.
        path: directory under which the store goes, `<path>/<fingerprint>`.
        total_tokens: fewer than the stream's, another order of rows; None: as many.

    Returns: the open store; its `path` may be named by activations.path.

    Raises:
        DataError, NumericsError: see :func:`pipeline.activations.generation.generate_store`.
    """
    from pipeline.activations.generation import generate_store
    from pipeline.corpus.tokens import open_tokens

    live = stream.activations
    settings = GenerationSettings.of_config(live.config)
    if total_tokens is not None:
        if total_tokens > live.n_tokens:
            raise DataError(f"total_tokens: {total_tokens:,} are more than the {live.n_tokens:,} of the stream; stream more")
        settings = dataclasses.replace(settings, total_tokens=total_tokens)
    tokens = open_tokens(live.tokens_path)
    facts = _facts(stream.model, live.hook_points)
    return open_store(generate_store(tokens, facts, lambda _: stream.model, settings, Path(path)), live.hook_points)


def _loaded(model: LanguageModel | str, hook_points: Sequence[str]) -> LanguageModel:
    from pipeline.lm.loading import load_language_model

    return load_language_model(model, hook_points=hook_points) if isinstance(model, str) else model


def _tokenize(
    model: LanguageModel,
    dataset: str | Iterable[str],
    text: Mapping[str, Any],
    activations: ActivationsParams,
    prepend_bos: bool | str,
    out: Path,
) -> None:
    """The token store of a data set, as the stage makes it; or of texts."""
    from pipeline.corpus.for_params import settings_of, tokenize_for
    from pipeline.corpus.tokenization import tokenize_corpus, tokenizer_info
    from pipeline.lm.loading import model_widths

    named = {"dataset_name_or_path": dataset} if isinstance(dataset, str) else {}
    about = section_from_dict(DatasetParams, {**named, **text})
    params = _Text(activations, about, DemoParams(), dataclasses.replace(ModelParams(), prepend_bos=prepend_bos))
    if isinstance(dataset, str):
        widths = model_widths(model.name, model.revision, model.tokenizer_name, model.backend)
        tokenize_for(params, widths, out, lambda line: None)
    else:
        tokenize_corpus(_texts(dataset), tokenizer_info(model.tokenizer, model.name), settings_of(params), out)


def _facts(model: LanguageModel, hook_points: Sequence[str]) -> ModelFacts:
    from pipeline.activations.generation import ModelFacts

    widths = {hook: model.hook_width(hook) for hook in hook_points}
    return ModelFacts(model.name, model.revision, model.digest, model.d_model, widths)


def _texts(texts: Iterable[str]) -> Iterator[Document]:
    """A document of each text."""
    for number, text in enumerate(texts):
        yield Document(str(number), text)
