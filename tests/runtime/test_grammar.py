"""Answers that fulfil a JSON schema: of both models, with drafts, together as alone; and schemas of strangers."""

import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig, Draft, ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig
from engine.errors import RequestError
from engine.json_schema import BadSchema
from engine.runtime import schema_check
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.early_exit import confidence
from engine.runtime.model import VisionLanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.utterance import FinishReason
from tests.schemas import random_schema
from tests.tolerance import TOLERANCE
from tools.demo import PAIR

pytest.importorskip("llguidance")
SCHEMAS = 200
SMALL, LARGE = ExitConfig(exit_threshold=0.0), ExitConfig(enabled=False)
NEVER = ExitConfig(exit_threshold=1.01)
CIRCLE = json.dumps(
    {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green", "blue"]},
            "size": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["colour", "size"],
        "additionalProperties": False,
    }
)  # fmt: skip
ASK = "What colour is the circle?"


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SglPipeline]:
    """The trained pair, each model with a tokenizer of its own."""
    directory = tmp_path_factory.mktemp("engines") / "miniature"
    build_pair(BuildConfig(PAIR / "small", PAIR / "large", directory, max_tokens=256, max_batch=16, large_scores=True))
    with SglPipeline.load(directory, threads=1) as pipeline:
        yield pipeline


def drawn(seed: int, schema: str, **options: Any) -> SamplingConfig:
    return SamplingConfig(max_new_tokens=80, temperature=1.5, seed=seed, json_schema=schema, **options)


def check(answer: Answer, schema: str) -> None:
    """It is what the schema describes, unless it was cut off."""
    if answer.finish_reason is FinishReason.STOP:
        jsonschema_rs.validate(json.loads(schema), json.loads(answer.text))


def test_random_schemas(miniature: SglPipeline, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random answers of both models fulfil them, and are together what they are alone."""
    monkeypatch.setattr(schema_check, "_reason", schema_check.reason_of)
    chance = random.Random(17)
    schemas = [json.dumps(random_schema(chance)) for _ in range(SCHEMAS)]
    asked = [
        Question((picture,) * (seed % 20 == 0), ASK, exit=(SMALL, LARGE)[seed % 2], sampling=drawn(seed, schema))
        for seed, schema in enumerate(schemas)
    ]
    answers = miniature.answer_batch(asked)
    for answer, schema in zip(answers, schemas, strict=True):
        check(answer, schema)
    assert {answer.answered_by for answer in answers} == {AnsweredBy.SMALL, AnsweredBy.LARGE}
    assert sum(answer.finish_reason is FinishReason.STOP for answer in answers) > 0.8 * SCHEMAS
    for index in range(0, SCHEMAS, 20):
        (alone,) = miniature.answer_batch([asked[index]])
        for name in ("text", "token_ids", "probabilities", "decision", "small_text"):
            assert getattr(alone, name) == getattr(answers[index], name)


@pytest.mark.parametrize("exit", [SMALL, LARGE, NEVER], ids=["small", "large", "both"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_ends_where_the_schema_does(
    miniature: SglPipeline, picture: Image.Image, exit: ExitConfig, temperature: float
) -> None:
    sampling = replace(drawn(3, CIRCLE), temperature=temperature)
    pieces: list[str] = []
    answer = miniature.answer(picture, ASK, exit=exit, sampling=sampling, on_text=pieces.append)
    assert answer.finish_reason is FinishReason.STOP
    check(answer, CIRCLE)
    assert "".join(pieces) == answer.text and answer.text.endswith("}")
    assert answer.probabilities and all(0 < probability <= 1 for probability in answer.probabilities)


def test_a_whole_number_ends_with_the_models_own_end(miniature: SglPipeline) -> None:
    """Nothing of the schema says that it has no more digits."""
    ends = []
    for seed in range(12):
        answer = miniature.answer([], "How many?", exit=LARGE, sampling=drawn(seed, '{"type": "integer"}'))
        check(answer, '{"type": "integer"}')
        ends.append(miniature.large.tokenizer.special(answer.token_ids[-1]))
    assert "<|im_end|>" in ends


def test_what_is_said_of_it_is_of_what_it_may_be(miniature: SglPipeline, picture: Image.Image) -> None:
    """Probabilities, confidence and consistency are of the tokens that the schema lets come next."""
    sampling = SamplingConfig(20, json_schema='{"enum": ["red", "green"]}', top_logprobs=20)
    answer = miniature.answer(picture, ASK, exit=NEVER, sampling=replace(sampling, draft=Draft.NONE))
    for probability, top in zip(answer.probabilities, answer.top, strict=True):
        assert sum(one.probability for one in top) == pytest.approx(1, abs=1e-6)
        assert top[0].probability == probability
    assert len(answer.top[0]) < 20
    assert answer.decision is not None and answer.decision.consistency is not None
    evidence = answer.decision.evidence
    assert answer.decision.confidence == pytest.approx(confidence(np.array(evidence.probabilities)))
    assert evidence.consistency is not None and 0 < min(evidence.consistency) <= max(evidence.consistency) <= 1
    forced = miniature.answer(picture, ASK, exit=NEVER, sampling=SamplingConfig(20, json_schema='{"const": 5}'))
    assert forced.decision is not None and forced.decision.consistency == pytest.approx(1)


@pytest.mark.parametrize("sampling", [SamplingConfig(max_new_tokens=60, json_schema=CIRCLE, top_logprobs=3),
                                      drawn(5, CIRCLE, top_logprobs=3)], ids=["greedy", "drawn"])  # fmt: skip
def test_drafts_change_nothing(
    miniature: SglPipeline, picture: Image.Image, sampling: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"guidance": GuidanceConfig(retention_ratio=1.0), "exit": LARGE}
    plain = miniature.answer(picture, ASK, sampling=replace(sampling, draft=Draft.NONE), **asked)
    tokens = np.array(plain.token_ids)
    for right in range(0, len(tokens) + 1, 4):
        for wrong in (0, 1, 9):
            draft = np.concatenate([tokens[:right], np.full(wrong, tokens[-1])])
            monkeypatch.setattr(VisionLanguageModel, "draft", lambda self, *asked, draft=draft: draft)
            found = miniature.answer(picture, ASK, sampling=sampling, **asked)
            assert (found.text, found.token_ids, found.finish_reason) == (
                plain.text,
                plain.token_ids,
                plain.finish_reason,
            )
            assert found.accepted == min(right, len(tokens) - 1)
            assert_allclose(found.probabilities, plain.probabilities, **TOLERANCE["fp32"])
            for ours, theirs in zip(found.top, plain.top, strict=True):
                assert [one.token for one in ours] == [one.token for one in theirs]


def test_a_model_that_guides_itself_answers_by_the_schema(miniature: SglPipeline, picture: Image.Image) -> None:
    """It answers twice, each time from the schema's beginning."""
    guidance = GuidanceConfig(source=GuidanceSource.ORACLE, retention_ratio=1.0)
    sampling = SamplingConfig(max_new_tokens=60, json_schema=CIRCLE)
    answer = miniature.answer(picture, ASK, exit=LARGE, guidance=guidance, sampling=sampling)
    assert answer.finish_reason is FinishReason.STOP
    check(answer, CIRCLE)


HOSTILE = {
    "no text": ({"$ref": "#"}, "no text fulfils it"),
    "no text either": ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "unsatisfiable"),
    "a long chain": (
        {"$ref": "#/$defs/0", "$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(1500)} | {"1500": {}}},
        "too long or too much memory",
    ),
    "many remainders": (
        {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (9973, 9967, 9949, 9941)]},
        "too long or too much memory",
    ),
    "many optional members": (
        {"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(1000)}},
        "items",
    ),
    "many combinations": (
        {"allOf": [{"anyOf": [{"required": [f"{n}{m}"]} for m in range(4)]} for n in range(12)]},
        "",
    ),
    "somewhere else": ({"$ref": "http://127.0.0.1:1/schema.json"}, "is not present"),
    "a file": ({"$ref": "file:///etc/passwd"}, "is not present"),
    "looking ahead": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "what is not followed": ({"type": "array", "uniqueItems": True}, "Unimplemented keys"),
    "its own options": ({"uniqueItems": True, "x-guidance": {"lenient": True}}, "Unimplemented keys"),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "words"), HOSTILE.values(), ids=HOSTILE)
def test_schemas_of_strangers(pipeline: SglPipeline, schema: dict[str, Any], words: str) -> None:
    """Are refused within a time; what was refused once is at once."""
    text = json.dumps(schema)
    for _ in range(2):
        with pytest.raises(
            BadSchema, match=f"json_schema cannot be followed \\(.*{words}.*; send another, or a simpler"
        ):
            pipeline.answer([], "Hi", sampling=SamplingConfig(json_schema=text))
        start = time.process_time()
    assert time.process_time() - start < 1
    assert pipeline.answer([], "Hi", sampling=SamplingConfig(max_new_tokens=2)).text is not None


def test_what_a_schema_brings_along_is_not_asked(pipeline: SglPipeline) -> None:
    schema = {"const": [1, 2], "x-guidance": {"whitespace_pattern": "x+", "item_separator": ";"}}
    answer = pipeline.answer([], "Hi", sampling=drawn(1, json.dumps(schema)))
    check(answer, json.dumps(schema))


def test_without_the_library(pipeline: SglPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"json_schema needs a package .* pip install 'sgl-engine\[grammar\]'"):
        pipeline.answer([], "Hi", sampling=SamplingConfig(json_schema=CIRCLE))
    assert pipeline.answer([], "Hi", sampling=SamplingConfig(max_new_tokens=2)).token_ids
