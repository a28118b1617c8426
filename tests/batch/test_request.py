"""Lines of both forms as questions, and what is answered to those that ask nothing."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.batch import lines as limits
from engine.batch.lines import Line
from engine.batch.request import LineReader
from engine.batch.tally import Tally
from engine.batch.terms import BadLine, Terms
from engine.batch.worker import Answered, Task, Worker
from engine.config import ExitConfig, GuidanceConfig, SamplingConfig, VideoConfig
from engine.errors import EngineError, ImageError, QuestionTimedOut, RequestError
from engine.options import QuestionConfig
from engine.runtime.answer import Answer
from engine.runtime.question import Question
from tests.batch.simulation import FakePipeline, make_answer

DATA = "data:image/png;base64,aGVsbG8="
OPENAI_EXAMPLE = (
    '{"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
    '"gpt-3.5-turbo-0125", "messages": [{"role": "system", "content": "You are a helpful assistant."},{"role": "user", '
    '"content": "Hello world!"}],"max_tokens": 1000}}',
    '{"custom_id": "request-2", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
    '"gpt-3.5-turbo-0125", "messages": [{"role": "system", "content": "You are an unhelpful assistant."},{"role": '
    '"user", "content": "Hello world!"}],"max_tokens": 1000}}',
)
"""As OpenAI's guide to its batch API shows it."""
VLLM_EXAMPLE = tuple(
    line.replace("gpt-3.5-turbo-0125", "meta-llama/Meta-Llama-3-8B-Instruct").replace(
        "max_tokens", "max_completion_tokens"
    )
    for line in OPENAI_EXAMPLE
)
"""As vLLM has it in examples/offline_inference/openai_batch/openai_example_batch.jsonl."""


def chat(content: Any, **more: Any) -> dict[str, Any]:
    body = {"model": "pair", "messages": [{"role": "user", "content": content}]} | more.pop("body", {})
    return {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body} | more


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def video(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def encode(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def test_the_short_form(terms: Terms) -> None:
    default = QuestionConfig(exit=ExitConfig(exit_threshold=0.3))
    terms = replace(terms, default=default, timeout=9.0)
    line = {"id": "x", "image": "a b.png", "question": "What?", "retention_ratio": 0.3, "stop": ["."], "system": "Be."}
    request = LineReader(terms).read(encode(line), 4)
    assert request.question == Question(
        (),
        "What?",
        GuidanceConfig(retention_ratio=0.3),
        default.exit,
        SamplingConfig(stop=(".",)),
        system="Be.",
        timeout=9.0,
    )
    assert LineReader(terms).question(request).images == (terms.path.parent / "a b.png",)
    assert request.answered(make_answer("yes"), FakePipeline()) == {"id": "x", "text": "yes"}  # type: ignore[arg-type]
    assert request.failed(ImageError("no picture")) == {
        "id": "x",
        "error": {"code": "invalid_image", "message": "line 4: no picture", "line": 4},
    }
    assert LineReader(terms).read(encode({"question": "?"}), 7).failed(QuestionTimedOut("late"))["id"] == 7
    several = LineReader(terms).read(encode({"question": "?", "images": [DATA, "/b.png", "file:///c%20d.png"]}), 1)
    assert LineReader(terms).question(several).images == (b"hello", Path("/b.png"), Path("/c d.png"))


def test_clips_of_both_forms(terms: Terms) -> None:
    clip = "data:video/mp4;base64,aGVsbG8="
    line = {"video": "a b.mp4", "image": "c.png", "question": "What?", "frames": 4, "per_frame_quota": True}
    request = LineReader(terms).read(encode(line), 4)
    assert request.question.video == VideoConfig(frames=4)
    assert request.question.guidance == GuidanceConfig(per_frame_quota=True)
    question = LineReader(terms).question(request)
    assert question.videos == (terms.path.parent / "a b.mp4",)
    assert question.images == (terms.path.parent / "c.png",)
    several = LineReader(terms).read(encode({"question": "?", "videos": [clip, "/b.mp4"]}), 1)
    assert LineReader(terms).question(several).videos == (b"hello", Path("/b.mp4"))
    parts = [{"type": "text", "text": "Is this"}, video("x.mp4"), {"type": "text", "text": "that?"}, image(DATA)]
    asked = LineReader(terms).read(encode(chat(parts, body={"sgl": {"fps": 1}})), 1)
    assert asked.question.text == "Is this\n<video>\nthat?\n<image>"
    assert asked.question.video == VideoConfig(fps=1.0)
    found = LineReader(terms).question(asked)
    assert (found.images, found.videos) == ((b"hello",), (terms.path.parent / "x.mp4",))
    before = chat([image(DATA), video(clip), {"type": "text", "text": "What?"}])
    assert LineReader(terms).read(encode(before), 1).question.text == "What?"
    behind = chat([video(clip), image(DATA), {"type": "text", "text": "What?"}])
    assert LineReader(terms).read(encode(behind), 1).question.text == "<video>\n<image>\nWhat?"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question": "?", "video": "a", "videos": ["b"]}, "video and videos are both given"),
        ({"question": "?", "video": 3}, "video is no text, or videos no list of texts"),
        ({"question": "?", "videos": ["a"] * 5}, "videos has 5 clips, and at most 4 are taken"),
        ({"question": "?", "video": "a", "frames": 0}, "frames 0 is outside 1"),
        ({"question": "?", "video": "a", "frames": 4, "fps": 1}, "frames is how many; leave it out, or fps"),
        (chat([video("a")] * 5), "messages have 5 clips, and at most 4 are taken"),
        (chat([{"type": "text", "text": "<video>"}]), "a text contains <video>, which is a mark for clips here"),
        (chat([{"type": "video_url", "video_url": {"url": "a", "detail": "low"}}]), "detail"),
    ],
    ids=str,
)
def test_clips_that_are_refused(terms: Terms, line: dict[str, Any], said: str) -> None:
    with pytest.raises(BadLine) as bad:
        LineReader(terms).read(encode(line), 1)
    assert said in json.dumps(bad.value.reply)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.com/a.mp4", "video URLs are not allowed here"),
        ("-", "clip '-' is none"),
        ("", "clip '' is none"),
    ],
)
def test_clips_that_are_not_taken(terms: Terms, url: str, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        LineReader(terms).question(LineReader(terms).read(encode({"question": "?", "video": url}), 1))


def test_openais_form(terms: Terms) -> None:
    terms = replace(terms, started=123)
    line = chat(
        [image("a.png"), {"type": "text", "text": "What?"}], body={"max_tokens": 5, "sgl": {"no_guidance": True}}
    )
    request = LineReader(terms).read(encode(line), 4)
    assert request.question.text == "What?"
    assert request.question.sampling == SamplingConfig(max_new_tokens=5)
    assert request.question.guidance == GuidanceConfig(enabled=False)
    assert LineReader(terms).question(request).images == (terms.path.parent / "a.png",)
    reply = request.answered(make_answer("yes"), FakePipeline())  # type: ignore[arg-type]
    body = reply["response"].pop("body")
    assert reply == {
        "id": "batch_req_4",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req_4"},
        "error": None,
    }
    assert (body["id"], body["created"], body["model"]) == ("chatcmpl-4", 123, "pair")
    assert body["choices"][0]["message"]["content"] == "yes"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    failed = request.failed(RequestError("too long"))
    assert failed["response"]["status_code"] == 422
    assert failed["response"]["body"]["error"]["message"] == "line 4: too long"
    assert failed["response"]["body"]["error"]["line"] == 4


@pytest.mark.parametrize("example", [OPENAI_EXAMPLE, VLLM_EXAMPLE], ids=["openai", "vllm"])
def test_examples_of_peers(terms: Terms, example: tuple[str, ...]) -> None:
    terms = replace(terms, model=json.loads(example[0])["body"]["model"])
    for number, (line, system) in enumerate(zip(example, ("a helpful", "an unhelpful"), strict=True), 1):
        request = LineReader(terms).read(line.encode(), number)
        assert request.question.sampling == SamplingConfig(max_new_tokens=1000)
        assert (request.question.text, request.question.system) == ("Hello world!", f"You are {system} assistant.")
        reply = request.answered(make_answer("Hello!"), FakePipeline())  # type: ignore[arg-type]
        assert reply["custom_id"] == f"request-{number}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "it cannot be read as JSON"),
        (b"\xff", "it cannot be read as JSON"),
        (b"[]", "it is no object"),
        ({}, "there is no question"),
        ({"question": 3}, "there is no question"),
        ({"question": "?", "id": 1.5}, "id is neither a text nor a whole number"),
        ({"question": "?", "image": 3}, "image is no text"),
        ({"question": "?", "image": "a", "images": ["a"]}, "image and images are both given"),
        ({"question": "?", "images": ["a"] * 17}, "images has 17 pictures, and at most 16 are taken"),
        ({"question": "?", "label": 1}, "option 'label' is unknown"),
        ({"question": "?", "retention_ratio": 7}, "retention_ratio"),
        ({"question": "?", "top_p": 0.5}, "top_p is of drawn tokens, and temperature 0 draws none"),
        ({"question": "?", "timeout": -1}, "timeout -1.0 is not a number above 0"),
        ({"question": "?", "timeout": True}, "timeout is not a number"),
        ({"question": "?", "system": 1}, "system of a question cannot be a int"),
        (chat("?", custom_id=3), "custom_id is missing, or no text"),
        (chat("?", more=3), "member 'more' is unknown"),
        (chat("?", url="/v1/embeddings"), "method and url are not POST and /v1/chat/completions"),
        (chat("?", method="GET"), "method and url are not POST"),
        (b'{"question": "' + b"x" * 200 + b'"}', "it has more than 200 bytes; name pictures by their paths"),
    ],
)
def test_lines_that_ask_nothing(terms: Terms, line: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.batch.request.MOST_BYTES", 200 if isinstance(line, bytes) else limits.MOST_BYTES)
    with pytest.raises(BadLine) as refused:
        LineReader(terms).read(encode(line), 12)
    reply = refused.value.reply
    assert reply["error"]["message"].startswith(f"line 12: {said}")
    assert (reply["error"]["line"], reply["response"], reply["id"]) == (12, None, "batch_req_12")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "other"}, 404, "line 12: model 'other' is not served here"),
        ({"stream": True}, 400, "line 12: stream: answers of a file do not stream"),
        ({"messages": []}, 400, "line 12: messages"),
        ({"n": 2}, 400, "line 12: n is not served"),
        ({"sgl": {"prune_layer": "x"}}, 400, "line 12: prune_layer 'x' is not a whole number"),
    ],
)
def test_requests_that_are_refused(terms: Terms, body: dict[str, Any], status: int, said: str) -> None:
    with pytest.raises(BadLine) as refused:
        LineReader(terms).read(encode(chat("?", body=body)), 12)
    reply = refused.value.reply
    assert (reply["custom_id"], reply["response"]["status_code"], reply["error"]) == ("a", status, None)
    assert reply["response"]["body"]["error"]["message"].startswith(said)


@pytest.mark.parametrize("url", ["http://example.com/a.png", "-", "", "data:nothing"])
def test_pictures_that_are_not_taken(terms: Terms, url: str) -> None:
    reader = LineReader(terms)
    for line in ({"question": "?", "images": [url]}, chat([image(url), {"type": "text", "text": "?"}])):
        with pytest.raises(ImageError):
            reader.question(reader.read(encode(line), 1))


def test_what_a_line_is_about(terms: Terms) -> None:
    def picture(value: Any) -> int | None:
        data = encode(value)
        return LineReader(terms).look_at(data, Line(0, 0, len(data))).picture

    text = {"type": "text", "text": "?"}
    a = picture({"image": "a.png", "question": "1"})
    assert a is not None
    assert a == picture({"images": ["a.png", "b.png"], "question": "2"}) == picture(chat([text, image("a.png")]))
    assert a != picture({"image": "b.png", "question": "1"})
    for nothing in (b"{", {"question": "?"}, chat("?"), chat([text]), {"image": 3}, {"body": 3}, {"images": 3}):
        assert picture(nothing) is None


def test_openais_form_without_its_packages(terms: Terms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "engine.batch.openai_form", None)
    data = encode(chat("?"))
    with pytest.raises(EngineError, match=r"questions.jsonl line 3 is of OpenAI's form, whose packages are missing"):
        LineReader(terms).look_at(data, Line(2, 0, len(data)))


def drain(worker: Worker, count: int) -> dict[int, Answered]:
    found: dict[int, Answered] = {}
    while len(found) < count:
        for answered in worker.wait(None):
            assert answered.place not in found
            found[answered.place] = answered
    assert worker.wait(0) == []
    return found


def test_a_worker_answers_every_line(terms: Terms) -> None:
    def says(question: Question) -> Answer | EngineError:
        return RequestError("too long") if question.text == "3" else make_answer(question.text)

    pipeline = FakePipeline(says)
    tasks = [Task(place, encode({"question": f"{place}"})) for place in range(40)] + [Task(40, b"{")]
    with Worker(pipeline, LineReader(terms)) as worker:  # type: ignore[arg-type]
        worker.ask(tasks)
        found = drain(worker, 41)
    assert [json.loads(found[place].content).get("text") for place in range(5)] == ["0", "1", "2", None, "4"]
    assert (found[3].tally.errors, found[40].tally.errors, found[4].tally.answers, found[4].tally.kept) == (1, 1, 1, 1)
    assert len(pipeline.asked) == 40


def test_what_an_engine_failed_with_is_asked_again_once(terms: Terms) -> None:
    fails = {"once": 1, "always": 9}

    def says(question: Question) -> Answer | EngineError:
        fails[question.text] -= 1
        return make_answer("yes") if fails[question.text] < 0 else EngineError("a rank died")

    with Worker(FakePipeline(says), LineReader(terms)) as worker:  # type: ignore[arg-type]
        worker.ask([Task(0, encode({"question": "once"})), Task(1, encode({"question": "always"}))])
        found = drain(worker, 2)
    assert json.loads(found[0].content)["text"] == "yes"
    assert json.loads(found[1].content)["error"]["message"] == "line 2: a rank died"
    assert fails == {"once": -1, "always": 7}


def test_an_answer_that_is_no_json_is_an_error(terms: Terms) -> None:
    terms = replace(terms, report=lambda answer, exit: {"probability": answer.probabilities[0]})
    answer = replace(make_answer("yes"), probabilities=(float("nan"),))
    with Worker(FakePipeline(lambda question: answer), LineReader(terms)) as worker:  # type: ignore[arg-type]
        worker.ask([Task(0, encode({"question": "?"}))])
        (found,) = drain(worker, 1).values()
    assert found.tally == Tally(errors=1)
    assert json.loads(found.content)["error"]["message"].startswith("line 1: its answer cannot be written (Out of")


def test_a_worker_forgets_what_others_answered(terms: Terms) -> None:
    """Before it was asked, while it is answered, and after."""
    pipeline = FakePipeline()
    came = threading.Event()
    ask = pipeline.ask

    def asking(question: Question):  # type: ignore[no-untyped-def]
        ticket = ask(question)
        if len(pipeline.asked) == 2:
            came.set()
        return ticket

    pipeline.ask = asking  # type: ignore[method-assign]
    with Worker(pipeline, LineReader(terms)) as worker:  # type: ignore[arg-type]
        worker.ask([Task(place, encode({"question": f"{place}"})) for place in range(2)])
        assert came.wait(300)
        worker.cancel([0, 7])
        tickets = {question.text: ticket for question, ticket in pipeline.asked}
        tickets["1"].put(make_answer("yes"))
        assert [answered.place for answered in worker.wait(None)] == [1]
        tickets["0"].put(make_answer("late"))
        assert worker.wait(0) == []
        worker.cancel([1])


def test_what_is_wrong_with_a_worker_is_raised(terms: Terms) -> None:
    def says(question: Question) -> Answer | EngineError:
        raise MemoryError

    with Worker(FakePipeline(says), LineReader(terms)) as worker:  # type: ignore[arg-type]
        worker.ask([Task(0, encode({"question": "?"}))])
        with pytest.raises(MemoryError):
            worker.wait(None)
