"""One question of a benchmark."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from engine.runtime.images import ImageSource


@dataclass(frozen=True)
class Example:
    """id: unique in its benchmark. picture: opened when the question is asked, so that a benchmark stays small; None
    where the question is about a video, a file of which frames are chosen as a question's options say.

    question: with the words that tell the model how to answer. answers: those that count as right, as published.
    kind: what the table tells apart. group: questions that count together, such as both of one picture.
    """

    id: str
    picture: partial[Any] | None
    question: str
    answers: tuple[str, ...]
    kind: str = ""
    group: str = ""
    video: Path | None = None

    def pictures(self) -> tuple[ImageSource, ...]:
        return () if self.picture is None else (self.picture(),)

    def picture_key(self) -> int:
        """The same for examples about the same picture, or video."""
        return hash(self.video if self.picture is None else (self.picture.func, self.picture.args))
