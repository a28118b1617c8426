"""A benchmark through a pipeline, many questions at once; what was answered before is not asked again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.config import Draft, ExitConfig, GuidanceConfig, SamplingConfig, VideoConfig
from engine.evaluation.benchmark import Benchmark
from engine.evaluation.example import Example
from engine.evaluation.record import Record, RunSettings, append, make_record, open_run
from engine.manifest import Manifest
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.scheduler import answered

OnRecords = Callable[[Sequence[Record], int], None]
"""Gets all records so far, and how many there will be."""


@dataclass(frozen=True)
class Way:
    """How a run answers. seed: of random guidance, together with each question's place."""

    guidance: GuidanceConfig
    exit: ExitConfig
    max_new_tokens: int
    seed: int = 0
    draft: Draft = SamplingConfig.draft
    video: VideoConfig = field(default_factory=VideoConfig)

    def settings(self, benchmark: Benchmark, manifest: Manifest) -> RunSettings:
        keys = {name: component.key for name, component in manifest.components.items()}
        chosen = self.guidance, self.exit, self.max_new_tokens, self.seed, self.draft, self.video
        return RunSettings(benchmark.name, keys, *chosen)


def answer_benchmark(
    pipeline: SglPipeline,
    benchmark: Benchmark,
    examples: Sequence[Example],
    way: Way,
    path: Path,
    on_progress: OnRecords = lambda records, total: None,
) -> list[Record]:
    """Answer what `path` does not hold yet, and return all records in the order of the examples. Raises EngineError."""
    with open_run(path, way.settings(benchmark, pipeline.manifest)) as (done, file):
        records = {record.id: record for record in done}
        left = [(place, example) for place, example in enumerate(examples) if example.id not in records]
        on_progress(list(records.values()), len(examples))
        questions = (
            Question(
                example.pictures(),
                example.question,
                way.guidance,
                way.exit,
                SamplingConfig(max_new_tokens=way.max_new_tokens, seed=way.seed + place, draft=way.draft),
                videos=() if example.video is None else (example.video,),
                video=way.video,
            )
            for place, example in left
        )
        for (_, example), outcome in zip(left, pipeline.answer_all(questions), strict=True):
            records[example.id] = make_record(benchmark, example, answered(outcome))
            append(file, [records[example.id]])
            on_progress(list(records.values()), len(examples))
    return [records[example.id] for example in examples]
