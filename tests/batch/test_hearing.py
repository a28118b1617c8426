"""Ranks that fall silent, by a clock that a test turns."""

import random
from pathlib import Path

import pytest

from engine.batch import hearing as module
from engine.batch.answers import opened
from engine.batch.hearing import Hearing
from engine.batch.terms import Terms
from tests.batch.conftest import Write
from tests.batch.simulation import FakeAsker, FakePeers
from tests.batch.test_crew import crew_of, expected, question, read


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def listen(hearing: Hearing, clock: Clock, seconds: float, step: float = 0.5) -> None:
    end = clock.now + seconds
    while clock.now < end:
        clock.now += step
        hearing.listen()


def test_who_says_nothing_is_silent(clock: Clock) -> None:
    hearing = Hearing()
    for rank in (1, 2):
        hearing.hear(rank)
    listen(hearing, clock, module.SILENCE_SECONDS - 1)
    hearing.hear(2)
    listen(hearing, clock, 2)
    assert hearing.silent() == [1]
    hearing.forget(1)
    assert hearing.silent() == []


def test_a_process_that_stood_still_has_missed_nothing(clock: Clock) -> None:
    hearing = Hearing()
    hearing.hear(1)
    listen(hearing, clock, 10 * module.SILENCE_SECONDS, step=10 * module.SILENCE_SECONDS)
    assert hearing.silent() == []


def test_beats_come_now_and_then(clock: Clock) -> None:
    hearing, beats = Hearing(), 0
    for _ in range(100):
        listen(hearing, clock, 1)
        beats += hearing.is_beat()
    assert beats == pytest.approx(100 / module.BEAT_SECONDS, abs=1)


def test_a_silent_rank_is_left_and_its_questions_go_to_others(
    terms: Terms, write: Write, folder: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Long before they would be copied at the end."""
    write([question(place) for place in range(400)])

    class Slow(FakeAsker):
        def wait(self, seconds: float | None) -> list:  # type: ignore[type-arg]
            clock.now += 1
            return super().wait(seconds)

    mine, dead = Slow(2, random.Random(1)), FakeAsker(8, random.Random(2))
    peers = FakePeers({1: dead}, random.Random(3))
    peers.silent[1] = 1
    with opened(folder / "answers.jsonl", {}, True) as answers:
        crew = crew_of(terms, answers, mine, peers)
        crew.run()
        assert crew.ranks() == 1
    assert read(folder / "answers.jsonl") == expected(400)
    assert peers.lost == [1]
    assert "rank 1 answers no more: it has said nothing for 300 s" in capsys.readouterr().err
    lost = min(set(dead.log) - set(dead.answered))
    assert mine.log.index(lost) < len(mine.log) - 20
