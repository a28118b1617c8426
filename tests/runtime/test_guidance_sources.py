"""Every source of guidance, run whole in transformers without caches or batches, against the pipeline."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig, ScoreRows
from engine.errors import RequestError
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.guidance import keep_rows
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import PromptTokens, Pruning
from engine.runtime.question import Question
from tests.oracle import embed
from tests.runtime.test_oracle_pipeline import NEW_TOKENS, QUESTION, Oracle
from tests.runtime.test_tome import plain_merge
from tests.tolerance import TOLERANCE

NO_EXIT = ExitConfig(enabled=False)
SAMPLING = SamplingConfig(max_new_tokens=NEW_TOKENS, seed=4)
LARGE_SOURCES = [source for source in GuidanceSource if source.reads_large()]


@pytest.fixture(scope="module")
def scored_pipeline(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    out = tmp_path_factory.mktemp("scored") / "pair"
    build_pair(BuildConfig(pair / "small", pair / "large", out, max_tokens=1024, max_batch=5, large_scores=True))
    return SglPipeline.load(out, threads=1, preload=False)


@pytest.fixture(scope="module")
def large(pair: Path) -> Oracle:
    return Oracle(pair / "large")


@pytest.fixture(scope="module")
def prompt(large: Oracle, scored_pipeline: SglPipeline, picture: Image.Image) -> PromptTokens:
    return large.prompt(scored_pipeline.large, picture)


@pytest.fixture
def ask(scored_pipeline: SglPipeline, picture: Image.Image) -> Callable[..., Answer]:
    def run(source: GuidanceSource, exit: ExitConfig = NO_EXIT, **options: object) -> Answer:
        guidance = GuidanceConfig(source=source, **options)  # type: ignore[arg-type]
        return scored_pipeline.answer(picture, QUESTION, guidance=guidance, exit=exit, sampling=SAMPLING)

    return run


def most_important(importance: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argsort(-importance, kind="stable")[:count])


def check_pruned_run(answer: Answer, large: Oracle, prompt: PromptTokens, kept: np.ndarray, stop: int) -> None:
    """The answer is the large model's with these tokens kept."""
    assert answer.answered_by is AnsweredBy.LARGE
    assert answer.guidance is not None
    assert answer.guidance.prune_layer is not None
    assert_array_equal(answer.kept, kept)
    rows = keep_rows(prompt.visual_positions, kept, len(prompt.ids))
    tokens, probabilities = large.generate(prompt, Pruning(answer.guidance.prune_layer, rows), stop)
    assert answer.token_ids == tuple(tokens)
    assert_allclose(answer.probabilities, probabilities, **TOLERANCE["fp32"])


@pytest.fixture(scope="module")
def stop(scored_pipeline: SglPipeline) -> int:
    return scored_pipeline.large.tokenizer.token_id("<|im_end|>")


@pytest.mark.parametrize("layer", [1, 3])
def test_fastv_is_the_last_prompt_row_of_the_layer_before(
    ask: Callable[..., Answer], large: Oracle, prompt: PromptTokens, stop: int, layer: int
) -> None:
    answer = ask(GuidanceSource.FASTV, prune_layer=layer, retention_ratio=0.15)
    with torch.no_grad():
        embeds = embed(large.language, prompt.ids, prompt.visual_positions, prompt.features)
        attention = large.language(inputs_embeds=embeds, output_attentions=True).attentions[layer - 1]
    expected = attention[0, :, -1].double().sum(0)[prompt.visual_positions].numpy()
    assert answer.importance is not None
    assert_allclose(answer.importance, expected, **TOLERANCE["scores"])
    kept = most_important(expected, int(len(expected) * 0.15))
    check_pruned_run(answer, large, prompt, kept, stop)


def test_oracle_is_the_large_models_own_whole_run(
    ask: Callable[..., Answer], large: Oracle, prompt: PromptTokens, stop: int
) -> None:
    answer = ask(GuidanceSource.ORACLE, retention_ratio=0.1)
    tokens, _ = large.generate(prompt, Pruning(0, np.arange(len(prompt.ids))), stop)
    expected = large.importance(prompt, tokens)
    assert answer.importance is not None
    assert_allclose(answer.importance, expected, rtol=1e-4)
    check_pruned_run(answer, large, prompt, most_important(expected, int(len(expected) * 0.1)), stop)


def test_rows_and_layers_choose_of_the_oracle_too(ask: Callable[..., Answer]) -> None:
    def scores(**options: object) -> np.ndarray:
        answer = ask(GuidanceSource.ORACLE, **options)
        assert answer.importance is not None
        return answer.importance

    both = scores()
    parts = scores(score_rows=ScoreRows.PROMPT) + scores(score_rows=ScoreRows.GENERATED)
    assert_allclose(parts, both, **TOLERANCE["scores"])
    assert (scores(score_layers=0.5) < both).all()


def test_random_follows_the_seed_alone(
    scored_pipeline: SglPipeline,
    ask: Callable[..., Answer],
    large: Oracle,
    prompt: PromptTokens,
    stop: int,
    picture: Image.Image,
) -> None:
    answer = ask(GuidanceSource.RANDOM, retention_ratio=0.25)
    assert answer.kept is not None
    check_pruned_run(answer, large, prompt, answer.kept, stop)
    assert_array_equal(ask(GuidanceSource.RANDOM, retention_ratio=0.25).kept, answer.kept)
    chosen = [
        scored_pipeline.answer(
            picture,
            QUESTION,
            guidance=GuidanceConfig(source=GuidanceSource.RANDOM, retention_ratio=0.25),
            exit=NO_EXIT,
            sampling=replace(SAMPLING, max_new_tokens=1, seed=seed),
        ).kept
        for seed in range(12)
    ]
    counts = np.bincount(np.concatenate([kept for kept in chosen if kept is not None]), minlength=answer.visual_tokens)
    assert {len(kept) for kept in chosen if kept is not None} == {answer.visual_tokens // 4}
    assert counts.max() < 12
    assert (counts > 0).mean() > 0.9


def test_tome_feeds_the_merged_tokens_in_their_places(
    ask: Callable[..., Answer], large: Oracle, prompt: PromptTokens, stop: int
) -> None:
    answer = ask(GuidanceSource.TOME, retention_ratio=0.1, prune_layer=1)
    assert answer.guidance is not None
    assert answer.guidance.prune_layer == 0
    assert answer.guidance.retention_ratio == pytest.approx((1 + 9 * 0.1) / 10)
    assert answer.average_retention() == pytest.approx(answer.num_kept() / answer.visual_tokens)
    assert answer.importance is None
    merged = plain_merge(prompt.features, int(answer.visual_tokens * 0.19 + 1e-9))
    features = prompt.features.copy()
    kept = np.array([place for place, _, _ in merged])
    features[kept] = [feature for _, feature, _ in merged]
    fed = PromptTokens(prompt.ids, prompt.visual_positions, features)
    check_pruned_run(answer, large, fed, kept, stop)


def test_tome_that_keeps_everything_is_the_large_model_alone(ask: Callable[..., Answer]) -> None:
    everything = ask(GuidanceSource.TOME, retention_ratio=1.0)
    assert everything.kept is None
    assert everything.token_ids == ask(GuidanceSource.SMALL, enabled=False).token_ids


@pytest.mark.parametrize("source", [source for source in GuidanceSource if source is not GuidanceSource.SMALL])
def test_the_small_model_runs_for_the_exit_alone(ask: Callable[..., Answer], source: GuidanceSource) -> None:
    alone = ask(source)
    assert alone.small_text is None
    assert [stage for stage in alone.seconds if stage.startswith("small")] == []
    assert ("large scores" in alone.seconds) == source.reads_large()
    unsure = ask(source, exit=ExitConfig(exit_threshold=1.01))
    assert unsure.decision is not None
    assert unsure.decision.consistency is not None
    assert_array_equal(unsure.kept, alone.kept)
    sure = ask(source, exit=ExitConfig(exit_threshold=0.0))
    assert sure.answered_by is AnsweredBy.SMALL
    assert [stage for stage in sure.seconds if stage.startswith("large")] == []


def test_sources_share_a_batch(scored_pipeline: SglPipeline, picture: Image.Image) -> None:
    """Different pictures, so that rows and columns are ragged; every answer is what it is alone."""
    pictures = [picture, picture.rotate(90, expand=True), picture.resize((100, 100)), picture, picture]
    questions = [
        Question((image,), QUESTION, GuidanceConfig(source=source, retention_ratio=0.2), NO_EXIT, SAMPLING)
        for image, source in zip(pictures, GuidanceSource, strict=True)
    ]
    for question, together in zip(questions, scored_pipeline.answer_batch(questions), strict=True):
        alone = scored_pipeline.answer_batch([question])[0]
        assert together.token_ids == alone.token_ids
        assert_array_equal(together.kept, alone.kept)
        assert_allclose(together.probabilities, alone.probabilities, **TOLERANCE["fp32"])


@pytest.mark.parametrize("source", LARGE_SOURCES)
def test_an_engine_without_large_scores_refuses(
    pipeline: SglPipeline, picture: Image.Image, source: GuidanceSource
) -> None:
    with pytest.raises(RequestError, match=f"guidance {source} needs .* rebuild with --large-scores"):
        pipeline.answer(picture, QUESTION, guidance=GuidanceConfig(source=source))


def test_fastv_needs_a_layer_to_look_at(ask: Callable[..., Answer]) -> None:
    with pytest.raises(RequestError, match=r"which is 0; choose one of \[1, 2, 3, 4\]"):
        ask(GuidanceSource.FASTV, prune_layer=0)
    with pytest.raises(RequestError, match="which is 0; rebuild with --prune-layers 1"):
        GuidanceConfig(source=GuidanceSource.FASTV).resolve(10, ())
