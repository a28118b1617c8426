"""Questions with lettered options."""

from collections.abc import Mapping

from engine.evaluation.benchmark import LETTER


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
