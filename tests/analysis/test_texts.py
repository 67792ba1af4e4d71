"""Tokens as texts that can be told apart: split characters byte by byte."""

from __future__ import annotations

import pytest

from pipeline.analysis.texts import ReadableTexts, readable


@pytest.mark.parametrize(
    ("piece", "text", "shown"),
    [
        ("\u00e2\u0122", "\ufffd", "<0xE2><0x80>"),  # two bytes of three
        ("\u0120\u00e2", " \ufffd", " <0xE2>"),
        ("\u00e2\u0122\u013a", "\u2018", "\u2018"),  # all three: a quotation mark
        ("a\u00a9", "a\ufffd", "a<0xA9>"),
        ("<0xE2>", "\ufffd", "<0xE2>"),  # SentencePiece
        ("\u2581\u732b\ufffd", " \u732b\ufffd", " \u732b\ufffd"),  # neither
        ("\u00ef\u00bf\u00bd", "\ufffd", "\ufffd"),  # the replacement character itself
    ],
)
def test_bytes_are_written_out(piece: str, text: str, shown: str) -> None:
    assert readable(piece, text) == shown


def test_all_tokens_of_a_byte_level_vocabulary_differ(small_model) -> None:
    text = ReadableTexts(small_model)
    shown = [text(token) for token in range(len(small_model.tokenizer))]
    assert len(set(shown)) == len(shown)
    assert not any("\ufffd" in one for one in shown)
    (token,) = small_model.tokenizer(" cat", add_special_tokens=False)["input_ids"]
    assert text(token) == " cat"
