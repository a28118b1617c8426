"""Whole pairs on plans, with everything but the driver: static caches, profiles, prompts in turns, rows in parts.

Plans are lowered in float32 and run by `tests.fake_tensorrt`; the CPU engines of the same checkpoints are the oracle.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine import dims
from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig, ScoreRows
from engine.errors import RequestError
from engine.runtime.language import LanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.target import Precision, Target
from engine.verification import verify
from tests.fake_device import DEVICE, answer_on
from tests.fake_tensorrt import RuntimeCache
from tests.stand_in_gpu import put_compiler, put_gpus
from tests.tolerance import TOLERANCE

PREFILL, DECODE = range(2)
QUESTION = "What color is the small object to the left of the large one, and what else is there?"
SHORT = SamplingConfig(max_new_tokens=6)
ANSWER_ALL = ExitConfig(exit_threshold=2.0)


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


@pytest.fixture(scope="module")
def cpu(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    """The CPU engines."""
    out = tmp_path_factory.mktemp("engines") / "cpu"
    paths = pair / "small", pair / "large", out
    build_pair(BuildConfig(*paths, max_tokens=300, max_batch=3, max_tiles=2, large_scores=True))
    return SglPipeline.load(out, threads=1)


@pytest.fixture(scope="module")
def planned(pair: Path, tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> SglPipeline:
    """Plans of the same checkpoints with room for few rows a call, so that a prompt's scores take several."""
    put_compiler(patch)
    put_gpus(patch)
    patch.setattr(dims, "MAX_SCORE_ROWS", 7)
    patch.setattr(dims, "MAX_LOGIT_ROWS", 3)
    out = tmp_path_factory.mktemp("engines") / "plans"
    paths = pair / "small", pair / "large", out
    settings = {"max_tokens": 300, "max_batch": 3, "max_tiles": 2, "large_scores": True, "max_kept_tokens": 280}
    build_pair(BuildConfig(*paths, target=Target.TENSORRT_RTX, precision=Precision.BF16, **settings))  # type: ignore[arg-type]
    return SglPipeline.load(out, threads=1)


def test_each_model_on_a_gpu_of_its_own(
    planned: SglPipeline, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = put_gpus(monkeypatch, 2)
    with SglPipeline.load(planned.directory, threads=1, small_apart=True) as apart:
        answers = [each.answer([picture], QUESTION, exit=ANSWER_ALL, sampling=SHORT) for each in (apart, planned)]
    places = {(gpu, path.relative_to(planned.directory).parts[0]) for gpu, path in loaded}
    assert places == {("cuda:1", "small"), ("cuda", "large")}
    assert answers[0].token_ids == answers[1].token_ids


CASES = {
    "guided": {"guidance": GuidanceConfig(retention_ratio=0.3), "exit": ANSWER_ALL},
    "not pruned": {"guidance": GuidanceConfig(enabled=False), "exit": ANSWER_ALL},
    "pruned before layer 0": {"guidance": GuidanceConfig(retention_ratio=0.2, prune_layer=0), "exit": ANSWER_ALL},
    "early exit": {"exit": ExitConfig(exit_threshold=0.0)},
    "generated rows": {"guidance": GuidanceConfig(score_rows=ScoreRows.GENERATED), "exit": ANSWER_ALL},
    "merged": {"guidance": GuidanceConfig(source=GuidanceSource.TOME, retention_ratio=0.3), "exit": ANSWER_ALL},
    "fastv": {"guidance": GuidanceConfig(source=GuidanceSource.FASTV, retention_ratio=0.3), "exit": ANSWER_ALL},
    "sampled": {"sampling": SamplingConfig(max_new_tokens=6, temperature=0.9, top_k=40, top_p=0.8, seed=7)},
}


@pytest.mark.parametrize("name", CASES)
def test_one_question(cpu: SglPipeline, planned: SglPipeline, picture: Image.Image, name: str) -> None:
    settings = {"sampling": SHORT} | CASES[name]
    expected, actual = (engine.answer([picture], QUESTION, **settings) for engine in (cpu, planned))  # type: ignore[arg-type]
    same_answers([expected], [actual])


def same_answers(expected: list, actual: list) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert_allclose(ours.probabilities, theirs.probabilities, **TOLERANCE["fp32"])
        assert (ours.kept is None) == (theirs.kept is None)
        if theirs.kept is not None:
            assert_array_equal(ours.kept, theirs.kept)
        if theirs.importance is not None:
            assert_allclose(ours.importance, theirs.importance, **TOLERANCE["fp32"])
        assert (ours.decision is None) == (theirs.decision is None)
        if theirs.decision is not None:
            assert ours.decision.value == pytest.approx(theirs.decision.value, rel=1e-3, abs=1e-6)


def test_batch_with_prompts_of_different_lengths(cpu: SglPipeline, planned: SglPipeline, picture: Image.Image) -> None:
    questions = [
        Question((picture,), QUESTION, sampling=SHORT, exit=ANSWER_ALL),
        Question((), "Hello?", sampling=SamplingConfig(max_new_tokens=3), exit=ANSWER_ALL),
        Question((picture.crop((0, 0, 60, 60)),), "What?", sampling=SHORT, exit=ANSWER_ALL),
    ]
    same_answers(cpu.answer_batch(questions), planned.answer_batch(questions))


def test_each_phase_runs_in_its_profile(planned: SglPipeline, picture: Image.Image) -> None:
    engine = planned.small.language.executor._engine  # type: ignore[attr-defined]
    engine.runs[:] = engine.settled[:] = [0, 0]
    answer = planned.answer([picture], QUESTION, sampling=SHORT, exit=ExitConfig(exit_threshold=0.0))
    prefills, decodes = engine.runs
    assert decodes == len(answer.token_ids) - 1 > 1
    assert engine.settled[DECODE] == 1, "steps run with the same buffers, or no CUDA graph could be replayed"
    assert prefills > 3, "scores of this prompt, and logits of the scoring pass, are more than one call takes"


def test_kernels_lie_beside_the_plans_and_in_no_manifest(planned: SglPipeline) -> None:
    assert planned.large.language is not None, "opened"
    for plan in planned.directory.rglob("*.plan"):
        assert plan.with_suffix(".kernels").read_bytes() == RuntimeCache.COMPILED
    verify(planned.directory, planned.manifest, full=True)
    assert not [name for part in planned.manifest.components.values() for name in part.files if "kernels" in name]


def test_more_kept_tokens_than_planned_are_refused(planned: SglPipeline, picture: Image.Image) -> None:
    guidance = GuidanceConfig(enabled=False)
    short = planned.answer([picture], QUESTION, sampling=SamplingConfig(max_new_tokens=1), guidance=guidance)
    sampling = SamplingConfig(max_new_tokens=300 - short.prompt_tokens)
    with pytest.raises(RequestError, match=r"keeps \d+ tokens, with max_new_tokens \d+ more than the engine's 280;"):
        planned.answer([picture], QUESTION, sampling=sampling, guidance=guidance, exit=ANSWER_ALL)


@pytest.mark.parametrize("name", ["guided", "early exit", "sampled"])
def test_the_host_waits_once_a_token(
    cpu: SglPipeline, planned: SglPipeline, picture: Image.Image, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all questions together; and once for each prompt, for what each question scored, and for what its consistency
    pass found.
    """
    put_gpus(monkeypatch, device=DEVICE.type)
    texts, steps, step = (QUESTION, "Hello?", "What else?"), [], LanguageModel.step
    monkeypatch.setattr(LanguageModel, "step", lambda *arguments: steps.append(1) or step(*arguments))
    settings = {"sampling": SHORT} | CASES[name]
    questions = [Question((picture,), text, **settings) for text in texts]  # type: ignore[arg-type]
    with answer_on(monkeypatch) as device:
        answers = SglPipeline.load(planned.directory, threads=1).answer_batch(questions)
        waits, stepped = device.waits, len(steps)
    same_answers(cpu.answer_batch(questions), answers)
    models = 1 + any(answer.kept is not None for answer in answers)
    passes = sum(answer.decision is not None and answer.decision.consistency is not None for answer in answers)
    assert stepped > 3
    assert waits == stepped + models * len(questions) + len(questions) + passes
