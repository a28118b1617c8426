"""What the real server answers is what the pipeline answers in this process."""

import json

import numpy as np
import pytest

from engine.config import ExitConfig, GuidanceConfig, SamplingConfig
from engine.families import Turn
from engine.runtime.pipeline import SglPipeline
from tests.serving.conftest import Server, data_url, encode, joined
from tools.scenes import make_scene

pytestmark = pytest.mark.xdist_group("server")
ASK = "What colour is the large circle?"
SHORT = SamplingConfig(max_new_tokens=6)
ALWAYS, NEVER = 0.0, 1.1


@pytest.mark.parametrize("threshold", [ALWAYS, NEVER])
def test_http_and_grpc_answer_like_the_pipeline(
    server: Server, pipeline: SglPipeline, picture: bytes, threshold: float
) -> None:
    expected = pipeline.answer(picture, ASK, exit=ExitConfig(exit_threshold=threshold), sampling=SHORT)
    options = {"text_input": ASK, "exit_threshold": threshold, "return_log_probs": True}
    over_http = server.generate("sgl", image_url_input=[data_url(picture)], **options)
    over_grpc = server.stream("sgl", image_bytes_input=[picture], **options)
    assert len(over_grpc) == 1
    for answer in (over_http, over_grpc[0] | {"text_output": joined(over_grpc)}):
        assert answer["text_output"] == expected.text
        np.testing.assert_array_equal(answer["token_ids"], expected.token_ids)
        np.testing.assert_allclose(answer["log_probs"], np.log(expected.probabilities), rtol=1e-4)
        assert answer["early_exit"] == (threshold == ALWAYS)
        assert expected.decision is not None
        assert answer["decision_score"] == pytest.approx(expected.decision.value, rel=1e-4)
        assert answer["generated_tokens"] == len(expected.token_ids)
        assert answer["prompt_tokens"] == expected.prompt_tokens
        assert (answer["visual_tokens"], answer["visual_tokens_kept"]) == (expected.visual_tokens, expected.num_kept())
    assert over_http["answered_by"] == expected.answered_by


def test_streamed_pieces_join_to_the_whole(server: Server, picture: bytes) -> None:
    options = {"text_input": ASK, "exit_threshold": NEVER}
    whole = server.generate("sgl", image_url_input=[data_url(picture)], **options)
    pieces = server.stream("sgl", image_bytes_input=[picture], stream=True, **options)
    assert len(pieces) > 3
    assert joined(pieces) == whole["text_output"]
    assert pieces[-1]["finish_reason"] == b"length"
    events = server.post(
        "models/sgl/generate_stream", options | {"image_url_input": [data_url(picture)], "stream": True}
    )
    data = [json.loads(line.removeprefix(b"data: ")) for line in events.splitlines() if line]
    assert "".join(event["text_output"] for event in data) == whole["text_output"]


def test_an_early_exit_does_not_touch_the_large_model(server: Server, picture: bytes) -> None:
    before = {name: server.metric(name, "large_vlm") for name in ("sgl_invocations_total", "nv_inference_count")}
    exits = server.metric("sgl_early_exits_total", "sgl")
    answers = server.stream("sgl", text_input=ASK, image_bytes_input=[picture], exit_threshold=ALWAYS, stream=True)
    assert answers[-1]["answered_by"] == b"small"
    assert server.metric("sgl_early_exits_total", "sgl") == exits + 1
    assert {name: server.metric(name, "large_vlm") for name in before} == before
    server.generate("sgl", text_input=ASK, image_url_input=[data_url(picture)], exit_threshold=NEVER)
    assert server.metric("sgl_invocations_total", "large_vlm") == before["sgl_invocations_total"] + 1


def test_the_halves_make_the_whole(server: Server, pipeline: SglPipeline, picture: bytes) -> None:
    guidance = GuidanceConfig(retention_ratio=0.29, prune_layer=2)
    expected = pipeline.answer(picture, ASK, guidance=guidance, exit=ExitConfig(enabled=False), sampling=SHORT)
    url = data_url(picture)
    small = server.generate("small_vlm", text_input=ASK, image_url_input=[url])
    np.testing.assert_allclose(small["importance"], expected.importance, rtol=1e-4)
    options = {"text_input": ASK, "image_url_input": [url], "retention_ratio": 0.29, "prune_layer": 2}
    large = server.generate("large_vlm", importance=small["importance"], **options)
    assert large["text_output"] == expected.text
    assert large["visual_tokens_kept"] == expected.num_kept()
    assert (
        server.generate("large_vlm", text_input=ASK, image_url_input=[url])["visual_tokens_kept"]
        > large["visual_tokens_kept"]
    )


def test_pixels_and_several_pictures(server: Server, pipeline: SglPipeline) -> None:
    images = [make_scene(seed=seed, width=160, height=120, objects=3)[0].convert("RGB") for seed in (1, 2)]
    expected = pipeline.answer(images, ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=SHORT)
    pixels = np.stack([np.asarray(image) for image in images])
    options = {"text_input": ASK, "exit_threshold": NEVER}
    assert joined(server.stream("sgl", image_input=pixels, **options)) == expected.text
    files = [encode(image) for image in images]
    assert joined(server.stream("sgl", image_bytes_input=files, **options)) == expected.text
    alone = pipeline.answer([], ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=SHORT)
    assert joined(server.stream("sgl", **options)) == alone.text


def test_a_conversation(server: Server, pipeline: SglPipeline, picture: bytes) -> None:
    said = ["What is it?", "A circle.", "Where?", "On the left."]
    history = [Turn(*said[:2]), Turn(*said[2:])]
    expected = pipeline.answer(picture, ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=SHORT, history=history)
    options = {"text_input": ASK, "exit_threshold": NEVER, "image_url_input": [data_url(picture)]}
    answer = server.generate("sgl", history=said, **options)
    assert answer["text_output"] == expected.text
    assert answer["prompt_tokens"] == expected.prompt_tokens
    assert (
        "history has 3 texts; send question and answer in turn"
        in server.generate("sgl", history=said[:3], **options)["error"]
    )


def test_sampling_options_arrive(server: Server, pipeline: SglPipeline, picture: bytes) -> None:
    sampling = SamplingConfig(max_new_tokens=5, temperature=0.7, top_p=0.9, top_k=40, seed=11)
    expected = pipeline.answer(picture, ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=sampling)
    options = {"max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 11, "exit_threshold": NEVER}
    answer = server.stream("sgl", text_input=ASK, image_bytes_input=[picture], **options)
    assert joined(answer) == expected.text
    stop = expected.text[1:3]
    cut = server.stream("sgl", text_input=ASK, image_bytes_input=[picture], stop_words=[stop], **options)
    assert joined(cut) == expected.text[: expected.text.index(stop)]
