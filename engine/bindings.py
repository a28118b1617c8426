"""Every input and output of every engine: name, dtype, dimensions. Builders declare them, executors bind them.

Language engine, letters B S V T as in docs/structure.md. Segment 0 is the layers before the first prune point,
segment i the layers from prune point i on; all layers of a segment share one KV length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from engine.dims import Limits, Size
from engine.model_config import InternVitConfig, LanguageConfig, QwenVitConfig, SiglipConfig, VisionConfig
from engine.parallel import Shard

INPUT_IDS = "input_ids"
VISUAL_EMBEDS = "visual_embeds"
VISUAL_SLOT = "visual_slot"
ROPE_COS = "rope_cos"
ROPE_SIN = "rope_sin"
LOGIT_INDEX = "logit_index"
LOGITS = "logits"
SCORE_ROW = "score_row"
SCORE_WEIGHT = "score_weight"
VISUAL_COLUMN = "visual_column"
VISUAL_SCORES = "visual_scores"
VISUAL_SCORES_OUT = "visual_scores_out"
SCORED_QUERY = "scored_query"
SCORE_POSITION = "score_position"
PIXEL_VALUES = "pixel_values"
PATCHES = "patches"
PATCH_COS = "patch_cos"
PATCH_SIN = "patch_sin"
WINDOW_PATCH = "window_patch"
WINDOW_MASK = "window_mask"
WINDOW_PLACE = "window_place"
VISUAL_FEATURES = "visual_features"


def keep_index(segment: int) -> str:
    return f"keep_index_{segment}"


def past_length(segment: int) -> str:
    """Of the tokens in each request's cache before a call."""
    return f"past_length_{segment}"


def kv_length(segment: int) -> str:
    """After it."""
    return f"kv_length_{segment}"


def past_kv(layer: int) -> tuple[str, str]:
    return f"past_key_{layer}", f"past_value_{layer}"


def present_kv(layer: int) -> tuple[str, str]:
    return f"present_key_{layer}", f"present_value_{layer}"


def key_cache(layer: int) -> str:
    """Of the scoring engine, which counts the layers of one run."""
    return f"key_cache_{layer}"


def partial_sum(index: int) -> str:
    """What the stages of a rank's graph exchange at its all-reduce `index`: one rank's share, then the sum of all."""
    return f"partial_sum_{index}"


@dataclass(frozen=True)
class Binding:
    """A named input or output of an engine. dtype is NumPy's name."""

    name: str
    dtype: str
    dims: tuple[Size, ...]


@dataclass(frozen=True)
class Bindings:
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]


class Scoring(StrEnum):
    """How the attention that visual tokens receive is added up."""

    OFF = "off"
    IN_ENGINE = "in_engine"
    """By the language engine, while it runs."""
    DEFERRED = "deferred"
    """By a scoring engine, many rows at once, from their queries, which the language engine emits, and the KV cache."""


SCORING_ENGINE = "scoring"
"""Name of its file, beside the language engine's."""


def segment_of(layer: int, prune_layers: Sequence[int]) -> int:
    """Which segment a layer belongs to: the number of prune points at or before it."""
    return sum(point <= layer for point in prune_layers)


def language_bindings(
    config: LanguageConfig,
    limits: Limits,
    prune_layers: Sequence[int],
    scoring: Scoring,
    shard: Shard,
    dtype: str = "float32",
) -> Bindings:
    """Of a language engine; each prune point adds a keep_index.

    dtype: of visual features and KV caches (`Precision.activations`); angles, scores and logits are float32.
    """
    batch, sequence, half = limits.batch(), limits.sequence(), config.head_dim // 2
    inputs = [
        Binding(INPUT_IDS, "int64", (batch, sequence)),
        Binding(VISUAL_EMBEDS, dtype, (limits.visual(), config.hidden_size)),
        Binding(VISUAL_SLOT, "int64", (batch, sequence)),
        Binding(ROPE_COS, "float32", (batch, sequence, half)),
        Binding(ROPE_SIN, "float32", (batch, sequence, half)),
        Binding(LOGIT_INDEX, "int64", (batch, limits.logit_rows())),
    ]
    vocabulary = len(shard.vocabulary(config.vocab_size))
    outputs = [Binding(LOGITS, "float32", (batch, limits.logit_rows(), vocabulary))]
    if scoring is not Scoring.OFF:
        inputs.append(Binding(SCORE_ROW, "int64", (batch, limits.score_rows())))
    if scoring is Scoring.DEFERRED:
        width = config.num_layers * query_width(config, shard)
        outputs.append(Binding(SCORED_QUERY, dtype, (batch, limits.score_rows(), width)))
    if scoring is Scoring.IN_ENGINE:
        columns = limits.visual_columns()
        accumulator = batch, config.num_layers, columns
        inputs += [
            Binding(SCORE_WEIGHT, "float32", (batch, limits.score_rows())),
            Binding(VISUAL_COLUMN, "int64", (batch, columns)),
            Binding(VISUAL_SCORES, "float32", accumulator),
        ]
        outputs.append(Binding(VISUAL_SCORES_OUT, "float32", accumulator))
    for segment in range(len(prune_layers) + 1):
        inputs += [Binding(name, "int32", (batch,)) for name in (past_length(segment), kv_length(segment))]
    inputs += [
        Binding(keep_index(segment), "int64", (batch, limits.kept(segment)))
        for segment in range(1, len(prune_layers) + 1)
    ]
    kv_heads = len(shard.kv_heads(config.num_kv_heads))
    for layer in range(config.num_layers):
        cache = batch, kv_heads, limits.cache(segment_of(layer, prune_layers)), config.head_dim
        inputs += [Binding(name, dtype, cache) for name in past_kv(layer)]
        outputs += [Binding(name, dtype, cache) for name in present_kv(layer)]
    return Bindings(tuple(inputs), tuple(outputs))


def scoring_bindings(
    config: LanguageConfig, limits: Limits, prune_layers: Sequence[int], shard: Shard, dtype: str = "float32"
) -> Bindings:
    """Of the scoring engine beside a language engine that defers its scores; it runs for some layers at a time."""
    batch, rows, columns = 1, limits.scored_rows(), limits.visual_columns()
    layers, kv_heads = limits.scored_layers(config.num_layers), len(shard.kv_heads(config.num_kv_heads))
    caches = [limits.scored_cache(segment_of(layer, prune_layers)) for layer in range(layers)]
    inputs = (
        Binding(SCORED_QUERY, dtype, (batch, rows, layers * query_width(config, shard))),
        Binding(SCORE_POSITION, "int32", (batch, rows)),
        Binding(SCORE_WEIGHT, "float32", (batch, rows)),
        Binding(VISUAL_COLUMN, "int64", (batch, columns)),
        Binding(VISUAL_SCORES, "float32", (layers, batch, columns)),
        *(
            Binding(key_cache(layer), dtype, (batch, kv_heads, cache, config.head_dim))
            for layer, cache in enumerate(caches)
        ),
    )
    return Bindings(inputs, (Binding(VISUAL_SCORES_OUT, "float32", (layers, batch, columns)),))


def query_width(config: LanguageConfig, shard: Shard) -> int:
    """Of one layer's query heads of this rank, side by side."""
    return len(shard.part(config.num_heads, "num_heads")) * config.head_dim


def vision_bindings(config: VisionConfig, limits: Limits, dtype: str = "float32") -> Bindings:
    """Of a vision encoder with its projector. dtype: of the features (`Precision.activations`)."""
    match config:
        case InternVitConfig():
            tiles = limits.tiles()
            pixels = (tiles, 3, config.image_size, config.image_size)
            return Bindings(
                (Binding(PIXEL_VALUES, "float32", pixels),),
                (Binding(VISUAL_FEATURES, dtype, (tiles, config.tokens_per_tile(), config.output_size)),),
            )
        case SiglipConfig():
            tiles = limits.tiles()
            pixels = (tiles, 3, config.image_size, config.image_size)
            return Bindings(
                (Binding(PIXEL_VALUES, "float32", pixels),),
                (Binding(VISUAL_FEATURES, dtype, (tiles, config.rows_per_tile(), config.output_size)),),
            )
        case QwenVitConfig():
            patches = limits.patches(config.merged**2)
            angles = (1, patches, config.hidden_size // config.num_heads // 2)
            windows: list[Binding] = []
            if config.window is not None:
                # Which patch is where in a window, which of these places are empty, where each patch went.
                room, number = config.window_patches(), limits.windows(config.window)
                windows = [
                    Binding(WINDOW_PATCH, "int64", (number, room)),
                    Binding(WINDOW_MASK, "float32", (number, 1, 1, room)),
                    Binding(WINDOW_PLACE, "int64", (patches,)),
                ]
            return Bindings(
                (
                    Binding(PATCHES, "float32", (1, patches, config.patch_values())),
                    Binding(PATCH_COS, "float32", angles),
                    Binding(PATCH_SIN, "float32", angles),
                    *windows,
                ),
                (Binding(VISUAL_FEATURES, dtype, (1, limits.picture_tokens(), config.output_size)),),
            )
