"""The requests to the chat model, and what its answers say.

Explaining from activating examples: Bills et al. 2023, Language models can explain neurons in language models. Detection and
fuzzing: Paulo et al. 2024, Automatically Interpreting Millions of Features in Large Language Models. The wording is our own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from pipeline.files import fingerprint
from pipeline.interpretation.chat import Message
from pipeline.interpretation.examples import CLOSE, OPEN, Example, render, strong_tokens

_MAX_LISTED = 8
_KEYWORD = "EXPLANATION:"

_EXPLAIN = f"""You study one feature of a sparse dictionary that was trained on the activations of a language model.
You get pieces of text on which this feature is active. Tokens on which it is strongly active stand between {OPEN} and {CLOSE}.
Under each piece its strongest tokens are listed, each with its activation on a scale from 0 to 10 (10: the largest ever seen).

Find what the marked tokens have in common, or what the text before them has in common: a word or a part of one,
a grammatical role, a topic, a format, a position. Strong examples count more than weak ones.
Be as specific as the examples allow, and no more.
Describe the pattern itself; do not mention the marks, the activations or single examples.

Think briefly if you need to. The last line of your answer must have this form, with at most 30 words:
{_KEYWORD} <what the feature responds to>"""

_DETECT = """You get a description of what one feature of a language model responds to, and numbered texts.
Judge each text by itself: does it contain anything that the description fits?
Answer with nothing but a JSON list that has one number for each text, in their order: 1 for yes, 0 for no.
There may be any number of either."""

_FUZZ = f"""You get a description of what one feature of a language model responds to, and numbered texts.
In each text some tokens stand between {OPEN} and {CLOSE}.
Judge each text by itself: are the marked tokens those that the description fits?
They are wrong if the description fits other tokens of the text, but not the marked ones.
Answer with nothing but a JSON list that has one number for each text, in their order:
1 if the marks are right, 0 if they are wrong. There may be any number of either."""

PROMPTS = fingerprint({"explain": _EXPLAIN, "detect": _DETECT, "fuzz": _FUZZ})  # results of other wordings are not reused


def explanation_request(examples: Sequence[Example], max_activation: float, mark_above: float) -> list[Message]:
    """Ask for an explanation.

    Args:
        examples: those that are shown.
        max_activation: the feature's largest, in the dictionary's units.
        mark_above: tokens above this fraction of it are marked, and the strongest of each example.
    """
    blocks = []
    for number, example in enumerate(examples, 1):
        strong = strong_tokens(example, max_activation, mark_above)
        listed = sorted(strong, key=lambda i: (-example.activations[i], i))[:_MAX_LISTED]
        values = ", ".join(f"{json.dumps(example.texts[i])} {_tenth(example.activations[i], max_activation)}" for i in listed)
        blocks.append(f"Example {number}: {render(example, set(strong))}\nActivations: {values}")
    return [{"role": "system", "content": _EXPLAIN}, {"role": "user", "content": "\n\n".join(blocks)}]


def detection_request(explanation: str, texts: Sequence[str]) -> list[Message]:
    """Ask in which texts the feature is active."""
    return _judgement(_DETECT, explanation, texts)


def fuzzing_request(explanation: str, texts: Sequence[str]) -> list[Message]:
    """Ask in which texts the right tokens are marked."""
    return _judgement(_FUZZ, explanation, texts)


def parse_explanation(answer: str) -> tuple[str | None, bool]:
    """(explanation, whether it stood where it was asked for): the last line "EXPLANATION: ...", else the last with text."""
    lines = [line.strip().strip("*#`_ ").strip() for line in _after_reasoning(answer).splitlines()]
    lines = [line for line in lines if line]
    for place in reversed(range(len(lines))):
        if lines[place].upper().startswith(_KEYWORD):
            stated = lines[place][len(_KEYWORD) :].strip("* ") or " ".join(lines[place + 1 : place + 2])
            if stated:
                return stated, True
    rest = [line for line in lines if not line.upper().startswith(_KEYWORD)]
    return (rest[-1], False) if rest else (None, False)


def parse_judgements(answer: str, n: int) -> list[int] | None:
    """The last JSON list of the answer that has n entries, if all are 0 or 1 (or 1.0, "1", true); else None."""
    for found in reversed(re.findall(r"\[[^\[\]]*\]", _after_reasoning(answer))):
        try:
            values = json.loads(found)
        except ValueError:
            continue
        if len(values) == n:
            judged = [_judged(value) for value in values]
            return None if None in judged else [value for value in judged if value is not None]
    return None


def _judged(value: object) -> int | None:
    text = str(int(value) if isinstance(value, bool) else value).strip()
    return {"0": 0, "1": 1, "0.0": 0, "1.0": 1}.get(text)


def _judgement(system: str, explanation: str, texts: Sequence[str]) -> list[Message]:
    listed = "\n".join(f"Text {number}: {text}" for number, text in enumerate(texts, 1))
    asked = f"Description: {explanation}\n\n{listed}\n\nA JSON list of {len(texts)}:"
    return [{"role": "system", "content": system}, {"role": "user", "content": asked}]


def _tenth(activation: float, max_activation: float) -> int:
    return min(round(10 * activation / max_activation), 10) if max_activation > 0 else 0


def _after_reasoning(answer: str) -> str:
    """The answer without what a reasoning model has thought before it."""
    return answer.rsplit("</think>", 1)[-1]
