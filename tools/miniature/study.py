"""The runs that a report stands on: made when asked for, kept, and continued by the next report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.batch.progress import batch_progress
from engine.config import NEVER_EXITS, ExitConfig, GuidanceConfig
from engine.evaluation.benchmark import TOTAL, Benchmark, mean
from engine.evaluation.example import Example
from engine.evaluation.record import Record
from engine.evaluation.run import Way, answer_benchmark
from engine.runtime.pipeline import SglPipeline

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

    def records(self, name: str, guidance: GuidanceConfig, exit: ExitConfig = LARGE_ANSWERS) -> list[Record]:
        """Raises EngineError."""
        way = Way(guidance, exit, self.benchmark.max_new_tokens)
        return answer_benchmark(
            self.pipeline,
            self.benchmark,
            self.examples,
            way,
            self.directory / f"{name}.jsonl",
            lambda rate: batch_progress(False, rate, name),
        )

    def figures(self, name: str, guidance: GuidanceConfig, exit: ExitConfig = LARGE_ANSWERS) -> dict[str, float]:
        """The benchmark's figures in percent, of every kind of question and of all. Raises EngineError."""
        return self.benchmark.summarise([record.mark() for record in self.records(name, guidance, exit)])

    def score(self, name: str, guidance: GuidanceConfig, exit: ExitConfig = LARGE_ANSWERS) -> float:
        """The figure of the whole benchmark. Raises EngineError."""
        return self.figures(name, guidance, exit)[TOTAL]


def seconds_of(records: Sequence[Record]) -> float:
    """A question, all stages together."""
    return mean([sum(record.seconds.values()) for record in records])
