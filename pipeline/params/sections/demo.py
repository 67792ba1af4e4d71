"""The embedded default's text and small language model, made by `python -m stages.pretrain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section, rule

PACKAGE = (r"[A-Za-z0-9][A-Za-z0-9._-]*", "a distribution's name, or stdlib")


@dataclass(frozen=True)
class DemoParams(Section):
    """Text and model of the embedded default (the model is made by python -m stages.pretrain)."""

    NAME: ClassVar[str] = "demo"

    text_packages: tuple[str, ...] = param(
        ("stdlib", "numpy", "sympy", "networkx"),
        form=PACKAGE,
        about="installed packages whose documentation is the pipeline's text",
    )
    pretrain_packages: tuple[str, ...] = param(
        ("torch", "transformers", "scipy", "scikit-learn", "pandas"), form=PACKAGE, about="further ones for pretraining"
    )
    vocab_size: int = param(4096, at_least=257, about="entries of the byte-level BPE tokenizer")
    d_model: int = param(128, at_least=1, about="width of the residual stream")
    n_layers: int = param(4, at_least=1, at_most=1000, about="transformer blocks")
    n_heads: int = param(4, at_least=1, about="attention heads per block")
    d_mlp: int = param(512, at_least=1, about="width of the MLP")
    context_size: int = param(128, at_least=2, about="tokens in a training window")
    batch_size: int = param(32, at_least=1, about="windows in a step")
    total_tokens: int = param(16_000_000, at_least=1, about="tokens of pretraining (about half an hour on two cores)")
    muon_lr: float = param(0.01, more_than=0, about="learning rate of Muon, for the 2-D matrices of the blocks")
    adamw_lr: float = param(0.004, more_than=0, about="learning rate of AdamW, for the rest")
    weight_decay: float = param(0.05, at_least=0, about="of both")
    warmup_steps: int = param(30, at_least=0, about="steps of linear warm-up")
    decay_fraction: float = param(
        0.2, at_least=0, at_most=1, about="share of the steps, at the end, in which the rate falls to 0"
    )
    held_out_fraction: float = param(0.05, more_than=0, less_than=1, about="share of the documents never trained on")
    seed: int = param(0, at_least=0, about="of the pretraining")

    @rule("n_heads")
    def _heads_divide_the_width(self) -> str | None:
        if self.d_model % self.n_heads:
            return f"d_model {self.d_model} is not divisible by {self.n_heads} heads"
        return None

    @rule("text_packages")
    def _some_text(self) -> str | None:
        return None if self.text_packages else "the list is empty; the demo corpus needs text"

    @rule("total_tokens")
    def _at_least_one_batch(self) -> str | None:
        batch = self.batch_size * self.context_size
        return f"less than one batch of {batch} tokens" if self.total_tokens < batch else None
