"""What whoever asks holds: pieces, the outcome, listeners; without any engine."""

import asyncio
import gc
import threading
import time
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import ModelFailed
from engine.runtime.ticket import Ticket

ANSWER: Any = SimpleNamespace(text="ab")


def make(cancels: list[str] | None = None) -> Ticket:
    return Ticket(lambda: (cancels if cancels is not None else []).append("cancelled"))


def test_pieces_come_once_and_in_order() -> None:
    ticket = make()
    ticket.put("a")
    assert ticket.take() == ["a"]
    ticket.put("b")
    ticket.put("c")
    ticket.put(ANSWER)
    assert list(ticket) == ["b", "c"]
    assert list(ticket) == [] == ticket.take()
    assert ticket.result() is ticket.wait() is ANSWER


def test_an_error_is_an_outcome_and_is_raised() -> None:
    ticket, error = make(), ModelFailed("no")
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        ticket.result(timeout=0.01)
    ticket.put(error)
    assert ticket.done() and ticket.wait() is error
    with pytest.raises(ModelFailed):
        ticket.result()
    assert list(ticket) == []


def test_leaving_it_cancels_what_has_not_ended() -> None:
    cancels: list[str] = []
    with make(cancels):
        pass
    assert cancels == ["cancelled"]
    with make(cancels) as ticket:
        ticket.put(ANSWER)
    ticket.cancel()
    assert cancels == ["cancelled"]


@pytest.mark.parametrize("error", [KeyError("bug"), SystemExit(1)])
def test_a_listener_that_raises_touches_nobody(error: BaseException) -> None:
    """Neither whoever answers, nor the other listeners."""
    ticket, heard, fails = make(), [], False

    def bad() -> None:
        if fails:
            raise error

    ticket.on_change(bad)
    ticket.on_change(lambda: heard.append(ticket.done()))
    fails = True
    ticket.put("a")
    ticket.put(ANSWER)
    assert heard == [False, False, True]


def test_whoever_waits_is_woken_in_every_thread() -> None:
    ticket, outcomes = make(), []
    threads = [threading.Thread(target=lambda: outcomes.append(ticket.wait(60))) for _ in range(4)]
    for thread in threads:
        thread.start()
    ticket.put(ANSWER)
    for thread in threads:
        thread.join(60)
    assert outcomes == [ANSWER] * 4


def put_slowly(ticket: Ticket, count: int) -> threading.Thread:
    def run() -> None:
        for number in range(count):
            time.sleep(number % 3 * 0.0005)
            ticket.put(str(number))
        ticket.put(ANSWER)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_async_for_gives_every_piece() -> None:
    tickets = [make() for _ in range(5)]
    threads = [put_slowly(ticket, 200) for ticket in tickets]

    async def read(ticket: Ticket) -> list[str]:
        return [piece async for piece in ticket]

    async def main() -> list[list[str]]:
        return await asyncio.gather(*(read(ticket) for ticket in tickets))

    assert asyncio.run(main()) == [[str(number) for number in range(200)]] * 5
    for thread in threads:
        thread.join()


def test_a_closed_event_loop_stops_nobody_who_answers() -> None:
    ticket = make()
    ticket.put("a")

    async def first() -> str:
        async for piece in ticket:
            return piece
        raise AssertionError

    assert asyncio.run(first()) == "a"
    ticket.put("b")
    ticket.put(ANSWER)
    assert ticket.take() == ["b"]


def test_whoever_leaves_async_for_leaves_the_rest() -> None:
    ticket = make()
    for event in ("a", "b", "c", ANSWER):
        ticket.put(event)

    async def first() -> str:
        async for piece in ticket:
            return piece
        raise AssertionError

    assert [asyncio.run(first()), asyncio.run(first()), *ticket] == ["a", "b", "c"]


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, -1.0, float("nan")])
def test_any_number_of_seconds_is_one_to_wait(timeout: float) -> None:
    ticket = make()
    if not timeout > 0:
        with pytest.raises(TimeoutError):
            ticket.wait(timeout)
    thread = put_slowly(ticket, 5)
    assert ticket.wait(max(1e10, timeout)) is ANSWER
    assert ticket.result(timeout) is ANSWER
    thread.join()


def test_an_outcome_is_all_that_is_held() -> None:
    """Not what answered, which may be large: also where nobody collects garbage."""

    class Engine:
        def cancel(self) -> None: ...

        def hear(self) -> None: ...

    engine = Engine()
    ticket, gone = Ticket(engine.cancel), weakref.ref(engine)
    ticket.on_change(engine.hear)
    gc.disable()
    try:
        ticket.put(ANSWER)
        ticket.on_change(engine.hear)
        ticket.cancel()
        del engine
        assert gone() is None
    finally:
        gc.enable()
