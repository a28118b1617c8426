"""One checkpoint of a pair, opened and checked, before anything slow: its files against each other and the options."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from engine.build.checkpoint import Checkpoint
from engine.build.checkpoint_names import check_names
from engine.build.language import language_graph
from engine.build.targets.tensorrt_rtx import LEAST_HEADS
from engine.build.tokenizer import check_tokenizer, read_tokenizer
from engine.build.vision import vision_graph
from engine.build.weights import WeightReader, parameters
from engine.config import BuildConfig, default_prune_layers
from engine.dims import Limits
from engine.errors import EngineError
from engine.families import Family, family_of
from engine.model_config import (
    AnyResolutionConfig,
    LanguageConfig,
    ModelConfig,
    NativeSizeConfig,
    PicturesConfig,
    TilingConfig,
    VisionConfig,
)
from engine.parallel import check_shards
from engine.target import Target

OnProgress = Callable[[str, float], None]
MOST_NUMBERS = 1 << 31
"""Of one tensor, for TensorRT; on a CPU, caches that large are of no use either."""


@dataclass(frozen=True)
class Role:
    """One of the two models of a pair, as it is to be built."""

    name: str
    checkpoint: Checkpoint
    fingerprint: str
    family: Family
    config: ModelConfig
    prune_layers: tuple[int, ...]
    scores: bool
    notes: tuple[str, ...] = ()
    """What whoever builds it should know, in sentences."""


def settle_tokens(build: BuildConfig) -> tuple[BuildConfig, tuple[str, ...]]:
    """The same with `max_tokens` settled, and sentences about that. Raises EngineError.

    A model whose positions are not scaled with the length answers wrongly beyond those that it was published for.
    """
    tokens, notes = build.tokens(), []
    for name, directory in (("small", build.small), ("large", build.large)):
        family, published = family_of(directory)
        longest = family.read_config(directory, published).language.rope.longest()
        if longest is None or longest >= tokens:
            continue
        if build.max_tokens is not None:
            raise EngineError(
                f"max_tokens {tokens} is more than the {longest} positions that the {name} model {directory} was "
                f"published for (max_position_embeddings); give at most {longest}"
            )
        tokens = longest
        notes = [
            f"max_tokens is {longest}: the {name} model {directory} was published for no more positions "
            "(max_position_embeddings)"
        ]
    return replace(build, max_tokens=tokens), tuple(notes)


def read_role(
    build: BuildConfig,
    name: str,
    directory: Path,
    prune_layers: tuple[int, ...] | None,
    scores: bool,
    on_progress: OnProgress,
) -> Role:
    """Open one checkpoint and settle what its engines will be able to do."""
    family, published = family_of(directory)
    config = family.read_config(directory, published)
    config = replace(config, tiling=settle_pictures(build, config.tiling))
    layers = config.language.num_layers
    points = default_prune_layers(layers) if prune_layers is None else tuple(sorted(set(prune_layers) - {0}))
    for point in points:
        if not 0 < point < layers:
            raise EngineError(f"prune layer {point} is outside 0..{layers - 1} of the {name} model {directory}")
    check_shards(config.language, build.mappings(name)[0], f"the {name} model {directory}")
    ranks = len(build.mappings(name))
    heads = config.language.num_heads // ranks
    if build.target is Target.TENSORRT_RTX and heads < LEAST_HEADS:
        raise EngineError(
            f"{'a rank of ' * (ranks > 1)}the {name} model {directory} has {heads} query heads, but target "
            f"{build.target} needs {LEAST_HEADS}; choose {'a smaller --tp or ' * (ranks > 1)}another target"
        )
    check_sizes(build, config, name, directory)
    checkpoint = Checkpoint(directory)
    check_weights(checkpoint, family, config)
    config, notes = read_ends(family, config, directory)
    notes += picture_notes(build, config, name, directory)
    fingerprint = checkpoint.fingerprint(lambda fraction: on_progress(f"{name}/checkpoint", fraction))
    return Role(name, checkpoint, fingerprint, family, config, points, scores, notes)


def settle_pictures(build: BuildConfig, pictures: PicturesConfig) -> PicturesConfig:
    """A checkpoint's own, within the limits that the build names. Raises EngineError."""
    match pictures:
        case TilingConfig() if build.max_tiles is not None:
            least = min(pictures.min_tiles, build.max_tiles)
            return replace(pictures, max_tiles=build.max_tiles, min_tiles=least)
        case AnyResolutionConfig() if build.max_tiles is not None:
            most = build.max_tiles
            grids = tuple((rows, columns) for rows, columns in pictures.grids if rows * columns <= most)
            return AnyResolutionConfig(grids, min(pictures.max_tiles, most))
        case NativeSizeConfig():
            most = pictures.max_pixels if build.max_pixels is None else build.max_pixels
            least = min(pictures.min_pixels, most) if build.min_pixels is None else build.min_pixels
            return NativeSizeConfig(least, most)
    return pictures


def read_ends(family: Family, config: ModelConfig, directory: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    """The tokenizer is right, and answers end where the checkpoint says; sentences about what cannot be.

    Raises CheckpointError.
    """
    tokenizer = read_tokenizer(directory)
    prompt = family.render_prompt(config, "", ())
    check_tokenizer(tokenizer, directory, config.language.vocab_size, prompt.image_token)
    added, ids = tokenizer.get_added_tokens_decoder(), family.end_ids(directory)
    special = [number for number in ids if number in added and added[number].special]
    stop = [token for token in (added[number].content for number in special) if token not in prompt.stop]
    notes = [
        f"{directory / 'generation_config.json'} ends answers at token {number}, which is no special token of the "
        "tokenizer; it ends none here"
        for number in ids
        if number not in special
    ]
    return replace(config, prompt=replace(config.prompt, stop=tuple(stop))), tuple(notes)


def picture_notes(build: BuildConfig, config: ModelConfig, name: str, directory: Path) -> tuple[str, ...]:
    """What becomes of pictures that are too large for an engine."""
    if isinstance(config.tiling, TilingConfig):
        return ()
    limit = "max_pixels" if isinstance(config.tiling, NativeSizeConfig) else "max_tiles"
    most, model = config.most_tokens(), f"the {name} model {directory}"
    if build.max_pixels is not None and isinstance(config.tiling, NativeSizeConfig):
        return (
            f"pictures of more than {build.max_pixels:,} pixels are scaled down to at most {most:,} visual tokens of "
            f"{model}, as the published preprocessing would with that limit; its answers may differ from those of its "
            "own limit",
        )
    if most >= build.tokens():
        return (
            f"a picture has up to {most:,} visual tokens in {model}, and max_tokens {build.tokens():,} has no room for "
            f"the largest, which are refused; {limit} would scale them down",
        )
    return ()


def check_sizes(build: BuildConfig, config: ModelConfig, name: str, directory: Path) -> None:
    """Raises EngineError for limits that no request could use, or no memory hold."""
    smallest = config.least_tokens()
    if build.tokens() <= smallest:
        raise EngineError(
            f"max_tokens {build.tokens()} has no room for a question beside the {smallest} visual tokens of a small "
            f"picture in the {name} model {directory}; give more"
        )
    largest = config.most_tokens()
    if build.max_tiles is not None and not isinstance(config.tiling, NativeSizeConfig) and build.tokens() <= largest:
        raise EngineError(
            f"a picture of max_tiles {build.max_tiles} has {largest} visual tokens in the {name} model {directory}, "
            f"and max_tokens {build.tokens()} has no room for them and a question; give fewer tiles or more tokens"
        )
    if build.max_pixels is not None and isinstance(config.tiling, NativeSizeConfig) and build.tokens() <= largest:
        raise EngineError(
            f"a picture of max_pixels {build.max_pixels} has up to {largest} visual tokens in the {name} model "
            f"{directory}, and max_tokens {build.tokens()} has no room for them and a question; give fewer pixels or "
            "more tokens"
        )
    language, mapping = config.language, build.mappings(name)[0]
    cache = build.max_batch * build.tokens() * len(mapping.kv_heads(language.num_kv_heads)) * language.head_dim
    if cache >= MOST_NUMBERS:
        width = np.dtype(build.precision.activations(build.target)).itemsize
        size = 2 * language.num_layers * cache * width
        raise EngineError(
            f"max_batch {build.max_batch} and max_tokens {build.tokens()} need {size / 1e9:,.0f} GB of KV caches in "
            f"{'a rank of ' * (mapping.world_size > 1)}the {name} model {directory}; give less of either"
        )


def check_weights(checkpoint: Checkpoint, family: Family, config: ModelConfig) -> None:
    """Every parameter of both engines has its tensor, and nothing is left. Raises CheckpointError, before a build."""
    tensors = checkpoint.names()
    vision, language = family.vision_sources(config, tensors), family.language_sources(config, tensors)
    check_names(checkpoint, [*vision.values(), *language.values()])
    WeightReader(checkpoint, vision).check_shapes(vision_shapes(config.vision))
    WeightReader(checkpoint, language).check_shapes(language_shapes(config.language))


ONE = Limits(max_tokens=1, max_batch=1, max_tiles=1)
"""Parameters do not depend on them."""


# Whoever opens many checkpoints of one size declares its graphs once.
@lru_cache(maxsize=4)
def vision_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Of all parameters of a vision engine."""
    return {name: tuple(weight.stored) for name, weight in parameters(vision_graph(config, ONE))}


@lru_cache(maxsize=4)
def language_shapes(config: LanguageConfig) -> dict[str, tuple[int, ...]]:
    """Of all parameters of a language engine."""
    return {name: tuple(weight.stored) for name, weight in parameters(language_graph(config, ONE))}
