"""What is asked, and what each answer is timed by."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from numbers import Real
from typing import Any

from engine.build_flags import BuildFlag
from engine.config import ExitConfig, GuidanceConfig, GuidanceSource, PictureConfig, SamplingConfig, VideoConfig
from engine.errors import RequestError, Setting
from engine.families import Turn
from engine.manifest import Manifest
from engine.runtime.clips import ClipSource
from engine.runtime.images import ImageSource

OnText = Callable[[str], None]
FIELDS: tuple[tuple[str, Any, str], ...] = (
    ("images", tuple | list, "a tuple of pictures"),
    ("text", str, "a text"),
    ("guidance", GuidanceConfig | None, "a GuidanceConfig, or none"),
    ("exit", ExitConfig | None, "an ExitConfig, or none"),
    ("sampling", SamplingConfig | None, "a SamplingConfig, or none"),
    ("on_text", Callable | None, "a function of a text, or none"),
    ("history", tuple | list, "a tuple of turns"),
    ("system", str | None, "a text, or none"),
    ("timeout", Real | None, "seconds, or none"),
    ("picture", PictureConfig, "a PictureConfig"),
    ("videos", tuple | list, "a tuple of clips"),
    ("video", VideoConfig, "a VideoConfig"),
)
"""Of a question: name, type, what is one in words."""
MOST_CHARACTERS = 32
"""Of a token, on average over a prompt: language has about four, indented code twice as many. A text of millions takes
minutes and gigabytes to tokenize, and would only then be too long."""


@dataclass(frozen=True)
class Question:
    """One request. None stands for the engine's defaults.

    on_text receives the answer piece by piece, in the thread that waits for the answer. history: what was asked and
    answered before, about the same pictures. system: the system message instead of the models' own. timeout: seconds
    after which it ends in an error. picture: how its files become colours. videos: clips, and video: which frames of
    them are shown. `<image>` and `<video>` in the text say where pictures and clips go, else they go first.
    """

    images: tuple[ImageSource, ...]
    text: str
    guidance: GuidanceConfig | None = None
    exit: ExitConfig | None = None
    sampling: SamplingConfig | None = None
    on_text: OnText | None = None
    history: tuple[Turn, ...] = ()
    system: str | None = None
    timeout: float | None = None
    picture: PictureConfig = field(default_factory=PictureConfig)
    videos: tuple[ClipSource, ...] = ()
    video: VideoConfig = field(default_factory=VideoConfig)

    def __post_init__(self) -> None:
        for name, kind, given in FIELDS:
            if not isinstance(getattr(self, name), kind):
                raise RequestError(
                    f"{name} of a question cannot be a {type(getattr(self, name)).__name__}; give {given}"
                )
        for turn in self.history:
            if not isinstance(turn, Turn):
                raise RequestError(f"history of a question cannot hold a {type(turn).__name__}; give turns")
            if not (isinstance(turn.question, str) and isinstance(turn.answer, str)):
                raise RequestError("a turn of the history holds something other than texts; give question and answer")
        # A list is its owner's, who may go on with it.
        object.__setattr__(self, "images", tuple(self.images))
        object.__setattr__(self, "videos", tuple(self.videos))
        object.__setattr__(self, "history", tuple(self.history))
        object.__setattr__(self, "timeout", _seconds(self.timeout))

    def characters(self) -> int:
        """Of all its texts."""
        said = sum(len(turn.question) + len(turn.answer) for turn in self.history)
        return said + len(self.text) + len(self.system or "")


def _seconds(timeout: float | None) -> float | None:
    """Raises RequestError unless it is a number above 0."""
    if timeout is None:
        return None
    try:
        seconds = float(timeout)
    except OverflowError:
        seconds = math.inf if timeout > 0 else -math.inf
    if isinstance(timeout, bool) or not seconds > 0:
        raise RequestError(Setting("timeout"), f" {seconds} is not a number above 0; give seconds, or none")
    return seconds


@dataclass(frozen=True)
class Settings:
    """A question's settings, resolved for an engine."""

    guidance: GuidanceConfig
    exit: ExitConfig
    sampling: SamplingConfig
    has_visual: bool

    def of_small(self) -> "Settings":
        """How the small model answers."""
        most = self.guidance.guide_max_new_tokens or self.sampling.max_new_tokens
        limit = min(most, self.sampling.max_new_tokens)
        return replace(self, sampling=replace(self.sampling, max_new_tokens=limit))

    def wants_guidance(self) -> bool:
        return self.guidance.enabled and self.has_visual

    def guided_by(self, source: GuidanceSource) -> bool:
        return self.wants_guidance() and self.guidance.source is source

    def wants_small(self) -> bool:
        return self.guided_by(GuidanceSource.SMALL) or self.exit.enabled or self.speculates()

    def speculates(self) -> bool:
        return self.sampling.speculate > 0

    def wants_small_scores(self) -> bool:
        return self.guided_by(GuidanceSource.SMALL) or self.wants_consistency()

    def wants_consistency(self) -> bool:
        return self.exit.enabled and self.exit.needs_consistency()


def settle(question: Question, manifest: Manifest) -> Settings:
    """Raises RequestError for what the engine cannot serve."""
    guidance, large = question.guidance or manifest.guidance, manifest.models["large"]
    if not question.text.strip():
        raise RequestError("the question is empty; ask something")
    length = question.characters()
    if length > manifest.max_tokens * MOST_CHARACTERS:
        raise RequestError(
            f"the question, with its history and system message, has {length:,} characters, which is more than the "
            f"engine's {manifest.max_tokens} tokens hold; ask for less, or rebuild with a larger {BuildFlag.MAX_TOKENS}"
        )
    if guidance.enabled:
        if guidance.source.reads_large() and not large.scores:
            raise RequestError(
                Setting("guidance"),
                f" {guidance.source} needs the large model's attention, which the engine was built without; "
                f"rebuild with {BuildFlag.LARGE_SCORES}",
            )
        guidance = guidance.resolve(large.config.language.num_layers, large.prune_layers)
    sampling = question.sampling or SamplingConfig()
    return Settings(guidance, question.exit or manifest.exit, sampling, bool(question.images or question.videos))


class Stage(StrEnum):
    """Parts of an answer that are timed."""

    SMALL_VISION = "small vision"
    SMALL_PREFILL = "small prefill"
    SMALL_DECODE = "small decode"
    CONSISTENCY = "consistency"
    LARGE_VISION = "large vision"
    LARGE_SCORES = "large scores"
    """The run without pruning in which the large model ranks its own visual tokens."""
    LARGE_PREFILL = "large prefill"
    LARGE_DECODE = "large decode"
    SPECULATION = "speculation"
    """The small model's, while the large one decodes."""


@dataclass
class Meter:
    """Seconds of the engines that a question took so far; those of a run for several are shared out among them."""

    seconds: float = 0.0


@dataclass
class Reuse:
    """What both models were given to look at and to read, and how much of it they knew from earlier questions: pieces
    of pictures that were to be encoded, tokens of prompts."""

    tiles: int = 0
    tiles_known: int = 0
    tokens: int = 0
    tokens_known: int = 0


class Watch:
    """The stages of one question, in their order."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.seconds: dict[str, float] = {}
        """From start to end, with what it waited for others in between."""
        self.engine_seconds: dict[str, float] = {}
        """By the meter."""
        self.reuse = Reuse()

    @contextmanager
    def __call__(self, stage: Stage) -> Iterator[None]:
        start, metered = time.perf_counter(), self._meter.seconds
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        self.engine_seconds[stage] = self.engine_seconds.get(stage, 0.0) + self._meter.seconds - metered
