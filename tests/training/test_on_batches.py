"""Training on batches that an iterator of one's own gives: the rows in their order, each once, however they are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.api import fit, train_dictionary
from pipeline.errors import DataError, ParamsError
from pipeline.training.on_batches import GivenSource
from pipeline.training.tensors import TensorData, joined
from tests.messages import saying

N, D, BATCH = 6000, 12, 64
DICTIONARY = {"top_k": 3, "d_sae": 24}
TRAINER = {"total_training_tokens": 4096, "lr": 3e-3}
FEW = {"tokens": 512}


def planted(n: int = N, seed: int = 0, width: int = D) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(20, width, generator=draw), dim=1)
    chosen = torch.rand(n, 20, generator=draw).topk(2).indices
    values = torch.rand(n, 2, generator=draw) + 0.5
    return (values.unsqueeze(-1) * directions[chosen]).sum(1)


def cut(rows: Any, sizes: Sequence[int]) -> Iterator[Any]:
    """The rows in pieces of these sizes, over and over."""
    start = 0
    while start < N:
        for size in sizes:
            part = slice(start, start + size)
            if isinstance(rows, dict):
                yield {name: x[part] for name, x in rows.items()}
            elif isinstance(rows, tuple):
                yield tuple(x[part] for x in rows)
            else:
                yield rows[part]
            start += size


def trained(rows: Any, sizes: Sequence[int] = (500,), dictionary: Any = None, **more: Any) -> Any:
    return train_dictionary(
        cut(rows, sizes),
        dictionary={**DICTIONARY, **(dictionary or {})},
        trainer=TRAINER,
        initializer=FEW,
        batch_size=BATCH,
        device="cpu",
        **more,
    )


def weights(result: Any) -> dict[str, Tensor]:
    return dict(result.inference.state_dict())


def same(one: Any, other: Any) -> bool:
    found, wanted = weights(one), weights(other)
    return found.keys() == wanted.keys() and all(found[name].equal(wanted[name]) for name in wanted)


def fvu(result: Any, x: Tensor) -> float:
    inference = result.inference
    with torch.no_grad():
        error = x - inference.decode(inference.encode(x))
    return float(error.square().sum() / (x - x.mean(0)).square().sum())


def test_what_is_learnt_does_not_depend_on_how_the_rows_are_cut() -> None:
    x = planted()
    # The first tokens, of which norms are made, end with the same piece: 17,000 tokens are wanted, and all are fewer.
    assert same(trained(x, (500,)), trained(x, (1, 7, 492, 1000)))


def test_it_learns_as_fit_does() -> None:
    x, held = planted(), planted(seed=0)[-500:]
    mine = fvu(trained(x), held)
    whole = fvu(fit(x, dictionary=DICTIONARY, trainer=TRAINER, initializer=FEW, batch_size=BATCH, device="cpu"), held)
    assert mine < 0.5
    assert mine < 1.15 * whole


@pytest.mark.parametrize("dims", [1, 2])
def test_batches_are_the_rows_in_their_order(dims: int) -> None:
    shape = (50, 3) if dims == 1 else (50, 4, 3)
    x = torch.arange(float(torch.tensor(shape).prod())).view(shape)
    mask = torch.arange(50 * (4 if dims == 2 else 1)).view(shape[:-1]) % 5 != 0
    data = TensorData("sae", x, x)
    pieces = [data.rows(0, 3), data.rows(3, 30), data.rows(30, 31), data.rows(31, 50)]
    if dims == 2:
        pieces[1] = data.rows(3, 30).without(~mask[3:30])
    source = GivenSource(iter(pieces), 8, 1 if dims == 1 else 4)
    made = source.batches(0)
    found = [next(made) for _ in range(6)]
    assert torch.cat([batch.inputs for batch in found]).equal(x[:48])
    assert all(batch.labels is batch.inputs for batch in found)
    assert [batch.index for batch in found] == list(range(6))
    if dims == 2:
        kept = torch.cat([torch.ones(8, 4, dtype=torch.bool) if b.mask is None else b.mask for b in found])
        assert kept[3:30].equal(mask[3:30])
        assert bool(kept[:3].all())
        assert bool(kept[30:].all())
    with pytest.raises(DataError, match="ended after"):
        next(made)


@pytest.mark.parametrize(("n", "first"), [(6000, 0), (20_000, 17_500)])
def test_massive_tokens_are_left_out_of_the_first_rows_and_of_later_ones(n: int, first: int) -> None:
    x = planted(n)
    places = torch.arange(first, n, 100)
    massive, left = x.clone(), torch.ones(n, dtype=torch.bool)
    massive[places] *= 1000
    left[places] = False
    # Of 20,000 rows the first 17,500 are gathered (16,896 are wanted): norms and weights are of them, the others come when they are asked for.
    rule, clean = trained_on(massive, first), trained_on(x[left], first)
    assert same(rule, clean)
    assert not same(trained_on(massive, first, max_norm_factor=None), clean)


def trained_on(x: Tensor, first: int, **more: Any) -> Any:
    trainer = {**TRAINER, "total_training_tokens": 18_944 if first else 4096}
    pieces = (x[:first], *x[first:].split(999))
    return train_dictionary(
        pieces, dictionary=DICTIONARY, trainer=trainer, initializer=FEW, batch_size=BATCH, device="cpu", **more
    )


def test_pairs_and_hook_points_by_name_are_a_transcoder() -> None:
    x, y = planted(), planted(seed=3, width=8)
    pairs = trained((x, y))
    named = trained({"a": x, "b": y, "c": x}, dictionary={"kind": "transcoder", "hook_point_in": "a", "hook_point_out": "b"})
    assert pairs.dictionary.config.kind == "transcoder"
    assert (pairs.dictionary.config.d_in, pairs.dictionary.config.d_out) == (D, 8)
    assert same(pairs, named)
    assert named.inference.config.hook_point_out == "b"


def test_several_hook_points_are_a_crosscoder() -> None:
    x = {"a": planted(), "b": planted(seed=1), "c": planted(seed=2)}
    made = trained(x, dictionary={"kind": "crosscoder", "hook_points_in": ("c", "a")})
    assert made.dictionary.hooks_in == ("c", "a")
    whole = trained({"c": x["c"], "a": x["a"]}, dictionary={"kind": "crosscoder"})
    assert same(made, whole)


def test_batchtopk_keeps_rows_for_its_threshold() -> None:
    made = trained(planted(), dictionary={"act_fn": "batchtopk"})
    assert made.inference.config.act_fn == "jumprelu"


@pytest.mark.parametrize(
    ("rows", "dictionary", "error", "said"),
    [
        (planted(2000), {}, DataError, "the batches ended after 1,984 tokens"),
        (planted()[:0], {}, DataError, "gives no rows"),
        ({"a": planted(), "b": planted()}, {}, ParamsError, "dictionary.hook_point_in: missing"),
        ({"a": planted(), "b": planted()}, {"hook_point_in": "aa"}, DataError, "did you mean 'a'?"),
        (planted().long(), {}, ParamsError, "floating point"),
    ],
)
def test_what_cannot_be_trained_on_is_named(rows: Any, dictionary: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=saying(said)):
        trained(rows, dictionary=dictionary)


def test_another_shape_is_refused_when_it_comes() -> None:
    pieces = [planted(100), planted(100, width=D + 1)]
    with pytest.raises(DataError, match=saying("batch 1 of the iterator has rows of (13, 13), the first had (12, 12)")):
        train_dictionary(pieces, dictionary=DICTIONARY, trainer=TRAINER, batch_size=BATCH, device="cpu")


def test_parts_of_contexts_are_joined_with_their_masks() -> None:
    x = torch.randn(6, 4, 3)
    data = TensorData("sae", x, x)
    masked = data.rows(4, 6).without(torch.tensor([[True, False, False, False]] * 2))
    whole = joined([data.rows(0, 4), masked])
    assert whole.inputs.equal(x)
    assert whole.labels is whole.inputs
    assert whole.mask is not None
    assert whole.mask.sum(1).tolist() == [4, 4, 4, 4, 3, 3]
