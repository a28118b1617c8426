"""A chat request as a question with its settings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.bounds import shown
from engine.errors import RequestError
from engine.families import Turn
from engine.json_schema import ANY_OBJECT
from engine.options import QuestionConfig, all_over, read_given, refuse_unread
from engine.runtime.image_url import CLIP, NO_HOST, PICTURE, Hosts, Medium, fetch, find_all
from engine.runtime.question import Question
from engine.runtime.schema_check import check_schema
from engine.serve.http.request_schema import (
    AssistantMessage,
    ChatRequest,
    Format,
    ImagePart,
    ObjectFormat,
    Part,
    SchemaFormat,
    SystemMessage,
    TextPart,
    UserMessage,
    VideoPart,
)

MARKS: dict[type[Part], str] = {ImagePart: "<image>", VideoPart: "<video>"}
RESERVED = ((MARKS[ImagePart], "pictures", "image_url"), (MARKS[VideoPart], "clips", "video_url"))
RETURNS = ("return_importance", "return_kept")


class ModelNotFound(RequestError):
    """A request to a model that is not served here."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    default: QuestionConfig
    """Of requests that say nothing else."""
    max_pictures: int = 16
    timeout: float | None = None
    """Seconds for a question that names no others; None is no end."""
    image_hosts: Hosts = NO_HOST
    """From which http(s) pictures and clips are fetched."""
    max_clips: int = 4


@dataclass(frozen=True)
class Asked:
    """A request, read; its pictures and clips are not fetched yet."""

    question: Question
    urls: tuple[str, ...]
    """Of pictures."""
    clip_urls: tuple[str, ...]
    image_hosts: Hosts
    return_importance: bool
    return_kept: bool

    @property
    def schema(self) -> str | None:
        """Of the answer."""
        assert self.question.sampling is not None
        return self.question.sampling.json_schema

    @property
    def exit_threshold(self) -> float:
        assert self.question.exit is not None
        return self.question.exit.exit_threshold

    def fetched(self) -> Question:
        """With its pictures, together within the time of one, and its clips likewise. Raises ImageError, and
        BadSchema: before an answer begins, and so with a status."""
        if self.schema is not None:
            check_schema(self.schema)
        images, videos = self._fetch(self.urls, PICTURE), self._fetch(self.clip_urls, CLIP)
        return replace(self.question, images=images, videos=videos)

    def _fetch(self, wanted: Sequence[str], medium: Medium) -> tuple[bytes, ...]:
        urls = list(dict.fromkeys(wanted))  # one that is shown twice comes once
        hosts, timeout = self.image_hosts, self.question.timeout
        contents = find_all(urls, lambda url, seconds: fetch(url, hosts, seconds, medium), timeout, medium)
        found = dict(zip(urls, contents, strict=True))
        return tuple(found[url] for url in wanted)


def read_request(request: ChatRequest, model: str, limits: Limits) -> Asked:
    """Raises RequestError."""
    if request.model != model:
        raise ModelNotFound(f"model {shown(request.model)} is not served here; ask for {model!r}")
    system, turns, asked = _conversation(request.messages)
    parts = [part for turn in asked for message in turn for part in _parts(message)]
    urls = tuple(part.image_url.url for part in parts if isinstance(part, ImagePart))
    clip_urls = tuple(part.video_url.url for part in parts if isinstance(part, VideoPart))
    for what, most, given in (("pictures", limits.max_pictures, urls), ("clips", limits.max_clips, clip_urls)):
        if len(given) > most:
            raise RequestError(f"messages have {len(given)} {what}, and at most {most} are taken; send fewer")
    texts = _texts(asked)
    returns = {name: request.sgl.get(name, False) for name in RETURNS}
    for name, value in returns.items():
        if not isinstance(value, bool):
            raise RequestError(f"sgl.{name} is not true or false; send one of them")
    timeout = request.sgl.get("timeout", limits.timeout)
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float)):
        raise RequestError("sgl.timeout is not a number; give seconds, or leave it out")
    config = _settings(request, limits.default)
    question = Question(
        (),
        texts[-1],
        config.guidance,
        config.exit,
        config.sampling,
        history=tuple(Turn(text, answer) for text, answer in zip(texts, turns, strict=False)),
        system=system,
        timeout=timeout,
        picture=config.picture,
        video=config.video,
    )
    return Asked(question, urls, clip_urls, limits.image_hosts, **returns)


def _settings(request: ChatRequest, default: QuestionConfig) -> QuestionConfig:
    """What the request says, over the server's own. Raises RequestError."""
    ours = {name: value for name, value in request.sgl.items() if name not in (*RETURNS, "timeout")}
    theirs: dict[str, Any] = {
        "max_new_tokens": request.max_completion_tokens or request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop": [request.stop] if isinstance(request.stop, str) else request.stop,
        "top_logprobs": request.top_logprobs,
        "json_schema": _schema(request.response_format),
    }
    named = {name: value for name, value in theirs.items() if value is not None}
    if twice := named.keys() & ours.keys():
        raise RequestError(f"{min(twice)} is given twice, in the request and in its sgl; leave one of them out")
    given = read_given(ours)
    config = all_over(default, {**given, **read_given(named)})
    # Of OpenAI's own members, clients send some whatever they mean: those may go unread.
    refuse_unread(given, config)
    if "top_logprobs" in {*given, *named} and config.sampling.top_logprobs and not request.logprobs:
        raise RequestError("top_logprobs is of logprobs, which are not asked for; send logprobs, true, as well")
    return config


def _schema(wanted: Format | None) -> str | None:
    match wanted:
        case ObjectFormat():
            return ANY_OBJECT
        case SchemaFormat():
            return json.dumps(wanted.json_schema.content, ensure_ascii=False)
        case _:
            return None


def _conversation(
    messages: Sequence[SystemMessage | UserMessage | AssistantMessage],
) -> tuple[str | None, list[str], list[list[UserMessage]]]:
    """-> the system message, answers, and what was asked before, between and after them. Raises RequestError."""
    spoken = (place for place, message in enumerate(messages) if not isinstance(message, SystemMessage))
    first = next(spoken, len(messages))
    system = "\n".join(_text(message) for message in messages[:first]) if first else None
    answers: list[str] = []
    asked: list[list[UserMessage]] = [[]]
    for place, message in enumerate(messages[first:], first):
        if isinstance(message, UserMessage):
            asked[-1].append(message)
        elif isinstance(message, AssistantMessage):
            if not asked[-1]:
                raise RequestError(f"messages[{place}] answers no message of a user; send the question before it")
            answers.append(_text(message).strip())
            asked.append([])
        else:
            raise RequestError(f"messages[{place}] is a {message.role} message behind others; send it first")
    if not asked[-1]:
        raise RequestError("the last message is none of a user; send the question last")
    return system, answers, asked


def _texts(asked: Sequence[Sequence[UserMessage]]) -> list[str]:
    """What was asked each time, with a mark where each picture or clip goes; none where all come first, pictures before
    clips, as families then put them where they were published. Raises RequestError."""
    parts = [[part for message in turn for part in _parts(message)] for turn in asked]
    for turn in parts:
        for part in turn:
            for mark, what, kind in RESERVED:
                if isinstance(part, TextPart) and mark in part.text:
                    raise RequestError(f"a text contains {mark}, which is a mark for {what} here; send {kind} parts")
    order = [[ImagePart, VideoPart, TextPart].index(type(part)) for turn in parts for part in turn]
    if order == sorted(order) and all(isinstance(part, TextPart) for turn in parts[1:] for part in turn):
        parts = [[part for part in turn if isinstance(part, TextPart)] for turn in parts]
    return [
        "\n".join(part.text if isinstance(part, TextPart) else MARKS[type(part)] for part in turn) for turn in parts
    ]


def _parts(message: UserMessage) -> list[Part]:
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    return list(message.content)


def _text(message: SystemMessage | UserMessage | AssistantMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))
