"""A request's tensors as a question with its settings."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from engine.config import SamplingConfig
from engine.errors import RequestError
from engine.families import Turn
from engine.manifest import Manifest
from engine.options import OPTIONS, Given, Option, QuestionConfig, all_over, refuse_unread
from engine.runtime.clips import ClipSource
from engine.runtime.image_url import CLIP, EVERY_HOST, NO_HOST, PICTURE, Medium, fetch, find_all
from engine.runtime.images import ImageSource
from engine.runtime.question import Question
from engine.serve.triton.serve_config import ServeConfig, check_timeout
from engine.serve.triton.tensors import EMPTY, INPUTS, Tensor

Tensors = Mapping[str, np.ndarray]
"""By name, each with its batch dimension of 1."""
DTYPES: dict[str, np.dtype[Any]] = {
    "STRING": np.dtype(object),
    "BOOL": np.dtype(bool),
    "FP32": np.dtype(np.float32),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "UINT64": np.dtype(np.uint64),
}
SAMPLING = {option.name for option in OPTIONS if option.config is SamplingConfig}
DECLARED = {tensor.name: tensor for tensor in INPUTS}


class EmptyQuestion(RequestError):
    """A question without a word: also what probes ask, which want an answer that costs nothing."""


@dataclass(frozen=True)
class Inquiry:
    """A question as it arrived; what it does not say is as the server was configured."""

    text: str
    history: tuple[Turn, ...]
    images: tuple[ImageSource, ...]
    urls: tuple[str, ...]
    """Of pictures that come after `images`."""
    videos: tuple[ClipSource, ...]
    clip_urls: tuple[str, ...]
    """Of clips that come after `videos`."""
    allow_http: bool
    config: QuestionConfig
    timeout: float | None
    stream: bool
    return_importance: bool
    return_log_probs: bool

    def question(self, timeout: float | None) -> Question:
        """With all its pictures, which are fetched, together within the time of one, and its clips likewise. timeout:
        what is left of its own. Raises ImageError."""
        hosts = EVERY_HOST if self.allow_http else NO_HOST

        def find(urls: tuple[str, ...], medium: Medium) -> list[bytes]:
            return find_all(urls, lambda url, seconds: fetch(url, hosts, seconds, medium), timeout, medium)

        images, videos = (*self.images, *find(self.urls, PICTURE)), (*self.videos, *find(self.clip_urls, CLIP))
        given = vars(self.config)
        return Question(images, self.text, history=self.history, timeout=timeout, videos=videos, **given)


@dataclass(frozen=True)
class Reader:
    """Reads the requests of the served model."""

    serve: ServeConfig
    manifest: Manifest

    def read(self, tensors: Tensors, parameters: str) -> Inquiry:
        """parameters: the request's own, as JSON. Raises RequestError."""
        get = _Getter(tensors)
        for name in json.loads(parameters or "{}"):
            raise RequestError(f"option {name} is unknown; the model's metadata lists its inputs")
        for name, tensor in tensors.items():
            _check(name, tensor)
        text = get.text("text_input")
        if not text.strip():
            raise EmptyQuestion(EMPTY)
        given = _given(get)
        config = all_over(self.serve.question(self.manifest), given)
        # Clients of other servers send all of sampling, whatever it comes to.
        refuse_unread({name: value for name, value in given.items() if name not in SAMPLING}, config)
        return Inquiry(
            text=text,
            history=_history(get),
            images=_images(get),
            urls=get.texts("image_url_input"),
            videos=tuple(get.all("video_bytes_input")),
            clip_urls=get.texts("video_url_input"),
            allow_http=self.serve.allow_image_urls,
            config=config,
            timeout=_timeout(get, self.serve.timeout),
            stream=get.flag("stream"),
            return_importance=get.flag("return_importance"),
            return_log_probs=get.flag("return_log_probs"),
        )


@dataclass(frozen=True)
class _Getter:
    """Values of inputs that were checked."""

    tensors: Tensors

    def all(self, name: str) -> list[bytes]:
        return list(self.tensors[name][0]) if name in self.tensors else []

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(_decode(text, name) for text in self.all(name))

    def text(self, name: str) -> str:
        if name not in self.tensors:
            raise RequestError(f"{name} is missing; send the question")
        return _decode(self.all(name)[0], name)

    def number(self, name: str) -> float | None:
        """The shortest decimal of the float32: 0.29 and not 0.28999999165."""
        return float(str(self.tensors[name][0, 0])) if name in self.tensors else None

    def option(self, option: Option) -> list[object]:
        """Values as JSON has them, of an option that was given."""
        name = option.input
        if issubclass(option.item, str):
            return [_decode(text, name) for text in self.all(name)]
        return [self.number(name)] if option.item is float else self.tensors[name][0].tolist()

    def flag(self, name: str) -> bool:
        return name in self.tensors and bool(self.tensors[name][0, 0])


def _check(name: str, tensor: np.ndarray) -> None:
    """Raises RequestError for what is not as it was declared."""
    declared = DECLARED.get(name)
    if declared is None:
        raise RequestError(f"input {name} is unknown; the model's metadata lists its inputs")
    if tensor.ndim and len(tensor) != 1:
        raise RequestError(f"{name} has batch size {len(tensor)}; send one question per request")
    if tensor.dtype != DTYPES[declared.kind]:
        raise RequestError(f"{name} has numbers of type {tensor.dtype}; send {declared.kind}")
    if not _fits(tensor.shape, (1, *declared.dims)):
        raise RequestError(f"{name} has shape {list(tensor.shape)}; send {_shape(declared)}")


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    return len(shape) == len(declared) and all(want in (-1, size) for size, want in zip(shape, declared, strict=True))


def _shape(declared: Tensor) -> str:
    """In words: `[1, any, 3]`."""
    return f"[{', '.join('any' if size < 0 else str(size) for size in (1, *declared.dims))}]"


def _images(get: _Getter) -> tuple[ImageSource, ...]:
    pictures = get.tensors["image_input"][0] if "image_input" in get.tensors else ()
    if len(pictures) and 0 in np.shape(pictures):
        raise RequestError(f"image_input has shape {list(np.shape(pictures))}; a picture has at least one pixel")
    return (*(Image.fromarray(np.ascontiguousarray(picture)) for picture in pictures), *get.all("image_bytes_input"))


def _history(get: _Getter) -> tuple[Turn, ...]:
    texts = get.texts("history")
    if len(texts) % 2:
        raise RequestError(f"history has {len(texts)} texts; send question and answer in turn, an even number")
    return tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))


def _given(get: _Getter) -> Given:
    """Raises RequestError."""
    given = {}
    for option in OPTIONS:
        name = option.input
        if name not in get.tensors:
            continue
        values, bound = get.option(option), option.bound
        for value in values:
            if DECLARED[name].kind == "INT32" and bound is not None and not bound.holds(value):
                # The server cuts a larger number of a JSON request down to its last 32 bits.
                raise RequestError(f"{name} is {value} as a number of 32 bits, {bound}; choose another")
        given[option.name] = option.read(values[0] if option.length is None else values)
    return given


def _timeout(get: _Getter, default: float | None) -> float | None:
    timeout = get.number("timeout")
    if timeout is None:
        return default
    check_timeout(timeout)
    return timeout


def _decode(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{name} is not UTF-8; encode it so") from None
