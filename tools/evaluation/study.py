"""The runs that a report stands on: made when asked for, kept, and continued by the next report."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from engine.config import ExitConfig, GuidanceConfig
from engine.runtime.pipeline import SglPipeline
from tools.evaluation.benchmark import TOTAL, Benchmark, mean
from tools.evaluation.example import Example
from tools.evaluation.record import Record
from tools.evaluation.run import OnProgress, Way, run

NEVER_EXITS = 2.0
"""A threshold above every criterion's largest value, which is 1."""
ALONE = GuidanceConfig(enabled=False)
LARGE_ANSWERS = ExitConfig(enabled=False)
SMALL_ANSWERS = ExitConfig(exit_threshold=-1.0)
BOTH_ANSWER = ExitConfig(exit_threshold=NEVER_EXITS)


@dataclass(frozen=True)
class Study:
    """One engine directory under many settings, each a file in `directory`."""

    pipeline: SglPipeline
    benchmark: Benchmark
    examples: Sequence[Example]
    directory: Path
    progress: Callable[[str], AbstractContextManager[OnProgress]]

    def records(self, name: str, guidance: GuidanceConfig, exit: ExitConfig = LARGE_ANSWERS) -> list[Record]:
        """Raises EngineError."""
        way = Way(guidance, exit, self.benchmark.max_new_tokens)
        with self.progress(name) as on_progress:
            path = self.directory / f"{name}.jsonl"
            return run(self.pipeline, self.benchmark, self.examples, way, path, on_progress)

    def figures(self, name: str, guidance: GuidanceConfig, exit: ExitConfig = LARGE_ANSWERS) -> dict[str, float]:
        """The benchmark's figures in percent, of every kind of question and of all. Raises EngineError."""
        return self.benchmark.summarise([record.mark() for record in self.records(name, guidance, exit)])

    def score(self, name: str, guidance: GuidanceConfig, exit: ExitConfig = LARGE_ANSWERS) -> float:
        """The figure of the whole benchmark. Raises EngineError."""
        return self.figures(name, guidance, exit)[TOTAL]


def seconds_of(records: Sequence[Record]) -> float:
    """A question, all stages together."""
    return mean([sum(record.seconds.values()) for record in records])
