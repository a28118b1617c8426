"""OpenAI's own client against a running server; the pipeline in this process is the oracle."""

import base64
import json
import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import openai
import pytest
from openai.lib._parsing._completions import type_to_response_format_param
from pydantic import BaseModel, Field

from engine.config import ExitConfig, GuidanceConfig, SamplingConfig, VideoConfig
from engine.families import Turn
from engine.runtime.pipeline import SglPipeline
from tests.clips import clip
from tests.serve.http_server import MODEL, SECONDS, HttpServer

SAMPLING = SamplingConfig(max_new_tokens=6)


@pytest.fixture
def client(server: HttpServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=SECONDS, max_retries=0)


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def ask(client: openai.OpenAI, content: Any, **options: Any) -> Any:
    messages = [*options.pop("before", []), {"role": "user", "content": content}]
    return client.chat.completions.create(**{"model": MODEL, "messages": messages, "max_tokens": 6} | options)


def test_an_answer_is_the_pipelines(
    client: openai.OpenAI, pipeline: SglPipeline, pictures: list[bytes], urls: list[str]
) -> None:
    answer = ask(client, [image(urls[0]), {"type": "text", "text": "What is it?"}], logprobs=True)
    expected = pipeline.answer(pictures[0], "What is it?", sampling=SAMPLING)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        expected.text,
        expected.finish_reason,
    )
    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", MODEL, "chatcmpl-")
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.total_tokens == expected.prompt_tokens + len(expected.token_ids)
    found = [token.logprob for token in choice.logprobs.content]
    assert found == pytest.approx([math.log(value) for value in expected.probabilities])
    assert answer.sgl["answered_by"] == expected.answered_by
    assert answer.sgl["visual_tokens_kept"] == expected.num_kept()
    assert answer.sgl["seconds"].keys() == expected.seconds.keys()
    again = ask(client, [image(urls[0]), {"type": "text", "text": "What is it?"}]).sgl["reuse"]
    assert (again["tiles"], again["tokens"]) == (expected.reuse.tiles, expected.reuse.tokens)
    assert again["tiles_known"] == again["tiles"]
    assert 0 < again["tokens_known"] < again["tokens"]


def test_the_most_probable_tokens(client: openai.OpenAI, pipeline: SglPipeline) -> None:
    options = {"temperature": 1.5, "seed": 3, "logprobs": True, "top_logprobs": 5}
    answer = ask(client, "What is it?", **options)
    sampling = replace(SAMPLING, temperature=1.5, seed=3, top_logprobs=5)
    expected = pipeline.answer([], "What is it?", sampling=sampling)
    tokenizer = (pipeline.small if expected.early_exit else pipeline.large).tokenizer
    tokens = answer.choices[0].logprobs.content
    for place, (token, top) in enumerate(zip(tokens, expected.top, strict=True)):
        assert [one.logprob for one in token.top_logprobs] == [math.log(one.probability) for one in top]
        texts = [tokenizer.token_bytes(one.token, starts=not place) for one in top]
        assert [bytes(one.bytes) for one in token.top_logprobs if one.bytes] == [text for text in texts if text]
        assert all(one.token.encode() == bytes(one.bytes) for one in token.top_logprobs if "�" not in one.token)
        same = [one for one in token.top_logprobs if one.bytes == token.bytes]
        assert [one.logprob for one in same] == [token.logprob] * len(same)
    chunks = list(ask(client, "What is it?", stream=True, **options))
    assert chunks[-1].choices[0].logprobs.model_dump() == answer.choices[0].logprobs.model_dump()
    for wrong, words in (
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3, "logprobs": False}, "top_logprobs is of logprobs"),
        (
            {"top_logprobs": openai.omit, "logprobs": False, "extra_body": {"sgl": {"top_logprobs": 3}}},
            "is of logprobs",
        ),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            ask(client, "Hi", **options | wrong)


class Circle(BaseModel):
    colour: Literal["red", "green"]
    sizes: list[Annotated[int, Field(ge=0, le=99)]] = Field(max_length=2)


@pytest.mark.parametrize("ours", [{"exit_threshold": 0}, {"no_early_exit": True}], ids=["small", "large"])
def test_answers_by_a_schema(client: openai.OpenAI, urls: list[str], ours: dict[str, Any]) -> None:
    content = [image(urls[0]), {"type": "text", "text": "Which circle is it?"}]
    options = {"max_tokens": 90, "temperature": 1.5, "seed": 4, "extra_body": {"sgl": ours}}
    messages: Any = [{"role": "user", "content": content}]
    answer = client.chat.completions.parse(model=MODEL, messages=messages, response_format=Circle, **options)
    choice = answer.choices[0]
    assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, Circle)
    wanted = type_to_response_format_param(Circle)
    chunks = list(ask(client, content, stream=True, response_format=wanted, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    whole = ask(client, "Hi", response_format={"type": "json_object"}, **options).choices[0]
    assert whole.message.content.startswith("{")
    assert whole.finish_reason == "length" or isinstance(json.loads(whole.message.content), dict)
    text = ask(client, "Hi", response_format={"type": "text"}, max_tokens=4, extra_body={"sgl": ours}).choices[0]
    assert text.message.content == ask(client, "Hi", max_tokens=4, extra_body={"sgl": ours}).choices[0].message.content


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "uniqueItems": True}, "cannot be followed"),
        ({"$ref": "#"}, "no text fulfils it"),
        ({"enum": ["x" * 70_000]}, "has more than 65,536 bytes"),
    ],
)
def test_schemas_that_are_not_followed(client: openai.OpenAI, schema: dict[str, Any], words: str, stream: bool) -> None:
    """Are refused before an answer begins."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    with pytest.raises(openai.BadRequestError, match=words) as raised:
        ask(client, "Hi", response_format=wanted, stream=stream)
    body: Any = raised.value.body
    assert (body["param"], body["code"]) == ("response_format", "invalid_schema")


def test_a_clip(client: openai.OpenAI, pipeline: SglPipeline) -> None:
    data = clip(frames=12)
    part = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{base64.b64encode(data).decode()}"}}
    text = {"type": "text", "text": "What is it?"}
    answer = ask(client, [part, text], extra_body={"sgl": {"frames": 2, "return_importance": True}})
    expected = pipeline.answer([], "What is it?", sampling=SAMPLING, videos=data, video=VideoConfig(frames=2))
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.sgl["pictures"] == expected.images.tolist()
    (shown,) = expected.clips
    assert answer.sgl["clips"] == [
        {"frames": list(shown.indices), "seconds": list(shown.seconds), "kept": expected.frames_kept(0)}
    ]
    with pytest.raises(openai.UnprocessableEntityError, match="is not fetched, as video URLs are not allowed here"):
        ask(client, [{"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}, text])
    with pytest.raises(openai.UnprocessableEntityError, match="the clip is not a clip"):
        ask(client, [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,aGVsbG8="}}, text])


def test_what_is_ours(client: openai.OpenAI, pipeline: SglPipeline, pictures: list[bytes], urls: list[str]) -> None:
    ours = {
        "retention_ratio": 0.3,
        "prune_layer": 1,
        "no_early_exit": True,
        "return_importance": True,
        "return_kept": True,
    }
    answer = ask(client, [image(urls[0]), {"type": "text", "text": "What?"}], extra_body={"sgl": ours})
    guidance = GuidanceConfig(retention_ratio=0.3, prune_layer=1)
    expected = pipeline.answer(
        pictures[0], "What?", guidance=guidance, exit=ExitConfig(enabled=False), sampling=SAMPLING
    )
    assert expected.kept is not None and expected.importance is not None
    assert answer.choices[0].message.content == expected.text
    assert answer.sgl["kept"] == expected.kept.tolist()
    assert answer.sgl["importance"] == pytest.approx(expected.importance.tolist(), rel=1e-4)
    assert len(answer.sgl["boxes"]) == len(answer.sgl["pictures"]) == expected.visual_tokens
    assert (answer.sgl["answered_by"], answer.sgl["decision"]) == ("large", None)


@pytest.mark.parametrize("ours", [{}, {"no_early_exit": True}])
def test_a_stream_adds_up(client: openai.OpenAI, urls: list[str], ours: dict[str, Any]) -> None:
    content = [image(urls[0]), {"type": "text", "text": "What is it?"}]
    options = {"extra_body": {"sgl": ours}, "logprobs": True}
    whole = ask(client, content, **options)
    chunks = list(ask(client, content, stream=True, stream_options={"include_usage": True}, **options))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].logprobs.model_dump() == whole.choices[0].logprobs.model_dump()
    assert chunks[-2].sgl["answered_by"] == whole.sgl["answered_by"]
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(ask(client, content, stream=True, **options))
    assert all(chunk.usage is None for chunk in without)


def test_a_conversation(client: openai.OpenAI, pipeline: SglPipeline, pictures: list[bytes], urls: list[str]) -> None:
    """A system message, turns, several pictures where they belong."""
    before = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image(urls[0]), {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A dog.", "refusal": None, "tool_calls": None},
    ]
    content = [{"type": "text", "text": "And"}, image(urls[1]), {"type": "text", "text": "this?"}]
    answer = ask(client, content, before=before)
    history = (Turn("<image>\nWhat is it?", "A dog."),)
    expected = pipeline.answer(pictures, "And\n<image>\nthis?", history=history, system="Be brief.", sampling=SAMPLING)
    assert (answer.choices[0].message.content, answer.usage.prompt_tokens) == (expected.text, expected.prompt_tokens)


def test_pictures_first_go_where_they_were_published(
    client: openai.OpenAI, pipeline: SglPipeline, pictures: list[bytes], urls: list[str]
) -> None:
    answer = ask(client, [*map(image, urls), {"type": "text", "text": "Which?"}])
    expected = pipeline.answer(pictures, "Which?", sampling=SAMPLING)
    assert (answer.choices[0].message.content, answer.usage.prompt_tokens) == (expected.text, expected.prompt_tokens)


def test_sampling(client: openai.OpenAI, pipeline: SglPipeline) -> None:
    options = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    answer = ask(client, "Say something.", max_completion_tokens=9, max_tokens=openai.omit, **options)
    expected = pipeline.answer([], "Say something.", sampling=SamplingConfig(9, 1.5, 0.9, 0, 7))
    assert answer.choices[0].message.content == expected.text
    stop = expected.text[2:4]
    cut = ask(client, "Say something.", max_tokens=9, stop=[stop], **options)
    assert cut.choices[0].message.content == expected.text[: expected.text.index(stop)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"model": "other"}, openai.NotFoundError, "model 'other' is not served here; ask for 'pair'"),
        ({"n": 2}, openai.BadRequestError, "n is not served but as 1; leave it out"),
        ({"response_format": {"type": "grammar"}}, openai.BadRequestError, "response_format"),
        ({"response_format": {"type": "json_schema"}}, openai.BadRequestError, "response_format.json_schema"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, r"tools is not served but as \[\]; .* json_schema"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice is not served .* json_schema"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"extra_body": {"surprise": 1}}, openai.BadRequestError, "surprise: unknown parameter"),
        ({"extra_body": {"sgl": {"surprise": 1}}}, openai.BadRequestError, "option 'surprise' is unknown"),
        ({"extra_body": {"sgl": {"retention_ratio": 2}}}, openai.BadRequestError, "retention_ratio"),
        ({"extra_body": {"sgl": {"score_rows": "prompt", "no_guidance": True, "no_early_exit": True}}},
         openai.BadRequestError, "score_rows ranks visual tokens, and without"),
        ({"extra_body": {"sgl": {"prune_layer": 99}}}, openai.UnprocessableEntityError, "prune_layer 99"),
        ({"max_tokens": 100_000}, openai.UnprocessableEntityError, "more than the engine's"),
    ],
)  # fmt: skip
def test_mistakes(client: openai.OpenAI, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        ask(client, "Hi", **options)
    body: Any = raised.value.body  # type: ignore[attr-defined]
    assert body.keys() == {"message", "type", "param", "code"}
    assert body["type"] in ("invalid_request_error", "not_found_error")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64,AAAA", "is not a picture"),
        ("https://example.org/x.png", "are not allowed here"),
        ("file:///etc/passwd", "neither data:, http: nor https:"),
    ],
)
def test_pictures_that_cannot_be_read(client: openai.OpenAI, url: str, words: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.APIError, match=words):
            list(ask(client, [image(url), {"type": "text", "text": "Hi"}], stream=stream))


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "sgl-engine"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_messages_in_a_wrong_order(client: openai.OpenAI) -> None:
    user, said = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
    system = {"role": "system", "content": "Be brief."}
    for messages, words in (
        ([user, said], "the last message is none of a user"),
        ([said, user], r"messages\[0\] answers no message"),
        ([user, system, user], r"messages\[1\] is a system message behind others"),
        ([system], "the last message is none of a user"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            client.chat.completions.create(model=MODEL, messages=messages)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="a text contains <image>"):
        ask(client, "What is <image>?")
    both = [user, {"role": "user", "content": "there"}]
    assert client.chat.completions.create(model=MODEL, messages=both, max_tokens=2).choices  # type: ignore[arg-type]
