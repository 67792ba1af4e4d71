"""The back end on TransformerLens: a TransformerBridge around the same transformers model, without compatibility mode
(which folds norms and centres the residual stream: other activations).

The bridge computes attention eagerly and norms in Python, so it agrees with :mod:`pipeline.lm.huggingface` to rounding,
not bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.lm.architectures import architecture_of
from pipeline.lm.huggingface import affine
from pipeline.lm.language_model import LanguageModel, Start
from pipeline.lm.quiet import quiet
from pipeline.lm.source import ModelSource
from pipeline.lm.splicing import Run
from pipeline.lm.unembedding import Unembedding, read_unembedding

_NORMS = ("ln1", "ln2")


class TransformerLensModel(LanguageModel):
    """A model read and written through TransformerLens's hook points.

    Args:
        source: where it came from.
        model: the loaded transformers model, on its device, in evaluation mode; the bridge takes it over.
        whole: whether it has all blocks and the unembedding.

    Raises:
        DataError: the bridge would run another model than this one.
    """

    backend = "transformer_lens"

    def __init__(self, source: ModelSource, model: nn.Module, whole: bool = True) -> None:
        parameter = next(model.parameters())
        architecture = architecture_of(source.model_type, source.name)
        blocks = architecture.block_list(model)
        super().__init__(source, parameter.device, parameter.dtype, len(blocks), whole)
        if not getattr(model.config, "scale_attn_weights", True):
            raise DataError(
                f"model '{source.name}': its scale_attn_weights is false, which TransformerLens ignores; "
                "set model.backend to huggingface"
            )
        # The bridge puts its own modules in the place of these; the originals are kept.
        self._mlps = [block.get_submodule(architecture.mlp) for block in blocks]
        self._attentions = [block.get_submodule(architecture.attention) for block in blocks]
        self._config = model.config
        self._affines = [
            {
                "ln1": affine(block.get_submodule(architecture.ln1), architecture),
                "ln2": affine(block.get_submodule(architecture.ln2), architecture),
            }
            for block in blocks
        ]
        gain, _ = affine(model.get_submodule(architecture.final_norm), architecture)
        self._unembedding = read_unembedding(model, architecture, source.name, gain) if whole else None
        with quiet():
            from transformer_lens.model_bridge import TransformerBridge

            self._bridge: Any = TransformerBridge.boot_transformers(
                str(source.directory),
                hf_model=model,
                tokenizer=_stand_in(),
                device=str(parameter.device),
                dtype=parameter.dtype,
            )
            self._bridge.eval()

    def _forward(self, token_ids: Tensor, run: Run, start: Start | None = None) -> Tensor:
        hooks: list[tuple[str, Callable[..., Tensor | None]]] = []
        for layer in range(self.n_loaded):
            prefix = f"blocks.{layer}."
            wanted = [name for name in run.wanted if name.startswith(prefix)]
            for norm in _NORMS:
                if any(name.startswith(f"{prefix}{norm}.") for name in wanted):
                    hooks.extend(self._norm_hooks(run, layer, norm))
            hooks.extend((name, _hook(run, name)) for name in wanted if name.split(".")[2] not in _NORMS)
        with self._bridge.hooks(fwd_hooks=hooks):
            return self._bridge(token_ids, return_type="logits")

    def _norm_hooks(self, run: Run, layer: int, norm: str) -> list[tuple[str, Callable[..., Tensor | None]]]:
        prefix = f"blocks.{layer}.{norm}"
        gain, _ = self._affines[layer][norm]
        seen: list[Tensor] = []

        def at_normalized(value: Tensor, hook: Any) -> None:
            seen[:] = [value.to(self.dtype)]

        def at_out(value: Tensor, hook: Any) -> Tensor:
            return run.visit_norm(prefix, seen.pop() if seen else value, value, gain)

        first = [(f"{prefix}.hook_normalized", at_normalized)] if f"{prefix}.hook_normalized" in run.wanted else []
        return [*first, (f"{prefix}.hook_out", at_out)]

    def _mlp(self, layer: int) -> nn.Module:
        return self._mlps[layer]

    def _attention(self, layer: int) -> tuple[nn.Module, Any]:
        return self._attentions[layer], self._config

    def _affine(self, layer: int, norm: str) -> tuple[Tensor | None, Tensor | None]:
        return self._affines[layer][norm]

    def unembedding(self) -> Unembedding:
        self.check_whole()
        assert self._unembedding is not None
        return self._unembedding


def _stand_in() -> Any:
    """A tokenizer for the bridge, which is given token ids alone: a real one it would load again and change."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"": 0}, unk_token="")), eos_token="")


def _hook(run: Run, name: str) -> Callable[..., Tensor]:
    def hook(value: Tensor, hook: Any) -> Tensor:
        new = run.visit(name, value)
        assert isinstance(new, Tensor)
        return new

    return hook
