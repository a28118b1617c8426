"""What a model is, free of any checkpoint's quirks: dimensions, position embedding, pictures, prompt. Frozen."""

import math
from dataclasses import dataclass
from enum import StrEnum

from engine.bounds import (
    MOST_PIXELS,
    Epsilon,
    Fraction,
    HeadDim,
    Heads,
    Layers,
    Name,
    PatchFrames,
    Pixels,
    Positions,
    RopeBase,
    Side,
    Stretch,
    Tiles,
    Vocabulary,
    Width,
    check_bounds,
    shown,
)
from engine.errors import EngineError

AXES = 3
"""Time, row and column."""


class RopeScaling(StrEnum):
    NONE = "none"
    DYNAMIC_NTK = "dynamic_ntk"
    LINEAR = "linear"
    LONG = "long"
    LLAMA3 = "llama3"


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding of a language model; angles are computed by the runtime (`engine/runtime/rope.py`)."""

    theta: RopeBase
    max_positions: Positions
    """Positions that the model was published for."""
    scaling: RopeScaling = RopeScaling.NONE
    factor: Stretch = 1.0
    """Stretch of DYNAMIC_NTK, LINEAR and LLAMA3."""
    original_max_positions: Positions | None = None
    """Trained length before LONG or LLAMA3 scaling."""
    short_factor: tuple[Stretch, ...] = ()
    long_factor: tuple[Stretch, ...] = ()
    """Per-frequency divisors of LONG, one for each half head dimension."""
    low_freq_factor: Stretch = 1.0
    high_freq_factor: Stretch = 4.0
    sections: tuple[Positions, ...] = ()
    """Of the frequencies, how many in turn follow a token's time, row and column; none: a token has one position."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.scaling in (RopeScaling.LONG, RopeScaling.LLAMA3) and self.original_max_positions is None:
            raise EngineError(f"original_max_positions is missing, which scaling {self.scaling} starts from")
        if self.scaling is RopeScaling.LLAMA3 and self.low_freq_factor >= self.high_freq_factor:
            raise EngineError(
                f"low_freq_factor {self.low_freq_factor} is not below high_freq_factor {self.high_freq_factor}"
            )

    def num_axes(self) -> int:
        """Numbers that say where a token is."""
        return len(self.sections) or 1

    def longest(self) -> int | None:
        """Positions up to which the model is meant to be used; None: its scaling follows the length, without an end."""
        return None if self.scaling is RopeScaling.DYNAMIC_NTK else self.max_positions


@dataclass(frozen=True)
class LanguageConfig:
    """A decoder of the Llama layout: RMSNorm, rotary GQA, gated SiLU MLP."""

    hidden_size: Width
    num_layers: Layers
    num_heads: Heads
    num_kv_heads: Heads
    head_dim: HeadDim
    intermediate_size: Width
    vocab_size: Vocabulary
    norm_eps: Epsilon
    rope: RopeConfig
    qkv_bias: bool = False
    qk_norm: bool = False
    """An RMSNorm over each head's query and key, before they are rotated."""
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.num_heads % self.num_kv_heads:
            raise EngineError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise EngineError(f"head_dim {self.head_dim} is odd, which rotary embedding cannot use")
        half = self.head_dim // 2
        if self.rope.scaling is RopeScaling.LONG and {len(self.rope.short_factor), len(self.rope.long_factor)} != {
            half
        }:
            raise EngineError(f"short_factor and long_factor are not {half} numbers each, half of head_dim")
        sections = self.rope.sections
        if sections and (len(sections) != AXES or sum(sections) != half):
            raise EngineError(
                f"sections {list(sections)} are not {AXES} numbers that add up to {half}, half of head_dim"
            )


class Norm(StrEnum):
    LAYER = "layer_norm"
    RMS = "rms_norm"


@dataclass(frozen=True)
class InternVitConfig:
    """A ViT over square tiles followed by pixel shuffle and a two-layer projector (`mlp1`)."""

    image_size: Side
    patch_size: Side
    hidden_size: Width
    num_layers: Layers
    num_heads: Heads
    intermediate_size: Width
    norm: Norm
    norm_eps: Epsilon
    qkv_bias: bool
    qk_norm: bool
    downsample_ratio: Fraction
    output_size: Width
    """Hidden size of the language model that the projector feeds."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.image_size % self.patch_size:
            raise EngineError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_heads:
            raise EngineError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        patches, step = self.image_size // self.patch_size, 1 / self.downsample_ratio
        if not step.is_integer() or patches % step:
            raise EngineError(
                f"downsample_ratio {self.downsample_ratio} does not divide the {patches} patches of a tile's side"
            )

    def grid(self) -> int:
        """Visual tokens along one side of a tile."""
        return int(self.image_size // self.patch_size * self.downsample_ratio)

    def tokens_per_tile(self) -> int:
        return self.grid() ** 2


MOST_WINDOW_PATCHES = 1024
"""Published windows have 64. The room for each is whole, however small the picture."""


@dataclass(frozen=True)
class QwenVitConfig:
    """A ViT over pictures of any size, whose patches turn with their row and column; squares of them become a token.

    Of Qwen2-VL, and of Qwen2.5-VL.
    """

    patch_size: Side
    frames: PatchFrames
    """Of a patch, in time; a still picture repeats."""
    merged: Side
    """Patches along one side of a token."""
    hidden_size: Width
    num_layers: Layers
    num_heads: Heads
    intermediate_size: Width
    output_size: Width
    """Hidden size of the language model that the projector feeds."""
    norm: Norm = Norm.LAYER
    is_gated: bool = False
    """Whether SiLU gates the MLP; else it has a quick GELU."""
    window: Side | None = None
    """Tokens along one side of the windows in which patches see each other; None: all see the whole picture."""
    whole_layers: tuple[int, ...] = ()
    """Those of windows in which they see all of it, too."""
    steps_per_second: Positions | None = None
    """Of positions in time, from a clip's pair of frames to the next; None: a pair is a step."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if any(not 0 <= layer < self.num_layers for layer in self.whole_layers):
            raise EngineError(f"whole_layers {shown(self.whole_layers)} are not all inside 0..{self.num_layers - 1}")
        if self.hidden_size % (4 * self.num_heads):
            raise EngineError(
                f"hidden_size {self.hidden_size} is not a multiple of four times num_heads {self.num_heads}: half of a "
                "head turns with the row, half with the column"
            )

        if self.window is not None and self.window_patches() > MOST_WINDOW_PATCHES:
            raise EngineError(
                f"window of {self.window_patches()} patches is too large, of more than {MOST_WINDOW_PATCHES}"
            )

    def token_side(self) -> int:
        """Pixels."""
        return self.patch_size * self.merged

    def window_patches(self) -> int:
        """Of one window, if it lies in the picture whole."""
        assert self.window is not None, "it has windows"
        return (self.window * self.merged) ** 2

    def patch_values(self) -> int:
        """Numbers that a patch is made of."""
        return 3 * self.frames * self.patch_size**2


@dataclass(frozen=True)
class SiglipConfig:
    """A ViT over square tiles without a class token, a two-layer projector, and a learned row that ends a line."""

    image_size: Side
    patch_size: Side
    hidden_size: Width
    num_layers: Layers
    num_heads: Heads
    intermediate_size: Width
    norm_eps: Epsilon
    output_size: Width
    """Hidden size of the language model that the projector feeds."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.image_size < self.patch_size:
            raise EngineError(f"image_size {self.image_size} is below patch_size {self.patch_size}")
        if self.hidden_size % self.num_heads:
            raise EngineError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")

    def grid(self) -> int:
        """Visual tokens along one side of a tile; what is left of its pixels is not seen."""
        return self.image_size // self.patch_size

    def tokens_per_tile(self) -> int:
        return self.grid() ** 2

    def rows_per_tile(self) -> int:
        """That are made of a tile, the end of a line last."""
        return self.tokens_per_tile() + 1


VisionConfig = InternVitConfig | QwenVitConfig | SiglipConfig
"""A vision encoder with its projector; which class it is says which of `engine.towers`."""


@dataclass(frozen=True)
class TilingConfig:
    """How a picture becomes tiles: `min_tiles..max_tiles` of the closest aspect ratio, a thumbnail last."""

    min_tiles: Tiles = 1
    max_tiles: Tiles = 12
    thumbnail: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.min_tiles > self.max_tiles:
            raise EngineError(f"min_tiles {self.min_tiles} is above max_tiles {self.max_tiles}")

    def most_tiles(self) -> int:
        """Of one picture, its thumbnail included."""
        return self.max_tiles + self.thumbnail


TILE = 448
"""Pixels along one side of a published tile: what pictures of native size are counted in."""
LONGEST_ASPECT = 200
"""Of a picture of native size: its longer side over the shorter one."""


@dataclass(frozen=True)
class NativeSizeConfig:
    """A picture keeps its size, but for whole tokens, unless it has fewer or more pixels than these."""

    min_pixels: Pixels
    max_pixels: Pixels

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.min_pixels > self.max_pixels:
            raise EngineError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")

    def most_tokens(self, side: int) -> int:
        """Of a picture; side: pixels along one side of a token."""
        # A thin picture is at least a token wide, and what is enlarged is rounded up.
        thin = math.isqrt(LONGEST_ASPECT * self.max_pixels) // side
        enlarged = math.isqrt(LONGEST_ASPECT * self.min_pixels) // side + self.min_pixels // side**2 + 2
        return max(self.max_pixels // side**2, thin, enlarged)


SCALED_DOWN = 1.1
"""Of a canvas in both directions: below that it keeps its tokens."""


@dataclass(frozen=True)
class AnyResolutionConfig:
    """A picture becomes one stretched tile, and a canvas of tiles that keeps its shape.

    grids: rows and columns that a canvas may have, each a pair. max_tiles: a canvas of clearly more tokens than those
    of so many tiles is scaled down to as many.
    """

    grids: tuple[tuple[int, int], ...]
    max_tiles: Tiles

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.grids or any(len(grid) != 2 or not 0 < min(grid) <= max(grid) <= 64 for grid in self.grids):
            raise EngineError(f"grids {shown(self.grids)} are no pairs of rows and columns of 1..64")

    def most_tiles(self) -> int:
        """Of one picture, its stretched tile included."""
        return 1 + max(rows * columns for rows, columns in self.grids)

    def most_rows(self, side: int) -> int:
        """Of a prompt, for one picture of tiles with so many tokens along one side."""
        canvas = max(min(rows * columns, SCALED_DOWN**2 * self.max_tiles) for rows, columns in self.grids)
        lines = side * max(rows for rows, _ in self.grids)
        return math.ceil((1 + canvas) * side**2) + lines


PicturesConfig = TilingConfig | NativeSizeConfig | AnyResolutionConfig
"""How a picture becomes what the vision encoder takes."""


@dataclass(frozen=True)
class PromptConfig:
    """What the family's prompt code needs to know of a checkpoint."""

    template: Name
    system_message: str | None = None
    """Overrides the template's own system message."""
    stop: tuple[Name, ...] = ()
    """Special tokens that end an answer, besides the template's."""
    added: tuple[Name, ...] = ()
    """Tokens of the template that the checkpoint's tokenizer lacks; they get the next ids."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class ModelConfig:
    """One vision-language model as the engine sees it, free of any checkpoint's quirks."""

    family: Name
    name: Name
    language: LanguageConfig
    vision: VisionConfig
    tiling: PicturesConfig
    prompt: PromptConfig

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.vision.output_size != self.language.hidden_size:
            raise EngineError(
                f"output_size {self.vision.output_size} of the vision encoder is not the language model's hidden_size "
                f"{self.language.hidden_size}"
            )
        if not isinstance(self.vision, QwenVitConfig):
            pixels = self.most_tiles() * self.vision.image_size**2
            if pixels > MOST_PIXELS:
                raise EngineError(
                    f"a picture of {self.most_tiles()} tiles of image_size {self.vision.image_size} has {pixels:,} "
                    f"pixels, more than {MOST_PIXELS:,}"
                )

    def most_tiles(self) -> int:
        """Of one picture; of one that is not cut up, how many tiles of `TILE` pixels are as large."""
        match self.tiling:
            case TilingConfig() as tiling:
                return tiling.most_tiles()
            case NativeSizeConfig() as size:
                return max(1, size.max_pixels // TILE**2)
            case AnyResolutionConfig() as canvas:
                return canvas.most_tiles()

    def tokens_of(self, tiles: int) -> int:
        """Visual tokens of so many tiles."""
        match self.vision:
            case InternVitConfig() as vision:
                return tiles * vision.tokens_per_tile()
            case QwenVitConfig() as vision:
                return min(self.most_tokens(), tiles * (TILE // vision.token_side()) ** 2)
            case SiglipConfig() as vision:
                return min(self.most_tokens(), tiles * vision.rows_per_tile())

    def least_tokens(self) -> int:
        """Rows of a prompt that are of the smallest picture."""
        match self.vision, self.tiling:
            case InternVitConfig() as vision, TilingConfig() as tiling:
                return tiling.min_tiles * vision.tokens_per_tile()
            case QwenVitConfig() as vision, NativeSizeConfig() as size:
                return max(1, size.min_pixels // vision.token_side() ** 2)
            case SiglipConfig() as vision, AnyResolutionConfig():
                return vision.rows_per_tile()
        raise AssertionError(f"{self.family} gives its vision encoder what that takes")

    def most_tokens(self) -> int:
        """Rows of a prompt that are of the largest picture, at most."""
        match self.vision, self.tiling:
            case InternVitConfig() as vision, TilingConfig() as tiling:
                return tiling.most_tiles() * vision.tokens_per_tile()
            case QwenVitConfig() as vision, NativeSizeConfig() as size:
                return size.most_tokens(vision.token_side())
            case SiglipConfig() as vision, AnyResolutionConfig() as canvas:
                return canvas.most_rows(vision.grid())
        raise AssertionError(f"{self.family} gives its vision encoder what that takes")
