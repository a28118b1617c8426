"""Requests as strangers send them: a question, or one sentence about what is wrong with it.

`tools.fuzz` has the ones that chance makes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.config import GuidanceConfig, VideoConfig
from engine.engine_directory import read_manifest
from engine.errors import ImageError, RequestError
from engine.serve.triton.inquiry import Reader
from engine.serve.triton.serve_config import ServeConfig


@pytest.fixture
def reader(engine_directory: Path) -> Reader:
    return Reader(ServeConfig(options={"max_new_tokens": 7}, timeout=90.0), read_manifest(engine_directory))


def one(value: Any, kind: Any = None) -> np.ndarray:
    return np.array([[value]], object if isinstance(value, bytes) else kind)


ASK = {"text_input": one(b"What?")}


def test_defaults_are_those_of_the_repository(reader: Reader) -> None:
    inquiry = reader.read(ASK, "")
    assert (inquiry.text, inquiry.config.sampling.max_new_tokens, inquiry.timeout) == ("What?", 7, 90.0)
    assert not inquiry.stream and not inquiry.images and not inquiry.urls


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ({"text_input": None}, "", "text_input is missing; send the question"),
        ({}, '{"temprature": 0.5}', "option temprature is unknown; the model's metadata lists its inputs"),
        ({"images": one(b"x")}, "", "input images is unknown"),
        ({"text_input": np.array([[b"a"], [b"b"]], object)}, "", "text_input has batch size 2; send one question"),
        ({"text_input": np.array([[b"a", b"b"]], object)}, "", r"text_input has shape \[1, 2\]; send \[1, 1\]"),
        ({"text_input": np.empty((1, 0), object)}, "", r"text_input has shape \[1, 0\]; send \[1, 1\]"),
        ({"text_input": one(b"\xff")}, "", "text_input is not UTF-8; encode it so"),
        ({"text_input": one(b" \n")}, "", "the question is empty; ask something"),
        (
            {"max_tokens": one(0, np.int32)},
            "",
            "max_tokens is 0 as a number of 32 bits, outside 1..16777216; choose",
        ),
        ({"max_tokens": one(5, np.int64)}, "", "max_tokens has numbers of type int64; send INT32"),
        ({"max_tokens": np.array(5, np.int32)}, "", r"max_tokens has shape \[\]; send \[1, 1\]"),
        ({"temperature": one(np.nan, np.float32)}, "", "temperature nan is not a number of at least 0"),
        ({"top_p": one(np.inf, np.float32)}, "", r"top_p inf is outside \(0, 1\]"),
        ({"exit_threshold": one(-np.inf, np.float32)}, "", "exit_threshold -inf is not finite"),
        ({"retention_ratio": one(np.nan, np.float32)}, "", r"retention_ratio nan is outside \(0, 1\]"),
        (
            {"prune_layer": one(-1, np.int32)},
            "",
            "prune_layer is -1 as a number of 32 bits, outside 0..1023; choose",
        ),
        ({"timeout": one(np.nan, np.float32)}, "", "timeout nan is not a number of seconds above 0"),
        ({"timeout": one(-1, np.float32)}, "", "timeout -1.0 is not a number of seconds above 0"),
        ({"history": one(b"What?")}, "", "history has 1 texts; send question and answer in turn, an even number"),
        ({"history": np.array([[b"a", b"\xff"]], object)}, "", "history is not UTF-8"),
        ({"stop_words": one(b"")}, "", "stop holds an empty text"),
        ({"guidance": one(b"most")}, "", "guidance 'most' is not one of small, fastv"),
        ({"guidance": one(b"\xff")}, "", "guidance is not UTF-8"),
        (
            {"no_guidance": one(True), "prune_layer": one(1, np.int32)},
            "",
            "no_guidance keeps every visual token; leave",
        ),
        ({"exit_criterion": one(b"q1"), "normalise": one(b"mean")}, "", "normalise is of the consistency, which q1"),
        ({"background": np.array([[1, 2, 300]], np.int32)}, "", "background is 300 as a number of 32 bits, outside"),
        ({"image_input": np.zeros((1, 1, 0, 4, 3), np.uint8)}, "", "a picture has at least one pixel"),
        (
            {"image_input": np.zeros((1, 4, 4, 3), np.uint8)},
            "",
            r"image_input has shape \[1, 4, 4, 3\]; send \[1, any,",
        ),
        ({"image_url_input": one(b"\xff")}, "", "image_url_input is not UTF-8"),
    ],
)
def test_what_cannot_be_answered(reader: Reader, inputs: dict[str, Any], parameters: str, message: str) -> None:
    tensors = {name: value for name, value in (ASK | inputs).items() if value is not None}
    with pytest.raises(RequestError, match=message):
        reader.read(tensors, parameters)


def test_sampling_that_nothing_reads_is_let_pass(reader: Reader) -> None:
    """As clients of other servers send it."""
    sampling = {"top_p": one(0.9, np.float32), "top_k": one(5, np.int32), "seed": one(2**64 - 1, np.uint64)}
    asked = reader.read(ASK | sampling, "").config.sampling
    assert (asked.temperature, asked.top_p, asked.top_k, asked.seed) == (0, 0.9, 5, 2**64 - 1)


def test_a_request_is_over_the_repository_and_that_over_the_engine(engine_directory: Path) -> None:
    manifest = read_manifest(engine_directory)
    serve = ServeConfig(options={"no_guidance": True, "exit_threshold": 0.3})
    plain = Reader(serve, manifest).read(ASK, "").config
    assert (plain.guidance.enabled, plain.exit.exit_threshold) == (False, 0.3)
    asked = Reader(serve, manifest).read(ASK | {"retention_ratio": one(0.29, np.float32)}, "").config
    assert asked.guidance == GuidanceConfig(retention_ratio=0.29)
    assert asked.exit == plain.exit


def test_clips_come_as_files_and_urls(reader: Reader) -> None:
    clips = {"video_bytes_input": one(b"clip"), "video_url_input": one(b"data:video/mp4;base64,aGVsbG8=")}
    inquiry = reader.read(ASK | clips | {"frames": one(4, np.int32), "image_bytes_input": one(b"picture")}, "")
    question = inquiry.question(None)
    assert (question.images, question.videos) == ((b"picture",), (b"clip", b"hello"))
    assert question.video == VideoConfig(frames=4)
    refused = reader.read(ASK | {"video_url_input": one(b"https://example.com/a.mp4")}, "")
    with pytest.raises(ImageError, match="is not fetched, as video URLs are not allowed here"):
        refused.question(None)
