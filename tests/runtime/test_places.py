"""Positions of time, row and column against the published rule, written down once more as it is told."""

import numpy as np

from engine.runtime.prompt import PromptTokens, token_places

NOTHING = np.empty((0, 0), np.float32)


def published(prompt: list[str | tuple[int, int]]) -> list[list[int]]:
    """A text token stands behind the largest number so far, three times; a picture's tokens at their row and column
    from there on, at one time."""
    places: list[list[int]] = []
    for part in prompt:
        start = max((number for place in places for number in place), default=-1) + 1
        if isinstance(part, str):
            places.append([start] * 3)
            continue
        rows, columns = part
        places += [[start, start + row, start + column] for row in range(rows) for column in range(columns)]
    return places


def grid(rows: int, columns: int) -> np.ndarray:
    return np.array([[0, row, column] for row in range(rows) for column in range(columns)])


def test_text_goes_on_behind_the_largest_number() -> None:
    """Prompts with up to four pictures, of which some follow each other at once, or end the prompt."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        prompt: list[str | tuple[int, int]] = []
        for _ in range(rng.integers(0, 5)):
            prompt += ["text"] * int(rng.integers(0, 6)) + [(int(rng.integers(1, 9)), int(rng.integers(1, 9)))]
        prompt += ["text"] * int(rng.integers(0, 6))
        pictures = [part for part in prompt if not isinstance(part, str)]
        visual = np.array([is_visual for part in prompt for is_visual in _marks(part)], bool)
        places = token_places(len(visual), np.flatnonzero(visual), [grid(*part) for part in pictures])
        expected = published(prompt)
        assert places.tolist() == expected
        tokens = PromptTokens(np.zeros(len(visual), np.int64), np.flatnonzero(visual), NOTHING, places=places)
        assert tokens.next_position() == max((number for place in expected for number in place), default=-1) + 1


def _marks(part: str | tuple[int, int]) -> list[bool]:
    return [False] if isinstance(part, str) else [True] * (part[0] * part[1])
