"""What every model family provides, and the values that pass between a family and the rest of the engine."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from engine.model_config import ModelConfig


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
class Tiles:
    """One picture, cut up.

    pixel_values: float32 [N,3,S,S], normalised.
    boxes: float32 [N,4], x0 y0 x1 y1 of each tile in the picture, whose sides are 1; a thumbnail is (0,0,1,1).
    """

    pixel_values: np.ndarray
    boxes: np.ndarray


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
    """A rendered prompt: its text holds one image token per visual token, in order; `stop` ends the answer."""

    parts: tuple[Part, ...]
    image_token: str
    stop: tuple[str, ...]

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
        """Our vision parameter names (those of `internvl2`) -> where a checkpoint of `tensors` keeps them."""

    def split_tiles(self, image: Image.Image, config: ModelConfig) -> Tiles:
        """A decoded picture -> tiles, as the published preprocessing does."""

    def render_prompt(
        self,
        config: ModelConfig,
        question: str,
        tiles_per_image: Sequence[int],
        history: Sequence[Turn] = (),
        system: str | None = None,
    ) -> Prompt:
        """The published template around a question and what was said before it; `<image>` marks where a picture goes,
        else pictures go first. system: the system message instead of the model's own. Raises RequestError.
        """

    def token_boxes(self, config: ModelConfig, boxes: np.ndarray) -> np.ndarray:
        """[N,4] tile boxes -> [V,4]: the box of every visual token in its picture, in prompt order."""
