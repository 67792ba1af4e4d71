"""Where each family's own modules are, for plain hooks in tests: written from transformers' code, not from the declarations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.lm.conftest import CONFIGURATIONS
from tests.lm.families import LAYERS

HEADS, D_HEAD, KEY_HEADS = 4, 8, 2
BATCH, TOKENS = 3, 17
Seen = Callable[[str, str], Tensor]  # (path from the model without its head, "input" or "output") -> activation


class Neox:
    """GPT-NeoX, and what other families have that it has not, as None."""

    model, blocks, embed = "gpt_neox", "layers", "embed_in"
    final: str | None = "final_layer_norm"
    ln1: str | None = "input_layernorm"
    ln2: str | None = "post_attention_layernorm"
    ln1_post: str | None = None
    ln2_post: str | None = None
    attention, mlp = "attention", "mlp"
    out: str | None = "attention.dense"  # reads what the heads give
    pre: str | None = "mlp.dense_h_to_4h"
    linear: str | None = None  # of a gated MLP
    post: str | None = "mlp.dense_4h_to_h"
    parallel = False
    offset, eps = 0.0, 1e-3

    def added(self) -> tuple[str, str]:
        """What attention and MLP add to the residual stream is given by these."""
        return self.ln1_post or self.attention, self.ln2_post or self.mlp

    def of_layer(self, layer: int) -> Neox:
        """The shape of one block."""
        return self

    def qkv(self, seen: Seen, block: str) -> list[Tensor]:
        """Queries, keys and values, heads beside each other."""
        return _by_groups(seen(f"{block}.attention.query_key_value", "output"), HEADS)

    def neurons(self, seen: Seen, block: str) -> dict[str, Tensor]:
        """The sites inside the MLP."""
        found = {}
        if self.pre is not None:
            found["mlp.hook_pre"] = seen(f"{block}.{self.pre}", "output")
        if self.linear is not None:
            found["mlp.hook_pre_linear"] = seen(f"{block}.{self.linear}", "output")
        if self.post is not None:
            found["mlp.hook_post"] = seen(f"{block}.{self.post}", "input")
        return found


def _by_groups(fused: Tensor, groups: int) -> list[Tensor]:
    """Of each group of heads that share a key: its queries, its key, its value."""
    each = fused.view(BATCH, TOKENS, groups, -1, D_HEAD)
    return [part.reshape(BATCH, TOKENS, -1) for part in (each[..., :-2, :], each[..., -2, :], each[..., -1, :])]


class GPT2(Neox):
    model, blocks, embed, final = "transformer", "h", "wte", "ln_f"
    attention, ln1, ln2 = "attn", "ln_1", "ln_2"
    out, pre, post = "attn.c_proj", "mlp.c_fc", "mlp.c_proj"

    def qkv(self, seen: Seen, block: str) -> list[Tensor]:
        return list(seen(f"{block}.attn.c_attn", "output").chunk(3, dim=-1))


class Llama(Neox):
    model, embed, final = "model", "embed_tokens", "norm"
    attention = "self_attn"
    out, pre, linear, post = "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"

    def qkv(self, seen: Seen, block: str) -> list[Tensor]:
        return [seen(f"{block}.self_attn.{name}_proj", "output") for name in "qkv"]


class Gemma(Llama):
    offset = 1.0


class Gemma2(Gemma):
    ln1_post, ln2, ln2_post = "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"


class Olmo2(Llama):
    ln1, ln2, ln1_post, ln2_post = None, None, "post_attention_layernorm", "post_feedforward_layernorm"


class Experts(Llama):
    pre, linear, post = None, None, None


class Qwen3Moe(Experts):
    def of_layer(self, layer: int) -> Neox:
        return Llama() if layer == 2 else self


class Linear(Gemma):
    attention, out = "linear_attn", None

    def qkv(self, seen: Seen, block: str) -> list[Tensor]:
        return []


class Gated(Gemma):
    def of_layer(self, layer: int) -> Neox:
        return self if layer == 1 else Linear()

    def qkv(self, seen: Seen, block: str) -> list[Tensor]:
        q, k, v = super().qkv(seen, block)
        return [q.view(BATCH, TOKENS, HEADS, 2 * D_HEAD)[..., :D_HEAD].flatten(-2), k, v]


class LinearExperts(Linear):
    pre, linear, post = None, None, None


class GatedExperts(Gated):
    pre, linear, post = None, None, None

    def of_layer(self, layer: int) -> Neox:
        return self if layer == 1 else LinearExperts()


class Phi3(Llama):
    def qkv(self, seen: Seen, block: str) -> list[Tensor]:
        return list(seen(f"{block}.self_attn.qkv_proj", "output").split([32, 16, 16], dim=-1))

    def neurons(self, seen: Seen, block: str) -> dict[str, Tensor]:
        gate, up = seen(f"{block}.mlp.gate_up_proj", "output").chunk(2, dim=-1)
        return {"mlp.hook_pre": gate, "mlp.hook_pre_linear": up, "mlp.hook_post": seen(f"{block}.mlp.down_proj", "input")}


class GPTJ(GPT2):
    ln2, parallel = None, True
    out, pre, post = "attn.out_proj", "mlp.fc_in", "mlp.fc_out"

    def qkv(self, seen: Seen, block: str) -> list[Tensor]:
        return [seen(f"{block}.attn.{name}_proj", "output") for name in "qkv"]


class OPT(Neox):
    model, embed, final = "model.decoder", "embed_tokens", "final_layer_norm"
    attention, mlp, ln1, ln2 = "self_attn", "fc1", "self_attn_layer_norm", "final_layer_norm"
    out, pre, post, eps = "self_attn.out_proj", "fc1", "fc2", 1e-5

    def added(self) -> tuple[str, str]:
        return "self_attn", "fc2"

    def qkv(self, seen: Seen, block: str) -> list[Tensor]:
        return [seen(f"{block}.self_attn.{name}_proj", "output") for name in "qkv"]


class OPTProjected(OPT):
    embed, final, ln1, ln2 = "project_in", None, None, None


class Bloom(Neox):
    model, blocks, embed, final = "transformer", "h", "word_embeddings_layernorm", "ln_f"
    attention, out = "self_attention", "self_attention.dense"

    def added(self) -> tuple[str, str]:
        return "self_attention.dense", "mlp.dense_4h_to_h"

    def qkv(self, seen: Seen, block: str) -> list[Tensor]:
        return _by_groups(seen(f"{block}.self_attention.query_key_value", "output"), HEADS)


class Falcon(Bloom):
    groups, embed = 1, "word_embeddings"
    parallel, ln2 = True, None

    def added(self) -> tuple[str, str]:
        return "self_attention", "mlp"

    def qkv(self, seen: Seen, block: str) -> list[Tensor]:
        return _by_groups(seen(f"{block}.self_attention.query_key_value", "output"), self.groups)


class FalconGrouped(Falcon):
    groups, ln1, ln2 = KEY_HEADS, "ln_attn", "ln_mlp"


class FalconAlibi(Falcon):
    groups, parallel, ln2 = HEADS, False, "post_attention_layernorm"


class ParallelLlama(Llama):
    parallel, ln2 = True, None


class ParallelNeox(Neox):
    parallel = True


_SHAPES: dict[str, type[Neox]] = {
    "gpt_neox": ParallelNeox,
    "gpt_neox_sequential": Neox,
    "gpt2": GPT2,
    "gemma": Gemma,
    "gemma2": Gemma2,
    "gemma3": Gemma2,
    "gemma3_multimodal": Gemma2,
    "qwen3_moe": Qwen3Moe,
    "qwen3_5": Gated,
    "qwen3_5_multimodal": Gated,
    "qwen3_next": GatedExperts,
    "mixtral": Experts,
    "gpt_oss": Experts,
    "olmo2": Olmo2,
    "olmo3": Olmo2,
    "phi3": Phi3,
    "gptj": GPTJ,
    "opt": OPT,
    "opt_projected": OPTProjected,
    "bloom": Bloom,
    "falcon": Falcon,
    "falcon_grouped": FalconGrouped,
    "falcon_alibi": FalconAlibi,
    "stablelm_parallel": ParallelLlama,
}


def shape_of(name: str) -> Neox:
    """Of a configuration of the tests."""
    assert name in CONFIGURATIONS
    return _SHAPES.get(name, Llama)()


def with_plain_hooks(module: torch.nn.Module, token_ids: Tensor) -> dict[tuple[str, str], Tensor]:
    """{(path, side): activation} of all modules that are given or give first a tensor [b, T, d], or its rows [b T, d]."""
    found, handles = {}, []

    def note(path):
        def hook(module, args, kwargs, output):
            given = args[0] if args else kwargs.get("hidden_states")
            for side, value in (("input", given), ("output", output[0] if isinstance(output, tuple) else output)):
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    continue
                if value.ndim == 2 and len(value) == BATCH * TOKENS:
                    value = value.view(BATCH, TOKENS, -1)
                if value.ndim == 3:
                    found[path, side] = value.clone()

        return hook

    for path, part in module.named_modules():
        handles.append(part.register_forward_hook(note(path), with_kwargs=True))
    with torch.no_grad():
        module(input_ids=token_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def expected_of(name: str, module: torch.nn.Module, token_ids: Tensor) -> dict[str, Tensor]:
    """{hook point: activation}, of the family's own modules; norms are computed in float64."""
    found = with_plain_hooks(module, token_ids)
    family = shape_of(name)

    def seen(path: str, side: str) -> Tensor:
        return found[f"{family.model}.{path}", side]

    def normalized(path: str) -> Tensor:
        norm, x = module.get_submodule(f"{family.model}.{path}"), seen(path, "input").double()
        centred = x - x.mean(-1, keepdim=True) if isinstance(norm, torch.nn.LayerNorm) else x
        return (centred / (centred.pow(2).mean(-1, keepdim=True) + family.eps).sqrt()).float()

    expected = {"hook_embed": seen(family.embed, "output")}
    for layer in range(LAYERS):
        block, at, shape = f"{family.blocks}.{layer}", f"blocks.{layer}.", family.of_layer(layer)
        attention, mlp = (f"{block}.{path}" for path in shape.added())
        expected[f"{at}hook_resid_pre"] = seen(block, "input")
        for norm in ("ln1", "ln1_post", "ln2", "ln2_post"):
            if getattr(shape, norm) is not None:
                expected[f"{at}{norm}.hook_normalized"] = normalized(f"{block}.{getattr(shape, norm)}")
                expected[f"{at}{norm}.hook_out"] = seen(f"{block}.{getattr(shape, norm)}", "output")
        expected |= {f"{at}attn.hook_{part}": value for part, value in zip("qkv", shape.qkv(seen, block), strict=False)}
        if shape.out is not None:
            expected[f"{at}attn.hook_z"] = seen(f"{block}.{shape.out}", "input")
        if shape.ln1_post is not None:
            expected[f"{at}attn.hook_out"] = seen(f"{block}.{shape.attention}", "output")
            expected[f"{at}mlp.hook_out"] = seen(f"{block}.{shape.mlp}", "output")
        expected[f"{at}hook_attn_out"] = seen(attention, "output")
        if name == "opt_projected":
            expected[f"{at}hook_resid_mid"] = seen(f"{block}.self_attn_layer_norm", "output")
        elif not shape.parallel:
            expected[f"{at}hook_resid_mid"] = seen(block, "input") + seen(attention, "output")
        expected[f"{at}mlp.hook_in"] = seen(f"{block}.{shape.mlp}", "input")
        expected |= {f"{at}{site}": value for site, value in shape.neurons(seen, block).items()}
        expected[f"{at}hook_mlp_out"] = seen(mlp, "output")
        expected[f"{at}hook_resid_post"] = seen(block, "output")
    if family.final is not None:
        expected["ln_final.hook_normalized"] = normalized(family.final)
        expected["ln_final.hook_out"] = seen(family.final, "output")
    return expected
