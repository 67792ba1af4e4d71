"""Which examples are shown and which are scored; marks; prompts; what answers say."""

from __future__ import annotations

import itertools

import pytest

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.interpretation.examples import (
    Example,
    active_tokens,
    inactive_tokens,
    read_example,
    render,
    shares_text,
    split_examples,
)
from pipeline.interpretation.prompts import explanation_request, parse_explanation, parse_judgements
from pipeline.interpretation.scoring import detection_questions, fuzzing_questions
from tests.interpretation.conftest import BANDS, OF_A_BAND, PLANTED, WORD, context_row


def example(texts: list[str], activations: list[float], **changes) -> Example:
    return read_example({**context_row(0, "top", 0, 0, texts, activations), **changes})


def test_nothing_shown_is_scored(store: FeatureStore) -> None:
    split = split_examples(store.contexts(PLANTED), 1000, 1000, 1000)
    scored = [*split.active, *split.inactive]
    assert not any(shares_text(a, b) for a in split.shown for b in scored)
    assert not any(shares_text(a, b) for a, b in itertools.combinations(scored, 2))
    active_bands = set(BANDS[:-1])
    assert {e.band for e in split.shown} == {e.band for e in split.active} == active_bands
    assert {e.band for e in split.inactive} == {"inactive"}
    assert len(split.shown) == len(split.active) == OF_A_BAND * len(active_bands) / 2
    assert [e.place for e in split.shown if e.band == "top"] == [0, 2, 4, 6, 8, 10]


def test_limits_take_from_each_band_in_turn(store: FeatureStore) -> None:
    split = split_examples(store.contexts(PLANTED), 7, 10, 3)
    assert [e.band for e in split.shown] == ["top", "top", "75-100 %", "75-100 %", "50-75 %", "25-50 %", "0-25 %"]
    assert [e.band for e in split.active] == [band for band in BANDS[:-1] for _ in range(2)]
    assert len(split.inactive) == 3


def test_text_in_several_bands_counts_once() -> None:
    """The same context as `top` and in a quantile band; an overlapping piece of one document; a copy elsewhere."""
    one = context_row(0, "top", 0, 1, [" a", " b"], [5.0, 0.0])
    again = {**one, "band": "75-100 %"}
    overlapping = {**context_row(0, "top", 1, 2, [" b", " c"], [0.0, 4.0]), "document_id": 1, "char_start": 2, "char_end": 6}
    copy = context_row(0, "top", 2, 3, [" a", " b"], [4.5, 0.0])
    other = context_row(0, "75-100 %", 1, 4, [" d", " e"], [4.2, 0.0])
    split = split_examples([again, overlapping, copy, other, one], 9, 9, 9)
    assert [(e.band, e.context) for e in split.shown] == [("top", 1)]
    assert [(e.band, e.context) for e in split.active] == [("75-100 %", 4)]


def test_marks_and_the_text_s_own() -> None:
    found = example(["cout", " <<", " x", "\n", ">", ">", "<"], [0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    assert render(found) == "cout < < x\\n> ><"
    assert render(example(["<", "a>", "<", ">"], [0.0, 1.0, 1.0, 0.0]), {1, 2}) == "< <<a> >><< <>> >"
    assert render(found, {1, 2}) == "cout<< < <>><< x>>\\n> ><"


def test_an_example_is_one_line() -> None:
    broken = example(["a\r\nb", "\u2028", "\f", "\n\n"], [1.0, 0.0, 0.0, 0.0])
    assert render(broken) == "a\\nb\\n\\n\\n\\n"
    assert len(render(broken).splitlines()) == 1


def test_activations_that_are_no_numbers_count_as_none() -> None:
    found = example(["a", " ", "b"], [1.0, float("nan"), float("nan")], peak=0)
    assert found.activations == (1.0, 0.0, 0.0)
    assert active_tokens(found) == [0]
    assert inactive_tokens(found) == [2]


def test_the_explainer_sees_marks_and_values() -> None:
    strong = example([" the", " cat", " sat"], [1.0, 8.0, 2.5])
    weak = example([" a", " dog"], [0.0, 0.5])
    content = explanation_request([strong, weak], 8.0, 0.3)[-1]["content"]
    assert content == (
        'Example 1:  the<< cat>><< sat>>\nActivations: " cat" 10, " sat" 3\n\nExample 2:  a<< dog>>\nActivations: " dog" 1'
    )


def test_fuzzing_marks_as_many_wrong_tokens_as_right_ones(store: FeatureStore) -> None:
    split = split_examples(store.contexts(PLANTED), 20, 20, 20)
    questions = fuzzing_questions(split, 0, PLANTED)
    assert {q.example.context for q in questions} == {e.context for e in split.active}
    assert sum(q.label for q in questions) == len(questions) / 2
    for question in questions:
        marked = [question.example.texts[i] for i in question.marked]
        assert len(marked) == len(active_tokens(question.example))
        assert all((text == WORD) == bool(question.label) for text in marked)
    assert {q.example.band for q in questions if q.label} == {q.example.band for q in questions if not q.label}
    assert [q.marked for q in questions] == [q.marked for q in fuzzing_questions(split, 0, PLANTED)]
    assert [q.marked for q in questions] != [q.marked for q in fuzzing_questions(split, 1, PLANTED)]


def test_fuzzing_where_every_token_is_active() -> None:
    rows = [context_row(0, "top", place, place, [f" a{place}", " b"], [1.0, 1.0]) for place in range(8)]
    assert [q.label for q in fuzzing_questions(split_examples(rows, 9, 9, 9), 0, 0)] == [1, 1, 1, 1]


def test_detection_questions_are_shuffled(store: FeatureStore) -> None:
    split = split_examples(store.contexts(PLANTED), 20, 20, 12)
    labels = [q.label for q in detection_questions(split, 0, PLANTED)]
    assert sorted(labels) == [0] * 12 + [1] * 20
    assert labels != sorted(labels)
    assert labels != sorted(labels, reverse=True)
    assert all((q.example.band != "inactive") == bool(q.label) for q in detection_questions(split, 0, PLANTED))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("EXPLANATION: cats", ("cats", True)),
        ("EXPLANATION: a draft\nNo.\n**Explanation: cats, in any form**\n", ("cats, in any form", True)),
        ("Thoughts.\nEXPLANATION:\ncats", ("cats", True)),
        ("<think>EXPLANATION: dogs?</think>\nEXPLANATION: cats", ("cats", True)),
        ("It fires on cats.", ("It fires on cats.", False)),
        ("Cats.\nEXPLANATION:", ("Cats.", False)),
        ("", (None, False)),
        ("\n \n", (None, False)),
    ],
)
def test_explanations(answer: str, expected: tuple[str | None, bool]) -> None:
    assert parse_explanation(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[1, 0, 1]", [1, 0, 1]),
        ("First [0, 0, 0], no:\n```json\n[true, false, 1]\n```", [1, 0, 1]),
        ("[1, 0]", None),
        ("[1, 0, 1, 1]", None),
        ("[1, 0, 2]", None),
        ("[1, 0, 0.5]", None),
        ('["1", "0", " 1"]', [1, 0, 1]),
        ("[1.0, 0.0, 1]", [1, 0, 1]),
        ("[1, 0, 1]\nThe texts [2] and [3] were hard.", [1, 0, 1]),
        ('["1", "yes", "1"]', None),
        ("[1, 0, x]", None),
        ("1, 0, 1", None),
        ("", None),
    ],
)
def test_judgements(answer: str, expected: list[int] | None) -> None:
    assert parse_judgements(answer, 3) == expected
