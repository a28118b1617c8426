"""Whole questions about pictures to one pipeline: when the first text came, when the last, and where the time went."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from engine.config import NEVER_EXITS, ExitConfig, GuidanceConfig, SamplingConfig
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Stage
from tools.benchmark.memory_meter import status_bytes
from tools.benchmark.pair import QUESTION

EARLIER = "What is in the foreground?"
"""Of a picture that was seen before."""
DECODES = (Stage.SMALL_DECODE, Stage.LARGE_DECODE)


@dataclass(frozen=True)
class Pictures:
    """name: in words. count: how many; wide, high: in tiles, each. again: whether the models have just seen them."""

    name: str
    count: int = 1
    wide: int = 1
    high: int = 1
    again: bool = False


@dataclass(frozen=True)
class Timed:
    """Seconds of one question. first: to its first text; last: to its end; stages: by name. tokens: of the answer."""

    first: float
    last: float
    stages: dict[str, float]
    tokens: int
    tiles: int
    peak_bytes: int

    def after(self, tokens: int) -> float:
        """Seconds to the end of a shorter answer: every token after the first takes as long as the others."""
        left = (self.tokens - tokens) / max(1, self.tokens - 1)
        spared = left * sum(self.stages.get(stage, 0.0) for stage in DECODES)
        return self.last - spared

    def first_of(self, tokens: int) -> float:
        """Seconds to the first text of a shorter answer: the small model says all of its own before it."""
        left = (self.tokens - tokens) / max(1, self.tokens - 1)
        return self.first - left * self.stages.get(Stage.SMALL_DECODE, 0.0)


@dataclass(frozen=True)
class LoadEndToEnd:
    """An engine directory whose pictures have tiles of `side` pixels; called, it is opened."""

    directory: Path
    threads: int
    side: int

    def __call__(self) -> "EndToEnd":
        return EndToEnd(SglPipeline.load(self.directory, self.threads), self.side)


class EndToEnd:
    def __init__(self, pipeline: SglPipeline, side: int) -> None:
        self._pipeline, self._side, self._seen = pipeline, side, 0

    def ask(self, pictures: Pictures, retention: float | None, exits: bool, tokens: int) -> Timed:
        """retention: on average; None lets the large model answer alone, with every token."""
        images = self._draw(pictures)
        guidance = GuidanceConfig(enabled=retention is not None, average_retention=retention)
        exit = ExitConfig(enabled=retention is not None, exit_threshold=-1.0 if exits else NEVER_EXITS)
        sampling = SamplingConfig(max_new_tokens=tokens)
        if pictures.again:
            short = SamplingConfig(max_new_tokens=1)
            self._pipeline.answer(images, EARLIER, guidance=guidance, exit=exit, sampling=short)
        texts: list[float] = []
        start = time.perf_counter()
        answer = self._pipeline.answer(
            images,
            QUESTION,
            guidance=guidance,
            exit=exit,
            sampling=sampling,
            on_text=lambda piece: texts.append(time.perf_counter() - start),
        )
        last = time.perf_counter() - start
        first, said = texts[0] if texts else last, len(answer.token_ids)
        return Timed(first, last, answer.seconds, said, answer.tiles, status_bytes("VmHWM"))

    def _draw(self, pictures: Pictures) -> list[Image.Image]:
        """Noise that nobody saw before."""
        self._seen += 1
        rng = np.random.default_rng(self._seen)
        shape = pictures.high * self._side, pictures.wide * self._side, 3
        return [Image.fromarray(rng.integers(0, 256, shape, np.uint8)) for _ in range(pictures.count)]
