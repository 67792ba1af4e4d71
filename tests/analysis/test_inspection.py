"""Features of a text: against encoding by hand; a feature set to fire on one token fires on that token only."""

from __future__ import annotations

import pytest
import torch

from pipeline.analysis.inspection import inspect_text
from pipeline.analysis.texts import feature_index, feature_name
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError, ParamsError
from pipeline.norms.hook_norm import as_hook_norm
from tests.messages import saying
from tests.project import CONTEXT, D_MODEL

TEXT = "the cat sat on the mat and the dog<|endoftext|> ran far, the cat sat"
READS, WRITES = "blocks.0.ln2.hook_out", "blocks.0.hook_mlp_out"


def sae(hook: str = "blocks.0.hook_resid_post", **fields: object) -> Dictionary:
    config = {"kind": "sae", "hook_point_in": hook, "d_in": D_MODEL, "d_sae": 40, "act_fn": "topk", "top_k": 5, **fields}
    return build_dictionary(config, seed=2)


def folded(made: Dictionary) -> Dictionary:
    hooks = dict.fromkeys((*made.hooks_in, *made.hooks_out))
    return made.fold({hook: {"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL} for hook in hooks})


def test_features_are_those_of_the_contexts_special_tokens_left_out(small_model) -> None:
    made = folded(sae())
    found = inspect_text(TEXT, made, small_model, context_size=12)
    ids = small_model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert 12 < len(ids) < 24
    assert "".join(found.tokens) == TEXT
    assert [token for token, kept in zip(found.tokens, found.kept, strict=True) if not kept] == ["<|endoftext|>"]
    position = 0
    for start in range(0, len(ids), 12):
        part = torch.tensor([ids[start : start + 12]])
        f = made.encode(small_model.activations(part, made.hooks_in)[made.hooks_in[0]])[0].detach()
        for row in f:
            kept = ids[position] != 0
            active = sorted(((float(v), i) for i, v in enumerate(row) if v > 0), reverse=True) if kept else []
            assert [int(name) for name, _ in found.strongest(position, 99)] == [i for _, i in active]
            assert [value for _, value in found.strongest(position, 2)] == pytest.approx([v for v, _ in active[:2]], rel=1e-5)
            position += 1
    assert position == len(found.tokens)
    dense = found.features.to_dense()
    feature = int(dense.sum(0).argmax())
    tokens = found.of_feature(str(feature))
    assert [token for token, _ in tokens] == dense[:, feature].argsort(descending=True, stable=True)[: len(tokens)].tolist()
    assert len(tokens) == int((dense[:, feature] > 0).sum())
    assert len(found.of_feature(str(feature), 1)) == 1
    assert found.of_feature(feature) == tokens


def test_the_tokens_of_split_characters_can_be_told_apart(small_model) -> None:
    found = inspect_text("caf\u00e9 \u732b", folded(sae()), small_model)
    assert found.tokens[-3:] == ["<0xE7>", "<0x8C>", "<0xAB>"]
    assert "".join(found.tokens) == "caf<0xC3><0xA9> <0xE7><0x8C><0xAB>"


def test_a_planted_feature_fires_on_its_token_and_nowhere_else(small_model) -> None:
    hook = "blocks.0.hook_resid_pre"  # the embedding itself
    ids = small_model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    cat = small_model.tokenizer(" cat", add_special_tokens=False)["input_ids"]
    assert len(cat) == 1
    made = folded(sae(hook, act_fn="relu"))
    embedding = small_model.activations(torch.tensor([cat]), [hook])[hook][0, 0]
    others = small_model.activations(torch.arange(1, 300)[:, None], [hook])[hook][:, 0]
    direction = embedding / embedding.norm()
    second = float((others[torch.arange(1, 300) != cat[0]] @ direction).max())
    with torch.no_grad():
        made.get_parameter("W_E")[:, 7] = direction
        made.get_parameter("b_E")[7] = -max(second, 0.999 * float(embedding.norm()))
    found = inspect_text(TEXT, made, small_model, context_size=CONTEXT)
    assert sorted(token for token, _ in found.of_feature("7")) == [i for i, token in enumerate(ids) if token == cat[0]]
    assert {found.tokens[token] for token, _ in found.of_feature("7")} == {" cat"}
    assert "[ cat]" in found.around(found.of_feature("7")[0][0])


def test_an_unfolded_dictionary_sees_normalised_activations(small_model) -> None:
    made = sae()
    norms = {made.hooks_in[0]: as_hook_norm({"mean_norm": 3.0, "mean_square": 9.0, "d": D_MODEL}, D_MODEL)}
    one = inspect_text(TEXT, made, small_model, norms=norms, context_size=12)
    other = inspect_text(TEXT, folded(made), small_model, context_size=12)
    assert torch.equal(one.features.indices(), other.features.indices())


def test_features_of_layers_have_the_layers_number(small_model) -> None:
    hooks = [f"blocks.{layer}.ln2.hook_out" for layer in range(2)], [f"blocks.{layer}.hook_mlp_out" for layer in range(2)]
    config = {"kind": "clt", "hook_points_in": hooks[0], "hook_points_out": hooks[1], "d_in": D_MODEL, "d_sae": 40}
    made = folded(build_dictionary({**config, "act_fn": "topk", "top_k": 3}, seed=0))
    found = inspect_text("the cat sat", made, small_model)
    x = torch.stack([found_x[0] for found_x in small_model.activations(torch.tensor([small_model.tokenizer("the cat sat", add_special_tokens=False)["input_ids"]]), hooks[0]).values()], 1)  # fmt: skip
    f = made.encode(x).detach()
    assert found.shape == (2, 40)
    for name, value in found.strongest(0, 6):
        layer, feature = (int(part) for part in name.split("/"))
        assert float(f[0, layer, feature]) == pytest.approx(value, rel=1e-5)
    for index in (0, 39, 40, 79):
        assert feature_index(feature_name(index, (2, 40)), (2, 40)) == index


def test_each_context_starts_with_the_beginning_of_text(small_model) -> None:
    found = inspect_text(TEXT, folded(sae()), small_model, context_size=12, prepend_bos=True)
    starts = [i for i, token in enumerate(found.tokens) if token == "<|endoftext|>"]
    assert {0, 12} <= set(starts)
    assert not found.kept[0]
    assert found.strongest(0) == []


@pytest.mark.parametrize(
    ("name", "shape", "parts"),
    [
        ("40", (40,), ("range", 40)),
        ("1/3", (40,), ("a number", 40)),
        ("x", (40,), ("a number", 40)),
        ("-1", (40,), ("a number", 40)),
        ("7", (2, 40), ("LAYER/FEATURE", "2 x 40")),
        ("2/7", (2, 40), ("range", "2 x 40")),
    ],
)
def test_names_that_are_no_feature(name: str, shape: tuple[int, ...], parts: tuple[object, ...]) -> None:
    with pytest.raises(DataError, match=saying(f"feature '{name}':", *parts)):
        feature_index(name, shape)


def test_a_long_text_makes_transformers_say_nothing(finished_project, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    from pipeline.lm.loading import load_language_model

    model = load_language_model(str(finished_project.path / "model"), device="cpu")
    model.tokenizer.model_max_length = CONTEXT
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        inspect_text("the cat sat " * CONTEXT, folded(sae()), model)
    finally:
        logger.removeHandler(caplog.handler)
    assert "longer than" not in caplog.text


def test_no_text_is_refused(small_model) -> None:
    with pytest.raises(DataError, match="the text has no token"):
        inspect_text("", folded(sae()), small_model)


@pytest.mark.parametrize("bos", [False, True])
def test_contexts_are_no_longer_than_the_dictionary_takes(small_model, bos: bool) -> None:
    hooks = {"hook_point_in": "blocks.0.ln1.hook_out", "hook_point_out": "blocks.0.hook_attn_out"}
    config = {"kind": "lorsa", "d_in": D_MODEL, "d_sae": 40, "act_fn": "topk", "top_k": 5, **hooks}
    made = folded(build_dictionary({**config, "n_qk_heads": 2, "d_qk_head": 8, "n_ctx": 6, "rotary_dim": 2}, seed=2))
    assert made.max_context == 6 < CONTEXT
    found = inspect_text(TEXT, made, small_model, prepend_bos=bos)
    wanted = inspect_text(TEXT, made, small_model, prepend_bos=bos, context_size=6)
    assert found.tokens == wanted.tokens
    assert torch.equal(found.features.to_dense(), wanted.features.to_dense())
    with pytest.raises(ParamsError, match=saying("dictionary.n_ctx:", 6, 7)):
        inspect_text(TEXT, made, small_model, context_size=7)
