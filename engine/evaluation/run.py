"""A benchmark through a pipeline as a file of questions goes: many at once, kept as they come, never asked twice."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.batch.answers import journal_of, opened
from engine.batch.crew import Alone, Crew, OnProgress, Peers
from engine.batch.lines import Line, Mark
from engine.batch.progress import Rate, batch_progress
from engine.batch.tally import Tally, tally_of
from engine.batch.terms import Reply, RunFailed, versions
from engine.batch.worker import Worker
from engine.config import Draft, ExitConfig, GuidanceConfig, SamplingConfig, VideoConfig
from engine.errors import RequestError
from engine.evaluation.benchmark import Benchmark
from engine.evaluation.example import Example
from engine.evaluation.record import FILE, Record, RunSettings, make_record, read_run
from engine.manifest import Manifest
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.tensor_parallel import identify

ShowProgress = Callable[[Rate], AbstractContextManager[OnProgress]]


@dataclass(frozen=True)
class Way:
    """How a run answers. seed: of random guidance, together with each question's place."""

    guidance: GuidanceConfig
    exit: ExitConfig
    max_new_tokens: int
    seed: int = 0
    draft: Draft = SamplingConfig.draft
    video: VideoConfig = field(default_factory=VideoConfig)
    speculate: int = SamplingConfig.speculate


@dataclass(frozen=True)
class Run:
    """Examples of a benchmark, asked in a way: the `batch.terms.Reader` of every rank.

    examples: all of them, the same on every rank. count: how many of them are asked.
    """

    benchmark: Benchmark
    examples: Sequence[Example]
    way: Way
    count: int

    def settings(self, manifest: Manifest) -> RunSettings:
        way, keys = self.way, {name: component.key for name, component in manifest.components.items()}
        chosen = way.guidance, way.exit, way.max_new_tokens, way.seed, way.draft, way.video, way.speculate
        return RunSettings(self.benchmark.name, keys, *chosen)

    @cached_property
    def lines(self) -> list[bytes]:
        """What each example says, but its picture."""
        return [_line(example) for example in self.examples]

    def agreed(self) -> dict[str, Any]:
        way: dict[str, Any] = FILE.unstructure(self.way)
        return {"benchmark": self.benchmark.name, "options": way}

    def look_at(self, content: bytes, line: Line) -> Line:
        return line._replace(picture=self.examples[line.place].picture_key())

    def read(self, content: bytes, number: int) -> "Asked":
        """Raises RunFailed where this rank has other examples than rank 0."""
        if number > len(self.examples) or self.lines[number - 1] != content:
            raise RunFailed(
                f"question {number} of {self.benchmark.name} is another one there than on rank 0; give all ranks the "
                "same files of the benchmark"
            )
        return Asked(self.benchmark, self.examples[number - 1], number)

    def question(self, request: "Asked") -> Question:
        """Raises ImageError."""
        way, example = self.way, request.example
        seed = way.seed + request.number - 1
        sampling = SamplingConfig(
            max_new_tokens=way.max_new_tokens, seed=seed, draft=way.draft, speculate=way.speculate
        )
        videos = () if example.video is None else (example.video,)
        asked = example.question, way.guidance, way.exit, sampling
        return Question(example.pictures(), *asked, videos=videos, video=way.video)


@dataclass(frozen=True)
class Asked:
    """A line of a run, read: `batch.terms.Request`. number: of the example, from 1."""

    benchmark: Benchmark
    example: Example
    number: int

    def answered(self, answer: Answer, pipeline: SglPipeline) -> Reply:
        reply: Reply = FILE.unstructure(make_record(self.benchmark, self.example, answer))
        return reply

    def counted(self, answer: Answer) -> Tally:
        grade = self.benchmark.grade
        return tally_of(answer, None if grade is None else grade(answer.text, self.example))

    def failed(self, error: Exception) -> Reply:
        """Raises RunFailed: a score of some questions is none of the benchmark."""
        raise RunFailed(f"question {self.example.id} of {self.benchmark.name} has no answer: {error}")


class ExampleLines:
    """The `batch.lines.Source` of a run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._place = self._bytes = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def read(self) -> Line | None:
        if self._place == self._run.count:
            return None
        content = self._run.lines[self._place]
        self._hash.update(content)
        self._place, self._bytes = self._place + 1, self._bytes + len(content)
        return Line(self._place - 1, self._bytes - len(content), len(content))

    def content(self, line: Line) -> bytes:
        return self._run.lines[line.place]

    def mark(self) -> Mark:
        return Mark(self._place, self._bytes, self._hash.hexdigest())

    def left(self) -> int:
        return self._run.count - self._place

    def check(self, mark: Mark, path: Path) -> None:
        """Raises RequestError where the benchmark no longer begins as it did then, be it in more than is asked now."""
        digest = hashlib.blake2b(b"".join(self._run.lines[: mark.lines]), digest_size=16).hexdigest()
        if mark.lines and digest != mark.digest:
            raise RequestError(
                f"{path} holds answers to other questions: the first {mark.lines} of {self._run.benchmark.name} have "
                f"changed since; write to another file, or remove it and {journal_of(path)} to begin anew"
            )


def answer_run(
    run: Run,
    manifest: Manifest,
    path: Path,
    peers: Peers,
    open_worker: Callable[[], AbstractContextManager[Worker]],
    show_progress: ShowProgress,
) -> list[Record]:
    """Answer, as rank 0 or alone, what `path` does not hold yet, and return all records in the order of the examples.
    Raises EngineError."""
    settings = FILE.unstructure(run.settings(manifest))
    head = json.dumps(settings, ensure_ascii=False).encode()
    with opened(path, settings | {"versions": versions(manifest)}, is_ordered=True, head=head) as answers:
        lines = ExampleLines(run)
        lines.check(answers.mark, path)
        if answers.next < run.count:
            peers.begin(answers.started)
            with open_worker() as worker, show_progress(Rate(answers.tally.lines())) as on_progress:
                Crew(lines, answers, run, worker, identify(manifest), peers).run(on_progress)
    return read_run(path)[1][: run.count]


def answer_benchmark(
    pipeline: SglPipeline,
    benchmark: Benchmark,
    examples: Sequence[Example],
    way: Way,
    path: Path,
    show_progress: ShowProgress = lambda rate: batch_progress(True, rate),
) -> list[Record]:
    """`answer_run` in this process, of all examples, with a pipeline that is open already. Raises EngineError."""
    run = Run(benchmark, examples, way, len(examples))
    return answer_run(run, pipeline.manifest, path, Alone(), lambda: Worker(pipeline, run), show_progress)


def _line(example: Example) -> bytes:
    said = {name: getattr(example, name) for name in ("id", "kind", "group", "question", "answers")}
    return json.dumps(said, ensure_ascii=False).encode()
