"""What others wrote, as it may stand in a sentence of ours."""

LONGEST = 200


def short(text: str, longest: int = LONGEST) -> str:
    """One line of at most so many characters, without any that a terminal would obey."""
    line = "".join(letter if letter.isprintable() else "?" for letter in text[: longest + 1])
    return line if len(line) <= longest else f"{line[:longest]}..."
