"""Hook point names: parsing, order, and what a wrong one is told."""

from __future__ import annotations

import pytest

from pipeline.errors import DataError
from pipeline.lm.hook_points import SITES, HookPoint, hook_point_names, last_of, parse_hook_point, parse_hook_points


def test_names_and_order():
    names = hook_point_names(11)
    assert len(names) == 11 * len(SITES)
    assert names[0] == "blocks.0.hook_resid_pre"
    parsed = [parse_hook_point(name, 11) for name in names]
    assert parsed == sorted(parsed)
    assert [point.name for point in parsed] == names
    assert parse_hook_point("blocks.10.ln2.hook_out", 11) == HookPoint(10, SITES.index("ln2.hook_out"))
    assert last_of(["blocks.9.hook_resid_post", "blocks.10.hook_resid_pre"], 11) == "blocks.10.hook_resid_pre"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.2.hook_resid_pst", r"'blocks\.2\.hook_resid_post'\? demo has blocks\.L\.\{.*\} with L from 0 to 3"),
        ("blocks.9.hook_mlp_out", r"layer 9 does not exist, demo has 4 layers; did you mean 'blocks\.\d\.hook_mlp"),
        ("blocks.-1.hook_mlp_out", "unknown hook point"),
        ("", "unknown hook point ''"),
        ("blocks.1.hook_resid_post ", "unknown hook point"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(DataError, match=message):
        parse_hook_point(name, 4, "demo")


def test_a_bare_string_is_not_a_list():
    with pytest.raises(DataError, match="should be a list"):
        parse_hook_points("blocks.0.hook_resid_pre", 4)
