"""What is benchmarked: dimensions of models, prompts, and how often they are measured."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.families import family_of, published
from engine.model_config import ModelConfig
from engine.runtime.prompt import PromptTokens
from tools.benchmark.tower_sizes import TINY_TOWERS, TOWERS, Tower
from tools.make_random_pair import LARGE, SMALL

SEED = 0
Published = dict[str, Any]
"""A parsed `config.json` as InternVL2 is published."""


@dataclass(frozen=True)
class PromptSize:
    """Half of the text is before the visual tokens, half after them. Tiles include the thumbnail."""

    tiles: int
    text_tokens: int


@dataclass(frozen=True)
class ClipSize:
    """pixels: width and height of each frame."""

    pixels: tuple[int, int]
    seconds: int


@dataclass(frozen=True)
class Size:
    """Models and prompts of one run of the benchmark.

    models: in words. small, large: of a pair; questions about one model are about the small one.
    short, long: prompts. decode_tokens: fed after a prompt. answer_tokens: of the small model's answer that the
    consistency pass scores. questions: of each case of serving. clip: that is asked about. towers: vision encoders
    that are measured alone. max_tokens: of the pair's engines; None is the default.
    """

    models: str
    small: Published
    large: Published
    short: PromptSize
    long: PromptSize
    decode_tokens: int
    answer_tokens: int
    questions: int
    clip: ClipSize
    towers: tuple[Tower, ...] = TOWERS
    max_tokens: int | None = None


MID_SMALL: Published = SMALL | {
    "force_image_size": 224,
    "llm_config": SMALL["llm_config"]
    | {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 8},
    "vision_config": SMALL["vision_config"]
    | {
        "hidden_size": 192,
        "image_size": 224,
        "intermediate_size": 768,
        "num_attention_heads": 3,
        "num_hidden_layers": 4,
    },
}
MID_LARGE: Published = MID_SMALL | {
    "llm_config": LARGE["llm_config"]
    | {"hidden_size": 640, "intermediate_size": 2560, "num_attention_heads": 10, "num_hidden_layers": 16},
}
TINY: Published = SMALL | {
    "llm_config": LARGE["llm_config"]
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 160,
        "model_type": "qwen2",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
    }
}
HD_MINUTE = ClipSize((1280, 720), 60)
SIZES = {
    "1b": Size(
        "InternVL2-1B (language: Qwen2-0.5B); the large one of a pair: InternVL2-2B (InternLM2-1.8B)",
        family_of(published("InternVL2-1B"))[1],
        family_of(published("InternVL2-2B"))[1],
        PromptSize(3, 32),
        PromptSize(7, 64),
        decode_tokens=20,
        answer_tokens=10,
        questions=24,
        clip=HD_MINUTE,
        max_tokens=12_288,
    ),
    "mid": Size(
        "of our own: 8 layers of width 256, InternLM2 layout; the large one of a pair: 16 of width 640, Llama layout",
        MID_SMALL,
        MID_LARGE,
        PromptSize(3, 32),
        PromptSize(7, 64),
        decode_tokens=8,
        answer_tokens=8,
        questions=24,
        clip=HD_MINUTE,
    ),
    "tiny": Size(
        "tiny, whose times mean nothing",
        TINY,
        LARGE,
        PromptSize(1, 8),
        PromptSize(3, 12),
        decode_tokens=3,
        answer_tokens=4,
        questions=5,
        clip=ClipSize((96, 64), 2),
        towers=TINY_TOWERS,
    ),
}


def make_prompt(config: ModelConfig, size: PromptSize) -> PromptTokens:
    """Random words around random visual features."""
    rng = np.random.default_rng(SEED)
    visual = config.tokens_of(size.tiles)
    return PromptTokens(
        ids=rng.integers(0, config.language.vocab_size, size.text_tokens + visual),
        visual_positions=size.text_tokens // 2 + np.arange(visual),
        features=rng.standard_normal((visual, config.language.hidden_size), np.float32),
    )


def make_text_prompt(config: ModelConfig, size: PromptSize) -> PromptTokens:
    """As many random words as `make_prompt` has tokens, for engines that take words only."""
    prompt = make_prompt(config, size)
    return PromptTokens(prompt.ids, np.empty(0, np.int64), np.empty((0, config.language.hidden_size), np.float32))


def make_answer(config: ModelConfig, tokens: int) -> np.ndarray:
    """Random words to feed one by one: every engine decodes the same."""
    return np.random.default_rng(SEED + 1).integers(0, config.language.vocab_size, tokens)
