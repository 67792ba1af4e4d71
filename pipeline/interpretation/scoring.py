"""Detection and fuzzing: how well an explanation predicts where a feature is active.

Detection: in which texts is it active? Fuzzing: in which texts are the marked tokens those on which it is active? Source:
Paulo et al. 2024. The score is the balanced accuracy, (true positive rate + true negative rate) / 2: 0.5 by chance,
whatever the shares of the classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.interpretation.chat import Message
from pipeline.interpretation.examples import Example, Split, active_tokens, inactive_tokens, render
from pipeline.interpretation.prompts import detection_request, fuzzing_request, parse_judgements
from pipeline.seeding import numpy_generator

Ask = Callable[[str, list[Message]], str]


@dataclass(frozen=True)
class Question:
    """A text to be judged.

    Attributes:
        example: whose text it is.
        label: 1 if the right answer is yes, else 0.
        marked: indices of the marked tokens.
    """

    example: Example
    label: int
    marked: tuple[int, ...] = ()


def detection_questions(split: Split, seed: int, feature: int) -> list[Question]:
    """The active and the inactive texts, unmarked, in random order."""
    questions = [Question(example, 1) for example in split.active] + [Question(example, 0) for example in split.inactive]
    order = numpy_generator(seed, "interpretation", "detection", feature).permutation(len(questions))
    return [questions[int(i)] for i in order]


def fuzzing_questions(split: Split, seed: int, feature: int) -> list[Question]:
    """The active texts in random order: of each band every second with its active tokens marked, the others with as many
    inactive ones, drawn at random (with all inactive ones where there are fewer; with the active ones where there are none)."""
    draw = numpy_generator(seed, "interpretation", "fuzzing", feature)
    bands: dict[str, list[Example]] = {}
    for example in split.active:
        bands.setdefault(example.band, []).append(example)
    mixed = [band[int(i)] for band in bands.values() for i in draw.permutation(len(band))]
    questions = []
    right = True
    for example in mixed:
        active, others = active_tokens(example), inactive_tokens(example)
        if right or not others:
            questions.append(Question(example, 1, tuple(active)))
        else:
            drawn = draw.choice(len(others), min(len(active), len(others)), replace=False)
            questions.append(Question(example, 0, tuple(sorted(others[int(i)] for i in drawn))))
        right = not right
    return [questions[int(i)] for i in draw.permutation(len(questions))]


def detect(explanation: str, questions: Sequence[Question], batch: int, ask: Ask) -> dict[str, Any]:
    """Detection score of an explanation; see :func:`score` for what is returned.

    Args:
        explanation: of the feature.
        questions: see :func:`detection_questions`.
        batch: texts of one request.
        ask: (what for, messages) -> the chat model's answer.
    """
    return _judge("detection", lambda texts: detection_request(explanation, texts), questions, batch, ask)


def fuzz(explanation: str, questions: Sequence[Question], batch: int, ask: Ask) -> dict[str, Any]:
    """Fuzzing score of an explanation; arguments as of :func:`detect`, with the questions of :func:`fuzzing_questions`."""
    return _judge("fuzzing", lambda texts: fuzzing_request(explanation, texts), questions, batch, ask)


def score(labels: Sequence[int], answers: Sequence[int | None]) -> dict[str, Any]:
    """How many answers are right.

    Args:
        labels: 1 or 0.
        answers: 1 or 0; None where the answer could not be parsed: counted in `unparsed` and in nothing else.

    Returns:
        balanced_accuracy, true_positive_rate, true_negative_rate (fractions; None where a class has no answer, and `reason`
        says so), n (answers that count), n_positive and n_negative (of each class), unparsed.
    """
    pairs = [(label, answer) for label, answer in zip(labels, answers, strict=True) if answer is not None]
    unparsed = len(labels) - len(pairs)
    rates: dict[int, float | None] = {}
    counts = {}
    for label in (1, 0):
        given = [answer for which, answer in pairs if which == label]
        counts[label] = len(given)
        rates[label] = sum(answer == label for answer in given) / len(given) if given else None
    positive, negative = rates[1], rates[0]
    reason = None
    if positive is None or negative is None:
        empty = " and no ".join(name for name, rate in (("positive", positive), ("negative", negative)) if rate is None)
        reason = f"no {empty} example" + (f" with an answer that could be parsed ({unparsed} could not)" if unparsed else "")
    return {
        "balanced_accuracy": None if positive is None or negative is None else (positive + negative) / 2,
        "true_positive_rate": positive,
        "true_negative_rate": negative,
        "n": len(pairs),
        "n_positive": counts[1],
        "n_negative": counts[0],
        "unparsed": unparsed,
        "reason": reason,
    }


def not_scored(reason: str) -> dict[str, Any]:
    """The score of what could not be asked."""
    return {**score([], []), "reason": reason, "examples": []}


def _judge(
    purpose: str, request: Callable[[list[str]], list[Message]], questions: Sequence[Question], batch: int, ask: Ask
) -> dict[str, Any]:
    """Ask in batches; the score, and each example with its label and answer. Nothing is asked where a class has no example."""
    for label, kind in ((1, "positive"), (0, "negative")):
        if all(question.label != label for question in questions):
            return not_scored(f"no {kind} example")
    answers: list[int | None] = []
    for start in range(0, len(questions), batch):
        asked = questions[start : start + batch]
        given = parse_judgements(ask(purpose, request([render(q.example, set(q.marked)) for q in asked])), len(asked))
        answers += given if given is not None else [None] * len(asked)
    examples = [
        {**question.example.place_in_text(), "marked": list(question.marked), "label": question.label, "answer": answer}
        for question, answer in zip(questions, answers, strict=True)
    ]
    return {**score([question.label for question in questions], answers), "examples": examples}
