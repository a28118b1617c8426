"""What a simulated question asks for, against what the cascade asked the engines for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config import NEVER_EXITS, ExitConfig, GuidanceConfig, SamplingConfig
from engine.planning.load.course import Course, Reading, Side, Size, course, kv_token_bytes
from engine.planning.load.measured import Note, watched
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import Need
from engine.runtime.question import Question
from tests.pictures import noise

TOKENS = 6
CHUNK = 50
NEVER = ExitConfig(exit_threshold=NEVER_EXITS)
LONG = "What is there, and what is it that is not there? " * 2
"""About as much text as the template has before a picture, in a tokenizer of bytes."""


@pytest.fixture(scope="module")
def pipeline(engine_directory: Path) -> Iterator[SglPipeline]:
    with SglPipeline.load(engine_directory, threads=1, prefill_chunk=CHUNK, feature_cache=0, prefix_cache=0) as loaded:
        yield loaded


def asked(pipeline: SglPipeline, question: Question) -> tuple[Answer, list[Note], Course]:
    """An answer, the engines' runs, and the course that a question of its size has."""
    notes: list[Note] = []
    with watched(pipeline, notes):
        (answer,) = pipeline.answer_batch([question])
    generated = len(answer.token_ids)
    assert answer.decision is not None
    small = len(answer.decision.evidence.probabilities)
    text = answer.prompt_tokens - answer.visual_tokens
    each = answer.tiles // len(question.images)
    size = Size((each,) * len(question.images), text, small, generated, answer.accepted)
    sides = [
        Side(model.config, kv_token_bytes(model.config.language, 32), CHUNK, guidance)
        for model, guidance in ((pipeline.small, None), (pipeline.large, answer.guidance))
    ]
    assert question.exit is not None
    return answer, notes, course(size, *sides, question.exit, TOKENS)


def of(notes: list[Note], role: str, kind: str) -> list[tuple[float, float]]:
    return [(note.rows, note.pairs) for note in notes if (note.role, note.kind) == (role, kind)]


def runs(reading: Reading) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    return (
        [(run.rows, run.pairs) for picture in reading.pictures for run in picture],
        [(run.rows, run.pairs) for run in reading.prompt],
    )


@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize("prune_layer", [0, 1])
def test_a_course_is_what_the_engines_were_asked_for(pipeline: SglPipeline, pictures: int, prune_layer: int) -> None:
    images = (noise(330, 220),) * pictures
    guidance = GuidanceConfig(retention_ratio=0.5, prune_layer=prune_layer)
    question = Question(images, "What is there?", guidance, NEVER, SamplingConfig(max_new_tokens=TOKENS))
    answer, notes, predicted = asked(pipeline, question)
    assert predicted.small is not None
    encodes, prompt = runs(predicted.small)
    assert of(notes, "small", "encode") == encodes
    assert of(notes, "small", "extend")[: len(prompt)] == prompt
    assert len(of(notes, "small", "step")) == predicted.small_tokens - 1
    assert of(notes, "small", "step")[0] == (1, predicted.small.context + 1)
    encodes, prompt = runs(predicted.large)
    assert len(of(notes, "large", "encode")) == len(encodes)
    fed = of(notes, "large", "extend")
    assert len(fed) == len(prompt)
    # Where the pruned rows lie in a prompt is not known, only how many there are. Of the answer's tokens all but the
    # last are a draft, or none where it ends within a character.
    undrafted = TOKENS - 1 - answer.drafted
    assert undrafted in {0, TOKENS - 1}
    assert sum(rows for rows, _ in fed) + undrafted == pytest.approx(sum(rows for rows, _ in prompt), rel=0.02)
    assert sum(pairs for _, pairs in fed) == pytest.approx(sum(pairs for _, pairs in prompt), rel=0.3)
    assert len(of(notes, "large", "step")) == predicted.large_tokens - 1 - predicted.accepted
    assert answer.guidance is not None


def test_a_slot_takes_what_the_runtime_says(pipeline: SglPipeline) -> None:
    """Of the small model, whose layers hold the same."""
    images = (noise(330, 220),)
    question = Question(images, "What is there?", exit=NEVER, sampling=SamplingConfig(max_new_tokens=TOKENS))
    answer, _, predicted = asked(pipeline, question)
    assert predicted.small is not None
    length = round(predicted.small.context) + TOKENS
    assert predicted.small.size == pipeline.small.language.nbytes(Need((length,)))
    assert round(predicted.small.context) == answer.prompt_tokens


def test_the_consistency_pass_is_one_more_extend(pipeline: SglPipeline) -> None:
    images = (noise(330, 220),)
    sampling = SamplingConfig(max_new_tokens=TOKENS)
    _, notes, predicted = asked(pipeline, Question(images, LONG, exit=NEVER, sampling=sampling))
    assert predicted.small is not None
    found = of(notes, "small", "extend")
    agreement = found[len(predicted.small.prompt) :]
    assert agreement
    # How much text stands before the picture, which is not fed again, is assumed.
    assert 0.5 < sum(rows for rows, _ in agreement) / sum(run.rows for run in predicted.agreement) < 2
