"""What `make demo` shows: build a miniature pair, then ask about drawn pictures."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from engine.config import BuildConfig, ExitConfig, ExitCriterion, GuidanceConfig, Normalise, SamplingConfig
from engine.runtime.pipeline import Question, SglPipeline
from tools.build_progress import build_progress
from tools.command_line import CommandParser, run_command
from tools.describe import describe
from tools.draw_pruning import draw_answer, save
from tools.make_random_pair import write_pair
from tools.scenes import make_scene

MINIATURE = Path("models/miniature")
"""Trained checkpoints `small` and `large`; without them the demo makes random ones."""
SURVEY = ExitConfig(exit_threshold=sys.float_info.min, criterion=ExitCriterion.CONSISTENCY)
"""Any answer passes, so that only the small model runs, but it has to compute the consistency."""


@dataclass(frozen=True)
class Scene:
    """A picture to draw."""

    seed: int
    width: int
    height: int
    objects: int

    def draw(self) -> Image.Image:
        return make_scene(self.seed, self.width, self.height, self.objects)[0]


QUESTIONS: tuple[tuple[str, tuple[Scene, ...]], ...] = (
    ("What number is on the blue shape?", (Scene(1, 640, 420, 8),)),
    ("How many circles are there?", (Scene(2, 448, 448, 6),)),
    ("Which colour is the shape with the largest number?", (Scene(3, 480, 720, 9),)),
    ("Which of the two pictures has more triangles?", (Scene(4, 640, 480, 7), Scene(5, 360, 360, 4))),
)
GUIDANCE = GuidanceConfig()
SAMPLING = SamplingConfig(max_new_tokens=16)
EXIT = ExitConfig(normalise=Normalise.MEAN)
"""The mean, not the paper's product: of the 16 tokens of an answer that never stops, a product leaves nothing."""


def demo(out: Path) -> None:
    """Build, ask, print, draw; everything is written under `out`."""
    pair = find_pair(out)
    with build_progress(quiet=False) as on_progress:
        from engine.build.builder import build_pair

        report = build_pair(BuildConfig(small=pair / "small", large=pair / "large", out=out / "engine"), on_progress)
    print(f"Engines of {pair} are in {out / 'engine'} ({report.seconds:.1f} s).")
    pipeline = SglPipeline.load(out / "engine")
    questions = [
        Question(tuple(scene.draw() for scene in scenes), text, GUIDANCE, EXIT, SAMPLING) for text, scenes in QUESTIONS
    ]
    exit = replace(EXIT, exit_threshold=middle_score(pipeline, questions))
    print(
        f"The exit threshold is set to {exit.exit_threshold:.3g}, the middle of these questions' decision scores, so "
        "that both early exits and answers of the large model are shown; a real pair gets it from calibration."
    )
    for number, question in enumerate(questions, 1):
        show(pipeline, replace(question, exit=exit), out / f"question-{number}.png")


def find_pair(out: Path) -> Path:
    """The trained miniature pair, or one with random weights."""
    if all((MINIATURE / name / "config.json").is_file() for name in ("small", "large")):
        return MINIATURE
    print("The weights of this pair are RANDOM, so the answers are gibberish; all else is real.")
    write_pair(out / "checkpoints", seed=0)
    return out / "checkpoints"


def middle_score(pipeline: SglPipeline, questions: list[Question]) -> float:
    """Between the decision scores of the surer and the less sure half of the questions."""
    survey = [replace(question, exit=replace(SURVEY, normalise=EXIT.normalise)) for question in questions]
    scores = []
    for answer in pipeline.answer_batch(survey):
        assert answer.decision is not None and answer.decision.consistency is not None
        scores.append((answer.decision.confidence + answer.decision.consistency) / 2)
    scores.sort()
    middle = len(scores) // 2
    return (scores[middle - 1] + scores[middle]) / 2


def show(pipeline: SglPipeline, question: Question, path: Path) -> None:
    assert question.exit is not None
    answer = pipeline.answer_batch([question])[0]
    save(draw_answer(pipeline.manifest, question.images, answer), path)
    pictures = "1 picture" if len(question.images) == 1 else f"{len(question.images)} pictures"
    print(f"\n{question.text} ({pictures})")
    print(f"  {answer.text!r}")
    print(describe(answer, question.exit, path))


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
