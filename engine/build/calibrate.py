"""What an engine is calibrated on: inputs that drive real activations through it. The same at every build.

Activations depend on the model's own weights far more than on what is said or shown, so a few hundred tokens do: random
words of the vocabulary around the model's own features of pictures that hold gradients, edges, texture and noise.
"""

import numpy as np
from PIL import Image, ImageDraw

from engine import bindings as names
from engine.families.base import Family
from engine.model_config import LanguageConfig, ModelConfig

Inputs = dict[str, np.ndarray]
"""By the name of the binding."""
SEED = 20250
TEXT_TOKENS = 96
"""Random words before the visual tokens, and as many after them: only these are compared as logits."""
SHAPES = 24


def vision_inputs(family: Family, config: ModelConfig) -> Inputs:
    """[N,3,S,S]: a scene of shapes over a gradient, noise, and a scene of stripes, as the family cuts them up."""
    size = config.vision.image_size
    rng = np.random.default_rng(SEED)
    pictures = [_shapes(size, rng), Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)), _stripes(size)]
    tiles = [family.split_tiles(picture, config).pixel_values for picture in pictures]
    return {names.PIXEL_VALUES: np.concatenate(tiles)}


def language_inputs(config: LanguageConfig, features: np.ndarray, num_prune_points: int) -> Inputs:
    """[V,C] -> a prompt with these visual features in its middle, nothing pruned, all caches empty.

    Angles are those of unscaled RoPE: a prompt this short is within every published length.
    """
    rng = np.random.default_rng(SEED)
    visual = len(features)
    length = visual + 2 * TEXT_TOKENS
    row = np.arange(length)[None]
    slot = row - TEXT_TOKENS
    half = config.head_dim // 2
    angle = row[:, :, None] * config.rope.theta ** (-np.arange(half) / half)
    inputs = {
        names.INPUT_IDS: rng.integers(0, config.vocab_size, (1, length)),
        names.VISUAL_EMBEDS: features,
        names.VISUAL_SLOT: np.where((slot >= 0) & (slot < visual), slot, -1),
        names.ROPE_COS: np.cos(angle).astype(np.float32),
        names.ROPE_SIN: np.sin(angle).astype(np.float32),
        names.LOGIT_INDEX: row[:, -TEXT_TOKENS:],
        # A graph with scores computes them in passing; nothing here looks at them.
        names.SCORE_ROW: row[:, -1:],
        names.SCORE_WEIGHT: np.ones((1, 1), np.float32),
        names.VISUAL_COLUMN: row[:, :1],
    }
    for segment in range(num_prune_points + 1):
        inputs[names.past_length(segment)] = np.zeros(1, np.int32)
        inputs[names.kv_length(segment)] = np.array([length], np.int32)
    inputs |= {names.keep_index(segment): row for segment in range(1, num_prune_points + 1)}
    # One array for all: nothing writes into the cache that a call starts from.
    empty = np.zeros((1, config.num_kv_heads, length, config.head_dim), np.float32)
    for layer in range(config.num_layers):
        inputs |= dict.fromkeys(names.past_kv(layer), empty)
    return inputs


def _shapes(size: int, rng: np.random.Generator) -> Image.Image:
    gradient = Image.linear_gradient("L").resize((size, size))
    picture = Image.merge("RGB", [gradient.rotate(90 * turn) for turn in range(3)])
    draw = ImageDraw.Draw(picture)
    for index in range(SHAPES):
        x, y = (int(place) for place in rng.integers(0, size, 2))
        radius = int(rng.integers(size // 32 + 1, size // 6 + 2))
        box = (x - radius, y - radius, x + radius, y + radius)
        colour = tuple(int(part) for part in rng.integers(0, 256, 3))
        (draw.ellipse if index % 2 else draw.rectangle)(box, fill=colour)
    return picture


def _stripes(size: int) -> Image.Image:
    """Black and white, ever narrower towards the right."""
    place = np.arange(size) / size
    wave = np.where(np.sin(2 * np.pi * 16 * place**2) > 0, 255, 0).astype(np.uint8)
    return Image.fromarray(np.tile(wave, (size, 1))).convert("RGB")
