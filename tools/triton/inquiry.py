"""A request's tensors as a question with its settings, and back as tensors for the model that is called next."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from engine.runtime.generate import IsCancelled, OnText
from PIL import Image

from engine.config import ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig
from engine.errors import RequestError
from engine.families import Turn
from engine.manifest import Manifest
from engine.runtime.image_url import fetch
from engine.runtime.images import ImageSource
from engine.runtime.question import Question
from tools.triton.serve_config import ServeConfig, with_pruning, with_threshold

CANCEL_TOKEN = "cancel_token"
"""Request parameter by which `sgl` names the cancellation of a question that it passes on."""

Tensors = Mapping[str, np.ndarray]
"""By name, each with its batch dimension of 1."""


@dataclass(frozen=True)
class Inquiry:
    """A question as it arrived; what it does not say is as the server was configured."""

    text: str
    history: tuple[Turn, ...]
    images: tuple[ImageSource, ...]
    sampling: SamplingConfig
    guidance: GuidanceConfig
    exit: ExitConfig
    importance: np.ndarray | None
    stream: bool
    return_importance: bool
    return_log_probs: bool
    cancel_token: str | None

    def question(self, on_text: OnText | None = None, is_cancelled: IsCancelled | None = None) -> Question:
        settings = self.guidance, self.exit, self.sampling
        return Question(self.images, self.text, *settings, on_text, is_cancelled, self.history)

    def wants_importance(self) -> bool:
        """Whether the small model's attention guides the large one."""
        return self.guidance.enabled and self.guidance.source is GuidanceSource.SMALL and bool(self.images)

    def small_inputs(self) -> dict[str, np.ndarray]:
        """What `small_vlm` is asked. Always the same inputs: the server batches only requests with equal ones."""
        inputs = self._common()
        if self.exit.enabled:
            inputs["exit_threshold"] = _one(self.exit.exit_threshold, np.float32)
        return inputs

    def large_inputs(self, importance: np.ndarray | None) -> dict[str, np.ndarray]:
        """What `large_vlm` is asked; without importance it keeps everything."""
        inputs = self._common() | {"stream": _one(self.stream, bool)}
        if importance is not None:
            inputs["importance"] = importance[None]
        if self.guidance.enabled:
            inputs["retention_ratio"] = _one(self.guidance.retention_ratio, np.float32)
            inputs["prune_layer"] = _one(self.guidance.prune_layer, np.int32)
        return inputs

    def _common(self) -> dict[str, np.ndarray]:
        sampling = self.sampling
        return {
            "text_input": _texts([self.text]),
            "history": _texts([text for turn in self.history for text in (turn.question, turn.answer)]),
            "image_bytes_input": _texts([_encoded(image) for image in self.images]),
            "max_tokens": _one(sampling.max_new_tokens, np.int32),
            "temperature": _one(sampling.temperature, np.float32),
            "top_p": _one(sampling.top_p, np.float32),
            "top_k": _one(sampling.top_k, np.int32),
            "seed": _one(sampling.seed, np.uint64),
            "stop_words": _texts(sampling.stop),
            "return_log_probs": _one(self.return_log_probs, bool),
        }


@dataclass(frozen=True)
class Reader:
    """Reads the requests of one served model."""

    serve: ServeConfig
    manifest: Manifest

    def read(self, tensors: Tensors, parameters: str) -> Inquiry:
        """parameters: the request's own, as JSON. Raises EngineError."""
        options: dict[str, Any] = json.loads(parameters or "{}")
        for name in options.keys() - {CANCEL_TOKEN}:
            raise RequestError(f"option {name} is unknown; the model's metadata lists its inputs")
        for name, tensor in tensors.items():
            if len(tensor) != 1:
                raise RequestError(f"{name} has batch size {len(tensor)}; send one question per request")
        get = _Getter(tensors)
        large = self.manifest.models["large"]
        guidance = with_pruning(
            self.serve.guidance(self.manifest.guidance), get.number("retention_ratio"), get.whole("prune_layer")
        )
        return Inquiry(
            text=get.text("text_input"),
            history=_history(get),
            images=self._images(get),
            sampling=_sampling(get, self.serve.max_tokens),
            guidance=guidance.resolve(large.config.language.num_layers, large.prune_layers)
            if guidance.enabled
            else guidance,
            exit=with_threshold(self.serve.exit(self.manifest.exit), get.number("exit_threshold")),
            importance=tensors["importance"][0] if "importance" in tensors else None,
            stream=get.flag("stream"),
            return_importance=get.flag("return_importance"),
            return_log_probs=get.flag("return_log_probs"),
            cancel_token=options.get(CANCEL_TOKEN),
        )

    def _images(self, get: "_Getter") -> tuple[ImageSource, ...]:
        pictures = get.tensors["image_input"][0] if "image_input" in get.tensors else ()
        if len(pictures) and 0 in np.shape(pictures):
            raise RequestError(f"image_input has shape {list(np.shape(pictures))}; a picture has at least one pixel")
        urls = get.all("image_url_input")
        return (
            *(Image.fromarray(np.ascontiguousarray(picture)) for picture in pictures),
            *get.all("image_bytes_input"),
            *(fetch(_decode(url, "image_url_input"), self.serve.allow_image_urls) for url in urls),
        )


@dataclass(frozen=True)
class _Getter:
    """Values of the optional inputs."""

    tensors: Tensors

    def all(self, name: str) -> list[bytes]:
        return list(self.tensors[name][0]) if name in self.tensors else []

    def text(self, name: str) -> str:
        return _decode(self.all(name)[0], name)

    def number(self, name: str) -> float | None:
        """The shortest decimal of the float32: 0.29 and not 0.28999999165."""
        return float(str(self.tensors[name][0, 0])) if name in self.tensors else None

    def whole(self, name: str) -> int | None:
        return int(self.tensors[name][0, 0]) if name in self.tensors else None

    def flag(self, name: str) -> bool:
        return name in self.tensors and bool(self.tensors[name][0, 0])


def _history(get: _Getter) -> tuple[Turn, ...]:
    texts = [_decode(text, "history") for text in get.all("history")]
    if len(texts) % 2:
        raise RequestError(f"history has {len(texts)} texts; send question and answer in turn, an even number")
    return tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))


def _sampling(get: _Getter, max_tokens: int) -> SamplingConfig:
    wanted = {
        "temperature": get.number("temperature"),
        "top_p": get.number("top_p"),
        "top_k": get.whole("top_k"),
        "seed": get.whole("seed"),
    }
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    limit = get.whole("max_tokens")
    stop = tuple(_decode(word, "stop_words") for word in get.all("stop_words"))
    return SamplingConfig(max_new_tokens=max_tokens if limit is None else limit, stop=stop, **given)


def _decode(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{name} is not UTF-8; encode it so") from None


def _encoded(image: ImageSource) -> bytes:
    """As the bytes of a file; pixels are not compressed."""
    if isinstance(image, bytes):
        return image
    assert isinstance(image, Image.Image)
    file = io.BytesIO()
    image.save(file, "ppm")
    return file.getvalue()


def _one(value: Any, kind: Any) -> np.ndarray:
    return np.array([[value]], kind)


def _texts(values: Any) -> np.ndarray:
    """[1,N] of bytes objects."""
    array = np.empty((1, len(values)), object)
    array[0] = [value.encode() if isinstance(value, str) else value for value in values]
    return array
