"""Many requests at once, bad ones among them, and ones that nobody waits for any more."""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.config import ExitConfig, GuidanceConfig, SamplingConfig
from engine.runtime.pipeline import SglPipeline
from engine.serve.triton.tensors import MODEL
from tests.serving.conftest import SECONDS, Server, data_url, encode, grpc_inputs, joined, read_stream
from tools.scenes import make_scene

pytestmark = pytest.mark.xdist_group("server")
ASK = "What colour is the large circle?"
SHORT = SamplingConfig(max_new_tokens=6)


def bomb() -> bytes:
    """A PNG of 10,000 x 10,000 pixels in few bytes."""
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "png")
    return file.getvalue()


def test_fifty_at_once_none_is_lost_or_mixed_up(server: Server, pipeline: SglPipeline, picture: bytes) -> None:
    """Different questions and settings; every eleventh is bad."""
    thresholds, ratios = (0.0, 1.1), (0.1, 0.3)
    other = encode(make_scene(seed=2, width=112, height=112, objects=2)[0])
    cases = [(index, (picture, other)[index % 2], thresholds[index // 2 % 2], ratios[index % 2]) for index in range(50)]

    def ask(case: tuple[int, bytes, float, float]) -> dict[str, Any]:
        index, image, threshold, ratio = case
        content = image[:50] if index % 11 == 10 else image
        return server.generate(
            text_input=f"Question {index % 4}?",
            image_url_input=[data_url(content)],
            exit_threshold=threshold,
            retention_ratio=ratio,
        )

    with ThreadPoolExecutor(len(cases)) as pool:
        answers = list(pool.map(ask, cases))
    expected: dict[Any, str] = {}
    for (index, image, threshold, ratio), answer in zip(cases, answers, strict=True):
        if index % 11 == 10:
            assert "the picture" in answer["error"]
            continue
        key = (index % 4, threshold, ratio)
        if key not in expected:
            expected[key] = pipeline.answer(
                image,
                f"Question {index % 4}?",
                guidance=GuidanceConfig(retention_ratio=ratio),
                exit=ExitConfig(exit_threshold=threshold),
                sampling=SHORT,
            ).text
        assert answer["text_output"] == expected[key]
    assert len(set(expected.values())) > 2
    for name in ("sgl_running", "sgl_waiting", "sgl_kv_memory_used_bytes"):
        server.await_metric(name, 0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"image_bytes_input": [b"no picture"]}, "is not a picture; JPEG"),
        ({"image_bytes_input": ["truncated"]}, "damaged or cut off"),
        ({"image_bytes_input": ["bomb"]}, "more than can be decoded safely"),
        ({"image_url_input": ["http://127.0.0.1/x.png"]}, "leads to the private address 127.0.0.1"),
        ({"image_url_input": ["file:///etc/passwd"]}, "neither data:, http: nor https:"),
        ({"text_input": "word " * 3000}, "rebuild with a larger --max-tokens"),
        ({"text_input": " "}, "the question is empty"),
        ({"prune_layer": 77}, "prune_layer 77 is outside 0..9"),
        ({"retention_ratio": 1.5}, "retention_ratio 1.5 is outside (0, 1]"),
        ({"max_tokens": 0}, "max_tokens is 0 as a number of 32 bits"),
        ({"max_tokens": -(2**31)}, "max_tokens is -2147483648 as"),
        ({"temperature": float("nan")}, "temperature nan is not a number of at least 0"),
        ({"temperature": float("inf")}, "temperature inf is not a number of at least 0"),
        ({"top_p": float("nan")}, "top_p nan is outside (0, 1]"),
        ({"exit_threshold": float("nan")}, "exit_threshold nan is not finite"),
        ({"retention_ratio": float("nan")}, "retention_ratio nan is outside (0, 1]"),
        ({"timeout": float("nan")}, "timeout nan is not a number of seconds above 0"),
        ({"timeout": 0.0}, "timeout 0.0 is not a number of seconds above 0"),
        ({"history": ["What?"]}, "history has 1 texts"),
        ({"text_input": b"\xff"}, "text_input is not UTF-8"),
        ({"stop_words": [""]}, "stop_words holds an empty text"),
    ],
)
def test_a_bad_request_gets_a_clear_error(server: Server, picture: bytes, bad: dict[str, Any], message: str) -> None:
    contents = {"truncated": picture[: len(picture) // 2], "bomb": bomb()}
    if "image_bytes_input" in bad:
        bad = {"image_bytes_input": [contents.get(value, value) for value in bad["image_bytes_input"]]}
    responses = server.stream(**({"text_input": ASK} | bad))
    assert message in responses[-1]["error"]
    assert "error" not in server.generate(text_input=ASK)


def test_what_the_interface_does_not_know(server: Server) -> None:
    assert "option temprature is unknown" in server.generate(text_input=ASK, temprature=0.5)["error"]
    assert "error" in server.generate(text_input=ASK, max_tokens="many")
    with server.grpc() as (client, results):
        inputs = grpc_inputs({"text_input": ASK, "image_input": np.zeros((1, 8, 8, 3), np.uint8)})
        inputs[1]._input.datatype = "FP32"
        client.async_stream_infer(MODEL, inputs, enable_empty_final_response=True)
        assert "error" in read_stream(results)[-1]
    assert "text_input" in server.generate()["error"]
    assert "error" in server.generate(text_input=ASK, max_tokens=2**40)
    assert "error" in server.generate(text_input=[ASK, ASK])
    assert "error" not in server.generate(text_input=ASK)


def test_a_cancelled_question_frees_the_slot(server: Server, picture: bytes) -> None:
    """After the first piece of 600 tokens: the large model would be busy for long."""
    cancelled = server.metric("sgl_failures_total", kind="cancelled")
    answered = server.metric("sgl_answers_total")
    options = {"text_input": ASK, "image_bytes_input": [picture], "exit_threshold": 1.1}
    with server.grpc(cancel=True) as (client, results):
        client.async_stream_infer(MODEL, grpc_inputs(options | {"max_tokens": 600, "stream": True}))
        result, error = results.get(timeout=SECONDS)
        assert error is None and result.as_numpy("text_output") is not None
    server.await_metric("sgl_failures_total", cancelled + 1, kind="cancelled")
    for name in ("sgl_running", "sgl_waiting", "sgl_kv_memory_used_bytes"):
        server.await_metric(name, 0)
    assert joined(server.stream(**options))
    server.await_metric("sgl_answers_total", answered + 1)


def test_a_question_has_its_time(server: Server, picture: bytes) -> None:
    late = server.metric("sgl_failures_total", kind="timed out")
    options = {"text_input": ASK, "image_bytes_input": [picture], "exit_threshold": 1.1, "max_tokens": 600}
    assert "not answered in its time; give it more" in server.stream(**options, timeout=0.05)[-1]["error"]
    server.await_metric("sgl_failures_total", late + 1, kind="timed out")
    assert joined(server.stream(**options | {"max_tokens": 2}, timeout=SECONDS))


def test_what_was_measured(server: Server, picture: bytes) -> None:
    names = ("sgl_first_token_seconds_count", "sgl_between_tokens_seconds_count", "sgl_stage_seconds_count")
    before = {name: server.metric(name) for name in names}
    pieces = server.metric("sgl_pieces_total")
    server.generate(text_input=ASK, image_url_input=[data_url(picture)], exit_threshold=1.1)
    server.await_metric("sgl_first_token_seconds_count", before["sgl_first_token_seconds_count"] + 1)
    server.await_metric("sgl_between_tokens_seconds_count", before["sgl_between_tokens_seconds_count"] + 1)
    server.await_metric("sgl_stage_seconds_count", before["sgl_stage_seconds_count"] + 7)
    assert server.metric("sgl_pieces_total") > pieces
    assert server.metric("sgl_kv_memory_free_bytes") > 0
