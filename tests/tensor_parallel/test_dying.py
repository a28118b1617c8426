"""Ranks that die, hang or fail while several questions are being answered, each at another stage."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine.config import ExitConfig, ExitCriterion, GuidanceConfig, SamplingConfig
from engine.errors import EngineError
from engine.runtime import tensor_parallel_group
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import Need, Rows, answer_rows
from engine.runtime.question import Question
from engine.runtime.scheduler import Outcome
from engine.runtime.tensor_parallel import (
    AgreedError,
    CloseSlot,
    Encode,
    Extend,
    Message,
    OpenShare,
    OpenSlot,
    RanksDiedError,
    Step,
)
from engine.runtime.tensor_parallel_group import Group
from engine.runtime.work import NONE
from tests.stand_in_python import stand_in_python
from tests.tensor_parallel import failing_rank
from tests.tensor_parallel.conftest import Engines
from tests.tensor_parallel.test_failure import wait_until_gone
from tests.tolerance import TOLERANCE

pytestmark = pytest.mark.xdist_group("tensor parallel")
NEVER, NO_GUIDANCE = ExitConfig(enabled=False), GuidanceConfig(enabled=False)
ALWAYS = ExitConfig(criterion=ExitCriterion.CONFIDENCE, exit_threshold=0)
CHUNK = 4
"""Rows that are fed at once: a long prompt is read for a long time."""
ROOM = Need((40, 40, 40))


class Watched(Group):
    """A group that is looked at, and hurt, right before a message to it: in the thread that answers."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Message] = []
        self.before: Callable[[Message], None] = lambda message: None

    def do(self, message: Message) -> Any:
        self.before(message)
        self.said.append(message)
        return super().do(message)


@pytest.fixture
def group() -> Iterator[Watched]:
    group = Watched()
    yield group
    group.end()


def kill(group: Group, rank: int) -> None:
    process = group.process_ids()[rank]
    os.kill(process, signal.SIGKILL)
    wait_until_gone((process,))


def at_three_stages(picture: Image.Image) -> list[Question]:
    """One that speaks, one that reads a long prompt, one that looks; and one that the small model answers."""

    def ask(pictures: tuple[Image.Image, ...], text: str, tokens: int) -> Question:
        return Question(pictures, text, NO_GUIDANCE, NEVER, SamplingConfig(max_new_tokens=tokens))

    return [
        ask((picture,), "What?", 700),
        ask((), "Say more. " * 90, 3),
        ask((picture.rotate(90, expand=True), picture.rotate(180)), "What?", 3),
        Question((picture,), "What?", exit=ALWAYS, sampling=SamplingConfig(max_new_tokens=3)),
    ]


def answer_at_three_stages(
    pipeline: SglPipeline, group: Watched, picture: Image.Image, kind: type, hurt: Callable[[], None]
) -> list[Outcome]:
    """Of `at_three_stages`: each comes once the one before is at its stage; once the third has looked at some of its
    pictures the group is hurt before the next message of that kind.
    """
    coming = iter(at_three_stages(picture))
    tickets = [pipeline.submit(next(coming))]
    hurts: list[Message] = []

    def before(message: Message) -> None:
        is_there = {1: isinstance(message, Step), 2: isinstance(message, Extend)}
        if is_there.get(len(tickets)):
            tickets.extend(pipeline.submit(question) for question in islice(coming, len(tickets)))
            group.said.clear()
        elif (
            len(tickets) == 4
            and isinstance(message, kind)
            and not hurts
            and any(isinstance(said, Encode) for said in group.said)
        ):
            hurts.append(message)
            hurt()

    group.before = before
    outcomes = [tickets[index].wait() for index in range(4)]
    assert len(hurts) == 1
    return outcomes


@pytest.mark.parametrize(
    ("kind", "verb", "victim"),
    [(Step, "step", 0), (Step, "step", 1), (Extend, "extend", 1), (Encode, "encode", 0), (OpenSlot, "open slot", 1)],
)
def test_a_killed_rank_ends_those_with_slots_and_no_others(
    engines: Engines, picture: Image.Image, group: Watched, kind: type, verb: str, victim: int
) -> None:
    with SglPipeline.load(engines(2), threads=1, ranks=group, prefill_chunk=CHUNK, feature_cache=0) as pipeline:
        speaks, reads, looks, exits = at_three_stages(picture)
        expected = pipeline.answer_batch([looks, exits])
        first = group.process_ids()
        outcomes = answer_at_three_stages(pipeline, group, picture, kind, lambda: kill(group, victim))
        assert [type(outcome) for outcome in outcomes] == [RanksDiedError, RanksDiedError, Answer, Answer]
        sentence = rf"a rank of .*tp2 died during {verb}; ask again: the ranks are started anew"
        assert re.fullmatch(sentence, str(outcomes[0]))
        assert str(outcomes[1]) == str(outcomes[0])
        for outcome, answer in zip(outcomes[2:], expected, strict=True):
            assert isinstance(outcome, Answer)
            assert (outcome.token_ids, outcome.probabilities) == (answer.token_ids, answer.probabilities)
        assert outcomes[3].answered_by is AnsweredBy.SMALL  # type: ignore[union-attr]
        wait_until_gone(first)
        assert group.epoch == 1, "they were started once more"
        second = group.process_ids()
        assert [
            type(outcome) for outcome in pipeline.answer_each([replace(speaks, sampling=reads.sampling), reads])
        ] == [Answer, Answer]
        assert group.process_ids() == second
        load = pipeline.load_now()
        assert (load.running, load.waiting, load.kv_memory_used) == (0, 0, 0)


def test_a_stopped_rank_is_given_up_with_all_its_slots(
    engines: Engines, picture: Image.Image, group: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SglPipeline.load(engines(2), threads=1, ranks=group, prefill_chunk=CHUNK, feature_cache=0) as pipeline:
        first, patience = group.process_ids(), group._answer_seconds

        def stop() -> None:
            os.kill(first[1], signal.SIGSTOP)
            monkeypatch.setattr(group, "_answer_seconds", 0.5)

        close = group._close

        def close_and_be_patient(*arguments: Any) -> None:
            monkeypatch.setattr(group, "_answer_seconds", patience)
            close(*arguments)

        monkeypatch.setattr(group, "_close", close_and_be_patient)
        outcomes = answer_at_three_stages(pipeline, group, picture, Step, stop)
        wait_until_gone(first)
    sentence = r"a rank of .*tp2 did not answer within 0.5 s during step; ask again: the ranks are started anew"
    assert all(re.fullmatch(sentence, str(outcome)) for outcome in outcomes[:2])
    assert isinstance(outcomes[2], Answer)


def test_ranks_that_nobody_asked_when_they_died(engines: Engines, picture: Image.Image, group: Watched) -> None:
    """The next question starts them again; it is not even slower to fail."""
    with SglPipeline.load(engines(2), threads=1, ranks=group) as pipeline:
        question = at_three_stages(picture)[2]
        expected = pipeline.answer_batch([question])[0]
        kill(group, 1)
        assert pipeline.answer_batch([question])[0].token_ids == expected.token_ids
        group.close()
        assert pipeline.answer_batch([question])[0].token_ids == expected.token_ids


@pytest.fixture
def failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the ranks that are started from here on are to fail with; see `failing_rank`."""
    python = stand_in_python(tmp_path, Path(failing_rank.__file__))
    monkeypatch.setattr(tensor_parallel_group, "_python", lambda: python)
    monkeypatch.setenv("FAILURES", str(tmp_path / "failures"))
    return tmp_path / "failures"


VERBS = ("open", "extend", "step", "visual_scores", "truncate", "close", "encode")
AGREED = ("open", "visual_scores", "truncate", "encode")
"""In which no rank waits for another before all know how it went."""


def test_a_rank_that_cannot_do_it_does_not_leave_the_others_out_of_step(
    engines: Engines, group: Watched, failures: Path
) -> None:
    """A rank without memory fails the question; one that breaks, or fails where others wait for it, ends them all."""
    with SglPipeline.load(engines(2), threads=1, ranks=group) as pipeline:
        language, vision = pipeline.large.language, pipeline.large.vision
        rows, tile, more = answer_rows(0, np.arange(20)), np.zeros((2, 3, 112, 112), np.float32), np.array([7])
        scored = Need(ROOM.lengths, np.array([1, 2]))
        expected: list[np.ndarray] = []
        for verb in VERBS:
            for error in ("EngineError", "RuntimeError"):
                other, slot = language.open(scored), language.open(scored)
                language.extend(other, rows, np.array([19]), np.array([19]))
                language.extend(slot, rows, np.array([19]), np.array([19]))
                calls: dict[str, Callable[[], Any]] = {
                    "open": lambda: language.open(ROOM),
                    "extend": lambda: language.extend(slot, rows_after(rows), NONE, NONE),  # noqa: B023
                    "step": lambda: language.step([slot], more, np.array([True])),  # noqa: B023
                    "visual_scores": lambda: language.visual_scores(slot),  # noqa: B023
                    "truncate": lambda: language.truncate(slot, 3),  # noqa: B023
                    "close": lambda: language.close(slot),  # noqa: B023
                    "encode": lambda: vision.encode(tile),
                }
                failures.write_text(f"1 {verb} {error}")
                ranks, epoch = group.process_ids(), group.epoch
                if verb in AGREED and error == "EngineError":
                    with pytest.raises(AgreedError, match=rf"^rank 1 on \S+: there is no room to {verb}$"):
                        calls[verb]()
                    assert group.process_ids() == ranks
                    results = [np.array(language.step([other], more, np.array([True]))[0])]
                    results.append(language.visual_scores(other))
                    expected = expected or results
                    for result, before in zip(results, expected, strict=True):
                        assert_array_equal(result, before)
                else:
                    died = pytest.raises(RanksDiedError, match=rf"died \(.*{error}: there is no room to {verb}\)")
                    if verb in ("open", "encode"):  # new ranks are asked once more, and can
                        assert calls[verb]() is not None
                    else:
                        with died if verb != "close" else suppress(RanksDiedError):  # rank 0 may be done with that
                            calls[verb]()
                    wait_until_gone(ranks)
                    with died:
                        language.step([other], more, np.array([False]))
                    assert group.epoch == epoch + 1
                for left in list(language._epochs):  # type: ignore[attr-defined]
                    language.close(left)
                assert not failures.exists()
    assert len(expected) == 2


def rows_after(rows: Rows) -> Rows:
    return answer_rows(len(rows), np.arange(3))


def test_memory_that_the_ranks_do_not_have(engines: Engines, group: Watched) -> None:
    """As they find out themselves; what is open stays."""
    with SglPipeline.load(engines(2), threads=1, ranks=group) as pipeline, SglPipeline.load(engines(1)) as alone:
        logits, ranks = [], group.process_ids()
        for large in (pipeline.large, alone.large):
            language, rows = large.language, answer_rows(0, np.arange(20))
            slot = language.open(ROOM)
            language.extend(slot, rows, NONE, NONE)
            with pytest.raises(EngineError, match=r"no [\d,.]+ GiB of memory for keys and values of"):
                language.open(Need((1 << 40,) * 3))
            logits.append(np.array(language.step([slot], np.array([5]), np.array([False]))))
            language.close(slot)
            assert language.has_place()
        assert_allclose(*logits, **TOLERANCE["fp32"])
        assert group.process_ids() == ranks


def test_all_ranks_are_told_the_same_in_the_same_order(engines: Engines, picture: Image.Image, group: Watched) -> None:
    """A place that a cancelled question left is the next one's, and a slot is closed once."""
    with SglPipeline.load(engines(2), threads=1, ranks=group, max_running=2) as pipeline:
        tickets = [pipeline.submit(question) for question in at_three_stages(picture)[:3]]
        next(iter(tickets[0]))
        tickets[0].cancel()
        assert [isinstance(ticket.wait(), Answer) for ticket in tickets] == [False, True, True]
    opened = [message for message in group.said if isinstance(message, OpenSlot)]
    closed = [message.slot for message in group.said if isinstance(message, CloseSlot)]
    assert sorted(closed) == list(range(1, len(opened) + 1))
    assert not any(isinstance(message, OpenShare) for message in group.said)
