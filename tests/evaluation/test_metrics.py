"""Metrics on answers whose scores follow from the published definitions by hand."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.evaluation.benchmark import Mark
from engine.evaluation.chartqa import relaxed
from engine.evaluation.docvqa import anls
from engine.evaluation.example import Example
from engine.evaluation.gqa import exact
from engine.evaluation.mmbench import circular
from engine.evaluation.mme import task_scores, yes_or_no
from engine.evaluation.multiple_choice import chosen
from engine.evaluation.refcoco import found, overlap, read_box
from engine.evaluation.vqa_accuracy import normalise, soft_accuracy


def example(*answers: str) -> Example:
    return Example("1", partial(bytes), "?", answers)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Red  Car.", "red car"),
        ("two", "2"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("yes, sir!", "yes sir"),
        ("left-hand", "left hand"),
        ("left - hand", "left hand"),
        ("john's", "john 's"),
        ("none\tof\nthem", "0 of them"),
        ("12:30", "12:30"),
    ],
)
def test_vqa_normalisation(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


@pytest.mark.parametrize(("people", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_accuracy_by_how_many_people_agree(people: int, expected: float) -> None:
    """With one of m left out in turn: m times (m-1)/3 and 10-m times m/3, each at most 1."""
    assert soft_accuracy("Stop!", ["stop"] * people + ["go"] * (10 - people)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("Hello  World", 1.0), ("hello worl", 10 / 11), ("hello", 0.0), ("", 0.0), ("goodbye", 1.0), ("goodbyes", 7 / 8)],
)
def test_anls(prediction: str, expected: float) -> None:
    assert anls(prediction, example("hello world", "Goodbye")) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "label", "expected"),
    [
        ("104.9", "100", 1),
        ("105.1", "100", 0),
        ("-95", "-100", 1),
        ("5%", "0.05", 1),
        ("Blue", "blue", 1),
        ("blues", "blue", 0),
        ("0", "0", 1),
        ("0.01", "0", 0),
        ("nan", "3", 0),
    ],
)
def test_relaxed_accuracy(prediction: str, label: str, expected: float) -> None:
    assert relaxed(prediction, example(label)) == expected


def test_exact_match() -> None:
    assert exact(" Yes.", example("yes")) == 1
    assert exact("yes it is", example("yes")) == 0


def test_boxes_are_read_in_thousandths_and_as_fractions() -> None:
    assert read_box("the cat <box>[[100, 200, 500, 1000]]</box>") == (0.1, 0.2, 0.5, 1.0)
    assert read_box("[0.1, 0.2, 0.5, 1.0]") == (0.1, 0.2, 0.5, 1.0)
    assert read_box("no box [1, 2, 3]") is None


def test_a_box_is_found_from_half_overlap_on() -> None:
    wanted = example("[0.0, 0.0, 0.4, 0.4]")
    assert found("[[0, 0, 400, 200]]", wanted) == 1
    assert found("[[0, 0, 400, 199]]", wanted) == 0
    assert found("nothing", wanted) == 0


BOXES = st.tuples(*[st.floats(0, 1)] * 4).map(
    lambda sides: (min(sides[0], sides[2]), min(sides[1], sides[3]), max(sides[0], sides[2]), max(sides[1], sides[3]))
)


@given(BOXES, BOXES)
def test_overlap_is_symmetric_and_a_share(one: tuple[float, ...], two: tuple[float, ...]) -> None:
    assert 0 <= overlap(one, two) <= 1 + 1e-9
    assert overlap(one, two) == pytest.approx(overlap(two, one))


def test_the_option_that_is_meant() -> None:
    options = {"A": "a dog", "B": "a cat"}
    assert [chosen(text, options) for text in ("B", " B. a cat", "it is a dog", "neither")] == ["B", "B", "A", None]


def test_circular_accuracy_wants_every_order() -> None:
    marks = [Mark("k", "1", 1), Mark("k", "1", 0), Mark("k", "2", 1), Mark("k", "2", 1), Mark("k", "3", 1)]
    assert circular(marks)["all"] == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("Yes", 1), ("yes, it is", 1), ("No", 0), ("It is, yes", 0), ("是", 1), ("不是", 0), ("True", 1), ("", 0)],
)
def test_yes_or_no(prediction: str, expected: float) -> None:
    assert yes_or_no(prediction, example("Yes")) == expected


def test_mme_adds_accuracy_and_accuracy_plus() -> None:
    marks = [Mark("count", "a", 1), Mark("count", "a", 1), Mark("count", "b", 1), Mark("count", "b", 0)]
    marks += [Mark("code_reasoning", "c", 1), Mark("code_reasoning", "c", 1)]
    assert task_scores(marks) == {
        "count": 125.0,
        "code_reasoning": 200.0,
        "perception": 125.0,
        "cognition": 200.0,
        "all": 325.0,
    }
