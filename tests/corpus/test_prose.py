"""The scanner and the prose rule, on hand-written source."""

from __future__ import annotations

import pytest

from pipeline.corpus.prose import blocks_of_source, blocks_of_topics, clean, is_prose

SOURCE = '''
x = "not this one: a plain string that reads like a sentence but has only single quotes."

# The comments of one place are joined to a block, and they are
# unwrapped to one line when they stand on lines of their own.
def f():
    """Return the value that the function was asked for when it was called.

    The second paragraph is about the same thing and is long enough to be
    kept, so both of its lines become one.
        But a deeper indentation starts a block of its own, which is kept for it is long.
    >>> f() is code and it must not be kept although it has many of the words
    """
    y = 1  # a trailing comment is left out because it stands behind code on the same line
    z = f"""An f-string is left out as it cannot be evaluated without running the code of it."""
'''


def test_blocks_of_source() -> None:
    assert list(blocks_of_source(SOURCE)) == [
        "The comments of one place are joined to a block, and they are unwrapped to one line when they stand on lines of their own.",
        "Return the value that the function was asked for when it was called.",
        "The second paragraph is about the same thing and is long enough to be kept, so both of its lines become one.",
        "But a deeper indentation starts a block of its own, which is kept for it is long.",
    ]


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("Use :class:`~a.B` or ``c`` and `d`.", "Use a.B or c and d."),
        ("A *stressed* and a **strong** word, 2 * 3 * 4", "A stressed and a strong word, 2 * 3 * 4"),
        ("- a  list\titem", "a list item"),
    ],
)
def test_clean(marked: str, plain: str) -> None:
    assert clean(marked) == plain


GOOD = "This is a sentence that has the words which it needs to be kept as prose."


@pytest.mark.parametrize(
    "bad",
    [
        "Too short to be kept.",
        GOOD.replace("sentence", "licence"),
        GOOD.replace("sentence", "{sentence}"),
        "Alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu.",
        GOOD.replace("sentence", "0123456789 0123456789"),
        GOOD.lower().rstrip("."),
        GOOD.replace("sentence", "sentenc\u00e9"),
    ],
)
def test_rule_refuses(bad: str) -> None:
    assert is_prose(GOOD)
    assert not is_prose(bad)


def test_topics() -> None:
    source = f"topics = {{'a': {GOOD!r}, 'b': 'short'}}\n"
    assert list(blocks_of_topics(source)) == [GOOD]
