"""Hook point names: which a family has, their order, and what a wrong one is told."""

from __future__ import annotations

import pytest

from pipeline.errors import DataError
from pipeline.hook_keys import (
    AFTER,
    BEFORE,
    SITES,
    by_model,
    join_key,
    module_of,
    occurs_before,
    out_of_order,
    split_key,
    written_before_read,
)
from pipeline.lm.architectures import Architecture
from pipeline.lm.families import MODEL_FAMILIES
from pipeline.lm.hook_points import HookPoint, HookPoints

LLAMA = MODEL_FAMILIES.get("llama").sites


def of(n_layers, sites=LLAMA):
    return HookPoints("demo", (sites,) * n_layers, "llama")


def test_names_and_order():
    points = of(11)
    names = points.names()
    assert len(names) == 11 * len(LLAMA) + 3
    assert names[:2] == ["hook_embed", "blocks.0.hook_resid_pre"]
    assert names[-1] == "ln_final.hook_out"
    parsed = [points.parse(name) for name in names]
    assert parsed == sorted(parsed)
    assert [point.name for point in parsed] == names
    out = "blocks.10.ln2.hook_out"
    assert points.parse(out) == HookPoint(10, SITES.index("ln2.hook_out"), out, "ln2.hook_out")
    assert points.up_to(["blocks.9.hook_resid_post", "blocks.10.ln1.hook_normalized"])[-1] == "blocks.10.hook_resid_pre"
    assert points.up_to(["hook_embed"]) == []


def test_a_family_has_the_sites_of_the_modules_that_it_declares():
    names = ("blocks", "norm", "attn", "mlp")
    both = Architecture("both", *names, "before", "between", ln1_post="after", ln2_post="last")
    assert [site for site in both.sites if "ln" in site] == [
        f"{norm}.hook_{part}" for norm in ("ln1", "ln1_post", "ln2", "ln2_post") for part in ("normalized", "out")
    ]
    assert (both.adds_attention, both.adds_mlp) == ("after", "last")
    bare = Architecture("bare", *names, None, None)
    # Before a norm that follows them, attention and MLP have an output of their own.
    own = ("attn.hook_out", "mlp.hook_out")
    assert set(own) <= set(both.sites)
    assert bare.sites == tuple(site for site in both.sites if "ln" not in site and site not in own)
    assert (both.reads_middle, bare.reads_middle) == ("between", "mlp")
    assert (bare.adds_attention, bare.adds_mlp) == ("attn", "mlp")


def test_blocks_may_differ():
    mixed = Architecture("mixed", "blocks", "norm", "attn", "mlp", "ln1", "ln2", by_layer=lambda c, i: {"ln1": c["ln"][i]})
    config = {"ln": ["ln1", None, "ln1"]}
    points = HookPoints("demo", tuple(mixed.of_block(config, layer).sites for layer in range(3)), "mixed")
    assert "blocks.0.ln1.hook_out" in points.names()
    assert "blocks.1.ln1.hook_out" not in points.names()
    with pytest.raises(
        DataError, match=r"'blocks\.1\.ln1\.hook_out': demo \(family mixed\) has no ln1\.hook_out there.*L 0, 2.*L 1"
    ):
        points.parse("blocks.1.ln1.hook_out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "blocks.2.hook_resid_pst",
            r"'blocks\.2\.hook_resid_post'\? demo has hook_embed, blocks\.L\.\{.*\} with L from 0 to 3",
        ),
        (
            "blocks.9.hook_mlp_out",
            r"layer 9 does not exist, demo has 4 layers, 0 to 3; did you mean 'blocks\.3\.hook_mlp_out'\?$",
        ),
        ("blocks.-1.hook_mlp_out", "unknown hook point"),
        ("", "unknown hook point ''"),
        ("blocks.1.hook_resid_post ", "unknown hook point"),
        (
            "blocks.1.ln2_post.hook_out",
            r"demo \(family llama\) has no ln2_post\.hook_out there; it has hook_embed, blocks\.L\.\{",
        ),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(DataError, match=message):
        of(4).parse(name)


def test_a_bare_string_is_not_a_list():
    with pytest.raises(DataError, match="should be a list"):
        of(4).parse_all("blocks.0.hook_resid_pre")


PATH = "module:model.layers.1.mlp.down_proj"


def test_an_alias_stands_before_any_hook_point():
    hooks = ("blocks.1.hook_resid_post", "hook_embed", f"{PATH}:input", "module:model.norm:output")
    for hook in hooks:
        assert split_key(hook) == ("", hook)
        assert split_key(join_key("tuned", hook)) == ("tuned", hook)
    keys = [join_key(alias, hook) for alias in ("", "tuned") for hook in hooks]
    assert by_model(keys) == {"": list(hooks), "tuned": list(hooks)}


def test_modules_are_taken_apart():
    assert module_of(f"{PATH}:input") == ("model.layers.1.mlp.down_proj", "input")
    for other in ("module:a.b", "module:a.b:inputs", "module::input", "blocks.1.hook_resid_post", "modules:a:input"):
        assert module_of(other) is None


def test_the_order_of_a_run_is_that_of_names_as_far_as_they_say():
    ordered = [*BEFORE, *(f"blocks.{layer}.{site}" for layer in range(2) for site in SITES), *AFTER]
    for index, first in enumerate(ordered):
        assert [occurs_before(first, second) for second in ordered] == [index < place for place in range(len(ordered))]
    assert occurs_before("blocks.0.hook_resid_post", f"{PATH}:input")
    assert occurs_before(f"{PATH}:input", f"{PATH}:output")
    assert occurs_before(f"{PATH}:output", "ln_final.hook_out")
    # Within a block, and of a path without a number, the names do not say.
    for other in ("blocks.1.hook_mlp_out", "module:model.layers.1.mlp:output", "module:model.norm:input", f"{PATH}:input"):
        assert not occurs_before(f"{PATH}:input", other)
        assert not occurs_before(other, f"{PATH}:input")
    assert out_of_order(["hook_embed", f"{PATH}:input", "blocks.1.hook_mlp_out", "module:model.norm:input"]) is None
    assert "hook_embed occurs before" in out_of_order([f"{PATH}:input", "hook_embed"])
    assert "blocks.0.hook_mlp_out occurs before" in written_before_read([f"{PATH}:input"], ["blocks.0.hook_mlp_out"])
