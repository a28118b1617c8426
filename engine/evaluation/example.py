"""One question of a benchmark."""

from dataclasses import dataclass
from functools import partial

from engine.runtime.images import ImageSource


@dataclass(frozen=True)
class Example:
    """id: unique in its benchmark. picture: opened when the question is asked, so that a benchmark stays small.

    question: with the words that tell the model how to answer. answers: those that count as right, as published.
    kind: what the table tells apart. group: questions that count together, such as both of one picture.
    """

    id: str
    picture: partial[ImageSource]
    question: str
    answers: tuple[str, ...]
    kind: str = ""
    group: str = ""

    def picture_key(self) -> int:
        """The same for examples about the same picture."""
        return hash((self.picture.func, self.picture.args))
