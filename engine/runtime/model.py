"""One loaded model of a pair: from a question about pictures to tokens, and the engines that read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.build_flags import BuildFlag
from engine.config import PictureConfig, ServingConfig
from engine.dims import Limits
from engine.errors import RequestError, Setting
from engine.families import Pieces, Prompt, Turn, by_name
from engine.manifest import EngineModel, Manifest
from engine.model_config import InternVitConfig, ModelConfig, QwenVitConfig, SiglipConfig, VisionConfig
from engine.parallel import SHARDED
from engine.runtime.arrays import Array, concat
from engine.runtime.feature_cache import FeatureCache
from engine.runtime.form import Form
from engine.runtime.grammar import Grammars
from engine.runtime.images import ImageSource, open_image
from engine.runtime.language import Language, LanguageModel
from engine.runtime.loading import load, load_scoring
from engine.runtime.prompt import Need, PromptTokens, Rows, token_places
from engine.runtime.tensor_parallel import Ranks, ShardedLanguage, ShardedVision
from engine.runtime.tokenizer import Tokenizer
from engine.runtime.vision import Vision, VisionEncoder
from engine.target import Device

CONTEXT = 8
"""Tokens at the end of a prompt, by which it shows how what follows is tokenized."""


@dataclass(frozen=True)
class Grid:
    """The visual tokens of one question, in one model's order.

    boxes: float32 [V,4], where each lies in its picture; images: [V], which picture.
    """

    boxes: np.ndarray
    images: np.ndarray

    def same(self, other: "Grid") -> bool:
        """Whether visual token i is the same place for both models."""
        return np.array_equal(self.boxes, other.boxes) and np.array_equal(self.images, other.images)


@dataclass(frozen=True)
class Encoded:
    """A tokenized question: ids [S], where the visual tokens are [V], the texts that end the answer, and which tokens
    are the question itself. places, feature_positions: as in `PromptTokens`.
    """

    ids: np.ndarray
    visual_positions: np.ndarray
    stop: tuple[str, ...]
    question: np.ndarray
    places: np.ndarray | None
    feature_positions: np.ndarray


@dataclass(frozen=True)
class Seen:
    """A question as one model reads it: its pictures cut up, its prompt, and what its answer may be."""

    pieces: tuple[Pieces, ...]
    grid: Grid
    encoded: Encoded
    form: Form

    def prompt(self, features: Sequence[Array], width: int, encoded: np.ndarray | None = None) -> PromptTokens:
        """features: [F,C] of each picture; width: C. encoded: see PromptTokens."""
        parts = features or [np.empty((0, width), np.float32)]
        whole = parts[0] if len(parts) == 1 else concat(parts)
        tokens = self.encoded
        return PromptTokens(
            tokens.ids,
            tokens.visual_positions,
            whole,
            encoded=encoded,
            question=tokens.question,
            places=tokens.places,
            feature_positions=tokens.feature_positions if encoded is None else None,
        )


@dataclass(frozen=True)
class Running:
    """Where and how the models of a process run. threads: of the whole process. small_gpu: see `loading.small_gpu`."""

    threads: int
    device: Device
    serving: ServingConfig
    small_gpu: int | None = None


class VisionLanguageModel:
    """Tokenizer, vision encoder and language model of one side of a pair."""

    def __init__(
        self,
        role: str,
        built: EngineModel,
        limits: Limits,
        tokenizer: Tokenizer,
        vision: Vision,
        language: Language,
        running: Running,
    ) -> None:
        self.role, self.config, self.tokenizer = role, built.config, tokenizer
        self.vision, self.language = vision, language
        self.limits, self.prefill_chunk = limits, running.serving.prefill_chunk
        self.grammars = Grammars(tokenizer, built.config.language.vocab_size)
        self.features = FeatureCache(running.serving.feature_cache)
        self._family, self._prune_layers = by_name(built.config.family), built.prune_layers

    @classmethod
    def load(
        cls, directory: Path, manifest: Manifest, role: str, running: Running, ranks: Ranks | None
    ) -> "VisionLanguageModel":
        """`role` is small or large; `ranks` run a large model built for several. Raises EngineError."""
        model, limits, root = manifest.models[role], manifest.limits(role), directory / role
        places = running.serving.max_running
        places = min(places, limits.max_batch) if limits.planned else places
        vision: Vision
        language: Language
        if role == SHARDED and manifest.world_size > 1:
            assert ranks is not None
            ranks.open(directory, manifest, running.threads, places)
            vision, language = (
                ShardedVision(ranks, model.config.vision, limits, manifest.world_size),
                ShardedLanguage(ranks, manifest, places),
            )
        else:
            config, rank = model.config, root / "rank0"
            where = running.threads, running.device, None if role == SHARDED else running.small_gpu
            engine = load(manifest.target, rank / "language", *where)
            scoring = load_scoring(model.scoring, manifest.target, rank, *where)
            vision = VisionEncoder(load(manifest.target, root / "vision", *where), config.vision, limits)
            language = LanguageModel(
                engine, config.language, model.prune_layers, model.scores, limits=limits, scoring=scoring, places=places
            )
        return cls(role, model, limits, Tokenizer.load(root / "tokenizer.json"), vision, language, running)

    def look(
        self,
        images: Sequence[ImageSource],
        question: str,
        max_new_tokens: int,
        history: Sequence[Turn] = (),
        system: str | None = None,
        picture: PictureConfig = PictureConfig(),  # noqa: B008 (frozen)
        pieces: Sequence[Pieces] | None = None,
        schema: str | None = None,
    ) -> Seen:
        """Open and cut up the pictures and tokenize the prompt; runs no engine. pieces: of another model that cuts
        pictures up alike. schema: of the answer, as JSON.

        Raises EngineError when prompt and answer exceed what the engine was built for.
        """
        form = Form() if schema is None else self.grammars.form(schema)
        cut = list(pieces or ())
        if pieces is None:
            for source in images:
                cut.append(self._family.cut(open_image(source, picture), self.config, len(images) == 1))
                self._check_room(count_rows(cut), max_new_tokens, "pictures alone have")
        rows = [part.num_rows() for part in cut]
        encoded = self._tokenize(self._family.render_prompt(self.config, question, rows, history, system), cut)
        self._check_room(len(encoded.ids), max_new_tokens, "prompt has")
        form.end_with(self.tokenizer.ids_of(encoded.stop))
        return Seen(tuple(cut), grid_of(cut), encoded, form)

    def draft(self, seen: Seen, tokenizer: Tokenizer, said: Sequence[int]) -> np.ndarray:
        """int64 [D]: what a model with that tokenizer said, in tokens of this one's as they would follow the prompt."""
        if self.tokenizer.spells_alike(tokenizer, said):
            return np.array(said, np.int64)
        before = self.tokenizer.decode(seen.encoded.ids[-CONTEXT:].tolist())
        return np.array(self.tokenizer.encode_behind(before, tokenizer.decode(said)), np.int64)

    def need(self, rows: Rows, max_new_tokens: int, visual_columns: np.ndarray | None = None) -> Need:
        """Of a slot for a prompt and its answer. visual_columns: of a prompt whose visual tokens are scored.

        Raises RequestError when what survives pruning and the answer exceed what the engine was built for.
        """
        lengths = [len(kept) + max_new_tokens for kept in rows.kept(self._prune_layers)]
        for segment, length in enumerate(lengths):
            most = self.limits.segment_tokens(segment)
            if length > most:
                raise RequestError(
                    f"after its first prune point the prompt keeps {length - max_new_tokens} tokens, with ",
                    Setting("max_new_tokens"),
                    f" {max_new_tokens} more than the engine's {most}; ask for less, lower ",
                    Setting("retention_ratio"),
                    f", or rebuild with a larger {BuildFlag.MAX_KEPT_TOKENS}",
                )
        return Need(tuple(lengths), visual_columns)

    def _tokenize(self, prompt: Prompt, pieces: Sequence[Pieces]) -> Encoded:
        ids = np.array(self.tokenizer.encode_prompt(prompt), np.int64)
        positions = np.flatnonzero(ids == self.tokenizer.token_id(prompt.image_token))
        assert len(positions) == count_rows(pieces), "a family's prompt holds one image token per row of a picture"
        places = None
        if self.config.language.rope.sections:
            places = token_places(len(ids), positions, [part.places for part in pieces])
        starts = np.cumsum([0, *(part.num_rows() for part in pieces)])
        placed = [start + part.placed() for start, part in zip(starts, pieces, strict=False)]
        visual = positions[np.concatenate([np.empty(0, np.int64), *placed])]
        question = question_rows(self.tokenizer, ids, prompt.stop)
        return Encoded(ids, visual, prompt.stop, question, places, positions)

    def _check_room(self, tokens: int, max_new_tokens: int, has: str) -> None:
        """Raises RequestError."""
        if tokens + max_new_tokens > self.limits.max_tokens:
            raise RequestError(
                f"the {has} {tokens} tokens, with ",
                Setting("max_new_tokens"),
                f" {max_new_tokens} more than the engine's {self.limits.max_tokens}; "
                f"ask for less, give fewer pictures, or rebuild with a larger {BuildFlag.MAX_TOKENS}",
            )


def grid_of(pieces: Sequence[Pieces]) -> Grid:
    """Of all pictures of a question."""
    owner = [np.full(len(part.boxes), index) for index, part in enumerate(pieces)]
    return Grid(
        np.concatenate([np.empty((0, 4), np.float32), *(part.boxes for part in pieces)]),
        np.concatenate([np.empty(0, np.int64), *owner]),
    )


def count_rows(pieces: Sequence[Pieces]) -> int:
    """Of the prompt, that are of these pictures."""
    return sum(part.num_rows() for part in pieces)


def question_rows(tokenizer: Tokenizer, ids: np.ndarray, stop: Sequence[str]) -> np.ndarray:
    """[S] -> int64 [Q]: the text between the last token that ends a turn and the special token before it."""

    def special(place: int) -> str | None:
        return tokenizer.special(int(ids[place]))

    end = next((place for place in reversed(range(len(ids))) if special(place) in stop), 0)
    start = next((place + 1 for place in reversed(range(end)) if special(place) is not None), 0)
    return np.arange(start, end)


def split_alike(ours: ModelConfig, theirs: ModelConfig) -> bool:
    """Whether both models cut every picture up alike, into pieces that either of their vision encoders takes."""
    return (ours.family, ours.tiling, piece_shape(ours.vision)) == (
        theirs.family,
        theirs.tiling,
        piece_shape(theirs.vision),
    )


def piece_shape(vision: VisionConfig) -> tuple[int, ...]:
    """What of a vision encoder decides how pictures are cut up."""
    match vision:
        case InternVitConfig():
            return vision.image_size, vision.grid()
        case SiglipConfig():
            return vision.image_size, vision.grid()
        case QwenVitConfig():
            return vision.patch_size, vision.frames, vision.merged
