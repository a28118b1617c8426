"""Hold `sgl plan --load` against the pipeline that it predicts: measure runs here, let questions come, compare.

Both get the same questions at the same times, so that what differs is the prediction and not chance. They are simulated
twice: with the runs that were measured before, and replayed with what runs took while the questions were answered. The
second says whether the simulation is right, the difference between both how far the machine is from what was measured:
at 80 % load, runs that take a percent longer make answers take about four percent longer (M/D/1).
"""

import argparse
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from engine.build.builder import build_pair
from engine.cli.build_progress import OnProgress, build_progress
from engine.cli.command_line import CommandParser, positive, run_command
from engine.config import NEVER_EXITS, BuildConfig, ExitConfig, ExitCriterion, SamplingConfig, ServingConfig
from engine.planning.load.course import Course, Side, Size, course, kv_token_bytes
from engine.planning.load.measured import Note, measured_times, times_of, watched
from engine.planning.load.simulate import Answering, Arrival, World
from engine.planning.load.times import PairTimes
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from tools.benchmark.load import Asked, Serving
from tools.benchmark.sizes import SEED, SIZES
from tools.random_checkpoint import write_checkpoint, write_tokenizer

LOADS = (0.5, 0.8)
"""Of what is answered when questions always wait."""
EXITS = 0.4
TARGET = 0.15
AT_ONCE = (1, 1, 2, 4, 8, 16)
"""Questions together while runs are measured."""
PERCENTILES = (50, 95)
FLOAT_BITS = 32


@dataclass(frozen=True)
class Compared:
    """Seconds, of one figure at one load."""

    load: float
    figure: str
    predicted: float
    replayed: float
    measured: float

    def ratio(self) -> float:
        return self.predicted / self.measured

    def replayed_ratio(self) -> float:
        return self.replayed / self.measured

    def passed(self) -> bool:
        return abs(self.ratio() - 1) <= TARGET


def make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m tools.load_check", description=__doc__)
    add, default = parser.add_argument, "(default: %(default)s)"
    add("engine", type=Path, nargs="?", metavar="ENGINE_DIR", help="(default: random weights of benchmark size mid)")
    add("--threads", type=positive, default=2, help=f"of the engines {default}")
    add("--questions", type=positive, default=150, help=f"at each load {default}")
    add("--tokens", type=positive, default=12, help=f"of an answer {default}")
    add("--rounds", type=positive, default=2, help=f"measured anew in each, as a machine drifts {default}")
    add("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    return run_command(lambda: check(arguments))


def check(arguments: argparse.Namespace) -> None:
    compared: list[Compared] = []
    with tempfile.TemporaryDirectory(prefix="load-check") as work, build_progress(quiet=False) as on_progress:
        engine = arguments.engine or build_random(Path(work), on_progress)
        picture = draw(Path(work))
        with SglPipeline.load(engine, arguments.threads, feature_cache=0, prefix_cache=0) as pipeline:
            for number in range(arguments.rounds):
                compared += compare(pipeline, picture, arguments, number, on_progress)
    print(f"{'load':>5}  {'':14}{'predicted':>10}{'replayed':>10}{'measured':>10}{'ratios':>14}")
    for one in compared:
        seconds = "".join(f"{1000 * value:7,.0f} ms" for value in (one.predicted, one.replayed, one.measured))
        ratios = f"{one.ratio():7.2f}{one.replayed_ratio():7.2f}"
        print(f"{one.load:5.0%}  {one.figure:14}{seconds}{ratios}{'' if one.passed() else '  *'}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([vars(one) for one in compared], indent=2), encoding="utf-8")
    missed = sum(not one.passed() for one in compared)
    print(f"{len(compared) - missed} of {len(compared)} figures predicted within {TARGET:.0%} of what was measured")


def compare(
    pipeline: SglPipeline, picture: Path, arguments: argparse.Namespace, number: int, on_progress: OnProgress
) -> list[Compared]:
    tokens, count = arguments.tokens, arguments.questions
    sampling = SamplingConfig(max_new_tokens=tokens)
    exit = ExitConfig(exit_threshold=NEVER_EXITS, criterion=ExitCriterion.CONFIDENCE)

    def question(index: int) -> Question:
        return Question((str(picture),), f"{number}: what is {index}?", exit=exit, sampling=sampling)

    times = measured_times(pipeline, question, AT_ONCE, lambda fraction: on_progress(f"runs, round {number}", fraction))
    asked = course_of(pipeline, question(0))
    limit = capacity(times, asked, count)
    print(f"round {number}: {limit:.2f} questions/s predicted at most")
    exits = random.Random(SEED + number).choices([True, False], [EXITS, 1 - EXITS], k=count)
    compared = []
    for load in LOADS:
        rate, seed = load * limit, SEED + number
        at = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
        questions = [Asked(f"what is {index}?", picture, tokens, exit) for index, exit in enumerate(exits)]
        notes: list[Note] = []
        with watched(pipeline, notes):
            served = Serving(pipeline).arriving(questions, rate, seed).served
        arrivals = [Arrival(float(when), asked, exit) for when, exit in zip(at, exits, strict=True)]
        simulated = []
        meanwhile = times_of(notes)
        for taken in (times, meanwhile):
            world = World(taken, answering(pipeline))
            world.run(iter(arrivals), count + 1)
            simulated.append(world.served)
        now = capacity(meanwhile, asked, count)
        print(
            f"load {load:.0%}: {now:.2f} questions/s at most as runs were meanwhile, {limit / now:.2f} of it predicted"
        )
        for name, part in (("first text", "first"), ("answer", "last")):
            all_values = [getattr(one, part) for one in simulated] + [[getattr(one, part) for one in served]]
            for share in PERCENTILES:
                figures = (float(np.percentile(values, share)) for values in all_values)
                compared.append(Compared(load, f"{name} p{share}", *figures))
        on_progress(f"load {load:.0%}, round {number}", 1.0)
    return compared


def answering(pipeline: SglPipeline) -> Answering:
    return Answering(ServingConfig.max_running, 10**6, pipeline.load_now().kv_memory)


def capacity(times: PairTimes, asked: Course, count: int) -> float:
    """Questions a second, when some always wait."""
    world = World(times, Answering(ServingConfig.max_running, count))
    world.run(iter([Arrival(0.0, asked, exits=index < EXITS * count) for index in range(count)]), count + 1)
    return count / world.now


def course_of(pipeline: SglPipeline, question: Question) -> Course:
    """Of a question that both models answer, as an answer says how large it is."""
    (answer,) = pipeline.answer_batch([question])
    generated = len(answer.token_ids)
    size = Size((answer.tiles,), answer.prompt_tokens - answer.visual_tokens, generated, generated, answer.accepted)
    small, large = (
        Side(model.config, kv_token_bytes(model.config.language, FLOAT_BITS), model.prefill_chunk, guidance)
        for model, guidance in ((pipeline.small, None), (pipeline.large, answer.guidance))
    )
    exit, sampling = question.exit, question.sampling
    assert exit is not None
    assert sampling is not None
    return course(size, small, large, exit, sampling.max_new_tokens)


def draw(directory: Path) -> Path:
    """Noise, of a tile and a half."""
    path = directory / "picture.png"
    Image.fromarray(np.random.default_rng(SEED).integers(0, 256, (224, 448, 3), np.uint8)).save(path)
    return path


def build_random(directory: Path, on_progress: OnProgress) -> Path:
    size, out = SIZES["mid"], directory / "pair"
    for role, published in (("small", size.small), ("large", size.large)):
        write_checkpoint(directory / role, published, SEED, shards=1)
        write_tokenizer(directory / role)
    build_pair(BuildConfig(directory / "small", directory / "large", out), on_progress)
    return out


if __name__ == "__main__":
    sys.exit(main())
