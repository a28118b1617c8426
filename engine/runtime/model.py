"""One loaded model of a pair: from a question about pictures to tokens, and the engines that read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.build_flags import BuildFlag
from engine.config import PictureConfig, ServingConfig, VideoConfig
from engine.dims import Limits
from engine.errors import ManifestError, RequestError, Setting
from engine.families import Pieces, Prompt, Turn, by_name
from engine.manifest import EngineModel, Manifest
from engine.model_config import InternVitConfig, ModelConfig, QwenVitConfig, SiglipConfig, VisionConfig
from engine.parallel import SHARDED
from engine.runtime.arrays import Array, concat
from engine.runtime.clips import ClipSource, Shown, open_clip
from engine.runtime.feature_cache import FeatureCache
from engine.runtime.form import Form
from engine.runtime.grammar import Grammars
from engine.runtime.grid import Grid
from engine.runtime.images import ImageSource, open_image
from engine.runtime.language import Language, LanguageModel
from engine.runtime.loading import load, load_scoring
from engine.runtime.prefix_cache import PrefixCache
from engine.runtime.prompt import Need, PromptTokens, Rows, token_places
from engine.runtime.rope import RopeTable
from engine.runtime.tensor_parallel import Ranks
from engine.runtime.tensor_parallel_leader import ShardedLanguage, ShardedVision
from engine.runtime.tokenizer import Tokenizer
from engine.runtime.vision import Vision, VisionEncoder
from engine.target import Device

NOTHING = np.empty(0, np.int64)
DIGEST = 4
"""Numbers of 64 bits."""
CONTEXT = 8
"""Tokens at the end of a text, by which it shows how what follows is tokenized."""
BROKEN = "\ufffd"
"""What bytes that are no character are decoded to."""


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
class Media:
    """The pictures and clips of a question, cut up, pictures first, and which frames of each clip that is of.

    clip_rows: of a prompt, for each clip.
    """

    pieces: tuple[Pieces, ...]
    clips: tuple[Shown, ...] = ()
    clip_rows: tuple[Sequence[int], ...] = ()

    def picture_rows(self) -> list[int]:
        """Of a prompt, for each picture."""
        return [part.num_rows() for part in self.pieces[: len(self.pieces) - len(self.clips)]]


@dataclass(frozen=True)
class Seen:
    """A question as one model reads it: its pictures and clips cut up, its prompt, and what its answer may be.

    pieces: of `media`, in the order of the prompt. marks: int64 [S,M], as `prefix_cache` has them.
    """

    media: Media
    pieces: tuple[Pieces, ...]
    grid: Grid
    encoded: Encoded
    form: Form
    marks: np.ndarray

    def prompt(self, features: Sequence[Array], width: int, encoded: np.ndarray | None = None) -> PromptTokens:
        """features: [F,C] of each of the pieces; width: C. encoded: see PromptTokens."""
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
    prefixes: PrefixCache
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
        self.prefixes = running.prefixes
        self._rope = RopeTable(built.config.language.rope, built.config.language.head_dim)
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
        videos: Sequence[ClipSource] = (),
        video: VideoConfig = VideoConfig(),  # noqa: B008 (frozen)
        media: Media | None = None,
        timeout: float | None = None,
        schema: str | None = None,
    ) -> Seen:
        """Open and cut up pictures and clips and tokenize the prompt; runs no engine. media: of another model that cuts
        them up alike. timeout: seconds of the question. schema: of the answer, as JSON.

        Raises EngineError when prompt and answer exceed what the engine was built for.
        """
        form = Form() if schema is None else self.grammars.form(schema)
        if media is None:
            media = self._open(images, videos, max_new_tokens, picture, video, timeout)
        asked = self.config, question, media.picture_rows(), history, system, media.clip_rows
        prompt = self._family.render_prompt(*asked)
        pieces = tuple(media.pieces[number] for number in prompt.order)
        encoded = self._tokenize(prompt, pieces)
        self._check_room(len(encoded.ids), max_new_tokens, "prompt has")
        form.end_with(self.tokenizer.ids_of(encoded.stop))
        return Seen(media, pieces, Grid.of(pieces, prompt.order), encoded, form, self._marks(encoded, pieces))

    def _open(
        self,
        images: Sequence[ImageSource],
        videos: Sequence[ClipSource],
        max_new_tokens: int,
        picture: PictureConfig,
        video: VideoConfig,
        timeout: float | None,
    ) -> Media:
        cut: list[Pieces] = []
        clips: list[Shown] = []
        rows: list[Sequence[int]] = []
        for source in images:
            cut.append(self._family.cut(open_image(source, picture), self.config, len(images) == 1))
            self._check_room(count_rows(cut), max_new_tokens, "pictures alone have")

        def check(frames: int, width: int, height: int) -> None:
            rows.append(self._family.clip_rows(self.config, frames, width, height))
            what = f"{'other pictures and clips, and ' if cut else ''}{frames} frames of a clip alone have"
            self._check_room(count_rows(cut) + sum(rows[-1]), max_new_tokens, what)

        for clip in videos:
            frames, shown = open_clip(clip, self._family, video, picture, check, timeout)
            cut.append(self._family.cut_clip(frames, self.config))
            clips.append(shown)
        return Media(tuple(cut), tuple(clips), tuple(rows))

    def read_as_own(
        self, behind: Sequence[int], tokenizer: Tokenizer, tokens: Sequence[int], after: Sequence[int] = ()
    ) -> list[int]:
        """What a model with that tokenizer said behind `after`, in tokens of this one's as they would follow `behind`.

        Where the tokenizers differ it goes as text; what ends within a character, or shares a token with what is
        before it, cannot, and is nothing.
        """
        if self.tokenizer.spells_alike(tokenizer, tokens):
            return list(tokens)
        before, whole = tokenizer.decode(after), tokenizer.decode([*after, *tokens])
        if not whole.startswith(before) or whole.endswith(BROKEN):
            return []
        context = self.tokenizer.decode(behind[-CONTEXT:])
        return self.tokenizer.encode_behind(context, whole.removeprefix(before))

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
        tokens = {prompt.image_token}
        if any(part.times is not None for part in pieces):
            tokens.add(prompt.clip_token)
        positions = np.flatnonzero(np.isin(ids, [self.tokenizer.token_id(token) for token in tokens]))
        if len(positions) != (rows := count_rows(pieces)):
            found = f"{len(positions)} tokens {' and '.join(sorted(tokens))}"
            raise ManifestError(
                f"the tokenizer of the {self.role} model finds {found} in a prompt of {rows}; "
                "build the engine from another checkpoint"
            )
        places = None
        if self.config.language.rope.sections:
            places = token_places(len(ids), positions, [part.places for part in pieces])
        starts = np.cumsum([0, *(part.num_rows() for part in pieces)])
        placed = [start + part.placed() for start, part in zip(starts, pieces, strict=False)]
        visual = positions[np.concatenate([np.empty(0, np.int64), *placed])]
        question = question_rows(self.tokenizer, ids, prompt.stop)
        return Encoded(ids, visual, prompt.stop, question, places, positions)

    def _marks(self, encoded: Encoded, pieces: Sequence[Pieces]) -> np.ndarray:
        """[S,M]: token, position and what else it turns by; of a picture's row also which it is, and of which one."""
        length = len(encoded.ids)
        positions = np.arange(length) if encoded.places is None else encoded.places
        marks = np.zeros((length, 2 + DIGEST), np.int64)
        marks[:, 0] = encoded.ids
        marks[encoded.feature_positions, 1] = np.concatenate([NOTHING, *(np.arange(p.num_rows()) for p in pieces)])
        digests = [np.tile(np.frombuffer(p.digest, np.int64), (p.num_rows(), 1)) for p in pieces]
        marks[encoded.feature_positions, 2:] = np.concatenate([np.empty((0, DIGEST), np.int64), *digests])
        stretched = self._rope.stretched(np.full(length, length))
        return np.column_stack([marks, positions, stretched])

    def _check_room(self, tokens: int, max_new_tokens: int, has: str) -> None:
        """Raises RequestError."""
        if tokens + max_new_tokens > self.limits.max_tokens:
            raise RequestError(
                f"the {has} {tokens} tokens, with ",
                Setting("max_new_tokens"),
                f" {max_new_tokens} more than the engine's {self.limits.max_tokens}; "
                f"ask for less, give fewer pictures or frames, or rebuild with a larger {BuildFlag.MAX_TOKENS}",
            )


def count_rows(pieces: Sequence[Pieces]) -> int:
    """Of the prompt, that are of these pictures and clips."""
    return sum(part.num_rows() for part in pieces)


def question_rows(tokenizer: Tokenizer, ids: np.ndarray, stop: Sequence[str]) -> np.ndarray:
    """[S] -> int64 [Q]: the text between the last token that ends a turn and the special token before it."""

    def special(place: int) -> str | None:
        return tokenizer.special(int(ids[place]))

    end = next((place for place in reversed(range(len(ids))) if special(place) in stop), 0)
    start = next((place + 1 for place in reversed(range(end)) if special(place) is not None), 0)
    return np.arange(start, end)


def split_alike(ours: ModelConfig, theirs: ModelConfig) -> bool:
    """Whether both models cut pictures and clips up alike, into pieces that either of their vision encoders takes."""
    return (ours.family, ours.tiling, piece_shape(ours.vision)) == (
        theirs.family,
        theirs.tiling,
        piece_shape(theirs.vision),
    )


def piece_shape(vision: VisionConfig) -> tuple[int | None, ...]:
    """What of a vision encoder decides how pictures and clips are cut up."""
    match vision:
        case InternVitConfig():
            return vision.image_size, vision.grid()
        case SiglipConfig():
            return vision.image_size, vision.grid()
        case QwenVitConfig():
            return vision.patch_size, vision.frames, vision.merged, vision.steps_per_second
