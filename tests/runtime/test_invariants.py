"""Many questions at once: each is answered bit by bit as if it were alone, and none is lost, whatever fails."""

import io
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.build.builder import build_pair
from engine.config import (
    BuildConfig,
    ExitConfig,
    ExitCriterion,
    GuidanceConfig,
    GuidanceSource,
    SamplingConfig,
    ScoreRows,
)
from engine.errors import EngineError, ModelFailed, QuestionCancelled
from engine.families import Turn
from engine.runtime.answer import Answer
from engine.runtime.loop import Loop
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.scheduler import Outcome
from engine.runtime.ticket import Ticket

NO_EXIT = ExitConfig(enabled=False)
NEVER = ExitConfig(exit_threshold=1.01)
ALWAYS = ExitConfig(exit_threshold=0.0)
SECONDS = 300.0
"""For what takes a few; a test fails rather than hangs."""


@pytest.fixture(scope="module")
def directory(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With scores of the large model, for every source of guidance."""
    out = tmp_path_factory.mktemp("engines") / "scored"
    build_pair(BuildConfig(pair / "small", pair / "large", out, max_tokens=1024, large_scores=True))
    return out


def draw(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def questions() -> list[Question]:
    """Of every kind, none like another."""
    wide, tall, tiny = draw(0, 320, 150), draw(1, 120, 250), draw(2, 30, 30)

    def new(tokens: int, **options: Any) -> SamplingConfig:
        return SamplingConfig(max_new_tokens=tokens, **options)

    def source(name: GuidanceSource, **options: Any) -> GuidanceConfig:
        return GuidanceConfig(source=name, **options)

    return [
        Question((wide,), "What is it?", GuidanceConfig(retention_ratio=0.1), NEVER, new(9)),
        Question((tall,), "And this?", GuidanceConfig(retention_ratio=0.5, prune_layer=0), NEVER, new(12)),
        Question((), "No picture at all", None, NO_EXIT, new(5)),
        Question((tiny, wide, tall), "Compare these three.", GuidanceConfig(retention_ratio=0.3), NEVER, new(7)),
        Question((tiny,), "Say little", None, ALWAYS, new(1)),
        Question((tiny,), "Say much " * 20, None, ALWAYS, new(24)),
        Question((wide,), "Drawn by lot", None, NEVER, new(8, temperature=1.3, seed=4)),
        Question((wide,), "Drawn by lot", None, NEVER, new(8, temperature=1.3, seed=5, top_k=9)),
        Question((tiny, tiny), "By itself", source(GuidanceSource.FASTV), NO_EXIT, new(6)),
        Question((tiny,), "By its own answer", source(GuidanceSource.ORACLE, score_layers=0.5), NO_EXIT, new(6)),
        Question((tall,), "At random", source(GuidanceSource.RANDOM), NO_EXIT, new(6, seed=7)),
        Question((tall,), "Merged", source(GuidanceSource.TOME), NO_EXIT, new(6)),
        Question(
            (tiny,), "Later", GuidanceConfig(score_rows=ScoreRows.RELEASED), NEVER, new(6), history=(Turn("a", "b"),)
        ),
        Question((), "Hello", None, ExitConfig(criterion=ExitCriterion.ENTROPY, exit_threshold=-3.0), new(15)),
    ]


QUESTIONS = questions()


def check_same(found: Outcome, alone: Outcome) -> None:
    assert isinstance(alone, Answer)
    assert isinstance(found, Answer), found
    for name in ("text", "token_ids", "probabilities", "decision", "answered_by", "small_text", "guidance"):
        assert getattr(found, name) == getattr(alone, name), name
    for name in ("importance", "kept"):
        one, other = getattr(found, name), getattr(alone, name)
        assert (one is None) == (other is None), name
        assert one is None or np.array_equal(one, other), name


def check_empty(pipeline: SglPipeline) -> None:
    load = pipeline.load_now()
    assert (load.running, load.waiting, load.kv_memory_used) == (0, 0, 0)
    for model in (pipeline.small, pipeline.large):
        assert model.language._slots._slots == {}  # type: ignore[attr-defined]
        waiting = getattr(model.language._scores, "_waiting", {})  # type: ignore[attr-defined]
        assert not waiting


def open_pair(directory: Path, **serving: Any) -> SglPipeline:
    return SglPipeline.load(directory, threads=1, **serving)


def answer_alone(directory: Path, asked: Sequence[Question], **serving: Any) -> list[Outcome]:
    with open_pair(directory, max_running=1, **serving) as pipeline:
        return [pipeline.answer_each([question])[0] for question in asked]


@pytest.fixture(scope="module")
def alone(directory: Path) -> list[Outcome]:
    return answer_alone(directory, QUESTIONS)


@pytest.fixture(scope="module")
def many(directory: Path) -> Iterator[SglPipeline]:
    with open_pair(directory) as pipeline:
        yield pipeline


@pytest.mark.parametrize("max_running", [1, 2, 3, 16])
def test_together_as_alone(directory: Path, alone: list[Outcome], max_running: int) -> None:
    """In any order, without features that one question leaves to another."""
    order = list(range(len(QUESTIONS)))
    random.Random(max_running).shuffle(order)
    with open_pair(directory, max_running=max_running, feature_cache=0) as pipeline:
        found = pipeline.answer_each([QUESTIONS[index] for index in order])
        for index, outcome in zip(order, found, strict=True):
            check_same(outcome, alone[index])
        check_empty(pipeline)


def test_together_as_alone_in_small_chunks(directory: Path) -> None:
    alone = answer_alone(directory, QUESTIONS, prefill_chunk=32)
    with open_pair(directory, prefill_chunk=32) as pipeline:
        for found, expected in zip(pipeline.answer_each(QUESTIONS), alone, strict=True):
            check_same(found, expected)
        check_empty(pipeline)


def test_together_as_alone_when_memory_is_scarce(directory: Path, alone: list[Outcome]) -> None:
    with open_pair(directory) as pipeline:
        most = 0
        for model in (pipeline.small, pipeline.large):
            language = model.language
            sizes = [1024] * len(language._segments)  # type: ignore[attr-defined]
            most = max(most, language._slots.nbytes(type("", (), {"lengths": sizes})))  # type: ignore[attr-defined]
    with open_pair(directory, kv_memory=most) as pipeline:
        used = []
        tickets = [pipeline.submit(question) for question in QUESTIONS]
        tickets[0].on_change(lambda: used.append(pipeline.load_now().kv_memory_used))
        for ticket, expected in zip(tickets, alone, strict=True):
            check_same(ticket.wait(SECONDS), expected)
        assert max(used) <= most
        check_empty(pipeline)


@pytest.mark.parametrize("seed", range(3))
def test_joining_at_every_token(many: SglPipeline, alone: list[Outcome], seed: int) -> None:
    """The next question is asked from the listener of those that run, whenever one of them says something."""
    order = list(range(len(QUESTIONS)))
    random.Random(seed).shuffle(order)
    left, tickets, finished = [*order], {}, threading.Event()

    def join() -> None:
        if left:
            ask(left.pop(0))
        elif all(ticket.done() for ticket in tickets.values()):
            finished.set()

    def ask(index: int) -> None:
        calls = itertools.count()
        tickets[index] = many.submit(QUESTIONS[index])
        tickets[index].on_change(lambda: join() if next(calls) else None)

    ask(left.pop(0))
    assert finished.wait(SECONDS)
    assert sorted(tickets) == sorted(order)
    for index, ticket in tickets.items():
        check_same(ticket.wait(SECONDS), alone[index])
    check_empty(many)


@pytest.mark.parametrize("seed", range(3))
def test_a_storm_of_cancellations(many: SglPipeline, alone: list[Outcome], seed: int) -> None:
    """Half of the questions are cancelled, each after so many of all pieces; the others notice nothing."""
    rng = random.Random(seed)
    asked = [rng.randrange(len(QUESTIONS)) for _ in range(24)]
    tickets = [many.submit(QUESTIONS[index]) for index in asked]
    victims = sorted(rng.sample(range(24), 12), key=lambda _: rng.random())
    due = {number: rng.randrange(60) for number in victims}
    pieces = itertools.count()

    def heard() -> None:
        now = next(pieces)
        for number, when in due.items():
            if when <= now:
                tickets[number].cancel()

    for ticket in tickets:
        ticket.on_change(heard)
    for number, ticket in enumerate(tickets):
        outcome = ticket.wait(SECONDS)
        if number not in victims or isinstance(outcome, Answer):
            check_same(outcome, alone[asked[number]])
        else:
            assert isinstance(outcome, QuestionCancelled)
    assert any(isinstance(tickets[number].wait(), QuestionCancelled) for number in victims)
    many._loop._inbox.put(lambda: None)
    check_empty(many)


class Faults:
    """Counts the runs of all engines of a pipeline, and lets some of them fail."""

    def __init__(self, pipeline: SglPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs, self.failed = 0, 0
        self.fails: Callable[[int], bool] = lambda run: False
        for model in (pipeline.small, pipeline.large):
            executors = model.language.executor, model.language.scoring, model.vision._executor  # type: ignore[attr-defined]
            for executor in executors:
                if executor is not None:
                    monkeypatch.setattr(executor, "run", self._patched(executor.run))

    def _patched(self, run: Callable[[], None]) -> Callable[[], None]:
        def patched() -> None:
            self.runs += 1
            if self.fails(self.runs):
                self.failed += 1
                raise RuntimeError("injected")
            run()

        return patched


def short() -> list[Question]:
    picked = [replace(QUESTIONS[0], images=QUESTIONS[4].images), QUESTIONS[2], QUESTIONS[8]]
    return [replace(one, sampling=SamplingConfig(max_new_tokens=2)) for one in picked]


def test_a_failure_at_every_run_of_an_engine(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends one question at most: a step for several is tried again for each alone."""
    asked = short()
    alone = answer_alone(directory, asked)
    with open_pair(directory, feature_cache=0) as pipeline:
        faults = Faults(pipeline, monkeypatch)
        pipeline.answer_each(asked)
        count = faults.runs
        assert count > 12
        for number in range(1, count + 1):
            faults.runs, faults.failed = 0, 0
            faults.fails = lambda run, number=number: run == number  # type: ignore[misc]
            outcomes = pipeline.answer_each(asked)
            errors = [outcome for outcome in outcomes if isinstance(outcome, EngineError)]
            assert len(errors) <= faults.failed <= 1, number
            for outcome, expected in zip(outcomes, alone, strict=True):
                if isinstance(outcome, EngineError):
                    assert isinstance(outcome, ModelFailed) and "injected" in str(outcome)
                else:
                    check_same(outcome, expected)
            check_empty(pipeline)


def test_an_engine_that_fails_for_good_fails_them_all_and_recovers(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = short()
    alone = answer_alone(directory, asked)
    with open_pair(directory, feature_cache=0) as pipeline:
        faults = Faults(pipeline, monkeypatch)
        for start in (1, 5, 12):
            faults.runs = 0
            faults.fails = lambda run, start=start: run >= start  # type: ignore[misc]
            outcomes = pipeline.answer_each(asked)
            assert any(isinstance(outcome, ModelFailed) for outcome in outcomes)
            check_empty(pipeline)
        faults.fails = lambda run: False
        for outcome, expected in zip(pipeline.answer_each(asked), alone, strict=True):
            check_same(outcome, expected)
        check_empty(pipeline)


def test_many_threads(many: SglPipeline) -> None:
    """Each asks about pictures of its own, given as bytes or as objects, one after the other."""
    asked = [QUESTIONS[index] for index in (2, 4, 10)]
    small = [replace(one, sampling=SamplingConfig(max_new_tokens=2)) for one in asked]
    expected = [many.answer_each([question])[0] for question in small]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(15):
                which = (number + turn) % len(small)
                question = small[which]
                data = [png(image) for image in question.images]  # type: ignore[arg-type]
                images = data if turn % 2 else [Image.open(io.BytesIO(file)) for file in data]
                found = many.answer(
                    images, question.text, guidance=question.guidance, exit=question.exit, sampling=question.sampling
                )
                check_same(found, expected[which])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
    check_empty(many)


def test_a_short_question_ends_before_a_long_one(many: SglPipeline) -> None:
    ends: list[str] = []

    def ask(name: str, tokens: int) -> Ticket:
        ticket = many.submit(Question((), name, exit=NO_EXIT, sampling=SamplingConfig(max_new_tokens=tokens)))
        ticket.on_change(lambda: ends.append(name) if ticket.done() else None)
        return ticket

    tickets = [ask("long", 80), ask("short", 3)]
    for ticket in tickets:
        ticket.result(SECONDS)
    assert ends == ["short", "long"]


def test_the_loop_needs_no_pipeline_to_end(many: SglPipeline) -> None:
    """What a `Loop` was asked ends, however close and submissions interleave."""
    for seed in range(20):
        loop = Loop(many._pair, 2, 100, None)
        tickets: list[Ticket] = []
        refused = threading.Event()

        def ask(loop: Loop = loop, tickets: list[Ticket] = tickets, refused: threading.Event = refused) -> None:
            try:
                while True:
                    tickets.append(loop.submit(QUESTIONS[2], waits=True))
            except EngineError:
                refused.set()

        thread = threading.Thread(target=ask)
        thread.start()
        while len(tickets) < seed:
            pass
        loop.close()
        assert refused.wait(SECONDS)
        thread.join(SECONDS)
        for ticket in tickets:
            assert isinstance(ticket.wait(SECONDS), Answer | QuestionCancelled)
        assert loop.drain(0)
