"""The benchmark on a real language model, without one: its tables against counts by hand, and a small run on the demo model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from benchmarks import real
from benchmarks.captured import Part, Settings, capture, read_loss, read_part
from benchmarks.massive_tokens import FACTORS, Lengths, gap_table, massive_table, measured, shares_table
from benchmarks.real import Cell, keep, runs_in, spliced_loss
from pipeline.corpus.document import Document
from pipeline.errors import DataError
from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_language_model
from pipeline.norms.exclusion import NormLimits
from pipeline.seeding import generator
from tests.lm.conftest import CONFIGURATIONS
from tests.lm.families import write_model
from tests.lm.gguf_files import vocabulary, write_gguf
from tests.messages import saying
from tests.project import REPOSITORY

HOOK = "blocks.1.hook_resid_post"
MODEL = REPOSITORY / "data" / "demo" / "model"


def some_lengths() -> Lengths:
    draw = generator(0, "tests", "lengths")
    ratio = torch.exp(1.5 * torch.randn(40, 8, generator=draw))
    ratio[:30, 0], ratio[5, 3] = 60.0, 12.0
    tokens = torch.randint(0, 5, (40, 8), generator=draw)
    return Lengths(9, True, 2.5, ratio, tokens, tokens != 0, ratio.double().square())


def test_shares_and_gap_are_those_counted_token_by_token() -> None:
    found = some_lengths()
    kept = [float(r) for row, of in zip(found.ratio, found.kept, strict=True) for r, k in zip(row, of, strict=True) if k]
    for factor in FACTORS:
        assert found.share(factor) == pytest.approx(sum(r > factor for r in kept) / len(kept))
        above = [r for r in kept if r > factor]
        assert found.gap(factor) == (max(r for r in kept if r <= factor), min(above) if above else None)
    line = shares_table([found])[-1]
    assert line.startswith(f"| 9 | yes | 2.5 | {max(kept):.1f}x | {sum(r > 3 for r in kept) / len(kept):.3%} |")
    assert line.count("|") == shares_table([found])[0].count("|")
    long, below = sum(5 < r <= 10 for r in kept), max(r for r in kept if r <= 10)
    first = sum(5 < float(r) <= 10 and bool(k) for r, k in zip(found.ratio[:, 0], found.kept[:, 0], strict=True))
    of_long = sum(r * r for r in kept if 5 < r <= 10) / sum(r * r for r in kept if r <= 10)
    of_massive = sum(r * r for r in kept if r > 10) / sum(r * r for r in kept)
    shown = f"| {below:.1f}x | {min(r for r in kept if r > 10):.1f}x | {long} | {first} | {of_long:.1%} | {of_massive:.1%} |"
    assert gap_table([found])[-1] == f"| 9 | yes {shown}"


def test_spread_is_about_the_mean_of_the_tokens_that_are_not_massive() -> None:
    x = torch.tensor([[[30.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [-1.0, 0.0]]])
    found = measured(1, False, 1.0, Part(x, torch.zeros(2, 2, dtype=torch.long), torch.tensor([[True, True], [True, False]])))
    torch.testing.assert_close(found.ratio, torch.tensor([[30.0, 1.0], [1.0, 1.0]]))
    mean = (0.5, 0.5)
    by_hand = [[sum((float(a) - m) ** 2 for a, m in zip(v, mean, strict=True)) for v in row] for row in x]
    torch.testing.assert_close(found.spread, torch.tensor(by_hand, dtype=torch.float64))


def test_without_a_massive_token_there_is_no_shortest_one() -> None:
    ratio = torch.tensor([[0.5, 1.0], [2.0, 9.5]])
    found = Lengths(1, False, 1.0, ratio, torch.zeros(2, 2).long(), torch.ones(2, 2).bool(), torch.ones(2, 2).double())
    assert found.gap(10.0) == (9.5, None)
    assert gap_table([found])[-1] == "| 1 | no | 9.5x |  | 1 | 0 | 25.0% | 0.0% |"
    assert massive_table([found], str)[-1] == "| 1 | no | 0 | 0 | 0 | 0.0% | none |"


def test_massive_tokens_are_told_with_position_and_text() -> None:
    ratio, tokens = torch.ones(3, 4), torch.arange(12).view(3, 4)
    ratio[0, 0] = ratio[1, 0] = ratio[1, 2] = ratio[2, 3] = 11.0
    kept = tokens != 4  # position 0 of the second context is a special token
    found = Lengths(20, False, 1.0, ratio, tokens, kept, torch.ones(3, 4).double())
    line = massive_table([found], {6: "\n", 11: "a|b"}.__getitem__)[-1]
    assert line == "| 20 | no | 4 | 1 | 2 | 66.7% | positions 2 to 3 (median 2): `\\n` 1, `a\\|b` 1 |"


def test_runs_are_read_back_without_a_line_cut_short(tmp_path: Path) -> None:
    kept, first, second = tmp_path / "runs.jsonl", Cell(1, False, "topk", True, 0), Cell(1, False, "topk", False, 0)
    assert runs_in(kept) == {}
    keep(kept, first, {"fvu": 0.25})
    with kept.open("a") as file:
        file.write('[{"layer": 1, "bo')
    assert runs_in(kept) == {first: {"fvu": 0.25}}
    keep(kept, second, {"error": "diverged"})
    assert runs_in(kept) == {first: {"fvu": 0.25}, second: {"error": "diverged"}}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_language_model(MODEL)


def documents() -> list[Document]:
    words = ["the value of a array", "returns an index", "that is not sorted", "of each row", "by its own name", "or None"]
    picked = torch.randint(0, len(words), (24, 60), generator=generator(0, "tests", "words")).tolist()
    return [Document(f"d{i}", ". ".join(words[k] for k in row)) for i, row in enumerate(picked)]


def settings(**other: Any) -> Settings:
    return Settings(
        **{"hook_points": (HOOK,), "context_size": 16, "tokens": 1500, "held_out_fraction": 0.3, "dtype": "float32"} | other
    )


def test_what_is_captured_is_what_the_model_gives(model: LanguageModel, tmp_path: Path) -> None:
    capture(model, documents(), tmp_path, settings())
    for bos in (False, True):
        part = read_part(tmp_path, bos, "eval", HOOK)
        torch.testing.assert_close(part.activations, model.activations(part.tokens, [HOOK])[HOOK].bfloat16().float())
        torch.testing.assert_close(read_loss(tmp_path, bos), model.loss(part.tokens))
        assert bool((part.tokens[:, 0] == model.bos_token_id).all()) == bos
        assert torch.equal(part.kept, part.tokens != model.bos_token_id)
    with pytest.raises(DataError, match=saying("context_size", "same")):
        capture(model, documents(), tmp_path, settings(context_size=32))


def test_a_gguf_file_is_captured_as_the_model_that_it_holds(tmp_path: Path) -> None:
    write_model(tmp_path / "llama", *CONFIGURATIONS["llama"])
    write_gguf(tmp_path / "llama", tmp_path / "model.gguf", metadata=vocabulary(tmp_path / "llama"))
    (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(document.text for document in documents()))
    command = ["--model", str(tmp_path / "model.gguf"), "--text", str(tmp_path / "text.txt"), "--work", str(tmp_path / "w")]
    command += ["--layers", "1", "--context", "16", "--tokens", "1500", "--held-out", "0.3", "--dtype", "float32"]
    done = CliRunner().invoke(real.main, [*command, "--only-capture"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    part = read_part(tmp_path / "w", False, "eval", HOOK)
    plain = load_language_model(tmp_path / "llama", device="cpu").activations(part.tokens, [HOOK])[HOOK]
    torch.testing.assert_close(part.activations, plain.bfloat16().float(), rtol=1e-2, atol=1e-3)
    assert not (tmp_path / "w" / "model").exists()


class Halved(torch.nn.Module):
    """Reconstructs half of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def test_massive_and_special_tokens_keep_their_own_activation(model: LanguageModel) -> None:
    tokens = torch.randint(1, 100, (20, 8), generator=generator(0, "tests", "tokens"))
    tokens[:, 0] = 0
    own = model.activations(tokens, [HOOK])[HOOK]
    part, norms = Part(own, tokens, tokens != 0), own.norm(dim=-1)
    limit = float(norms[:, 1:].median())
    halved: Any = Halved()

    def by_hand(_: object, original: Tensor) -> Tensor:
        new = original.clone()
        for i in range(20):
            for t in range(1, 8):
                if float(norms[i, t]) <= limit:
                    new[i, t] = original[i, t] / 2
        return new

    found = spliced_loss(model, part, HOOK, halved, NormLimits({HOOK: limit}), "float32")
    torch.testing.assert_close(found, model.loss(tokens, {HOOK: by_hand}))
    of_all = spliced_loss(model, part, HOOK, halved, NormLimits(), "float32")
    assert float((of_all - found).abs().max()) > 1e-3


def test_an_interrupted_run_goes_on_after_its_last_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("BATCH", 128), ("TRAINING_TOKENS", 2000), ("TOP_K", 8), ("WITHOUT_RULE", (1, ("topk",)))):
        monkeypatch.setattr(real, name, value)
    monkeypatch.setattr(real, "ACT_FNS", ("topk",))
    text = tmp_path / "text.txt"
    text.write_text("\n<|endoftext|>\n".join(document.text for document in documents()))
    command = ["--model", str(MODEL), "--text", str(text), "--work", str(tmp_path / "w"), "--layers", "1", "--context", "16"]
    command += ["--tokens", "1500", "--held-out", "0.3", "--dtype", "float32", "--output", str(tmp_path / "real.md")]
    measured, original = [], real.measure

    def stops_after_one(model: LanguageModel, work: Path, cell: Cell, ce_tokens: int, dtype: str) -> dict[str, Any]:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(cell)
        return original(model, work, cell, ce_tokens, dtype)

    monkeypatch.setattr(real, "measure", stops_after_one)
    assert CliRunner().invoke(real.main, command).exit_code == 1
    monkeypatch.setattr(real, "measure", lambda *given: measured.append(given[2]) or original(*given))
    done = CliRunner().invoke(real.main, [*command, "--only-train"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert measured == [Cell(1, False, "topk", True, 0), Cell(1, False, "topk", False, 0), Cell(1, True, "topk", True, 0)]
    found = runs_in(tmp_path / "w" / "runs.jsonl")
    assert list(found) == measured
    for cell, figures in found.items():
        assert 0 < figures["fvu"] < 1, cell
        assert figures["l0"] == pytest.approx(8, abs=0.01)
        assert figures["excluded"] == 0.0, cell  # no token of this model is massive here
        assert figures["delta_ce"] == figures["delta_ce_all"], cell
    text_written = (tmp_path / "real.md").read_text()
    assert "| 1 | no | topk | off |" in text_written
    assert str(tmp_path) not in text_written


def test_a_failed_training_is_a_row() -> None:
    lines = real.table([(Cell(9, True, "jumprelu", True, 0), {"error": "the loss is not finite"})])
    assert lines[-1].startswith("| 9 | yes | jumprelu | on | training failed: the loss is not finite |")
    assert lines[-1].count("|") == lines[0].count("|")


def test_the_rule_off_is_measured_by_the_same_limit() -> None:
    norms = {"input": {"mean_norm": 2.0, "mean_square": 4.5, "d": 4, "median_norm": 1.5, "max_norm_factor": None}}
    assert real.limits_of(norms, HOOK, 4) == NormLimits({HOOK: 15.0})
    assert real.limits_of({"input": norms["input"] | {"max_norm_factor": 10.0}}, HOOK, 4) == NormLimits({HOOK: 15.0})
