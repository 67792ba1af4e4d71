"""Every hook point against plain hooks on the family's own modules; modules by their path; what cannot be had is refused."""

from __future__ import annotations

import copy

import pytest
import torch

from pipeline.errors import DataError
from pipeline.lm.language_model import Start
from pipeline.lm.loading import BACKENDS, load_language_model, model_widths
from tests.lm.conftest import CONFIGURATIONS
from tests.lm.families import LAYERS, D
from tests.lm.shapes import D_HEAD, HEADS, expected_of, shape_of, with_plain_hooks
from tests.messages import saying

TOLERANCE = 2e-6
FAMILIES = list(CONFIGURATIONS)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def same(captured, original):
    return original.clone()


def louder(captured, original):
    return 1.5 * original + 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_hook_point_is_what_plain_hooks_read(family, language_model, token_ids):
    model = language_model(family, "huggingface")
    expected = expected_of(family, model._model, token_ids)
    names = model.hook_points()
    assert set(names) == set(expected)
    acts = model.activations(token_ids, names)
    for name in names:
        assert acts[name].shape == expected[name].shape == (3, 17, model.hook_width(name)), name
        assert relative(acts[name], expected[name]) < TOLERANCE, name
        if "normalized" not in name:
            assert torch.equal(acts[name], expected[name]), name
    # In the order of a run: neurons come of what the MLP reads, and the output of them.
    assert [name for name in names if name.startswith("blocks.1.")] == [
        f"blocks.1.{site}" for site in model._source.blocks[1].sites
    ]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox_sequential"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_replaced_middle_of_a_block_is_what_mlp_and_stream_go_on_with(family, backend, language_model, token_ids):
    model = language_model(family, backend)
    hook, new = "blocks.1.hook_resid_mid", torch.randn(3, 17, D, generator=torch.Generator().manual_seed(2))
    given, kept = [], {}

    def replace(captured, original):
        given.append(original)
        kept.update({name: captured[name].clone() for name in captured})
        return new

    seen = {}

    def watch(captured, original):
        seen.update(captured)
        return original

    clean = model.activations(token_ids, [hook, "blocks.1.hook_attn_out"])
    model.logits(token_ids, {hook: replace, "blocks.1.hook_resid_post": watch})
    assert torch.equal(given[0], clean[hook])  # and was not written over
    assert torch.equal(kept["blocks.1.hook_attn_out"], clean["blocks.1.hook_attn_out"])
    assert torch.equal(seen[hook], new)
    plain = language_model(family, "huggingface")._blocks[1]
    ln2, mlp = (plain.get_submodule(getattr(shape_of(family), name)) for name in ("ln2", "mlp"))
    out = mlp(ln2(new))
    assert relative(seen["blocks.1.hook_mlp_out"], out) < TOLERANCE
    captured = {}
    model.logits(
        token_ids,
        {hook: lambda c, o: new, "blocks.2.hook_resid_pre": lambda c, o: captured.update({"x": o}) or o},
        capture=(),
    )
    assert relative(captured["x"], new + out) < TOLERANCE


def test_a_parallel_model_has_no_middle_of_a_block(language_model, token_ids):
    with pytest.raises(DataError, match=saying("blocks.1.hook_resid_mid", "family gpt_neox", "parallel")):
        language_model("gpt_neox", "huggingface").activations(token_ids, ["blocks.1.hook_resid_mid"])


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "qwen3"])
def test_one_part_of_a_projection_is_replaced(family, language_model, token_ids):
    """A projection that gives queries, keys and values has its own weights for each: one of them zero is that part zero."""
    model = language_model(family, "huggingface")
    own = copy.deepcopy(model._model)
    block = own.get_submodule(f"{shape_of(family).model}.{shape_of(family).blocks}.1")
    with torch.no_grad():
        if family == "gpt_neox":
            qkv = block.attention.query_key_value
            qkv.weight.view(HEADS, 3, D_HEAD, D)[:, 1] = 0.0
            qkv.bias.view(HEADS, 3, D_HEAD)[:, 1] = 0.0
        elif family == "gpt2":
            block.attn.c_attn.weight[:, D : 2 * D] = 0.0
            block.attn.c_attn.bias[D : 2 * D] = 0.0
        else:
            block.self_attn.k_proj.weight.zero_()
        expected = own(input_ids=token_ids, use_cache=False).logits
    got = model.logits(token_ids, {"blocks.1.attn.hook_k": lambda captured, original: torch.zeros_like(original)})
    assert relative(got, expected) < TOLERANCE
    assert relative(got, model.logits(token_ids)) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_runs_from_a_block_are_those_of_the_tokens_at_every_hook_point(family, language_model, token_ids):
    model = language_model(family, "huggingface")
    modules = {
        "gpt2": ["module:transformer.h.1.mlp.act:output", "module:transformer.h.2:input", "module:transformer.drop:output"],
        "llama": ["module:model.layers.1.mlp.down_proj:input", "module:model.norm:input", "module:lm_head:input"],
    }[family]
    residual = {layer: f"blocks.{layer}.hook_resid_pre" for layer in range(LAYERS)}
    for name in (*model.hook_points(), *modules):
        first = model.first_block(name)
        known = model.activations(token_ids, [residual[first], name])
        start = Start(first, known[residual[first]], {name: known[name]})
        whole = model.logits(token_ids, {name: louder}, capture=())
        assert torch.equal(model.logits(token_ids, {name: louder}, capture=(), start=start), whole), name
        assert torch.equal(model.logits(token_ids, {name: same}, capture=(), start=start), model.logits(token_ids)), name
    assert [model.first_block(name) for name in ("hook_embed", "ln_final.hook_out", modules[0])] == [0, LAYERS - 1, 1]


def test_a_gradient_goes_through_every_hook_point(language_model, token_ids):
    """Of the sum of logits in the replaced value, by central differences in float64."""
    model = language_model("gpt2", "huggingface")
    double = copy.deepcopy(model._model).double().requires_grad_(False)
    wide = type(model)(model._source, double)
    ids = token_ids[:1, :5]
    weights = torch.randn(5, 300, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for name in ("blocks.1.hook_resid_mid", "blocks.1.attn.hook_v", "blocks.1.mlp.hook_post", "hook_embed"):
        value = wide.activations(ids, [name])[name]
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

        def total(x, name=name):
            return (wide.logits(ids, {name: lambda captured, original: x}, capture=(), gradient=True) * weights).sum()

        x = value.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(total(x), x)
        step = 1e-5
        numeric = (total(value + step * direction) - total(value - step * direction)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-6), name


@pytest.mark.parametrize("family", FAMILIES)
def test_any_module_by_its_path(family, language_model, token_ids):
    model = language_model(family, "huggingface")
    found = with_plain_hooks(model._model, token_ids)
    plain = model.logits(token_ids)
    names = {f"module:{path}:{side}": value for (path, side), value in found.items() if path and path != "lm_head"}
    assert len(names) > 40
    acts = model.activations(token_ids, list(names))
    for name, value in names.items():
        assert torch.equal(acts[name], value), name
    everywhere = dict.fromkeys(names, same)
    assert torch.equal(model.logits(token_ids, everywhere, capture=()), plain)
    assert (model.loss(token_ids, everywhere, capture=()) - model.loss(token_ids)).abs().max().item() == 0


def test_a_module_and_a_site_are_the_same_place(language_model, token_ids):
    model = language_model("llama", "huggingface")
    pairs = {
        "module:model.layers.1.mlp.down_proj:input": "blocks.1.mlp.hook_post",
        "module:model.layers.1.self_attn.o_proj:input": "blocks.1.attn.hook_z",
        "module:model.layers.1.mlp:output": "blocks.1.hook_mlp_out",
        "module:model.layers.1:input": "blocks.1.hook_resid_pre",
        "module:model.norm:output": "ln_final.hook_out",
    }
    for module, site in pairs.items():
        assert model.hook_width(module) == model.hook_width(site)
        a, b = (model.logits(token_ids, {name: louder}, capture=()) for name in (module, site))
        assert torch.equal(a, b)
        assert relative(a, model.logits(token_ids)) > 1e-3
        x = model.activations(token_ids, [site, module])
        assert list(x) == [site, module]
        assert torch.equal(x[site], x[module])


def test_a_model_for_a_module_has_the_blocks_that_it_needs(model_directory, language_model, token_ids):
    full = language_model("llama", "huggingface")
    for name, blocks, whole in (
        ("hook_embed", 1, False),
        ("module:model.layers.1.mlp.act_fn:output", 2, False),
        ("blocks.1.attn.hook_z", 2, False),
        ("ln_final.hook_out", 3, False),
        ("module:model.norm:input", 3, True),
    ):
        model = load_language_model(model_directory("llama"), device="cpu", hook_points=[name])
        assert (model.n_loaded, model.whole) == (blocks, whole)
        assert torch.equal(model.activations(token_ids, [name])[name], full.activations(token_ids, [name])[name])
    with pytest.raises(DataError, match="was not loaded"):
        load_language_model(model_directory("llama"), device="cpu", hook_points=["hook_embed"]).activations(
            token_ids, ["ln_final.hook_out"]
        )


def test_a_run_stops_at_a_module(language_model, token_ids):
    model = language_model("llama", "huggingface")
    ran = []
    handles = [
        block.mlp.down_proj.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(model._blocks)
    ]
    try:
        model.activations(token_ids, ["module:model.layers.1.mlp.gate_proj:output", "blocks.0.hook_mlp_out"])
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0]


def test_a_part_of_the_model_that_a_function_runs_is_not_seen(language_model, token_ids):
    """Neurons are kept of the run itself, not of the MLP that a replacement function computes."""
    model = language_model("llama", "huggingface")
    read, neurons, written = "blocks.1.ln2.hook_out", "blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"
    mlp = model.layer_mlp(1)
    kept = []

    def splice(captured, original):
        out = mlp(2.0 * captured[read])
        kept.append(captured[neurons].clone())
        return out

    model.logits(token_ids, {written: splice}, capture=[read, neurons])
    assert torch.equal(kept[0], model.activations(token_ids, [neurons])[neurons])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("module:model.layers.1.mlp.down_prj:input", ("no module", "did you mean 'module:model.layers.1.mlp.down_proj:input'")),
        ("module:model.layers.7.mlp:input", ("3 layers", "model.layers.2")),
        ("module:model.layers.1.mlp", ("unknown hook point", "module:PATH:input|output")),
        ("module:model.embed_tokens:input", ("wanted an activation", "torch.int64")),
        ("module:model.rotary_emb:output", ("for [2, 3] tokens", "[1, 3, 8]")),
        ("module:model:output", ("wanted an activation", "another module")),
    ],
)
def test_modules_that_are_refused(name, parts, model_directory):
    with pytest.raises(DataError, match=saying(f"'{name}'", *parts)):
        model_widths(model_directory("llama")).hook_width(name)


def test_modules_that_do_not_run_once_are_refused(language_model, token_ids, model_directory, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    source = model_widths(model_directory("llama"))
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: forward(self, x) + 0 * self.gate_proj(x).sum())
    with pytest.raises(DataError, match=saying("'module:model.layers.0.mlp.gate_proj:output'", "2 times")):
        source.hook_width("module:model.layers.0.mlp.gate_proj:output")
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: x)
    with pytest.raises(DataError, match=saying("'module:model.layers.0.mlp.gate_proj:output'", "not at all")):
        source.hook_width("module:model.layers.0.mlp.gate_proj:output")


def test_modules_are_ordered_by_a_run(model_directory):
    source = model_widths(model_directory("llama"))
    names = [f"module:model.layers.1.mlp.{name}" for name in ("down_proj:output", "gate_proj:input", "down_proj:input")]
    assert source.in_order(names) == [names[1], names[2], names[0]]


def test_the_bridge_refuses_modules(language_model, token_ids):
    with pytest.raises(DataError, match=saying("module:model.norm:input", "model.backend", "huggingface")):
        language_model("llama", "transformer_lens").activations(token_ids, ["module:model.norm:input"])
