"""What the embedded language model is trained and judged on, as one stream of token ids for each split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pipeline.corpus.demo import corpus_digest, demo_documents
from pipeline.corpus.document import Document, held_out

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class PretrainingText:
    """Training and held-out documents of the demo corpus; no block of a held-out document is in training."""

    train: list[Document]
    held_out: list[Document]
    digest: str


def pretraining_text(packages: Iterable[str], fraction: float, seed: int) -> PretrainingText:
    """Read the prose of `packages` and split it by document, as the tokenize stage does for the demo."""

    def is_held_out(key: str) -> bool:
        return held_out(key, fraction, seed)

    documents = list(demo_documents(packages, is_held_out))
    return PretrainingText(
        train=[d for d in documents if not is_held_out(d.key)],
        held_out=[d for d in documents if is_held_out(d.key)],
        digest=corpus_digest(documents),
    )


def train_tokenizer(documents: Iterable[Document], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer; id 0 is the end-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in documents), trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, documents: list[Document]) -> np.ndarray:
    """int32 [n]: every document followed by the end-of-text token."""
    parts: list[int] = []
    for encoding in tokenizer.encode_batch([d.text for d in documents], add_special_tokens=False):
        parts.extend(encoding.ids)
        parts.append(0)
    return np.asarray(parts, dtype=np.int32)


def save_tokenizer(tokenizer: Tokenizer, path: Path, context_size: int) -> None:
    """Write the tokenizer in Hugging Face form (tokenizer.json, tokenizer_config.json)."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=context_size,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(path)
