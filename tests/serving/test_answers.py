"""What the real server answers is what the pipeline answers in this process."""

import json

import numpy as np
import pytest
from tritonclient.grpc import InferRequestedOutput

from engine.config import ExitConfig, GuidanceConfig, SamplingConfig
from engine.families import Turn
from engine.runtime.pipeline import SglPipeline
from engine.serve.triton.tensors import MODEL
from tests.serving.conftest import Server, data_url, encode, grpc_inputs, joined, read_stream
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
    over_http = server.generate(image_url_input=[data_url(picture)], **options)
    over_grpc = server.stream(image_bytes_input=[picture], **options)
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
    whole = server.generate(image_url_input=[data_url(picture)], **options)
    pieces = server.stream(image_bytes_input=[picture], stream=True, **options)
    assert len(pieces) > 1
    assert joined(pieces) == whole["text_output"]
    assert pieces[-1]["finish_reason"] == b"length"
    events = server.post(
        "models/sgl/generate_stream", options | {"image_url_input": [data_url(picture)], "stream": True}
    )
    data = [json.loads(line.removeprefix(b"data: ")) for line in events.splitlines() if line]
    assert "".join(event["text_output"] for event in data) == whole["text_output"]


def test_an_early_exit_spares_the_large_model(server: Server, picture: bytes) -> None:
    before = {name: server.metric(name) for name in ("sgl_answers_total", "sgl_early_exits_total")}
    answers = server.stream(text_input=ASK, image_bytes_input=[picture], exit_threshold=ALWAYS, stream=True)
    assert answers[-1]["answered_by"] == b"small"
    for name in before:
        server.await_metric(name, before[name] + 1)
    server.generate(text_input=ASK, image_url_input=[data_url(picture)], exit_threshold=NEVER)
    server.await_metric("sgl_answers_total", before["sgl_answers_total"] + 2)
    assert server.metric("sgl_early_exits_total") == before["sgl_early_exits_total"] + 1


def test_importance_and_pruning_on_request(server: Server, pipeline: SglPipeline, picture: bytes) -> None:
    guidance = GuidanceConfig(retention_ratio=0.29, prune_layer=2)
    exit = ExitConfig(exit_threshold=NEVER)
    expected = pipeline.answer(picture, ASK, guidance=guidance, exit=exit, sampling=SHORT)
    options = {"retention_ratio": 0.29, "prune_layer": 2, "exit_threshold": NEVER, "return_importance": True}
    answer = server.generate(text_input=ASK, image_url_input=[data_url(picture)], **options)
    np.testing.assert_allclose(answer["importance"], expected.importance, rtol=1e-4)
    assert answer["text_output"] == expected.text
    assert answer["visual_tokens_kept"] == expected.num_kept() < answer["visual_tokens"]
    options["return_importance"] = False
    assert "importance" not in server.generate(text_input=ASK, image_url_input=[data_url(picture)], **options)


def test_a_client_that_wants_some_outputs_only(server: Server, picture: bytes) -> None:
    """The backend drops the others while it sends."""
    inputs = grpc_inputs({"text_input": ASK, "image_bytes_input": [picture], "return_log_probs": True})
    with server.grpc() as (client, results):
        for _ in range(10):
            client.async_stream_infer(
                MODEL, inputs, outputs=[InferRequestedOutput("text_output")], enable_empty_final_response=True
            )
        for _ in range(10):
            (answer,) = read_stream(results)
            assert set(answer) == {"text_output"}


def test_pixels_and_several_pictures(server: Server, pipeline: SglPipeline) -> None:
    images = [make_scene(seed=seed, width=160, height=120, objects=3)[0].convert("RGB") for seed in (1, 2)]
    expected = pipeline.answer(images, ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=SHORT)
    pixels = np.stack([np.asarray(image) for image in images])
    options = {"text_input": ASK, "exit_threshold": NEVER}
    assert joined(server.stream(image_input=pixels, **options)) == expected.text
    files = [encode(image) for image in images]
    assert joined(server.stream(image_bytes_input=files, **options)) == expected.text
    alone = pipeline.answer([], ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=SHORT)
    assert joined(server.stream(**options)) == alone.text


def test_a_conversation(server: Server, pipeline: SglPipeline, picture: bytes) -> None:
    said = ["What is it?", "A circle.", "Where?", "On the left."]
    history = [Turn(*said[:2]), Turn(*said[2:])]
    expected = pipeline.answer(picture, ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=SHORT, history=history)
    options = {"text_input": ASK, "exit_threshold": NEVER, "image_url_input": [data_url(picture)]}
    answer = server.generate(history=said, **options)
    assert answer["text_output"] == expected.text
    assert answer["prompt_tokens"] == expected.prompt_tokens
    assert (
        "history has 3 texts; send question and answer in turn" in server.generate(history=said[:3], **options)["error"]
    )


def test_sampling_options_arrive(server: Server, pipeline: SglPipeline, picture: bytes) -> None:
    sampling = SamplingConfig(max_new_tokens=5, temperature=0.7, top_p=0.9, top_k=40, seed=11)
    expected = pipeline.answer(picture, ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=sampling)
    options = {"max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 11, "exit_threshold": NEVER}
    answer = server.stream(text_input=ASK, image_bytes_input=[picture], **options)
    assert joined(answer) == expected.text
    stop = expected.text[1:3]
    cut = server.stream(text_input=ASK, image_bytes_input=[picture], stop_words=[stop], **options)
    assert joined(cut) == expected.text[: expected.text.index(stop)]
