"""Questions with lettered options."""

import re
from collections.abc import Mapping

from engine.evaluation.benchmark import LETTER

PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)
"""Behind which a letter may stand, in the order in which they are left out."""


def ask(question: str, options: Mapping[str, str], hint: str = "") -> str:
    """The question, its options line by line, and how to answer."""
    lines = [hint] if hint else []
    return "\n".join([*lines, question, *(f"{letter}. {text}" for letter, text in options.items()), LETTER])


def chosen(prediction: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer means: its first character, or the first option whose words it contains."""
    text = prediction.strip()
    if text[:1] in options:
        return text[0]
    return next((letter for letter, words in options.items() if words in text), None)


def first_letter(prediction: str, letters: str) -> str:
    """`extract_characters_regex` of MME-Benchmarks/Video-MME, `evaluation/eval_your_results.py`: the first of these
    letters behind what a model may say before it; nothing where there is none. Two of its prefixes lack the comma
    between them, so that "Best answer: C" is B there.
    """
    for prefix in PREFIXES:
        prediction = prediction.replace(prefix, "")
    found = re.search(f"[{letters}]", prediction)
    return found[0] if found else ""
