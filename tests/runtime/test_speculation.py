"""Speculation: the small model drafts from what the large one has said.

It changes how many runs an answer takes, and no token.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig, Draft, ExitConfig, GuidanceConfig, SamplingConfig
from engine.errors import QuestionCancelled
from engine.families import Turn
from engine.runtime.answer import Answer
from engine.runtime.drafter import Drafter
from engine.runtime.language import LanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question, Stage
from engine.runtime.tokenizer import Tokenizer
from engine.runtime.work import Asking
from tests.runtime.test_draft import ASK, DRAWN, GUIDANCE, NEVER, NO_EXIT, SAMPLING, WRONG, check_same, plain, turned

__all__ = ["turned"]
WHOLE = GuidanceConfig(retention_ratio=1.0)
LONG = replace(SAMPLING, max_new_tokens=24)
Drafts = Callable[[list[int], int], list[int]]
"""What was said, and how many tokens are wanted -> a draft."""


@pytest.fixture(scope="module")
def twins(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SglPipeline]:
    """A pair of which both are the large model: what one drafts the other would say."""
    directory = tmp_path_factory.mktemp("engines") / "twins"
    build_pair(BuildConfig(pair / "large", pair / "large", directory, max_tokens=1024, max_batch=3))
    with SglPipeline.load(directory, threads=1) as pipeline:
        yield pipeline


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights say numbers that are no tokens, too, which have no text to compare."""
    monkeypatch.setattr(Tokenizer, "spells_alike", lambda self, other, ids: True)


def draft_by(monkeypatch: pytest.MonkeyPatch, drafts: Drafts) -> None:
    """In the place of the small model."""

    def draft(self: Drafter, large: object, prompt: object, said: list[int], most: int) -> Asking[np.ndarray]:
        assert self.lease.claim()
        yield from ()
        return np.array(drafts(said, most)[: max(most, 0)], np.int64)

    monkeypatch.setattr(Drafter, "draft", draft)


@pytest.mark.parametrize("sampling", [SAMPLING, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
@pytest.mark.parametrize("right", [0, 1, 2, 3])
def test_what_is_right_of_each_draft_is_accepted(
    pipeline: SglPipeline,
    picture: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    guidance: GuidanceConfig,
    sampling: SamplingConfig,
    right: int,
) -> None:
    def ask(sampling: SamplingConfig) -> Answer:
        return pipeline.answer(picture, ASK, guidance=guidance, exit=NO_EXIT, sampling=sampling)

    expected = ask(plain(sampling))
    answer = list(expected.token_ids)
    assert WRONG not in answer

    def drafts(said: list[int], most: int) -> list[int]:
        assert said == answer[: len(said)]
        return [*answer[len(said) : len(said) + right], WRONG, WRONG]

    draft_by(monkeypatch, drafts)
    found = ask(replace(plain(sampling), speculate=4))
    check_same(found, expected)
    rounds = [range(start, min(start + right, len(answer) - 1)) for start in range(1, len(answer), right + 1)]
    assert found.accepted == found.speculated_accepted == sum(map(len, rounds))
    assert found.drafted == found.speculated > found.accepted
    assert pipeline.load_now().kv_memory_used == 0


@pytest.mark.parametrize("speculate", [1, 3, 100])
@pytest.mark.parametrize("sampling", [LONG, replace(DRAWN, max_new_tokens=24)], ids=["greedy", "drawn"])
def test_a_twin_drafts_what_is_said(
    twins: SglPipeline, alike: None, picture: Image.Image, sampling: SamplingConfig, speculate: int
) -> None:
    """All of it, drawn or not: both draw with the same numbers."""

    def ask(sampling: SamplingConfig) -> Answer:
        return twins.answer(picture, ASK, guidance=WHOLE, exit=NO_EXIT, sampling=sampling)

    expected, found = ask(plain(sampling)), ask(replace(plain(sampling), speculate=speculate))
    check_same(found, expected)
    assert found.speculated == found.speculated_accepted > 0
    runs = len(found.token_ids) - found.accepted
    assert runs == 1 + -(-(len(found.token_ids) - 1) // (min(speculate, 22) + 1))
    assert found.seconds.keys() >= {Stage.SPECULATION, Stage.LARGE_DECODE}


def test_after_the_consistency_pass_it_goes_on_from_what_is_left(
    twins: SglPipeline, alike: None, picture: Image.Image
) -> None:
    def ask(exit: ExitConfig, **options: object) -> Answer:
        return twins.answer(picture, ASK, exit=exit, sampling=replace(plain(LONG), **options))  # type: ignore[arg-type]

    expected = ask(NEVER)
    found = ask(NEVER, speculate=3)
    check_same(found, expected)
    assert found.speculated > 0


def test_who_exits_speculates_nothing(twins: SglPipeline, picture: Image.Image) -> None:
    exit = ExitConfig(exit_threshold=0.0)
    found = twins.answer(picture, ASK, exit=exit, sampling=replace(LONG, speculate=3))
    assert (found.early_exit, found.speculated) == (True, 0)


def test_a_limit_of_what_guides_is_none_of_what_is_drafted(
    twins: SglPipeline, alike: None, picture: Image.Image
) -> None:
    guidance = replace(WHOLE, guide_max_new_tokens=2)
    found = twins.answer(picture, ASK, guidance=guidance, exit=NO_EXIT, sampling=replace(LONG, speculate=4))
    assert found.accepted == found.drafted
    assert len(found.token_ids) - found.accepted <= 7


def kinds(picture: Image.Image) -> list[Question]:
    tall = picture.rotate(90, expand=True)
    drawn = replace(DRAWN, max_new_tokens=15)
    return [
        Question((picture,), ASK, sampling=LONG, exit=NEVER),
        Question((picture, tall), "Compare them.", GuidanceConfig(retention_ratio=0.05), NO_EXIT, LONG),
        Question((), "Hi there", exit=NEVER, sampling=replace(SAMPLING, max_new_tokens=3)),
        Question((tall,), ASK, WHOLE, NO_EXIT, drawn),
        Question((tall,), ASK, exit=NEVER, sampling=drawn, history=(Turn("Before?", "Yes"),)),
        Question((picture,), "Sure", exit=ExitConfig(exit_threshold=0.0), sampling=SAMPLING),
        Question((tall,), "One", exit=NO_EXIT, sampling=replace(SAMPLING, max_new_tokens=1)),
    ]


@pytest.mark.parametrize("which", ["pipeline", "twins"])
@pytest.mark.parametrize("draft", Draft)
def test_of_every_kind_together_as_without(
    which: str, draft: Draft, alike: None, picture: Image.Image, request: pytest.FixtureRequest
) -> None:
    pipeline: SglPipeline = request.getfixturevalue(which)
    questions = kinds(picture)
    expected = pipeline.answer_batch([replace(one, sampling=plain(one.sampling or SAMPLING)) for one in questions])
    asked = [replace(one, sampling=replace(one.sampling, draft=draft, speculate=2)) for one in questions]
    for found, without in zip(pipeline.answer_batch(asked), expected, strict=True):
        check_same(found, without)
    assert pipeline.load_now().kv_memory_used == 0


def test_cancelled_at_any_time(pipeline: SglPipeline, picture: Image.Image) -> None:
    """The others notice nothing, and no slot is left."""
    questions = [replace(one, sampling=replace(one.sampling, speculate=3)) for one in kinds(picture)]
    expected = pipeline.answer_batch(questions)
    for seed in range(4):
        rng = random.Random(seed)
        tickets = [pipeline.submit(question) for question in questions]
        victims = rng.sample(range(len(tickets)), 3)
        for number in victims:
            tickets[number].on_change(tickets[number].cancel)
        for number, ticket in enumerate(tickets):
            outcome = ticket.wait(300)
            if number in victims and isinstance(outcome, QuestionCancelled):
                continue
            assert isinstance(outcome, Answer)
            check_same(outcome, expected[number])
    pipeline.answer_batch(questions[:1])
    assert pipeline.load_now().kv_memory_used == 0


def test_its_slot_is_given_up_before_another_question_waits(
    engine_directory: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two questions that hold a small one, and memory for no third, would wait for ever."""
    question = Question((picture,), ASK, exit=NO_EXIT, sampling=replace(plain(LONG), speculate=2))
    with SglPipeline.load(engine_directory, threads=1) as pipeline:
        sizes: list[int] = []
        nbytes = LanguageModel.nbytes

        def spy(self: LanguageModel, need: object) -> int:
            sizes.append(nbytes(self, need))  # type: ignore[arg-type]
            return sizes[-1]

        with monkeypatch.context() as patch:
            patch.setattr(LanguageModel, "nbytes", spy)
            expected = pipeline.answer_batch([question])[0]
        assert expected.speculated > 0
    with SglPipeline.load(engine_directory, threads=1, kv_memory=max(sizes)) as pipeline:
        for found in pipeline.answer_batch([question] * 5):
            check_same(found, expected)
            assert found.speculated == 0
        assert pipeline.load_now().kv_memory_used == 0
    with SglPipeline.load(engine_directory, threads=1, kv_memory=sum(sorted(sizes)[-2:])) as pipeline:
        assert [found.token_ids for found in pipeline.answer_batch([question] * 5)] == [expected.token_ids] * 5
        assert pipeline.load_now().kv_memory_used == 0


def test_between_tokenizers_it_goes_as_text(
    twins: SglPipeline, picture: Image.Image, turned: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small model whose tokens have other numbers: drafts are read as text, and few are right, as it was not
    trained with them."""
    alone = GuidanceConfig(enabled=False)
    expected = twins.answer(picture, ASK, guidance=alone, exit=NO_EXIT, sampling=plain(LONG))
    monkeypatch.setattr(twins.small, "tokenizer", turned)
    found = twins.answer(picture, ASK, guidance=alone, exit=NO_EXIT, sampling=replace(plain(LONG), speculate=3))
    assert found.token_ids == expected.token_ids
    assert twins.load_now().kv_memory_used == 0


@pytest.mark.parametrize("after", ["a large", "a large red", ""])
def test_what_is_said_goes_as_text_and_comes_back(twins: SglPipeline, turned: object, after: str) -> None:
    large = twins.large
    said, more = large.tokenizer.encode("Look: a large"), large.tokenizer.encode(" red circle")
    known = turned.encode(after) if after else []  # type: ignore[attr-defined]
    theirs = turned.encode(f"{after} red circle")[len(known) :]  # type: ignore[attr-defined]
    assert large.read_as_own(said, turned, theirs, known) == more  # type: ignore[arg-type]
