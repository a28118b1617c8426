"""Many questions to one pipeline, some at a time or as they come: when each was answered, and how fast."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.config import NEVER_EXITS, ExitConfig, ExitCriterion, GuidanceConfig, SamplingConfig
from engine.runtime.pipeline import SglPipeline


@dataclass(frozen=True)
class Asked:
    """exits: whether the small model's answer is taken; None lets the large model answer alone, unpruned."""

    question: str
    picture: Path | None
    tokens: int
    exits: bool | None


@dataclass(frozen=True)
class Served:
    """Of one question: seconds to the first text and to the end, from when it was to be asked."""

    first: float
    last: float
    tokens: int


@dataclass(frozen=True)
class Load:
    """seconds: from the first question to the last answer."""

    served: tuple[Served, ...]
    seconds: float

    def tokens_per_second(self) -> float:
        return sum(one.tokens for one in self.served) / self.seconds

    def questions_per_second(self) -> float:
        return len(self.served) / self.seconds


@dataclass(frozen=True)
class LoadServing:
    """An engine directory; called, it is opened for so many questions at once."""

    directory: Path
    threads: int
    max_running: int

    def __call__(self) -> "Serving":
        # A prompt that comes again is read anew.
        return Serving(SglPipeline.load(self.directory, self.threads, max_running=self.max_running, prefix_cache=0))


class Serving:
    """A pipeline under load."""

    def __init__(self, pipeline: SglPipeline) -> None:
        self._pipeline = pipeline

    def closed(self, asked: Sequence[Asked], at_once: int) -> Load:
        """The next question comes when one is answered."""
        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            served = tuple(pool.map(self._ask, asked))
        return Load(served, time.perf_counter() - start)

    def arriving(self, asked: Sequence[Asked], rate: float, seed: int) -> Load:
        """Questions come at random (Poisson), so many a second on average, whoever is being answered."""
        at = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(asked)))
        served: list[Served | None] = [None] * len(asked)
        start = time.perf_counter()

        def run(index: int) -> None:
            served[index] = self._ask(asked[index], start + at[index])

        threads = [threading.Thread(target=run, args=(index,)) for index in range(len(asked))]
        for index, thread in enumerate(threads):
            time.sleep(max(0.0, start + at[index] - time.perf_counter()))
            thread.start()
        for thread in threads:
            thread.join()
        return Load(tuple(one for one in served if one is not None), time.perf_counter() - start)

    def _ask(self, asked: Asked, start: float | None = None) -> Served:
        start = time.perf_counter() if start is None else start
        first: list[float] = []
        # A criterion without the consistency pass: this is about how questions share the engines.
        exit = ExitConfig(
            asked.exits is not None, -1.0 if asked.exits else NEVER_EXITS, criterion=ExitCriterion.CONFIDENCE
        )
        answer = self._pipeline.answer(
            [asked.picture] if asked.picture else [],
            asked.question,
            guidance=GuidanceConfig(enabled=asked.exits is not None),
            exit=exit,
            sampling=SamplingConfig(max_new_tokens=asked.tokens),
            on_text=lambda piece: first.append(time.perf_counter() - start),
        )
        last = time.perf_counter() - start
        return Served(first[0] if first else last, last, len(answer.token_ids))
