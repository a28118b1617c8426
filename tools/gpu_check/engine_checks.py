"""Whole engines on this GPU against the CPU engines of the same checkpoints: a miniature pair with random weights."""

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from engine.build.builder import build_pair
from engine.config import BuildConfig, Device, ExitConfig, GuidanceConfig, Precision, SamplingConfig, Target
from engine.errors import EngineError
from engine.runtime.arrays import to_host
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import PromptTokens, Request
from tools.gpu_check.check import Check, Line, Measured, Missing, at_least, at_most
from tools.make_random_pair import write_pair
from tools.scenes import make_scene

QUESTIONS = ("What is this?", "How many objects are there?", "What color is the object on the left?")
TOKENS = 16
MAX_TOKENS = 1024
LOGITS_ERROR = {Precision.BF16: 5e-2, Precision.FP32: 1e-2}
"""Of the largest logit: bf16 through all layers; float32 whose products a GPU may round to TF32."""


def engine_check(name: str, target: Target, precision: Precision) -> Check:
    """The pair built for a target and run on this GPU."""

    def measure() -> Iterator[Measured | Missing]:
        with TemporaryDirectory(prefix="gpu-check-") as work:
            try:
                yield from compare(Path(work), target, precision)
            except EngineError as error:  # a package that is not there, or a plan that this chip refuses
                for _ in lines:
                    yield Missing(str(error))

    lines = (
        Line("engines of both models loaded", "of all", at_least(1)),
        Line("logits after a prompt: largest error", "of the largest", at_most(LOGITS_ERROR[precision])),
        Line("importance of visual tokens: largest error", "of the largest", at_most(LOGITS_ERROR[precision])),
        Line("first tokens of greedy answers that are the CPU's", "of all", at_least(1)),
        Line("tokens of greedy answers up to the first that is not the CPU's", "of all"),
    )
    title = f"Target {target} in {precision} on this GPU against the CPU engine (a miniature pair, random weights)"
    return Check(name, title, True, lines, measure)


def compare(work: Path, target: Target, precision: Precision) -> Iterator[Measured]:
    """A value for each line, in their order. Raises EngineError before the first."""
    write_pair(work, seed=1)
    ours = open_pair(work, "gpu", target, precision, Device.CUDA)
    theirs = open_pair(work, "cpu", Target.ONNXRUNTIME, Precision.FP32, Device.CPU)
    yield Measured(1, "small and large, vision and language")
    expected, received = prefill(theirs)
    logits, importance = prefill(ours)
    yield Measured(relative_error(logits, expected))
    yield Measured(relative_error(importance, received))
    answers = list(zip(answer(ours), answer(theirs), strict=True))
    agreed = [agreement(actual, expected) for actual, expected in answers]
    yield Measured(sum(map(bool, agreed)) / len(agreed), f"{len(agreed)} answers of both models")
    yield Measured(sum(agreed) / sum(len(expected) for _, expected in answers), "random weights: close calls differ")


def open_pair(work: Path, name: str, target: Target, precision: Precision, device: Device) -> SglPipeline:
    """Built and loaded."""
    out = work / name
    build = BuildConfig(work / "small", work / "large", out, target, precision, MAX_TOKENS, max_batch=2)
    build_pair(build)
    return SglPipeline.load(out, device=device)


def prefill(pipeline: SglPipeline) -> tuple[np.ndarray, np.ndarray]:
    """Logits [vocab] and scores [L,V] of the small model, on made-up features that are the same for every engine."""
    model = pipeline.small
    rng = np.random.default_rng(0)
    language = model.config.language
    features = 0.1 * rng.standard_normal((64, language.hidden_size), np.float32)
    prompt = PromptTokens(rng.integers(0, language.vocab_size, 100), np.arange(10, 74), features)
    generation = model.language.prefill([Request(prompt, score_rows=np.arange(74, 100))], 1)
    return to_host(generation.logits[0]), to_host(generation.visual_scores(0))


def answer(pipeline: SglPipeline) -> list[tuple[int, ...]]:
    """Tokens of the small model's answers, and of the large one's with half of the visual tokens."""
    picture, _ = make_scene(seed=1, width=330, height=220, objects=5)
    sampling, guidance = SamplingConfig(max_new_tokens=TOKENS), GuidanceConfig(retention_ratio=0.5)
    exits = ExitConfig(exit_threshold=-1), ExitConfig(enabled=False)
    return [
        pipeline.answer(picture, question, guidance=guidance, exit=exit, sampling=sampling).token_ids
        for question in QUESTIONS
        for exit in exits
    ]


def agreement(actual: tuple[int, ...], expected: tuple[int, ...]) -> int:
    """Tokens up to the first that differs."""
    return sum(takewhile(bool, (ours == theirs for ours, theirs in zip(actual, expected, strict=False))))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


RTX = engine_check("tensorrt_rtx", Target.TENSORRT_RTX, Precision.BF16)
TENSORRT = engine_check("tensorrt", Target.TENSORRT, Precision.BF16)
ONNXRUNTIME = engine_check("onnxruntime", Target.ONNXRUNTIME, Precision.FP32)
