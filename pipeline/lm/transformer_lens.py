"""The back end on TransformerLens: a TransformerBridge around the same transformers model, without compatibility mode
(which folds norms and centres the residual stream: other activations).

The bridge computes attention eagerly and norms in Python, so it agrees with :mod:`pipeline.lm.huggingface` to rounding,
not bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.lm.families import check_bridge
from pipeline.lm.hook_points import HookPoint
from pipeline.lm.huggingface import affine, visit_in_place
from pipeline.lm.language_model import LanguageModel, Start
from pipeline.lm.mlp import BlockMLP
from pipeline.lm.projections import Cut, of_attention
from pipeline.lm.quiet import quiet
from pipeline.lm.source import ModelSource
from pipeline.lm.splicing import Run
from pipeline.lm.unembedding import Unembedding, part_of, read_unembedding

_NORMS = ("ln1", "ln1_post", "ln2", "ln2_post")
_NORMALIZED = ".hook_normalized"
_HUGGINGFACE = "set model.backend to huggingface"


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
        check_bridge(source.declared, source.text_config, source.name)
        parameter = next(model.parameters())
        architecture = source.declared
        blocks = architecture.block_list(model)
        super().__init__(source, parameter.device, parameter.dtype, len(blocks), whole)
        # The bridge puts its own modules in the place of these; the originals are kept.
        declared = source.blocks[: len(blocks)]
        self._mlps = [BlockMLP(block, names) for block, names in zip(blocks, declared, strict=True)]
        self._attentions = [block.get_submodule(names.attention) for block, names in zip(blocks, declared, strict=True)]
        self._config = model.config
        self._affines = [
            {norm: affine(block.get_submodule(path), names) for norm in _NORMS if (path := getattr(names, norm)) is not None}
            for block, names in zip(blocks, declared, strict=True)
        ]
        gain = self._final_gain = affine(part_of(model, architecture.final_norm), architecture)[0]
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
        run.batch = token_ids.shape
        hooks: list[tuple[str, Callable[..., Tensor | None]]] = []
        for point in sorted(self._source.points.parse_all(run.wanted).values()):
            if point.path:
                raise DataError(f"hook point '{point.name}': TransformerLens knows no modules; {_HUGGINGFACE}")
            if point.site.endswith(_NORMALIZED):
                hooks.extend(self._normalized_hooks(run, point))
            else:
                hooks.append((self._bridge_name(point), self._hook(run, point)))
        with self._bridge.hooks(fwd_hooks=hooks):
            return self._bridge(token_ids, return_type="logits")

    def _hook(self, run: Run, point: HookPoint) -> Callable[..., Tensor | None]:
        if point.site == "attn.hook_q" and self._source.blocks[point.layer].gated:
            return _heads(run, point.name, of_attention(0)(self._source.blocks[point.layer], self._config)[1])
        return _HOW.get(point.site, _hook)(run, point.name)

    def _bridge_name(self, point: HookPoint) -> str:
        """What TransformerLens calls a hook point."""
        if not 0 <= point.layer < self.n_layers:
            return point.name
        site = self._source.blocks[point.layer].bridge_names.get(point.site, point.site)
        return f"blocks.{point.layer}.{site}"

    def _normalized_hooks(self, run: Run, point: HookPoint) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """A value that is replaced changes the norm's output, so that with its own value it is the original bit for bit."""
        norm = point.site.removesuffix(_NORMALIZED)
        gain = self._final_gain if norm == "ln_final" else self._affines[point.layer][norm][0]
        seen: list[Tensor] = []

        def at_normalized(value: Tensor, hook: Any) -> None:
            seen[:] = [run.by_context(value.to(self.dtype))]

        def at_out(value: Tensor, hook: Any) -> Tensor:
            return run.visit_normalized(point.name, seen.pop(), value, gain)

        return [(point.name, at_normalized), (f"{point.name.removesuffix(_NORMALIZED)}.hook_out", at_out)]

    def _mlp(self, layer: int) -> BlockMLP:
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


def _heads(run: Run, name: str, cut: Cut | None = None) -> Callable[..., Tensor | None]:
    """TransformerLens keeps heads apart, [b, T, heads, width of a head]; `cut`: the part of them that is meant."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        beside = value.flatten(-2)
        part = beside if cut is None else cut.take(beside)
        new = run.visit(name, part)
        assert isinstance(new, Tensor)
        if new is part:
            return value
        return (new if cut is None else cut.put(beside, new)).unflatten(-1, value.shape[-2:])

    return hook


def _middle(run: Run, name: str) -> Callable[..., Tensor | None]:
    """The residual stream that the MLP's norm reads is added again after the MLP."""

    def hook(value: Tensor, hook: Any) -> None:
        visit_in_place(run, name, value)

    return hook


# Sites whose value is not simply taken and given back.
_HOW: Mapping[str, Callable[[Run, str], Callable[..., Tensor | None]]] = {
    "hook_resid_mid": _middle,
    **{f"attn.hook_{part}": _heads for part in "qkvz"},
}
