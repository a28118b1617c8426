"""Ask one question after the other about the same pictures; each with all that was said before. Ctrl-D ends it."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from engine.cli.ask import add_asking_arguments, on_ranks, open_engine
from engine.cli.command_line import flag, printable, run_command
from engine.cli.describe import summarise
from engine.errors import RequestError
from engine.families import Turn
from engine.runtime.tensor_parallel import Ranks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sgl ask` that concern every question."""
    parser.add_argument("engine", type=Path, metavar="ENGINE_DIR")
    add_asking_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Talk, and return the exit status."""
    return run_command(lambda: on_ranks(arguments.engine, lambda ranks: chat(arguments, ranks)))


def chat(arguments: argparse.Namespace, ranks: Ranks | None) -> None:
    """Answer each line. A person may mend a question that is refused and go on. Raises EngineError."""
    engine = open_engine(arguments, ranks)
    with engine.pipeline:
        history: list[Turn] = []
        for question in questions():
            try:
                answer = engine.answer(question, show, history)
            except RequestError as error:
                if not sys.stdin.isatty():
                    raise
                print(error.worded(flag), file=sys.stderr)
                continue
            print(f"\n{summarise(answer)}")
            history.append(Turn(question, answer.text.strip()))  # as the published chat() keeps it


def show(piece: str) -> None:
    print(printable(piece), end="", flush=True)


def questions() -> Iterator[str]:
    """Lines that say something, until there are no more; a person is shown where to type."""
    import readline  # noqa: F401 (lends `input` its line editing; here, as no other command waits for it)

    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            print(end="\n" if prompt else "")
            return
        if line.strip():
            yield line
