"""Whole engines on this GPU, and on all of them, against the CPU engines of the same checkpoints: a miniature pair with
random weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, SamplingConfig
from engine.errors import EngineError
from engine.parallel import SHARDED
from engine.runtime.arrays import to_host
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import PromptTokens, prompt_rows
from engine.runtime.question import Question
from engine.runtime.tensor_parallel import RanksDiedError
from engine.target import Device, Precision, Target
from tools.gpu_check.check import Check, Line, Measured, Missing, at_least, at_most
from tools.make_random_pair import LARGE, SMALL, write_checkpoint, write_tokenizer
from tools.scenes import make_scene

QUESTIONS = ("What is this?", "How many objects are there?", "What color is the object on the left?")
TOKENS = 16
MAX_TOKENS = 1024
RANKS = (2, 4, 8)
HEADS_PER_RANK = 4
LOGITS_ERROR = {Precision.BF16: 5e-2, Precision.FP16: 1e-2}
"""Of the largest logit, through all layers."""


def engine_check(name: str, target: Target, precision: Precision) -> Check:
    """The pair built for a target and run on this GPU."""
    title = f"Target {target} in {precision} on this GPU against the CPU engine (a miniature pair, random weights)"
    return _check(name, title, precision, lambda work: compare(work, target, precision))


def ranks_check(name: str, target: Target) -> Check:
    """The pair with its large model on several ranks, one for each GPU."""

    def run(work: Path) -> Iterator[Measured]:
        gpus = torch.cuda.device_count()
        if gpus < min(RANKS):
            raise EngineError(f"torch sees {gpus} GPU, and each rank needs one of its own")
        return compare(work, target, Precision.BF16, max(ranks for ranks in RANKS if ranks <= gpus))

    title = f"Target {target} in bf16, the large model on several GPUs, against the CPU engine (random weights)"
    return _check(name, title, Precision.BF16, run)


def _check(name: str, title: str, precision: Precision, run: Callable[[Path], Iterator[Measured]]) -> Check:
    def measure() -> Iterator[Measured | Missing]:
        with TemporaryDirectory(prefix="gpu-check-") as work:
            try:
                outcomes = run(Path(work))
                yield next(outcomes)
            except RanksDiedError:
                raise
            except EngineError as error:  # a package that is not there, or a plan that this chip refuses
                for _ in lines:
                    yield Missing(str(error))
                return
            yield from outcomes

    lines = (
        Line("engines of both models loaded", "of all", at_least(1)),
        Line("logits after a prompt: largest error", "of the largest", at_most(LOGITS_ERROR[precision])),
        Line("importance of visual tokens: largest error", "of the largest", at_most(LOGITS_ERROR[precision])),
        Line("first tokens of greedy answers that are the CPU's", "of all", at_least(1)),
        Line("tokens of greedy answers up to the first that is not the CPU's", "of all"),
    )
    return Check(name, title, True, lines, measure)


def compare(work: Path, target: Target, precision: Precision, ranks: int = 1) -> Iterator[Measured]:
    """A value for each line, in their order. Raises EngineError before the first."""
    write_models(work, ranks)
    shared = ranks > 1
    ours = open_pair(work, "gpu", target, precision, Device.CUDA, shared, ranks)
    theirs = open_pair(work, "cpu", Target.ONNXRUNTIME, Precision.FP32, Device.CPU, shared)
    yield Measured(1, "small and large, vision and language" + f"; large on {ranks} GPUs" * shared)
    model = SHARDED if shared else "small"
    expected, received = prefill(theirs, model)
    logits, importance = prefill(ours, model)
    yield Measured(relative_error(logits, expected))
    yield Measured(relative_error(importance, received))
    answers = list(zip(answer(ours), answer(theirs), strict=True))
    agreed = [agreement(actual, expected) for actual, expected in answers]
    yield Measured(sum(map(bool, agreed)) / len(agreed), f"{len(agreed)} answers of both models")
    yield Measured(sum(agreed) / sum(len(expected) for _, expected in answers), "random weights: close calls differ")


def write_models(work: Path, ranks: int) -> None:
    """Checkpoints; a rank of the large model has as many heads as TensorRT's causal attention wants."""
    language = LARGE["llm_config"]
    heads, width = language["num_attention_heads"], language["hidden_size"]
    wanted = max(heads, HEADS_PER_RANK * ranks)
    language = language | {"num_attention_heads": wanted, "hidden_size": wanted * width // heads}
    for name, config in (("small", SMALL), ("large", LARGE | {"llm_config": language})):
        write_checkpoint(work / name, config, seed=1)
        write_tokenizer(work / name)


def open_pair(
    work: Path,
    name: str,
    target: Target,
    precision: Precision,
    device: Device,
    large_scores: bool,
    ranks: int = 1,
) -> SglPipeline:
    """Built and loaded."""
    out = work / name
    build = BuildConfig(work / "small", work / "large", out, target, precision, MAX_TOKENS, max_batch=2)
    build_pair(replace(build, large_scores=large_scores, world_size=ranks))
    return SglPipeline.load(out, device=device)


def prefill(pipeline: SglPipeline, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits [vocab] and scores [L,V] of a model, on made-up features that are the same for every engine."""
    model = getattr(pipeline, name)
    rng = np.random.default_rng(0)
    language = model.config.language
    features = 0.1 * rng.standard_normal((64, language.hidden_size), np.float32)
    prompt = PromptTokens(rng.integers(0, language.vocab_size, 100), np.arange(10, 74), features)
    rows = prompt_rows(prompt)
    slot = model.language.open(model.need(rows, 1, prompt.visual_positions))
    logits = to_host(model.language.extend(slot, rows, np.array([99]), np.arange(74, 100))[0])
    scores = to_host(model.language.visual_scores(slot))
    model.language.close(slot)
    return logits, scores


def answer(pipeline: SglPipeline) -> list[tuple[int, ...]]:
    """Tokens of the small model's answers, and of the large one's with half of the visual tokens: the first alone, the
    others in batches.
    """
    picture, _ = make_scene(seed=1, width=330, height=220, objects=5)
    sampling, guidance = SamplingConfig(max_new_tokens=TOKENS), GuidanceConfig(retention_ratio=0.5)
    exits = ExitConfig(exit_threshold=-1), ExitConfig(enabled=False)
    questions = [Question((picture,), text, guidance, exit, sampling) for text in QUESTIONS for exit in exits]
    parts = questions[:1], questions[1:]
    return [answer.token_ids for part in parts for answer in pipeline.answer_batch(part)]


def agreement(actual: tuple[int, ...], expected: tuple[int, ...]) -> int:
    """Tokens up to the first that differs."""
    return sum(takewhile(bool, (ours == theirs for ours, theirs in zip(actual, expected, strict=False))))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


RTX = engine_check("tensorrt_rtx", Target.TENSORRT_RTX, Precision.BF16)
TENSORRT = engine_check("tensorrt", Target.TENSORRT, Precision.BF16)
RANKS_RTX = ranks_check("ranks_rtx", Target.TENSORRT_RTX)
RANKS_TENSORRT = ranks_check("ranks_tensorrt", Target.TENSORRT)
ONNXRUNTIME = engine_check("onnxruntime", Target.ONNXRUNTIME, Precision.FP16)
