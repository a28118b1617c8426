"""What is counted of answers."""

import operator
from dataclasses import dataclass
from typing import Any

from engine.runtime.answer import Answer

MILLION = 1_000_000


@dataclass(frozen=True)
class Tally:
    """Of one line, or of many."""

    answers: int = 0
    errors: int = 0
    exits: int = 0
    """Answers of the small model alone."""
    visual_tokens: int = 0
    kept: int = 0
    """Of the visual tokens."""
    generated: int = 0
    graded: int = 0
    """Answers that have a grade."""
    score: int = 0
    """Sum of their grades, in millionths: whole numbers add up alike in every order."""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*map(operator.add, self.counts(), other.counts()))

    def __sub__(self, other: "Tally") -> "Tally":
        return Tally(*map(operator.sub, self.counts(), other.counts()))

    def counts(self) -> tuple[int, ...]:
        """In the order in which they are declared."""
        return tuple(vars(self).values())

    def lines(self) -> int:
        return self.answers + self.errors

    def exit_ratio(self) -> float | None:
        return self.exits / self.answers if self.answers else None

    def retention(self) -> float | None:
        """Share of the visual tokens that was used to the end."""
        return self.kept / self.visual_tokens if self.visual_tokens else None

    def mean_grade(self) -> float | None:
        return self.score / MILLION / self.graded if self.graded else None

    def to_json(self) -> dict[str, Any]:
        return {
            "answers": self.answers,
            "errors": self.errors,
            "early_exit": self.exit_ratio(),
            "tokens_kept": self.retention(),
            "generated_tokens": self.generated,
        }


def tally_of(answer: Answer, grade: float | None = None) -> Tally:
    return Tally(
        answers=1,
        exits=int(answer.early_exit),
        visual_tokens=answer.visual_tokens,
        kept=answer.num_kept(),
        generated=len(answer.token_ids),
        graded=int(grade is not None),
        score=round(MILLION * (grade or 0)),
    )
