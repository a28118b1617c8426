"""What whoever asks should not do, or cannot help: nobody else notices, and nobody waits for ever."""

import logging
from collections.abc import Iterator

import pytest

from engine.config import ExitConfig, SamplingConfig
from engine.errors import ModelFailed
from engine.runtime.answer import Answer
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
