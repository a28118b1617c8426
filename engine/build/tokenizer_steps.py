"""What the steps of a stranger's `tokenizer.json` may do to a text: nothing whose time or length has no bound."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.bounds import shown
from engine.errors import CheckpointError

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = QWEN2_WORDS.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
MINIATURE_SPACE, MINIATURE_WORDS = r"\s+", r"\p{L}+|\p{N}+|[^\p{L}\p{N}]"
KNOWN_PATTERNS = (QWEN2_WORDS, LLAMA3_WORDS, MINIATURE_SPACE, MINIATURE_WORDS)
"""Regular expressions that cut a text into words. Others may try half a second at every letter; then the library gives
up with a panic."""
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
MOST_STEPS = 64
LONGEST_PREFIX = 16
"""Characters that a step may put before a text."""


def check_steps(path: Path, data: dict[str, Any]) -> None:
    """Raises CheckpointError. data: of a parsed `tokenizer.json`."""
    objects = [value for part in PARTS for value in _objects(data.get(part))]
    if sum("type" in value for value in objects) > MOST_STEPS:
        raise CheckpointError(f"{path} has more than {MOST_STEPS} steps to a token; use a published tokenizer")
    for value in objects:
        if "Regex" in value and value["Regex"] not in KNOWN_PATTERNS:
            raise CheckpointError(
                f"{path} cuts text by the regular expression {shown(value['Regex'])}, which is none of those of the "
                "published models that are read here; use a published tokenizer"
            )
    for value in objects:
        if _grows(value):
            raise CheckpointError(
                f"{path} makes text longer in its step {shown(value.get('type', 'single'))}; use a published tokenizer"
            )


def _grows(value: dict[str, Any]) -> bool:
    """Whether a text may be much longer behind a step. Steps may follow each other, so none may double it."""
    pattern, content = value.get("pattern"), value.get("content")
    if value.get("type") == "Replace":
        # What a regular expression finds may be empty.
        found = pattern.get("String") if isinstance(pattern, dict) else None
        return not (isinstance(found, str) and isinstance(content, str) and len(content) <= len(found))
    if value.get("type") == "Prepend":
        return not (isinstance(value.get("prepend"), str) and len(value["prepend"]) <= LONGEST_PREFIX)
    single = value.get("single")
    return isinstance(single, list) and sum(isinstance(part, dict) and "Sequence" in part for part in single) > 1


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All within a parsed JSON value, itself among them."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(item)
