"""Pictures that questions hold in memory: how many bytes, whose, and who waits or is refused where it is too much."""

import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.config import ExitConfig, PictureConfig, SamplingConfig
from engine.errors import EngineError, ImageError, Overloaded, QuestionTimedOut, RequestError
from engine.runtime import loop
from engine.runtime.answer import Answer
from engine.runtime.images.held import held_bytes, hold
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question

SIDE = 100
BYTES = 4 * SIDE * SIDE
SECONDS = 300.0
"""For what takes a few; a test fails rather than hangs."""


def ask(tokens: int = 3, **options: Any) -> Question:
    picture = Image.new("RGB", (SIDE, SIDE), (200, 100, 0))
    options = {"images": (picture,), "sampling": SamplingConfig(max_new_tokens=tokens)} | options
    return Question(text="What?", exit=ExitConfig(enabled=False), **options)


@pytest.fixture
def two(engine_directory: Path) -> Iterator[SglPipeline]:
    """Answers one question at once, and has memory for the pictures of two and a half."""
    with SglPipeline.load(engine_directory, threads=1, max_running=1) as pipeline:
        pipeline._loop._picture_memory = BYTES * 5 // 2
        yield pipeline


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def stopped(pipeline: SglPipeline) -> threading.Event:
    """Nothing is answered before it is set."""
    gate = threading.Event()
    pipeline._loop._inbox.put(lambda: gate.wait(SECONDS))  # type: ignore[arg-type, return-value]
    return gate


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (b"12345", 5),
        (bytearray(7), 7),
        (memoryview(np.zeros((3, 4), np.int16)), 24),
        (Image.new("L", (5, 3)), 60),
        (np.zeros((3, 5), np.uint8), 60),
        (np.zeros((3, 5, 3), np.uint8), 60),
        (np.zeros(9), 0),
        (np.broadcast_to(np.uint8(0), (1 << 40, 1 << 20, 3)), 0),
        ("a.png", 0),
        (Path("a.png"), 0),
        (None, 0),
    ],
)
def test_bytes_that_a_picture_holds(image: Any, size: int) -> None:
    assert held_bytes(image) == size


def test_what_is_held_is_nobody_elses() -> None:
    file = BytesIO()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(file, "PNG")
    data, numbers, picture = bytearray(file.getvalue()), np.zeros((2, 2), np.uint8), Image.new("RGB", (2, 2))
    held = [hold(image, PictureConfig()) for image in (data, memoryview(data), numbers, picture)]
    data[:], numbers[:] = bytes(len(data)), 9
    picture.putpixel((0, 0), (9, 9, 9))
    assert held[:2] == [file.getvalue()] * 2
    assert [image.getpixel((0, 0)) for image in held[2:]] == [(0, 0, 0)] * 2  # type: ignore[union-attr]


def test_submit_is_refused_and_answer_waits(two: SglPipeline) -> None:
    gate = stopped(two)
    tickets = [two.submit(ask()), two.submit(ask())]
    message = f"pictures of the 2 questions .* hold {2 * BYTES:,} bytes of memory already, of 100,000; ask again later"
    with pytest.raises(Overloaded, match=message):
        two.submit(ask())
    tickets.append(two.submit(ask(images=())))  # it holds nothing
    with pytest.raises(QuestionTimedOut):
        two.answer_batch([ask(timeout=0.05)])
    answers: list[Answer] = []
    waiting = threading.Thread(target=lambda: answers.extend(two.answer_batch([ask()])))
    waiting.start()
    until(lambda: len(two._loop._turns) == 1)
    gate.set()
    assert [*{ticket.result(SECONDS).text for ticket in tickets[:2]}] == [tickets[1].result().text]
    waiting.join(SECONDS)
    assert [answer.text for answer in answers] == [tickets[0].result().text]
    assert two.drain(SECONDS) and two._loop._picture_bytes == 0


def test_many_pictures_are_held_a_few_at_a_time(two: SglPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    def note(image: Any, picture: PictureConfig) -> Any:
        held.append(two._loop._picture_bytes)
        return hold(image, picture)

    monkeypatch.setattr(loop, "hold", note)
    answers = two.answer_batch([ask() for _ in range(12)])
    assert {answer.text for answer in answers} == {answers[0].text}
    assert len(held) == 12 and max(held) == 2 * BYTES
    assert isinstance([*two.answer_all(ask() for _ in range(5))][-1], Answer)
    assert two._loop._picture_bytes == 0


def test_what_never_fits_is_refused(two: SglPipeline) -> None:
    picture = ask().images[0]
    bad, good = two.answer_each([ask(images=(picture,) * 3), ask()])
    assert isinstance(bad, RequestError) and isinstance(good, Answer)
    message = f"pictures hold {3 * BYTES:,} bytes of memory, and those of all questions may hold 100,000; give fewer"
    assert message in str(bad)


def test_what_cannot_be_copied_holds_nothing(two: SglPipeline) -> None:
    for image in (np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE, 7), np.uint8)):
        with pytest.raises(ImageError):
            two.submit(ask(images=(image,)))
    assert two._loop._picture_bytes == two._loop._expected == 0
    assert two.drain(SECONDS)
    with pytest.raises(EngineError, match="the pipeline was closed"):
        two.submit(ask())


def test_who_needs_much_is_not_passed_by(two: SglPipeline) -> None:
    """Of those that wait, whoever came first is the first to be let in."""
    gate = stopped(two)
    two.submit(ask())
    picture = ask().images[0]
    questions = [ask(images=(picture, picture)), ask(images=())]
    threads = []
    for number, question in enumerate(questions, 1):
        threads.append(threading.Thread(target=two.answer_batch, args=([question],)))
        threads[-1].start()
        until(lambda number=number: len(two._loop._turns) == number)  # type: ignore[misc]
    assert two._loop._expected == 1
    gate.set()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert two.drain(SECONDS)
