"""A language model small enough for naive computations, run by plain transformers hooks or by the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.evaluation.baselines import PrincipalDirections
from pipeline.evaluation.split_tokens import SplitTokens

D_MODEL, N_LAYERS, VOCABULARY, CONTEXT = 16, 3, 61, 12
HOOK = "blocks.1.hook_resid_post"
MLP_IN, MLP_OUT = "blocks.1.ln2.hook_out", "blocks.1.hook_mlp_out"


def write_tiny_model(path: Path, seed: int = 7, parent: Path | None = None) -> Path:
    """A random GPT-NeoX in Hugging Face form, its weights large enough that layers matter.

    With `parent` it is that model, its weights moved by a fifth: another checkpoint of one training.
    """
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPTNeoXForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(6.0)
            if parent is not None:
                before = GPTNeoXForCausalLM.from_pretrained(parent, dtype=torch.float32).state_dict()
                for name, parameter in model.named_parameters():
                    parameter.copy_(before[name] + 0.2 * parameter * (parameter.ndim == 2))
    model.save_pretrained(path)
    return path


def tiny_tokens(n_contexts: int = 9, seed: int = 0) -> np.ndarray:
    """int32 [n, CONTEXT], token 0 (the end of a text) in unequal numbers per context."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCABULARY, (n_contexts, CONTEXT))
    share = np.linspace(0.0, 0.5, n_contexts)[:, None]
    return np.where(rng.random((n_contexts, CONTEXT)) < share, 0, tokens).astype(np.int32)


class ArraySplit:
    """Contexts in memory, read like a split of the token store; a document is two contexts and a half, the first one and the third
    are pieces of one text file."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens
        self.n_contexts, self.context_size = tokens.shape
        n_documents = int(self.read(field="document_ids").max(initial=-1)) + 1
        self.file_ids = np.array([0 if n in (0, 2) else -1 for n in range(n_documents)], dtype=np.int32)

    def whole_documents(self) -> np.ndarray:
        """int [n, T]: the document of each token, the file being that of its first piece."""
        documents = self.read(field="document_ids")
        return np.where(documents == 2, 0, documents)

    def read(self, start: int = 0, stop: int | None = None, field: str = "tokens") -> np.ndarray:
        documents = (np.arange(self.tokens.size) * 2 // (5 * self.context_size)).reshape(self.tokens.shape)
        return {"tokens": self.tokens, "document_ids": documents.astype(np.int32)}[field][start:stop]


def held_out(tokens: np.ndarray, batch_contexts: int = 4, n_tokens: int | None = None) -> SplitTokens:
    return SplitTokens(ArraySplit(tokens), lambda _, ids: ids != 0, n_tokens, batch_contexts)


def hooked_run(module: nn.Module, ids: Tensor, where: nn.Module, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits with the output of a sub-module changed: transformers and torch only."""

    def hook(_: nn.Module, args: object, output: object) -> object:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = where.register_forward_hook(hook)
    try:
        with torch.no_grad():
            return module(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()


def principal_of(x: Tensor) -> PrincipalDirections:
    """Mean and all principal directions of rows x [n, D], by an eigendecomposition of the covariance."""
    x = x.double()
    centred = x - x.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    return PrincipalDirections(x.mean(0), vectors.T.flip(0).contiguous())
