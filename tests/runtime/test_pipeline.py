"""The cascade on a pair with random weights: who answers, from what, and that requests do not touch each other."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine.config import ExitConfig, ExitCriterion, GuidanceConfig, Normalise, SamplingConfig, ScoreRows
from engine.errors import ImageError, RequestError
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.guidance import select
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.utterance import FinishReason
from tests.tolerance import TOLERANCE

ALWAYS = ExitConfig(exit_threshold=0.0)
NEVER = ExitConfig(exit_threshold=1.01)
NO_EXIT = ExitConfig(enabled=False)
SHORT = SamplingConfig(max_new_tokens=8)
ASK = "What colour is the large circle?"


def ask(pipeline: SglPipeline, *images: Image.Image, **options: object) -> Answer:
    return pipeline.answer(list(images), ASK, **({"sampling": SHORT} | options))  # type: ignore[arg-type]


def test_a_sure_small_model_answers_alone(pipeline: SglPipeline, picture: Image.Image) -> None:
    pieces: list[str] = []
    answer = ask(pipeline, picture, exit=ALWAYS, on_text=pieces.append)
    assert answer.answered_by is AnsweredBy.SMALL
    assert answer.early_exit
    assert answer.text == answer.small_text == "".join(pieces)
    assert answer.kept is None
    assert not any(stage.startswith("large") for stage in answer.seconds)
    decision = answer.decision
    assert decision is not None
    assert decision.consistency is not None
    assert decision.value == pytest.approx((decision.confidence + decision.consistency) / 2)
    assert decision.confidence == pytest.approx(np.exp(np.log(answer.probabilities).mean()))


def test_an_unsure_small_model_guides_the_large_one(pipeline: SglPipeline, picture: Image.Image) -> None:
    pieces: list[str] = []
    answer = ask(pipeline, picture, exit=NEVER, guidance=GuidanceConfig(retention_ratio=0.1), on_text=pieces.append)
    assert answer.answered_by is AnsweredBy.LARGE
    assert answer.text == "".join(pieces)
    assert answer.importance is not None
    assert answer.kept is not None
    assert_array_equal(answer.kept, select(answer.importance, int(answer.visual_tokens * 0.1)))
    assert answer.guidance is not None
    assert answer.guidance.prune_layer == 1
    assert answer.average_retention() == pytest.approx((1 + 9 * answer.num_kept() / answer.visual_tokens) / 10)
    assert list(answer.seconds) == [
        "small vision",
        "small prefill",
        "small decode",
        "consistency",
        "large vision",
        "large prefill",
        "large decode",
    ]


def test_keeping_everything_is_the_large_model_alone(pipeline: SglPipeline, picture: Image.Image) -> None:
    alone = ask(pipeline, picture, exit=NO_EXIT, guidance=GuidanceConfig(enabled=False))
    everything = ask(pipeline, picture, exit=NO_EXIT, guidance=GuidanceConfig(retention_ratio=1.0))
    assert alone.small_text is None
    assert alone.importance is None
    assert everything.kept is None
    assert everything.token_ids == alone.token_ids
    assert_allclose(everything.probabilities, alone.probabilities, **TOLERANCE["fp32"])


def test_pruning_changes_the_large_model(pipeline: SglPipeline, picture: Image.Image) -> None:
    alone = ask(pipeline, picture, exit=NO_EXIT, guidance=GuidanceConfig(enabled=False))
    pruned = ask(pipeline, picture, exit=NO_EXIT, guidance=GuidanceConfig(retention_ratio=0.05, prune_layer=0))
    assert pruned.num_kept() == int(pruned.visual_tokens * 0.05)
    assert not np.allclose(pruned.probabilities[0], alone.probabilities[0])


@pytest.mark.parametrize("rows", ScoreRows)
@pytest.mark.parametrize("layers", [0.25, 1.0])
def test_every_choice_of_rows_and_layers_ranks(
    pipeline: SglPipeline, picture: Image.Image, rows: ScoreRows, layers: float
) -> None:
    guidance = GuidanceConfig(score_rows=rows, score_layers=layers)
    answer = ask(pipeline, picture, exit=NO_EXIT, guidance=guidance)
    assert answer.importance is not None
    assert answer.importance.shape == (answer.visual_tokens,)
    assert (answer.importance > 0).all()


def test_importance_adds_up(pipeline: SglPipeline, picture: Image.Image) -> None:
    """Prompt rows and generated rows make the whole, and a layer fewer makes less."""

    def scores(rows: ScoreRows, layers: float = 1.0) -> np.ndarray:
        answer = ask(pipeline, picture, exit=NO_EXIT, guidance=GuidanceConfig(score_rows=rows, score_layers=layers))
        assert answer.importance is not None
        return answer.importance

    both = scores(ScoreRows.PROMPT_AND_GENERATED)
    assert_allclose(scores(ScoreRows.PROMPT) + scores(ScoreRows.GENERATED), both, **TOLERANCE["scores"])
    assert (scores(ScoreRows.LAST_PROMPT) < scores(ScoreRows.PROMPT)).all()
    assert (scores(ScoreRows.PROMPT_AND_GENERATED, layers=0.5) < both).all()


@pytest.mark.parametrize("criterion", ExitCriterion)
@pytest.mark.parametrize("normalise", Normalise)
def test_every_criterion_decides(
    pipeline: SglPipeline, picture: Image.Image, criterion: ExitCriterion, normalise: Normalise
) -> None:
    """The same value, just below and just above the threshold."""
    config = ExitConfig(criterion=criterion, normalise=normalise, exit_threshold=-100.0)
    decision = ask(pipeline, picture, exit=config).decision
    assert decision is not None
    assert decision.early_exit
    above = replace(config, exit_threshold=float(np.nextafter(decision.value, np.inf)))
    at = replace(config, exit_threshold=decision.value)
    assert ask(pipeline, picture, exit=at).answered_by is AnsweredBy.SMALL
    assert ask(pipeline, picture, exit=above).answered_by is AnsweredBy.LARGE


def test_a_batch_answers_each_question_as_if_alone(pipeline: SglPipeline, picture: Image.Image) -> None:
    """More questions than a batch holds, with settings of their own."""
    tall = picture.rotate(90, expand=True)
    questions = [
        Question((picture,), ASK, sampling=SHORT, exit=ALWAYS),
        Question((picture, tall), "Compare them.", GuidanceConfig(retention_ratio=0.05), NEVER, SHORT),
        Question((), "Hi there", exit=NO_EXIT, sampling=replace(SHORT, max_new_tokens=3)),
        Question((tall,), ASK, GuidanceConfig(enabled=False), NO_EXIT, SHORT),
        Question((tall,), ASK, exit=NEVER, sampling=SamplingConfig(max_new_tokens=5, temperature=1.0, seed=3)),
    ]
    for question, answer in zip(questions, pipeline.answer_batch(questions), strict=True):
        alone = pipeline.answer_batch([question])[0]
        assert answer.token_ids == alone.token_ids
        assert answer.text == alone.text
        assert answer.answered_by is alone.answered_by
        assert_allclose(answer.probabilities, alone.probabilities, **TOLERANCE["fp32"])
        assert (answer.kept is None) == (alone.kept is None)
        if answer.importance is not None:
            assert_allclose(answer.importance, alone.importance, rtol=1e-4)


def test_several_pictures_share_one_ranking(pipeline: SglPipeline, picture: Image.Image) -> None:
    tall = picture.rotate(90, expand=True)
    one = ask(pipeline, picture, exit=NEVER)
    two = ask(pipeline, picture, tall, exit=NEVER, guidance=GuidanceConfig(retention_ratio=0.2))
    assert two.visual_tokens == one.visual_tokens + ask(pipeline, tall, exit=NEVER).visual_tokens
    assert two.num_kept() == int(two.visual_tokens * 0.2)


def test_sampling_depends_on_the_seed_alone(pipeline: SglPipeline, picture: Image.Image) -> None:
    def sample(seed: int) -> Answer:
        return ask(pipeline, picture, exit=NO_EXIT, sampling=replace(SHORT, temperature=1.5, seed=seed))

    assert sample(1).token_ids == sample(1).token_ids
    assert len({sample(seed).token_ids for seed in range(4)}) > 1


def test_finish_reasons(pipeline: SglPipeline, picture: Image.Image) -> None:
    long = ask(pipeline, picture, exit=NO_EXIT, sampling=SamplingConfig(max_new_tokens=3))
    assert (long.finish_reason, len(long.token_ids)) == (FinishReason.LENGTH, 3)
    whole = ask(pipeline, picture, exit=NO_EXIT)
    assert len(whole.text) > 2
    stop = whole.text[1:3]
    cut = ask(pipeline, picture, exit=NO_EXIT, sampling=replace(SHORT, stop=(stop,)))
    assert cut.finish_reason is FinishReason.STOP
    assert cut.text == whole.text[: whole.text.index(stop)]


def test_requests_that_cannot_be_served(pipeline: SglPipeline, picture: Image.Image) -> None:
    with pytest.raises(RequestError, match="rebuild with a larger --max-tokens"):
        pipeline.answer(picture, "word " * 2000)
    with pytest.raises(RequestError, match="prune_layer 7 was not built"):
        ask(pipeline, picture, guidance=GuidanceConfig(prune_layer=7))
    with pytest.raises(RequestError, match="the question is empty"):
        pipeline.answer(picture, " ")
    with pytest.raises(RequestError, match="marks <image> in the question: 2, pictures: 1;"):
        pipeline.answer(picture, "<image> and <image>")
    with pytest.raises(ImageError, match="does not exist"):
        pipeline.answer("missing.png", ASK)
    assert ask(pipeline, picture).text is not None


@pytest.mark.parametrize("threads", [0, -3, 100_000])
def test_a_process_has_as_many_threads_as_cores(pipeline: SglPipeline, threads: int) -> None:
    with pytest.raises(RequestError, match=f"threads {threads} is outside 1.."):
        SglPipeline.load(pipeline.directory, threads=threads)


def test_average_retention_is_of_what_was_kept(pipeline: SglPipeline, picture: Image.Image) -> None:
    guidance = GuidanceConfig(retention_ratio=0.001, prune_layer=1)
    answer = ask(pipeline, picture, exit=NO_EXIT, guidance=guidance)
    assert answer.num_kept() == 1
    assert answer.average_retention() == pytest.approx((1 + 9 / answer.visual_tokens) / 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_settings_that_are_no_numbers(value: float) -> None:
    with pytest.raises(RequestError, match="temperature"):
        SamplingConfig(temperature=value)
    if not np.isfinite(value):
        with pytest.raises(RequestError, match="exit_threshold"):
            ExitConfig(exit_threshold=value)


def test_how_long_the_small_model_speaks_is_a_setting_of_its_own(pipeline: SglPipeline, picture: Image.Image) -> None:
    """What is kept then follows from no limit of the answer, and what was cut off is not the answer."""
    guidance = GuidanceConfig(retention_ratio=0.1, guide_max_new_tokens=3)
    answers = [
        ask(pipeline, picture, exit=ALWAYS, guidance=guidance, sampling=SamplingConfig(max_new_tokens=limit))
        for limit in (5, 8)
    ]
    for answer in answers:
        assert (answer.answered_by, answer.early_exit) == (AnsweredBy.LARGE, False)
        assert_array_equal(answer.importance, answers[0].importance)
        assert_array_equal(answer.kept, answers[0].kept)
    whole = ask(pipeline, picture, exit=ALWAYS, guidance=replace(guidance, guide_max_new_tokens=8))
    assert (whole.answered_by, len(whole.token_ids)) == (AnsweredBy.SMALL, 8)
