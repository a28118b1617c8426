"""The options of a question: one table, of which every door offers what it says, under the names that it says.

Types, ranges and defaults are those of the fields in `engine.config`: another option is a field there and a row here.
What was given at a door is a `Given`: the option's name -> its value, typed and in its range; what was not given is not
in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from dataclasses import field as declared
from enum import StrEnum
from functools import cache, cached_property
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from engine.bounds import Bound, bounds, shown
from engine.config import (
    ExitConfig,
    GuidanceConfig,
    GuidanceSource,
    PictureConfig,
    SamplingConfig,
    Schedule,
    VideoConfig,
)
from engine.errors import RequestError, Setting

Config = PictureConfig | VideoConfig | GuidanceConfig | ExitConfig | SamplingConfig
C = TypeVar("C", bound=Config)
Given = Mapping[str, Any]
GROUPS: dict[type[Config], str] = {
    PictureConfig: "pictures",
    VideoConfig: "clips: which of their frames each model is shown, if not those of its published rule",
    GuidanceConfig: "guidance: which visual tokens the large model keeps",
    ExitConfig: "early exit: when the small model's answer is good enough",
    SamplingConfig: "sampling",
}
"""Who reads an option is whose field it is."""
WORDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class QuestionConfig:
    """All settings of a question."""

    picture: PictureConfig = declared(default_factory=PictureConfig)
    video: VideoConfig = declared(default_factory=VideoConfig)
    guidance: GuidanceConfig = declared(default_factory=GuidanceConfig)
    exit: ExitConfig = declared(default_factory=ExitConfig)
    sampling: SamplingConfig = declared(default_factory=SamplingConfig)

    def draws(self) -> bool:
        """Whether tokens are drawn."""
        return self.sampling.temperature > 0

    def agrees(self) -> bool:
        """Whether the consistency is computed, which ranks visual tokens as guidance by the small model does."""
        return self.exit.enabled and self.exit.needs_consistency()

    def guided_by(self, *sources: GuidanceSource) -> bool:
        return self.guidance.enabled and self.guidance.source in sources


@cache
def _types(config: Any) -> dict[str, Any]:
    return get_type_hints(config)


def always_read(config: QuestionConfig) -> None:
    """Of an option that is read whatever else is asked for."""


@dataclass(frozen=True, eq=False)
class Option:
    """One option. config, field: where its value goes, under another name than its own if `field` is not empty.

    excludes: options that it contradicts when both are given, because `why`. unread: why nothing would read it.
    flags: further names on the command line. tensor: its name at Triton if it is another, as of Triton's other servers.
    """

    config: type[Config]
    name: str
    help: str
    field: str = ""
    is_negated: bool = False
    """A switch that turns its field off."""
    excludes: tuple[str, ...] = ()
    why: str = ""
    unread: Callable[[QuestionConfig], str | None] = always_read
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    tensor: str = ""

    @property
    def target(self) -> str:
        """The field of `config`."""
        return self.field or self.name

    @property
    def input(self) -> str:
        """The name at Triton."""
        return self.tensor or self.name

    @property
    def default(self) -> Any:
        """Of the field; of one that is negated, too."""
        return getattr(self.config, self.target)

    @property
    def bound(self) -> Bound | None:
        """Of its value, or each of its values."""
        config: Any = self.config
        return bounds(config).get(self.target)

    @cached_property
    def hint(self) -> Any:
        """The field's type without None: `tuple[...]`, or as `item`."""
        config: Any = self.config
        hint = _types(config)[self.target]
        parts = get_args(hint)
        return next(part for part in parts if part is not NoneType) if NoneType in parts else hint

    @property
    def length(self) -> int | None:
        """How many values it has, of which 0 is any number; None is one value by itself."""
        if get_origin(self.hint) is not tuple:
            return None
        return 0 if Ellipsis in get_args(self.hint) else len(get_args(self.hint))

    @property
    def item(self) -> type[bool | int | float | str]:
        """Of its value, or each of its values: bool, int, float, str or an enumeration of texts."""
        kind: type[bool | int | float | str] = self.hint if self.length is None else get_args(self.hint)[0]
        return kind

    def choices(self) -> list[str]:
        """Of an enumeration; else there are none."""
        return [str(choice) for choice in self.item] if issubclass(self.item, StrEnum) else []

    def read(self, value: object) -> Any:
        """A value as JSON has it. Raises RequestError for another type, and for what is out of range."""
        if self.length is None:
            result = self._one(value)
        elif isinstance(value, list | tuple):
            result = tuple(self._one(part) for part in value)
        else:
            raise self._refuse(value, "a list")
        replace(self.config(), **{self.target: result})  # which checks it
        return result

    def read_text(self, text: str) -> Any:
        """A value as it is typed, several with commas between them. Raises like `read`."""
        if self.length is None:
            return self.read(self._typed(text))
        return self.read([self._typed(part) for part in text.split(",")])

    def _typed(self, text: str) -> object:
        try:
            if self.item is bool:
                return {"true": True, "false": False}.get(text.strip().lower(), text)
            return self.item(text) if self.item in (int, float) else text
        except ValueError:
            raise self._refuse(text, WORDS[self.item]) from None

    def _one(self, value: object) -> Any:
        kind = self.item
        if issubclass(kind, StrEnum):
            if value not in self.choices():
                raise self._refuse(value, f"one of {', '.join(self.choices())}")
            return kind(str(value))
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise self._refuse(value, WORDS[kind]) from None
        if type(value) is not kind:
            raise self._refuse(value, WORDS[kind])
        return value

    def _refuse(self, value: object, what: str) -> RequestError:
        return RequestError(Setting(self.name), f" {shown(value)} is not {what}; give one")


def _no_score_rows(config: QuestionConfig) -> str | None:
    if config.guidance.enabled and not config.guidance.source.sums_scores():
        able = " and ".join(source for source in GuidanceSource if source.sums_scores())
        return f"is of guidance {able}, and {config.guidance.source} does not read it"
    ranks = config.guidance.enabled or config.agrees()
    return None if ranks else "ranks visual tokens, and without guidance and consistency none is"


def _no_ranking(config: QuestionConfig) -> str | None:
    merges = config.guidance.source is GuidanceSource.TOME
    return "is of tokens that are dropped, and tome merges them" if merges else None


def _no_share(config: QuestionConfig) -> str | None:
    if config.guidance.source.weighs():
        return None
    return f"is of importance that attention gives, and {config.guidance.source} has none"


def _no_limits(config: QuestionConfig) -> str | None:
    return _no_share(config) if config.guidance.retention_share else "limits a retention_share, and there is none"


def _no_later_layer(config: QuestionConfig) -> str | None:
    guidance = config.guidance
    if not guidance.source.ranks_before_large():
        return f"is of tokens that are ranked before the large model runs, and with {guidance.source} none are"
    is_first = guidance.prune_layer == 0 or (guidance.prune_layer is None and guidance.schedule is Schedule.FLAT)
    return "is of a later prune layer; before the first, only tiles of kept tokens are encoded" if is_first else None


def _no_small_model(config: QuestionConfig) -> str | None:
    asked = config.exit.enabled or config.guided_by(GuidanceSource.SMALL) or config.sampling.speculate
    return None if asked else "is of the small model, which is not asked"


def _no_consistency(config: QuestionConfig) -> str | None:
    if config.agrees():
        return None
    return f"is of the consistency, which {config.exit.criterion} does not ask for"


def _nothing_drawn(config: QuestionConfig) -> str | None:
    return None if config.draws() else "is of drawn tokens, and temperature 0 draws none"


def _no_chance(config: QuestionConfig) -> str | None:
    if config.draws() or config.guided_by(GuidanceSource.RANDOM):
        return None
    return f"is of drawn tokens and of guidance {GuidanceSource.RANDOM}, and nothing is drawn"


OPTIONS = (
    Option(PictureConfig, "auto_orient", "turn pictures as their EXIF orientation says"),
    Option(
        PictureConfig,
        "background",
        "what is seen through transparent pixels, such as 255,255,255",
        metavar="R,G,B",
    ),
    Option(
        VideoConfig,
        "frames",
        "so many frames of a clip",
        excludes=("fps",),
        why="is how many",
    ),
    Option(VideoConfig, "fps", "so many frames for each second of a clip"),
    Option(VideoConfig, "max_frames", "at most so many frames of a clip"),
    Option(GuidanceConfig, "guidance", "what ranks the tokens: SGP's small model, or a baseline", field="source"),
    Option(GuidanceConfig, "retention_ratio", "fraction of visual tokens kept from the prune layer on"),
    Option(
        GuidanceConfig,
        "prune_layer",
        "prune before this layer, one of those built",
        excludes=("schedule",),
        why="is the layer, whatever the schedule",
    ),
    Option(
        GuidanceConfig,
        "average_retention",
        "mean fraction kept over all layers, instead of the two above",
        excludes=("retention_ratio", "prune_layer"),
        why="chooses prune layer and retention ratio",
        flags=("retention",),
    ),
    Option(GuidanceConfig, "schedule", "before which layer is pruned: the paper's, or the first"),
    Option(
        GuidanceConfig,
        "per_frame_quota",
        "keep the same share of every frame, not the most important tokens of all",
        unread=_no_ranking,
    ),
    Option(
        GuidanceConfig,
        "retention_share",
        "keep the tokens whose importance is at least this share of the largest, as many as a question has",
        excludes=("retention_ratio", "average_retention"),
        why="says how many tokens are kept",
        unread=_no_share,
    ),
    Option(
        GuidanceConfig, "retention_least", "fraction of visual tokens that a share keeps at least", unread=_no_limits
    ),
    Option(GuidanceConfig, "retention_most", "fraction of visual tokens that a share keeps at most", unread=_no_limits),
    Option(
        GuidanceConfig,
        "tile_retention",
        "encode only the tiles that hold this fraction of the visual tokens, the most important, or a kept one",
        unread=_no_later_layer,
    ),
    Option(
        GuidanceConfig,
        "no_guidance",
        "the large model keeps every visual token",
        field="enabled",
        is_negated=True,
        excludes=(
            *("guidance", "retention_ratio", "prune_layer", "average_retention", "schedule"),
            *("per_frame_quota", "retention_share", "retention_least", "retention_most", "tile_retention"),
        ),
        why="keeps every visual token",
    ),
    Option(GuidanceConfig, "score_rows", "whose attention counts", unread=_no_score_rows),
    Option(GuidanceConfig, "score_layers", "fraction of the layers whose attention counts", unread=_no_score_rows),
    Option(
        GuidanceConfig,
        "value_norm",
        "attention counts times the length of the values that it is paid to",
        unread=_no_score_rows,
    ),
    Option(
        GuidanceConfig,
        "guide_max_new_tokens",
        "most tokens that the small model says; without, as many as the answer",
        unread=_no_small_model,
    ),
    Option(ExitConfig, "exit_threshold", "exit if the criterion's value is at least this (0..1; entropy: 0 or less)"),
    Option(ExitConfig, "exit_criterion", "what is compared with the threshold", field="criterion"),
    Option(
        ExitConfig,
        "normalise",
        "consistency: product of token probabilities, or their mean",
        unread=_no_consistency,
    ),
    Option(
        ExitConfig,
        "consistency_retention",
        "fraction of visual tokens that the consistency pass keeps",
        unread=_no_consistency,
    ),
    Option(
        ExitConfig,
        "no_early_exit",
        "the large model always answers",
        field="enabled",
        is_negated=True,
        excludes=("exit_threshold", "exit_criterion", "normalise", "consistency_retention"),
        why="asks no criterion",
    ),
    Option(SamplingConfig, "max_new_tokens", "most tokens of the answer", tensor="max_tokens"),
    Option(SamplingConfig, "temperature", "0 is greedy"),
    Option(SamplingConfig, "top_p", "draw from the fewest tokens of this probability", unread=_nothing_drawn),
    Option(SamplingConfig, "top_k", "draw from so many tokens; 0 keeps every token", unread=_nothing_drawn),
    Option(SamplingConfig, "seed", "of drawn tokens and of random guidance", unread=_no_chance),
    Option(
        SamplingConfig,
        "draft",
        "what the large model checks before it answers: what the small one said, or nothing",
        unread=_no_small_model,
    ),
    Option(SamplingConfig, "top_logprobs", "tell the most probable tokens in each token's place, so many (0..20)"),
    Option(SamplingConfig, "json_schema", "a JSON schema: the answer is JSON that fulfils it", metavar="JSON"),
    Option(
        SamplingConfig,
        "speculate",
        "tokens that the small model drafts at once where the large one has said something else; 0 is none",
    ),
    Option(SamplingConfig, "stop", "ends the answer", metavar="TEXT", tensor="stop_words"),
)
BY_NAME = {option.name: option for option in OPTIONS}


def read_given(values: Mapping[str, object]) -> Given:
    """Values as JSON has them, by the options' names. Raises RequestError, also for a name that is none."""
    for name in values:
        if name not in BY_NAME:
            raise RequestError(f"option {shown(name)} is unknown; there are {', '.join(BY_NAME)}")
    return {name: BY_NAME[name].read(value) for name, value in values.items()}


def over(default: C, given: Given) -> C:
    """What was given for this configuration, over a default: it undoes what excludes it there. Raises RequestError."""
    mine = [option for option in OPTIONS if option.config is type(default)]
    changed: dict[str, Any] = {}
    for option in mine:
        if rivals := [name for name in option.excludes if name in given]:
            if given.get(option.name, False) is not False:
                others = [part for rival in rivals for part in (" and ", Setting(rival))][1:]
                raise RequestError(Setting(option.name), f" {option.why}; leave it out, or ", *others)
            changed[option.target] = option.default
    for option in mine:
        if option.name in given:
            value = given[option.name]
            changed[option.target] = not value if option.is_negated else value
    return replace(default, **changed) if changed else default


def all_over(default: QuestionConfig, given: Given) -> QuestionConfig:
    """Like `over`, of every configuration."""
    return QuestionConfig(**{name: over(config, given) for name, config in vars(default).items()})


def refuse_unread(given: Given, config: QuestionConfig) -> None:
    """Raises RequestError for an option that was given and that nothing reads. config: what the question came to."""
    for name in given:
        if reason := BY_NAME[name].unread(config):
            raise RequestError(Setting(name), f" {reason}; leave it out")
