"""Both back ends: the right activations, equal to each other, spliced without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.errors import DataError
from pipeline.lm.families import MODEL_FAMILIES
from pipeline.lm.loading import BACKENDS, load_language_model
from tests.lm.conftest import BRIDGED, CONFIGURATIONS
from tests.lm.families import CONTEXT, VOCAB, D
from tests.messages import saying

TOLERANCE = 2e-6
FAMILIES = list(CONFIGURATIONS)
ADDING = [name for name in FAMILIES if name != "opt_projected"]  # opt-350m norms the residual stream after each addition
# One of each way to build a block.
OTHERWISE_BUILT = ["gemma2", "qwen3_moe", "qwen3_next", "olmo2", "phi3", "gpt_oss", "gptj", "opt", "bloom", "falcon"]
NORMS = {"gpt_neox": "input_layernorm", "llama": "input_layernorm", "gpt2": "ln_1", "gemma": "input_layernorm"}


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_every_supported_model_type_is_tested():
    assert {model_type for model_type, _ in CONFIGURATIONS.values()} == set(MODEL_FAMILIES)


@pytest.mark.parametrize("family", BRIDGED)
def test_the_back_ends_agree_everywhere(family, language_model, token_ids):
    ours, theirs = (language_model(family, backend) for backend in BACKENDS)
    names = ours.hook_points()
    a, b = ours.activations(token_ids, names), theirs.activations(token_ids, names)
    assert list(a) == list(b) == names
    for name in names:
        assert a[name].shape == b[name].shape == (*token_ids.shape, ours.hook_width(name))
        assert relative(b[name], a[name]) < TOLERANCE, name
        # Relative to the hook point's usual size: a token whose own activation happens to be tiny is all rounding.
        usual = a[name].norm(dim=-1).square().mean().sqrt()
        worst_token = ((a[name] - b[name]).norm(dim=-1).max() / usual).item()
        assert worst_token < TOLERANCE, name
    assert relative(theirs.logits(token_ids), ours.logits(token_ids)) < TOLERANCE
    assert ours.digest == theirs.digest
    assert (ours.bos_token_id, ours.pad_token_id) == (theirs.bos_token_id, theirs.pad_token_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_stream_is_transformers_own(family, language_model, token_ids):
    model = language_model(family, "huggingface")
    with torch.no_grad():
        out = model._model(input_ids=token_ids, output_hidden_states=True, use_cache=False)
    acts = model.activations(token_ids, model.hook_points())
    for layer in range(model.n_layers):
        assert torch.equal(acts[f"blocks.{layer}.hook_resid_pre"], out.hidden_states[layer])
        if layer > 0:
            assert torch.equal(acts[f"blocks.{layer - 1}.hook_resid_post"], out.hidden_states[layer])
    assert torch.equal(model.logits(token_ids), out.logits)


@pytest.mark.parametrize("family", ADDING)
def test_the_parts_of_a_block_add_up(family, language_model, token_ids):
    model = language_model(family, "huggingface")
    acts = model.activations(token_ids, model.hook_points())
    for layer in range(model.n_layers):
        part = {site: acts[f"blocks.{layer}.{site}"] for site in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")}
        assert relative(sum(part.values()), acts[f"blocks.{layer}.hook_resid_post"]) < TOLERANCE


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "llama", "gemma"])
def test_a_norm_before_and_after_gain_and_bias(family, language_model, token_ids):
    model = language_model(family, "huggingface")
    acts = model.activations(token_ids, model.hook_points())
    norm = model._blocks[1].get_submodule(NORMS[family])
    x = acts["blocks.1.hook_resid_pre"].double()
    centred = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()
    assert relative(acts["blocks.1.ln1.hook_normalized"].double(), expected) < 1e-6
    gain = norm.weight + (1.0 if family == "gemma" else 0.0)
    bias = norm.bias if isinstance(norm, nn.LayerNorm) else 0.0
    assert relative(acts["blocks.1.ln1.hook_out"].double(), expected * gain + bias) < 1e-6
    assert relative(acts["blocks.1.ln1.hook_normalized"], acts["blocks.1.ln1.hook_out"]) > 0.05


@pytest.mark.parametrize(
    ("family", "backend"),
    [*((name, "huggingface") for name in FAMILIES), *((name, "transformer_lens") for name in BRIDGED)],
)
def test_splicing_the_activation_itself_changes_nothing(family, backend, language_model, token_ids):
    model = language_model(family, backend)
    logits = model.logits(token_ids)
    for name in model.hook_points() if family in ("gpt_neox", "llama", "gemma2", "opt", "bloom", "falcon") else ():
        assert torch.equal(model.logits(token_ids, {name: lambda captured, original: original.clone()}), logits), name
    everywhere = dict.fromkeys(model.hook_points(), lambda captured, original: original.clone())
    assert torch.equal(model.logits(token_ids, everywhere), logits)
    difference = model.loss(token_ids, everywhere) - model.loss(token_ids)
    assert difference.abs().max().item() == 0


@pytest.mark.parametrize("family", ["gpt_neox", "gpt_neox_sequential", "gpt2", "llama", *OTHERWISE_BUILT])
def test_replacing_does_the_same_in_both_back_ends(family, language_model, token_ids):
    ours, theirs = (language_model(family, backend) for backend in BACKENDS)
    plain = ours.logits(token_ids)
    for site in (name for name in ours.hook_points() if not name.startswith(("blocks.0.", "blocks.2."))):
        changed = {site: lambda captured, original: original * 0.5 + 0.1}  # some norms take a factor away
        a, b = ours.logits(token_ids, changed), theirs.logits(token_ids, changed)
        assert relative(a, plain) > 1e-3, site
        assert relative(b, a) < TOLERANCE, site


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_replaced_norm_output_is_consistent_with_its_normalized_value(backend, language_model, token_ids):
    model = language_model("gpt2", backend)
    norm = language_model("gpt2", "huggingface")._blocks[1].ln_2
    target = torch.randn(*token_ids.shape, D, generator=torch.Generator().manual_seed(1))
    a = model.logits(token_ids, {"blocks.1.ln2.hook_normalized": lambda captured, original: target})
    out = target * norm.weight + norm.bias
    b = model.logits(token_ids, {"blocks.1.ln2.hook_out": lambda captured, original: out})
    assert relative(a, b) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_captured_holds_the_spliced_run(backend, language_model, token_ids):
    model = language_model("gpt_neox", backend)
    names = model.hook_points()
    clean = model.activations(token_ids, names)
    new = torch.ones(*token_ids.shape, D)
    seen = {}

    def watch(captured, original):
        seen.update(captured)
        assert original.shape == (*token_ids.shape, D)
        return original

    model.logits(token_ids, {"blocks.1.hook_resid_pre": lambda c, o: new, "blocks.2.hook_mlp_out": watch})
    assert list(seen) == names[: names.index("blocks.2.hook_mlp_out")]
    assert torch.equal(seen["blocks.1.hook_resid_pre"], new)
    for name in names[: names.index("blocks.1.hook_resid_pre")]:
        assert torch.equal(seen[name], clean[name])
    assert not torch.allclose(seen["blocks.1.hook_resid_post"], clean["blocks.1.hook_resid_post"])
    # What follows is computed from the replaced value.
    again = model.layer_mlp(1)(seen["blocks.1.ln2.hook_out"])
    assert relative(seen["blocks.1.hook_mlp_out"], again) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_transcoder_splice_reads_one_hook_and_writes_another(backend, language_model, token_ids):
    model = language_model("llama", backend)
    mlp = model.layer_mlp(1)
    source = "blocks.1.ln2.hook_out"
    keys = []

    def splice(captured, original):
        keys.append(list(captured))
        return mlp(captured[source])

    spliced = model.logits(token_ids, {"blocks.1.hook_mlp_out": splice}, capture=[source])
    assert keys == [[source]]
    assert relative(spliced, model.logits(token_ids)) < TOLERANCE


def test_kept_positions_stay_bitwise_original(language_model, token_ids):
    """A replacement at later positions only leaves every earlier logit as it was, bit for bit."""
    model = language_model("gpt2", "huggingface")
    mask = torch.arange(token_ids.shape[1]) >= 9

    def splice(captured, original):
        return torch.where(mask[None, :, None], torch.zeros_like(original), original)

    for site in ("hook_resid_post", "ln2.hook_normalized", "ln1.hook_out"):
        logits = model.logits(token_ids, {f"blocks.1.{site}": splice})
        plain = model.logits(token_ids)
        assert torch.equal(logits[:, :9], plain[:, :9])
        assert not torch.allclose(logits[:, 9:], plain[:, 9:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_model_stops_after_the_last_hook_point(backend, language_model, token_ids):
    model = language_model("gpt_neox", backend)
    ran = []
    blocks = model._blocks if backend == "huggingface" else model._bridge.blocks
    handles = [
        block.register_forward_pre_hook(lambda module, args, layer=layer: ran.append(layer))
        for layer, block in enumerate(blocks)
    ]
    try:
        model.activations(token_ids, ["blocks.1.hook_resid_post"])
        assert ran == [0, 1]
        ran.clear()
        got = model.activations(token_ids, ["blocks.0.hook_mlp_out", "blocks.0.hook_resid_pre"])
        assert ran == [0]
        assert list(got) == ["blocks.0.hook_mlp_out", "blocks.0.hook_resid_pre"]
        ran.clear()
        model.logits(token_ids)
        assert ran == [0, 1, 2]
    finally:
        for handle in handles:
            handle.remove()


def test_no_hooks_are_left_behind(language_model, token_ids):
    model = language_model("gpt_neox", "huggingface")

    def fail(captured, original):
        raise RuntimeError("stop")

    def hooks():
        return [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model._model.modules()]

    before = hooks()
    model.activations(token_ids, ["blocks.1.hook_resid_post"])
    with pytest.raises(RuntimeError, match="stop"):
        model.loss(token_ids, {"blocks.1.ln1.hook_out": fail})
    assert hooks() == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_is_the_cross_entropy_of_the_next_token(backend, language_model, token_ids):
    model = language_model("gpt2", backend)
    logits = model.logits(token_ids)
    loss = model.loss(token_ids)
    assert loss.shape == (3, 16)
    assert loss.dtype == torch.float32
    expected = -logits.double().log_softmax(-1)[1, 5, token_ids[1, 6]]
    assert loss[1, 5].item() == pytest.approx(expected.item(), rel=1e-6)
    assert not loss.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_trace_shows_tokens_and_everything_between(backend, language_model):
    model = language_model("gpt_neox", backend)
    ids = torch.tensor([model.tokenizer.encode("the cat sat")])
    trace = model.trace(ids)
    assert "".join(trace.tokens[0]) == "the cat sat"
    assert list(trace.activations) == model.hook_points()
    assert trace.logits.shape == (1, ids.shape[1], VOCAB)
    assert torch.equal(trace.loss, model.loss(ids))
    one = model.activations(ids, ["blocks.1.ln2.hook_normalized"])
    assert torch.equal(trace.activations["blocks.1.ln2.hook_normalized"], one["blocks.1.ln2.hook_normalized"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "llama", "gemma2", "qwen3_moe", "gpt_oss", "opt", "bloom"])
def test_layer_mlp_is_the_models_own(family, backend, language_model, token_ids):
    model = language_model(family, backend)
    acts = model.activations(token_ids, model.hook_points())
    out = acts["blocks.1.hook_mlp_out"]
    assert relative(model.layer_mlp(1)(acts["blocks.1.ln2.hook_out"]), out) < TOLERANCE
    from_normalized = model.layer_mlp(1, "blocks.1.ln2.hook_normalized")(acts["blocks.1.ln2.hook_normalized"])
    assert relative(from_normalized, out) < TOLERANCE
    assert model.layer_mlp(1)(torch.zeros(5, D, dtype=torch.float64)).shape == (5, D)
    with pytest.raises(DataError, match=r"no function of the activation at 'blocks\.1\.hook_resid_pre'.*ln2\.hook_out"):
        model.layer_mlp(1, "blocks.1.hook_resid_pre")
    with pytest.raises(DataError, match=r"layer 3 does not exist.*0 to 2"):
        model.layer_mlp(3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("family", "reads"),
    [
        ("gptj", ("ln1.hook_out", "ln1.hook_normalized", "mlp.hook_in")),
        ("stablelm_parallel", ("ln1.hook_out", "ln1.hook_normalized", "mlp.hook_in")),
        ("olmo2", ("mlp.hook_in", "hook_resid_mid")),
        ("gemma2", ("ln2.hook_out", "ln2.hook_normalized", "mlp.hook_in")),
    ],
)
def test_layer_mlp_reads_what_the_familys_mlp_reads(family, reads, backend, language_model, token_ids):
    """One norm for both, none before the MLP, one after it."""
    model = language_model(family, backend)
    names = [f"blocks.1.{site}" for site in (*reads, "hook_mlp_out", "hook_resid_pre")]
    *given, out, _ = model.activations(token_ids, names).values()
    for name, x in zip(names, given, strict=False):
        assert relative(model.layer_mlp(1, name)(x), out) < TOLERANCE, name
    assert relative(model.layer_mlp(1)(given[0]), out) < TOLERANCE
    with pytest.raises(DataError, match=saying("blocks.1.hook_resid_pre", *names[: len(reads)])):
        model.layer_mlp(1, "blocks.1.hook_resid_pre")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_half_precision(family, backend, model_directory, language_model, token_ids):
    model = load_language_model(model_directory(family), backend=backend, dtype="bfloat16", device="cpu")
    full = language_model(family, backend).activations(token_ids, model.hook_points())
    for name, value in model.activations(token_ids, model.hook_points()).items():
        assert value.dtype == torch.bfloat16
        assert relative(value.float(), full[name]) < 0.05, name
    assert model.loss(token_ids).dtype == torch.float32
    same = dict.fromkeys(model.hook_points(), lambda captured, original: original.clone())
    assert torch.equal(model.logits(token_ids, same), model.logits(token_ids))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 1, 4, dtype=torch.int64), r"integers \[b, T\]"),
        (torch.zeros(4), r"integers \[T\] or \[b, T\], got torch.float32"),
        (torch.zeros(1, 4), r"integers \[b, T\], got torch.float32"),
        (torch.full((1, 4), VOCAB), f"token id {VOCAB} is outside the vocabulary.*tokenize"),
        (torch.full((1, 4), -1), "token id -1 is outside"),
        (torch.zeros(1, CONTEXT + 1, dtype=torch.int64), f"longer than the {CONTEXT} positions.*context_size"),
    ],
)
def test_tokens_that_the_model_cannot_read(ids, message, language_model):
    with pytest.raises(DataError, match=message):
        language_model("gpt_neox", "huggingface").logits(ids)


def test_wrong_replacements_and_hook_points(language_model, token_ids):
    model = language_model("gpt_neox", "huggingface")
    with pytest.raises(ValueError, match=r"blocks\.1\.hook_mlp_out should give a tensor of shape \(3, 17, 32\)"):
        model.loss(token_ids, {"blocks.1.hook_mlp_out": lambda captured, original: original[0]})
    with pytest.raises(ValueError, match="it gave NoneType"):
        model.loss(token_ids, {"blocks.1.ln1.hook_normalized": lambda captured, original: None})
    with pytest.raises(DataError, match=r"did you mean 'blocks\.1\.hook_resid_post'"):
        model.activations(token_ids, ["blocks.1.hook_residpost"])
    with pytest.raises(DataError, match="should be a list of names"):
        model.activations(token_ids, "blocks.1.hook_resid_post")
    with pytest.raises(DataError, match=r"unknown hook point 'hook_pos_embed'.*did you mean 'hook_embed'"):
        model.logits(token_ids, {"hook_pos_embed": lambda captured, original: original})
    assert model.activations(token_ids, []) == {}
    assert model.hook_width("blocks.0.ln1.hook_out") == D
