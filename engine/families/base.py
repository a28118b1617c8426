"""What every model family provides, and the values that pass between a family and the rest of the engine."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from engine.config import VideoConfig
from engine.model_config import ModelConfig
from engine.video.facts import ClipFacts


@dataclass(frozen=True)
class Source:
    """Where a parameter of our graphs comes from: a checkpoint tensor, some of its rows, or several tensors.

    rows: half-open ranges of the first dimension, concatenated in order; None is the whole tensor.
    joined: whole tensors of the same shape whose rows follow those of `tensor`, in order.
    copies: tensors that the published code replaces by `tensor`; a build refuses those that differ.
    """

    tensor: str
    rows: tuple[tuple[int, int], ...] | None = None
    joined: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()

    def tensors(self) -> tuple[str, ...]:
        """All that are read."""
        return (self.tensor, *self.joined)


@dataclass(frozen=True)
class Packing:
    """How the F rows that a model reads of a picture come of those that its vision encoder makes of all pieces.

    taps: int64 [F,K], the rows that are added up, and weights: float32 [F,K], how much each counts.
    placed: int64 [V], which of the F show a place of the picture; the others only end its lines.
    """

    taps: np.ndarray
    weights: np.ndarray
    placed: np.ndarray


@dataclass(frozen=True)
class Pieces:
    """One picture, or one clip, as a model takes it.

    pixels: float32 [N,...], what the vision encoder makes visual tokens of, N pieces of one shape (`engine.towers`).
    boxes: float32 [V,4], x0 y0 x1 y1 of each visual token in the picture, whose sides are 1, in prompt order.
    places: int64 [V,3], time, row and column of each, from 0, for a model whose positions have them.
    packing: None where the model reads what the vision encoder makes, as it is.
    times: float64 [V,2], of a clip from when to when each is, where the whole clip lasts 1; None: of a still picture.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    places: np.ndarray | None = None
    packing: Packing | None = None
    times: np.ndarray | None = None

    @cached_property
    def digest(self) -> bytes:
        """As `digest_of`."""
        return digest_of(self.pixels, self.packing, self.times)

    def num_rows(self) -> int:
        """Rows of the prompt."""
        return len(self.boxes) if self.packing is None else len(self.packing.taps)

    def placed(self) -> np.ndarray:
        """int64 [V]: which of these rows are visual tokens: the others are never pruned, and never count as kept."""
        return np.arange(len(self.boxes)) if self.packing is None else self.packing.placed


def digest_of(pixels: np.ndarray, packing: Packing | None = None, times: np.ndarray | None = None) -> bytes:
    """float32 [N,...], `Pieces`' own -> what equal pictures, and equal clips, have in common: values, kinds and shapes
    of all, as others may have the same values."""
    packed = () if packing is None else (packing.taps, packing.weights, packing.placed)
    digest = hashlib.sha256()
    for array in (pixels, *packed, *(() if times is None else (times,))):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


MOMENTS = 1 << 20
"""Of a clip: frames that are closer to each other are seen at once."""


@dataclass(frozen=True)
class Frames:
    """What a model is shown of a clip.

    pictures: decoded, all of one size. seconds: when each is seen, ascending. length: seconds of the whole clip. rate:
    of these frames, how many a second, as the model is told.
    """

    pictures: tuple[Image.Image, ...]
    seconds: tuple[float, ...]
    length: float
    rate: float

    def spans(self) -> np.ndarray:
        """float64 [n,2]: the part of a clip of length 1 that each stands for, up to half way to the next; frames of one
        moment share theirs.
        """
        start = min(0.0, self.seconds[0])
        length = max(self.length, self.seconds[-1]) - start
        ticks = np.rint((np.array(self.seconds) - start) * (MOMENTS / length if length > 0 else 0))
        moments, which, count = np.unique(ticks / MOMENTS, return_inverse=True, return_counts=True)
        edges = np.array([0, *(moments[1:] + moments[:-1]) / 2, 1])
        share = (np.diff(edges) / count)[which]
        begins = edges[which] + share * (np.arange(len(which)) - (np.cumsum(count) - count)[which])
        return np.stack([begins, begins + share], axis=1)


@dataclass(frozen=True)
class Turn:
    """A question of the same conversation that was asked before, and what was answered."""

    question: str
    answer: str


@dataclass(frozen=True)
class Part:
    """A piece of a prompt. is_said: a model said it, so what spells a control token there is ordinary text."""

    text: str
    is_said: bool = False


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: its text holds one image token per row of a picture, one clip token per row of a clip; `stop`
    ends the answer.

    order: the pictures and clips as they follow each other in it, numbered pictures first.
    """

    parts: tuple[Part, ...]
    image_token: str
    stop: tuple[str, ...]
    clip_token: str = ""
    order: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


class Family(Protocol):
    """ALL that differs between model families; one module each, with these functions."""

    __name__: str
    """Of the module."""
    ARCHITECTURE: str
    """What the `config.json` of its checkpoints names."""

    def read_config(self, directory: Path, config: Mapping[str, Any]) -> ModelConfig:
        """A published checkpoint's configuration in our terms. Raises CheckpointError."""

    def end_ids(self, directory: Path) -> Sequence[int]:
        """Tokens at which the published code ends an answer, by the checkpoint's files. Raises CheckpointError."""

    def language_sources(self, config: ModelConfig, tensors: Collection[str]) -> dict[str, Source]:
        """Our language parameter names (Llama's in transformers) -> where a checkpoint of `tensors` keeps them."""

    def vision_sources(self, config: ModelConfig, tensors: Collection[str]) -> dict[str, Source]:
        """Our vision parameter names (those of the tower) -> where a checkpoint of `tensors` keeps them."""

    def cut(self, image: Image.Image, config: ModelConfig, is_alone: bool = True) -> Pieces:
        """A decoded picture as the published preprocessing cuts it up. is_alone: whether it is the only one of its
        question. Raises ImageError.
        """

    def choose_frames(self, facts: ClipFacts, options: VideoConfig) -> Sequence[int]:
        """Which frames of a clip the published code looks at, ascending; one may be there more than once."""

    def clip_rows(self, config: ModelConfig, frames: int, width: int, height: int) -> Sequence[int]:
        """Rows of a prompt that are of a clip, of which so many frames of so many pixels are shown, in the parts that
        the prompt tells apart."""

    def cut_clip(self, frames: Frames, config: ModelConfig) -> Pieces:
        """A clip's frames as the published preprocessing cuts them up. Raises ImageError."""

    def render_prompt(
        self,
        config: ModelConfig,
        question: str,
        visual_tokens: Sequence[int],
        history: Sequence[Turn] = (),
        system: str | None = None,
        clips: Sequence[Sequence[int]] = (),
    ) -> Prompt:
        """The published template around a question and what was said before it; `<image>` marks where a picture goes
        and `<video>` where a clip goes, else pictures go first, then clips. visual_tokens: rows of each picture. clips:
        rows of each clip, as `clip_rows` has them. system: the system message instead of the model's own. Raises
        RequestError.
        """
