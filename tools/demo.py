"""What `make demo` shows: build the trained miniature pair, then ask about scenes of the kind that it has learnt."""

import sys
from pathlib import Path

from engine.cli.build_progress import build_progress
from engine.cli.command_line import CommandParser, run_command
from engine.cli.describe import describe
from engine.cli.draw_pruning import draw_answer, save
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, SamplingConfig
from engine.errors import RequestError
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from tools.miniature.questions import LONGEST_ANSWER, Kind, render, score

PAIR = Path("models/miniature")
"""Trained checkpoints `small` and `large`."""
QUESTIONS = (
    (0, Kind.NUMBER),
    (1, Kind.COMPARE),
    (2, Kind.LOCATE),
    (3, Kind.COUNT),
    (4, Kind.COLOUR),
    (5, Kind.COMPARE),
)
"""Test scenes, and what is asked about them."""
GUIDANCE = GuidanceConfig()
SAMPLING = SamplingConfig(max_new_tokens=LONGEST_ANSWER)
EXIT = ExitConfig(exit_threshold=0.9)


def demo(out: Path) -> None:
    """Build, ask, print, draw; everything is written under `out`. Raises EngineError."""
    if not PAIR.is_dir():
        raise RequestError(f"{PAIR} does not exist; run the demo in the root of the repository")
    with build_progress(quiet=False) as on_progress:
        from engine.build.builder import build_pair

        report = build_pair(BuildConfig(small=PAIR / "small", large=PAIR / "large", out=out / "engine"), on_progress)
    print(f"Engines of {PAIR} are in {out / 'engine'} ({report.seconds:.1f} s).")
    pipeline = SglPipeline.load(out / "engine")
    for number, (seed, kind) in enumerate(QUESTIONS, 1):
        show(pipeline, seed, kind, out / f"question-{number}.png")


def show(pipeline: SglPipeline, seed: int, kind: Kind, path: Path) -> None:
    picture, asked = render(seed, kind)
    answer = pipeline.answer_batch([Question((picture,), asked.text, GUIDANCE, EXIT, SAMPLING)])[0]
    save(draw_answer((picture,), answer), path)
    verdict = "right" if score(asked, answer.text) else f"wrong, it is {asked.answer}"
    print(f"\n{asked.text}\n  {answer.text!r} ({verdict})")
    print(describe(answer, EXIT, path))


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="directory to write to (default: %(default)s)")
    arguments = parser.parse_args(argv)

    def command() -> None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        demo(arguments.out)

    return run_command(command, "interrupted; run the same command again to resume")


if __name__ == "__main__":
    sys.exit(main())
