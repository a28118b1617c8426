"""The miniature's scenes and questions are as they say."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.miniature.questions import (
    Kind,
    Question,
    ask,
    box_text,
    exam,
    overlap,
    read_box,
    render,
    score,
)
from tools.miniature.scenes import CELL, COLOURS, SIDE, Split, draw, make_crowd, make_scene
from tools.miniature.vocabulary import COUNTS


def test_no_scene_is_in_two_splits() -> None:
    splits = sorted((split.value for split in Split), key=lambda seeds: seeds.start)
    assert all(one.stop <= two.start for one, two in itertools.pairwise(splits))


@given(seed=st.sampled_from(list(Split)).flatmap(lambda split: st.integers(split.value[0], split.value[-1])))
@settings(max_examples=30, deadline=None)
def test_objects_do_not_meet(seed: int) -> None:
    for items in (make_scene(seed), make_crowd(seed)):
        assert len({(item.column, item.row) for item in items}) == len(items)
        for item in items:
            assert all(0 <= edge < SIDE // CELL for edge in item.box())
            assert item.radius + max(abs(item.right), abs(item.down)) <= CELL
    scene = make_scene(seed)
    assert len({(item.colour, item.shape) for item in scene}) == len({item.number for item in scene}) == len(scene)


def test_an_object_is_drawn_where_it_says() -> None:
    """A good part of each object's box has its colour."""
    items = make_scene(3)
    image = draw(3, items)
    assert np.array_equal(image, draw(3, items))
    for item in items:
        left, top, right, bottom = (edge * CELL for edge in item.box())
        part = image[top : bottom + CELL, left : right + CELL].astype(int)
        assert (np.abs(part - COLOURS[item.colour]).max(-1) < 25).mean() > 0.2


@pytest.mark.parametrize("kind", Kind)
def test_an_answer_follows_from_the_scene(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    for seed in range(40):
        items = make_scene(seed)
        question = ask(kind, items, rng)
        words = question.text.removesuffix("?").replace(",", "").split()
        numbers = {str(item.number): item for item in items}
        match question.kind:
            case Kind.NUMBER:
                told = [item for item in items if [item.colour, item.shape][: len(words) - 2] == words[2:]]
                assert told == [numbers[question.answer]]
            case Kind.COLOUR | Kind.SHAPE:
                assert question.answer == getattr(numbers[words[-1]], kind)
            case Kind.LOCATE:
                assert read_box(question.answer) == numbers[words[-1]].box()
            case Kind.COMPARE:
                loser = words[1] if words[3] == question.answer else words[3]
                assert numbers[question.answer].row < numbers[loser].row
            case Kind.COUNT:
                alike = [i for i in items if words[-1] in (i.colour, i.shape + "s")]
                assert question.answer == COUNTS[len(alike)]


boxes = st.tuples(*[st.integers(0, 7)] * 2, *[st.integers(8, 23)] * 2)


@given(one=boxes, two=boxes)
def test_overlap_is_that_of_the_cells(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> None:
    def cells(box: tuple[int, int, int, int]) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)}

    assert overlap(one, two) == pytest.approx(len(cells(one) & cells(two)) / len(cells(one) | cells(two)))
    assert read_box(box_text(one)) == one


@pytest.mark.parametrize(
    ("given_", "right"), [("C4:E6", 1), ("C4:E5", 1), ("C4:E9", 1), ("C4:D5", 0), ("E4:C6", 0), ("red", 0), ("", 0)]
)
def test_a_box_is_right_if_it_overlaps_enough(given_: str, right: int) -> None:
    assert score(Question(Kind.LOCATE, "Where is 37?", "C4:E6"), given_) == right


def test_other_answers_are_right_only_if_exact() -> None:
    question = Question(Kind.COLOUR, "Colour of 37?", "red")
    assert [score(question, text) for text in ("red", "Red", "red ", "green")] == [1, 0, 0, 0]


def test_a_rendered_scene_can_be_asked_about() -> None:
    image, question = render(5, Kind.LOCATE)
    assert image.size == (SIDE, SIDE)
    assert question.text.startswith("Where is ")
    assert {seed for seed, _ in exam(Split.TEST, 12)} <= set(Split.TEST.value[:12])
