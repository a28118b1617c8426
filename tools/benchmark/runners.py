"""Our engines as a worker runs them; imports what the runtime imports, so that memory is the runtime's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.bindings import SCORING_ENGINE
from engine.config import ExitConfig, GuidanceConfig, SamplingConfig, ScoreRows
from engine.engine_directory import read_manifest
from engine.manifest import Manifest
from engine.model_config import LanguageConfig, VisionConfig
from engine.parallel import SHARDED
from engine.runtime.answer import Answer
from engine.runtime.executor_onnxruntime import OnnxRuntimeExecutor
from engine.runtime.guidance import score_rows
from engine.runtime.language import Language, LanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import Need, PromptTokens, Pruning, prompt_rows
from engine.runtime.tensor_parallel import SecondsInSums
from engine.runtime.tensor_parallel_group import Group
from engine.runtime.tensor_parallel_leader import ShardedLanguage
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
        executor, scoring = OnnxRuntimeExecutor.load(self.path, self.threads), None
        if self.scores:
            scoring = OnnxRuntimeExecutor.load(self.path.with_name(f"{SCORING_ENGINE}.onnx"), self.threads)
        language = LanguageModel(executor, self.config, self.prune_layers, self.scores, scoring=scoring)
        return EngineRunner(language, self.prune_layers, self.scores)


@dataclass(frozen=True)
class VisionEngine:
    """A vision engine on disk; called, it is loaded."""

    path: Path
    config: VisionConfig
    threads: int

    def __call__(self) -> VisionEncoder:
        return VisionEncoder(OnnxRuntimeExecutor.load(self.path, self.threads), self.config)


class EngineRunner:
    """Our engine at work on one prompt at a time. What it scores is added up within the call that scores it."""

    def __init__(self, language: Language, prune_layers: Sequence[int] = (), scores: bool = False) -> None:
        """prune_layers, scores: those that the engine has."""
        self._language, self._prune_layers, self._scores = language, prune_layers, scores
        self._slot: int | None = None

    def prefill(self, prompt: PromptTokens, new_tokens: int, pruning: Pruning | None = None) -> np.ndarray:
        """-> logits [vocab] of the prompt's last token."""
        self.close()
        rows, counts = prompt_rows(prompt, pruning), self._scores and pruning is None
        lengths = tuple(len(kept) + new_tokens for kept in rows.kept(self._prune_layers))
        self._slot = self._language.open(Need(lengths, prompt.visual_positions if counts else None))
        scored = score_rows(prompt.visual_positions, len(prompt.ids), ScoreRows.PROMPT_AND_GENERATED)
        last, scored = np.array([len(rows) - 1]), scored if counts else scored[:0]
        logits: np.ndarray = self._language.extend(self._slot, rows, last, scored)[0]
        if counts:
            self.visual_scores()
        return logits

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """[G] fed one by one -> logits [vocab] of the last."""
        assert self._slot is not None, "a prompt comes first"
        counts = np.array([self._scores])
        for token in tokens:
            logits: np.ndarray = self._language.step([self._slot], np.array([token]), counts)[0]
        if self._scores:
            self.visual_scores()
        return logits

    def visual_scores(self) -> np.ndarray:
        """[L,V] of the prompt and what was decoded after it."""
        assert self._slot is not None, "a prompt comes first"
        return self._language.visual_scores(self._slot)

    def close(self) -> None:
        """Forget the prompt."""
        if self._slot is not None:
            self._language.close(self._slot)
            self._slot = None


@dataclass(frozen=True)
class ShardedEngine:
    """The large model of an engine directory built for several ranks; called, they are started."""

    directory: Path
    threads: int

    def __call__(self) -> "ShardedRunner":
        ranks, manifest = Group(), read_manifest(self.directory)
        ranks.open(self.directory, manifest, self.threads, places=1)
        return ShardedRunner(ranks, manifest)


class ShardedRunner(EngineRunner):
    """Several ranks at work on one prompt at a time."""

    def __init__(self, ranks: Group, manifest: Manifest) -> None:
        super().__init__(ShardedLanguage(ranks, manifest, places=1), manifest.models[SHARDED].prune_layers)
        self._ranks = ranks

    def seconds_in_sums(self) -> float:
        """Rank 0's, since it was started."""
        seconds: float = self._ranks.do(SecondsInSums())
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
        # The same picture is encoded, and the same prompt read, anew every time.
        return MeteredPipeline(
            SglPipeline.load(self.directory, self.threads, preload=False, feature_cache=0, prefix_cache=0)
        )


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
