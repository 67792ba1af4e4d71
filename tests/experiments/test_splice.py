"""Spliced reconstructions leave special and massive tokens as they are, against plain hooks on the module."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import DataError
from pipeline.experiments.runs import run_with_dictionaries
from pipeline.experiments.splice import spliced
from pipeline.lm.loading import load_language_model
from tests.experiments.conftest import KINDS, MLP_IN, MLP_OUT, RESID, make
from tests.experiments.test_runs import LAYER, TEXT, by_hand
from tests.messages import saying
from tests.project import D_MODEL

MASSIVE = "cat"


@pytest.fixture(scope="module")
def massive(model_place):
    """The model in float64, the embedding of one token being 200 times as long: its activations are massive."""
    model = load_language_model(model_place, device="cpu")
    model._model.double()
    model.dtype = torch.float64
    token = int(model.to_tokens(TEXT, prepend_bos=False)[0, 1])
    assert MASSIVE in model.token_text(token)
    with torch.no_grad():
        model._model.get_input_embeddings().weight[token].mul_(200.0)
    return model


def without_the_longest(made, model, hook: str, prepend_bos: bool = False):
    """A dictionary with the rule by which exactly the longest word of TEXT at a hook point is excluded, and its position."""
    x = model.activations(model.to_tokens(TEXT, prepend_bos), [hook])[hook][0]
    lengths = x[int(prepend_bos) :].norm(dim=-1)
    second, first = lengths.sort().values[-2:].tolist()
    assert first > 1.001 * second
    limit = (first * second) ** 0.5
    norm = {"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL, "median_norm": limit / 10, "max_norm_factor": 10.0}
    plain = {"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL}
    hooks = (*made.hooks_in, *made.hooks_out)
    norms = {each: norm if each == hook else plain for each in hooks}
    return made.rebuilt(made.state_dict(), norms=norms), int(lengths.argmax()) + prepend_bos


def test_a_massive_token_keeps_its_activation_and_a_plain_replacement_ruins_the_model(massive):
    made, place = without_the_longest(make("sae"), massive, LAYER)
    ids = massive.to_tokens(TEXT)
    x = massive.activations(ids, [LAYER])[LAYER]
    assert place == 1
    assert float(x[0, 1].norm() / x[0, 2:].norm(dim=-1).median()) > 20

    def change(activation):
        new = made(activation)
        new[:, place] = activation[:, place]
        return new

    with torch.no_grad():
        wanted, naive = by_hand(massive, ids, change), by_hand(massive, ids, made)
    found = massive.logits(TEXT, spliced(made))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    loss = massive.loss(TEXT, replace=spliced(made))
    run = run_with_dictionaries(massive, TEXT, made, errors="drop")
    assert torch.equal(loss, run.loss)
    assert run.only.kept.tolist() == [[i != place for i in range(ids.shape[1])]]
    plain = massive.loss(TEXT, replace={LAYER: lambda captured, activation: made(activation)})
    torch.testing.assert_close(massive.logits(TEXT, {LAYER: lambda captured, y: made(y)}), naive, rtol=1e-9, atol=1e-10)
    assert float((plain - loss).abs().max()) > 0.05
    torch.testing.assert_close(massive.run(TEXT, replace=spliced(made)).logits, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_it_is_the_run_without_error_terms_of_every_kind(massive, name, prepend_bos):
    made = make(name)
    made, place = without_the_longest(made, massive, made.hooks_out[-1], prepend_bos)
    ids = massive.to_tokens(TEXT, prepend_bos)
    run = run_with_dictionaries(massive, ids, made, errors="drop")
    assert (~run.only.kept)[0].nonzero()[:, 0].tolist() == [*([0] if prepend_bos else []), place]
    replace = spliced(made)
    for _ in range(2):  # it can be used again
        assert torch.equal(massive.loss(ids, replace=replace), run.loss)
    assert torch.equal(massive.run(ids, replace=replace).logits, run.logits)
    assert not torch.equal(massive.loss(ids), run.loss)


def test_several_dictionaries_one_of_which_reads_what_another_writes(double):
    mlp = {"hook_point_in": MLP_IN.format(1), "hook_point_out": MLP_OUT.format(1)}
    given = {
        "stream": make("sae"),
        "transcoder": make("transcoder", **mlp),
        "read": make("sae", hook_point_in=MLP_IN.format(1)),
    }
    run = run_with_dictionaries(double, TEXT, given, errors="drop")
    assert torch.equal(double.logits(TEXT, spliced(given), capture=()), run.logits)
    less = {name: each for name, each in given.items() if name != "read"}
    assert not torch.allclose(double.logits(TEXT, spliced(less)), run.logits, atol=1e-6)
    one = spliced([given["stream"], make("sae", hook_point_in=RESID.format(1), name="late")])
    assert double.loss(["the cat sat", "the dog sat"], replace=one).shape == (2, 2)


def test_a_continuation_is_that_of_whole_runs(massive):
    made, _ = without_the_longest(make("sae"), massive, LAYER)
    context = massive.to_tokens(TEXT)[0].tolist()
    wanted = []
    for _ in range(6):
        run = run_with_dictionaries(massive, torch.tensor([[*context, *wanted]]), made, errors="drop")
        token = int(run.logits[0, -1].argmax())
        if token == massive.eos_token_id:
            break
        wanted.append(token)
    assert massive.generate(TEXT, 6, replace=spliced(made)) == wanted
    assert len(wanted) > 2


def test_an_unfolded_dictionary_with_its_norms(single):
    from pipeline.dictionaries.build import build_dictionary
    from pipeline.norms.hook_norm import as_hook_norm

    config = {"name": "raw", "d_in": D_MODEL, "d_sae": 24, "act_fn": "topk", "top_k": 4, **KINDS["sae"]}
    norms = {LAYER: as_hook_norm({"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL}, D_MODEL)}
    made = build_dictionary(config, seed=2)
    run = run_with_dictionaries(single, TEXT, made, norms=norms, errors="drop")
    assert torch.equal(single.loss(TEXT, replace=spliced(made, norms=norms)), run.loss)


def test_what_is_refused(single):
    sae = make("sae", torch.float32)
    with pytest.raises(DataError, match=saying("dictionaries:", "sae, sae", "{name: dictionary}")):
        spliced([sae, sae])
    with pytest.raises(DataError, match=saying("both write", LAYER)):
        single.loss(TEXT, replace=spliced({"a": sae, "b": sae}))
    with pytest.raises(DataError, match=saying("blocks.9.hook_resid_post")):
        single.loss(TEXT, replace=spliced(make("sae", torch.float32, hook_point_in=RESID.format(9))))
