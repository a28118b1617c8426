"""`{"image": …, "question": …, "id": …}`, and the options of a question under their names."""

from dataclasses import dataclass
from typing import Any

from engine.batch.terms import Reply, Report, Terms, bad_line
from engine.errors import EngineError, ImageError, QuestionTimedOut, RequestError
from engine.options import all_over, read_given, refuse_unread
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.serve.spelled import spell

OWN = ("id", "image", "images", "question", "system", "timeout")
CODES: tuple[tuple[type[Exception], str], ...] = (
    (ImageError, "invalid_image"),
    (RequestError, "invalid_request"),
    (QuestionTimedOut, "timed_out"),
)


@dataclass(frozen=True)
class ShortRequest:
    """See `terms.Request`. name: the line's own, or its number."""

    question: Question
    pictures: tuple[str, ...]
    name: str | int
    number: int
    report: Report

    def answered(self, answer: Answer, pipeline: SglPipeline) -> Reply:
        assert self.question.exit is not None
        tokens = {"tokens": spell(answer, pipeline)} if any(answer.top) else {}
        return {"id": self.name} | self.report(answer, self.question.exit) | tokens

    def failed(self, error: Exception) -> Reply:
        code = next((code for kind, code in CODES if isinstance(error, kind)), "failed")
        message = str(error) if isinstance(error, EngineError) else repr(error)
        return {
            "id": self.name,
            "error": {"code": code, "message": f"line {self.number}: {message}", "line": self.number},
        }


def read_short(value: dict[str, Any], number: int, terms: Terms) -> ShortRequest:
    """Raises BadLine."""
    name = value.get("id", number)
    try:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise RequestError("id is neither a text nor a whole number; give one")
        if not isinstance(value.get("question"), str):
            raise RequestError("there is no question, a text; ask something")
        return ShortRequest(_question(value, terms), _pictures(value, terms.max_pictures), name, number, terms.report)
    except EngineError as error:
        raise bad_line(number, str(error), name) from None


def _pictures(value: dict[str, Any], most: int) -> tuple[str, ...]:
    """Raises RequestError."""
    if "image" in value and "images" in value:
        raise RequestError("image and images are both given; leave one of them out")
    images = [value["image"]] if "image" in value else value.get("images", [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise RequestError("image is no text, or images no list of texts; give paths or URLs")
    if len(images) > most:
        raise RequestError(f"images has {len(images)} pictures, and at most {most} are taken; name fewer")
    return tuple(images)


def _question(value: dict[str, Any], terms: Terms) -> Question:
    """Raises RequestError."""
    given = read_given({name: member for name, member in value.items() if name not in OWN})
    config = all_over(terms.default, given)
    refuse_unread(given, config)
    timeout = value.get("timeout", terms.timeout)
    if isinstance(timeout, bool):
        raise RequestError("timeout is not a number; give seconds, or leave it out")
    return Question(
        (),
        value["question"],
        config.guidance,
        config.exit,
        config.sampling,
        system=value.get("system"),
        timeout=timeout,
        picture=config.picture,
    )
