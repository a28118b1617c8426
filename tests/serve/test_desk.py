"""How requests become answers, with everything but the server and the engines; tests/serving asks the real ones."""

import importlib
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from engine.engine_directory import read_manifest
from engine.errors import (
    EngineError,
    ImageError,
    ModelFailed,
    Overloaded,
    QuestionCancelled,
    QuestionTimedOut,
    RequestError,
    Setting,
)
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.image_url import EVERY_HOST, Hosts, Medium
from engine.runtime.question import Question, Reuse, Stage
from engine.runtime.sampling import TopToken
from engine.runtime.scheduler import Load, Outcome
from engine.runtime.tensor_parallel import RanksDiedError
from engine.runtime.ticket import Ticket
from engine.runtime.utterance import FinishReason
from engine.serve.triton import inquiry
from engine.serve.triton.inquiry import Reader
from engine.serve.triton.serve_config import ServeConfig
from tests.serve import fake_triton
from tests.serve.fake_triton import MetricFamily, Request, Sender

MODULES = ("backend", "metrics", "desk")
SECONDS = 60.0


def make_answer(text: str, top: tuple[tuple[TopToken, ...], ...] = ((), (), ())) -> Answer:
    return Answer(
        text=text,
        answered_by=AnsweredBy.LARGE,
        finish_reason=FinishReason.STOP,
        decision=None,
        small_text=None,
        prompt_tokens=9,
        visual_tokens=4,
        tiles=5,
        tiles_skipped=1,
        budget=None,
        guidance=None,
        kept=np.arange(2),
        importance=np.arange(4, dtype=np.float32),
        boxes=np.zeros((4, 4), np.float32),
        images=np.zeros(4, np.int64),
        token_ids=(5, 6, 7),
        probabilities=(0.5, 0.25, 1.0),
        top=top,
        drafted=4,
        accepted=2,
        speculated=0,
        speculated_accepted=0,
        reuse=Reuse(tiles=13, tiles_known=6, tokens=200, tokens_known=150),
        num_layers=2,
        seconds={Stage.LARGE_PREFILL: 0.5, Stage.LARGE_DECODE: 1.0},
        engine_seconds={},
    )


class Pipeline:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[Question, Ticket]] = []
        self.cancelled: list[Ticket] = []
        self.refusal: Exception | None = None

    def submit(self, question: Question) -> Ticket:
        if self.refusal is not None:
            raise self.refusal
        ticket = Ticket(lambda: self.cancelled.append(ticket))
        self.asked.append((question, ticket))
        return ticket

    def load_now(self) -> Load:
        return Load(sum(not ticket.done() for _, ticket in self.asked), 0, 10, 100)

    def close(self) -> None:
        for _, ticket in self.asked:
            if not ticket.done():
                ticket.put(QuestionCancelled("the pipeline was closed"))


class Service:
    """A desk and its pipeline."""

    def __init__(self, desk: ModuleType, reader: Reader) -> None:
        self.module, self.pipeline = desk, Pipeline()
        self.desk = desk.Desk(self.pipeline, reader, desk.Metrics())

    def ask(self, sender: Sender | None = None, parameters: str = "", **inputs: Any) -> Sender:
        sender = sender or Sender()
        tensors = {name: value if isinstance(value, np.ndarray) else tensor(value) for name, value in inputs.items()}
        self.desk.take(Request(sender, tensors, parameters))
        return sender

    def put(self, *events: str | Outcome) -> None:
        """What becomes of the latest question."""
        for event in events:
            self.pipeline.asked[-1][1].put(event)


def tensor(value: Any) -> np.ndarray:
    """[1,N], as the server sends it."""
    kinds: dict[type, Any] = {str: object, bytes: object, bool: bool, int: np.int32, float: np.float32}
    values = value if isinstance(value, list) else [value]
    values = [part.encode() if isinstance(part, str) else part for part in values]
    return np.array([values], kinds[type(values[0])])


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def counted(name: str, **labels: str) -> float:
    return sum(metric.value for metric in MetricFamily.made[f"sgl_{name}"] if labels.items() <= metric.labels.items())


@pytest.fixture
def desk_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_triton.make_module())
    for name in MODULES:
        monkeypatch.delitem(sys.modules, f"tools.triton.{name}", raising=False)
    yield importlib.import_module("engine.serve.triton.desk")
    for name in MODULES:
        sys.modules.pop(f"tools.triton.{name}", None)


@pytest.fixture
def reader(engine_directory: Path) -> Reader:
    return Reader(ServeConfig(allow_image_urls=True), read_manifest(engine_directory))


@pytest.fixture
def service(desk_module: ModuleType, reader: Reader, caplog: pytest.LogCaptureFixture) -> Iterator[Service]:
    service = Service(desk_module, reader)
    yield service
    service.desk.close()
    assert not [record for record in caplog.get_records("call") if record.message == "the desk failed"]


def test_a_whole_answer(service: Service) -> None:
    sender = service.ask(text_input="What?", return_log_probs=True, return_importance=True)
    service.put("A ", "circle", make_answer("A circle"))
    wait_for(lambda: sender.finals)
    assert len(sender.responses) == 1
    assert sender.outputs("text_output") == [b"A circle"]
    assert sender.outputs("answered_by") == [b"large"]
    (response,) = sender.responses
    assert response is not None
    outputs = {output.name(): output.as_numpy() for output in response.tensors}
    np.testing.assert_array_equal(outputs["token_ids"], [[5, 6, 7]])
    np.testing.assert_allclose(outputs["log_probs"], np.log([[0.5, 0.25, 1.0]]))
    np.testing.assert_array_equal(outputs["importance"], [[0, 1, 2, 3]])
    assert outputs["visual_tokens_kept"] == 2 and not outputs["early_exit"]


def test_the_most_probable_tokens(service: Service) -> None:
    sender = service.ask(text_input="What?", return_log_probs=True, top_logprobs=2)
    tops = (TopToken(5, 0.5), TopToken(2, 0.25)), (TopToken(3, 1.0),), ()
    service.put(make_answer("A circle", tops))
    wait_for(lambda: sender.finals)
    (response,) = sender.responses
    assert response is not None
    outputs = {output.name(): output.as_numpy() for output in response.tensors}
    np.testing.assert_array_equal(outputs["top_token_ids"], [[[5, 2], [3, -1], [-1, -1]]])
    none = -np.inf
    np.testing.assert_allclose(outputs["top_log_probs"], [[np.log([0.5, 0.25]), [0, none], [none, none]]])


def test_pieces_go_out_as_they_come(service: Service) -> None:
    sender = service.ask(text_input="What?", stream=True)
    service.put("A ")
    wait_for(lambda: sender.responses)
    assert not sender.finals
    service.put("circle", make_answer("A circle"))
    wait_for(lambda: sender.finals)
    assert b"".join(sender.outputs("text_output")) == b"A circle"
    assert sender.outputs("finish_reason") == [b"stop"]


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (RequestError("wrong"), "INVALID_ARG", "request"),
        (ImageError("no picture"), "INVALID_ARG", "request"),
        (Overloaded("later"), "UNAVAILABLE", "overloaded"),
        (QuestionTimedOut("late"), "UNAVAILABLE", "timed out"),
        (RanksDiedError("a rank died"), "UNAVAILABLE", "model"),
        (ModelFailed("the model failed"), "INTERNAL", "model"),
        (EngineError("closed"), "UNAVAILABLE", "model"),
    ],
)
@pytest.mark.parametrize("when", ["at once", "later", "after a piece"])
def test_an_error_arrives_as_it_is(service: Service, error: EngineError, code: str, kind: str, when: str) -> None:
    if when == "at once":
        service.pipeline.refusal = error
    sender = service.ask(text_input="What?", stream=True)
    if when != "at once":
        service.put(*(["A "] if when == "after a piece" else []), error)
    wait_for(lambda: sender.finals)
    said = sender.error()
    assert said is not None and (said.message, said.code) == (str(error), code)
    assert sender.outputs("text_output") == ([b"A "] if when == "after a piece" else [])
    wait_for(lambda: counted("failures_total", kind=kind) == 1 == counted("failures_total"))


def test_a_setting_is_named_as_a_request_does(service: Service) -> None:
    service.pipeline.refusal = RequestError("with ", Setting("max_new_tokens"), " 9 too long; ask for less")
    sender = service.ask(text_input="What?")
    wait_for(lambda: sender.finals)
    said = sender.error()
    assert said is not None and said.message == "with max_tokens 9 too long; ask for less"


def test_a_fault_of_ours_is_one_too(service: Service) -> None:
    service.pipeline.refusal = KeyError("x")
    sender = service.ask(text_input="What?")
    wait_for(lambda: sender.finals)
    said = sender.error()
    assert said is not None and said.code == "INTERNAL" and "the server failed (KeyError('x'))" in said.message


@pytest.mark.parametrize(("failing", "responses"), [(1, 1), (2, 1), (3, 0)])
def test_an_answer_that_cannot_be_sent(service: Service, failing: int, responses: int) -> None:
    """An error instead, or at least an end; the desk goes on."""
    sender = service.ask(Sender(failing), text_input="What?")
    service.put(make_answer("A circle"))
    wait_for(lambda: not sender.failing)
    other = service.ask(text_input="What?")
    service.put(make_answer("A square"))
    wait_for(lambda: other.finals)
    assert (sender.finals, len(sender.responses)) == (responses, responses)
    assert (sender.error() is not None) == (failing == 1)


def test_a_piece_that_cannot_be_sent_ends_the_question(service: Service) -> None:
    sender = service.ask(Sender(failing=1), text_input="What?", stream=True)
    service.put("A ")
    wait_for(lambda: sender.finals)
    assert sender.error() is not None
    assert service.pipeline.cancelled == [service.pipeline.asked[-1][1]]


def test_a_client_that_has_gone(service: Service) -> None:
    sender = service.ask(text_input="What?")
    sender.is_gone = True
    wait_for(lambda: service.pipeline.cancelled)
    service.put(QuestionCancelled("cancelled"))
    wait_for(lambda: sender.finals)
    said = sender.error()
    assert said is not None and said.code == "CANCELLED"


def test_many_clients_are_looked_after_in_turn(service: Service) -> None:
    senders = [service.ask(text_input="What?") for _ in range(40)]
    for sender in senders[::3]:
        sender.is_gone = True
    wait_for(lambda: len(service.pipeline.cancelled) == len(senders[::3]))


def test_pictures_are_fetched_beside(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the server's thread nor other questions wait; a client may go meanwhile, and time may be over."""
    go_on = threading.Event()

    def fetch(url: str, hosts: Hosts, seconds: float, medium: Medium) -> bytes:
        assert hosts is EVERY_HOST and 0 < seconds <= 10 and go_on.wait(SECONDS)
        if url.endswith("gone"):
            raise ImageError("the picture is gone")
        return url.encode()

    monkeypatch.setattr(inquiry, "fetch", fetch)
    waiting = service.ask(text_input="What?", image_url_input=["http://x/1", "http://x/2"])
    gone = service.ask(text_input="What?", image_url_input=["http://x/gone"])
    left = service.ask(text_input="What?", image_url_input=["http://x/3"])
    late = service.ask(text_input="What?", image_url_input=["http://x/4"], timeout=0.05)
    other = service.ask(text_input="What?")
    service.put(make_answer("A circle"))
    wait_for(lambda: other.finals)
    left.is_gone = True
    wait_for(lambda: left.finals and late.finals)
    go_on.set()
    wait_for(lambda: gone.finals)
    codes = [sender.error() and sender.error().code for sender in (left, late, gone)]  # type: ignore[union-attr]
    assert codes == ["CANCELLED", "UNAVAILABLE", "INVALID_ARG"]
    pictures = (b"http://x/1", b"http://x/2")
    wait_for(lambda: any(one[0].images == pictures for one in service.pipeline.asked))
    answered = next(one for one in service.pipeline.asked if one[0].images == pictures)
    answered[1].put(make_answer("Two"))
    wait_for(lambda: waiting.finals)
    assert waiting.outputs("text_output") == [b"Two"]


def test_engines_that_hang_do_not_keep_a_client(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose question has a time: the pipeline is to end it, and the desk does where that does not."""
    monkeypatch.setattr(service.module, "GRACE_SECONDS", 0.1)
    sender = service.ask(text_input="What?", timeout=0.05)
    wait_for(lambda: sender.finals)
    said = sender.error()
    assert said is not None and "not answered in its time" in said.message
    wait_for(lambda: counted("failures_total", kind="timed out") == 1)


def test_a_stop_is_no_cancellation(service: Service) -> None:
    sender = service.ask(text_input="What?")
    service.desk.close()
    said = sender.error()
    assert said is not None and said.code == "UNAVAILABLE" and "ask again, or another server" in said.message


def test_a_probe_is_not_counted(service: Service) -> None:
    sender = service.ask(text_input="")
    wait_for(lambda: sender.finals)
    said = sender.error()
    assert said is not None and said.code == "INVALID_ARG" and "the question is empty" in said.message
    other = service.ask(text_input="What?")
    service.put(make_answer("A circle"))
    wait_for(lambda: other.finals and counted("answers_total"))
    assert (counted("questions_total"), counted("failures_total")) == (1, 0)


def test_metrics_add_up(service: Service) -> None:
    for _ in range(3):
        sender = service.ask(text_input="What?")
        service.put("A ", "circle", make_answer("A circle"))
        wait_for(lambda: sender.finals)  # noqa: B023
    wait_for(lambda: counted("answers_total") == 3)
    assert counted("pieces_total") == 6
    assert (counted("visual_tokens_total"), counted("visual_tokens_kept_total")) == (12, 6)
    assert counted("generated_tokens_total") == 9
    assert (counted("tiles_total"), counted("tiles_skipped_total")) == (15, 3)
    assert (counted("drafted_tokens_total"), counted("accepted_tokens_total")) == (12, 6)
    wait_for(lambda: counted("running") == counted("waiting") == 0)
    assert (counted("kv_memory_used_bytes"), counted("kv_memory_free_bytes")) == (10, 90)
    (decode,) = (
        metric for metric in MetricFamily.made["sgl_stage_seconds"] if metric.labels["stage"] == Stage.LARGE_DECODE
    )
    assert decode.observed == [1.0] * 3
    assert len(MetricFamily.made["sgl_first_token_seconds"][0].observed) == 3


def test_every_request_ends_once(desk_module: ModuleType, reader: Reader) -> None:
    """Whatever goes wrong, in whatever order."""
    chance = random.Random(7)
    service, senders = Service(desk_module, reader), []
    for _ in range(300):
        service.pipeline.refusal = chance.choice([None, None, Overloaded("later"), RuntimeError("broken")])
        sender = Sender(failing=chance.choice([0, 0, 0, 1]))
        text = chance.choice(["What?", "What?", "What?", "", b"\xff"])
        senders.append(service.ask(sender, text_input=text, stream=chance.random() < 0.5))
        sender.is_gone = chance.random() < 0.1
        for _, ticket in service.pipeline.asked:
            if not ticket.done() and chance.random() < 0.3:
                ticket.put(chance.choice(["A ", "B ", make_answer("A "), ModelFailed("broken")]))
    service.desk.close()
    assert all(sender.finals == 1 for sender in senders)
