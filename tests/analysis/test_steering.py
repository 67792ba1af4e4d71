"""Steering adds exactly the feature's direction, at every token, in the run of the model."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.analysis.steering import steer, steering_replacements
from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError
from pipeline.norms.hook_norm import as_hook_norm
from tests.analysis.test_inspection import folded, sae
from tests.messages import saying
from tests.project import CONTEXT, D_MODEL

TEXT = "the cat sat"


@pytest.fixture(scope="module")
def module(finished_project):
    """The same model as transformers gives it."""
    from transformers import GPTNeoXForCausalLM

    return GPTNeoXForCausalLM.from_pretrained(finished_project.path / "model", dtype=torch.float32).eval()


def ids_of(model) -> list[int]:
    return model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def steered_logits(module, ids: list[int], direction: torch.Tensor) -> torch.Tensor:
    def add(_, args, output):  # type: ignore[no-untyped-def]
        return (output[0] + direction, *output[1:]) if isinstance(output, tuple) else output + direction

    handle = module.gpt_neox.layers[0].register_forward_hook(add)
    try:
        return module(torch.tensor([ids])).logits
    finally:
        handle.remove()


def test_the_direction_is_added_at_every_token(small_model, module) -> None:
    made = folded(sae())
    direction = 2.5 * made.get_parameter("W_D")[11].detach()
    wanted = steered_logits(module, ids_of(small_model), direction)
    found = small_model.logits(torch.tensor([ids_of(small_model)]), steering_replacements(made, "11", 2.5))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, small_model.logits(torch.tensor([ids_of(small_model)])), atol=1e-2)


def test_loss_and_greedy_continuation(small_model, module) -> None:
    made = folded(sae())
    direction = 4.0 * made.get_parameter("W_D")[11].detach()
    ids = ids_of(small_model)
    n = CONTEXT - len(ids)
    wanted = []
    for added in (torch.zeros(D_MODEL), direction):
        written: list[int] = []
        while len(written) < n:
            token = int(steered_logits(module, [*ids, *written], added)[0, -1].argmax())
            if token == 0:
                break
            written.append(token)
        log_p = steered_logits(module, ids, added)[0, :-1].double().log_softmax(-1)
        loss = -float(log_p[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].mean())
        wanted.append((loss, small_model.tokenizer.decode(written)))
    found = steer(TEXT, made, small_model, "11", 4.0, n_tokens=n)
    assert (found.loss, found.steered_loss) == pytest.approx((wanted[0][0], wanted[1][0]), rel=1e-5)
    assert (found.continuation, found.steered_continuation) == (wanted[0][1], wanted[1][1])


def test_no_strength_changes_nothing(small_model) -> None:
    found = steer(TEXT, folded(sae()), small_model, "3", 0.0, n_tokens=5)
    assert found.loss == found.steered_loss
    assert found.continuation == found.steered_continuation


def test_an_unfolded_dictionary_steers_in_raw_space(small_model) -> None:
    made = sae()
    norm = as_hook_norm({"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL}, D_MODEL)
    ids = torch.tensor([ids_of(small_model)])
    found = small_model.logits(ids, steering_replacements(made, "11", 2.0, {made.hooks_in[0]: norm}))
    raw = made.get_parameter("W_D")[11].detach() * 2.0 * 3.0 / D_MODEL**0.5
    wanted = small_model.logits(ids, {made.hooks_in[0]: lambda captured, x: x + raw})
    torch.testing.assert_close(found, wanted)


def test_a_feature_of_a_layer_steers_that_layer_and_later_ones() -> None:
    hooks = [f"blocks.{layer}.ln2.hook_out" for layer in range(2)], [f"blocks.{layer}.hook_mlp_out" for layer in range(2)]
    config = {"kind": "clt", "hook_points_in": hooks[0], "hook_points_out": hooks[1], "d_in": D_MODEL, "d_sae": 40}
    made = folded(build_dictionary({**config, "act_fn": "topk", "top_k": 3}, seed=0))
    assert list(steering_replacements(made, "0/5", 1.0)) == hooks[1]
    assert list(steering_replacements(made, "1/5", 1.0)) == hooks[1][1:]
    added = steering_replacements(made, "0/5", 1.0)[hooks[1][1]]({}, torch.zeros(1, 2, D_MODEL))
    torch.testing.assert_close(added[0, 1], made.get_parameter("W_D.1")[0, 5].detach())
    with pytest.raises(DataError, match=saying("feature '0/5'", "'other'", "'model'")):
        steering_replacements(made, "0/5", 1.0, alias="other")


def crosscoder(*hooks: str):
    config = {"kind": "crosscoder", "hook_points_in": list(hooks), "d_in": D_MODEL, "d_sae": 40, "act_fn": "topk", "top_k": 3}
    return folded(build_dictionary(config, seed=0))


def test_of_the_residual_stream_only_the_last_hook_point_is_changed() -> None:
    early, late, other = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "tuned:blocks.0.hook_resid_post"
    made = crosscoder(late, early, other)
    added = steering_replacements(made, "5", 2.0)
    assert list(added) == [late]
    torch.testing.assert_close(added[late]({}, torch.zeros(1, 2, D_MODEL))[0, 1], 2.0 * made.written_rows(0)[5].detach())
    assert list(steering_replacements(made, "5", 1.0, alias="tuned")) == [early]
    with torch.no_grad():
        made.get_parameter("W_D")[0, 5] = 0.0
    assert list(steering_replacements(made, "5", 1.0)) == [early]  # it writes nothing at the later one


def test_a_number_is_the_index_of_a_feature(small_model) -> None:
    made = folded(sae())
    assert steer(TEXT, made, small_model, 11, 4.0, n_tokens=3) == steer(TEXT, made, small_model, "11", 4.0, n_tokens=3)
    with pytest.raises(DataError, match=saying("feature 40:", "range", "40 features")):
        steer(TEXT, made, small_model, 40, 4.0)
    with pytest.raises(DataError, match=saying("feature -1:", "range", "40 features")):
        steer(TEXT, made, small_model, -1, 4.0)


def test_a_model_with_an_alias_is_steered(small_model) -> None:
    made = crosscoder("tuned:blocks.0.hook_resid_post", "tuned:blocks.1.hook_resid_post")
    found = steer(TEXT, made, small_model, 11, 4.0, n_tokens=3, alias="tuned")
    assert found.loss != found.steered_loss
    with pytest.raises(DataError, match=saying("feature '11'", "model 'model'", "of 'tuned'")):
        steer(TEXT, made, small_model, 11, 4.0)


@pytest.mark.parametrize(
    ("name", "value", "wanted"), [("strength", math.nan, "finite"), ("n_tokens", 0, "1"), ("temperature", math.nan, "0")]
)
def test_numbers_out_of_their_range(small_model, name: str, value: float, wanted: str) -> None:
    with pytest.raises(DataError, match=saying(f"{name}:", wanted, f"got {value}")):
        steer(TEXT, folded(sae()), small_model, 3, **{"strength": 1.0, name: value})


def test_a_text_that_is_too_long_is_to_be_shortened(small_model) -> None:
    with pytest.raises(DataError, match=saying("48 tokens", CONTEXT, "shorten")):
        steer(TEXT * CONTEXT, folded(sae()), small_model, 3, 1.0)


def test_drawn_continuations_follow_the_seed(small_model) -> None:
    ids = ids_of(small_model)
    first, again, other = (small_model.generate(ids, 9, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(small_model.generate(ids, 40, temperature=1.0)) <= 40  # beyond the context's length


def test_texts_that_are_too_short(small_model) -> None:
    with pytest.raises(DataError, match=saying("two tokens")):
        steer("a", folded(sae()), small_model, "3", 1.0)
