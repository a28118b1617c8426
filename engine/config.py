"""Frozen configurations. Every default of the project lives here, once; derived values are methods."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.bounds import (
    Batch,
    Choices,
    Colour,
    FrameCount,
    FrameRate,
    Layer,
    Pixels,
    Ranks,
    Ratio,
    Seed,
    Temperature,
    Threshold,
    Tiles,
    Tokens,
    TopTokens,
    check_bounds,
    settle_types,
)
from engine.build_flags import BuildFlag
from engine.errors import EngineError, RequestError, Setting
from engine.json_schema import read_schema
from engine.parallel import SHARDED, Shard
from engine.target import Precision, Target

MAX_TOKENS = 8192


def num_kept(visual_tokens: int, retention: float) -> int:
    """floor(V * r), at least 1 if there are any."""
    # 1e-9: a ratio such as 0.29 times 100 must not fall below 29 by rounding.
    return min(visual_tokens, max(1, math.floor(visual_tokens * retention + 1e-9)))


def _check_request(config: Any) -> None:
    """Raises RequestError for what is of a wrong type, or out of its range."""
    settle_types(config)
    try:
        check_bounds(config)
    except EngineError as error:
        raise RequestError(*error.args, "; choose another") from None


class ScoreRows(StrEnum):
    """Whose attention counts towards the importance of a visual token (algorithm.md section 2; paper, table 3)."""

    BEHIND_LAST = "behind_last"
    """Text behind the last picture, and generated rows: all of them see every picture."""
    PROMPT_AND_GENERATED = "prompt+generated"
    """Text behind the first picture, and generated rows: what the paper sums. What stands between pictures sees only
    those before it; of one picture it is BEHIND_LAST."""
    PROMPT = "prompt"
    LAST_PROMPT = "last_prompt"
    GENERATED = "generated"
    QUESTION = "question"
    """The question as it was asked, without the template around it, and the last row of the prompt."""
    RELEASED = "released"
    """Every row from the last visual token on, that one included, and generated rows: what the authors' code sums."""


class GuidanceSource(StrEnum):
    """What says which visual tokens the large model keeps; all but SMALL are the paper's baselines (algorithm.md 5)."""

    SMALL = "small"
    FASTV = "fastv"
    """The large model's last prompt row in the layer before `prune_layer`, chosen once at prefill."""
    ORACLE = "oracle"
    """The large model's own attention in a whole run without pruning."""
    RANDOM = "random"
    """Chance, by the request's seed."""
    TOME = "tome"
    """None is dropped: similar ones are merged before layer 0, down to the same average retention."""

    def reads_large(self) -> bool:
        """Whether the large model runs once more, for its attention scores."""
        return self in (GuidanceSource.FASTV, GuidanceSource.ORACLE)

    def ranks_before_large(self) -> bool:
        """Whether tokens are ranked before the large model runs, so that it need not look at all of them."""
        return self in (GuidanceSource.SMALL, GuidanceSource.RANDOM)

    def weighs(self) -> bool:
        """Whether importance says how much more one token matters than another."""
        return self not in (GuidanceSource.RANDOM, GuidanceSource.TOME)

    def sums_scores(self) -> bool:
        """Whether it ranks by attention of the rows and layers that a request chooses."""
        return self in (GuidanceSource.SMALL, GuidanceSource.ORACLE)


class Schedule(StrEnum):
    """Before which layer is pruned where none is named (algorithm.md section 8)."""

    PAPER = "paper"
    """Layer floor(L r) of the large model's L: the share of layers that see everything is the share that is kept."""
    FLAT = "flat"
    """The first: what is dropped is never computed, and the same average keeps more to the end."""


@dataclass(frozen=True)
class GuidanceConfig:
    """SGP: which visual tokens the large model keeps, from which layer on (paper, section 3.2)."""

    enabled: bool = True
    source: GuidanceSource = GuidanceSource.SMALL
    retention_ratio: Ratio = 0.2
    """Fraction of visual tokens KEPT from `prune_layer` on."""
    prune_layer: Layer | None = None
    """Prune BEFORE this 0-based layer; None is the one of `schedule`."""
    average_retention: Ratio | None = None
    """Target of (K + (L-K) r) / L, with K by `schedule`, of the paper's so that r is near K / L; overrides the two
    above."""
    schedule: Schedule = Schedule.PAPER
    per_frame_quota: bool = False
    """Whether every frame of a clip keeps the same share of its tokens; else the most important of all frames are kept,
    as in the paper. A still picture counts as a frame."""
    retention_share: Ratio | None = None
    """Keep the tokens whose importance is at least this share of the largest, of each question as many as there are;
    overrides the ratio, where attention ranks. None keeps the same fraction of every question's."""
    retention_least: Ratio = 0.015
    retention_most: Ratio = 0.17
    """Fractions of visual tokens that `retention_share` keeps at least, and at most."""
    tile_retention: Ratio | None = None
    """Of a later layer's pruning: encode only the tiles that hold one of this fraction of the visual tokens, the most
    important ones, or one that is kept. Tokens of other tiles are seen by no layer. None encodes every tile."""
    score_rows: ScoreRows = ScoreRows.BEHIND_LAST
    """Of the model that ranks: the small one, or the large one of ORACLE; so is `score_layers`."""
    score_layers: Ratio = 1.0
    """Fraction of the layers, counted from the first, whose attention counts (paper, table 2)."""
    value_norm: bool = False
    """Whether what a token receives counts times the length of its value vectors: of the model that ranks, too."""
    guide_max_new_tokens: Tokens | None = None
    """Most tokens that the small model says, of which importance is a sum; None is the answer's own limit. An answer
    that it cuts off is never the answer."""

    def __post_init__(self) -> None:
        _check_request(self)

    def num_kept(self, visual_tokens: int) -> int:
        """Visual tokens that survive, at least 1 if there are any."""
        return num_kept(visual_tokens, self.retention_ratio)

    def num_score_layers(self, num_layers: int) -> int:
        """How many layers of the model that ranks count, at least 1."""
        return max(1, round(num_layers * self.score_layers))

    def resolve(self, num_layers: int, prune_layers: tuple[int, ...]) -> "GuidanceConfig":
        """The same with `prune_layer` and `retention_ratio` fixed for a model of `num_layers` layers.

        prune_layers: the layers at which the engine was built to prune; 0 is always possible. TOME merges before layer
        0, so it gets there the average retention that the others reach.
        Raises RequestError when the wanted layer was not built, or when there is none for FASTV to look at.
        """
        if self.retention_least > self.retention_most:
            least, most = Setting("retention_least"), Setting("retention_most")
            raise RequestError(least, f" {self.retention_least} is above ", most, f" {self.retention_most}; give less")
        settled = self._settle(num_layers, prune_layers)
        if self.source is GuidanceSource.TOME:
            return replace(settled, prune_layer=0, retention_ratio=settled.average(num_layers))
        if self.source is GuidanceSource.FASTV and settled.prune_layer == 0:
            rebuilt = f"rebuild with {BuildFlag.PRUNE_LAYERS} 1"
            layer, remedy = Setting("prune_layer"), f"choose one of {sorted(prune_layers)}" if prune_layers else rebuilt
            raise RequestError(Setting("guidance"), " fastv reads the layer before ", layer, f", which is 0; {remedy}")
        return settled

    def _settle(self, num_layers: int, prune_layers: tuple[int, ...]) -> "GuidanceConfig":
        possible = sorted({0, *prune_layers})
        if self.average_retention is not None:
            target = self.average_retention
            possible = possible if self.schedule is Schedule.PAPER else [0]
            ratios = {k: (target * num_layers - k) / (num_layers - k) for k in possible if k < num_layers}
            feasible = {k: r for k, r in ratios.items() if 0 < r <= 1}
            if not feasible:
                raise RequestError(
                    Setting("average_retention"), f" {target} cannot be reached with prune layers {possible}; give more"
                )
            layer = min(feasible, key=lambda k: abs(k / num_layers - feasible[k]))
            return replace(self, prune_layer=layer, retention_ratio=feasible[layer], average_retention=None)
        if self.prune_layer is None:
            is_flat = self.schedule is Schedule.FLAT
            wanted = 0 if is_flat else paper_prune_layer(num_layers, self.retention_ratio)
            return replace(self, prune_layer=min(possible, key=lambda k: (abs(k - wanted), k)))
        if self.prune_layer >= num_layers:
            raise RequestError(
                Setting("prune_layer"),
                f" {self.prune_layer} is outside 0..{num_layers - 1} of the large model; choose one inside",
            )
        if self.prune_layer not in possible:
            layers = ",".join(map(str, sorted({*possible, self.prune_layer} - {0})))
            raise RequestError(
                Setting("prune_layer"),
                f" {self.prune_layer} was not built; choose one of {possible} "
                f"or rebuild with {BuildFlag.PRUNE_LAYERS} {layers}",
            )
        return self

    def average(self, num_layers: int, seen: float = 1.0) -> float:
        """Average retention (K s + (L-K) r) / L of a resolved configuration. seen: s, before the prune layer."""
        assert self.prune_layer is not None
        return (self.prune_layer * seen + (num_layers - self.prune_layer) * self.retention_ratio) / num_layers


PAPER_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4)


def paper_prune_layer(num_layers: int, ratio: float) -> int:
    """floor(L * r): the layer ratio equals the keep ratio."""
    return math.floor(num_layers * ratio + 1e-9)


def default_prune_layers(num_layers: int) -> tuple[int, ...]:
    """Prune points of a build that names none: the paper's five; layer 0 needs no point."""
    return tuple(sorted({paper_prune_layer(num_layers, ratio) for ratio in PAPER_RATIOS} - {0}))


NEVER_EXITS = 2.0
"""A threshold above the largest value of every criterion, which is 1."""


class ExitCriterion(StrEnum):
    """What is compared with the threshold (algorithm.md section 4; paper, figure 4)."""

    DECISION_SCORE = "decision_score"
    CONFIDENCE = "confidence"
    CONSISTENCY = "consistency"
    Q1 = "q1"
    Q2 = "q2"
    Q3 = "q3"
    ENTROPY = "entropy"


class Normalise(StrEnum):
    PRODUCT = "product"
    MEAN = "mean"


@dataclass(frozen=True)
class ExitConfig:
    """SEE: when the small model's answer is returned (paper, section 3.3)."""

    enabled: bool = True
    exit_threshold: Threshold = 0.9
    """Exit early iff the criterion's value is at least this; ENTROPY's values are 0 or less, all others in 0..1."""
    criterion: ExitCriterion = ExitCriterion.DECISION_SCORE
    normalise: Normalise = Normalise.PRODUCT
    """Of the consistency: eq. 8's product of token probabilities, or their geometric mean."""
    consistency_retention: Ratio = 0.05
    """Fraction of visual tokens that the consistency pass keeps."""

    def __post_init__(self) -> None:
        _check_request(self)

    def needs_consistency(self) -> bool:
        """Whether the criterion asks for the consistency pass."""
        return self.criterion in (ExitCriterion.DECISION_SCORE, ExitCriterion.CONSISTENCY)

    def num_kept(self, visual_tokens: int) -> int:
        """Visual tokens that the consistency pass keeps, at least 1 if there are any."""
        return num_kept(visual_tokens, self.consistency_retention)


class Draft(StrEnum):
    """What the large model is shown of an answer before it gives one; it changes how fast it answers, not what."""

    SMALL = "small"
    """What the small model said, where it was asked anyway."""
    NONE = "none"


MOST_STOPS = 64
LONGEST_STOP = 1024
"""Characters."""


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen; temperature 0 is greedy."""

    max_new_tokens: Tokens = 128
    temperature: Temperature = 0.0
    top_p: Ratio = 1.0
    """The fewest tokens of this probability together; 1 keeps every token."""
    top_k: Choices = 0
    """0 keeps every token."""
    seed: Seed = 0
    stop: tuple[str, ...] = ()
    """Texts that end the answer, besides the template's own stop tokens; not part of the answer."""
    draft: Draft = Draft.SMALL
    top_logprobs: TopTokens = 0
    """Most probable tokens that are told in the place of each token of the answer."""
    json_schema: str | None = None
    """A JSON schema, as JSON: the answer is a text that fulfils it, if it is not cut off."""
    speculate: Choices = 0
    """Tokens that the small model drafts at once, time and again, from what the large one has said."""

    def __post_init__(self) -> None:
        _check_request(self)
        if "" in self.stop:
            raise RequestError(Setting("stop"), " holds an empty text; leave it out")
        if len(self.stop) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in self.stop):
            raise RequestError(
                Setting("stop"),
                f" holds more than {MOST_STOPS} texts, or one of more than {LONGEST_STOP} characters; leave some out, "
                "each is looked for after every token",
            )
        if self.json_schema is not None:
            read_schema(self.json_schema)


@dataclass(frozen=True)
class ServingConfig:
    """How many questions a process answers at once, and what that may take."""

    max_running: int = 16
    """Questions that are answered at once; a plan runs no more than it was built for (`max_batch`)."""
    max_waiting: int = 256
    """Questions that wait for their turn; more are refused."""
    kv_memory: int | None = None
    """Bytes of keys and values of all questions together; None is half of what a machine has free, and on a GPU what
    the engines take."""
    prefill_chunk: int = 512
    """Rows of a prompt that one run feeds: so long do answers in progress wait for a new question's prompt."""
    feature_cache: int = 256 * 2**20
    """Bytes of visual features that each model keeps: at 13 tiles and 16 bits, of 45 pictures for 1B, 5 for 76B."""
    small_apart: bool = False
    """The small model on a GPU of its own, the one behind the large model's; else on the large model's first."""
    prefix_cache: int = 2**30
    """Bytes of keys and values of prompts' beginnings that are kept, of `kv_memory` what no question needs: at 13 tiles
    and 16 bits, of 3 pictures for 2B."""

    def __post_init__(self) -> None:
        settle_types(self)
        for name, least in (
            ("max_running", 1),
            ("max_waiting", 0),
            ("prefill_chunk", 1),
            ("feature_cache", 0),
            ("prefix_cache", 0),
        ):
            if getattr(self, name) < least:
                raise RequestError(Setting(name), f" {getattr(self, name)} is below {least}; give at least that")
        if self.kv_memory is not None and self.kv_memory < 1:
            raise RequestError(
                Setting("kv_memory"), f" {self.kv_memory} holds nothing; give the bytes of a question at least"
            )


@dataclass(frozen=True)
class PictureConfig:
    """How a file becomes colours; the defaults are the published preprocessing."""

    auto_orient: bool = False
    """Turn the picture as its EXIF orientation says."""
    background: tuple[Colour, Colour, Colour] | None = None
    """Red, green and blue, 0..255, of what is seen through transparent pixels; None drops their transparency, and
    whatever colour the file gives them is seen."""

    def __post_init__(self) -> None:
        settle_types(self)
        if self.background is None:
            return
        if not all(0 <= part <= 255 for part in self.background):
            raise RequestError(
                Setting("background"), f" {self.background} is no colour; give red, green and blue in 0..255"
            )


@dataclass(frozen=True)
class VideoConfig:
    """Which frames of a clip a model is shown, where that is to be other than by its published rule."""

    frames: FrameCount | None = None
    """So many."""
    fps: FrameRate | None = None
    """So many for each second."""
    max_frames: FrameCount | None = None
    """Of those, or of the published rule's, at most."""

    def __post_init__(self) -> None:
        _check_request(self)
        if self.frames is not None and self.fps is not None:
            raise RequestError(Setting("frames"), " and ", Setting("fps"), " contradict each other; give one of them")


@dataclass(frozen=True)
class BuildConfig:
    """What to build, from where, to where."""

    small: Path
    large: Path
    out: Path
    target: Target = Target.ONNXRUNTIME
    precision: Precision = Precision.FP32
    max_tokens: Tokens | None = None
    """Longest sequence, prompt and answer together, that the engine accepts; None is MAX_TOKENS, or the positions that
    either model was published for if they are less."""
    max_batch: Batch = 8
    max_tiles: Tiles | None = None
    """Most tiles of one picture; None is the checkpoint's own `max_dynamic_patch`."""
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    """Of a picture that a model takes at its own size: smaller and larger ones are scaled; None is the checkpoint's."""
    prune_layers: tuple[int, ...] | None = None
    """Prune points of the large model; None is `default_prune_layers`."""
    max_kept_tokens: Tokens | None = None
    """Longest sequence of the large model from its first prune point on, where a plan fixes the length of KV caches:
    that memory is saved. None is max_tokens."""
    large_scores: bool = False
    """Give the large model score outputs too (guidance sources inside the large model)."""
    world_size: Ranks = 1
    """Ranks that share the large model."""
    rank: int | None = None
    """Build this rank's part only, and with rank 0 what all share; None builds everything."""

    def __post_init__(self) -> None:
        try:
            check_bounds(self)
        except EngineError as error:
            raise EngineError(*error.args, "; choose another") from None
        if self.rank is not None:
            Shard(self.rank, self.world_size)
            if self.world_size == 1:
                raise EngineError(
                    Setting("rank"),
                    f" {self.rank} is a part of several; give {BuildFlag.TP}, the number of ranks, as well",
                )

    def tokens(self) -> int:
        """`max_tokens`, or what it is at most by default."""
        return MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def shards(self, model: str) -> list[Shard]:
        """One for each rank of `small` or `large`."""
        size = self.world_size if model == SHARDED else 1
        return [Shard(rank, size) for rank in range(size)]
