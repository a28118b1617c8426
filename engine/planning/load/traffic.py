"""What is asked, and how often: kinds of questions that come at random, or those of a file of answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import RequestError
from engine.json_file import Unreadable, parse_json
from engine.planning.load.course import Course, Size
from engine.planning.load.simulate import Arrival

AT_ONCE = 4096
"""Arrivals that are drawn at once."""
NUMBERS = ("prompt_tokens", "visual_tokens", "tiles", "generated_tokens", "drafted_tokens", "accepted_tokens")


@dataclass(frozen=True)
class Kind:
    """Questions that are alike. exits: how probably the small model's answer is taken; weight: how often they come,
    next to others."""

    size: Size
    exits: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True)
class Traffic:
    """rate: questions a second, which come at random (Poisson), each of a random kind. known: share of them about
    pictures whose features both models have."""

    kinds: tuple[Kind, ...]
    rate: float
    known: float = 0.0
    seed: int = 0

    def shared(self, replicas: int) -> "Traffic":
        """Of each of so many processes, between which questions are dealt out by chance."""
        return replace(self, rate=self.rate / replicas)

    def exit_ratio(self) -> float:
        weights = np.array([kind.weight for kind in self.kinds])
        return float(np.average([kind.exits for kind in self.kinds], weights=weights))

    def with_exits(self, exits: float) -> "Traffic":
        """The same questions, of which so large a share exits by chance."""
        return replace(self, kinds=tuple(replace(kind, exits=exits) for kind in self.kinds))

    def arrivals(self, courses: Mapping[Size, Course]) -> Iterator[Arrival]:
        """Without an end. courses: of every size."""
        rng = np.random.default_rng(self.seed)
        ways = [(courses[kind.size], kind.exits) for kind in self.kinds]
        weights = np.array([kind.weight for kind in self.kinds])
        now = 0.0
        while True:
            gaps = rng.exponential(1 / self.rate, AT_ONCE)
            which = rng.choice(len(ways), AT_ONCE, p=weights / weights.sum())
            exits, known = rng.random((2, AT_ONCE))
            for gap, index, exit, knows in zip(
                gaps.tolist(), which.tolist(), exits.tolist(), known.tolist(), strict=True
            ):
                now += gap
                course, probability = ways[index]
                yield Arrival(now, course, exit < probability, knows < self.known)


def read_answers(path: Path) -> tuple[Kind, ...]:
    """A kind for each answered question of a file of `sgl batch`, or of answers that `sgl serve` gave, a line each.

    Raises RequestError.
    """
    kinds = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and (kind := _kind(_parsed(line, path, number), path, number)) is not None:
                    kinds.append(kind)
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); name a file of answers") from None
    if not kinds:
        raise RequestError(f"{path} holds no answer; name a file of answers")
    return tuple(kinds)


def _parsed(line: bytes, path: Path, number: int) -> Any:
    """Raises RequestError."""
    try:
        return parse_json(line)
    except Unreadable as error:
        raise RequestError(f"{path} line {number} is no JSON ({error}); name a file of answers") from None


def _kind(line: Any, path: Path, number: int) -> Kind | None:
    """None of a line that is no answer. Raises RequestError."""
    try:
        answer = _flat(line)
        if answer is None:
            return None
        prompt, visual, tiles, generated, drafted, accepted = (answer[name] for name in NUMBERS)
        if not all(type(answer[name]) is int and answer[name] >= 0 for name in NUMBERS):
            raise ValueError("one of its numbers is none")
        if not isinstance(answer["early_exit"], bool) or visual > prompt or generated < 1:
            raise ValueError("its numbers do not fit together")
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"{path} line {number} is no answer of sgl batch or sgl serve ({error}); name a file of answers"
        ) from None
    # What the small model said is known by what the large one was shown of it.
    small = generated if answer["early_exit"] or not drafted else drafted
    size = Size((tiles,) if tiles else (), prompt - visual, small, generated, accepted)
    return Kind(size, exits=float(answer["early_exit"]))


def _flat(line: Any) -> dict[str, Any] | None:
    """The members of NUMBERS and `early_exit`, wherever a form has them."""
    if "error" in line and line["error"] is not None:
        return None
    if "response" in line:
        if line["response"]["status_code"] != 200:
            return None
        line = line["response"]["body"]
    if "usage" in line:
        usage = line["usage"]
        counted = {"prompt_tokens": usage["prompt_tokens"], "generated_tokens": usage["completion_tokens"]}
        return line["sgl"] | counted
    return dict(line)
