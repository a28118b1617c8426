"""A line of the questions' file: what is asked, in one of two forms, and what is answered to it.

The short form has the question's own members; a line with `custom_id`, `url` or `body` is of OpenAI's batch files.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from engine.batch.lines import MOST_BYTES, Line
from engine.config import ExitConfig
from engine.errors import EngineError, ImageError
from engine.json_file import Unreadable, parse_json
from engine.options import QuestionConfig
from engine.runtime.answer import Answer
from engine.runtime.image_url import NO_HOST, SECONDS, Hosts, fetch
from engine.runtime.images import ImageSource
from engine.runtime.images.source import STDIN, read_source
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question

MISSING = "{} line {} is of OpenAI's form, whose packages are missing ({}); pip install 'sgl-engine[serve]'"
OPENAI_MEMBERS = ("custom_id", "url", "body")
LEAST_SECONDS = 0.001
"""For a picture whose question has no time left: that ends it with what is wrong."""
Reply = dict[str, Any]
Report = Callable[[Answer, ExitConfig], dict[str, Any]]


@dataclass(frozen=True)
class Terms:
    """What lines are read under. report: an answer in JSON, for the short form."""

    model: str
    path: Path
    """Of the questions; pictures' paths are relative to where it lies."""
    report: Report
    default: QuestionConfig = field(default_factory=QuestionConfig)
    """Of lines that say nothing else."""
    image_hosts: Hosts = NO_HOST
    """From which http(s) pictures are fetched."""
    max_pictures: int = 16
    timeout: float | None = None
    """Seconds for a question that names no others; None is no end."""
    started: int = 0
    """When the run began, in seconds since 1970."""


class Request(Protocol):
    """A line, read."""

    @property
    def question(self) -> Question:
        """Without its pictures."""

    @property
    def pictures(self) -> tuple[str, ...]:
        """Paths and URLs."""

    def answered(self, answer: Answer, pipeline: SglPipeline) -> Reply: ...

    def failed(self, error: Exception) -> Reply: ...


class BadLine(Exception):
    """A line that asks nothing, and what is answered to it."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


def bad_line(number: int, message: str, name: object = None) -> BadLine:
    """number: of the line, from 1. name: the question's, where it has one."""
    error = {"code": "invalid_line", "message": f"line {number}: {message}", "line": number}
    custom_id = name if isinstance(name, str) else None
    return BadLine({"id": f"batch_req_{number}", "custom_id": custom_id, "response": None, "error": error})


def read_line(data: bytes, number: int, terms: Terms) -> Request:
    """Raises BadLine."""
    value = _parse(data, number)
    if _is_openai(value):
        from engine.batch.openai_form import read_openai  # its packages are an extra

        return read_openai(value, number, terms)
    from engine.batch.short_form import read_short

    return read_short(value, number, terms)


def with_pictures(request: Request, terms: Terms) -> Question:
    """The question with its pictures, of which those behind URLs have come, together within the time of one.
    Raises ImageError."""
    timeout = request.question.timeout
    end = time.monotonic() + (SECONDS if timeout is None else min(SECONDS, timeout))
    images = tuple(_find(text, terms, max(end - time.monotonic(), LEAST_SECONDS)) for text in request.pictures)
    return replace(request.question, images=images)


def look_at(data: bytes, line: Line, terms: Terms) -> Line:
    """With its picture, as far as that can be seen without a check. Raises EngineError where no line of this form can
    be read."""
    try:
        value = _parse(data, line.place + 1)
    except BadLine:
        return line
    if not _is_openai(value):
        first = value.get("image") or next(iter(_list(value.get("images"))), None)
        return line._replace(picture=_key(first))
    try:
        import engine.batch.openai_form  # noqa: F401
    except ModuleNotFoundError as error:
        raise EngineError(MISSING.format(terms.path, line.place + 1, error.name)) from None
    body = value.get("body")
    for message in _list(body.get("messages")) if isinstance(body, dict) else []:
        for part in _list(message.get("content")) if isinstance(message, dict) else []:
            picture = part.get("image_url") if isinstance(part, dict) else None
            if isinstance(picture, dict):
                return line._replace(picture=_key(picture.get("url")))
    return line


def _parse(data: bytes, number: int) -> dict[str, Any]:
    if len(data) > MOST_BYTES:
        raise bad_line(number, f"it has more than {MOST_BYTES:,} bytes; name pictures by their paths")
    try:
        value = parse_json(data)
    except Unreadable as error:
        raise bad_line(number, f"it cannot be read as JSON ({error}); write an object in one line") from None
    if not isinstance(value, dict):
        raise bad_line(number, "it is no object; write one in one line")
    return value


def _is_openai(value: Mapping[str, Any]) -> bool:
    return any(name in value for name in OPENAI_MEMBERS)


def _find(text: str, terms: Terms, seconds: float) -> ImageSource:
    """Raises ImageError."""
    if text.lstrip().partition(":")[0].lower() in ("data", "http", "https"):
        return fetch(text, terms.image_hosts, seconds)
    if text == STDIN or not text:
        raise ImageError(f"picture {text!r} is none; give its path, or a URL")
    source = read_source(text, allow_http=False)
    return terms.path.parent / source if isinstance(source, Path) else source


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _key(picture: object) -> int | None:
    return hash(picture) if isinstance(picture, str) else None
