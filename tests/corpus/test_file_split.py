"""Plain text files are held out whole, and with too few of them the pieces are split, which is said."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.document import Document
from pipeline.corpus.file_split import held_out_files, spread
from pipeline.corpus.for_params import tokenize_for
from pipeline.corpus.mixture import Mixture, Source
from pipeline.corpus.pieces import OPEN_PIECES
from pipeline.corpus.sources import Corpus, documents
from pipeline.corpus.text_form import SEPARATOR
from pipeline.corpus.tokenization import TokenizeSettings, tokenize_corpus
from pipeline.corpus.tokens import open_tokens
from pipeline.errors import DataError
from pipeline.lm.loading import stated_widths
from pipeline.params.loader import params_from_dict
from pipeline.params.schema import DatasetParams
from tests.corpus.test_tokenization import info
from tests.params.changes import changed

SECTIONS = 12


def paragraph(seed: object, n: int = 400) -> str:
    """A paragraph of about 2,500 characters."""
    drawn = random.Random(str(seed))
    return " ".join(f"w{drawn.randrange(10**5):05d}" for _ in range(n))


def folder(base: Path, n: int, sections: int = SECTIONS, form: str = "txt") -> Path:
    """Files of so many paragraphs, each of which is a piece."""
    base.mkdir()
    for at in range(n):
        (base / f"{at:03d}.{form}").write_text("\n\n".join(paragraph((at, section)) for section in range(sections)))
    return base


def corpus(path: Path, **more: Any) -> Corpus:
    return documents(DatasetParams(**{"dataset_name_or_path": str(path), **more}), ())


def files_of(found: list[Document], held: bool, fraction: float = 0.05, seed: int = 0) -> set[object]:
    return {each.origin["file"] for each in found if each.is_held_out(fraction, seed) == held}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n", [20, 53, 200])
def test_no_file_has_pieces_on_both_sides_and_the_share_is_the_asked_one(tmp_path: Path, n: int, seed: int) -> None:
    found = list(corpus(folder(tmp_path / "texts", n, 3), split_seed=seed))
    assert len(found) == 3 * n
    held, trained = files_of(found, True, seed=seed), files_of(found, False, seed=seed)
    assert not held & trained
    assert len(held) + len(trained) == n
    assert 0.5 * 0.05 * n <= len(held) <= 1.25 * 0.05 * n + 1e-9


def test_other_seeds_hold_out_other_files() -> None:
    sizes = {str(at): 1000 for at in range(100)}
    chosen = [held_out_files(sizes, 0.05, seed) for seed in range(20)]
    assert all(held is not None and len(held) == 5 for held in chosen)
    assert len(set(chosen)) == 20
    assert chosen == [held_out_files(dict(reversed(sizes.items())), 0.05, seed) for seed in range(20)]


@pytest.mark.parametrize("sizes", [[1], [5] * 10, [10**6, *[1] * 20]])
def test_too_few_files_or_one_too_long_are_none(sizes: list[int]) -> None:
    assert held_out_files({str(at): size for at, size in enumerate(sizes)}, 0.05, 0) is None


def test_a_long_file_is_passed_over() -> None:
    sizes = {"long": 10**6, **{str(at): 10**4 for at in range(100)}}
    for seed in range(10):
        held = held_out_files(sizes, 0.05, seed)
        assert held is not None
        assert "long" not in held
        assert 0.04 < sum(sizes[name] for name in held) / sum(sizes.values()) < 0.07


def test_separated_documents_and_json_lines_stay_documents_of_their_own(tmp_path: Path) -> None:
    base = tmp_path / "texts"
    base.mkdir()
    for at in range(20):
        (base / f"{at}.txt").write_text(f"\n{SEPARATOR}\n".join(paragraph((at, part), 30) for part in range(40)))
    read = corpus(base)
    found = list(read)
    assert len(found) == 800
    assert all(each.held is None for each in found)
    assert len(files_of(found, True) & files_of(found, False)) > 5
    assert not read.skipped.cut_files


def test_held_out_files_are_among_those_that_are_read_first(tmp_path: Path) -> None:
    """Of 200 files, 16 of which are open at once, whatever the seed of the order."""
    base = folder(tmp_path / "texts", 200, 8)
    for seed in range(5):
        found = [document for document, _ in zip(corpus(base, shuffle_seed=seed), range(6 * OPEN_PIECES), strict=False)]
        assert files_of(found, True)
        assert len(files_of(found, True)) < 10


def test_spread_keeps_every_file_and_the_order_of_each_kind() -> None:
    files = [Document(str(at), "") for at in random.Random(0).sample(range(50), 50)]
    held = frozenset(["3", "17", "40"])
    found = spread(files, held)
    for kind in (True, False):
        assert [f for f in found if (f.key in held) == kind] == [f for f in files if (f.key in held) == kind]
    assert [at for at, file in enumerate(found) if file.name in held] == [0, 17, 34]


def test_a_piece_that_equals_one_of_the_other_split_is_left_out(tmp_path: Path) -> None:
    base = folder(tmp_path / "texts", 40)
    for path in base.iterdir():
        path.write_text(f"{path.read_text()}\n\n{paragraph('shared')}")
    settings = TokenizeSettings(32, 150_000, False, None, 0, 0.05, 0)
    figures = tokenize_corpus(corpus(base), info(), settings, tmp_path / "t")
    store = open_tokens(tmp_path / "t")
    texts = {part.name: {part.document(n)["text"] for n in range(part.n_documents)} for part in (store.train, store.eval)}
    assert not texts["train"] & texts["eval"]
    assert sum(paragraph("shared") in found for found in texts.values()) == 1
    assert figures["left_out_documents"] == {True: 2, False: 38}[paragraph("shared") in texts["train"]]


def test_a_file_stays_on_its_side_though_a_piece_resembles_the_other(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    base = folder(tmp_path / "texts", 40)
    for at, path in enumerate(sorted(base.iterdir())):
        path.write_text(f"{path.read_text()}\n\n{paragraph('alike')} end{at}")
    settings = TokenizeSettings(32, 150_000, False, None, 0, 0.05, 0, near_duplicate_similarity=0.8)
    figures = tokenize_corpus(corpus(base), info(), settings, tmp_path / "t")
    store = open_tokens(tmp_path / "t")
    keys = {
        part.name: {part.document(n)["key"].split("#")[0] for n in range(part.n_documents)}
        for part in (store.train, store.eval)
    }
    assert len(keys["eval"]) == 2
    assert not keys["train"] & keys["eval"]
    assert figures["left_out_documents"] in (2, 38)


def test_the_store_knows_which_documents_are_pieces_of_one_file(tmp_path: Path) -> None:
    base = folder(tmp_path / "texts", 20, 6)
    (base / "alone.txt").write_text(f"\n{SEPARATOR}\n".join(paragraph(("alone", part), 30) for part in range(40)))
    settings = TokenizeSettings(32, 30_000, False, None, 0, 0.2, 0)
    found = list(corpus(base, eval_fraction=0.2))
    figures = tokenize_corpus(found, info(), settings, tmp_path / "t")
    store, used = open_tokens(tmp_path / "t"), {}
    for part in (store.train, store.eval):
        assert part.file_ids is not None
        keys = [part.document(n)["key"] for n in range(part.n_documents)]
        files = [key.split("#")[0] if not key.startswith("alone") else None for key in keys]
        assert [number == -1 for number in part.file_ids] == [file is None for file in files]
        pairs = {(number, file) for number, file in zip(part.file_ids.tolist(), files, strict=True) if file is not None}
        assert len(pairs) == len(dict(pairs)) == len({file for _, file in pairs}) > 1  # one number a file
        held = {files[n] or keys[n] for n in set(part.read(field="document_ids").ravel().tolist())}
        used[part.name] = held
        assert figures[f"{part.name}_documents"] == len(held)
        assert figures[f"{part.name}_files"] == sum(SEPARATOR not in name and "alone" not in name for name in held)
    assert len(used["eval"]) < store.eval.n_documents  # a file counts once
    whole = [dataclasses.replace(each, piece_of="") for each in found]
    before = tokenize_corpus(whole, info(), settings, tmp_path / "before")
    assert before["digest"] == figures["digest"]  # activations that are stored already stay those of these tokens
    assert open_tokens(tmp_path / "before").eval.file_ids is None  # as in a store from before files were known
    with (tmp_path / "t/eval/file_ids/c/0").open("r+b") as stream:
        stream.write(b"\xff")
    with pytest.raises(DataError, match="file_ids"):
        _ = open_tokens(tmp_path / "t").eval.file_ids


def test_files_of_two_sources_with_one_name_are_two(tmp_path: Path) -> None:
    def pieces(source: str) -> list[Document]:
        return [Document(f"a.txt#{n}", paragraph((source, n), 60), piece_of="a.txt", held=n % 2 == 0) for n in range(8)]

    mixture = Mixture({source: Source(pieces(source), 1.0) for source in ("x", "y")})
    tokenize_corpus(mixture, info(), TokenizeSettings(8, 400, False, None, 0, 0.5, 0), tmp_path / "t")
    part = open_tokens(tmp_path / "t").eval
    assert part.file_ids is not None
    sources = [part.document(n)["source"] for n in range(part.n_documents)]
    assert len(set(sources)) == 2
    assert [sources[0] == source for source in sources] == [part.file_ids[0] == number for number in part.file_ids]


@pytest.mark.parametrize(("n", "said"), [(1, True), (4, True), (30, False)])
def test_that_pieces_are_split_is_said_in_a_line(tmp_path: Path, n: int, said: bool) -> None:
    base = folder(tmp_path / "texts", n, 240 // n)
    params = params_from_dict(
        changed(
            {
                "dataset.dataset_name_or_path": str(base),
                "activations.total_tokens": 20_000,
                "activations.context_size": 16,
            }
        )
    )
    lines: list[str] = []
    tokenize_for(params, stated_widths(params.model), tmp_path / "t", lines.append)
    found = [line for line in lines if "pieces are split" in line]
    assert len(found) == said
    if said:
        assert found[0].startswith("dataset: ")
        assert ("the one text file is" if n == 1 else f"{n} text files are") in found[0]
