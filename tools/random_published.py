"""Answer a question with random weights of a published size's dimensions: what a build and an answer take here.

The weights are written, built with the miniature that is to guide them, and asked, each step in a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.cli.build_progress import build_progress
from engine.cli.command_line import CommandParser, positive, run_command
from engine.errors import EngineError
from engine.families import published, published_names
from engine.target import Precision
from engine.units import size_text
from tools.random_weights import write_weights
from tools.scenes import make_scene

PICTURE = (640, 480)
QUESTION = "What is there?"


def write_published(size: Path, out: Path, on_progress: Callable[[float], None], seed: int = 0) -> int:
    """A checkpoint of the dimensions of `size`, a directory with `config.json` -> bytes of its weights, in bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(size / "config.json", out)
    return write_weights(out, on_progress, seed)


@dataclass(frozen=True)
class Spent:
    """What a process took, and what it printed."""

    seconds: float
    peak_bytes: int
    printed: str

    def __str__(self) -> str:
        return f"{self.seconds:,.0f} s, at most {size_text(self.peak_bytes)} of memory"


def spend(arguments: Sequence[str]) -> Spent:
    """Run a command of `sgl`. Raises EngineError."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "engine.cli", *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise EngineError(f"sgl {arguments[0]} ended with exit status {process.returncode}; it says above why")
    return Spent(time.monotonic() - start, 1024 * usage.ru_maxrss, printed)


def answer_random(
    size: Path,
    small: Path,
    precision: Precision,
    new_tokens: int,
    work: Path,
    on_progress: Callable[[str, float], None],
) -> None:
    """Prints what each step took."""
    checkpoint, built, picture = work / "checkpoint", work / "engine", work / "picture.png"
    written = write_published(size, checkpoint, lambda fraction: on_progress("random weights", fraction))
    print(f"{size.name}: {size_text(written)} of random weights", flush=True)
    image, _ = make_scene(0, *PICTURE, objects=6)
    image.save(picture)
    models = ["--small", str(small), "--large", str(checkpoint), "--out", str(built)]
    limits = ["--max-tokens", "1024", "--max-batch", "1", "--max-pixels", str(PICTURE[0] * PICTURE[1])]
    print(f"built in {precision}: {spend(['build', *models, *limits, '--precision', precision])}", flush=True)
    asked = ["ask", str(built), "--image", str(picture), QUESTION, "--no-early-exit", "--json"]
    spent = spend([*asked, "--max-new-tokens", str(new_tokens)])
    answer = json.loads(spent.printed)
    print(f"answered by {answer['answered_by']}, {answer['generated_tokens']} tokens: {spent}")


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="random_published", description=__doc__)
    add = parser.add_argument
    add("--size", default="Qwen2-VL-2B", help=f"of {', '.join(published_names())}, or a directory with config.json")
    add("--small", type=Path, default=Path("models/miniature/small"), help="what guides it (default: %(default)s)")
    add("--precision", type=Precision, choices=list(Precision), default=Precision.INT8, help="(default: %(default)s)")
    add("--new-tokens", type=positive, default=20, help="of the answer, at most (default: %(default)s)")
    add("--work", type=Path, help="where to make the temporary directory, about 8 GB for the default size")
    arguments = parser.parse_args(argv)

    def command() -> None:
        size = Path(arguments.size) if Path(arguments.size).is_dir() else published(arguments.size)
        with (
            tempfile.TemporaryDirectory(prefix="random-", dir=arguments.work) as work,
            build_progress(quiet=False) as on_progress,
        ):
            answer_random(size, arguments.small, arguments.precision, arguments.new_tokens, Path(work), on_progress)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
