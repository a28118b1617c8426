"""Our engines as a worker runs them; imports what the runtime imports, so that memory is the runtime's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.bindings import SCORING_ENGINE
from engine.config import ExitConfig, GuidanceConfig, SamplingConfig, ScoreRows
from engine.manifest import read_manifest
from engine.model_config import LanguageConfig, VisionConfig
from engine.runtime.answer import Answer
from engine.runtime.executor_onnxruntime import OnnxRuntimeExecutor
from engine.runtime.guidance import score_rows
from engine.runtime.language import Generation, LanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import PromptTokens, Pruning, Request
from engine.runtime.tensor_parallel import ShardedLanguage
from engine.runtime.tensor_parallel_group import Group
from engine.runtime.vision import VisionEncoder
from tools.benchmark.memory_meter import AnonymousPeak, status_bytes


@dataclass(frozen=True)
class LanguageEngine:
    """A language engine on disk; called, it is loaded."""

    path: Path
    config: LanguageConfig
    prune_layers: tuple[int, ...]
    scores: bool
    threads: int

    def __call__(self) -> "EngineRunner":
        executor, scoring = OnnxRuntimeExecutor(self.path, self.threads), None
        if self.scores:
            scoring = OnnxRuntimeExecutor(self.path.with_name(f"{SCORING_ENGINE}.onnx"), self.threads)
        return EngineRunner(LanguageModel(executor, self.config, self.prune_layers, self.scores, scoring=scoring))


@dataclass(frozen=True)
class VisionEngine:
    """A vision engine on disk; called, it is loaded."""

    path: Path
    config: VisionConfig
    threads: int

    def __call__(self) -> VisionEncoder:
        return VisionEncoder(OnnxRuntimeExecutor(self.path, self.threads), self.config)


class EngineRunner:
    """Our engine at work on one prompt at a time. What it scores is added up within the call that scores it."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self.generation: Generation | None = None

    def prefill(self, prompt: PromptTokens, new_tokens: int, pruning: Pruning | None = None) -> np.ndarray:
        """-> logits [vocab] of the prompt's last token."""
        # Freed first, as between two questions: the caches of two prompts never exist at once.
        self.generation = None
        rows = score_rows(prompt.visual_positions, len(prompt.ids), ScoreRows.PROMPT_AND_GENERATED)
        request = Request(prompt, pruning, rows if self._model.scores else rows[:0])
        self.generation = self._model.prefill([request], new_tokens)
        if len(request.score_rows):
            self.visual_scores()
        return self.generation.logits[0]

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """[G] fed one by one -> logits [vocab] of the last."""
        assert self.generation is not None, "a prompt comes first"
        everyone = np.ones(1, bool)
        for token in tokens:
            logits = self.generation.decode(np.array([token]), everyone, everyone)
        if self._model.scores:
            self.visual_scores()
        return logits[0]

    def visual_scores(self) -> np.ndarray:
        """[L,V] of the prompt and what was decoded after it."""
        assert self.generation is not None, "a prompt comes first"
        return self.generation.visual_scores(0)


@dataclass(frozen=True)
class ShardedEngine:
    """The large model of an engine directory built for several ranks; called, they are started."""

    directory: Path
    threads: int

    def __call__(self) -> "ShardedRunner":
        ranks = Group()
        ranks.open(self.directory, read_manifest(self.directory), self.threads)
        return ShardedRunner(ranks)


class ShardedRunner:
    """Several ranks at work on one prompt at a time."""

    def __init__(self, ranks: Group) -> None:
        self._ranks = ranks

    def prefill(self, prompt: PromptTokens, new_tokens: int) -> np.ndarray:
        """-> logits [vocab] of the prompt's last token."""
        self._generation = ShardedLanguage(self._ranks).prefill([Request(prompt)], new_tokens)
        return self._generation.logits[0]

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """[G] fed one by one -> logits [vocab] of the last."""
        everyone, nobody = np.ones(1, bool), np.zeros(1, bool)
        for token in tokens:
            logits = self._generation.decode(np.array([token]), everyone, nobody)
        return logits[0]

    def seconds_in_sums(self) -> float:
        """Rank 0's, since it was started."""
        seconds: float = self._ranks.call("seconds_in_sums")
        return seconds


@dataclass(frozen=True)
class MeteredAnswer:
    """peak_bytes: most resident memory that the process ever had. peak_anonymous_bytes: most that no file backs."""

    answer: Answer
    peak_bytes: int
    peak_anonymous_bytes: int


@dataclass(frozen=True)
class LoadPipeline:
    """An engine directory; called, it is opened, and each model is loaded when it is first needed."""

    directory: Path
    threads: int

    def __call__(self) -> "MeteredPipeline":
        # The same picture is encoded anew every time.
        return MeteredPipeline(SglPipeline.load(self.directory, self.threads, preload=False, feature_cache=0))


class MeteredPipeline:
    """`SglPipeline.answer` with the process's memory watched."""

    def __init__(self, pipeline: SglPipeline) -> None:
        self._pipeline = pipeline

    def answer(
        self, image: Path, question: str, guidance: GuidanceConfig, exit: ExitConfig, sampling: SamplingConfig
    ) -> MeteredAnswer:
        with AnonymousPeak() as peak:
            answer = self._pipeline.answer(image, question, guidance=guidance, exit=exit, sampling=sampling)
        return MeteredAnswer(answer, status_bytes("VmHWM"), peak.bytes)
