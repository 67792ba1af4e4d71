"""From installed packages to a small language model in Hugging Face form with its figures."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch

from pipeline.corpus.demo import source_files
from pipeline.errors import NumericsError, ParamsError
from pipeline.files import atomic_directory, ensure_writable, root, write_json
from pipeline.memory import Need, require_memory
from pipeline.pretraining.corpus import pretraining_text, save_tokenizer, token_stream, train_tokenizer
from pipeline.pretraining.ngrams import bigram_cross_entropy, unigram_cross_entropy
from pipeline.pretraining.training import held_out_loss, train_language_model

if TYPE_CHECKING:
    from pipeline.params.schema import DemoParams


def check_memory(params: DemoParams) -> None:
    """Refuse a model or a batch that cannot be held: weights, gradients and one moment; logits.

    Raises:
        ParamsError: which key to lower.
    """
    stated = {f"demo.{name}": value for name, value in params.to_dict().items() if isinstance(value, int)}

    def of(*names: str) -> dict[str, float]:
        return {key: stated[key] for key in (f"demo.{name}" for name in names)}

    layer = 4 * params.d_model**2 + 2 * params.d_model * params.d_mlp
    require_memory(
        Need("the blocks", 3 * 4 * params.n_layers * layer, of("n_layers", "d_model", "d_mlp")),
        Need("the embeddings", 3 * 4 * 2 * params.vocab_size * params.d_model, of("vocab_size", "d_model")),
        Need(
            "the logits of a batch",
            4 * params.batch_size * params.context_size * params.vocab_size,
            of("batch_size", "context_size", "vocab_size"),
        ),
    )


def pretrain(params: DemoParams, out: Path) -> dict[str, float | int | str]:
    """Train the tokenizer and the model, write `out` (fp16 safetensors, tokenizer, config; the figures in pretraining.json).

    Held-out figures are in nats a token over held-out documents, none of whose blocks was trained on; the bigram model is
    trained on the same training text.

    Args:
        params: the demo section.
        out: model directory, replaced when the new one is whole.

    Raises:
        ParamsError: the model or a batch of it cannot be held, or there is no window of text.
        NumericsError: the training has diverged.
    """
    check_memory(params)
    checkpoints = root() / "data" / "pretrain_checkpoints"
    ensure_writable(checkpoints, "checkpoints")
    packages = [*params.text_packages, *params.pretrain_packages]
    text = pretraining_text(packages, params.held_out_fraction, params.seed)
    tokenizer = train_tokenizer(text.train, params.vocab_size)
    train, held_out = token_stream(tokenizer, text.train), token_stream(tokenizer, text.held_out)
    # The pipeline evaluates on the text packages alone: the same figures for their held-out documents.
    text_keys = {key for package in params.text_packages for key, _ in source_files(package)}
    text_held_out = token_stream(tokenizer, [d for d in text.held_out if d.key in text_keys])
    for what, stream in (("training", train), ("held-out", held_out), ("held-out text packages'", text_held_out)):
        if len(stream) <= params.context_size:
            raise ParamsError(
                f"demo.held_out_fraction: {params.held_out_fraction} gives {len(stream):,} {what} tokens, no window of "
                f"demo.context_size {params.context_size:,}; change one of them"
            )
    figures: dict[str, float | int | str] = {
        "corpus_digest": text.digest,
        "train_documents": len(text.train),
        "held_out_documents": len(text.held_out),
        "train_tokens": len(train),
        "held_out_tokens": len(held_out),
        "trained_tokens": params.total_tokens,
        "ce_unigram": unigram_cross_entropy(train, held_out, params.vocab_size),
        "ce_bigram": bigram_cross_entropy(train, held_out, params.vocab_size),
        "ce_bigram_text_packages": bigram_cross_entropy(train, text_held_out, params.vocab_size),
    }
    click.echo(f"pretrain: {len(train):,} training tokens; bigram {figures['ce_bigram']:.3f} nats", err=True)

    def evaluate(model: torch.nn.Module, step: int) -> None:
        click.echo(f"step {step}: held-out {held_out_loss(model, held_out, params.context_size):.4f} nats", err=True)

    checkpoint = checkpoints / text.digest[:16]
    model = train_language_model(params, train, checkpoint, evaluate=evaluate)
    model.to(torch.float16)
    with atomic_directory(out) as place:
        model.save_pretrained(place)  # type: ignore[operator]
        save_tokenizer(tokenizer, place, params.context_size)
        figures["ce_held_out"] = held_out_loss(model.to(torch.float32), held_out, params.context_size)
        figures["ce_held_out_text_packages"] = held_out_loss(model, text_held_out, params.context_size)
        if not math.isfinite(float(figures["ce_held_out"])):
            raise NumericsError(
                f"pretrain: the held-out loss is {figures['ce_held_out']} after {params.total_tokens:,} tokens: it has "
                "diverged; lower demo.muon_lr, demo.adamw_lr or demo.weight_decay"
            )
        figures["ce_below_bigram"] = float(figures["ce_bigram"]) - float(figures["ce_held_out"])
        write_json(place / "pretraining.json", figures)
    shutil.rmtree(checkpoint.parent, ignore_errors=True)
    return figures
