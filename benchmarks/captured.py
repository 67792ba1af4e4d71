"""Activations and cross entropies of a language model on text, kept in a directory: what benchmarks/real.py trains on.

    WORK/capture.json                     what was captured; a directory of other settings is refused
    WORK/{bos,no-bos}/tokens.zarr         the pipeline's own token store of the same text, with and without the BOS token
    WORK/{bos,no-bos}/{train,eval}.safetensors   the hook points, bfloat16 [n, T, d] each; tokens int32 [n, T]; kept bool
                                          [n, T], False for special tokens; loss float32 [n, T - 1] in nats (of eval alone)

One pass of the model gives all hook points of a split. Matrix products are in bfloat16 unless float32 is asked for; the
residual stream is float32 either way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.corpus.demo import demo_documents
from pipeline.corpus.document import Document, held_out
from pipeline.corpus.local import local_documents
from pipeline.corpus.tokenization import TokenizeSettings, tokenize_corpus, tokenizer_info
from pipeline.corpus.tokens import TokenStore, open_tokens
from pipeline.errors import DataError
from pipeline.files import read_json, write_json
from pipeline.lm.language_model import LanguageModel
from pipeline.progress import Progress

PACKAGES = ("stdlib", "numpy", "sympy", "networkx")  # demo.text_packages of params.yaml
SPLITS = ("train", "eval")
CONTEXTS_AT_A_TIME = 16


@dataclass(frozen=True)
class Settings:
    """What decides a capture besides the model and the text.

    Attributes:
        hook_points: in the order of a run.
        context_size: tokens in a context.
        tokens: training tokens, special ones not counted.
        held_out_fraction: share of the documents held out.
        dtype: of the model's matrix products, bfloat16 or float32.
    """

    hook_points: tuple[str, ...]
    context_size: int
    tokens: int
    held_out_fraction: float
    dtype: str


class Part(NamedTuple):
    """One hook point of a split.

    Attributes:
        activations: float32 [n, T, d].
        tokens: int64 [n, T].
        kept: bool [n, T], False for special tokens.
    """

    activations: Tensor
    tokens: Tensor
    kept: Tensor


def read_documents(text: Sequence[Path], fraction: float) -> Iterator[Document]:
    """The documents of local files or directories; of none: of the embedded corpus."""
    if not text:
        yield from demo_documents(PACKAGES, partial(held_out, fraction=fraction, seed=0))
    for number, path in enumerate(text):
        for document in local_documents(path, "text"):
            yield Document(f"{number}/{document.key}" if len(text) > 1 else document.key, document.text, document.origin)


def arithmetic(model: LanguageModel, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which the model runs with matrix products in `dtype`."""
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def folder_of(work: Path, bos: bool) -> Path:
    """Where the contexts with or without the BOS token are."""
    return work / ("bos" if bos else "no-bos")


def capture(model: LanguageModel, documents: Iterable[Document], work: Path, settings: Settings) -> dict[str, Any]:
    """Capture what is not yet in `work`; what capture.json says, both settings of BOS.

    Raises:
        DataError: `work` holds another model or other settings.
    """
    wanted = {"model_digest": model.digest, **asdict(settings), "hook_points": list(settings.hook_points)}
    file = work / "capture.json"
    about = read_json(file, "the record of what was captured") if file.exists() else {**wanted, "passes": {}}
    other = sorted(name for name, value in wanted.items() if about.get(name) != value)
    if other:
        raise DataError(f"{work}: was captured with another {', '.join(other)}; give the same, or another --work")
    kept = list(documents) if len(about["passes"]) < 2 else []
    for bos in (False, True):
        place = folder_of(work, bos)
        if place.name in about["passes"]:
            continue
        info = tokenizer_info(model.tokenizer, model.name)
        asked = TokenizeSettings(settings.context_size, settings.tokens, bos, None, 0, settings.held_out_fraction, 0)
        figures = tokenize_corpus(kept, info, asked, place / "tokens.zarr")
        store = open_tokens(place / "tokens.zarr")
        for split in SPLITS:
            _capture_split(model, store, split, settings, place)
        about["passes"][place.name] = figures
        write_json(file, about)
    return about


def _capture_split(model: LanguageModel, store: TokenStore, name: str, settings: Settings, place: Path) -> None:
    """One pass over a split."""
    split = {"train": store.train, "eval": store.eval}[name]
    ids = torch.from_numpy(split.read()).long()
    found: dict[str, list[Tensor]] = {hook: [] for hook in settings.hook_points}
    losses = []
    progress = Progress(f"{place.name}, {name}", ids.numel())
    for rows in ids.split(CONTEXTS_AT_A_TIME):
        with arithmetic(model, settings.dtype):
            if name == "eval":
                losses.append(model.loss(rows).cpu())
            for hook, values in model.activations(rows, settings.hook_points).items():
                found[hook].append(values.to("cpu", torch.bfloat16))
        progress.update(rows.numel())
    progress.close()
    tensors = {hook: torch.cat(parts) for hook, parts in found.items()}
    tensors["tokens"], tensors["kept"] = ids.int(), torch.from_numpy(store.mask(ids.numpy()))
    if losses:
        tensors["loss"] = torch.cat(losses)
    save_file(tensors, str(place / f"{name}.safetensors"))


def read_part(work: Path, bos: bool, split: str, hook_point: str) -> Part:
    """One hook point of a captured split."""
    with safe_open(str(folder_of(work, bos) / f"{split}.safetensors"), "pt") as file:
        return Part(file.get_tensor(hook_point).float(), file.get_tensor("tokens").long(), file.get_tensor("kept"))


def read_loss(work: Path, bos: bool) -> Tensor:
    """Cross entropies of the held-out split with nothing replaced, float32 [n, T - 1], nats."""
    with safe_open(str(folder_of(work, bos) / "eval.safetensors"), "pt") as file:
        return file.get_tensor("loss")
