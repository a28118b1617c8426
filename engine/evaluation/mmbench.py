"""MMBench, development: accuracy over lettered options, circular where the file holds a question in several orders."""

import base64
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from engine.evaluation.benchmark import Benchmark, Mark, mean_grade
from engine.evaluation.example import Example
from engine.evaluation.files import examples, first_of, read_table
from engine.evaluation.multiple_choice import ask, chosen

QUESTIONS = ("mmbench_dev_*.tsv", "MMBench_DEV_*.tsv")
LETTERS = "ABCDE"
ORDERS = 1_000_000
"""A question with its options in another order has the same index but for a multiple of this."""
ABSENT = ("", "nan")


def load(data: Path) -> list[Example]:
    """Raises RequestError."""
    path = first_of(data, *QUESTIONS)

    def rows() -> Iterator[Example]:
        for row in read_table(path):
            options = {letter: row[letter] for letter in LETTERS if (row.get(letter) or "") not in ABSENT}
            hint = row.get("hint") or ""
            yield Example(
                row["index"],
                partial(base64.b64decode, row["image"]),
                ask(row["question"], options, "" if hint in ABSENT else hint),
                (row["answer"], *(f"{letter}. {text}" for letter, text in options.items())),
                kind=row["category"],
                group=str(int(row["index"]) % ORDERS),
            )

    return examples(path, rows())


def right_option(prediction: str, example: Example) -> float:
    """1 or 0."""
    letter, *options = example.answers
    return float(chosen(prediction, {option[0]: option[3:] for option in options}) == letter)


def circular(marks: Sequence[Mark]) -> dict[str, float]:
    """A question is right if it is in every order of its options."""
    groups: dict[str, list[Mark]] = defaultdict(list)
    for mark in marks:
        groups[mark.group].append(mark)
    return mean_grade([min(group, key=lambda mark: mark.grade) for group in groups.values()])


MMBENCH = Benchmark(
    "mmbench", "circular accuracy", QUESTIONS[0], load, right_option, max_new_tokens=10, summarise=circular
)
