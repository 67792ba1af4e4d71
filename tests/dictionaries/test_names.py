"""What a dictionary says of itself, under our names and the field's; what it refuses to encode."""

from __future__ import annotations

import pytest
import torch

from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError
from tests.messages import saying

D, F = 6, 8
COMMON = {"name": "mine", "d_in": D, "d_sae": F, "act_fn": "topk", "top_k": 2}
LAYERS = {"hook_points_in": ["a", "b"], "hook_points_out": ["c", "d"]}
CASES = {
    "sae": {"kind": "sae", "hook_point_in": "a"},
    "transcoder": {"kind": "transcoder", "hook_point_in": "a", "hook_point_out": "b", "d_out": 5, "skip": True},
    "crosscoder": {"kind": "crosscoder", "hook_points_in": ["a", "b"]},
    "clt": {"kind": "clt", **LAYERS},
    "lorsa": {"kind": "lorsa", "hook_point_in": "a", "hook_point_out": "b", "n_qk_heads": 2, "d_qk_head": 2, "n_ctx": 5, "rotary_dim": 2},
}  # fmt: skip


def made(name: str, **fields: object):
    dictionary = build_dictionary({**COMMON, **CASES[name], **fields}, seed=0)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.add_(0.1 * torch.arange(1.0, parameter.numel() + 1).sin().reshape(parameter.shape))
    return dictionary


@pytest.mark.parametrize("name", ["sae", "transcoder"])
def test_the_fields_orientation(name: str) -> None:
    """encode by SAELens's formula, (x - 0) W_enc + b_enc, and its decode, f W_dec + b_dec."""
    dictionary = made(name, apply_b_dec_to_input=False)
    assert (dictionary.W_enc.shape, dictionary.W_dec.shape) == ((D, F), (F, dictionary.d_out))
    x = torch.randn(3, D, generator=torch.Generator().manual_seed(0))
    h = x @ dictionary.W_enc + dictionary.b_enc
    kept = dictionary.encode(x) != 0
    torch.testing.assert_close(dictionary.encode(x)[kept], h[kept])
    torch.testing.assert_close(
        dictionary.decode(dictionary.encode(x)), dictionary.encode(x) @ dictionary.W_dec + dictionary.b_dec
    )


def test_of_attention_and_of_several_hook_points() -> None:
    lorsa = made("lorsa")
    assert torch.equal(lorsa.W_enc, lorsa.get_parameter("w_V").T)
    assert torch.equal(lorsa.W_dec, lorsa.get_parameter("w_O"))
    assert torch.equal(lorsa.b_enc, lorsa.get_parameter("b_V"))
    assert made("crosscoder").W_enc.shape == (2, D, F)
    assert made("crosscoder").W_dec.shape == (2, F, D)
    clt = made("clt")
    assert (clt.W_enc.shape, clt.b_enc.shape, clt.b_dec.shape) == ((2, D, F), (2, F), (2, D))
    with pytest.raises(DataError, match=saying("W_dec:", "'mine'", "clt", "feature_directions")):
        _ = clt.W_dec


def test_a_decoder_without_bias_has_zeros() -> None:
    dictionary = made("transcoder", use_decoder_bias=False, apply_b_dec_to_input=False)
    assert torch.equal(dictionary.b_dec, torch.zeros(5))


@pytest.mark.parametrize("name", CASES)
def test_feature_directions_are_what_one_feature_adds(name: str) -> None:
    dictionary = made(name)
    zeros = torch.zeros(1, *dictionary.feature_shape)
    for place, hook in enumerate(dictionary.hooks_out):
        rows = dictionary.feature_directions(hook).flatten(0, -2)
        for feature in (0, F - 1, rows.shape[0] - 1):
            f = zeros.clone()
            f.view(-1)[feature] = 1.0
            added = dictionary.decode_linear(f)[0]
            torch.testing.assert_close(rows[feature], added if added.ndim == 1 else added[place])


def test_the_directions_of_which_hook_point() -> None:
    assert torch.equal(made("sae").feature_directions(), made("sae").W_dec)
    with pytest.raises(DataError, match=saying("several", "c, d")):
        made("clt").feature_directions()
    with pytest.raises(DataError, match=saying("does not write 'a'", "c, d")):
        made("clt").feature_directions("a")


def test_repr_and_sizes() -> None:
    dictionary = made("transcoder")
    assert (dictionary.d_in, dictionary.d_out, dictionary.d_sae, dictionary.k) == (D, 5, F, 2)
    for part in (
        "transcoder('mine'",
        f"d_in={D}, d_out=5",
        f"features=[{F}]",
        "topk k=2",
        "a -> b",
        "normalised",
        "float32",
    ):
        assert part in repr(dictionary)
    for name in CASES:
        assert repr(made(name)).startswith(f"{made(name).config.kind}('mine', ")
    jumprelu = build_dictionary({"kind": "sae", "d_in": D, "d_sae": F, "act_fn": "jumprelu", "hook_point_in": "a"})
    assert jumprelu.k is None
    assert "jumprelu" in repr(jumprelu)
    assert f"features=[2, {F}]" in repr(made("clt"))


def with_rule(name: str, limits: dict[str, float]):
    """A dictionary that was trained without tokens longer than these norms at these hook points."""
    dictionary = made(name)
    widths = {**dict.fromkeys(dictionary.hooks_in, dictionary.d_in), **dict.fromkeys(dictionary.hooks_out, dictionary.d_out)}
    norms = {hook: {"mean_norm": 1.0, "mean_square": 1.0, "d": d} for hook, d in widths.items()}
    for hook, limit in limits.items():
        norms[hook] |= {"median_norm": limit / 5.0, "max_norm_factor": 5.0}
    return dictionary.rebuilt(dictionary.state_dict(), norms=norms)


def test_which_tokens_it_was_trained_without() -> None:
    x, y = torch.ones(2, 3, D), torch.ones(2, 3, 5)
    x[0, 1] *= 11.0  # norm 11 sqrt(6) = 26.9
    y[1, 2] *= 11.0  # 24.6
    assert made("sae").excluded(x).tolist() == [[False] * 3] * 2  # no rule
    sae = with_rule("sae", {"a": 26.0})
    assert sae.excluded(x).tolist() == [[False, True, False], [False] * 3]
    assert sae.excluded(x.to(torch.bfloat16)).dtype == torch.bool
    assert with_rule("sae", {"a": 27.0}).excluded(x).any().item() is False
    assert sae.encode(x)[0, 1].count_nonzero() == 2  # encode stays the function of its input
    assert "trained without massive tokens (norm above 26 at a)" in repr(sae)
    assert "massive" not in repr(made("sae"))
    transcoder = with_rule("transcoder", {"a": 26.0, "b": 24.0})
    assert transcoder.excluded(x).nonzero().tolist() == [[0, 1]]
    assert transcoder.excluded(x, y).nonzero().tolist() == [[0, 1], [1, 2]]
    several = torch.ones(4, 2, D)
    several[2, 1] *= 11.0
    assert with_rule("crosscoder", {"b": 26.0}).excluded(several).tolist() == [False, False, True, False]
    assert with_rule("crosscoder", {"a": 26.0}).excluded(several).tolist() == [False] * 4
    with pytest.raises(DataError, match=saying("[..., 6]", "shape [2, 3, 5]")):
        sae.excluded(y)
    with pytest.raises(DataError, match=saying("[..., 5]", "of b", "shape [2, 3, 6]")):
        transcoder.excluded(x, x)


@pytest.mark.parametrize(
    ("name", "x", "parts"),
    [
        ("sae", torch.zeros(3, 7), ("'mine' (sae)", "[..., 6]", "of a", "shape [3, 7]")),
        ("sae", torch.zeros(3, 6, dtype=torch.int64), ("'mine' (sae)", "int64")),
        ("clt", torch.zeros(3, 6), ("'mine' (clt)", "[..., 2, 6]", "of a, b", "shape [3, 6]")),
        ("crosscoder", torch.zeros(4, 3, 6), ("[..., 2, 6]", "shape [4, 3, 6]")),
        ("lorsa", torch.zeros(2, 3, 5), ("[..., 6]", "shape [2, 3, 5]")),
    ],
)
def test_activations_of_another_width(name: str, x: torch.Tensor, parts: tuple[str, ...]) -> None:
    for call in (made(name).encode, made(name)):
        with pytest.raises(DataError, match=saying(*parts)):
            call(x)
