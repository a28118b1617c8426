"""Where the visual tokens of a question lie: in which picture or clip, and where and when in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.families import Pieces


@dataclass(frozen=True)
class Grid:
    """The visual tokens of one question, in one model's order.

    boxes: float32 [V,4], where each lies in its picture; images: [V], which picture or clip, pictures first; times:
    float64 [V,2], from when to when in a clip that lasts 1; None: there are no clips.
    """

    boxes: np.ndarray
    images: np.ndarray
    times: np.ndarray | None = None

    @classmethod
    def of(cls, pieces: Sequence[Pieces], order: Sequence[int]) -> "Grid":
        """Of all pictures and clips of a question. order: the number of each."""
        if not pieces:
            return cls(np.empty((0, 4), np.float32), np.empty(0, np.int64))
        times = None
        if any(part.times is not None for part in pieces):
            always = (np.tile([0.0, 1.0], (len(part.boxes), 1)) for part in pieces)
            times = np.concatenate(
                [whole if part.times is None else part.times for whole, part in zip(always, pieces, strict=True)]
            )
        owner = [np.full(len(part.boxes), number) for number, part in zip(order, pieces, strict=True)]
        return cls(np.concatenate([part.boxes for part in pieces]), np.concatenate(owner), times)

    def same(self, other: "Grid") -> bool:
        """Whether visual token i is the same place for both models."""
        return (
            np.array_equal(self.boxes, other.boxes)
            and np.array_equal(self.images, other.images)
            and np.array_equal(self.spans(), other.spans())
        )

    def spans(self) -> np.ndarray:
        """float64 [V,2]: `times`, those of still pictures from 0 to 1."""
        return np.tile([0.0, 1.0], (len(self.boxes), 1)) if self.times is None else self.times

    def frames(self) -> np.ndarray:
        """int64 [V]: which frame, or frames that become tokens together, each token is of, counted over the question; a
        still picture is one."""
        moments = np.column_stack([self.images, self.spans()])
        return np.unique(moments, axis=0, return_inverse=True)[1].reshape(-1)
