"""What whoever asks should not do, or cannot help: nobody else notices, and nobody waits for ever."""

import gc
import logging
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from engine.config import ExitConfig, SamplingConfig
from engine.errors import EngineError, ModelFailed, RequestError
from engine.families import Turn
from engine.runtime.answer import Answer
from engine.runtime.arrays import Array
from engine.runtime.language import LanguageModel
from engine.runtime.model import Seen
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question

NO_EXIT = ExitConfig(enabled=False)
SECONDS = 300.0
"""For what takes a few; a test fails rather than hangs."""


def ask(tokens: int = 4, **options: object) -> Question:
    sampling = SamplingConfig(max_new_tokens=tokens)
    return Question((), "Hello", exit=NO_EXIT, sampling=sampling, **options)  # type: ignore[arg-type]


@pytest.fixture
def short(pipeline: SglPipeline) -> Answer:
    return pipeline.answer([], "Hello", exit=NO_EXIT, sampling=SamplingConfig(max_new_tokens=4))


@pytest.fixture
def quiet() -> Iterator[None]:
    """Without what is logged of questions that fail on purpose."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_word_without_end_keeps_nobody_from_a_turn(pipeline: SglPipeline, short: Answer) -> None:
    """As of many who ask and cancel as fast as the loop takes it."""
    ticket = pipeline.submit(ask())
    over = False

    def again() -> None:
        if not over:
            pipeline._loop._inbox.put(again)

    again()
    try:
        assert ticket.result(SECONDS).token_ids == short.token_ids
    finally:
        over = True


def test_forked_process_is_told_to_load_its_own(pipeline: SglPipeline, short: Answer) -> None:
    """It hangs nowhere, not even where a thread of its parent held a lock; and the parent notices nothing."""
    locked, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        with pipeline._loop._room:
            locked.set()
            goes_on.wait(SECONDS)

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(SECONDS)
    child = os.fork()
    if child == 0:
        told = 0
        for wrong in (lambda: pipeline.submit(ask()), lambda: pipeline.answer([], "Hello"), pipeline.drain):
            try:
                wrong()  # type: ignore[no-untyped-call]
            except EngineError as error:
                told += "load another in this process" in str(error)
        pipeline.close()
        os._exit(told)
    goes_on.set()
    holder.join(SECONDS)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert pipeline.submit(ask()).result(SECONDS).token_ids == short.token_ids


def test_thread_that_cannot_start_starts_later(
    engine_directory: Path, short: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with SglPipeline.load(engine_directory, threads=1) as pipeline:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(ModelFailed, match=r"no thread answers questions \(can't start new thread\); ask again"):
                pipeline.submit(ask())
        assert pipeline.submit(ask()).result(SECONDS).token_ids == short.token_ids
        assert pipeline.drain(SECONDS)


def test_room_that_memory_does_not_suffice_for_ends_one_question(
    engine_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever buffer cannot be made longer, those that run go on in what they have."""
    long = Question((), "Hello", exit=NO_EXIT, sampling=SamplingConfig(max_new_tokens=600))
    left: list[object] = []
    with SglPipeline.load(engine_directory, threads=1) as pipeline:
        language = pipeline.large.language
        assert isinstance(language, LanguageModel)
        reserve = language.executor.reserve

        def make(name: str, shape: tuple[int, ...]) -> Array:
            if left and left.pop() is None:
                raise EngineError("no memory")
            return reserve(name, shape)

        monkeypatch.setattr(language.executor, "reserve", make)
        expected = pipeline.submit(ask(100)).result(SECONDS).token_ids
        for number in range(len(language._slots._shared)):
            running = pipeline.submit(ask(100))
            next(iter(running))
            left[:] = [None, *[make] * number]
            refused = pipeline.submit(long).wait(SECONDS)
            assert isinstance(refused, EngineError) and "no memory" in str(refused)
            assert running.result(SECONDS).token_ids == expected


def fail_to_run() -> None:
    raise RuntimeError("injected")


@pytest.mark.parametrize("tokens", [4, 800])
def test_errors_that_are_kept_keep_no_pictures(
    engine_directory: Path, picture: Image.Image, quiet: None, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """Neither of the engine, nor of a question that is refused when its pictures are cut up; nor a ticket."""
    seen: list[weakref.ref[Seen]] = []
    sampling = SamplingConfig(max_new_tokens=tokens)
    with SglPipeline.load(engine_directory, threads=1, kv_memory=None if tokens == 4 else 10**5) as pipeline:
        look = pipeline.small.look
        monkeypatch.setattr(pipeline.small.language.executor, "run", fail_to_run)  # type: ignore[attr-defined]

        def spy(*arguments: object) -> Seen:
            found = look(*arguments)  # type: ignore[arg-type]
            seen.append(weakref.ref(found))
            return found

        monkeypatch.setattr(pipeline.small, "look", spy)
        gc.disable()
        try:
            tickets = [pipeline.submit(Question((picture,), "Hello", sampling=sampling)) for _ in range(3)]
            tickets[2].cancel()
            outcomes = [ticket.wait(SECONDS) for ticket in tickets]
            assert pipeline.drain(SECONDS)
            pipeline.close()
        finally:
            gc.enable()
        assert all(isinstance(outcome, EngineError) for outcome in outcomes)
        assert len(seen) >= 2
        assert [one() for one in seen] == [None] * len(seen)


WRONG: list[tuple[str, object]] = [
    ("images", "a.png"),
    ("images", Path("a.png")),
    ("images", None),
    ("images", b"bytes"),
    ("text", None),
    ("guidance", {}),
    ("exit", 0.9),
    ("sampling", 5),
    ("on_text", "print"),
    ("history", "before"),
    ("history", ({"question": "a", "answer": "b"},)),
    ("timeout", "5"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_field_of_a_wrong_type_is_refused_when_the_question_is_made(name: str, value: object) -> None:
    fields: dict[str, object] = {"images": (), "text": "Hello"}
    with pytest.raises(RequestError, match=f"^{name} of a question cannot .*; give "):
        Question(**fields | {name: value})  # type: ignore[arg-type]


def test_lists_are_as_good_as_tuples(pipeline: SglPipeline, picture: Image.Image) -> None:
    sampling = SamplingConfig(max_new_tokens=2)
    history = [Turn("a", "b")]
    listed = Question([picture], "Hello", sampling=sampling, history=history)  # type: ignore[arg-type]
    same = Question((picture,), "Hello", sampling=sampling, history=tuple(history))
    one, other = pipeline.answer_batch([listed, same])
    assert one.token_ids == other.token_ids


def test_stop_that_is_one_text_is_not_many() -> None:
    with pytest.raises(RequestError, match="stop cannot be a str; give a tuple, each a text"):
        SamplingConfig(stop="abc")  # type: ignore[arg-type]


def test_on_text_that_nobody_would_call_is_refused(pipeline: SglPipeline, short: Answer) -> None:
    refused, answered = pipeline.answer_all([ask(on_text=print), ask()])
    assert isinstance(refused, RequestError) and "on_text is called by answer_batch" in str(refused)
    assert isinstance(answered, Answer) and answered.token_ids == short.token_ids
