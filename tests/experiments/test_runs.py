"""Dictionaries in a run: nothing changes without an edit; edits and gradients are those of plain hooks on the module."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import DataError
from pipeline.experiments.runs import run_with_dictionaries
from pipeline.norms.hook_norm import as_hook_norm
from tests.experiments.conftest import KINDS, MLP_OUT, RESID, make
from tests.messages import saying
from tests.project import D_MODEL

TEXT = "the cat sat on the mat"
LAYER = RESID.format(0)


def by_hand(model, ids, change, embedded=None):
    """Logits of the transformers module, the output x of its first block being change(x)."""

    def hook(_, args, output):
        x = output[0] if isinstance(output, tuple) else output
        return (change(x), *output[1:]) if isinstance(output, tuple) else change(x)

    handle = model._model.gpt_neox.layers[0].register_forward_hook(hook)
    given = {"input_ids": ids} if embedded is None else {"inputs_embeds": embedded}
    try:
        return model._model(**given, use_cache=False).logits
    finally:
        handle.remove()


def loss_of(logits, ids):
    log_p = logits[0, :-1].log_softmax(-1)
    return -log_p[torch.arange(ids.shape[1] - 1), ids[0, 1:]].mean()


@pytest.mark.parametrize("errors", ["keep", "freeze"])
@pytest.mark.parametrize("name", KINDS)
def test_with_the_error_term_nothing_changes_bit_for_bit(single, name, errors):
    made = make(name, torch.float32)
    plain = single.run(TEXT)
    run = run_with_dictionaries(single, TEXT, made, errors=errors, grad=errors == "freeze")
    assert torch.equal(run.logits, plain.logits)
    part = run.only
    assert part.features.shape == (*run.tokens.shape, *made.feature_shape)
    assert int((part.features > 0).sum()) > 0
    x = single.activations(run.tokens, made.hooks_out)
    for hook in made.hooks_out:
        torch.testing.assert_close(part.reconstructions[hook] + part.errors[hook], x[hook])
        assert float(part.errors[hook].detach().norm()) > 0.01


@pytest.mark.parametrize("name", ["sae", "sae_jumprelu", "sae_glu", "transcoder", "crosscoder", "lorsa", "clt"])
def test_features_and_reconstructions_are_those_of_the_dictionary_on_the_models_activations(double, name):
    made = make(name)
    run = run_with_dictionaries(double, TEXT, made)
    parts = list(double.activations(run.tokens, made.hooks_in).values())
    x = parts[0] if len(parts) == 1 else torch.stack(parts, -2)
    torch.testing.assert_close(run.features, made.encode(x), rtol=1e-10, atol=1e-12)
    x_hat = made(x)
    for place, hook in enumerate(made.hooks_out):
        wanted = x_hat if len(made.hooks_out) == 1 else x_hat[..., place, :]
        torch.testing.assert_close(run.only.reconstructions[hook], wanted, rtol=1e-9, atol=1e-10)


def test_edits_are_those_of_a_hook_on_the_module(double):
    made = make("sae")
    ids = double.to_tokens(TEXT)
    f = made.encode(double.activations(ids, [LAYER])[LAYER]).detach()
    (first, second), W = f[0].sum(0).topk(2).indices.tolist(), made.W_dec.detach()
    change = torch.zeros_like(f)
    change[..., first] = -f[..., first]
    change[0, 2, second] = 3.0 - f[0, 2, second]
    change[0, [1, 4], 7] += 5.0
    with torch.no_grad():
        wanted = by_hand(double, ids, lambda x: x + change @ W)
        dropped = by_hand(double, ids, made)
    run = run_with_dictionaries(double, TEXT, made, ablate=first, set_to={second: (3.0, 2)}, add={"7": (5.0, [1, 4])})
    torch.testing.assert_close(run.logits, wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(run.features, f + change, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(run.only.encoded, f, rtol=1e-9, atol=1e-10)
    assert torch.equal(run_with_dictionaries(double, TEXT, made, ablate={first: None}, set_to={second: (3.0, [2])}, add={7: (5.0, [1, 4])}).logits, run.logits)  # fmt: skip
    torch.testing.assert_close(run_with_dictionaries(double, TEXT, made, errors="drop").logits, dropped, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("errors", ["keep", "freeze", "drop"])
def test_gradients_before_the_dictionary(double, errors):
    """keep: the model's own. freeze: through the features alone. drop: of the spliced model. Against plain autograd."""
    made = make("sae")
    ids = double.to_tokens(TEXT)
    embedded = double._model.get_input_embeddings()(ids).detach().requires_grad_()
    change = {"keep": lambda x: x, "freeze": lambda x: made(x) + (x - made(x)).detach(), "drop": made}[errors]
    (wanted,) = torch.autograd.grad(loss_of(by_hand(double, ids, change, embedded), ids), embedded)
    run = run_with_dictionaries(double, TEXT, made, errors=errors, grad=True, hook_points="all")
    (found,) = torch.autograd.grad(run.loss.mean(), run.activations["hook_embed"])
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)
    assert float(wanted.norm()) > 1e-3


@pytest.mark.parametrize("errors", ["keep", "drop"])
@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_features_are_finite_differences(double, name, errors):
    """In float64, of every kind, with the features that are active and some that are not."""
    made = make(name)
    run = run_with_dictionaries(double, TEXT, made, errors=errors, grad=True)
    found = run.only.gradient(run.loss.mean())
    assert found.shape == run.features.shape
    active = (run.features[0] > 0).nonzero()
    places = [*active[[0, len(active) // 2, -1]].tolist(), [1, *[0] * len(made.feature_shape)]]
    step = 1e-4
    for position, *place in places:
        feature = "/".join(map(str, place))
        values = [
            float(run_with_dictionaries(double, TEXT, made, errors=errors, add={feature: (sign * step, position)}).loss.mean())
            for sign in (1, -1)
        ]
        wanted = (values[0] - values[1]) / (2 * step)
        assert float(found[(0, position, *place)]) == pytest.approx(wanted, rel=1e-4, abs=1e-7)


def test_several_dictionaries_and_the_cache(double):
    first, second = make("sae"), make("sae", hook_point_in=RESID.format(1), name="late")
    run = run_with_dictionaries(
        double, TEXT, {"early": first, "late": second}, ablate=[("late", 3)], hook_points="all", grad=True
    )
    assert set(run.dictionaries) == {"early", "late"}
    assert {"early.features", "late.encoded", f"early.error.{LAYER}", f"late.reconstruction.{RESID.format(1)}"} <= set(
        run.cache
    )
    assert set(double.hook_points()) <= set(run.cache)
    assert torch.equal(run.cache[LAYER], double.activations(TEXT, [LAYER])[LAYER])
    # A later feature as a function of an earlier one.
    place = (run.dictionaries["late"].encoded[0, -1] > 0).nonzero()[0, 0]
    later = run.dictionaries["late"].encoded[0, -1, place]
    gradient = run.dictionaries["early"].gradient(later)
    position, feature = gradient[0].abs().flatten().argmax().item() // 24, gradient[0].abs().flatten().argmax().item() % 24
    values = [
        float(run_with_dictionaries(double, TEXT, [first, second], add={("sae", feature): (step, position)}).dictionaries["late"].encoded[0, -1, place])
        for step in (1e-5, -1e-5)
    ]  # fmt: skip
    assert float(gradient[0, position, feature]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)
    with pytest.raises(DataError, match=saying("2 dictionaries", "early")):
        _ = run.features


def test_special_tokens_have_no_features_and_keep_their_activation(single):
    made = make("sae", torch.float32)
    run = run_with_dictionaries(single, TEXT, made, prepend_bos=True, errors="drop")
    assert run.only.kept.tolist() == [[False, *[True] * (run.tokens.shape[1] - 1)]]
    assert float(run.features[0, 0].abs().sum()) == 0
    assert torch.equal(run.activations[LAYER][0, 0], single.activations(run.tokens, [LAYER])[LAYER][0, 0])


def test_an_unfolded_dictionary_with_its_norms(single):
    from pipeline.dictionaries.build import build_dictionary

    config = {"name": "raw", "d_in": D_MODEL, "d_sae": 24, "act_fn": "topk", "top_k": 4, **KINDS["sae"]}
    made = build_dictionary(config, seed=2)
    norm = {"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL}
    run = run_with_dictionaries(single, TEXT, made, norms={LAYER: as_hook_norm(norm, D_MODEL)}, ablate=3, errors="drop")
    folded = run_with_dictionaries(single, TEXT, made.fold({LAYER: norm}), ablate=3, errors="drop")
    torch.testing.assert_close(run.logits, folded.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"ablate": 24}, ("feature 24", "24 features")),
        ({"ablate": "1/2"}, ("feature '1/2'", "a number")),
        ({"ablate": [("other", 3)]}, ("no dictionary 'other'", "sae")),
        ({"ablate": None, "add": [3]}, ("add:", "{feature: value}", "a list of int")),
        ({"ablate": 3.5}, ("ablate:", "a feature such as 513", 3.5)),
        ({"ablate": [None]}, ("feature:", "513", "None")),
        ({"ablate": {3: 1.5}}, ("feature 3:", "positions as whole numbers", 1.5)),
        ({"ablate": {3: "one"}}, ("feature 3:", "positions as whole numbers", "'one'")),
        ({"set_to": {3: (1.0, [1], 2)}}, ("feature 3", "(number, positions)")),
        ({"add": {3: (1.0, 17)}}, ("position 17", "6 tokens", "0 to 5")),
        ({"add": {3: "much"}}, ("feature 3", "finite number", "'much'")),
        ({"errors": "kept"}, ("errors", "kept", "'keep'")),
        ({"hook_points": ["blocks.9.hook_resid_post"]}, ("blocks.9.hook_resid_post",)),
        ({"hook_points": LAYER}, ("hook_points:", "a list of hook points, or 'all'", f"'{LAYER}'")),
    ],
)
def test_what_is_refused(single, change, parts):
    with pytest.raises(DataError, match=saying(*parts)):
        run_with_dictionaries(single, TEXT, make("sae", torch.float32), **change)


def test_dictionaries_that_do_not_fit(single):
    sae = make("sae", torch.float32)
    for wrong in (None, "main", {"a": "main"}, [sae, 3]):
        with pytest.raises(DataError, match=saying("dictionaries:", "{name: dictionary}", "load_dictionary(path)")):
            run_with_dictionaries(single, TEXT, wrong)
    named = run_with_dictionaries(single, TEXT, {"early": sae})
    with pytest.raises(DataError, match=saying("dictionary of the run 'late'", "early")):
        named.dictionaries["late"]
    with pytest.raises(DataError, match=saying("tensor of the run 'early.feature'", "'early.features'")):
        named.cache["early.feature"]
    with pytest.raises(DataError, match=saying("both write", LAYER)):
        run_with_dictionaries(single, TEXT, {"a": sae, "b": sae})
    with pytest.raises(DataError, match=saying("dictionaries:", "sae, sae", "{name: dictionary}")):
        run_with_dictionaries(single, TEXT, [sae, sae])
    two = make("crosscoder", torch.float32, hook_points_in=[LAYER, f"chat:{LAYER}"])
    with pytest.raises(DataError, match=saying("'crosscoder'", "'model', 'chat'", "inspect_text")):
        run_with_dictionaries(single, TEXT, two)
    with pytest.raises(DataError, match=saying("feature 3:", "sae, clt", "(dictionary, feature)")):
        run_with_dictionaries(single, TEXT, [sae, make("clt", torch.float32)], ablate=3)
    run = run_with_dictionaries(single, TEXT, sae)
    with pytest.raises(DataError, match=saying("gradient:", "grad=True")):
        run.only.gradient(run.loss.mean())


def test_a_clt_is_edited_at_its_own_and_later_layers(double):
    made = make("clt")
    run = run_with_dictionaries(double, TEXT, made, add={"1/5": 2.0})
    plain = double.activations(TEXT, [MLP_OUT.format(0), MLP_OUT.format(1)])
    assert torch.equal(run.activations[MLP_OUT.format(0)], plain[MLP_OUT.format(0)])
    wanted = plain[MLP_OUT.format(1)] + 2.0 * made.get_parameter("W_D.1")[1, 5].detach()
    torch.testing.assert_close(run.activations[MLP_OUT.format(1)], wanted, rtol=1e-9, atol=1e-10)
