"""What a model is, free of any checkpoint's quirks: dimensions, position embedding, tiling, prompt. Frozen."""

from dataclasses import dataclass
from enum import StrEnum


class RopeScaling(StrEnum):
    NONE = "none"
    DYNAMIC_NTK = "dynamic_ntk"
    LINEAR = "linear"
    LONG = "long"
    LLAMA3 = "llama3"


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding of a language model; angles are computed by the runtime (`engine/runtime/rope.py`)."""

    theta: float
    max_positions: int
    """Positions that the model was published for."""
    scaling: RopeScaling = RopeScaling.NONE
    factor: float = 1.0
    """Stretch of DYNAMIC_NTK, LINEAR and LLAMA3."""
    original_max_positions: int | None = None
    """Trained length before LONG or LLAMA3 scaling."""
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    """Per-frequency divisors of LONG, one for each half head dimension."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True)
class LanguageConfig:
    """A decoder of the Llama layout: RMSNorm, rotary GQA, gated SiLU MLP."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    norm_eps: float
    rope: RopeConfig
    qkv_bias: bool = False
    qk_norm: bool = False
    """An RMSNorm over each head's query and key, before they are rotated."""
    tie_word_embeddings: bool = False


class Norm(StrEnum):
    LAYER = "layer_norm"
    RMS = "rms_norm"


@dataclass(frozen=True)
class VisionConfig:
    """A ViT over square tiles followed by pixel shuffle and a two-layer projector (`mlp1`)."""

    image_size: int
    patch_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    norm: Norm
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    downsample_ratio: float
    output_size: int
    """Hidden size of the language model that the projector feeds."""

    def grid(self) -> int:
        """Visual tokens along one side of a tile."""
        return int(self.image_size // self.patch_size * self.downsample_ratio)

    def tokens_per_tile(self) -> int:
        return self.grid() ** 2


@dataclass(frozen=True)
class TilingConfig:
    """How a picture becomes tiles: `min_tiles..max_tiles` of the closest aspect ratio, a thumbnail last."""

    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True

    def most_tiles(self) -> int:
        """Of one picture, its thumbnail included."""
        return self.max_tiles + self.thumbnail


@dataclass(frozen=True)
class PromptConfig:
    """What the family's prompt code needs to know of a checkpoint."""

    template: str
    system_message: str | None = None
    """Overrides the template's own system message."""


@dataclass(frozen=True)
class ModelConfig:
    """One vision-language model as the engine sees it, free of any checkpoint's quirks."""

    family: str
    name: str
    language: LanguageConfig
    vision: VisionConfig
    tiling: TilingConfig
    prompt: PromptConfig
