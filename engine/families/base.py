"""What every model family provides, and the values that pass between a family and the rest of the engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from engine.model_config import ModelConfig


@dataclass(frozen=True)
class Source:
    """Where a parameter of our graphs comes from: a checkpoint tensor, or some of its rows.

    rows: half-open ranges of the first dimension, concatenated in order; None is the whole tensor.
    """

    tensor: str
    rows: tuple[tuple[int, int], ...] | None = None


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
class Prompt:
    """A rendered prompt: `text` holds one image token per visual token, in order; `stop` ends the answer."""

    text: str
    image_token: str
    stop: tuple[str, ...]


class Family(Protocol):
    """ALL that differs between model families; one module each, with these functions."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a parsed `config.json` is of this family."""

    def read_config(self, directory: Path, config: Mapping[str, Any]) -> ModelConfig:
        """A published checkpoint's configuration in our terms. Raises CheckpointError."""

    def language_sources(self, config: ModelConfig, directory: Path) -> dict[str, Source]:
        """Our language parameter names (those of Llama in transformers) -> where the checkpoint keeps them."""

    def vision_sources(self, config: ModelConfig) -> dict[str, Source]:
        """Our vision parameter names -> where the checkpoint keeps them."""

    def split_tiles(self, image: Image.Image, config: ModelConfig) -> Tiles:
        """A decoded picture -> tiles, as the published preprocessing does."""

    def render_prompt(
        self, config: ModelConfig, question: str, tiles_per_image: Sequence[int], history: Sequence[Turn] = ()
    ) -> Prompt:
        """The published template around a question and what was said before it; `<image>` marks where a picture goes,
        else pictures go first. Raises RequestError.
        """

    def token_boxes(self, config: ModelConfig, boxes: np.ndarray) -> np.ndarray:
        """[N,4] tile boxes -> [V,4]: the box of every visual token in its picture, in prompt order."""
