"""Ask an engine directory a question about pictures; the text streams as it comes, then how it came about."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from engine.cli.command_line import add_running_arguments, printable, read_device, run_command
from engine.cli.describe import describe, to_json
from engine.cli.question_options import add_group, read_options
from engine.config import ExitConfig, GuidanceConfig, PictureConfig, SamplingConfig, VideoConfig
from engine.errors import EngineError, RequestError, Setting
from engine.families import Turn
from engine.options import QuestionConfig, all_over, refuse_unread
from engine.runtime.answer import Answer
from engine.runtime.clips import ClipSource, read_clip_source
from engine.runtime.images import ImageSource, read_source
from engine.runtime.images.source import STDIN
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import OnText
from engine.runtime.tensor_parallel import Ranks, started_by_mpiexec
from engine.serve.spelled import spell

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a question. What is not given comes from the engine directory, or is SamplingConfig's default."""
    parser.add_argument("engine", type=Path, metavar="ENGINE_DIR")
    parser.add_argument(
        "question", help="<image> and <video> in it mark where they go; else pictures go first, then clips"
    )
    add = parser.add_argument
    add("--picture", type=Path, metavar="OUT.png", help="draw which visual tokens were kept, and their importance")
    add("--no-stream", action="store_true", help="print the text when it is complete")
    add("--json", action="store_true", help="print one JSON object, nothing else")
    add_asking_arguments(parser)


def add_asking_arguments(parser: argparse.ArgumentParser) -> None:
    """What every question has but its text: pictures and clips, where it runs, and the table of options."""
    add_running_arguments(parser)
    add = add_group(parser, PictureConfig).add_argument
    add(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture: a file, - for standard input, or a URL; give it again for more",
    )
    add("--allow-image-urls", action="store_true", help="fetch both over http and https, from public addresses")
    add_group(parser, VideoConfig).add_argument(
        "--video",
        action="append",
        default=[],
        metavar="FILE",
        help="a clip: a file, - for standard input, or a URL; give it again for more",
    )
    for config in (GuidanceConfig, ExitConfig, SamplingConfig):
        add_group(parser, config)


def run(arguments: argparse.Namespace) -> int:
    """Ask, and return the exit status."""
    return run_command(lambda: on_ranks(arguments.engine, lambda ranks: ask(arguments, ranks)))


def on_ranks(engine: Path, command: Callable[[Ranks | None], None]) -> None:
    """Run a command, where mpiexec started ranks on the first of them and with all. Raises EngineError."""
    if not started_by_mpiexec():
        command(None)
        return
    import_mpi("engine.runtime.tensor_parallel_rank").with_ranks(engine, command)


def import_mpi(module: str) -> ModuleType:
    """A module of ours that needs MPI, in a process that mpiexec started. Raises EngineError."""
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as error:  # mpi4py is missing, or the MPI library that it looks for
        reason = str(error).partition("\n")[0]
        raise EngineError(
            f"mpiexec started this, but MPI does not work in this environment ({reason}); pip install 'sgl-engine[mpi]'"
        ) from None


@dataclass(frozen=True)
class Opened:
    """An engine directory, and how its questions are answered."""

    pipeline: SglPipeline
    images: tuple[ImageSource, ...]
    videos: tuple[ClipSource, ...]
    config: QuestionConfig

    def answer(self, question: str, on_text: OnText | None, history: Sequence[Turn] = ()) -> Answer:
        settings = vars(self.config)
        return self.pipeline.answer(
            self.images, question, on_text=on_text, history=history, videos=self.videos, **settings
        )


def open_engine(arguments: argparse.Namespace, ranks: Ranks | None) -> Opened:
    """As `add_asking_arguments` asks for it. Raises EngineError."""
    given = read_options(arguments)
    if given.get("top_logprobs") and not getattr(arguments, "json", False):
        raise RequestError(Setting("top_logprobs"), " is told by sgl ask --json only; ask so, or leave it out")
    if [*arguments.image, *arguments.video].count(STDIN) > 1:
        raise RequestError(f"{STDIN} is given more than once, and standard input comes once; name files")
    images = tuple(read_source(text, arguments.allow_image_urls) for text in arguments.image)
    videos = tuple(read_clip_source(text, arguments.allow_image_urls) for text in arguments.video)
    # The large model loads when the small one was not sure, so that an early exit does not wait for it.
    pipeline = SglPipeline.load(
        arguments.engine, arguments.threads, preload=False, ranks=ranks, device=read_device(arguments)
    )
    manifest = pipeline.manifest
    config = all_over(QuestionConfig(guidance=manifest.guidance, exit=manifest.exit), given)
    refuse_unread(given, config)
    return Opened(pipeline, images, videos, config)


def ask(arguments: argparse.Namespace, ranks: Ranks | None) -> None:
    """Ask, and print the answer. Raises EngineError."""
    check_picture(arguments.picture, [*arguments.image, *arguments.video])
    engine = open_engine(arguments, ranks)
    with engine.pipeline:
        streams = not (arguments.json or arguments.no_stream)
        streamed: list[str] = []

        def stream(piece: str) -> None:
            print(printable(piece), end="", flush=True)
            streamed.append(piece)

        try:
            answer = engine.answer(arguments.question, stream if streams else None)
        except EngineError:
            if streamed:
                print(flush=True)  # what is said about the error starts a line of its own
            raise
        if streams:
            print()
        elif not arguments.json:
            print(printable(answer.text))
        picture, exit = engine.config.picture, engine.config.exit
        if arguments.picture is not None:
            from engine.cli.draw_pruning import draw_answer, save

            save(draw_answer(engine.images, answer, picture, engine.videos), arguments.picture)
        if arguments.json:
            tokens = spell(answer, engine.pipeline) if any(answer.top) else None
            print(json.dumps(to_json(answer, exit, arguments.picture, tokens), ensure_ascii=False, allow_nan=False))
        else:
            print(describe(answer, exit, arguments.picture))


def check_picture(path: Path | None, images: Sequence[str]) -> None:
    """Raises RequestError before any work is done for a drawing that could not be written."""
    if path is None:
        return
    if not images:
        raise RequestError(
            f"--picture {path} shows what was kept of pictures and clips, and there is none; give an --image or "
            "a --video"
        )
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise RequestError(f"--picture {path} ends in none of {', '.join(PICTURE_SUFFIXES)}; rename it")
    if path.is_dir():
        raise RequestError(f"--picture {path} is a directory; give the name of a file")
    if any(path.exists() and Path(image).exists() and path.samefile(image) for image in images):
        raise RequestError(f"--picture {path} is asked about itself; give the name of another file")
    if not path.parent.is_dir():
        raise RequestError(f"--picture {path} lies in a directory that does not exist; create {path.parent} first")
