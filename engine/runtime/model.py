"""One loaded model of a pair: from a question about pictures to tokens and features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from engine.dims import Limits
from engine.errors import RequestError
from engine.families import Tiles, Turn, by_name
from engine.manifest import EngineModel, Manifest
from engine.model_config import ModelConfig
from engine.parallel import SHARDED
from engine.runtime.arrays import Array, concat
from engine.runtime.feature_cache import FeatureCache
from engine.runtime.language import Language, LanguageModel
from engine.runtime.loading import load, load_scoring
from engine.runtime.prompt import PromptTokens, Request, segment_rows
from engine.runtime.tensor_parallel import Ranks, ShardedLanguage, ShardedVision
from engine.runtime.tensor_parallel_group import Group
from engine.runtime.tokenizer import Tokenizer
from engine.runtime.vision import Vision, VisionEncoder
from engine.target import Device


@dataclass(frozen=True)
class Visuals:
    """The pictures of one question, cut up for one model.

    tiles: per picture. boxes: float32 [V,4], where each visual token lies in its picture; images: [V], which picture.
    """

    tiles: tuple[Tiles, ...]
    boxes: np.ndarray
    images: np.ndarray

    def same_grid(self, other: "Visuals") -> bool:
        """Whether visual token i is the same place for both models."""
        return np.array_equal(self.boxes, other.boxes) and np.array_equal(self.images, other.images)


@dataclass(frozen=True)
class Encoded:
    """A tokenized question: ids [S], where the visual tokens are [V], and the texts that end the answer."""

    ids: np.ndarray
    visual_positions: np.ndarray
    stop: tuple[str, ...]

    def prompt(self, features: Array) -> PromptTokens:
        return PromptTokens(self.ids, self.visual_positions, features)


def split(config: ModelConfig, images: Sequence[Image.Image]) -> Visuals:
    """Cut pictures up as a model wants them."""
    family = by_name(config.family)
    tiles = tuple(family.split_tiles(image, config) for image in images)
    boxes = [family.token_boxes(config, part.boxes) for part in tiles]
    owner = [np.full(len(part), index) for index, part in enumerate(boxes)]
    return Visuals(
        tiles,
        np.concatenate([np.empty((0, 4), np.float32), *boxes]),
        np.concatenate([np.empty(0, np.int64), *owner]),
    )


def split_alike(ours: ModelConfig, theirs: ModelConfig) -> bool:
    """Whether both models cut every picture up alike."""
    return (ours.family, ours.tiling, ours.vision.image_size, ours.vision.grid()) == (
        theirs.family,
        theirs.tiling,
        theirs.vision.image_size,
        theirs.vision.grid(),
    )


class VisionLanguageModel:
    """Tokenizer, vision encoder and language model of one side of a pair."""

    def __init__(
        self,
        built: EngineModel,
        limits: Limits,
        tokenizer: Tokenizer,
        vision: Vision,
        language: Language,
        feature_cache: int,
    ) -> None:
        """feature_cache: bytes of visual features that are kept."""
        self.config, self.tokenizer, self.vision, self.language = built.config, tokenizer, vision, language
        self._family = by_name(built.config.family)
        self._prune_layers, self._limits = built.prune_layers, limits
        self._features = FeatureCache(vision, built.config.vision.tokens_per_tile(), feature_cache)

    @classmethod
    def load(
        cls,
        directory: Path,
        manifest: Manifest,
        role: str,
        threads: int,
        device: Device,
        ranks: Ranks | None,
        feature_cache: int,
    ) -> "VisionLanguageModel":
        """`role` is small or large; `ranks` run a large model built for several, None starts them.

        Raises EngineError.
        """
        model, limits, root = manifest.models[role], manifest.limits(role), directory / role
        vision: Vision
        language: Language
        if role == SHARDED and manifest.world_size > 1:
            ranks = Group() if ranks is None else ranks
            ranks.open(directory, manifest, threads)
            vision, language = ShardedVision(ranks), ShardedLanguage(ranks)
        else:
            config = model.config
            rank = root / "rank0"
            engine = load(manifest.target, rank / "language", threads, device)
            scoring = load_scoring(model.scoring, manifest.target, rank, threads, device)
            vision = VisionEncoder(load(manifest.target, root / "vision", threads, device), config.vision, limits)
            language = LanguageModel(
                engine, config.language, model.prune_layers, model.scores, limits=limits, scoring=scoring
            )
        return cls(model, limits, Tokenizer.load(root / "tokenizer.json"), vision, language, feature_cache)

    def split(self, images: Sequence[Image.Image]) -> Visuals:
        """Cut pictures up as this model wants them."""
        return split(self.config, images)

    def tokenize(self, question: str, visuals: Visuals, max_new_tokens: int, history: Sequence[Turn] = ()) -> Encoded:
        """The rendered prompt. Raises RequestError when prompt and answer exceed what the engine was built for."""
        tiles = [len(part.boxes) for part in visuals.tiles]
        prompt = self._family.render_prompt(self.config, question, tiles, history)
        ids = np.array(self.tokenizer.encode_prompt(prompt), np.int64)
        if len(ids) + max_new_tokens > self._limits.max_tokens:
            raise RequestError(
                f"the prompt has {len(ids)} tokens, with max_new_tokens {max_new_tokens} more than the engine's "
                f"{self._limits.max_tokens}; ask for less, give fewer pictures, or rebuild with a larger --max-tokens"
            )
        positions = np.flatnonzero(ids == self.tokenizer.token_id(prompt.image_token))
        assert len(positions) == len(visuals.boxes), "a family's prompt holds one image token per visual token"
        return Encoded(ids, positions, prompt.stop)

    def check_kept(self, request: Request, max_new_tokens: int) -> None:
        """Raises RequestError when what survives pruning and the answer exceed what the engine was built for."""
        for segment, rows in enumerate(segment_rows(request, self._prune_layers)):
            most = self._limits.segment_tokens(segment)
            if len(rows) + max_new_tokens > most:
                raise RequestError(
                    f"after its first prune point the prompt keeps {len(rows)} tokens, with max_new_tokens "
                    f"{max_new_tokens} more than the engine's {most}; ask for less, lower retention_ratio, or rebuild "
                    "with a larger --max-kept-tokens"
                )

    def encode(self, visuals: Sequence[Visuals]) -> list[Array]:
        """Pictures of several questions -> [V,C] each."""
        features = iter(self._features.encode([tiles.pixel_values for visual in visuals for tiles in visual.tiles]))
        nothing = np.empty((0, self.config.vision.output_size), np.float32)
        of_each = [[next(features) for _ in visual.tiles] for visual in visuals]
        return [parts[0] if len(parts) == 1 else concat(parts or [nothing]) for parts in of_each]
