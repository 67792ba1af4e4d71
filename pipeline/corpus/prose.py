"""English prose in Python source files: the documentation that installed packages carry.

1. A scanner finds comments and triple-quoted strings (no parse tree: that takes minutes over whole packages).
2. A string's value is read with literal_eval and cleaned of its indentation; consecutive full-line comments are joined.
3. Paragraphs are cut at blank lines and wherever the indentation changes, then unwrapped to one line each: a block.
4. A block is kept if it reads as prose: long enough, enough common words, mostly letters, starts or ends as a sentence,
   no code, markup or licence text.

The rule and its measured yield are described in docs/demo.md.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator

MIN_CHARACTERS = 50
MIN_WORDS = 8
MIN_STOP_WORDS = 0.20
MIN_LETTERS = 0.86

_TOKEN = re.compile(
    r"""
    (?P<triple>(?P<prefix>[A-Za-z]{0,2})(?P<quote>\"\"\"|''')(?:[^\\]|\\.)*?(?P=quote))
    | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    | (?P<comment>\#[^\n]*)
    """,
    re.VERBOSE | re.DOTALL,
)
_STOP_WORDS = frozenset(
    [
        "a",
        "about",
        "above",
        "after",
        "all",
        "also",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "before",
        "being",
        "between",
        "both",
        "but",
        "by",
        "can",
        "cannot",
        "could",
        "did",
        "do",
        "does",
        "each",
        "either",
        "every",
        "few",
        "first",
        "for",
        "from",
        "had",
        "has",
        "have",
        "how",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "last",
        "like",
        "made",
        "make",
        "many",
        "may",
        "more",
        "most",
        "much",
        "must",
        "no",
        "not",
        "now",
        "of",
        "on",
        "once",
        "one",
        "only",
        "or",
        "other",
        "our",
        "out",
        "over",
        "own",
        "same",
        "should",
        "since",
        "so",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "two",
        "under",
        "until",
        "up",
        "upon",
        "us",
        "use",
        "used",
        "using",
        "very",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "whether",
        "which",
        "while",
        "who",
        "whose",
        "why",
        "will",
        "with",
        "within",
        "without",
        "would",
        "you",
        "your",
    ]
)
_ROLE = re.compile(r":[A-Za-z:+.-]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`")
_DOUBLE_QUOTED = re.compile(r"``([^`]*)``")
_SINGLE_QUOTED = re.compile(r"`([^`<]*?)(?:\s*<[^`>]*>)?`_{0,2}")
_EMPHASIS = re.compile(r"(?<!\w)\*{1,2}([^\s*](?:[^*]*[^\s*])?)\*{1,2}(?!\w)")
_MARKS = re.compile(
    r">>>|\.\.\. |[{}|\\<>=^~$@`]|::|___|://|\.\w+\.\w+\.|^\W*(?::|\.\. )|www\.|---"
    r"|\((?:[^()]*,)?\s*(?:optional|defaults? to)[^()]*\)\s*:?$"
)
_BULLET = re.compile(r"^(?:[-*+o]|\(?\d+[.)]|\(?[a-z]\))\s+(?=\S)")
_LICENCE = re.compile(
    r"copyright|licen[cs]e|warrant|all rights reserved|redistribut|liabilit|merchantab|spdx|permission is hereby",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
_SPACE = re.compile(r"\s+")


def _strings_and_comments(source: str) -> Iterator[str]:
    comments: list[str] = []
    last_end, last_indent = -1, -1

    def joined() -> Iterator[str]:
        if comments:
            yield "\n".join(comments)
            comments.clear()

    for match in _TOKEN.finditer(source):
        comment = match.group("comment")
        if comment is not None:
            line_start = source.rfind("\n", 0, match.start()) + 1
            indent = match.start() - line_start
            if source[line_start : match.start()].strip():
                continue
            if indent != last_indent or source[last_end:line_start].strip() or source.count("\n", last_end, line_start) > 1:
                yield from joined()
            comments.append(comment.lstrip("#!:")[1:] if comment.lstrip("#!:").startswith(" ") else comment.lstrip("#!:"))
            last_end, last_indent = match.end(), indent
            continue
        if match.group("triple") is None or set(match.group("prefix").lower()) - {"r", "u"}:
            continue
        yield from joined()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                value = ast.literal_eval(match.group("triple"))
            except (SyntaxError, ValueError):
                continue
        yield inspect.cleandoc(value)
    yield from joined()


def _paragraphs(text: str) -> Iterator[str]:
    lines: list[str] = []
    indent = 0
    for line in [*text.expandtabs().split("\n"), ""]:
        stripped = line.strip()
        here = len(line) - len(line.lstrip())
        if lines and (not stripped or here != indent):
            yield " ".join(lines)
            lines = []
        if stripped:
            lines.append(stripped)
            indent = here


def clean(block: str) -> str:
    """Take inline reStructuredText marks off a block and fold its white space."""
    block = _ROLE.sub(r"\1", block)
    block = _DOUBLE_QUOTED.sub(r"\1", block)
    block = _SINGLE_QUOTED.sub(r"\1", block)
    block = _EMPHASIS.sub(r"\1", block)
    return _BULLET.sub("", _SPACE.sub(" ", block).strip())


def is_prose(block: str) -> bool:
    """Whether a cleaned block reads as English prose (step 4 of the module's rule)."""
    if len(block) < MIN_CHARACTERS or not block.isascii():
        return False
    if _MARKS.search(block) or _LICENCE.search(block):
        return False
    if not (block[0].isupper() or block[-1] in ".:!?"):
        return False
    words = [word.lower() for word in _WORD.findall(block)]
    if len(words) < MIN_WORDS or sum(word in _STOP_WORDS for word in words) < MIN_STOP_WORDS * len(words):
        return False
    return sum(character.isalpha() or character == " " for character in block) >= MIN_LETTERS * len(block)


def blocks_of_text(text: str) -> Iterator[str]:
    """The prose blocks of one documentation string."""
    for paragraph in _paragraphs(text):
        block = clean(paragraph)
        if is_prose(block):
            yield block


def blocks_of_source(source: str) -> Iterator[str]:
    """The prose blocks of one Python source file, in order."""
    for text in _strings_and_comments(source):
        yield from blocks_of_text(text)


def blocks_of_topics(source: str) -> Iterator[str]:
    """The prose blocks of the standard library's pydoc_data/topics.py: one dictionary of plain strings."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for text in ast.literal_eval(node.value).values():
                yield from blocks_of_text(inspect.cleandoc(text))
