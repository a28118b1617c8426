"""What all command lines share: errors as one sentence with an exit status, argument types, sizes in words."""

import argparse
import errno
import os
import sys
import unicodedata
from collections.abc import Callable
from enum import StrEnum
from typing import NoReturn

from engine.config import ServingConfig
from engine.errors import EngineError
from engine.target import Device
from engine.units import read_size, size_text

USER_ERROR = 2
SHORTER = {"world_size": "tp"}
"""Settings that are not typed by their own name."""
INTERRUPTED = 130
"""What a shell reports for a command that Ctrl-C ended."""
FULL = {errno.ENOSPC, errno.EDQUOT}


class CommandParser(argparse.ArgumentParser):
    """A mistake on the command line ends it like any other: in one sentence, without the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


def run_command(command: Callable[[], None], interrupted: str = "interrupted") -> int:
    """Exit status of a command; a user's error and Ctrl-C end it with one sentence on stderr."""
    try:
        command()
        sys.stdout.flush()
    except EngineError as error:
        print(error.worded(flag), file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; closing stderr keeps the interpreter from complaining at exit.
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.filename is not None or error.errno not in FULL:
            raise
        print(f"what was to be written found no room ({error.strerror}); free some, and run it again", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter writes the rest at its exit
        return USER_ERROR
    return 0


def flag(setting: str) -> str:
    """As it is typed."""
    return f"--{SHORTER.get(setting, setting).replace('_', '-')}"


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """Of every command that opens an engine directory: `threads`, and `device` for `read_device`."""
    add = parser.add_argument
    add("--threads", type=positive, help="of the whole process (default: the cores that it may use)")
    add("--device", choices=names(Device), help="what runs the engines (default: what their target is for)")


def read_device(arguments: argparse.Namespace) -> Device | None:
    return None if arguments.device is None else Device(arguments.device)


def positive(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def fraction(text: str) -> float:
    """An argument between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def names(choices: type[StrEnum]) -> list[str]:
    """The values of an option; argparse would show an enum's members as Python writes them."""
    return [str(choice) for choice in choices]


def numbers(text: str) -> tuple[int, ...]:
    """An argument such as `2,4,9`."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 2,4,9")
    return tuple(int(part) for part in parts)


def size(text: str) -> int:
    """An argument such as `80GB`, `24GiB` or `24` (GB) -> bytes."""
    try:
        return read_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_serving_arguments(parser: argparse.ArgumentParser, refuses: bool = True) -> None:
    """The fields of ServingConfig, of a process that answers many questions. refuses: when more come than may wait."""
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--max-running", type=positive, default=ServingConfig.max_running, help=f"questions answered at once {default}")
    if refuses:
        add("--max-waiting", type=int, default=ServingConfig.max_waiting, help=f"questions that may wait {default}")
    add("--kv-memory", type=size, metavar="SIZE", help="of keys and values (default: half of what is free)")
    add("--prefill-chunk", type=positive, default=ServingConfig.prefill_chunk, help=f"prompt rows at once {default}")
    add_feature_cache(parser)
    add(
        "--prefix-cache",
        type=size,
        default=ServingConfig.prefix_cache,
        metavar="SIZE",
        help="keys and values of prompts' beginnings that are kept for further questions about the same pictures; 0 "
        f"keeps none (default: {size_text(ServingConfig.prefix_cache)})",
    )
    add("--small-apart", action="store_true", help="the small model on a GPU of its own, behind the large model's")


def add_feature_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--feature-cache",
        type=size,
        default=ServingConfig.feature_cache,
        metavar="SIZE",
        help="visual features that each running model keeps, for further questions about the same pictures; 0 keeps "
        f"none (default: {size_text(ServingConfig.feature_cache)})",
    )


def printable(text: str) -> str:
    """A model's text without control characters, which could steer the terminal."""
    return "".join(char if char in "\n\t" or unicodedata.category(char) != "Cc" else "\ufffd" for char in text)
