"""fit() on activations with massive tokens, for every kind: the rule leaves them out, and without it they do no harm."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.seeding import generator
from pipeline.training.fit import FitResult
from tests.training.cases import same
from tests.training.massive import CONTEXT, EVERY, HOOKS, PLACES, Given, drawn, ordinary

N = 200  # contexts
ROWS = N * CONTEXT
MASSIVE = [i for i in range(ROWS) if i % EVERY == 0]


def same_weights(first: FitResult, second: FitResult) -> bool:
    """As trained and in the inference form, bit for bit."""
    return all(
        same(a.state_dict(), b.state_dict())
        for a, b in ((first.dictionary, second.dictionary), (first.inference, second.inference))
    )


def gates(*, first: int = 0) -> list[tuple[str, str, str]]:
    """Every place with one gate, the SAE with all."""
    names = ("topk", "batchtopk", "jumprelu", "relu")
    found = [(kind, hook, names[(i + first) % 4]) for i, (kind, hook) in enumerate(PLACES)]
    return list(dict.fromkeys([*found, *(("sae", "input", name) for name in names)]))


@pytest.mark.parametrize(("kind", "hook", "act_fn"), [case for case in gates() if case[0] != "lorsa"])
def test_with_the_rule_a_run_on_rows_is_the_run_on_the_ordinary_rows(kind: str, hook: str, act_fn: str) -> None:
    """Rows of one length, so that the norms of the other hook points are the same with and without the massive tokens."""
    plain = drawn(kind, N, one_length=True)
    found = plain.with_massive(hook).flat().fit(act_fn=act_fn)
    wanted = plain.ordinary().fit(act_fn=act_fn)
    assert same_weights(found, wanted)
    assert found.history == wanted.history
    assert {name: norm["n_excluded"] for name, norm in found.norms.items()} == {
        name: len(MASSIVE) if name == hook else 0 for name in found.norms
    }


def test_rows_of_any_length() -> None:
    """Of one hook point the means are those of the ordinary rows, whatever their lengths."""
    plain = drawn("sae", N)
    found = plain.with_massive("input").flat().fit()
    wanted = plain.ordinary().fit()
    assert same_weights(found, wanted)
    lengths = plain.ordinary().tensors["input"].double().norm(dim=-1)
    every = plain.with_massive("input").tensors["input"].reshape(ROWS, -1).norm(dim=-1)
    norm = found.norms["input"]
    assert norm["mean_norm"] == pytest.approx(float(lengths.mean()), rel=1e-12)
    assert norm["mean_square"] == pytest.approx(float(lengths.square().mean()), rel=1e-12)
    assert norm["median_norm"] == sorted(every.tolist())[(ROWS - 1) // 2]
    assert (norm["max_norm_factor"], norm["n_tokens"], norm["n_excluded"]) == (10.0, ROWS - len(MASSIVE), len(MASSIVE))
    assert found.dictionary.config.norms == found.norms
    assert (found.inference.config.norms or {})["input"]["n_excluded"] == len(MASSIVE)


@pytest.mark.parametrize(("kind", "hook", "act_fn"), gates(first=1))
def test_with_the_rule_massive_tokens_of_contexts_are_masked(kind: str, hook: str, act_fn: str) -> None:
    """What a massive token's activation is changes nothing (a kind that reads sequences: as a label).

    With TopK it decides where the token's zeros stand in the sums over tokens, and thus the rounding.
    """
    plain = drawn(kind, N)
    first, other = plain.with_massive(hook), plain.with_massive(hook, factor=-4000.0, axis=7)
    found, again = first.fit(act_fn=act_fn), other.fit(act_fn=act_fn)
    if act_fn == "topk":
        for name, tensor in found.inference.state_dict().items():
            torch.testing.assert_close(again.inference.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    else:
        assert same_weights(found, again)
        assert found.history == again.history
    batch = 96 // CONTEXT
    held = batch if act_fn in ("batchtopk", "jumprelu") else 0
    seen = _tokens_of_the_order(N - held, batch, steps=50)
    assert found.history[-1]["tokens"] == sum(1 for token in seen if token % EVERY) < len(seen)


def _tokens_of_the_order(rows: int, batch: int, steps: int) -> list[int]:
    """The tokens that a run sees, in epochs of whole batches of contexts."""
    found: list[int] = []
    for step in range(steps):
        epoch, within = divmod(step, rows // batch)
        order = torch.randperm(rows, generator=generator(3, "batches", epoch)).tolist()
        for context in order[within * batch : (within + 1) * batch]:
            found += range(context * CONTEXT, (context + 1) * CONTEXT)
    return found


@pytest.mark.parametrize(("kind", "hook"), PLACES)
def test_a_massive_token_is_left_out_at_every_hook_point(kind: str, hook: str) -> None:
    """What such a token is at the other hook points, ordinary there, changes nothing either."""
    plain = drawn(kind, N)
    others = [name for name in dict.fromkeys((*HOOKS[kind][0], *HOOKS[kind][1])) if name != hook]
    if kind == "lorsa":
        others = []  # its inputs are read by other tokens
    massive = plain.with_massive(hook)
    run: dict[str, Any] = {"steps": 20, "norm_activation": "token-wise", "act_fn": "relu"}
    found = massive.fit(**run)
    for name in others:
        x = massive.tensors[name].clone()
        x.view(ROWS, -1)[::EVERY] *= -1
        changed = Given(kind, {**massive.tensors, name: x})
        assert same_weights(found, changed.fit(**run))
    x = plain.tensors[hook].clone()
    x.view(ROWS, -1)[1::EVERY] *= -1  # ordinary tokens: these do
    other = Given(kind, {**plain.tensors, hook: x}).with_massive(hook)
    assert not same_weights(found, other.fit(**run))


@pytest.mark.parametrize(
    ("kind", "hook", "act_fn"),
    [
        ("sae", "input", "topk"),
        ("sae", "input", "relu"),
        ("transcoder", "input", "batchtopk"),
        ("transcoder", "output", "jumprelu"),
        ("lorsa", "output", "topk"),
        ("crosscoder", "middle", "batchtopk"),
        ("clt", "x1", "topk"),
        ("clt", "y0", "jumprelu"),
    ],
)
def test_without_the_rule_ordinary_tokens_are_learnt_all_the_same(kind: str, hook: str, act_fn: str) -> None:
    """Taken as they are, the massive ones make FVU 2 to 5,000 times as large in these runs."""
    massive = drawn(kind, N).with_massive(hook)
    unseen, mask = drawn(kind, 100, seed=1), ordinary(100)
    if kind != "lorsa":
        unseen, mask = unseen.flat(), mask.flatten()
    with_rule, without = massive.fit(steps=125, act_fn=act_fn), massive.fit(None, steps=125, act_fn=act_fn)
    assert not same_weights(with_rule, without)
    for made in (without.dictionary, without.inference):
        assert all(bool(tensor.isfinite().all()) for tensor in made.state_dict().values())
    # An input that does not foretell its massive label costs more: its features learn both.
    most = 2.5 if (kind, hook) == ("transcoder", "output") else 1.6
    assert unseen.fvu(without, mask) < most * unseen.fvu(with_rule, mask)
    assert unseen.fvu(with_rule, mask) < 0.3
    assert {name: (norm["max_norm_factor"], norm["n_excluded"]) for name, norm in without.norms.items()} == dict.fromkeys(
        without.norms, (None, 0)
    )
    assert without.history[-1]["tokens"] == 125 * 96


@pytest.mark.parametrize(
    ("factor", "excluded"), [(None, 0), (1000.0, 0), (100.0, len(MASSIVE))], ids=["off", "above them", "below them"]
)
def test_the_factor_decides(factor: float | None, excluded: int) -> None:
    result = drawn("sae", N).with_massive("input").flat().fit(factor, steps=4)
    assert result.norms["input"]["n_excluded"] == excluded
    assert result.norms["input"]["max_norm_factor"] == factor
