"""A decoded frame as a picture: its colours, and the turn that its display matrix asks for."""

import struct
from typing import Any

from av.video.frame import VideoFrame
from PIL import Image

Turn = Image.Transpose | None

TURNS = {
    (1, 0, 0, 1): None,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""By the signs of the matrix's first two rows and columns: where x and y go, clockwise, as y points down."""

SIDES = {Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE}
"""Turns that make a width of a height."""

MATRIX = struct.Struct("=9i")


def turn_of(frame: VideoFrame) -> Turn:
    """Of its display matrix; none where it has none, or one that is no quarter turn."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d, *_ = MATRIX.unpack(bytes(matrix)[: MATRIX.size])
    return TURNS.get(tuple((value > 0) - (value < 0) for value in (a, b, c, d)))


def turned(width: int, height: int, turn: Turn) -> tuple[int, int]:
    """Of a picture, once it is upright."""
    return (height, width) if turn in SIDES else (width, height)


def to_picture(frame: VideoFrame, width: int, height: int, turn: Turn) -> Image.Image:
    """In mode RGB, upright. width, height: as coded; a frame whose size changed on the way is scaled to them."""
    plane: Any = frame.reformat(width, height, "rgb24").planes[0]
    picture = Image.frombuffer("RGB", (width, height), plane, "raw", "RGB", plane.line_size, 1)
    return picture if turn is None else picture.transpose(turn)
