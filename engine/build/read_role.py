"""One checkpoint of a pair, opened and checked, before anything slow: its files against each other and the options."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from engine.build.checkpoint import Checkpoint
from engine.build.checkpoint_names import check_names
from engine.build.language import language_graph
from engine.build.role import Role
from engine.build.tokenizer import check_tokenizer, read_tokenizer
from engine.build.vision import vision_graph
from engine.build.weights import WeightReader, parameters
from engine.build_flags import BuildFlag
from engine.config import BuildConfig, default_prune_layers
from engine.dims import Limits
from engine.errors import CheckpointError, EngineError, Setting
from engine.families import Family, read_model
from engine.families.conversation import CONTROL_TOKEN
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

OnProgress = Callable[[str, float], None]
MOST_NUMBERS = 1 << 31
"""Of one tensor, for TensorRT; on a CPU, caches that large are of no use either."""


def settle_tokens(build: BuildConfig) -> tuple[BuildConfig, tuple[str, ...]]:
    """The same with `max_tokens` settled, and sentences about that. Raises EngineError.

    A model whose positions are not scaled with the length answers wrongly beyond those that it was published for.
    """
    tokens, notes = build.tokens(), []
    for name, directory in (("small", build.small), ("large", build.large)):
        longest = read_model(directory)[1].language.rope.longest()
        if longest is None or longest >= tokens:
            continue
        if build.max_tokens is not None:
            raise EngineError(
                Setting("max_tokens"),
                f" {tokens} is more than the {longest} positions that the {name} model {directory} was "
                f"published for (max_position_embeddings); give at most {longest}",
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
    family, config = read_model(directory)
    config = replace(config, tiling=settle_pictures(build, config.tiling, directory))
    layers = config.language.num_layers
    points = default_prune_layers(layers) if prune_layers is None else tuple(sorted(set(prune_layers) - {0}))
    for point in points:
        if not 0 < point < layers:
            raise EngineError(f"prune layer {point} is outside 0..{layers - 1} of the {name} model {directory}")
    check_shards(config.language, build.shards(name)[0], f"the {name} model {directory}")
    ranks = len(build.shards(name))
    heads = config.language.num_heads // ranks
    if heads < (least := build.target.traits.least_heads):
        raise EngineError(
            f"{'a rank of ' * (ranks > 1)}the {name} model {directory} has {heads} query heads, but target "
            f"{build.target} needs {least}; choose {f'a smaller {BuildFlag.TP} or ' * (ranks > 1)}another target"
        )
    check_sizes(build, config, name, directory)
    checkpoint = Checkpoint(directory)
    check_weights(checkpoint, family, config)
    config, notes = read_ends(family, config, directory)
    notes += picture_notes(build, config, name, directory)
    fingerprint = checkpoint.fingerprint(lambda fraction: on_progress(f"{name}/checkpoint", fraction))
    return Role(name, checkpoint, fingerprint, family, config, points, scores, notes)


def settle_pictures(build: BuildConfig, pictures: PicturesConfig, directory: Path) -> PicturesConfig:
    """A checkpoint's own, that lies there, within the limits that the build names. Raises EngineError."""
    match pictures:
        case TilingConfig() if build.max_tiles is not None:
            least = min(pictures.min_tiles, build.max_tiles)
            return replace(pictures, max_tiles=build.max_tiles, min_tiles=least)
        case AnyResolutionConfig() if build.max_tiles is not None:
            most = build.max_tiles
            grids = tuple((rows, columns) for rows, columns in pictures.grids if rows * columns <= most)
            if not grids:
                least = min(rows * columns for rows, columns in pictures.grids)
                raise EngineError(
                    Setting("max_tiles"),
                    f" {most} is below the {least} tiles of the smallest canvas of {directory} "
                    "(image_grid_pinpoints); give at least as many",
                )
            return AnyResolutionConfig(grids, min(pictures.max_tiles, most))
        case NativeSizeConfig():
            most = pictures.max_pixels if build.max_pixels is None else build.max_pixels
            least = min(pictures.min_pixels, most) if build.min_pixels is None else build.min_pixels
            if least > most:
                raise EngineError(
                    Setting("min_pixels"),
                    f" {least} is above the {most} pixels that a picture of {directory} may have; give fewer, or a "
                    "larger ",
                    Setting("max_pixels"),
                )
            return NativeSizeConfig(least, most)
    return pictures


SEVERAL = 5
"""Rows of a picture in a prompt that a tokenizer is tried with."""


def read_ends(family: Family, config: ModelConfig, directory: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    """The tokenizer is right, and answers end where the checkpoint says; sentences about what cannot be.

    Raises CheckpointError.
    """
    tokenizer = read_tokenizer(directory, config.prompt.added)
    prompt = family.render_prompt(config, "", (SEVERAL, SEVERAL))
    control = dict.fromkeys(CONTROL_TOKEN.findall(prompt.text))
    check_tokenizer(tokenizer, directory, config.language.vocab_size, prompt.image_token, *control)
    tokens = tokenizer.encode(prompt.text, add_special_tokens=False).tokens
    if (found := tokens.count(prompt.image_token)) != 2 * SEVERAL:
        raise CheckpointError(
            f"the tokenizer of {directory} finds {found} tokens {prompt.image_token} in a prompt of {2 * SEVERAL}; "
            "download all its tokenizer files again"
        )
    added, ids = tokenizer.get_added_tokens_decoder(), family.end_ids(directory)
    if not any(token.special and token.content in prompt.stop for token in added.values()):
        raise CheckpointError(
            f"the tokenizer of {directory} has no special token that ends a turn ({', '.join(prompt.stop)}); download "
            "all its tokenizer files again"
        )
    special = [number for number in ids if number in added and added[number].special]
    stop = [token for token in (added[number].content for number in special) if token not in prompt.stop]
    notes = [
        f"{directory / 'generation_config.json'} ends answers at token {number}, which is no special token of the "
        "tokenizer; it ends none here"
        for number in ids
        if number not in special
    ]
    return replace(config, prompt=replace(config.prompt, stop=tuple(stop))), tuple(notes)


def picture_limit(config: ModelConfig) -> tuple[str, str]:
    """The setting that bounds a picture's visual tokens, and what it counts."""
    return ("max_pixels", "pixels") if isinstance(config.tiling, NativeSizeConfig) else ("max_tiles", "tiles")


def picture_notes(build: BuildConfig, config: ModelConfig, name: str, directory: Path) -> tuple[str, ...]:
    """What becomes of pictures that are too large for an engine."""
    if isinstance(config.tiling, TilingConfig):
        return ()
    most, model = config.most_tokens(), f"the {name} model {directory}"
    limit, _ = picture_limit(config)
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
            Setting("max_tokens"),
            f" {build.tokens()} has no room for a question beside the {smallest} visual tokens of a small "
            f"picture in the {name} model {directory}; give more",
        )
    largest = config.most_tokens()
    limit, less = picture_limit(config)
    if (given := getattr(build, limit)) is not None and build.tokens() <= largest:
        raise EngineError(
            "a picture of ",
            Setting(limit),
            f" {given} has {largest} visual tokens in the {name} model {directory}, and ",
            Setting("max_tokens"),
            f" {build.tokens()} has no room for them and a question; give fewer {less} or more tokens",
        )
    language, shard = config.language, build.shards(name)[0]
    cache = build.max_batch * build.tokens() * len(shard.kv_heads(language.num_kv_heads)) * language.head_dim
    if cache >= MOST_NUMBERS:
        width = np.dtype(build.target.activations(build.precision)).itemsize
        size = 2 * language.num_layers * cache * width
        raise EngineError(
            Setting("max_batch"),
            f" {build.max_batch} and ",
            Setting("max_tokens"),
            f" {build.tokens()} need {size / 1e9:,.0f} GB of KV caches in "
            f"{'a rank of ' * (shard.world_size > 1)}the {name} model {directory}; give less of either",
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
