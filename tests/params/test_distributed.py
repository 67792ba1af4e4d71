"""What several processes ask of the parameters."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.params.rules.distributed import indivisible, parts_are_of_all_features
from pipeline.params.sections.distributed import DistributedParams
from pipeline.params.sections.trainer import TrainerParams


class Stated:
    """A dictionary section of which some is known."""

    name, act_fn = "main", "other"

    def __init__(self, what: str = "features", n: int | None = None, dealable: bool = True) -> None:
        self.dealt, self.gate = (what, n), type("Gate", (), {"dealable": dealable})


@pytest.mark.parametrize(("n", "size"), [(None, 3), (24, 1), (24, 8), (1 << 20, 4096)])
def test_what_can_be_dealt(n: int | None, size: int) -> None:
    assert indivisible(Stated(n=n), size) is None  # type: ignore[arg-type]


def test_what_cannot_is_said_with_what_could() -> None:
    found = indivisible(Stated("query-key heads", 12), 8)  # type: ignore[arg-type]
    assert found == "8 does not divide the 12 query-key heads of dictionary 'main'; write 1, 2, 3, 4, 6, 12"
    assert str(indivisible(Stated(n=1 << 14), 48)).endswith("write 4, 8, 16, 32, 64, 128, 256, 512")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dealable", "size", "wanted"),
    [(True, 2, None), (False, 1, None), (False, 2, "2, and dictionary.act_fn other is not declared dealable; write 1")],
)
def test_what_other_packages_bring_says_so(dealable: bool, size: int, wanted: Any) -> None:
    distributed = DistributedParams(model_parallel_size=size)
    assert parts_are_of_all_features.check(distributed, Stated(dealable=dealable), TrainerParams()) == wanted
