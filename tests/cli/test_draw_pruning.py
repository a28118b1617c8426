"""The drawing of kept tokens, pixel by pixel; and the scenes that the demo draws."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.cli.draw_pruning import covers, draw, save
from engine.cli.drawing import GAP, OUTLINE, WIDTH
from engine.errors import RequestError
from tools.scenes import make_scene


def grid(columns: int, rows: int) -> np.ndarray:
    """[columns*rows,4]: boxes of one cover, row by row."""
    return np.array(
        [
            (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
            for row in range(rows)
            for column in range(columns)
        ],
        np.float32,
    )


def panel(drawing: Image.Image, width: int, height: int) -> np.ndarray:
    """uint8 [H,W,3]: the first panel."""
    return np.asarray(drawing)[:height, :width]


@given(columns=st.integers(1, 40), rows=st.integers(1, 40), thumbnail=st.integers(1, 16))
def test_a_thumbnail_is_told_from_tiles(columns: int, rows: int, thumbnail: int) -> None:
    boxes = np.concatenate([grid(columns, rows), grid(thumbnail, thumbnail)])
    assert covers(boxes).tolist() == [0] * (columns * rows) + [1] * thumbnail**2


def test_only_dropped_tokens_change() -> None:
    image = Image.new("RGB", (WIDTH, WIDTH // 2), (200, 40, 90))
    kept = np.array([True, False, False, False, True, True, False, False])
    drawing = panel(draw(image, grid(4, 2), kept, None), *image.size)
    side = WIDTH // 4
    for index, is_kept in enumerate(kept):
        row, column = divmod(index, 4)
        # inside the outline, which is one pixel wide
        inner = drawing[row * side + 1 : (row + 1) * side - 1, column * side + 1 : (column + 1) * side - 1]
        if is_kept:
            assert (inner[1:-1, 1:-1] == (200, 40, 90)).all()
        else:
            assert len(np.unique(inner)) == 1, "no colour is left"
            assert inner.max() < 200 * 0.4
    assert (drawing[1:-1, side - 1] == OUTLINE).all(axis=-1)[: side - 1].all()


def test_nothing_changes_when_everything_is_kept() -> None:
    image = make_scene(seed=8, width=WIDTH, height=300, objects=6)[0]
    drawing = panel(draw(image, grid(5, 3), np.ones(15, bool), None), *image.size)
    np.testing.assert_array_equal(drawing, np.asarray(image))


@pytest.mark.parametrize("kept", [[0], [8]])
def test_tiles_and_thumbnail_have_panels_of_their_own(kept: list[int]) -> None:
    image = Image.new("RGB", (300, 300), (10, 200, 30))
    boxes = np.concatenate([grid(4, 2), grid(2, 2)])
    drawing = np.asarray(draw(image, boxes, np.isin(np.arange(12), kept), None))
    green = (drawing == (10, 200, 30)).all(axis=-1)
    tiles, thumbnail = green[:WIDTH], green[WIDTH:]
    assert (tiles.any(), thumbnail.any()) == (kept == [0], kept == [8])


def test_importance_is_bright_where_it_is() -> None:
    image = Image.new("RGB", (400, 400), (128, 128, 128))
    importance = np.array([0, 0, 0, 7], np.float32)
    drawing = np.asarray(draw(image, grid(2, 2), np.ones(4, bool), importance)).astype(int)
    side = (WIDTH - GAP) // 2
    top = next(row for row in range(WIDTH + 1, len(drawing)) if (drawing[row, :side] < 100).any() and row > WIDTH + 25)
    heat = drawing[top : top + side, :side].sum(axis=-1)
    half = side // 2
    assert heat[half + 5 : -5, half + 5 : -5].min() > 2 * heat[5 : half - 5, 5 : half - 5].max()


def test_a_single_token_is_drawn() -> None:
    drawing = draw(Image.new("L", (3, 500)), grid(1, 1), np.array([True]), np.array([0.0], np.float32))
    assert drawing.width == WIDTH


def test_a_drawing_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="choose another file"):
        save(Image.new("RGB", (3, 3)), tmp_path / "kept.unknown")
    assert list(tmp_path.iterdir()) == []


@given(seed=st.integers(0, 10**6), objects=st.integers(1, 9))
def test_scenes_hold_separate_objects_and_repeat(seed: int, objects: int) -> None:
    image, shapes = make_scene(seed, 240, 180, objects)
    again = make_scene(seed, 240, 180, objects)
    assert image.tobytes() == again[0].tobytes()
    assert shapes == again[1]
    assert len({shape.number for shape in shapes}) == len({(shape.colour, shape.shape) for shape in shapes}) == objects
    for index, one in enumerate(shapes):
        assert one.radius <= one.x <= 240 - one.radius
        assert one.radius <= one.y <= 180 - one.radius
        for other in shapes[:index]:
            assert max(abs(one.x - other.x), abs(one.y - other.y)) >= one.radius + other.radius
