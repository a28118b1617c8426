"""The words that the miniature models know, as a `tokenizer.json`: byte-level BPE whose words need no merges."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from engine.build.tokenizer_steps import MINIATURE_SPACE, MINIATURE_WORDS
from tools.miniature.scenes import CELL, COLOURS, NUMBERS, SHAPES, SIDE

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPECIAL_TOKENS = {
    "internvl_chat": (*CHAT_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>"),
    "qwen2_vl": (*CHAT_TOKENS, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
}
"""By `model_type`."""
END = "<|im_end|>"
ROLES = ("system", "user", "assistant")
QUESTION_WORDS = ("Number", "on", "Colour", "Shape", "of", "How", "many", "Where", "is", "Higher", "or")
PLURALS = tuple(f"{shape}s" for shape in SHAPES)
COLUMNS = tuple(chr(ord("A") + column) for column in range(SIDE // CELL))
ROWS = tuple(str(row + 1) for row in range(SIDE // CELL))
COUNTS = ("none", "one", "two", "three", "four")
"""Written out, so that a count is no row."""
WORDS = (*ROLES, *QUESTION_WORDS, *COLOURS, *SHAPES, *PLURALS, *COUNTS, *COLUMNS, *ROWS, *map(str, NUMBERS))


def make_tokenizer(special_tokens: Sequence[str]) -> Tokenizer:
    """A word is one token wherever it stands; white space is no token, so that prompts stay short."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [word for word in WORDS if word not in symbols]
    vocab = {piece: number for number, piece in enumerate([*symbols, *words])}
    # ignore_merges: a word that is in the vocabulary is not spelt in bytes.
    tokenizer = Tokenizer(models.BPE(vocab, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(MINIATURE_SPACE), "removed"),
            pre_tokenizers.Split(Regex(MINIATURE_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special_tokens])
    return tokenizer


def token_id(tokenizer: Tokenizer, word: str) -> int:
    """Of a word that is one token."""
    number = tokenizer.token_to_id(word)
    assert number is not None, word
    return number


def write_tokenizer(directory: Path, special_tokens: Sequence[str]) -> None:
    """`tokenizer.json`, and the settings that published checkpoints keep beside it."""
    make_tokenizer(special_tokens).save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {
        "additional_special_tokens": list(special_tokens[1:]),
        "eos_token": END,
        "pad_token": special_tokens[0],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
