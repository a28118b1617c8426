"""The thread that answers, from outside: who waits, who is refused, what ends it, and that nobody waits for ever."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config import ExitConfig, SamplingConfig
from engine.errors import (
    EngineError,
    ModelFailed,
    Overloaded,
    QuestionCancelled,
    QuestionTimedOut,
    RequestError,
)
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question

NO_EXIT = ExitConfig(enabled=False)
SECONDS = 300.0
"""For what takes a few; a test fails rather than hangs."""


def ask(tokens: int = 4, text: str = "Hello", **options: object) -> Question:
    sampling = SamplingConfig(max_new_tokens=tokens)
    return Question((), text, exit=NO_EXIT, sampling=sampling, **options)  # type: ignore[arg-type]


LONG = ask(900)


@pytest.fixture
def one(engine_directory: Path) -> Iterator[SglPipeline]:
    """Answers one question at once, and lets another wait."""
    with SglPipeline.load(engine_directory, threads=1, max_running=1, max_waiting=1) as pipeline:
        yield pipeline


@pytest.fixture
def short(pipeline: SglPipeline) -> Answer:
    return pipeline.answer([], "Hello", exit=NO_EXIT, sampling=SamplingConfig(max_new_tokens=4))


def is_alive(pipeline: SglPipeline) -> bool:
    thread = pipeline._loop._thread
    return thread is not None and thread.is_alive()


def test_asking_from_inside_on_text(one: SglPipeline, short: Answer) -> None:
    """Also where there is no room for another question before this one has ended."""
    inner: list[Answer] = []

    def on_text(piece: str) -> None:
        if len(inner) < 3:
            inner.append(one.answer([], "Hello", exit=NO_EXIT, sampling=SamplingConfig(max_new_tokens=4)))

    one.answer([], "Outer", exit=NO_EXIT, sampling=SamplingConfig(max_new_tokens=9), on_text=on_text)
    assert [answer.token_ids for answer in inner] == [short.token_ids] * len(inner)
    assert inner


def test_on_text_that_raises_ends_its_own_question(pipeline: SglPipeline, short: Answer) -> None:
    def fail(piece: str) -> None:
        raise KeyError(piece)

    with pytest.raises(KeyError):
        pipeline.answer([], "Hello", exit=NO_EXIT, on_text=fail)
    said: list[str] = []
    bad, good = pipeline.answer_each([ask(on_text=fail), ask(on_text=said.append)])
    assert isinstance(bad, EngineError) and "on_text failed (KeyError(" in str(bad)
    assert isinstance(good, Answer) and good.token_ids == short.token_ids and "".join(said) == good.text


def test_what_is_wrong_at_once_is_the_outcome_of_its_question(engine_directory: Path) -> None:
    """As that nothing is answered any more: whoever asks for many at once keeps what was answered."""
    with SglPipeline.load(engine_directory, threads=1) as pipeline:
        stop = ask(on_text=lambda piece: pipeline.close())
        for outcomes in (pipeline.answer_each([stop, *[ask()] * 40]), [*pipeline.answer_all([ask()] * 3)]):
            assert all(isinstance(outcome, EngineError) for outcome in outcomes[-2:])
            assert "closed" in str(outcomes[-1])


def test_overloaded(one: SglPipeline) -> None:
    running, waiting = one.submit(LONG), one.submit(LONG)
    with pytest.raises(Overloaded, match="2 questions are being answered or wait already; ask again later"):
        one.submit(ask())
    running.cancel()
    assert isinstance(running.wait(SECONDS), QuestionCancelled)
    one.submit(ask()).cancel()
    waiting.cancel()
    assert isinstance(waiting.wait(SECONDS), QuestionCancelled)


def test_a_question_has_its_time_and_no_more(one: SglPipeline, short: Answer) -> None:
    """Running, waiting, and waiting for room to wait."""
    for _ in range(2):
        assert isinstance(one.submit(ask(900, timeout=0.2)).wait(SECONDS), QuestionTimedOut)
    blocking = [one.submit(LONG), one.submit(LONG)]
    start = time.monotonic()
    with pytest.raises(QuestionTimedOut, match="not answered in its time"):
        one.answer([], "Hello", timeout=0.05)
    assert time.monotonic() - start < SECONDS
    for ticket in blocking:
        ticket.cancel()
        ticket.wait(SECONDS)
    for timeout in (float("inf"), 1e300, 1e10):
        answer = one.submit(ask(timeout=timeout)).result(SECONDS)
        assert answer.token_ids == short.token_ids
    assert is_alive(one)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_that_is_none(timeout: float) -> None:
    with pytest.raises(RequestError, match=f"timeout {float(timeout)} is not a number above 0"):
        ask(timeout=timeout)


def test_listeners_that_fail_end_nothing(pipeline: SglPipeline, short: Answer) -> None:
    """Neither at a piece nor at the outcome, neither their own question nor another."""
    main = threading.current_thread()

    def fail() -> None:
        if threading.current_thread() is not main:
            raise SystemExit("a listener")

    logging.getLogger("engine.runtime.ticket").disabled = True
    try:
        tickets = [pipeline.submit(ask(20)) for _ in range(3)]
        for ticket in tickets:
            ticket.on_change(fail)
        assert len({ticket.result(SECONDS).token_ids for ticket in tickets}) == 1
    finally:
        logging.getLogger("engine.runtime.ticket").disabled = False
    assert pipeline.submit(ask()).result(SECONDS).token_ids == short.token_ids


def test_async_for(pipeline: SglPipeline) -> None:
    async def read(text: str) -> str:
        ticket = pipeline.submit(ask(20, text))
        pieces = [piece async for piece in ticket]
        assert "".join(pieces) == ticket.result(0).text
        return ticket.result(0).text

    async def main() -> list[str]:
        return await asyncio.gather(*(read(f"Question {number % 3}") for number in range(9)))

    texts = asyncio.run(main())
    assert texts[:3] == texts[3:6] == texts[6:]


def test_draining(engine_directory: Path, short: Answer) -> None:
    """What was asked ends and says so; what comes is refused."""
    pipeline = SglPipeline.load(engine_directory, threads=1, max_running=2)
    tickets = [pipeline.submit(ask(30)) for _ in range(6)]
    assert not pipeline.drain(0)
    with pytest.raises(EngineError, match="was closed and answers no more"):
        pipeline.submit(ask())
    with pytest.raises(EngineError, match="was closed and answers no more"):
        pipeline.answer([], "Hello")
    assert pipeline.drain(SECONDS)
    assert all(ticket.done() for ticket in tickets)
    assert {ticket.result(0).finish_reason for ticket in tickets} == {"length"}
    pipeline.close()


def test_drained_means_told(engine_directory: Path) -> None:
    """`drain` does not return while a listener is still being told of an outcome."""
    with SglPipeline.load(engine_directory, threads=1) as pipeline:
        ticket, entered, told = pipeline.submit(ask(20)), threading.Event(), []

        def listen() -> None:
            if ticket.done():
                entered.set()
                time.sleep(0.2)
                told.append(True)

        ticket.on_change(listen)
        assert entered.wait(SECONDS)
        assert pipeline.drain(SECONDS)
        assert told


def test_closing_ends_every_question_once(engine_directory: Path) -> None:
    outcomes: list[object] = []
    pipeline = SglPipeline.load(engine_directory, threads=1, max_running=2, max_waiting=3)
    tickets = [pipeline.submit(LONG) for _ in range(5)]
    for ticket in tickets:
        ticket.on_change(lambda ticket=ticket: outcomes.append(ticket.wait()) if ticket.done() else None)  # type: ignore[misc]
    blocked: list[BaseException] = []

    def wait_for_room() -> None:
        try:
            pipeline.answer([], "Hello")
        except EngineError as error:
            blocked.append(error)

    thread = threading.Thread(target=wait_for_room)
    thread.start()
    pipeline.close()
    thread.join(SECONDS)
    assert not is_alive(pipeline)
    assert all(isinstance(outcome, QuestionCancelled) for outcome in outcomes)
    assert len(outcomes) == 5
    assert "closed" in str(outcomes[0]) and "closed" in str(blocked[0])
    assert pipeline.load_now().kv_memory_used == 0
    pipeline.close()


def test_a_pipeline_that_is_dropped_ends_its_tickets(engine_directory: Path) -> None:
    ticket = SglPipeline.load(engine_directory, threads=1).submit(LONG)
    gc.collect()
    assert isinstance(ticket.wait(SECONDS), QuestionCancelled)


def test_a_pipeline_dropped_by_a_listener(engine_directory: Path) -> None:
    """Its thread then closes it, and does not wait for itself."""
    holder = [SglPipeline.load(engine_directory, threads=1)]
    thread_of = holder[0]._loop
    tickets = [holder[0].submit(LONG), holder[0].submit(ask(1))]
    tickets[1].on_change(lambda: holder.clear() if tickets[1].done() else None)
    assert isinstance(tickets[1].wait(SECONDS), Answer)
    assert isinstance(tickets[0].wait(SECONDS), QuestionCancelled)
    assert thread_of._thread is not None
    thread_of._thread.join(SECONDS)
    assert not thread_of._thread.is_alive()


@pytest.mark.parametrize("error", [KeyError("a fault"), SystemExit("a fault")])
def test_a_fault_of_the_loop_leaves_nobody_waiting(
    engine_directory: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Neither those that run, nor those that wait, nor those that it has not looked at yet."""
    pipeline = SglPipeline.load(engine_directory, threads=1, max_running=2)
    fails, goes_on = threading.Event(), threading.Event()

    def iterate() -> bool:
        fails.set()
        goes_on.wait(SECONDS)
        raise error

    logging.getLogger("engine.runtime.loop").disabled = True
    try:
        tickets = [pipeline.submit(LONG) for _ in range(4)]
        monkeypatch.setattr(pipeline._loop._scheduler, "iterate", iterate)
        assert fails.wait(SECONDS)
        tickets += [pipeline.submit(LONG) for _ in range(4)]
        goes_on.set()
        for ticket in tickets:
            outcome = ticket.wait(SECONDS)
            assert isinstance(outcome, ModelFailed) and "answering ended" in str(outcome)
    finally:
        logging.getLogger("engine.runtime.loop").disabled = False
    with pytest.raises(EngineError, match="load another"):
        pipeline.submit(LONG)
    assert pipeline.drain(SECONDS)
    pipeline.close()
