"""`{"image": …, "question": …, "id": …}`, and the options of a question under their names."""

from dataclasses import dataclass
from typing import Any

from engine.batch.tally import Tally, tally_of
from engine.batch.terms import Reply, Report, Terms, bad_line
from engine.errors import EngineError, ImageError, QuestionTimedOut, RequestError
from engine.options import all_over, read_given, refuse_unread
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.serve.spelled import spell

OWN = ("id", "image", "images", "video", "videos", "question", "system", "timeout")
CODES: tuple[tuple[type[Exception], str], ...] = (
    (ImageError, "invalid_image"),
    (RequestError, "invalid_request"),
    (QuestionTimedOut, "timed_out"),
)


@dataclass(frozen=True)
class ShortRequest:
    """See `terms.LineRequest`. name: the line's own, or its number."""

    question: Question
    pictures: tuple[str, ...]
    clips: tuple[str, ...]
    name: str | int
    number: int
    report: Report

    def answered(self, answer: Answer, pipeline: SglPipeline) -> Reply:
        assert self.question.exit is not None
        tokens = {"tokens": spell(answer, pipeline)} if any(answer.top) else {}
        return {"id": self.name} | self.report(answer, self.question.exit) | tokens

    def counted(self, answer: Answer) -> Tally:
        return tally_of(answer)

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
        pictures = _media(value, "image", "pictures", terms.max_pictures)
        clips = _media(value, "video", "clips", terms.max_clips)
        return ShortRequest(_question(value, terms), pictures, clips, name, number, terms.report)
    except EngineError as error:
        raise bad_line(number, str(error), name) from None


def _media(value: dict[str, Any], one: str, what: str, most: int) -> tuple[str, ...]:
    """one: the member that names one; another names several. what: they are. Raises RequestError."""
    several = f"{one}s"
    if one in value and several in value:
        raise RequestError(f"{one} and {several} are both given; leave one of them out")
    named = [value[one]] if one in value else value.get(several, [])
    if not isinstance(named, list) or not all(isinstance(text, str) for text in named):
        raise RequestError(f"{one} is no text, or {several} no list of texts; give paths or URLs")
    if len(named) > most:
        raise RequestError(f"{several} has {len(named)} {what}, and at most {most} are taken; name fewer")
    return tuple(named)


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
        video=config.video,
    )
