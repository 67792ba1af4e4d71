"""A text wherever token ids are taken; what is neither is refused with what was given."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import DataError
from pipeline.lm.loading import load_language_model
from tests.messages import saying
from tests.project import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("text") / "model"
    make_model(place)
    return load_language_model(place, device="cpu")


def test_a_text_is_its_tokens(model) -> None:
    ids = model.tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    assert model.to_tokens("the cat sat").tolist() == [ids]
    assert model.to_tokens(ids).tolist() == model.to_tokens(torch.tensor(ids)).tolist() == [ids]
    assert model.to_tokens(["the cat", "the dog"]).shape[0] == 2
    assert model.to_str_tokens("the cat sat") == model.to_str_tokens(torch.tensor([ids])) == ["the", " cat", " sat"]
    assert model.to_single_token(" cat") == ids[1]
    for call in (model.loss, model.logits, lambda given: model.trace(given).logits, lambda given: model.run(given).logits):
        assert torch.equal(call("the cat sat"), call(torch.tensor([ids])))
    hook = "blocks.0.hook_mlp_out"
    assert torch.equal(model.activations("the cat", [hook])[hook], model.activations(model.to_tokens("the cat"), [hook])[hook])


def test_the_beginning_of_text_is_put_once_and_not_before_ids(model) -> None:
    bos = model.bos_token_id
    plain = model.to_tokens("the cat", prepend_bos=False)[0].tolist()
    assert model.to_tokens("the cat")[0].tolist() == plain  # auto: this tokenizer puts none there
    assert model.to_tokens("the cat", prepend_bos=True)[0].tolist() == [bos, *plain]
    assert model.to_tokens("<|endoftext|>the cat", prepend_bos=True)[0].tolist() == [bos, *plain]
    assert model.to_tokens(plain, prepend_bos=True)[0].tolist() == plain


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("", ("no token",)),
        ([], ("empty list",)),
        (["the cat", "the cat sat on"], ("equally many tokens", "2, 4")),
        ([1.5, 2], ("a list of", "float", "int")),
        ([[1, 2]], ("a list of list",)),
        (torch.zeros(3), ("integers", "torch.float32", "(3,)")),
        (torch.zeros(1, 1, 1, dtype=torch.int64), ("integers", "(1, 1, 1)")),
        ([1, 400], ("token id 400", "vocabulary")),
    ],
)
def test_what_is_no_text(model, given, parts) -> None:
    with pytest.raises(DataError, match=saying(*parts)):
        model.to_tokens(given)


def test_what_is_asked_of_one_text(model) -> None:
    with pytest.raises(DataError, match=saying("to_str_tokens:", 2)):
        model.to_str_tokens(["the cat", "the dog"])
    with pytest.raises(DataError, match=saying("' cat sat'", "one token", "' cat'")):
        model.to_single_token(" cat sat")
    with pytest.raises(DataError, match=saying("model.prepend_bos:", "'always'")):
        model.to_tokens("the cat", prepend_bos="always")
