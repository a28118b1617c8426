"""A benchmark by the machinery of files of questions: what ends a run, what is kept, what is refused."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from engine.batch.answers import opened
from engine.batch.crew import Alone, Crew, Failed, Said
from engine.batch.lines import Line
from engine.batch.progress import batch_progress
from engine.batch.terms import RunFailed
from engine.batch.worker import Worker
from engine.config import ExitConfig, GuidanceConfig
from engine.errors import EngineError, ImageError, RequestError
from engine.evaluation.example import Example
from engine.evaluation.own import OWN
from engine.evaluation.record import Record, read_run
from engine.evaluation.run import ExampleLines, Run, Way, answer_run
from engine.runtime.answer import Answer
from engine.runtime.question import Question
from tests.batch.simulation import IDENTITY, FakeAsker, FakePeers, FakePipeline, make_answer
from tests.manifests import example_manifest

WAY = Way(GuidanceConfig(), ExitConfig(), 8, seed=5)


def examples(count: int) -> list[Example]:
    return [
        Example(f"q{place}", partial(Path, f"{place // 3}.png"), f"{place}?", ("yes",), kind="all")
        for place in range(count)
    ]


def answer(run: Run, path: Path, asked: list[Question], broken: Sequence[str] = ()) -> list[Record]:
    def says(question: Question) -> Answer | EngineError:
        asked.append(question)
        return ImageError("no picture") if question.text in broken else make_answer("yes")

    pipeline = FakePipeline(says)
    return answer_run(
        run,
        example_manifest({}),
        path,
        Alone(),
        lambda: Worker(pipeline, run),  # type: ignore[arg-type]
        lambda rate: batch_progress(True, rate),
    )


def test_every_question_is_asked_once_with_a_seed_of_its_place(tmp_path: Path) -> None:
    path, run = tmp_path / "run.jsonl", Run(OWN, examples(40), WAY, 30)
    asked: list[Question] = []
    records = answer(run, path, asked)
    assert [record.id for record in records] == [f"q{place}" for place in range(30)]
    assert sorted((question.text, question.sampling.seed) for question in asked) == sorted(  # type: ignore[union-attr]
        (f"{place}?", 5 + place) for place in range(30)
    )
    asked.clear()
    assert answer(replace(run, count=10), path, asked) == records[:10]
    assert asked == []
    assert answer(replace(run, count=40), path, asked)[:30] == records
    assert len(asked) == 10


def test_two_questions_may_have_one_name(tmp_path: Path) -> None:
    twice = [replace(example, id="same") for example in examples(4)]
    records = answer(Run(OWN, twice, WAY, 4), tmp_path / "run.jsonl", [])
    assert [(record.id, record.question) for record in records] == [("same", f"{place}?") for place in range(4)]


def test_a_question_without_an_answer_ends_the_run_and_the_rest_is_kept(tmp_path: Path) -> None:
    path, run = tmp_path / "run.jsonl", Run(OWN, examples(40), WAY, 40)
    with pytest.raises(RunFailed, match="question q20 of own has no answer: no picture"):
        answer(run, path, [], broken=["20?"])
    asked: list[Question] = []
    assert len(answer(run, path, asked)) == 40
    assert "20?" in {question.text for question in asked}
    assert len(asked) < 40
    assert len(read_run(path)[1]) == 40


def test_questions_that_have_changed_are_refused(tmp_path: Path) -> None:
    path, run = tmp_path / "run.jsonl", Run(OWN, examples(20), WAY, 20)
    answer(run, path, [])
    other = [*run.examples[:7], replace(run.examples[7], question="Another?"), *run.examples[8:]]
    for count in (20, 3):
        with pytest.raises(RequestError, match="the first 20 of own have changed since; write to another file"):
            answer(replace(run, examples=other, count=count), path, [])


def test_a_rank_with_other_questions_is_refused() -> None:
    mine, theirs = Run(OWN, examples(5), WAY, 5), Run(OWN, examples(3)[::-1], WAY, 3)
    lines = ExampleLines(mine)
    for number in range(1, 6):
        line = lines.read()
        assert isinstance(line, Line)
        content = lines.content(line)
        assert mine.read(content, number).example is mine.examples[number - 1]
        if number == 2:
            theirs.read(content, number)
        else:
            with pytest.raises(RunFailed, match=f"question {number} of own is another one there than on rank 0"):
                theirs.read(content, number)
    assert lines.read() is None


def test_what_ends_a_run_on_another_rank_ends_it(tmp_path: Path) -> None:
    class Failing(FakePeers):
        def heard(self) -> list[tuple[int, Said]]:
            return [(1, Failed("question q3 of own has no answer"))]

    run, chance = Run(OWN, examples(5), WAY, 5), random.Random(1)
    with opened(tmp_path / "run.jsonl", {}, True) as answers:
        crew = Crew(ExampleLines(run), answers, run, FakeAsker(1, chance), IDENTITY, Failing({}, chance))
        with pytest.raises(RunFailed, match="question q3 of own has no answer"):
            crew.run()
