"""The small model's answer as a draft of the large one's: it changes how many steps an answer takes, and no token."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine.config import Draft, ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig
from engine.errors import ModelFailed
from engine.families import Turn
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.model import VisionLanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.tokenizer import Tokenizer
from engine.runtime.utterance import FinishReason
from tests.tolerance import TOLERANCE

NO_EXIT = ExitConfig(enabled=False)
NEVER = ExitConfig(exit_threshold=1.01)
TOKENS = 9
SAMPLING = SamplingConfig(max_new_tokens=TOKENS, top_logprobs=4)
ASK = "What colour is the large circle?"
WRONG = 7
GUIDANCE = {
    "unpruned": GuidanceConfig(retention_ratio=1.0),
    "before the first layer": GuidanceConfig(prune_layer=0, retention_ratio=0.1),
    "later": GuidanceConfig(prune_layer=3, retention_ratio=0.1),
}
DRAWN = replace(SAMPLING, temperature=1.2, top_k=40, seed=11)
Ask = Callable[..., Answer]


@pytest.fixture
def ask(pipeline: SglPipeline, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """An answer of the large model that was shown these tokens, whatever the small one said."""

    def run(draft: np.ndarray, guidance: GuidanceConfig, sampling: SamplingConfig = SAMPLING) -> Answer:
        monkeypatch.setattr(VisionLanguageModel, "read_as_own", lambda self, *asked: draft.tolist())
        return pipeline.answer(picture, ASK, guidance=guidance, exit=NO_EXIT, sampling=sampling)

    return run


def plain(sampling: SamplingConfig) -> SamplingConfig:
    return replace(sampling, draft=Draft.NONE)


def check_same(found: Answer, expected: Answer) -> None:
    """Rows that are fed at once are by their last bits not those of steps."""
    assert (found.text, found.token_ids, found.finish_reason) == (
        expected.text,
        expected.token_ids,
        expected.finish_reason,
    )
    assert_allclose(found.probabilities, expected.probabilities, **TOLERANCE["fp32"])
    for ours, theirs in zip(found.top, expected.top, strict=True):
        assert [one.token for one in ours] == [one.token for one in theirs] and len(ours) == SAMPLING.top_logprobs
        assert_allclose([one.probability for one in ours], [one.probability for one in theirs], **TOLERANCE["fp32"])
    assert (found.small_text, found.decision) == (expected.small_text, expected.decision)
    for name in ("kept", "importance"):
        assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("sampling", [SAMPLING, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
def test_what_is_right_of_a_draft_is_accepted_and_no_more(
    ask: Ask, guidance: GuidanceConfig, sampling: SamplingConfig
) -> None:
    none = np.empty(0, np.int64)
    expected = ask(none, guidance, plain(sampling))
    assert (expected.drafted, expected.accepted) == (0, 0)
    answer = np.array(expected.token_ids)
    assert len(answer) == TOKENS and WRONG not in answer
    for right in range(TOKENS):
        for wrong in (0, 1, 2 * TOKENS):
            draft = np.concatenate([answer[:right], np.full(wrong, WRONG)])
            found = ask(draft, guidance, sampling)
            check_same(found, expected)
            assert found.probabilities[0] == expected.probabilities[0], "the prompt's rows are summed as without"
            assert (found.drafted, found.accepted) == (min(len(draft), TOKENS - 1), right)


def test_without_a_draft_nothing_differs_by_a_bit(ask: Ask) -> None:
    none = np.empty(0, np.int64)
    found, expected = (ask(none, GUIDANCE["later"], one) for one in (SAMPLING, plain(SAMPLING)))
    assert found.probabilities == expected.probabilities


def test_a_stop_text_ends_what_is_accepted(ask: Ask) -> None:
    expected = ask(np.empty(0, np.int64), GUIDANCE["later"], plain(SAMPLING))
    stop = replace(SAMPLING, stop=(expected.text[2:4],))
    cut = ask(np.empty(0, np.int64), GUIDANCE["later"], plain(stop))
    assert cut.finish_reason is FinishReason.STOP and len(cut.token_ids) < TOKENS
    found = ask(np.array(expected.token_ids), GUIDANCE["later"], stop)
    check_same(found, cut)
    assert found.accepted == len(cut.token_ids) - 1


@pytest.mark.parametrize("most", [1, 2])
def test_a_limit_ends_what_is_accepted(ask: Ask, most: int) -> None:
    short = replace(SAMPLING, max_new_tokens=most)
    expected = ask(np.empty(0, np.int64), GUIDANCE["later"], plain(SAMPLING))
    found = ask(np.array(expected.token_ids), GUIDANCE["later"], short)
    check_same(found, ask(np.empty(0, np.int64), GUIDANCE["later"], plain(short)))
    assert (found.drafted, found.accepted) == (most - 1, most - 1)


def test_a_draft_streams_as_its_tokens_would(
    pipeline: SglPipeline, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(sampling: SamplingConfig) -> tuple[list[str], Answer]:
        pieces: list[str] = []
        options = {"exit": NO_EXIT, "sampling": sampling, "on_text": pieces.append}
        return pieces, pipeline.answer(picture, ASK, **options)  # type: ignore[arg-type]

    expected, answer = stream(plain(SAMPLING))
    draft = np.array([*answer.token_ids[:5], WRONG, WRONG])
    monkeypatch.setattr(VisionLanguageModel, "read_as_own", lambda self, *asked: draft.tolist())
    found, _ = stream(SAMPLING)
    assert "".join(found) == "".join(expected)


def test_a_draft_longer_than_a_run(
    engine_directory: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut wherever a run of the prompt ends."""
    with SglPipeline.load(engine_directory, threads=1, prefill_chunk=3) as pipeline:
        options = {"exit": NO_EXIT, "guidance": GUIDANCE["later"]}
        expected = pipeline.answer(picture, ASK, sampling=plain(SAMPLING), **options)  # type: ignore[arg-type]
        for right in (0, 4, TOKENS - 1):
            draft = np.array([*expected.token_ids[:right], WRONG, WRONG, WRONG])
            monkeypatch.setattr(VisionLanguageModel, "read_as_own", lambda self, *asked, draft=draft: draft.tolist())
            found = pipeline.answer(picture, ASK, sampling=SAMPLING, **options)  # type: ignore[arg-type]
            check_same(found, expected)
            assert found.accepted == right


def test_who_drafts(pipeline: SglPipeline, picture: Image.Image) -> None:
    """The small model does, where it was asked; its own answer is checked by nobody."""

    def ask(guidance: GuidanceConfig, exit: ExitConfig, **options: object) -> Answer:
        sampling = replace(SAMPLING, **options)  # type: ignore[arg-type]
        return pipeline.answer(picture, ASK, guidance=guidance, exit=exit, sampling=sampling)

    asked = ask(GuidanceConfig(), NO_EXIT)
    assert asked.answered_by is AnsweredBy.LARGE
    assert asked.drafted == TOKENS - 1
    assert ask(GuidanceConfig(guide_max_new_tokens=3), NO_EXIT).drafted == 3
    assert ask(GuidanceConfig(enabled=False), NEVER).drafted == TOKENS - 1
    assert ask(GuidanceConfig(enabled=False), NO_EXIT).drafted == 0
    assert ask(GuidanceConfig(source=GuidanceSource.RANDOM), NO_EXIT).drafted == 0
    assert ask(GuidanceConfig(), ExitConfig(exit_threshold=0.0)).drafted == 0
    assert ask(GuidanceConfig(), NO_EXIT, draft=Draft.NONE).drafted == 0


def test_of_every_kind_together_as_without(pipeline: SglPipeline, picture: Image.Image) -> None:
    tall = picture.rotate(90, expand=True)
    questions = [
        Question((picture,), ASK, sampling=SAMPLING, exit=NEVER),
        Question((picture, tall), "Compare them.", GuidanceConfig(retention_ratio=0.05), NEVER, SAMPLING),
        Question((), "Hi there", exit=NEVER, sampling=replace(SAMPLING, max_new_tokens=3)),
        Question((tall,), ASK, GuidanceConfig(enabled=False), NEVER, DRAWN),
        Question((tall,), ASK, exit=NEVER, sampling=DRAWN, history=(Turn("Before?", "Yes"),)),
    ]
    expected = pipeline.answer_batch([replace(one, sampling=plain(one.sampling or SAMPLING)) for one in questions])
    for found, without in zip(pipeline.answer_batch(questions), expected, strict=True):
        check_same(found, without)
        assert found.drafted > 0


def test_a_check_that_fails_ends_its_question_alone(
    ask: Ask, pipeline: SglPipeline, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(slot: int, length: int) -> None:
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.large.language, "truncate", fail)
        with pytest.raises(ModelFailed, match="injected"):
            ask(np.full(3, WRONG), GUIDANCE["later"])
    assert pipeline.load_now().kv_memory_used == 0
    assert ask(np.full(3, WRONG), GUIDANCE["later"]).accepted == 0


@pytest.fixture
def turned(pair: Path) -> Tokenizer:
    """The pair's tokenizer with other numbers for its ordinary tokens."""
    data = json.loads((pair / "small" / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["id"] for token in data["added_tokens"]}
    vocabulary = data["model"]["vocab"]
    numbers = [number for number in vocabulary.values() if number not in added]
    other = dict(zip(numbers, reversed(numbers), strict=True))
    data["model"]["vocab"] = {token: other.get(number, number) for token, number in vocabulary.items()}
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(data)))


def test_between_tokenizers_a_draft_goes_as_text(
    pipeline: SglPipeline, picture: Image.Image, turned: Tokenizer
) -> None:
    large = pipeline.large
    behind = large.look((picture,), ASK, TOKENS).encoded.ids.tolist()
    text = "a large red circle, and 3 more"
    mine, theirs = large.tokenizer.encode(text), turned.encode(text)
    assert mine != theirs
    assert large.read_as_own(behind, turned, theirs) == mine
    assert large.read_as_own(behind, large.tokenizer, mine) == mine


def test_a_draft_of_tokens_that_are_none(pipeline: SglPipeline, picture: Image.Image, turned: Tokenizer) -> None:
    """A vocabulary may be padded beyond its tokens."""
    large = pipeline.large
    behind = large.look((picture,), ASK, TOKENS).encoded.ids.tolist()
    padding = 10**6
    assert large.read_as_own(behind, large.tokenizer, [padding]) == []
    assert large.read_as_own(behind, turned, []) == []
