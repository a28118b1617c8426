"""A line of the questions' file: what is asked, in one of two forms, and what is answered to it.

The short form has the question's own members; a line with `custom_id`, `url` or `body` is of OpenAI's batch files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.batch.lines import MOST_BYTES, Line
from engine.batch.short_form import read_short
from engine.batch.terms import BadLine, LineRequest, Terms, bad_line
from engine.engine_directory import CONVERTER
from engine.errors import EngineError, ImageError
from engine.json_file import Unreadable, parse_json
from engine.runtime.image_url import CLIP, PICTURE, Medium, fetch, find_all
from engine.runtime.images.source import STDIN, read_source
from engine.runtime.question import Question

MISSING = "{} line {} is of OpenAI's form, whose packages are missing ({}); pip install 'sgl-engine[serve]'"
OPENAI_MEMBERS = ("custom_id", "url", "body")


@dataclass(frozen=True)
class LineReader:
    """A `terms.Reader` of the questions' file."""

    terms: Terms

    def agreed(self) -> dict[str, Any]:
        terms = self.terms
        return {
            "model": terms.model,
            "options": CONVERTER.unstructure(terms.default),
            "image hosts": None if terms.image_hosts is None else sorted(terms.image_hosts),
            "pictures at most": terms.max_pictures,
            "timeout": terms.timeout,
        }

    def look_at(self, content: bytes, line: Line) -> Line:
        """The picture as far as it can be seen without a check. Raises EngineError where no line of this form can be
        read."""
        try:
            value = _parse(content, line.place + 1)
        except BadLine:
            return line
        if not _is_openai(value):
            named = [value.get("image"), *_list(value.get("images")), value.get("video"), *_list(value.get("videos"))]
            return line._replace(picture=_key(next(filter(None, named), None)))
        try:
            import engine.batch.openai_form  # noqa: F401
        except ModuleNotFoundError as error:
            raise EngineError(MISSING.format(self.terms.path, line.place + 1, error.name)) from None
        body = value.get("body")
        for message in _list(body.get("messages")) if isinstance(body, dict) else []:
            for part in _list(message.get("content")) if isinstance(message, dict) else []:
                picture = part.get("image_url") or part.get("video_url") if isinstance(part, dict) else None
                if isinstance(picture, dict):
                    return line._replace(picture=_key(picture.get("url")))
        return line

    def read(self, content: bytes, number: int) -> LineRequest:
        """Raises BadLine."""
        value = _parse(content, number)
        if _is_openai(value):
            from engine.batch.openai_form import read_openai  # its packages are an extra

            return read_openai(value, number, self.terms)
        return read_short(value, number, self.terms)

    def question(self, request: LineRequest) -> Question:
        """Pictures behind URLs have come, together within the time of one, and clips likewise. Raises ImageError."""
        question = request.question

        def find(places: tuple[str, ...], medium: Medium) -> tuple[Path | bytes, ...]:
            return tuple(
                find_all(places, lambda text, seconds: self._find(text, seconds, medium), question.timeout, medium)
            )

        return replace(question, images=find(request.pictures, PICTURE), videos=find(request.clips, CLIP))

    def _find(self, text: str, seconds: float, medium: Medium) -> Path | bytes:
        """Raises ImageError."""
        if text.lstrip().partition(":")[0].lower() in ("data", "http", "https"):
            return fetch(text, self.terms.image_hosts, seconds, medium)
        if text == STDIN or not text:
            raise ImageError(f"{medium.name} {text!r} is none; give its path, or a URL")
        source = read_source(text, allow_http=False)
        assert isinstance(source, Path), "what is no URL and not standard input is a path"
        return self.terms.path.parent / source


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


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _key(picture: object) -> int | None:
    return hash(picture) if isinstance(picture, str) else None
