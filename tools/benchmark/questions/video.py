"""A question about a clip: seconds of each stage, and what share of them reading takes."""

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from engine.config import ExitConfig, ExitCriterion, GuidanceConfig, SamplingConfig, VideoConfig
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Stage
from engine.video.choice import internvl2
from engine.video.reader import read_clip
from tools.benchmark.bench import Bench
from tools.benchmark.interleave import Effort, Spread, spread
from tools.benchmark.pair import build_engines
from tools.benchmark.report import Row, Section, Unit
from tools.benchmark.sizes import SEED
from tools.benchmark.worker import Worker
from tools.clips import write_clip

EFFORT = Effort(loads=1, runs=3)
FRAMES = (8, 16, 32)
QUESTION = "What moves from the left to the right, and where does it stop?"
NEVER_EXIT = ExitConfig(criterion=ExitCriterion.CONSISTENCY, exit_threshold=1.0)
"""Everything runs: both models and the consistency pass."""


@dataclass(frozen=True)
class LoadClips:
    """An engine directory; called, it is opened."""

    directory: Path
    threads: int

    def __call__(self) -> "ClipAsker":
        return ClipAsker(SglPipeline.load(self.directory, self.threads, feature_cache=0, prefix_cache=0))


class ClipAsker:
    """Reads a clip, alone and as a question about it does."""

    def __init__(self, pipeline: SglPipeline) -> None:
        self._pipeline = pipeline

    def read(self, clip: Path, frames: int) -> None:
        read_clip(clip, lambda facts: internvl2(facts, VideoConfig(frames=frames)))

    def ask(self, clip: Path, frames: int, tokens: int) -> dict[str, float]:
        """Seconds of each stage."""
        answer = self._pipeline.answer(
            [],
            QUESTION,
            guidance=GuidanceConfig(),
            exit=NEVER_EXIT,
            sampling=SamplingConfig(max_new_tokens=tokens),
            videos=(clip,),
            video=VideoConfig(frames=frames),
        )
        return answer.seconds


def measure_video(bench: Bench) -> Section:
    size, effort, report = bench.size, bench.effort(EFFORT), bench.progress("video")
    engines, clip = build_engines(bench), bench.work / "clip.mp4"
    write_clip(clip, size.clip.pixels, size.clip.seconds, bench.progress("clip"))
    reading: dict[int, list[float]] = defaultdict(list)
    stages: dict[int, list[dict[str, float]]] = defaultdict(list)
    order = random.Random(SEED)
    for load in range(effort.loads):
        with Worker(LoadClips(engines, bench.threads)) as worker:
            worker.call("ask", clip, FRAMES[0], 1)
            for turn in range(effort.runs):
                for done, frames in enumerate(order.sample(FRAMES, len(FRAMES))):
                    reading[frames].append(worker.call("read", clip, frames).seconds)
                    stages[frames].append(worker.call("ask", clip, frames, size.decode_tokens).result)
                    report((load + (turn + (done + 1) / len(FRAMES)) / effort.runs) / effort.loads)
    rows = [row for frames in FRAMES for row in _rows(frames, reading[frames], stages[frames])]
    width, height = size.clip.pixels
    setting = (
        f"One question about a clip of {size.clip.seconds} s, {width} x {height}, H.264 with a key frame every 250 "
        f"frames at most, whose frames are chosen as InternVL2's published code does; {size.decode_tokens} tokens of "
        "answer from both models, consistency pass included, retention of "
        f"{GuidanceConfig.retention_ratio:.0%}; float32. Both models are shown the same frames, which are read once. "
        "Reading counts to the small model's vision, and is measured by itself in turn with each question."
    )
    return Section("Clips", setting, rows, [f"{effort.loads} starts, {effort.runs} rounds in random order."])


def _rows(frames: int, reading: list[float], stages: list[dict[str, float]]) -> list[Row]:
    whole = [sum(seconds.values()) for seconds in stages]
    shares = [alone / answer for alone, answer in zip(reading, whole, strict=True)]
    return [
        Row(f"reading {frames} frames", spread(reading), unit=Unit.SECONDS),
        Row(f"answer about {frames} frames", spread(whole), unit=Unit.SECONDS, note=_note(stages)),
        Row(f"share that reading takes, {frames} frames", spread(shares), unit=Unit.SHARE),
    ]


def _note(stages: list[dict[str, float]]) -> str:
    """Seconds of each stage."""
    medians: dict[Stage, Spread] = {
        stage: spread([seconds[stage] for seconds in stages]) for stage in Stage if stage in stages[0]
    }
    return ", ".join(f"{stage} {found.median:.2f}" for stage, found in medians.items())
