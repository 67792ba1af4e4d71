"""The benchmark of other tools' dictionaries: what a tool is asked, what is counted, and what stands in the table."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import peer_dictionaries
from benchmarks.peer_dictionaries import ALLOWED, HEAD, Judged, Settings, line, report, train_peers, undecided
from benchmarks.peer_judged import PACKAGES, TRAINERS, Batches, Job, judged
from tests.closure import imports
from tests.dictionaries.make import filled


def fake_peer(folder: Path, body: str) -> str:
    """A program in the place of a tool's Python."""
    file = folder / "python"
    file.write_text(f"#!{sys.executable}\nimport json, pathlib, sys\n_, script, peer, rows, asked = sys.argv\n{body}")
    file.chmod(0o755)
    return str(file)


def test_every_kind_is_trained_and_what_it_gives_is_read(tmp_path: Path) -> None:
    body = """
asked = json.loads(asked)
assert (asked["features"], asked["l0"], asked["layer"]) == (64, 24, 2), asked
for kind, place in asked["jobs"].items():
    pathlib.Path(place, "result.json").write_text(json.dumps({"fvu": 0.5, "l0": len(kind), "rows": 10, "version": peer}))
"""
    run = Settings(tmp_path / "work", Path("tokens"), 1024, 64, None)
    found = train_peers(dict.fromkeys(("saelens", "sparsify"), fake_peer(tmp_path, body)), run)
    assert [(each.peer, each.kind) for each in found] == [
        (peer, kind) for peer in ("saelens", "sparsify") for kind in TRAINERS[peer]
    ]
    assert all(each.ours == ("transcoder" in each.kind, len(each.kind)) for each in found)
    assert {each.theirs["version"] for each in found} == {"saelens", "sparsify"}


def test_a_tool_that_fails_says_why(tmp_path: Path) -> None:
    run = Settings(tmp_path / "work", Path("tokens"), 1024, 64, None)
    with pytest.raises(click.ClickException, match=r"sparsify: status 1:\n(.|\n)*no such thing"):
        train_peers({"sparsify": fake_peer(tmp_path, "sys.exit('no such thing')")}, run)


def test_a_wrong_name_is_refused() -> None:
    for given in ("sparsify", "other=python"):
        outcome = CliRunner().invoke(peer_dictionaries.main, ["--peer", given])
        assert outcome.exit_code == 2
        assert "NAME one of saelens, sparsify, dictionary_learning" in outcome.output


def test_fvu_and_l0_are_those_of_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3000, 5, generator=draw) for _ in range(2))

    def forward(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rows.relu(), 0.5 * rows

    found = judged(forward, x, y)
    rows, labels = x.double().numpy(), y.double().numpy()
    error = sum(((b - 0.5 * a) ** 2).sum() for a, b in zip(rows, labels, strict=True))
    spread = sum(((b - labels.mean(0)) ** 2).sum() for b in labels)
    assert found["fvu"] == pytest.approx(error / spread, rel=1e-9)
    assert found["l0"] == pytest.approx(np.mean([(a > 0).sum() for a in rows]), rel=1e-12)
    assert found["rows"] == 3000


def test_batches_are_the_rows_in_order_and_copies() -> None:
    x = torch.arange(10.0)[:, None]
    batches = iter(Batches(Job("topk", x, x, batch=3, features=8, l0=2, layer=1, saved=Path("x"))))
    seen = [next(batches) for _ in range(4)]
    assert [batch.flatten().tolist() for batch in seen] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]
    seen[0].zero_()
    assert x[2] == 2


def test_the_table_has_a_cell_for_each_heading(tmp_path: Path) -> None:
    metrics = {"l0_mean": 24.0, "fvu": 0.25, "delta_ce": 0.5, "dead_fraction": 0.125}
    off = {"fvu": 1e-7, "l0": 0.0, "features": 2e-7, "reconstructions": 3e-7}
    each = Judged("sparsify", "topk", {"version": "eai-sparsify 1", "rows": 100, "l0": 24.0}, metrics, off)
    row = line(each, metrics | {"fvu": 0.125})
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == len(HEAD)
    assert cells[:7] == ["sparsify", "topk", "24.0", "0.2500", "0.500", "12.5%", "0.1250"]
    assert cells[-5:] == ["1e-07", "0e+00", "2e-07", "3e-07", "0"]
    text = report([row], [each], Settings(tmp_path, Path("t"), 2048, 64, 4096))
    assert row in text
    assert "--tokens 2048 --features 64 --evaluated 4096`" in text
    assert "Not all tools took part." in text


def test_the_tools_script_needs_nothing_of_this_project() -> None:
    assert not imports("benchmarks/peer_judged.py")
    assert set(TRAINERS) == set(PACKAGES)


@pytest.mark.parametrize("act_fn", ["jumprelu", "topk"])
def test_an_entry_is_undecided_at_the_threshold_alone(act_fn: str) -> None:
    """Where the gating values are the inputs: threshold 1, or the larger one of a token."""
    made = filled(act_fn=act_fn, top_k=1, d_in=2, d_sae=2, sparsity_include_decoder_norm=False)
    with torch.no_grad():
        made.W_E.copy_(torch.eye(2))
        made.b_E.zero_()
        for threshold in made.threshold_parameters():
            threshold.zero_()  # its logarithm
    near, far = 1 + 0.1 * ALLOWED, 1 + 10 * ALLOWED
    if act_fn == "topk":  # the first feature is active in the other forward
        x, feature = torch.tensor([[1.0, near], [1.0, far], [1.0, 5.0]], dtype=torch.float64), 0
    else:
        x, feature = torch.tensor([[5.0, near], [5.0, far], [5.0, 2.0]], dtype=torch.float64), 1
    differs = torch.zeros(3, 2, dtype=torch.bool)
    assert undecided(made, x, differs).tolist() == []
    differs[:, feature] = True
    assert undecided(made, x, differs).tolist() == [[0, feature]]
